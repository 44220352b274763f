"""Requests that are alike but for values that vary from call to call: deadlines, traces. What they say is read once.

An *outline* is a list of fields without those values, and a *pattern* is a header block without them: the bytes around
them are compared, grpc-timeout is decoded, and of the others it is only seen to that they are right and hold nothing
but visible ASCII. Whatever differs in another way is not alike, and is decoded and checked like the first of its kind.

Source: RFC 7541 sections 5.2, 6.2.
"""

from __future__ import annotations

from collections.abc import Sequence

from server.transport.http2 import huffman
from server.transport.http2.fields import VARYING, Field, plain_value
from server.transport.http2.head import Head, Opening, timeout_ns_of, within
from server.transport.http2.hpack import FIELD_OVERHEAD, value_spans

_CODED = 0x80
"""This bit of the octet in front of a string says that it is Huffman-coded; the others are its length in octets,"""
_LONG = 0x7F
"""but for this one, after which the length goes on."""

OutlineKey = tuple[Field | bytes, ...]


def outline_key(fields: Sequence[Field]) -> OutlineKey:
    """The fields, where a name alone stands for a field that varies."""
    return tuple([field[0] if field[0] in VARYING else field for field in fields])


class Outline:
    """What the requests say whose fields have the same key."""

    __slots__ = ("_fields", "_varying", "head", "timeout_at")

    def __init__(self, head: Head, fields: Sequence[Field]) -> None:
        """`head` is that of the fields, which are well-formed."""
        self.head = head
        self._fields = [*fields]
        """Those of a request with this outline."""
        self._varying = [at for at, (name, _) in enumerate(fields) if name in VARYING]
        timeouts = [at for at in self._varying if fields[at][0] == b"grpc-timeout"]
        self.timeout_at = timeouts[-1] if timeouts and head.refusal is None else -1
        """Where the grpc-timeout stands; -1: there is none, or nobody asks."""

    def opening(self, fields: Sequence[Field]) -> Opening | None:
        """Of a request with these fields; None if they have another outline, or a value that varies may be wrong."""
        known = self._fields
        if len(fields) != len(known):
            return None
        alike, timeout_ns = [*fields], 0
        for at in self._varying:
            name, value = fields[at]
            if name != known[at][0]:
                return None
            if at == self.timeout_at:
                timeout_ns = timeout_ns_of(value)
                if not timeout_ns:
                    return None
            elif not plain_value(value):
                return None
            alike[at] = known[at]
        if alike != known:
            return None
        # What comes by its index is the same tuple the next time, which is seen without a look into it.
        self._fields = alike
        return self.head, timeout_ns

    @property
    def varies(self) -> bool:
        return bool(self._varying)

    def checked_opening(self, fields: Sequence[Field]) -> Opening:
        """The same for fields that were found to be well-formed."""
        return (self.head, 0) if self.timeout_at < 0 else within(self.head, fields[self.timeout_at][1])


class Pattern:
    """The bytes of requests of one outline. Holds while HPACK's dynamic table is as it was."""

    __slots__ = ("_end", "_head", "_most_bytes", "_parts", "latest")

    def __init__(self, block: bytes, fields: Sequence[Field], outline: Outline, max_list_bytes: int) -> None:
        """`fields` and `outline` are those of `block`, which changed no table.

        Raises:
            ValueError: a value that varies is not in the block, but in a table; or it is so long that the block itself
                would not be found to be of the pattern.
        """
        self._head = outline.head
        self._parts: list[tuple[bytes, int, bool]] = []
        """The bytes in front of each value that varies, how many, and whether it is the grpc-timeout."""
        at = 0
        for index, ((start, end), (name, _)) in enumerate(zip(value_spans(block), fields, strict=True)):
            if name in VARYING:
                if not start or block[start] & _LONG == _LONG:
                    raise ValueError(name)
                self._parts.append((block[at:start], start - at, index == outline.timeout_at))
                at = end
        self._end = block[at:]
        # Huffman code makes eight octets of five at most: with longer values the list has to be counted.
        size = sum([len(name) + len(value) + FIELD_OVERHEAD for name, value in fields])
        self._most_bytes = (max_list_bytes - size) * 5 // 8
        self.latest = block
        """The last block that was found to be of it."""

    def opening(self, block: bytes) -> Opening | None:
        """What a block of the pattern says; None if it is not of it, or has a value that must be looked at.

        Raises:
            HpackError: its grpc-timeout is wrong Huffman code.
        """
        end, timeout_ns = 0, 0
        try:
            for piece, size, is_timeout in self._parts:
                start = end + size
                if block[end:start] != piece:
                    return None
                length = block[start]
                start += 1
                if length & _LONG == _LONG:
                    return None
                end = start + (length & _LONG)
                value = block[start:end]
                if is_timeout:
                    timeout_ns = timeout_ns_of(huffman.decode(value) if length & _CODED else value)
                    if not timeout_ns:
                        return None
                elif not (huffman.is_plain(value) if length & _CODED else plain_value(value)):
                    return None
        except IndexError:
            return None
        # With a value that is cut short the end lies beyond the block.
        if block[end:] != self._end or end > len(block) or len(block) > self._most_bytes:
            return None
        return self._head, timeout_ns
