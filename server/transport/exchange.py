"""One REST call: its headers, query and body on the way in, its reply on the way out."""

from __future__ import annotations

import asyncio
import math
import time
import zlib
from typing import TYPE_CHECKING, NamedTuple
from urllib.parse import parse_qsl

import orjson

from server.errors import Cancelled, InvalidRequest, PayloadTooLarge, Unsupported
from server.transport.codec.tensors import quoted
from server.types import NO_DEADLINE

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from server.dataplane import DataPlane
    from server.transport.asgi import Receive, Scope

Headers = list[tuple[bytes, bytes]]

_JSON: Headers = [(b"content-type", b"application/json")]
_WINDOW_BITS = {"gzip": zlib.MAX_WBITS | 16, "deflate": zlib.MAX_WBITS}
_INFLATE_ON_LOOP_BYTES = 4096
"""Compressed bodies up to here are inflated at once (to at most 4 MiB, a few ms); larger ones on a thread."""


class Reply(NamedTuple):
    status: int
    body: bytes = b""
    headers: Headers = []  # noqa: RUF012 - never changed


def json_reply(document: object, status: int = 200) -> Reply:
    return Reply(status, orjson.dumps(document), _JSON)


class Exchange:
    """`names` are the values of the route's placeholders, percent-decoded."""

    __slots__ = ("_headers", "_max_body_bytes", "_on_body", "_receive", "_scope", "dataplane", "names", "received_ns")

    def __init__(
        self,
        dataplane: DataPlane,
        scope: Scope,
        receive: Receive,
        names: Mapping[str, str],
        max_body_bytes: int,
        on_body: Callable[[], None],
    ) -> None:
        """`on_body` is called once the body is here as a whole, for those calls that read it."""
        self.dataplane = dataplane
        self.names = names
        self.received_ns = time.monotonic_ns()
        self._scope = scope
        self._headers: Headers = scope["headers"]
        self._receive = receive
        self._max_body_bytes = max_body_bytes
        self._on_body = on_body

    @property
    def model(self) -> tuple[str, str]:
        """The model's name and version, which is empty where the path has none."""
        return self.names["model"], self.names.get("version", "")

    def header(self, name: bytes) -> str:
        """The value of a header (`name` in lower case), empty if it is not there."""
        for key, value in self._headers:
            if key == name:
                return value.decode("latin-1").strip()
        return ""

    def query(self) -> dict[str, str]:
        """Raises InvalidRequest for a parameter that is there twice."""
        pairs = parse_qsl(self._scope.get("query_string", b"").decode("latin-1"), keep_blank_values=True)
        values = dict(pairs)
        if len(values) != len(pairs):
            raise InvalidRequest("query", "has a parameter twice")
        return values

    def deadline_ns(self) -> int:
        """When the caller gives up, by its X-Request-Timeout in milliseconds.

        Raises:
            InvalidRequest: it is no positive number.
        """
        text = self.header(b"x-request-timeout")
        if not text:
            return NO_DEADLINE
        try:
            timeout_ms = float(text)
        except ValueError:
            timeout_ms = math.nan
        if not 0 < timeout_ms < math.inf:
            raise InvalidRequest("X-Request-Timeout", f"must be a number of milliseconds above 0, got {quoted(text)}")
        return min(self.received_ns + int(timeout_ms * 1e6), NO_DEADLINE)

    async def body(self) -> bytes:
        """The whole body, decompressed.

        Raises:
            PayloadTooLarge: it is over the limit, compressed or not; no more than the limit was ever kept.
            InvalidRequest: it does not decompress.
            Unsupported: an encoding other than gzip and deflate.
            Cancelled: the caller went away before its end.
        """
        encoding = self.header(b"content-encoding").lower()
        if encoding not in ("", "identity", *_WINDOW_BITS):
            raise Unsupported("Content-Encoding", f"{quoted(encoding)} is not supported, use gzip or deflate")
        data = await self._received()
        self._on_body()
        if encoding not in _WINDOW_BITS:
            return data
        if len(data) <= _INFLATE_ON_LOOP_BYTES:
            return inflate(data, encoding, self._max_body_bytes)
        return await asyncio.to_thread(inflate, data, encoding, self._max_body_bytes)

    async def _received(self) -> bytes:
        declared = self.header(b"content-length")
        # The HTTP parser has refused a length that is no number.
        if declared and int(declared) > self._max_body_bytes:
            raise PayloadTooLarge("body", self._max_body_bytes, int(declared))
        chunk, more = await self._next()
        if not more:
            return chunk
        chunks, size = [chunk], len(chunk)
        while more:
            chunk, more = await self._next(size)
            size += len(chunk)
            chunks.append(chunk)
        return b"".join(chunks)

    async def _next(self, size: int = 0) -> tuple[bytes, bool]:
        """The next part of a body of which `size` bytes are here, and whether more will follow."""
        event = await self._receive()
        if event["type"] == "http.disconnect":
            raise Cancelled
        chunk: bytes = event.get("body", b"")
        if size + len(chunk) > self._max_body_bytes:
            raise PayloadTooLarge("body", self._max_body_bytes)
        return chunk, event.get("more_body", False)


def inflate(data: bytes, encoding: str, limit: int) -> bytes:
    """Decompress a body (`encoding` is gzip or deflate), never making more than `limit` bytes of it.

    Raises:
        PayloadTooLarge: there is more.
        InvalidRequest: `data` is not one whole stream of that encoding.
    """
    decompressor = zlib.decompressobj(_WINDOW_BITS[encoding])
    try:
        inflated = decompressor.decompress(data, limit + 1)
    except zlib.error as error:
        raise InvalidRequest("body", f"is not {encoding}: {error}") from error
    if len(inflated) > limit:
        raise PayloadTooLarge("body", limit)
    if not decompressor.eof:
        raise InvalidRequest("body", f"is not {encoding}: it ends too early")
    if decompressor.unused_data:
        raise InvalidRequest("body", f"is not {encoding}: {len(decompressor.unused_data)} bytes follow its end")
    return inflated
