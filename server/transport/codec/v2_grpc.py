"""inference.ModelInferRequest and ModelInferResponse <-> types. Source: KServe v2 gRPC, Triton's grpc_service.proto."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from server.errors import InvalidRequest
from server.proto.parameters import set_parameter
from server.proto.triton import service_pb2 as pb
from server.tensor import Datatype, Tensor, pack_bytes
from server.transport.codec.shared_memory import SharedParts, parameters_of, reference_of, special_of
from server.transport.codec.tensors import (
    check_datatype,
    check_name,
    check_raw,
    class_count,
    count_elements,
    quoted,
)
from server.types import NO_DEADLINE, InferRequest, InferResponse, Outcome, Parameter

_CONTENTS = {
    "BOOL": "bool_contents",
    "INT8": "int_contents",
    "INT16": "int_contents",
    "INT32": "int_contents",
    "INT64": "int64_contents",
    "UINT8": "uint_contents",
    "UINT16": "uint_contents",
    "UINT32": "uint_contents",
    "UINT64": "uint64_contents",
    "FP32": "fp32_contents",
    "FP64": "fp64_contents",
    "BYTES": "bytes_contents",
}
"""The field of InferTensorContents for a datatype. FP16 and BF16 have none: they travel raw."""


def decode_infer(
    message: Any,
    *,
    on_settle: Callable[[InferRequest, Outcome], None],
    received_ns: int,
    deadline_ns: int = NO_DEADLINE,
) -> InferRequest:
    """A request from a ModelInferRequest, with raw or typed contents.

    Raises:
        InvalidRequest: the message contradicts itself (lengths, datatypes, shapes, both kinds of contents).
    """
    shared = SharedParts()
    inputs = _Inputs(message, shared).decode()
    outputs, classes = _outputs(message.outputs, shared) if message.outputs else ((), {})
    request = InferRequest(
        message.model_name,
        inputs,
        on_settle=on_settle,
        received_ns=received_ns,
        model_version=message.model_version,
        id=message.id,
        outputs=outputs,
        parameters=_parameters("parameters", message.parameters) if message.parameters else None,
        deadline_ns=deadline_ns,
    )
    request.special = special_of(shared, classes)
    return request


def encode_infer(response: InferResponse) -> Any:
    """A ModelInferResponse; its tensors are always raw. Those in shared memory have an empty entry, as Triton's."""
    message = pb.ModelInferResponse(
        model_name=response.model_name, model_version=response.model_version, id=response.id
    )
    for tensor in response.outputs:
        output = message.outputs.add(name=tensor.name, datatype=tensor.datatype, shape=tensor.shape)
        if response.shared and tensor.name in response.shared:
            for key, place in parameters_of(response.shared[tensor.name]).items():
                set_parameter(output.parameters[key], place)
        message.raw_output_contents.append(bytes(tensor.data))
    for name, value in response.parameters.items():
        set_parameter(message.parameters[name], value)
    return message


FINAL_RESPONSE = "triton_final_response"
"""The parameter of each answer in a stream: whether it is the last one to its request."""


def encode_stream_infer(response: InferResponse, *, final: bool) -> Any:
    """A ModelStreamInferResponse."""
    message = pb.ModelStreamInferResponse(infer_response=encode_infer(response))
    message.infer_response.parameters[FINAL_RESPONSE].bool_param = final
    return message


def encode_stream_error(problem: str, id: str, model_name: str = "") -> Any:
    """A ModelStreamInferResponse that ends a request; without `model_name` of a message that never became one."""
    message = pb.ModelStreamInferResponse(error_message=problem)
    message.infer_response.id = id
    if model_name:
        message.infer_response.model_name = model_name
        message.infer_response.parameters[FINAL_RESPONSE].bool_param = True
    return message


class _Inputs:
    """Reads the inputs of one message: those in shared memory have no entry of raw_input_contents."""

    __slots__ = ("_inputs", "_next", "_raw", "_shared")

    def __init__(self, message: Any, shared: SharedParts) -> None:
        self._inputs = message.inputs
        self._raw = message.raw_input_contents
        self._next = 0
        self._shared = shared

    def decode(self) -> list[Tensor]:
        tensors = [self._input(index, tensor) for index, tensor in enumerate(self._inputs)]
        if self._raw and self._next != len(self._raw):
            raise InvalidRequest("raw_input_contents", f"{len(self._raw)} entries for {self._next} inputs")
        return tensors

    def _input(self, index: int, tensor: Any) -> Tensor:
        field = f"inputs[{index}]"
        name = check_name(field, tensor.name)
        datatype = check_datatype(field, tensor.datatype)
        shape = tuple(tensor.shape)
        count = count_elements(field, shape)
        has_contents = tensor.HasField("contents") and tensor.contents.ByteSize()
        if tensor.parameters:
            reference = reference_of(field, name, _parameters(f"{field}.parameters", tensor.parameters))
            if reference is not None:
                if has_contents:
                    problem = f"unexpected 'content' provided when using shared memory for input tensor {quoted(name)}"
                    raise InvalidRequest(f"{field}.contents", problem)
                self._shared.input(index, field, datatype, count, reference)
                return Tensor(name, datatype.name, shape, b"")
        if not self._raw:
            return Tensor(name, datatype.name, shape, _typed(field, datatype, count, tensor.contents))
        if has_contents:
            raise InvalidRequest(
                f"{field}.contents", "contents field must not be specified when using raw_input_contents"
            )
        at, self._next = self._next, self._next + 1
        if at >= len(self._raw):
            raise InvalidRequest("raw_input_contents", f"{len(self._raw)} entries for {len(self._inputs)} inputs")
        data = self._raw[at]
        check_raw(f"raw_input_contents[{at}]", datatype, count, data)
        return Tensor(name, datatype.name, shape, data)


def _typed(field: str, datatype: Datatype, count: int, contents: Any) -> bytes:
    """The raw form of InferTensorContents, of which only the datatype's own field may be set."""
    wanted = _CONTENTS.get(datatype.name)
    if wanted is None:
        raise InvalidRequest(f"{field}.contents", f"{datatype.name} can only be sent in raw_input_contents")
    for descriptor, _ in contents.ListFields():
        if descriptor.name != wanted:
            raise InvalidRequest(
                f"{field}.contents.{descriptor.name}",
                f"unexpected explicit tensor data, {datatype.name} is sent in {wanted}",
            )
    values = getattr(contents, wanted)
    if len(values) != count:
        raise InvalidRequest(f"{field}.contents.{wanted}", f"{len(values)} elements, the shape needs {count}")
    if datatype.name == "BYTES":
        return pack_bytes(values)
    if datatype.size < 4 and datatype.name != "BOOL" and count:
        limits = np.iinfo(datatype.numpy)
        for value in (min(values), max(values)):
            if not limits.min <= value <= limits.max:
                raise InvalidRequest(f"{field}.contents.{wanted}", f"{value} is out of the range of {datatype.name}")
    return np.fromiter(values, datatype.numpy, count).tobytes()


def _outputs(requested: Any, shared: SharedParts) -> tuple[list[str], dict[str, int]]:
    """The names, and of how many the best classes are wanted."""
    names, classes = [], {}
    for index, output in enumerate(requested):
        field = f"outputs[{index}]"
        name = check_name(field, output.name)
        names.append(name)
        if output.parameters:
            parameters = _parameters(f"{field}.parameters", output.parameters)
            reference = reference_of(field, name, parameters)
            if reference is not None:
                shared.output(name, reference)
            count = class_count(field, parameters, 1)
            if count:
                classes[name] = count
    return names, classes


def _parameters(field: str, parameters: Mapping[str, Any]) -> dict[str, Parameter]:
    values: dict[str, Parameter] = {}
    for name, parameter in parameters.items():
        choice = parameter.WhichOneof("parameter_choice")
        if choice is None:
            raise InvalidRequest(f"{field}[{quoted(name)}]", "has no value")
        values[name] = getattr(parameter, choice)
    return values
