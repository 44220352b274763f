"""Lists of fields to HPACK's blocks, without the peer's table: an answer's block is the same on every connection.

Source: RFC 7541.
"""

from __future__ import annotations

from collections.abc import Iterable

from server.transport.http2.static_table import INDEXED, NEVER, STATIC_TABLE, WITHOUT_INDEXING, Field

NEVER_INDEXED = frozenset({b"authorization", b"set-cookie"})
"""Secrets that no hop may put into a table, where a guess could be tested (RFC 7541 section 7.1)."""


def encode(fields: Iterable[Field]) -> bytes:
    """A block that leaves the peer's table as it is: static entries by index, all else as plain literals."""
    return b"".join([_FIELDS.get(field) or _literal(*field) for field in fields])


def _literal(name: bytes, value: bytes) -> bytes:
    start = _LITERALS.get(name) or b"\x00" + _length(name) + name
    return start + _length(value) + value


def _length(text: bytes) -> bytes:
    return _SHORT[len(text)] if len(text) < len(_SHORT) else _encode_integer(len(text), 0x7F, 0)


def _encode_integer(value: int, prefix: int, pattern: int) -> bytes:
    """`value` in a prefix of which `prefix` is the largest, below the bits of `pattern` (RFC 7541 section 5.1)."""
    if value < prefix:
        return bytes([pattern | value])
    octets = bytearray([pattern | prefix])
    value -= prefix
    while value >= 0x80:
        octets.append(value & 0x7F | 0x80)
        value >>= 7
    octets.append(value)
    return bytes(octets)


_SHORT = tuple(_encode_integer(length, 0x7F, 0) for length in range(0x7F))

_FIELDS = {field: _encode_integer(index, 0x7F, INDEXED) for index, field in enumerate(STATIC_TABLE, start=1)}

_LITERALS = {
    name: _encode_integer(index, 0x0F, NEVER if name in NEVER_INDEXED else WITHOUT_INDEXING)
    for index, (name, _) in reversed([*enumerate(STATIC_TABLE, start=1)])
}
"""How a literal with a static name starts; the lowest index of each name."""
