"""v2's infer over REST for callers that repeat themselves: the same JSON again and again, only the tensors differ.

A body is JSON and binary tensors behind it. What JSON of the same bytes says is remembered, so that its next
request is views on its body and a look-up; likewise the JSON of its answer. Whatever is not so regular goes the
plain way of `v2_rest`, and so does everything that is wrong: both ways give the same requests and the same bytes.
"""

from __future__ import annotations

from collections.abc import Callable
from types import MappingProxyType
from typing import NamedTuple

import orjson

from server.tensor import DATATYPES, Buffer, Tensor
from server.transport.codec.recent import Recent
from server.transport.codec.v2_rest import Call, OutputFormat, decode_infer, encode_infer, load_json
from server.types import NO_DEADLINE, Form, InferRequest, InferResponse, Outcome, Said

_MAX_REMEMBERED_BYTES = 4096
"""Longer JSON is parsed each time."""
_MEMORY = 1024 * 1024
"""Bytes of JSON that are remembered, twice at most; what was made of it takes a few times as much."""
_LAYOUT_BYTES = 1024
"""What an entry weighs beside its JSON."""
_COPIED_BYTES = 4096
"""A tensor up to here is copied out of its body, which costs less than a view."""
_ID = b'{"id":"'
"""How JSON begins that says its id first, as tritonclient writes it. Ids differ where all else repeats."""


class Target(NamedTuple):
    """What the head of an infer request says."""

    model_name: str
    model_version: str
    header_length: int | None
    """Bytes of JSON in its body; None: all of it."""
    tenant: str


class Layout:
    """What requests with the same JSON have in common."""

    __slots__ = ("answer", "binary_bytes", "form", "formats", "inputs", "said")

    def __init__(self, request: InferRequest, formats: OutputFormat) -> None:
        self.inputs: list[tuple[str, str, tuple[int, ...], int, int]] = []
        """Name, datatype, shape, and where the data begins and ends behind the JSON."""
        end = 0
        for tensor in request.inputs:
            begin, end = end, end + len(tensor.data)
            self.inputs.append((tensor.name, tensor.datatype, tensor.shape, begin, end))
        self.binary_bytes = end
        self.formats = formats
        self.form = Form()
        parameters = MappingProxyType(dict(request.parameters))
        self.said: Said = request.model_name, request.model_version, request.outputs, parameters, self.form, None
        self.answer: _AnswerLayout | None = None
        """Of the last answer; the next one is likely to be the same but for its data."""


class _AnswerLayout:
    """What answers have in common whose outputs have the same names, datatypes and shapes, all of them binary."""

    __slots__ = ("_after_id", "_before_id", "_binary_bytes", "_block", "_model_name", "_model_version", "_outputs")

    def __init__(self, response: InferResponse, json: bytes) -> None:
        """`json` is that of the response without its id."""
        self._model_name = response.model_name
        self._model_version = response.model_version
        self._outputs = [(t.name, t.datatype, t.shape, len(t.data)) for t in response.outputs]
        self._binary_bytes = sum([size for _, _, _, size in self._outputs])
        document = {"model_name": response.model_name, "model_version": response.model_version}
        self._before_id = orjson.dumps(document)[:-1]
        self._after_id = json[len(self._before_id) :]
        self._block = fields(len(json), len(json) + self._binary_bytes) + json

    def parts(self, response: InferResponse) -> list[Buffer] | None:
        """The answer with this response's data and id; None if it is laid out otherwise."""
        outputs = response.outputs
        if len(outputs) != len(self._outputs) or response.parameters:
            return None
        if response.model_version != self._model_version or response.model_name != self._model_name:
            return None
        parts: list[Buffer] = [self._block]
        for tensor, (name, datatype, shape, size) in zip(outputs, self._outputs, strict=False):
            data = tensor.data
            if tensor.shape != shape or tensor.name != name or len(data) != size or tensor.datatype != datatype:
                return None
            parts.append(data)
        if response.id:
            json = b"".join((self._before_id, b',"id":', orjson.dumps(response.id), self._after_id))
            parts[0] = fields(len(json), len(json) + self._binary_bytes) + json
        return parts


class InferCodec:
    """Decodes requests and encodes their answers, remembering what repeats."""

    def __init__(self) -> None:
        self._layouts: Recent[tuple[str, str, bytes], Layout] = Recent(_MEMORY)

    def decode(
        self,
        target: Target,
        body: bytes,
        on_settle: Callable[[InferRequest, Outcome], None],
        received_ns: int,
        caller: object = None,
        deadline_ns: int = NO_DEADLINE,
    ) -> tuple[InferRequest, OutputFormat | Layout]:
        """The request, and what `encode` has to know of it. Raises as `decode_infer`."""
        model_name, model_version, header_length, tenant = target
        if header_length is not None and header_length <= _MAX_REMEMBERED_BYTES:
            json = body[:header_length]
            layout, request_id = self._layouts.get((model_name, model_version, json)), ""
            if layout is None and json[: len(_ID)] == _ID:
                request_id, json = _without_id(json)
                layout = self._layouts.get((model_name, model_version, json))
            if layout is not None and len(body) - header_length == layout.binary_bytes:
                inputs = _tensors(layout, body, header_length)
                request = InferRequest.received(
                    layout.said, request_id, inputs, on_settle, received_ns, deadline_ns, caller
                )
                request.tenant = tenant
                return request, layout
        call = Call(model_name, model_version, on_settle, received_ns, deadline_ns, tenant, caller)
        request, formats = decode_infer(call, body, header_length)
        if header_length is not None and header_length <= _MAX_REMEMBERED_BYTES:
            return request, self._remember(request, formats, body[:header_length])
        return request, formats

    def _remember(self, request: InferRequest, formats: OutputFormat, json: bytes) -> OutputFormat | Layout:
        """The layout of a request that was decoded the plain way, if others may follow it."""
        if request.special is not None:
            return formats
        if not all(type(t.data) is memoryview and DATATYPES[t.datatype].size for t in request.inputs):
            return formats
        # The bytes of a BOOL have to be looked at each time.
        if any(tensor.datatype == "BOOL" for tensor in request.inputs):
            return formats
        request_id, json = _without_id(json)
        # An id in another place, or twice, is found by the plain way alone.
        if request_id != request.id or "id" in load_json("body", json):
            return formats
        layout = Layout(request, formats)
        self._layouts.put((request.model_name, request.model_version, json), layout, len(json) + _LAYOUT_BYTES)
        request.form = layout.form
        return layout

    def encode(self, response: InferResponse, formats: OutputFormat | Layout) -> list[Buffer]:
        """The answer's header fields that describe its body, an empty line, and the body; in parts.

        Raises:
            Unsupported: an output asked for as JSON holds what JSON can't carry.
        """
        if type(formats) is Layout:
            answer = formats.answer
            repeated = answer.parts(response) if answer is not None else None
            if repeated is not None:
                return repeated
            formats.answer = _answer_layout(response, formats.formats)
        plain = formats.formats if isinstance(formats, Layout) else formats
        parts, json_length = encode_infer(response, plain)
        return [fields(json_length, sum(map(len, parts))), *parts]


def fields(json_length: int | None, size: int) -> bytes:
    """The header fields of a body of `size` bytes, of which the first are JSON (None: all), and the empty line."""
    if json_length is None:
        return b"content-type: application/json\r\ncontent-length: %d\r\n\r\n" % size
    return (
        b"content-type: application/octet-stream\r\ninference-header-content-length: %d\r\ncontent-length: %d\r\n\r\n"
        % (json_length, size)
    )


def _tensors(layout: Layout, body: bytes, offset: int) -> list[Tensor]:
    view = body if layout.binary_bytes <= _COPIED_BYTES else memoryview(body)
    return [
        Tensor(name, datatype, shape, view[offset + b : offset + e]) for name, datatype, shape, b, e in layout.inputs
    ]


def _without_id(json: bytes) -> tuple[str, bytes]:
    """The id with which `json` begins, and the JSON without it; "" and `json` as it is if the id is not plain."""
    begin = len(_ID)
    end = json.find(b'"', begin)
    raw = json[begin:end]
    if end > begin and raw.isascii() and b"\\" not in raw and json[end + 1 : end + 2] == b",":
        request_id = raw.decode()
        if request_id.isprintable():
            return request_id, b"{" + json[end + 2 :]
    return "", json


def _answer_layout(response: InferResponse, formats: OutputFormat) -> _AnswerLayout | None:
    if response.parameters or not response.outputs:
        return None
    if not all(formats.binary(tensor.name) for tensor in response.outputs):
        return None
    nameless = InferResponse(response.model_name, response.model_version, response.outputs)
    parts, _ = encode_infer(nameless, formats)
    return _AnswerLayout(response, parts[0])
