"""Servers that do nothing: how fast a generator can be when nobody keeps it waiting.

    python -m loadtests.echo grpc 9001 --answer message.bin     every unary call is answered with this message
    python -m loadtests.echo http 9000 --answer body.bin        every request is answered with this body

They look at no request beyond where it ends, and serve no one but the generators here.
"""

from __future__ import annotations

import argparse
import asyncio
import struct
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import cast

import uvloop

from loadtests.h2_calls import ACK, DATA, END_HEADERS, END_STREAM, HEADERS, PING, SETTINGS, WINDOW_UPDATE, frame

_PREFACE_BYTES = 24
_HEAD = struct.Struct(">IBI")
# Literal fields without indexing, nothing Huffman-coded: these bytes mean the same on every connection.
_RESPONSE = b"\x88\x0f\x10\x10application/grpc"
_TRAILERS = b"\x00\x0bgrpc-status\x010"
_UPDATE_BYTES = 1 << 14
"""Clients begin with a window of 65,535 bytes; this much is given back at once."""
_INITIAL_WINDOW_SIZE = struct.pack(">HI", 4, 1 << 30)


class GrpcEcho(asyncio.Protocol):
    """HTTP/2: answers whenever a client's DATA ends a stream."""

    def __init__(self, message: bytes) -> None:
        data = b"\0" + len(message).to_bytes(4, "big") + message
        self._parts = tuple(
            frame(kind, flags, 0, payload)
            for kind, flags, payload in (
                (HEADERS, END_HEADERS, _RESPONSE),
                (DATA, 0, data),
                (HEADERS, END_HEADERS | END_STREAM, _TRAILERS),
            )
        )
        # A frame is five bytes, the stream's four, the rest.
        (a, b), (c, d), (e, f) = ((part[:5], part[9:]) for part in self._parts)
        self._first, self._second, self._third, self._last = a, b + c, d + e, f
        self._rest = b""
        self._skip = _PREFACE_BYTES
        self._unreturned_bytes = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        transport.write(frame(SETTINGS, 0, 0, _INITIAL_WINDOW_SIZE))

    def data_received(self, data: bytes) -> None:
        data = self._rest + data if self._rest else data
        if self._skip:
            data, self._skip = data[self._skip :], max(0, self._skip - len(data))
        at, end, out = 0, len(data), []
        while end - at >= 9:
            head, flags, _ = _HEAD.unpack_from(data, at)
            stop = at + 9 + (head >> 8)
            if stop > end:
                break
            kind = head & 0xFF
            if kind == DATA:
                self._unreturned_bytes += head >> 8
                if flags & END_STREAM:
                    stream = data[at + 5 : at + 9]
                    out += [self._first, stream, self._second, stream, self._third, stream, self._last]
            elif kind in (SETTINGS, PING) and not flags & ACK:
                out.append(frame(kind, ACK, 0, data[at + 9 : stop] if kind == PING else b""))
            at = stop
        self._rest = data[at:]
        if self._unreturned_bytes > _UPDATE_BYTES:
            out.append(frame(WINDOW_UPDATE, 0, 0, struct.pack(">I", self._unreturned_bytes)))
            self._unreturned_bytes = 0
        if out:
            self._transport.write(b"".join(out))


class HttpEcho(asyncio.Protocol):
    """HTTP/1.1: a request is as long as the first one was, which holds for a generator that repeats itself."""

    def __init__(self, body: bytes) -> None:
        head = f"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
        self._answer = head.encode() + body
        self._waiting = b""
        self._request_bytes = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        self._waiting += data
        if not self._request_bytes:
            head, end, _ = self._waiting.partition(b"\r\n\r\n")
            if not end:
                return
            length = head.lower().partition(b"content-length:")[2].partition(b"\r\n")[0]
            self._request_bytes = len(head) + len(end) + int(length or 0)
        count, left = divmod(len(self._waiting), self._request_bytes)
        self._waiting = self._waiting[len(self._waiting) - left :]
        if count:
            self._transport.write(self._answer * count)


KINDS = {"grpc": GrpcEcho, "http": HttpEcho}


async def serve(kind: str, port: int, answer: bytes) -> None:
    """Until the task is cancelled."""
    server = await asyncio.get_running_loop().create_server(lambda: KINDS[kind](answer), "127.0.0.1", port)
    async with server:
        await server.serve_forever()


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kind", choices=KINDS)
    parser.add_argument("port", type=int)
    parser.add_argument("--answer", type=Path, required=True)
    options = parser.parse_args(arguments)
    uvloop.run(serve(options.kind, options.port, options.answer.read_bytes()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
