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

    __slots__ = ("_varying", "head", "timeout_at")

    def __init__(self, head: Head, fields: Sequence[Field]) -> None:
        """`head` is that of the fields, which are well-formed."""
        self.head = head
        self._varying = [at for at, (name, _) in enumerate(fields) if name in VARYING]
        timeouts = [at for at in self._varying if fields[at][0] == b"grpc-timeout"]
        self.timeout_at = -1
        """Where the grpc-timeout stands; -1: there is none, or nobody asks."""
        if timeouts and head.refusal is None:
            self.timeout_at = timeouts[-1]
            self._varying.remove(self.timeout_at)

    def opening(self, fields: Sequence[Field]) -> Opening | None:
        """Of a request with these fields; None if one of the values that vary may be wrong."""
        for at in self._varying:
            if not plain_value(fields[at][1]):
                return None
        if self.timeout_at < 0:
            return self.head, 0
        timeout_ns = timeout_ns_of(fields[self.timeout_at][1])
        return (self.head, timeout_ns) if timeout_ns else None

    @property
    def varies(self) -> bool:
        return bool(self._varying) or self.timeout_at >= 0

    def checked_opening(self, fields: Sequence[Field]) -> Opening:
        """The same for fields that were found to be well-formed."""
        return (self.head, 0) if self.timeout_at < 0 else within(self.head, fields[self.timeout_at][1])


class Pattern:
    """The bytes of requests of one outline. Holds while HPACK's dynamic table is as it was."""

    __slots__ = ("_end", "_head", "_most_bytes", "_parts")

    def __init__(self, block: bytes, fields: Sequence[Field], outline: Outline, max_list_bytes: int) -> None:
        """`fields` and `outline` are those of `block`, which changed no table.

        Raises:
            ValueError: a value that varies is not in the block, but in a table.
        """
        self._head = outline.head
        self._parts: list[tuple[bytes, bool]] = []
        """The bytes in front of each value that varies, and whether it is the grpc-timeout."""
        at = 0
        for index, ((start, end), (name, _)) in enumerate(zip(value_spans(block), fields, strict=True)):
            if name in VARYING:
                if not start:
                    raise ValueError(name)
                self._parts.append((block[at:start], index == outline.timeout_at))
                at = end
        self._end = block[at:]
        # Huffman code makes eight octets of five at most: with longer values the list has to be counted.
        size = sum([len(name) + len(value) + FIELD_OVERHEAD for name, value in fields])
        self._most_bytes = (max_list_bytes - size) * 5 // 8

    def opening(self, block: bytes) -> Opening | None:
        """What a block of the pattern says; None if it is not of it, or has a value that must be looked at.

        Raises:
            HpackError: its grpc-timeout is wrong Huffman code.
        """
        if len(block) > self._most_bytes:
            return None
        end, timeout_ns = 0, 0
        try:
            for piece, is_timeout in self._parts:
                start = end + len(piece) + 1
                length = block[start - 1]
                if block[end : start - 1] != piece or length & _LONG == _LONG:
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
        return (self._head, timeout_ns) if end <= len(block) and block[end:] == self._end else None
