"""Bodies and messages that came compressed, by either protocol: bounded, and on a thread where it would take long."""

from __future__ import annotations

import asyncio
import zlib

from server.errors import InvalidRequest, PayloadTooLarge

WINDOW_BITS = {"gzip": zlib.MAX_WBITS | 16, "deflate": zlib.MAX_WBITS}
"""The encodings that are known, and what zlib calls them."""
ON_LOOP_BYTES = 4096
"""Up to here it is done at once (it makes 4 MiB at most, in a few ms); more is for a thread."""


def inflate(field: str, data: bytes, encoding: str, limit: int) -> bytes:
    """Decompress `data`, never making more than `limit` bytes of it. `field` is what errors name.

    Raises:
        PayloadTooLarge: there is more.
        InvalidRequest: `data` is not one whole stream of that encoding.
    """
    decompressor = zlib.decompressobj(WINDOW_BITS[encoding])
    try:
        inflated = decompressor.decompress(data, limit + 1)
    except zlib.error as error:
        raise InvalidRequest(field, f"is not {encoding}: {error}") from error
    if len(inflated) > limit:
        raise PayloadTooLarge(field, limit)
    if not decompressor.eof:
        raise InvalidRequest(field, f"is not {encoding}: it ends too early")
    if decompressor.unused_data:
        raise InvalidRequest(field, f"is not {encoding}: {len(decompressor.unused_data)} bytes follow its end")
    return inflated


async def inflated(field: str, data: bytes, encoding: str, limit: int) -> bytes:
    """As `inflate`, on a thread where it would take long."""
    if len(data) <= ON_LOOP_BYTES:
        return inflate(field, data, encoding, limit)
    return await asyncio.to_thread(inflate, field, data, encoding, limit)
