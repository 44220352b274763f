"""REST's answers in gzip or deflate, for clients that accept it and where it is worth it; always on a thread.

Answers that repeat for everybody are not kept compressed: most are tensors, which never repeat.
Source: RFC 9110, sections 8.4.1 and 12.5.3.
"""

from __future__ import annotations

import asyncio
import re
import zlib
from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

from server.offload import Offload
from server.tensor import Buffer
from server.transport.http1.reply import Reply, with_headers
from server.transport.inflate import WINDOW_BITS

_LEVEL = 1
"""The fastest: the next ones take twice the time for some percent."""
_SAMPLE_BYTES = 4096
_WORTH = 0.9
"""A sample that is not smaller than that part of itself tells of tensors that do not compress."""
_THREADS = 2
_WEIGHT = re.compile(rb"(?:0(?:\.[0-9]{0,3})?|1(?:\.0{0,3})?)")
_IDENTITY, _ANY = b"identity", b"*"
_LENGTH, _END = b"content-length: ", b"\r\n\r\n"


class Accepted(NamedTuple):
    """What a client's Accept-Encoding comes to."""

    encoding: str = ""
    """gzip, deflate, or empty: answers as they are."""
    always: bool = False
    """It does not take them as they are, however small."""


class NotAcceptable(Exception):
    """The client takes answers neither as they are nor in gzip or deflate."""


PLAIN = Accepted()


def accepted(elements: Sequence[bytes]) -> Accepted:
    """What the elements of Accept-Encoding, in lower case, come to; one that can't be read is left out.

    The coding with the most weight, of equal ones the first; none where answers as they are have as much by name.
    `*` alone asks for no coding.

    Raises:
        NotAcceptable: nothing is left.
    """
    weights = _weights(elements)
    others = weights.get(_ANY)
    plain = weights.get(_IDENTITY, 1.0 if others is None else others)
    named = {coding: weight for coding, weight in weights.items() if coding.decode("latin-1") in WINDOW_BITS}
    if not plain and others:
        named = {**dict.fromkeys((coding.encode() for coding in WINDOW_BITS), others), **named}
    best = max(named, key=lambda coding: named[coding], default=_IDENTITY)
    if not named.get(best):
        if not plain:
            raise NotAcceptable
        return PLAIN
    if _IDENTITY in weights and plain >= named[best]:
        return PLAIN
    return Accepted(best.decode(), not plain)


def _weights(elements: Sequence[bytes]) -> dict[bytes, float]:
    weights: dict[bytes, float] = {}
    for element in elements:
        coding, *parameters = (part.strip() for part in element.split(b";"))
        if not parameters:
            weights[coding] = 1.0
        elif len(parameters) == 1 and parameters[0][:2] == b"q=" and _WEIGHT.fullmatch(parameters[0][2:]):
            weights[coding] = float(parameters[0][2:])
    return weights


def compressed(how: Accepted, body: bytes) -> bytes | None:
    """`body` in the coding that is accepted; None where it would hardly be smaller, and may stay as it is."""
    if not how.always and len(body) > _SAMPLE_BYTES:
        # From the middle: an answer begins with JSON, whatever its tensors are like.
        middle = (len(body) - _SAMPLE_BYTES) // 2
        sample = body[middle : middle + _SAMPLE_BYTES]
        if len(zlib.compress(sample, _LEVEL)) > _WORTH * _SAMPLE_BYTES:
            return None
    coder = zlib.compressobj(_LEVEL, zlib.DEFLATED, WINDOW_BITS[how.encoding])
    return coder.compress(body) + coder.flush()


def compressed_parts(how: Accepted, parts: Sequence[Buffer]) -> Sequence[Buffer]:
    """An answer as `Turn.reply_ok` takes it, compressed, or `parts` themselves.

    The length of its JSON stays what it was: it counts bytes of what the client makes of the body.
    """
    fields, end, body = b"".join(parts).partition(_END)
    smaller = compressed(how, body)
    if smaller is None:
        return parts
    told = fields[: fields.rindex(_LENGTH)]
    coded = b"content-encoding: %b\r\nvary: accept-encoding\r\n" % how.encoding.encode()
    return [b"".join((told, coded, _LENGTH, b"%d" % len(smaller), end)), smaller]


class Compression:
    """The compression of one listener's answers. `from_bytes`: smaller ones stay as they are; 0: all do."""

    def __init__(self, from_bytes: int) -> None:
        self._from_bytes = from_bytes
        self._threads = Offload(_THREADS, "compress")

    def wanted(self, how: Accepted, size: int) -> bool:
        """Whether an answer with a body of `size` bytes is to be given to a thread."""
        return how.always or (how is not PLAIN and 0 < self._from_bytes <= size)

    def parts(self, how: Accepted, parts: Sequence[Buffer]) -> asyncio.Future[Sequence[Buffer]]:
        """As `compressed_parts`."""
        return self._threads.run(partial(compressed_parts, how), parts)

    async def reply(self, how: Accepted, reply: Reply) -> Reply:
        """`reply`, compressed if that is wanted and worth it. Caches are told where it might have been."""
        size = len(reply.body)
        if not size or not (how.always or 0 < self._from_bytes <= size):
            return reply
        reply = with_headers(reply, (b"vary", b"accept-encoding"))
        smaller = await self._threads.run(partial(compressed, how), reply.body) if how is not PLAIN else None
        if smaller is None:
            return reply
        return with_headers(reply._replace(body=smaller), (b"content-encoding", how.encoding.encode()))

    def close(self) -> None:
        """Let the threads end; what none has begun is cancelled."""
        self._threads.close()
