"""Types -> ModelInferResponse, as bytes: answers of one shape differ in their tensors and their id alone.

All else comes from a template, which protobuf wrote when the shape was first answered. The fields stand in the order
of their numbers, so the bytes are those that protobuf would write. Answers with parameters are left to it.

Source: the encoding of protobuf messages; the field numbers of Triton's grpc_service.proto.
"""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass
from math import prod

from server.proto.triton import service_pb2 as pb
from server.tensor import DATATYPES, Buffer, Tensor
from server.transport.codec import v2_grpc
from server.transport.codec.varint import ONE_BYTE, varint
from server.types import InferResponse

_ID, _RAW = (bytes((number << 3 | 2,)) for number in (3, 6))
_ID_MARKS = [_ID + varint(size) for size in range(ONE_BYTE)]
"""Tag and length of an id, by its length."""
_MAX_TEMPLATES = 1024


@dataclass(slots=True)
class _Template:
    """Answers that are `head`, perhaps an id, `body`, and for each output a mark (tag and length) and its data."""

    head: bytes
    body: bytes
    marks: list[tuple[bytes, int]]
    """Each with the length of data that it is right for; -1 for BYTES, whose length is not told by the shape."""
    start: bytes
    """Of an answer of one output without an id: all before the data."""
    middle: bytes
    """Of one with an id: all between the id and the data."""
    message_bytes: int
    """Length of an answer of one output without an id; -1 where no length is known."""


_Key = tuple[str, str, str, str, tuple[int, ...] | None]
"""Model, version, and of the one output name, datatype and shape."""


class Templates:
    """The shapes answered lately; used by one thread at a time. When there are too many, all are made anew."""

    def __init__(self) -> None:
        self._templates: dict[Hashable, _Template] = {}
        self._key: _Key = "", "", "", "", None
        self._template: _Template
        """Key and template of the last answer of one output. The next one of the same pass has the same objects in its
        key, by which it is known sooner than by a look-up."""

    def encode(self, response: InferResponse) -> bytes:
        """The bytes of a ModelInferResponse, tensors always raw. They are copied once."""
        if len(response.outputs) != 1 or response.parameters or response.shared:
            return b"".join(self.encode_parts(response))
        tensor = response.outputs[0]
        model_name, model_version, name, datatype, shape = self._key
        if (
            tensor.shape is not shape
            or tensor.name is not name
            or tensor.datatype is not datatype
            or response.model_name is not model_name
            or response.model_version is not model_version
        ):
            key = response.model_name, response.model_version, tensor.name, tensor.datatype, tensor.shape
            self._template = self._templates.get(key) or self._make(key, response)
            self._key = key
        template = self._template
        if not response.id:
            message = template.start + tensor.data
            if len(message) == template.message_bytes:
                return message
        elif len(encoded := response.id.encode()) < ONE_BYTE:
            mark = _ID_MARKS[len(encoded)]
            message = b"".join((template.head, mark, encoded, template.middle, tensor.data))
            if len(message) - len(mark) - len(encoded) == template.message_bytes:
                return message
        return b"".join(self.encode_parts(response))

    def encode_parts(self, response: InferResponse) -> list[Buffer]:
        """The same bytes as a list, in which the tensors are not copied. `len` of each part is its bytes."""
        if response.parameters or response.shared:
            return [bytes(v2_grpc.encode_infer(response).SerializeToString())]
        key = _key(response)
        template = self._templates.get(key) or self._make(key, response)
        parts: list[Buffer] = [template.head]
        if response.id:
            encoded = response.id.encode()
            parts += (_ID + varint(len(encoded)), encoded)
        parts.append(template.body)
        for tensor, (mark, size) in zip(response.outputs, template.marks, strict=True):
            data = _flat(tensor.data)
            parts += (mark if len(data) == size else _RAW + varint(len(data)), data)
        return parts

    def _make(self, key: Hashable, response: InferResponse) -> _Template:
        shaped = InferResponse(response.model_name, response.model_version, ())
        head = bytes(v2_grpc.encode_infer(shaped).SerializeToString())
        outputs = [
            pb.ModelInferResponse.InferOutputTensor(name=tensor.name, datatype=tensor.datatype, shape=tensor.shape)
            for tensor in response.outputs
        ]
        body = bytes(pb.ModelInferResponse(outputs=outputs).SerializeToString())
        marks = [_mark(tensor) for tensor in response.outputs]
        mark, size = marks[0] if marks else (b"", -1)
        start = head + body + mark
        template = _Template(head, body, marks, start, body + mark, len(start) + size if size >= 0 else -1)
        if len(self._templates) >= _MAX_TEMPLATES:
            self._templates.clear()
        self._templates[key] = template
        return template


def _key(response: InferResponse) -> Hashable:
    names = response.model_name, response.model_version
    if len(response.outputs) == 1:
        tensor = response.outputs[0]
        return *names, tensor.name, tensor.datatype, tensor.shape
    return *names, *((tensor.name, tensor.datatype, tensor.shape) for tensor in response.outputs)


def _mark(tensor: Tensor) -> tuple[bytes, int]:
    size = prod(tensor.shape) * DATATYPES[tensor.datatype].size if tensor.datatype != "BYTES" else -1
    return (_RAW + varint(size) if size >= 0 else b""), size


def _flat(data: Buffer) -> Buffer:
    """The data with one byte for each of its items."""
    if type(data) is bytes:
        return data
    view = memoryview(data)
    return view if view.itemsize == 1 and view.ndim == 1 and view.contiguous else bytes(view)
