"""What a gRPC server answers, as header blocks and whole frames. Source: gRPC "gRPC over HTTP2", Responses."""

from __future__ import annotations

import re
from base64 import b64encode
from collections.abc import Callable, Iterable
from functools import lru_cache
from struct import Struct
from typing import TYPE_CHECKING

from server.transport.http2 import frames
from server.transport.http2.hpack_encode import encode
from server.transport.http2.prefix import write_prefix
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


NOT_GRPC = b"Only gRPC is spoken here over HTTP/2: POST, with content-type: application/grpc\n"
"""For people, behind `http_error`."""


def http_error(status: int, *more: Field) -> bytes:
    """The header block for a request that is not gRPC's, and so is not told in gRPC's words."""
    size = b"%d" % len(NOT_GRPC)
    return encode([(b":status", b"%d" % status), *more, (b"content-type", b"text/plain"), (b"content-length", size)])


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


_START_FRAME = frames.frame(frames.HEADERS, frames.END_HEADERS, 0, RESPONSE)[:5]
_END_FRAME = frames.frame(frames.HEADERS, frames.END_HEADERS | frames.END_STREAM, 0, OK_TRAILERS)[:5]


class _Layouts(dict[int, tuple[Callable[..., bytes], bytes, bytes]]):
    """By the bytes of a message: what packs the frames, what stands between the first two of the three places where the
    stream is named, and the message's prefix. When there are too many, all are made anew."""

    def __missing__(self, size: int) -> tuple[Callable[..., bytes], bytes, bytes]:
        if len(self) >= _KEPT:
            self.clear()
        prefix = write_prefix(0, size)
        between = RESPONSE + frames.frame(frames.DATA, 0, 0, prefix + bytes(size))[:5]
        pack = Struct(f">5sI{len(between)}sI5s{size}s5sI{len(OK_TRAILERS)}s").pack
        layout = self[size] = pack, between, prefix
        return layout


_layouts = _Layouts()


def whole(stream_id: int, message: bytes) -> bytes:
    """All frames of a call that went well: HEADERS, DATA with the one message, HEADERS with the status.

    `message` and its prefix must fit the client's largest frame and its windows.
    """
    pack, between, prefix = _layouts[len(message)]
    return pack(_START_FRAME, stream_id, between, stream_id, prefix, message, _END_FRAME, stream_id, OK_TRAILERS)
