"""What a gRPC server answers, as header blocks and whole frames. Source: gRPC "gRPC over HTTP2", Responses."""

from __future__ import annotations

import re
from base64 import b64encode
from collections.abc import Iterable
from functools import lru_cache
from struct import Struct
from typing import TYPE_CHECKING

from server.transport.http2 import frames
from server.transport.http2.hpack_encode import encode
from server.transport.status import STATUS_DETAILS_KEY, Failure, status_details

if TYPE_CHECKING:
    from server.transport.http2.fields import Field

ACCEPTED_ENCODINGS = b"identity,deflate,gzip"

_START: tuple[Field, ...] = ((b":status", b"200"), (b"content-type", b"application/grpc"))
_ACCEPT: Field = (b"grpc-accept-encoding", ACCEPTED_ENCODINGS)

_KEPT = 1024
"""Blocks that are remembered: past saturation nearly every call is told one of a few hundred things."""

RESPONSE = encode(_START)
"""The header block in front of messages."""
OK_TRAILERS = encode([(b"grpc-status", b"0")])

_to_escape = re.compile(rb"[^\x20-\x24\x26-\x7e]")


def compressed_response(encoding: bytes) -> bytes:
    """The header block in front of messages of which some are compressed."""
    return encode([*_START, (b"grpc-encoding", encoding), _ACCEPT])


def ok_trailers(metadata: Iterable[Field]) -> bytes:
    return encode([(b"grpc-status", b"0"), *metadata])


def failed_trailers(failure: Failure) -> bytes:
    return encode(_failed(failure))


@lru_cache(_KEPT)
def trailers_only(failure: Failure, *, tell_encodings: bool = False) -> bytes:
    """The one header block of a call that fails before its first message."""
    return encode([*_START, *([_ACCEPT] if tell_encodings else []), *_failed(failure)])


def http_error(status: int, *more: Field) -> bytes:
    """The header block for a request that is not gRPC's, and so is not told in gRPC's words."""
    return encode([(b":status", b"%d" % status), *more, (b"content-length", b"0")])


def _failed(failure: Failure) -> list[Field]:
    fields = [
        (b"grpc-status", b"%d" % failure.grpc),
        (b"grpc-message", percent_encoded(failure.message)),
    ]
    details = status_details(failure)
    if details:
        fields.append((STATUS_DETAILS_KEY.encode(), b64encode(details).rstrip(b"=")))
    return fields


def percent_encoded(message: str) -> bytes:
    """As in grpc-message: bytes of UTF-8 that are no printable ASCII, or %, become %XX."""
    return _to_escape.sub(lambda found: b"%%%02X" % found[0][0], message.encode("utf-8", "replace"))


_whole = Struct(f">5sI{len(RESPONSE)}sHHBI BI").pack
_end = Struct(f">5sI{len(OK_TRAILERS)}s").pack
_RESPONSE_START = frames.frame(frames.HEADERS, frames.END_HEADERS, 0, RESPONSE)[:5]
_TRAILERS_START = frames.frame(frames.HEADERS, frames.END_HEADERS | frames.END_STREAM, 0, OK_TRAILERS)[:5]


def whole(stream_id: int, message: bytes) -> bytes:
    """All frames of a call that went well: HEADERS, DATA with the one message, HEADERS with the status.

    `message` and its prefix of 5 bytes must fit the client's largest frame and its windows.
    """
    size = len(message)
    data = size + 5
    # The type and flags of DATA are both 0: a 24-bit length and they are two 16-bit numbers and one of 8 bits.
    start = _whole(_RESPONSE_START, stream_id, RESPONSE, data >> 8, (data & 0xFF) << 8, 0, stream_id, 0, size)
    return start + message + _end(_TRAILERS_START, stream_id, OK_TRAILERS)
