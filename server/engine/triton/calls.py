"""A request of ours as Triton's ModelInferRequest, and its ModelInferResponse as our answer: tensors as raw bytes.

Source: KServe v2 gRPC, Triton's grpc_service.proto and docs/protocol/extension_parameters.md.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import prod
from typing import Any

from server.engine.triton.memory import Piece
from server.errors import EngineFailure
from server.proto.parameters import set_parameter
from server.proto.triton import service_pb2 as pb
from server.tensor import DATATYPES, Buffer, Tensor
from server.types import NO_DEADLINE, InferRequest, InferResponse, Parameter

_LEAST_US = 1
_MOST_CLASSES = (1 << 32) - 1
"""Of a larger number Triton takes the lower 32 bits; no output has as many."""
NOWHERE: Mapping[str, Piece] = {}
"""All inputs are in the message."""
EMPTY_FINAL = "triton_enable_empty_final_response"
"""Asks for a last response that may be without outputs. Source: Triton, docs/user_guide/decoupled_models.md."""
FINAL = "triton_final_response"


def message_of(request: InferRequest, version: str, now_ns: int, pieces: Mapping[str, Piece] = NOWHERE) -> Any:
    """What Triton is asked. What is left of the deadline is told as `timeout`, by which its queue drops who is late.
    `pieces`: which inputs it finds in shared memory, and where."""
    message = pb.ModelInferRequest(model_name=request.model_name, model_version=version, id=request.id)
    for tensor in request.inputs:
        told = message.inputs.add(name=tensor.name, datatype=tensor.datatype, shape=tensor.shape)
        piece = pieces.get(tensor.name)
        if piece is None:
            message.raw_input_contents.append(bytes(tensor.data))
        else:
            _refer(told.parameters, piece)
    for name in request.outputs:
        message.outputs.add(name=name)
    if request.special is not None:
        _ask_classes(message.outputs, request.special.classes)
    for name, value in request.parameters.items():
        set_parameter(message.parameters[name], value)
    if request.deadline_ns < NO_DEADLINE:
        left_us = max(_LEAST_US, (request.deadline_ns - now_ns) // 1000)
        own = request.parameters.get("timeout")
        message.parameters["timeout"].int64_param = min(own, left_us) if type(own) is int and own > 0 else left_us
    return message


def _ask_classes(outputs: Any, classes: Mapping[str, int]) -> None:
    """Source: Triton, docs/protocol/extension_classification.md."""
    for output in outputs:
        if output.name in classes:
            output.parameters["classification"].int64_param = min(classes[output.name], _MOST_CLASSES)


def _refer(parameters: Any, piece: Piece) -> None:
    """Source: Triton, docs/protocol/extension_shared_memory.md."""
    parameters["shared_memory_region"].string_param = piece.region
    parameters["shared_memory_byte_size"].int64_param = piece.byte_size
    if piece.offset:
        parameters["shared_memory_offset"].int64_param = piece.offset


def answer_of(
    message: Any, request: InferRequest, outputs: Sequence[str], *, of_several: bool = False
) -> InferResponse:
    """The answer that Triton's message is, its outputs in the order asked for, else in that of `outputs`, the model's.

    `of_several`: it is one of several, which need not have all that was asked for.

    Raises:
        EngineFailure: the message contradicts itself, or has not what was asked for.
    """
    raw = message.raw_output_contents
    if len(raw) != len(message.outputs):
        raise EngineFailure(request.model_name, f"{len(message.outputs)} outputs, {len(raw)} raw contents")
    tensors = {
        output.name: _tensor(request.model_name, output, data)
        for output, data in zip(message.outputs, raw, strict=True)
    }
    missing = [name for name in request.outputs if name not in tensors]
    if missing and not of_several:
        raise EngineFailure(request.model_name, f"the answer lacks the output {missing[0]}")
    order = [name for name in (request.outputs or outputs) if name in tensors]
    rest = [] if request.outputs else [name for name in tensors if name not in outputs]
    return InferResponse(
        request.model_name,
        message.model_version,
        [tensors[name] for name in (*order, *rest)],
        request.id,
        _parameters(message.parameters) if message.parameters else None,
    )


def is_final(message: Any) -> bool:
    """Whether no other response follows this one, of a model that gives several. Takes the word out of the message."""
    final: bool = message.parameters[FINAL].bool_param
    del message.parameters[FINAL]
    return final


def _tensor(model_name: str, output: Any, data: Buffer) -> Tensor:
    shape = tuple(output.shape)
    datatype = DATATYPES.get(output.datatype)
    if datatype is None:
        raise EngineFailure(model_name, f"output {output.name} has the datatype {output.datatype}")
    if datatype.size and len(data) != prod(shape) * datatype.size:
        raise EngineFailure(model_name, f"output {output.name} of shape {shape} has {len(data)} bytes")
    return Tensor(output.name, output.datatype, shape, data)


def _parameters(parameters: Mapping[str, Any]) -> dict[str, Parameter]:
    choices = {name: parameter.WhichOneof("parameter_choice") for name, parameter in parameters.items()}
    return {name: getattr(parameters[name], choice) for name, choice in choices.items() if choice}
