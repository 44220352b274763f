"""v2's JSON inference request and response, with the binary tensor extension <-> types.

Tensors may come as JSON and as binary in any mix: the body is JSON of `Inference-Header-Content-Length`
bytes, then the binary tensors in the order of the inputs that say `binary_data_size`.
Source: KServe v2 REST, Triton's extension_binary_data.md, extension_parameters.md.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import orjson

from server.errors import InvalidRequest
from server.tensor import DATATYPES, Tensor, TensorSpec, pack_bytes
from server.transport.codec.json_data import pack_json, unpack_json
from server.transport.codec.shared_memory import SharedParts, reference_of, special_of
from server.transport.codec.tensors import (
    check_datatype,
    check_name,
    check_raw,
    class_count,
    count_elements,
    quoted,
)
from server.types import NO_DEADLINE, InferRequest, InferResponse, Outcome, Parameter

HEADER_LENGTH = "Inference-Header-Content-Length"


class OutputFormat(NamedTuple):
    """Which outputs travel as binary: those named in `by_name` as it says, all others as `default` says."""

    default: bool
    by_name: Mapping[str, bool]

    def binary(self, name: str) -> bool:
        return self.by_name.get(name, self.default)


class Call(NamedTuple):
    """What a REST call says outside of its body."""

    model_name: str
    model_version: str
    on_settle: Callable[[InferRequest, Outcome], None]
    received_ns: int
    deadline_ns: int = NO_DEADLINE
    tenant: str = ""
    caller: object = None


def decode_infer(call: Call, body: bytes, header_length: int | None = None) -> tuple[InferRequest, OutputFormat]:
    """A request from a body, of which the first `header_length` bytes are JSON (None: all of it).

    Raises:
        InvalidRequest: the body is no JSON, contradicts itself, or its lengths do not add up.
    """
    view = memoryview(body)
    size = len(view) if header_length is None else header_length
    if size > len(view):
        raise InvalidRequest(HEADER_LENGTH, f"inference header size should be in range (0, {len(view)}), got: {size}")
    document = _object("body", load_json("body", view[:size]))
    shared = SharedParts()
    inputs = _Inputs(view, size, shared).decode(document)
    parameters = _parameters("parameters", document.get("parameters"))
    default = _flag("parameters.binary_data_output", parameters.pop("binary_data_output", False))
    outputs, by_name, classes = _outputs(document.get("outputs"), shared)
    request_id = document.get("id", "")
    if not isinstance(request_id, str):
        raise InvalidRequest("id", "must be a string")
    request = _request(call, inputs, request_id, outputs, parameters)
    request.special = special_of(shared, classes)
    return request, OutputFormat(default, by_name)


def decode_raw_infer(call: Call, body: bytes, specs: Sequence[TensorSpec]) -> tuple[InferRequest, OutputFormat]:
    """A raw binary request: the whole body is the data of the model's only input, and answers are binary.

    `specs` are the model's inputs with their batch dimension. A dimension of -1 is deduced from the body's
    length; of several, all but the last are 1. A BYTES input takes the body as its one element.

    Raises:
        InvalidRequest: the model has several inputs, or no shape fits the length.
    """
    if len(specs) != 1:
        raise InvalidRequest(
            HEADER_LENGTH, f"is 0, a raw binary request needs a model with one input, not {len(specs)}"
        )
    spec = specs[0]
    datatype = DATATYPES[spec.datatype]
    data = pack_bytes([body]) if not datatype.size else body
    shape = deduce(spec.dims, 1 if not datatype.size else len(body) // datatype.size)
    check_raw("body", datatype, count_elements("body", shape), data)
    return _request(call, [Tensor(spec.name, spec.datatype, shape, data)], "", [], {}), OutputFormat(True, {})


def encode_infer(response: InferResponse, format: OutputFormat) -> tuple[list[bytes], int | None]:
    """The parts of the body and, where one of them is a binary tensor, the length of the JSON before it.

    Raises:
        Unsupported: an output asked for as JSON holds what JSON can't carry.
    """
    outputs, binary = [], []
    for index, tensor in enumerate(response.outputs):
        output: dict[str, object] = {"name": tensor.name, "datatype": tensor.datatype, "shape": tensor.shape}
        if response.shared and tensor.name in response.shared:
            pass  # To Triton's C++ client any parameters of an output are those of binary data, so it has none.
        elif format.binary(tensor.name):
            output["parameters"] = {"binary_data_size": len(tensor.data)}
            binary.append(bytes(tensor.data))
        else:
            output["data"] = unpack_json(f"outputs[{index}]", tensor)
        outputs.append(output)
    document: dict[str, object] = {"model_name": response.model_name, "model_version": response.model_version}
    if response.id:
        document["id"] = response.id
    if response.parameters:
        document["parameters"] = response.parameters
    document["outputs"] = outputs
    header = orjson.dumps(document, option=orjson.OPT_SERIALIZE_NUMPY)
    return [header, *binary], len(header) if binary else None


def parse_header_length(value: str) -> int:
    """Raises InvalidRequest unless `value` is a plain decimal number."""
    if not (value.isascii() and value.isdigit()) or len(value) > 18:
        raise InvalidRequest(HEADER_LENGTH, f"must be a number of bytes, got {quoted(value)}")
    return int(value)


def load_json(field: str, data: bytes | memoryview) -> Any:
    """Raises InvalidRequest with the position of what is wrong."""
    try:
        return orjson.loads(data)
    except orjson.JSONDecodeError as error:
        raise InvalidRequest(field, f"is not JSON: {error}") from error


class _Inputs:
    """Reads the inputs of one body: `offset` is where its next binary tensor starts."""

    __slots__ = ("_body", "_offset", "_shared")

    def __init__(self, body: memoryview, offset: int, shared: SharedParts) -> None:
        self._body = body
        self._offset = offset
        self._shared = shared

    def decode(self, document: dict[str, Any]) -> list[Tensor]:
        tensors = [
            self._input(i, f"inputs[{i}]", entry) for i, entry in enumerate(_list("inputs", document.get("inputs")))
        ]
        left = len(self._body) - self._offset
        if left:
            raise InvalidRequest(
                "body", f"unexpected additional input data, {left} bytes follow the last binary tensor"
            )
        return tensors

    def _input(self, index: int, field: str, entry: object) -> Tensor:
        tensor = _object(field, entry)
        name = check_name(field, tensor.get("name"))
        datatype = check_datatype(field, tensor.get("datatype"))
        shape = _shape(field, tensor.get("shape"))
        count = count_elements(field, shape)
        parameters = _parameters(f"{field}.parameters", tensor.get("parameters"))
        size = parameters.get("binary_data_size")
        reference = reference_of(field, name, parameters) if parameters else None
        if reference is not None:
            if "data" in tensor or size is not None:
                given = "data" if "data" in tensor else "parameters.binary_data_size"
                raise InvalidRequest(f"{field}.{given}", "must not be there together with shared_memory_region")
            self._shared.input(index, field, datatype, count, reference)
            return Tensor(name, datatype.name, shape, b"")
        if size is None:
            if "data" not in tensor:
                raise InvalidRequest(f"{field}.data", "is missing, and so is parameters.binary_data_size")
            data: bytes | memoryview = pack_json(f"{field}.data", datatype, shape, count, tensor["data"])
        else:
            if "data" in tensor:
                raise InvalidRequest(f"{field}.data", "must not be there together with parameters.binary_data_size")
            data = self._binary(f"{field}.parameters.binary_data_size", name, size)
            check_raw(field, datatype, count, data)
        return Tensor(name, datatype.name, shape, data)

    def _binary(self, field: str, name: str, size: Parameter) -> memoryview:
        if type(size) is not int or size < 0:
            raise InvalidRequest(field, f"must be a number of bytes, got {quoted(size)}")
        end = self._offset + size
        if end > len(self._body):
            problem = f"unexpected size for input {quoted(name)}, expecting {end - len(self._body)} additional bytes"
            raise InvalidRequest(field, problem)
        data = self._body[self._offset : end]
        self._offset = end
        return data


def _request(
    call: Call, inputs: list[Tensor], id: str, outputs: list[str], parameters: dict[str, Parameter]
) -> InferRequest:
    return InferRequest(
        call.model_name,
        inputs,
        on_settle=call.on_settle,
        received_ns=call.received_ns,
        model_version=call.model_version,
        id=id,
        outputs=outputs,
        parameters=parameters,
        deadline_ns=call.deadline_ns,
        tenant=call.tenant,
        caller=call.caller,
    )


def _outputs(entries: object, shared: SharedParts) -> tuple[list[str], dict[str, bool], dict[str, int]]:
    """The names, which travel as binary or not, and of how many the best classes are wanted."""
    if entries is None:
        return [], {}, {}
    names, by_name, classes = [], {}, {}
    for index, entry in enumerate(_list("outputs", entries)):
        field = f"outputs[{index}]"
        output = _object(field, entry)
        name = check_name(field, output.get("name"))
        parameters = _parameters(f"{field}.parameters", output.get("parameters"))
        reference = reference_of(field, name, parameters)
        if reference is not None:
            shared.output(name, reference)
        # As in Triton 0 is none over REST, and refused over gRPC.
        count = class_count(field, parameters, 0)
        if count:
            classes[name] = count
        binary = parameters.get("binary_data")
        if binary is not None:
            by_name[name] = _flag(f"{field}.parameters.binary_data", binary)
        names.append(name)
    return names, by_name, classes


def _parameters(field: str, entries: object) -> dict[str, Parameter]:
    if entries is None:
        return {}
    parameters = _object(field, entries)
    for name, value in parameters.items():
        if not isinstance(value, bool | int | float | str):
            raise InvalidRequest(f"{field}.{name}", "must be a boolean, a number or a string")
    return dict(parameters)


def _flag(field: str, value: Parameter) -> bool:
    if not isinstance(value, bool):
        raise InvalidRequest(field, f"must be true or false, got {quoted(value)}")
    return value


def _shape(field: str, entries: object) -> tuple[int, ...]:
    shape = _list(f"{field}.shape", entries)
    for index, dim in enumerate(shape):
        if type(dim) is not int:
            raise InvalidRequest(f"{field}.shape", f"dimension {index} is no whole number")
    return tuple(shape)


def deduce(dims: Sequence[int], count: int) -> tuple[int, ...]:
    """`dims` with every -1 filled in: the last one such that there are `count` elements, if that can be, others 1."""
    shape = [1 if dim < 0 else dim for dim in dims]
    free = [index for index, dim in enumerate(dims) if dim < 0]
    known = count_elements("body", shape)
    if free and known:
        shape[free[-1]] = count // known
    return tuple(shape)


def _object(field: str, value: object) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise InvalidRequest(field, "must be an object" if value is not None else "is missing, must be an object")
    return value


def _list(field: str, value: object) -> list[Any]:
    if not isinstance(value, list):
        raise InvalidRequest(field, "must be a list" if value is not None else "is missing, must be a list")
    return value
