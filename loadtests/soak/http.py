"""HTTP/1.1 as little as a load generator needs: one request at a time on a connection that stays open."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Self

from loadtests.soak.sockets import closed


def request(path: str, body: bytes, headers: Mapping[str, str]) -> bytes:
    """A POST as bytes."""
    lines = [f"POST {path} HTTP/1.1", "Host: soak", f"Content-Length: {len(body)}"]
    lines += [f"{name}: {value}" for name, value in headers.items()]
    return ("\r\n".join(lines) + "\r\n\r\n").encode() + body


async def answer(reader: asyncio.StreamReader) -> tuple[int, bytes]:
    """Status and body of the next answer. Raises asyncio.IncompleteReadError: the server closed the connection."""
    head = (await reader.readuntil(b"\r\n\r\n")).lower()
    _, _, length = head.partition(b"\r\ncontent-length:")
    return int(head[9:12]), await reader.readexactly(int(length.split(b"\r\n", 1)[0] or 0))


class Connection:
    """``async with await Connection.open(address) as connection: status, body = await connection.post(...)``"""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    @classmethod
    async def open(cls, address: str) -> Self:
        host, port = address.split(":")
        return cls(*await asyncio.open_connection(host, int(port)))

    async def post(self, data: bytes) -> tuple[int, bytes]:
        """Send a request, as `request` makes it; its answer."""
        self._writer.write(data)
        return await answer(self._reader)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await closed(self._writer)
