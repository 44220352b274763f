"""What RFC 9113 and RFC 7541 forbid a client, and what they allow it, sent over a socket to a server of models.

A line for each rule, under its section, on a connection of its own: what the server has to answer, and to what. What
the strict cases of h2spec send is among it, mostly with a gRPC call in the place of their GET.
"""

from __future__ import annotations

from struct import pack
from typing import NamedTuple

import pytest

from server.settings import GrpcSettings
from server.transport.http2 import frames
from server.transport.http2.frames import DATA, PING, SETTINGS, ErrorCode, frame, ping, rst_stream, window_update
from server.transport.http2.hpack_encode import encode
from tests.e2e.conftest import ServerProcess
from tests.support.http2_client import END_HEADERS, END_STREAM, LIVE, Field, Frame, call_fields, data, headers, message
from tests.support.http2_wire import CLOSED, Wanted, Wire

pytestmark = pytest.mark.e2e

PROTOCOL, FLOW, SIZE, LATE, COMPRESSION, REFUSED, CANCEL = (
    ErrorCode.PROTOCOL_ERROR,
    ErrorCode.FLOW_CONTROL_ERROR,
    ErrorCode.FRAME_SIZE_ERROR,
    ErrorCode.STREAM_CLOSED,
    ErrorCode.COMPRESSION_ERROR,
    ErrorCode.REFUSED_STREAM,
    ErrorCode.CANCEL,
)

# --- what is wanted of the server -----------------------------------------------------------------


def ends(*codes: ErrorCode) -> Wanted:
    """An error of the connection."""
    return lambda f: f.kind == frames.GOAWAY and f.code in codes


def resets(*codes: ErrorCode, stream_id: int = 1) -> Wanted:
    """An error of the stream, which may be one of the connection instead (5.4.1)."""
    return lambda f: f.kind in (frames.GOAWAY, frames.RST_STREAM) and f.stream_id in (0, stream_id) and f.code in codes


def sends(length: int) -> Wanted:
    return lambda f: (f.kind, f.stream_id, len(f.payload)) == (DATA, 1, length)


def pong(payload: bytes) -> Wanted:
    return lambda f: (f.kind, f.flags, f.payload) == (PING, frames.ACK, payload)


def acknowledges(f: Frame) -> bool:
    return (f.kind, f.flags, f.payload) == (SETTINGS, frames.ACK, b"")


def answers(f: Frame) -> bool:
    return f.kind == frames.HEADERS and f.stream_id == 1


def is_over(f: Frame) -> bool:
    """The end of the answer."""
    return answers(f) and bool(f.flags & END_STREAM)


# --- what is sent to it ---------------------------------------------------------------------------

GREETING = frames.PREFACE + frames.settings({frames.INITIAL_WINDOW_SIZE: 65_535})
BOTH = END_HEADERS | END_STREAM
CALL = call_fields(LIVE)
BLOCK = encode(CALL)
MORE = encode([(b"x-more", b"x" * 4000)])
TRAILER = [(b"x-trailer", b"1")]
MANY = range(1, 2 * GrpcSettings().max_concurrent_streams + 2, 2)
"""One stream more than a client may have."""

opened = headers(1, CALL)
unfinished = headers(1, CALL, flags=0)
"""There is more of its header block to come."""
body = data(1, message(), END_STREAM)
call = opened + body
replies = sends(len(message(b"\x08\x01")))
"""To the call."""
empty = headers(1, CALL, BOTH)
"""A call without its message, which is an error of gRPC only."""
ask = ping(b"are you?")
lives = pong(b"are you?")
unknown = frame(0x16, 0, 0, bytes(8))


def settings(*values: tuple[int, int]) -> bytes:
    return frame(SETTINGS, 0, 0, b"".join(pack(">HI", *value) for value in values))


def window(size: int) -> bytes:
    return settings((frames.INITIAL_WINDOW_SIZE, size))


held = window(0) + call
"""The client has said all, and the server can't."""
narrowed = (window(3), acknowledges, call, sends(3), window(2), acknowledges, window_update(1, 2))
"""A window of 3 is used up, and becomes one of 2, so that of 2 bytes more it takes one."""


def more(block: bytes = MORE, flags: int = END_HEADERS, stream_id: int = 1) -> bytes:
    return frame(frames.CONTINUATION, flags, stream_id, block)


def priority(stream_id: int, depends_on: int = 0, weight: int = 255) -> bytes:
    return frame(frames.PRIORITY, 0, stream_id, pack(">IB", depends_on, weight))


def with_priority(depends_on: int) -> bytes:
    return frame(frames.HEADERS, END_HEADERS | frames.WITH_PRIORITY, 1, pack(">IB", depends_on, 255) + BLOCK)


def padded(kind: int, flags: int, payload: bytes, padding: int, zeros: int) -> bytes:
    return frame(kind, flags | frames.PADDED, 1, bytes([padding]) + payload + bytes(zeros))


def request(*fields: Field) -> bytes:
    return headers(1, [*fields], BOTH)


def block(*, before: bytes = b"", behind: bytes = b"") -> bytes:
    """A call, with these bytes around its header block."""
    return headers(1, block=before + BLOCK + behind) + body


def sized(length: bytes) -> bytes:
    return headers(1, call_fields(LIVE, (b"content-length", length)))


X_TEST, TEST = b"\x06x-test", b"\x04test"
CODED_X_TEST, CODED_TEST = bytes.fromhex("85f2b24a84ff"), bytes.fromhex("8349509f")
"""The same in Huffman's code."""


class Case(NamedTuple):
    section: str
    what: str
    wanted: Wanted
    sent: tuple[bytes | Wanted, ...]
    """Bytes, and what to wait for before more of them are sent."""


def case(section: str, what: str, wanted: Wanted, *sent: bytes | Wanted) -> Case:
    return Case(section, what, wanted, sent)


STARTS = [
    case("3.4", "the preface", acknowledges, GREETING),
    case("3.4", "anything else", ends(PROTOCOL), b"INVALID CONNECTION PREFACE\r\n\r\n"),
]
"""Before anything else was sent."""

FRAMES = [
    case("4.1", "an unknown type", lives, unknown + ask),
    case("4.1", "an undefined flag", pong(bytes(8)), frame(PING, 0x16, 0, bytes(8))),
    case("4.1", "the reserved bit", pong(bytes(8)), frame(PING, 0, 1 << 31, bytes(8))),
    case("4.2", "DATA of 2^14 bytes", answers, opened + data(1, message(bytes(2**14 - 5)), END_STREAM)),
    case("4.2", "DATA of a byte more", resets(SIZE), opened + data(1, bytes(2**14 + 1), END_STREAM)),
    case("4.2", "HEADERS of more", ends(SIZE), block(behind=MORE * 5)),
    case("4.3", "a block that breaks off", ends(COMPRESSION), headers(1, block=b"\x40")),
    case("4.3", "PRIORITY inside a block", ends(PROTOCOL), unfinished + priority(1) + more()),
    case("4.3", "HEADERS inside a block", ends(PROTOCOL), unfinished + headers(3, CALL) + more()),
]
STREAMS = [
    case("5.1", "DATA, idle", ends(PROTOCOL), data(1, b"test", END_STREAM)),
    case("5.1", "RST_STREAM, idle", ends(PROTOCOL), rst_stream(1, CANCEL)),
    case("5.1", "WINDOW_UPDATE, idle", ends(PROTOCOL), window_update(1, 100)),
    case("5.1", "CONTINUATION, idle", ends(PROTOCOL), more(BLOCK)),
    case("5.1", "PRIORITY, idle", lives, priority(1) + ask),
    case("5.1", "DATA, half-closed", resets(LATE), held + data(1, b"test", END_STREAM)),
    case("5.1", "HEADERS, half-closed", resets(LATE), held + empty),
    case("5.1", "CONTINUATION, half-closed", resets(LATE, PROTOCOL), held + more()),
    case("5.1", "WINDOW_UPDATE, half-closed", sends(1), held + window_update(1, 1)),
    case("5.1", "PRIORITY, half-closed", sends(1), held + priority(1) + window_update(1, 1)),
    case("5.1", "RST_STREAM, half-closed", lives, held + rst_stream(1, CANCEL) + ask),
    case("5.1", "DATA, reset", resets(LATE), opened + rst_stream(1, CANCEL) + body),
    case("5.1", "HEADERS, reset", resets(LATE), opened + rst_stream(1, CANCEL) + empty),
    case("5.1", "CONTINUATION, reset", resets(LATE, PROTOCOL), opened + rst_stream(1, CANCEL) + more()),
    case("5.1", "DATA, closed", ends(LATE), call, is_over, body),
    case("5.1", "HEADERS, closed", ends(LATE), call, is_over, empty),
    case("5.1", "CONTINUATION, closed", ends(LATE, PROTOCOL), call, is_over, more()),
    case("5.1", "PRIORITY, closed", lives, call, is_over, priority(1) + ask),
    case("5.1.1", "an even number", ends(PROTOCOL), headers(2, CALL)),
    case("5.1.1", "a lower number", ends(PROTOCOL), headers(5, CALL) + headers(3, CALL)),
    case("5.1.2", "one too many", resets(REFUSED, stream_id=MANY[-1]), b"".join(headers(i, CALL) for i in MANY)),
    case("RFC 7540 5.3.1", "HEADERS that depend on their own stream", resets(PROTOCOL), with_priority(1) + body),
    case("RFC 7540 5.3.1", "PRIORITY that depends on its own stream", resets(PROTOCOL), priority(1, depends_on=1)),
    case("5.4.1", "an error of the connection", ends(PROTOCOL), frame(PING, 0, 3, bytes(8))),
    case("5.5", "an unknown type inside a block", ends(PROTOCOL), unfinished + unknown + more()),
]
CALLS = [
    case("6.1", "DATA", replies, call),
    case("6.1", "DATA in two frames", replies, opened + data(1, message()[:2]) + data(1, message()[2:], END_STREAM)),
    case("6.1", "DATA with padding", replies, opened + padded(DATA, END_STREAM, message(), 6, 6)),
    case("6.1", "DATA with too much padding", ends(PROTOCOL), opened + padded(DATA, END_STREAM, b"test", 5, 0)),
    case("6.1", "DATA on stream 0", ends(PROTOCOL), data(0, b"test", END_STREAM)),
    case("6.2", "HEADERS", answers, empty),
    case("6.2", "HEADERS with padding", replies, padded(frames.HEADERS, END_HEADERS, BLOCK, 8, 8) + body),
    case(
        "6.2", "HEADERS with too much padding", ends(PROTOCOL), padded(frames.HEADERS, BOTH, BLOCK, len(BLOCK) + 2, 0)
    ),
    case("6.2", "HEADERS with a priority", replies, with_priority(0) + body),
    case("6.2", "HEADERS on stream 0", ends(PROTOCOL), headers(0, CALL)),
    case("6.3", "the lowest priority", replies, priority(1, weight=0) + call),
    case("6.3", "the highest priority", replies, priority(1) + call),
    case("6.3", "one that depends on the next stream", replies, priority(3, 1, 0) + call),
    case("6.3", "one that is exclusive", replies, priority(1, 1 << 31, 0) + call),
    case("6.3", "that of a later stream", replies, priority(3) + call),
    case("6.3", "PRIORITY on stream 0", ends(PROTOCOL), priority(0, 1)),
    case("6.3", "PRIORITY of 4 bytes", resets(SIZE), opened + frame(frames.PRIORITY, 0, 1, bytes(4))),
    case("6.4", "RST_STREAM", lives, opened + rst_stream(1, CANCEL) + ask),
    case("6.4", "RST_STREAM on stream 0", ends(PROTOCOL), rst_stream(0, CANCEL)),
    case("6.4", "RST_STREAM of 3 bytes", ends(SIZE), opened + frame(frames.RST_STREAM, 0, 1, bytes(3))),
    case("6.10", "CONTINUATION", replies, headers(flags=0, block=BLOCK[:5]) + more(BLOCK[5:]) + body),
    case("6.10", "two", replies, headers(flags=0, block=BLOCK[:5]) + more(BLOCK[5:9], 0) + more(BLOCK[9:]) + body),
    case("6.10", "two that are large", replies, unfinished + more(flags=0) + more() + body),
    case("6.10", "DATA behind one", ends(PROTOCOL), unfinished + more(flags=0) + body),
    case("6.10", "CONTINUATION on stream 0", ends(PROTOCOL), unfinished + more(stream_id=0)),
    case("6.10", "behind a whole block", ends(PROTOCOL), opened + more()),
    case("6.10", "behind the last", ends(PROTOCOL), unfinished + more() + more()),
    case("6.10", "behind DATA", ends(PROTOCOL), opened + body + more(flags=0) + more(stream_id=0)),
]
CONTROL = [
    case("6.5", "SETTINGS", acknowledges, settings((1, 4096), (2, 1), (3, 100), (4, 2**16 - 1), (5, 2**14), (6, 100))),
    case("6.5", "an ACK of a byte", ends(SIZE), frame(SETTINGS, frames.ACK, 0, b"\0")),
    case("6.5", "SETTINGS on a stream", ends(PROTOCOL), frame(SETTINGS, 0, 1, pack(">HI", 3, 100))),
    case("6.5", "SETTINGS of 8 bytes", ends(SIZE), frame(SETTINGS, 0, 0, pack(">HIH", 3, 100, 2))),
    case("6.5.2", "ENABLE_PUSH of 2", ends(PROTOCOL), settings((frames.ENABLE_PUSH, 2))),
    case("6.5.2", "INITIAL_WINDOW_SIZE of 2^31", ends(FLOW), window(2**31)),
    case("6.5.2", "MAX_FRAME_SIZE of 2^14 - 1", ends(PROTOCOL), settings((frames.MAX_FRAME_SIZE, 2**14 - 1))),
    case("6.5.2", "MAX_FRAME_SIZE of 2^24", ends(PROTOCOL), settings((frames.MAX_FRAME_SIZE, 2**24))),
    case("6.5.2", "an unknown setting", lives, settings((0xFF, 1)) + ask),
    case("6.5.3", "a setting twice", sends(1), settings((4, 100), (4, 1)), acknowledges, call),
    case("6.5.3", "a setting that changes nothing", acknowledges, settings((frames.ENABLE_PUSH, 0))),
    case("6.7", "PING", pong(b"a number"), ping(b"a number")),
    case("6.7", "an ACK", lives, ping(b"no reply", frames.ACK) + ask),
    case("6.7", "PING on a stream", ends(PROTOCOL), frame(PING, 0, 1, bytes(8))),
    case("6.7", "PING of 6 bytes", ends(SIZE), frame(PING, 0, 0, bytes(6))),
    case("6.8", "GOAWAY", lives, frames.goaway(0, ErrorCode.NO_ERROR, b"bye") + ask),
    case("6.8", "GOAWAY on a stream", ends(PROTOCOL), frame(frames.GOAWAY, 0, 1, bytes(8))),
    case("6.9", "more for the connection", lives, window_update(0, 1) + ask),
    case("6.9", "more for a stream", replies, opened + window_update(1, 1) + body),
    case("6.9", "0 more for the connection", ends(PROTOCOL), window_update(0, 0)),
    case("6.9", "0 more for a stream", resets(PROTOCOL), opened + window_update(1, 0)),
    case("6.9", "WINDOW_UPDATE of 3 bytes", ends(SIZE), frame(frames.WINDOW_UPDATE, 0, 0, b"\0\0\1")),
    case("6.9.1", "a window of 1", sends(1), window(1), acknowledges, call),
    case("6.9.1", "more than 2^31 - 1", ends(FLOW), window_update(0, 2**31 - 1) * 2),
    case("6.9.1", "more than 2^31 - 1 of a stream", resets(FLOW), opened + window_update(1, 2**31 - 1) * 2),
    case("6.9.2", "a setting under a call", sends(1), window(0), acknowledges, call, window(1)),
    case("6.9.2", "a window below 0", sends(1), *narrowed),
    case("7", "GOAWAY with an unknown code", lives, frames.goaway(0, 0xFF) + ask),
    case("7", "RST_STREAM with an unknown code", lives, opened + rst_stream(1, 0xFF) + ask),
]
MESSAGES = [
    *(
        case("8.1", method.decode(), answers, request((b":method", method), *CALL[1:4]))
        for method in (b"GET", b"HEAD", b"POST")
    ),
    case("8.1", "a GET in a window of 1", sends(1), window(1), acknowledges, request((b":method", b"GET"), *CALL[1:4])),
    case("8.1", "trailers", replies, opened + data(1, message()) + headers(1, TRAILER, BOTH)),
    case("8.1", "trailers that end nothing", resets(PROTOCOL), opened + data(1, message()) + headers(1, TRAILER)),
    case("8.1", "trailers with :method", resets(PROTOCOL), opened + data(1, message()) + headers(1, CALL[:1], BOTH)),
    case("8.1.1", "content-length that is not DATA's", resets(PROTOCOL), sized(b"1") + body),
    case("8.1.1", "content-length that DATA is over already", resets(PROTOCOL), sized(b"1") + data(1, message())),
    case("8.1.1", "nor that of two together", resets(PROTOCOL), sized(b"1") + data(1, message()) + body),
    case("8.2.1", "a name in capitals", resets(PROTOCOL), request(*CALL, (b"X-TEST", b"ok"))),
    case("8.2.2", "connection", resets(PROTOCOL), request(*CALL, (b"connection", b"keep-alive"))),
    case("8.2.2", "te", resets(PROTOCOL), request(*CALL, (b"trailers", b"test"), (b"te", b"trailers, deflate"))),
    case("8.3", "an unknown pseudo-header field", resets(PROTOCOL), request((b":test", b"ok"), *CALL)),
    case("8.3", ":status", resets(PROTOCOL), request((b":status", b"200"), *CALL)),
    case("8.3", "a field before", resets(PROTOCOL), request((b"x-test", b"ok"), *CALL)),
    case("8.3.1", "an empty :path", resets(PROTOCOL), request(*call_fields(b""))),
    *(
        case("8.3.1", f"no {name.decode()}", resets(PROTOCOL), request(*call_fields(LIVE, without=[name])))
        for name, _ in CALL[:3]
    ),
    *(
        case("8.3.1", f"{name.decode()} twice", resets(PROTOCOL), request((name, value), *CALL))
        for name, value in CALL[:3]
    ),
    case("8.4", "PUSH_PROMISE", ends(PROTOCOL), frame(frames.PUSH_PROMISE, END_HEADERS, 1, pack(">I", 3) + BLOCK)),
]
HPACK = [
    case("RFC 7541 2.3.3", "an index of no entry", ends(COMPRESSION), block(behind=b"\xc6")),
    case("RFC 7541 2.3.3", "a name by one", ends(COMPRESSION), block(behind=b"\x7f\x07\x00")),
    case("RFC 7541 4.2", "a size update at the end", ends(COMPRESSION), block(behind=b"\x21")),
    case("RFC 7541 4.2", "two size updates", replies, block(before=b"\x20\x3f\xe1\x1f")),
    *(
        case("RFC 7541 5.2", what, ends(COMPRESSION), block(behind=b"\0" + X_TEST + bytes.fromhex(value)))
        for what, value in (
            ("padding of more than 7 bits", "8449509fff"),
            ("padding of zeros", "83495090"),
            ("the end of a string inside", "87fffffffd25427f"),
        )
    ),
    case("RFC 7541 6.1", "an index", replies, block(behind=b"\xba")),
    case("RFC 7541 6.1", "index 0", ends(COMPRESSION), block(behind=b"\x80")),
    *(
        case(f"RFC 7541 {section}", f"{what}, {value} value", replies, block(behind=name + coded))
        for section, new, known in (
            ("6.2.1", b"\x40", b"\x7a"),
            ("6.2.2", b"\x00", b"\x0f\x2b"),
            ("6.2.3", b"\x10", b"\x1f\x2b"),
        )
        for what, name in (("a known name", known), ("a new name", new + X_TEST), ("a coded name", new + CODED_X_TEST))
        for value, coded in (("a plain", TEST), ("a coded", CODED_TEST))
    ),
    case("RFC 7541 6.3", "a size update", replies, block(before=b"\x20")),
    case("RFC 7541 6.3", "one over the limit", ends(COMPRESSION), block(before=b"\x3f\xe2\x1f")),
]


# --- the connections ------------------------------------------------------------------------------


def converse(port: int, case: Case, *, greeted: bool = True) -> None:
    wire = Wire(port)
    with wire.socket:
        if greeted:
            wire.send(GREETING + frames.SETTINGS_ACK)
            wire.until(acknowledges)
        for step in case.sent:
            if callable(step):
                wire.until(step)
            else:
                wire.send(step)
        if wire.until(case.wanted).kind == frames.GOAWAY:
            wire.until(CLOSED.__eq__)
        else:
            wire.send(ping(b"and now?"))
            wire.until(pong(b"and now?"))


def named(case: Case) -> str:
    return f"{case.section} {case.what}"


@pytest.mark.parametrize("case", STARTS, ids=named)
def test_starts(server: ServerProcess, case: Case) -> None:
    """The preface, and nothing else, begins a connection."""
    converse(server.port("gRPC"), case, greeted=False)


@pytest.mark.parametrize("case", [*FRAMES, *STREAMS, *CALLS, *CONTROL, *MESSAGES, *HPACK], ids=named)
def test_sections(server: ServerProcess, case: Case) -> None:
    """What is allowed is taken, what is not ends the stream or the connection, with the code that its section says."""
    converse(server.port("gRPC"), case)


def test_a_call_afterwards(server: ServerProcess) -> None:
    """Nothing of it has harmed the server."""
    converse(server.port("gRPC"), case("6.1", "DATA", replies, call))
