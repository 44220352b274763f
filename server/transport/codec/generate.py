"""generate's JSON <-> types: inputs, outputs and parameters by name, without shapes and datatypes.

A key that is an input's name is that input, any other a parameter of the request, at the top as in `parameters`.
Source: Triton's extension_generate.md.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from math import prod
from typing import Any

import orjson

from server.errors import InvalidRequest
from server.tensor import DATATYPES, Tensor, TensorSpec
from server.transport.codec.json_data import pack_json, unpack_json
from server.transport.codec.tensors import quoted
from server.transport.codec.v2_rest import Call, deduce, load_json
from server.types import InferRequest, InferResponse, Parameter


def decode_generate(call: Call, body: bytes, specs: Iterable[TensorSpec]) -> InferRequest:
    """A request from a body of JSON. `specs` are the model's inputs, with their batch dimension.

    The value of an input is one element or a flat list of them, which takes the shape of the spec: the last dimension
    of -1 is as long as it must be, others of -1 are 1.

    Raises:
        InvalidRequest: the body is no JSON object, an input is there twice, its elements are of another type or fit
            no shape of it, or a parameter is no boolean, number or string.
    """
    document = load_json("body", body)
    if not isinstance(document, dict):
        raise InvalidRequest("body", "must be an object")
    request_id = document.pop("id", "")
    if not isinstance(request_id, str):
        raise InvalidRequest("id", "must be a string")
    nested = document.pop("parameters", {})
    if not isinstance(nested, dict):
        raise InvalidRequest("parameters", "must be an object")
    inputs = _Inputs(specs)
    parameters = {**inputs.take("", document), **inputs.take("parameters.", nested)}
    return InferRequest(
        call.model_name,
        list(inputs.tensors.values()),
        on_settle=call.on_settle,
        received_ns=call.received_ns,
        model_version=call.model_version,
        id=request_id,
        parameters=parameters,
        deadline_ns=call.deadline_ns,
        tenant=call.tenant,
        caller=call.caller,
    )


def encode_generate(response: InferResponse) -> bytes:
    """An object of the outputs by name; an output of one element is that element, others are flat lists.

    Raises:
        Unsupported: an output holds what JSON can't carry.
    """
    told: dict[str, object] = {"model_name": response.model_name, "model_version": response.model_version}
    if response.id:
        told["id"] = response.id
    for name, value in response.parameters.items():
        told.setdefault(name, value)
    for tensor in response.outputs:
        values = unpack_json(tensor.name, tensor)
        told.setdefault(tensor.name, values[0] if len(values) == 1 else values)
    return orjson.dumps(told, option=orjson.OPT_SERIALIZE_NUMPY)


class _Inputs:
    """The tensors that were found, by name."""

    def __init__(self, specs: Iterable[TensorSpec]) -> None:
        self._specs = {spec.name: spec for spec in specs}
        self.tensors: dict[str, Tensor] = {}

    def take(self, where: str, members: dict[str, Any]) -> dict[str, Parameter]:
        """Keep what is an input of these; returns the others."""
        parameters: dict[str, Parameter] = {}
        for name, value in members.items():
            field, spec = f"{where}{name}", self._specs.get(name)
            if spec is None:
                if not isinstance(value, bool | int | float | str):
                    problem = "is no input of the model, and a parameter must be a boolean, a number or a string"
                    raise InvalidRequest(field, problem)
                parameters[name] = value
            elif name in self.tensors:
                raise InvalidRequest(field, f"input {quoted(name)} already exists in request")
            else:
                self.tensors[name] = _tensor(field, spec, value if isinstance(value, list) else [value])
        return parameters


def _tensor(field: str, spec: TensorSpec, elements: Sequence[Any]) -> Tensor:
    count = len(elements)
    shape = deduce(spec.dims, count)
    if prod(shape) != count:
        raise InvalidRequest(field, f"{count} elements make no shape of {list(spec.dims)}, as the model's input has")
    data = pack_json(field, DATATYPES[spec.datatype], shape, count, elements)
    return Tensor(spec.name, spec.datatype, shape, data)
