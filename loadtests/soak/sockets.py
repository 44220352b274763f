"""Plain connections: opened, and closed in such a way that what was sent arrives."""

from __future__ import annotations

import asyncio
from contextlib import suppress

_PATIENCE_S = 20.0


async def opened(address: str) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    host, port = address.split(":")
    return await asyncio.open_connection(host, int(port))


async def finish(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bytes:
    """Say that nothing more comes, and read to the end.

    To close at once with unread answers would reset the connection, and take from the server what it has yet to read.

    Raises:
        TimeoutError: the server keeps its side open.
    """
    with suppress(OSError):
        writer.write_eof()
    try:
        return await rest(reader)
    finally:
        await closed(writer)


async def rest(reader: asyncio.StreamReader) -> bytes:
    """All that comes until the server closes its side. Raises TimeoutError."""
    parts = []
    async with asyncio.timeout(_PATIENCE_S):
        with suppress(ConnectionError):
            while part := await reader.read(65_536):
                parts.append(part)
    return b"".join(parts)


async def closed(writer: asyncio.StreamWriter) -> None:
    writer.close()
    with suppress(OSError):
        await writer.wait_closed()
