"""What reads the bytes of strangers, each as one function of bytes that raises where a rule of it is broken.

A target is fed by whoever makes up bytes: a fuzzer with coverage (`tests.fuzz.coverage`), or the suite, with seeded
mutations (`unit/test_fuzz_targets.py`). Most cut the bytes into pieces of at most 255, each behind an octet with its
length: what was seen before changes the way that the next piece is read, and must not change what it says.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from math import prod
from typing import Any

import orjson
from tritonclient.grpc import service_pb2 as pb

from server.errors import InvalidRequest, Unsupported
from server.settings import HttpSettings
from server.tensor import DATATYPES
from server.transport.codec.v2_rest import Call, OutputFormat, decode_infer, encode_infer
from server.transport.codec.wire_request import Forms
from server.transport.http1.connection import Connection
from server.transport.http1.head import END
from server.transport.http1.head import Head as HttpHead
from server.transport.http1.head import Heads as HttpHeads
from server.transport.http2.frames import StreamFault
from server.transport.http2.heads import Heads
from server.transport.http2.hpack import FIELD_OVERHEAD, Decoder, HeaderListTooLarge, HpackError, value_spans
from server.transport.http2.hpack_encode import encode
from server.transport.memory import Memory
from server.types import InferResponse
from tests.support import http2_fuzz
from tests.support.header_blocks import KNOWN_METHODS, read_anew, said, table
from tests.support.wire import by_protobuf, by_wire

_LIST_BYTES = 700
_TABLE_BYTES = 4096
_NOW_NS = 10**9
_ROOM = 64


@dataclass(frozen=True)
class Target:
    """`one` may raise whatever it likes: it is then a finding."""

    one: Callable[[bytes], None]
    seeds: Sequence[bytes]


def cut(received: bytes) -> Iterator[bytes]:
    """The pieces."""
    at = 0
    while at < len(received):
        end = at + 1 + received[at]
        yield received[at + 1 : end]
        at = end


def joined(*pieces: bytes) -> bytes:
    """Bytes that are cut into these pieces; longer ones into several."""
    short = [piece[at : at + 255] for piece in pieces for at in range(0, max(1, len(piece)), 255)]
    return b"".join(bytes([len(piece)]) + piece for piece in short)


# --- HTTP/2 -------------------------------------------------------------------------------------------


def http2(received: bytes) -> None:
    """A conversation; the first octet says in which pieces it arrives."""
    http2_fuzz.converse(received[1:], [received[0]] if received and received[0] else [])


def hpack(received: bytes) -> None:
    """Blocks of one connection: they are decoded or refused, the table keeps its bound, and what was decoded, written
    anew, says the same."""
    decoder = Decoder(_TABLE_BYTES)
    for block in cut(received):
        before = decoder.insertions
        try:
            fields = decoder.decode(block, _LIST_BYTES)
        except HeaderListTooLarge:
            continue
        except HpackError:
            return
        assert sum(len(name) + len(value) + FIELD_OVERHEAD for name, value in fields) <= _LIST_BYTES
        assert sum(len(name) + len(value) + FIELD_OVERHEAD for name, value in table(decoder)) <= _TABLE_BYTES
        assert Decoder().decode(encode(fields), _LIST_BYTES) == list(fields)
        if decoder.insertions == before:
            _check_spans(block, fields)


def _check_spans(block: bytes, fields: Sequence[tuple[bytes, bytes]]) -> None:
    spans = value_spans(block)
    assert len(spans) == len(fields)
    for (start, end), (_, value) in zip(spans, fields, strict=True):
        if start and not block[start] & 0x80 and len(value) < 0x7F:
            assert block[start + 1 : end] == value


def heads(received: bytes) -> None:
    """A block says what it says to somebody who has seen no other, whatever came before it."""
    ours, anew = Decoder(), Decoder()
    known = Heads(ours, KNOWN_METHODS, _LIST_BYTES)
    for block in cut(received):
        wanted = _outcome(lambda block=block: read_anew(anew, block, _LIST_BYTES))  # type: ignore[misc]
        found = _outcome(lambda block=block: known.known.get(block) or known.read(block))  # type: ignore[misc]
        assert found == wanted, (block, found, wanted)
        if isinstance(wanted, tuple) and wanted[0] is HpackError:
            return
        assert table(ours) == table(anew)


def _outcome(read: Callable[[], Any]) -> object:
    try:
        opening = read()
    except (HpackError, StreamFault) as error:
        return type(error), str(error)
    if opening is None or (opening[0].refusal is not None and b"header list" in opening[0].refusal):
        return "too large"
    return said(opening)


# --- HTTP/1.1 -----------------------------------------------------------------------------------------

_HTTP = HttpSettings(
    max_head_bytes=1024, max_headers=16, max_target_bytes=256, max_body_bytes=4096, max_bodies_bytes=8192
)


_MANY_EMPTY_LINES = b"\r\n" * 32


def http1(received: bytes) -> None:
    """The same requests, and the same end, in whatever pieces they arrive; and no memory is kept of what is gone. The
    first octet is the size of the pieces; very many empty lines are refused only if they arrive together."""
    if not received or _MANY_EMPTY_LINES in received:
        return
    # With an end behind it, so that a begin of a head that can't become one is refused by whoever looks at it later.
    size, received = received[0] + 1, received[1:] + END
    whole = _requests([received])
    assert _requests([received[at : at + size] for at in range(0, len(received), size)]) == whole


def _requests(pieces: Sequence[bytes]) -> tuple[list[Any], bool]:
    memory = Memory(_HTTP.max_bodies_bytes)
    connection = Connection(HttpHeads(_HTTP, _no_plan), _HTTP, memory)
    found = []
    for piece in pieces:
        data, room = piece, True
        while room:
            received = connection.receive(data, _NOW_NS, _ROOM)
            found += [
                (head.method, head.path, head.query, head.keep_alive, head.refusal is None, body)
                for head, body, _ in received
            ]
            data, room = b"", len(received) == _ROOM
        assert len(connection._rest) <= _HTTP.max_head_bytes + len(piece)
    fault = connection.fault is not None
    connection.close()
    assert memory.take(_HTTP.max_bodies_bytes)
    return found, fault


def _no_plan(_head: HttpHead) -> None:
    """No route looks at it."""


# --- ModelInfer ---------------------------------------------------------------------------------------


def wire(received: bytes) -> None:
    """Messages are the requests, or the refusals, that protobuf makes of them, whatever came before, and when they
    come again."""
    forms = Forms()
    messages = list(cut(received))
    for message in (*messages, *messages):
        assert by_wire(forms, message) == by_protobuf(message)


# --- v2 over REST --------------------------------------------------------------------------------------

_ALL_JSON = 0xFFFF
_BINARY = OutputFormat(True, {})


def json(received: bytes) -> None:
    """A body is a request whose tensors have as many bytes as their shapes say, and which reads the same again from
    what is written of it, as JSON and as binary; or it is refused. Two octets before it are the length of its JSON."""
    length, body = int.from_bytes(received[:2]), received[2:]
    call = Call("m", "", lambda *_: None, _NOW_NS)
    try:
        request, _ = decode_infer(call, body, None if length == _ALL_JSON else length)
    except InvalidRequest:
        return
    for tensor in request.inputs:
        size = DATATYPES[tensor.datatype].size
        assert not size or len(tensor.data) == size * prod(tensor.shape)
    said = [(tensor.name, tensor.datatype, tuple(tensor.shape), bytes(tensor.data)) for tensor in request.inputs]
    if request.special is not None or not said:
        return
    for form in (_BINARY, OutputFormat(False, {})):
        with suppress(Unsupported):  # JSON has no infinity, and no bytes that are no text.
            parts, header = encode_infer(InferResponse("m", "1", request.inputs), form)
            head = orjson.loads(parts[0])
            head["inputs"] = head.pop("outputs")
            written = orjson.dumps(head)
            again, _ = decode_infer(call, b"".join((written, *parts[1:])), len(written) if header is not None else None)
            assert [(each.name, each.datatype, tuple(each.shape), bytes(each.data)) for each in again.inputs] == said


def _body(document: dict[str, Any], *binary: bytes) -> bytes:
    head = orjson.dumps(document)
    return (len(head) if binary else _ALL_JSON).to_bytes(2) + b"".join((head, *binary))


def _input(datatype: str, shape: list[int], **more: Any) -> dict[str, Any]:
    return {"name": "x", "datatype": datatype, "shape": shape, **more}


_BODIES = [
    _body({"inputs": [_input("FP32", [2, 2], data=[[1.5, -0.0], [1e30, 4]])], "id": "7"}),
    _body({"inputs": [_input("INT64", [2], data=[1, -(2**63)]), {**_input("BOOL", [1], data=[True]), "name": "y"}]}),
    _body({"inputs": [_input("BYTES", [2], data=["a", "é\U0001f9ff"])], "parameters": {"priority": 1}}),
    _body(
        {
            "inputs": [
                _input("FP16", [1, 3], parameters={"binary_data_size": 6}),
                {**_input("BYTES", [1], parameters={"binary_data_size": 6}), "name": "y"},
            ],
            "outputs": [{"name": "z", "parameters": {"binary_data": True, "classification": 3}}],
        },
        bytes(6),
        b"\x02\0\0\0hi",
    ),
]

# --- seeds --------------------------------------------------------------------------------------------

_CALL = [
    (b":method", b"POST"),
    (b":scheme", b"http"),
    (b":path", b"/inference.GRPCInferenceService/ModelInfer"),
    (b"te", b"trailers"),
    (b"content-type", b"application/grpc"),
]
_BLOCKS = [
    encode(_CALL),
    *(encode([*_CALL, (b"grpc-timeout", b"%dm" % n), (b"traceparent", b"00-%032x-01" % n)]) for n in range(4)),
    encode(_CALL) + b"\x40\x01a\x01b\xbe",
    b"\x20\x3f\xe1\x1f\x82\x86\x44\x01/",
    b"\x82\x86\x84\x41\x8c\xf1\xe3\xc2\xe5\xf2\x3a\x6b\xa0\xab\x90\xf4\xff",
]
"""Plain, alike, with an insertion, with sizes of the table, in Huffman code (RFC 7541, C.4.1)."""

_POST = b"POST /v2/models/m/infer HTTP/1.1\r\nHost: a\r\n"
_REQUESTS = [
    b"GET /v2 HTTP/1.1\r\nHost: a\r\n\r\n",
    _POST + b"Content-Length: 5\r\n\r\nhello",
    _POST + b"Transfer-Encoding: chunked\r\n\r\n3;a=b\r\nabc\r\n0\r\nT: x\r\n\r\n",
    _POST + b"Expect: 100-continue\r\nContent-Length: 2\r\nConnection: close\r\n\r\nxx",
    b"\r\nHEAD http://a/%41?q=1 HTTP/1.0\r\nConnection: keep-alive\r\n\r\n",
]


def _message(request_id: str, **more: Any) -> bytes:
    data: bytes = pb.ModelInferRequest(
        model_name="m",
        id=request_id,
        inputs=[pb.ModelInferRequest.InferInputTensor(name="x", datatype="FP32", shape=[1, 2])],
        raw_input_contents=[bytes(8)],
        **more,
    ).SerializeToString()
    return data


TARGETS = {
    "http2": Target(http2, [b"\0" + seed for seed in http2_fuzz.SEEDS]),
    "hpack": Target(hpack, [joined(block) for block in _BLOCKS] + [joined(*_BLOCKS)]),
    "heads": Target(heads, [joined(*_BLOCKS), joined(*_BLOCKS[1:5], *_BLOCKS[1:5])]),
    "http1": Target(http1, [b"\xff" + b"".join(_REQUESTS), *(b"\x06" + each for each in _REQUESTS)]),
    "json": Target(json, _BODIES),
    "wire": Target(
        wire,
        [
            joined(*(_message(request_id) for request_id in ("", "1", "2"))),
            joined(_message("1", outputs=[pb.ModelInferRequest.InferRequestedOutputTensor(name="y")])),
            joined(_message("1", parameters={"p": pb.InferParameter(int64_param=1)})),
        ],
    ),
}
