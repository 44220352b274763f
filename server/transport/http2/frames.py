"""The frames of HTTP/2: their numbers, and the bytes of those that a server sends. Source: RFC 9113 sections 4, 6."""

from __future__ import annotations

from enum import IntEnum
from struct import Struct

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"

DATA, HEADERS, PRIORITY, RST_STREAM, SETTINGS, PUSH_PROMISE, PING, GOAWAY, WINDOW_UPDATE, CONTINUATION = range(10)

END_STREAM = ACK = 0x1
END_HEADERS = 0x4
PADDED = 0x8
WITH_PRIORITY = 0x20

HEADER_TABLE_SIZE = 0x1
ENABLE_PUSH = 0x2
MAX_CONCURRENT_STREAMS = 0x3
INITIAL_WINDOW_SIZE = 0x4
MAX_FRAME_SIZE = 0x5
MAX_HEADER_LIST_SIZE = 0x6

FRAME_HEADER_BYTES = 9
DEFAULT_FRAME_BYTES = 16_384
"""The largest payload unless SETTINGS say otherwise; ours never do, for larger frames only make larger copies."""
LARGEST_FRAME_BYTES = 2**24 - 1
DEFAULT_WINDOW_BYTES = 65_535
LARGEST_WINDOW_BYTES = 2**31 - 1
LARGEST_STREAM_ID = 2**31 - 1

_header = Struct(">HBBBI")
read_header = _header.unpack_from
"""Length (its high 16 bits, its low 8), type, flags, stream id with the reserved bit."""
_write_header = Struct(">HBBBI").pack
_write_u32 = Struct(">I").pack
_write_two_u32 = Struct(">II").pack
_write_setting = Struct(">HI").pack


class ErrorCode(IntEnum):
    """Source: RFC 9113 section 7."""

    NO_ERROR = 0x0
    PROTOCOL_ERROR = 0x1
    INTERNAL_ERROR = 0x2
    FLOW_CONTROL_ERROR = 0x3
    SETTINGS_TIMEOUT = 0x4
    STREAM_CLOSED = 0x5
    FRAME_SIZE_ERROR = 0x6
    REFUSED_STREAM = 0x7
    CANCEL = 0x8
    COMPRESSION_ERROR = 0x9
    CONNECT_ERROR = 0xA
    ENHANCE_YOUR_CALM = 0xB
    INADEQUATE_SECURITY = 0xC
    HTTP_1_1_REQUIRED = 0xD


class ConnectionFault(Exception):
    """The peer broke the protocol for the whole connection: it ends with GOAWAY(`code`) (RFC 9113 section 5.4.1).

    `cause` is what the fault is counted as.
    """

    def __init__(self, code: ErrorCode, problem: str, cause: str = "protocol_error") -> None:
        super().__init__(code, problem)
        self.code = code
        self.problem = problem
        self.cause = cause


class StreamFault(Exception):
    """The peer broke the protocol for one stream: it ends with RST_STREAM(`code`) (RFC 9113 section 5.4.2)."""

    def __init__(self, code: ErrorCode, problem: str) -> None:
        super().__init__(code, problem)
        self.code = code
        self.problem = problem


def frame(kind: int, flags: int, stream_id: int, payload: bytes | memoryview = b"") -> bytes:
    length = len(payload)
    return _write_header(length >> 8, length & 0xFF, kind, flags, stream_id) + payload


def settings(values: dict[int, int]) -> bytes:
    return frame(SETTINGS, 0, 0, b"".join(_write_setting(number, value) for number, value in values.items()))


SETTINGS_ACK = frame(SETTINGS, ACK, 0)


def ping(payload: bytes, flags: int = 0) -> bytes:
    return frame(PING, flags, 0, payload)


def rst_stream(stream_id: int, code: int) -> bytes:
    return frame(RST_STREAM, 0, stream_id, _write_u32(code))


def goaway(last_stream_id: int, code: int, debug: bytes = b"") -> bytes:
    return frame(GOAWAY, 0, 0, _write_two_u32(last_stream_id, code) + debug)


def window_update(stream_id: int, increment: int) -> bytes:
    return frame(WINDOW_UPDATE, 0, stream_id, _write_u32(increment))


def headers(stream_id: int, block: bytes, end_stream: bool, max_frame_bytes: int = DEFAULT_FRAME_BYTES) -> bytes:
    """HEADERS, and CONTINUATION where the block is longer than a frame may be."""
    end = END_STREAM if end_stream else 0
    if len(block) <= max_frame_bytes:
        return frame(HEADERS, END_HEADERS | end, stream_id, block)
    parts = [frame(HEADERS, end, stream_id, block[:max_frame_bytes])]
    for start in range(max_frame_bytes, len(block), max_frame_bytes):
        last = END_HEADERS if start + max_frame_bytes >= len(block) else 0
        parts.append(frame(CONTINUATION, last, stream_id, block[start : start + max_frame_bytes]))
    return b"".join(parts)


def without_padding(payload: bytes) -> bytes:
    """Sections 6.1, 6.2: the padding's length stands in front, the padding behind."""
    if not payload:
        raise ConnectionFault(ErrorCode.FRAME_SIZE_ERROR, "PADDED, and no length of the padding")
    if payload[0] >= len(payload):
        raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, "more padding than payload")
    return payload[1 : len(payload) - payload[0]]


def check_priority(stream_id: int, priority: bytes) -> None:
    """RFC 7540 section 5.3.1, by which many clients go still: no stream depends on itself.

    It is an error of the stream there. As one of the connection (section 5.4.1) it may come before the header block
    behind it is decoded, and on a stream that is idle.
    """
    if int.from_bytes(priority[:4]) & LARGEST_STREAM_ID == stream_id:
        raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, "a stream that depends on itself")
