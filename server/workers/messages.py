"""What the frames say: requests and outcomes, as bytes and back. Plain functions and two caches; no socket, no loop.

    INFER    u32 number, i64 received_ns, i64 deadline_ns, u32 bytes of the shape, u32 bytes of the rest,
             shape, rest, u32 place of the data in shared memory or NOWHERE, a u32 length for each input, the data
    ANSWER   u32 number, u32 bytes of the shape, u32 bytes of the rest, shape, rest, a u32 length for each output,
             the data
    PIECE    as ANSWER
    TAKEN    u32 number
    FAILURE  u32 number, JSON: the error's class and arguments

The shape is JSON: of a request the version's handle, its inputs and the outputs that it wants; of an answer its
outputs. It repeats from request to request, so either side looks it up by what it was before, and requests of one
shape share a `Form`, by which they are checked once. The rest is what few requests say: parameters, a tenant, an
explanation; and for the log their id and trace. Of an answer: its version, where that is not the one that was asked.
Times are those of CLOCK_MONOTONIC, which is the same in all processes of a machine.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping, Sequence
from math import prod
from typing import Any, NamedTuple

from server import errors
from server.errors import EngineFailure, ServingError
from server.explain import Explanation, WaitReason
from server.observability.trace_context import TRACEPARENT
from server.observability.whose import shortened
from server.tensor import DATATYPES, Buffer, Tensor
from server.types import Form, InferRequest, InferResponse, Metadata, Parameter, Timing
from server.workers.frames import BadFrame, Kind, frame

_INFER = struct.Struct("<IqqIII")
_ANSWER = struct.Struct("<III")
NUMBER = struct.Struct("<I")
NOWHERE = 2**32 - 1
"""The data follows."""
_SHAPES = 4096
"""Remembered on either side; then all are forgotten, which costs each of them one reading."""

_ERRORS: Mapping[str, type[ServingError]] = {
    name: kind for name, kind in vars(errors).items() if isinstance(kind, type) and issubclass(kind, ServingError)
}
"""By name. An error is made of the arguments that it was made of, so these are what crosses."""


class Spec(NamedTuple):
    name: str
    datatype: str
    shape: tuple[int, ...]


class RequestShape(NamedTuple):
    handle: int
    inputs: tuple[Spec, ...]
    outputs: tuple[str, ...]
    lengths: struct.Struct
    sizes: tuple[int, ...] | None
    """Bytes of each input; None where text, whose size the shape does not say, is among them."""
    form: Form


class Shapes:
    """The shapes that one side of a link has written and read."""

    def __init__(self) -> None:
        self._written: dict[object, bytes] = {}
        self._requests: dict[bytes, RequestShape] = {}
        self._answers: dict[bytes, tuple[tuple[Spec, ...], struct.Struct]] = {}

    def write_request(self, handle: int, request: InferRequest) -> bytes:
        inputs = [(tensor.name, tensor.datatype, tensor.shape) for tensor in request.inputs]
        key = (handle, *inputs, *request.outputs)
        return self._written.get(key) or self._write(key, [handle, inputs, list(request.outputs)])

    def write_answer(self, outputs: Sequence[Tensor]) -> bytes:
        specs = [(tensor.name, tensor.datatype, tensor.shape) for tensor in outputs]
        key = tuple(specs)
        return self._written.get(key) or self._write(key, specs)

    def _write(self, key: object, document: Any) -> bytes:
        if len(self._written) >= _SHAPES:
            self._written.clear()
        text = self._written[key] = json.dumps(document, separators=(",", ":")).encode()
        return text

    def read_request(self, text: bytes) -> RequestShape:
        """Raises BadFrame."""
        shape = self._requests.get(text)
        if shape is None:
            if len(self._requests) >= _SHAPES:
                self._requests.clear()
            handle, inputs, outputs = _load(text, list, 3)
            specs, lengths = _specs(inputs), struct.Struct(f"<{len(inputs)}I")
            shape = RequestShape(handle, specs, tuple(outputs), lengths, _sizes(specs), Form())
            self._requests[text] = shape
        return shape

    def read_answer(self, text: bytes) -> tuple[tuple[Spec, ...], struct.Struct]:
        """Raises BadFrame."""
        shape = self._answers.get(text)
        if shape is None:
            if len(self._answers) >= _SHAPES:
                self._answers.clear()
            specs = _specs(_load(text, list))
            shape = self._answers[text] = specs, struct.Struct(f"<{len(specs)}I")
        return shape


# --- requests -----------------------------------------------------------------------------------------


def write_infer(
    shapes: Shapes, number: int, handle: int, request: InferRequest, place: int = NOWHERE
) -> tuple[bytes, Sequence[Buffer]]:
    """The frame, and the data where it is to follow, not copied. With a `place` the data is there already."""
    shape = shapes.write_request(handle, request)
    rest = _rest_of(request)
    datas = [tensor.data for tensor in request.inputs]
    lengths = [memoryview(data).nbytes for data in datas]
    told = struct.pack(f"<{len(lengths)}I", *lengths)
    head = _INFER.pack(number, request.received_ns, request.deadline_ns, len(shape), len(rest), place)
    if place != NOWHERE:
        return frame(Kind.INFER, head, shape, rest, told), ()
    size = _INFER.size + len(shape) + len(rest) + len(told) + sum(lengths)
    return b"".join((size.to_bytes(4, "little"), b"\1", head, shape, rest, told)), datas


def _rest_of(request: InferRequest) -> bytes:
    rest: dict[str, Any] = {}
    if request.parameters or request.tenant or request.explanation is not None:
        rest = {"parameters": dict(request.parameters), "tenant": request.tenant}
    if request.explanation is not None:
        rest["explain"] = True
    if request.id:
        rest["id"] = shortened(request.id)
    for name, value in request.metadata:
        if name == TRACEPARENT:
            rest[name] = value
    return json.dumps(rest).encode() if rest else b""


class Infer(NamedTuple):
    """A request as it was read: all that an `InferRequest` is made of but who waits for it."""

    number: int
    received_ns: int
    deadline_ns: int
    shape: RequestShape
    inputs: list[Tensor]
    parameters: Mapping[str, Parameter]
    tenant: str
    explanation: Explanation | None
    form: Form | None
    place: int
    id: str = ""
    metadata: Metadata = ()
    """The caller's trace alone."""


def read_infer(shapes: Shapes, body: memoryview, shared: memoryview | None = None) -> Infer:
    """`shared` is where places lead to. Raises BadFrame."""
    try:
        number, received_ns, deadline_ns, shape_bytes, rest_bytes, place = _INFER.unpack_from(body)
        at = _INFER.size + shape_bytes
        shape = shapes.read_request(bytes(body[_INFER.size : at]))
        rest = _load(bytes(body[at : at + rest_bytes]), dict) if rest_bytes else None
        at += rest_bytes
        lengths = shape.lengths.unpack_from(body, at)
        if shape.sizes not in (None, lengths):
            raise BadFrame(f"inputs of {lengths} bytes, their shapes say {shape.sizes}")
        at += shape.lengths.size
        data = body[at:]
        if place != NOWHERE:
            if shared is None or len(data):
                raise BadFrame("a place in memory that is not shared")
            data = shared[place : place + sum(lengths)]
        inputs = _tensors(shape.inputs, lengths, data)
        if rest is None:
            return Infer(number, received_ns, deadline_ns, shape, inputs, {}, "", None, shape.form, place)
        explanation = Explanation(received_ns) if rest.get("explain") else None
        parameters, tenant = rest.get("parameters", {}), rest.get("tenant", "")
        form = None if "parameters" in rest else shape.form
        name, trace = str(rest.get("id", "")), str(rest.get(TRACEPARENT, ""))
    except (struct.error, KeyError, TypeError, ValueError) as error:
        raise BadFrame(f"no request: {error!r}") from error
    metadata = ((TRACEPARENT, trace),) if trace else ()
    return Infer(
        number, received_ns, deadline_ns, shape, inputs, parameters, tenant, explanation, form, place, name, metadata
    )


# --- outcomes -----------------------------------------------------------------------------------------


def write_answer(
    shapes: Shapes, number: int, request: InferRequest | None, response: InferResponse
) -> tuple[bytes, Sequence[Buffer]]:
    """As `write_infer`. Without a `request` it is one of several, behind which more will come."""
    shape = shapes.write_answer(response.outputs)
    rest: dict[str, Any] = {"parameters": dict(response.parameters)} if response.parameters else {}
    if request is not None and response.model_version != request.model_version:
        rest["version"] = response.model_version
    if request is not None and request.explanation is not None and response.timing is not None:
        rest["explained"] = [request.enqueued_ns, request.explanation.waited, *response.timing]
    more = json.dumps(rest).encode() if rest else b""
    datas = [tensor.data for tensor in response.outputs]
    lengths = [memoryview(data).nbytes for data in datas]
    told = struct.pack(f"<{len(lengths)}I", *lengths)
    size = _ANSWER.size + len(shape) + len(more) + len(told) + sum(lengths)
    head = _ANSWER.pack(number, len(shape), len(more))
    kind = Kind.PIECE if request is None else Kind.ANSWER
    return b"".join((size.to_bytes(4, "little"), bytes((kind,)), head, shape, more, told)), datas


class Answer(NamedTuple):
    outputs: list[Tensor]
    parameters: Mapping[str, Parameter] | None
    enqueued_ns: int
    waited: WaitReason
    timing: Timing | None
    version: str = ""
    """That answered; empty: the one that was asked."""


def read_answer(shapes: Shapes, body: memoryview) -> Answer:
    """What follows the number. Raises BadFrame."""
    try:
        _, shape_bytes, rest_bytes = _ANSWER.unpack_from(body)
        at = _ANSWER.size + shape_bytes
        specs, lengths_of = shapes.read_answer(bytes(body[_ANSWER.size : at]))
        rest = _load(bytes(body[at : at + rest_bytes]), dict) if rest_bytes else None
        at += rest_bytes
        outputs = _tensors(specs, lengths_of.unpack_from(body, at), body[at + lengths_of.size :])
        if rest is None:
            return Answer(outputs, None, 0, WaitReason.NONE, None)
        enqueued_ns, waited, *timing = rest.get("explained") or (0, WaitReason.NONE)
        timed = Timing(*timing) if timing else None
        return Answer(
            outputs, rest.get("parameters"), enqueued_ns, WaitReason(waited), timed, str(rest.get("version", ""))
        )
    except (struct.error, KeyError, TypeError, ValueError) as error:
        raise BadFrame(f"no answer: {error!r}") from error


def number_of(body: memoryview) -> int:
    """Raises BadFrame."""
    if len(body) < NUMBER.size:
        raise BadFrame("a body without a number")
    number: int = NUMBER.unpack_from(body)[0]
    return number


def numbers_of(body: memoryview) -> tuple[int, ...]:
    """Raises BadFrame."""
    if len(body) % NUMBER.size:
        raise BadFrame("a body that is not numbers")
    return struct.unpack(f"<{len(body) // NUMBER.size}I", body)


def write_error(error: BaseException) -> dict[str, Any]:
    """As JSON; what is none of ours becomes an `EngineFailure`, whose text stays in the log."""
    if not isinstance(error, ServingError) or type(error).__name__ not in _ERRORS:
        error = EngineFailure("", repr(error))
    return {"error": type(error).__name__, "args": list(error.args)}


def read_error(document: Mapping[str, Any]) -> ServingError:
    """Raises BadFrame."""
    make: Any = _ERRORS.get(document.get("error", ""))
    try:
        error: ServingError = make(*document["args"])
        return error
    except (KeyError, TypeError) as problem:
        raise BadFrame(f"no error: {problem!r}") from problem


def write_failure(number: int, error: BaseException) -> bytes:
    return frame(Kind.FAILURE, NUMBER.pack(number), json.dumps(write_error(error), default=repr).encode())


def read_json(body: memoryview) -> dict[str, Any]:
    """The object behind the number. Raises BadFrame."""
    document: dict[str, Any] = _load(bytes(body[NUMBER.size :]), dict)
    return document


# --- below --------------------------------------------------------------------------------------------


def _specs(documents: Any) -> tuple[Spec, ...]:
    try:
        specs = tuple(Spec(name, datatype, tuple(shape)) for name, datatype, shape in documents)
    except (TypeError, ValueError) as error:
        raise BadFrame(f"no tensors: {error!r}") from error
    for spec in specs:
        sizes = (type(size) is int and size >= 0 for size in spec.shape)
        if spec.datatype not in DATATYPES or not isinstance(spec.name, str) or not all(sizes):
            raise BadFrame(f"no tensor: {spec}")
    return specs


def _sizes(specs: Sequence[Spec]) -> tuple[int, ...] | None:
    sizes = tuple(prod(spec.shape) * DATATYPES[spec.datatype].size for spec in specs)
    return None if any(spec.datatype == "BYTES" for spec in specs) else sizes


def _tensors(specs: Sequence[Spec], lengths: Sequence[int], data: memoryview) -> list[Tensor]:
    if sum(lengths) != len(data):
        raise BadFrame(f"{len(data)} bytes of data, the lengths say {sum(lengths)}")
    tensors, at = [], 0
    for (name, datatype, shape), length in zip(specs, lengths, strict=True):
        tensors.append(Tensor(name, datatype, shape, data[at : at + length]))
        at += length
    return tensors


def _load(text: bytes, kind: type[list[Any]] | type[dict[str, Any]], items: int = -1) -> Any:
    try:
        document = json.loads(text)
    except ValueError as error:
        raise BadFrame("no JSON") from error
    if not isinstance(document, kind) or items not in (-1, len(document)):
        raise BadFrame(f"not the JSON that it must be: {kind.__name__}")
    return document
