"""HPACK's field blocks to lists of fields.

The decoder follows the peer's dynamic table to the letter; a field that comes by its index is the same tuple each time.

Source: RFC 7541.
"""

from __future__ import annotations

from collections.abc import Sequence

from server.transport.http2.huffman import HpackError
from server.transport.http2.huffman import decode as huffman_decode
from server.transport.http2.huffman import decode_name as huffman_decode_name
from server.transport.http2.static_table import INCREMENTAL, INDEXED, STATIC_TABLE, UPDATE, Field

__all__ = ["Decoder", "Field", "HeaderListTooLarge", "HpackError"]

FIELD_OVERHEAD = 32
"""What a field counts beyond its name and value: in the table (RFC 7541 section 4.1), in a list (RFC 9113 10.5.1)."""

MAX_INTEGER_OCTETS = 5
"""Octets after the prefix; enough for 32 bits, and so for every SETTINGS value (RFC 7541 section 5.1 wants a limit)."""

MAX_INTEGER = 2**32 - 1

_SHORT_NAME = 64
"""A Huffman-coded name of fewer octets is decoded once."""

MAX_SIZEUPDATES = 2
"""At the begin of a block: the smallest limit since the last block, and the last one (RFC 7541 section 4.2)."""

_BASE = 0x80
"""Where index 0 lies in `Decoder._table`: so the octet of an indexed field, 1 and seven bits of index, is its place."""

_NEWEST = _BASE + 1 + len(STATIC_TABLE)

_LARGEST_STATIC = max(len(name) + len(value) for name, value in STATIC_TABLE)

_NONE: Field = (b"", b"")
_START: tuple[Field, ...] = (*[_NONE] * (_BASE + 1), *STATIC_TABLE)

_CHUNK = 4096
"""Octets of a block after which the fields are counted; a longer block can't hold more than that many uncounted."""


def _name_place(octet: int) -> int:
    """The place in `_table` of the name of a literal that starts with `octet`.

    Negative where the next octet has to be added, 0 where there is no index, or no literal.
    """
    prefix = 0x3F if octet & INCREMENTAL else 0x0F
    index = octet & prefix
    if not index or UPDATE <= octet < INCREMENTAL:
        return 0
    return -(_BASE + index) if index == prefix else _BASE + index


_NAME_PLACES = tuple(_name_place(octet) for octet in range(INDEXED))


class HeaderListTooLarge(Exception):
    """A list over the limit. The decoder's table is right nevertheless: only the stream has to end."""

    def __init__(self, size: int, limit: int) -> None:
        super().__init__(f"header list: {size} bytes, the limit is {limit}")
        self.size = size
        self.limit = limit


class Decoder:
    """One direction of one connection. After an `HpackError` it is of no use any more.

    `max_table_size` in bytes is what both sides start with; in HTTP/2 that is 4096, whatever our first SETTINGS say,
    until they are acknowledged: see `set_max_table_size`.
    """

    __slots__ = ("_largest", "_limit", "_lowered_to", "_max_size", "_size", "_table", "insertions")

    def __init__(self, max_table_size: int = 4096) -> None:
        self._table = [*_START]
        """The static table, then the dynamic one with its newest entry first: one look-up for both."""
        self._size = 0
        self._max_size = max_table_size
        """What the peer keeps to, by its last update; never over `_limit` after a block."""
        self._limit = max_table_size
        self._lowered_to: int | None = None
        """The lowest limit since the last block, where the peer has to confirm it."""
        self._largest = _LARGEST_STATIC
        """No entry was ever larger, in bytes of name and value."""
        self.insertions = 0
        """Changes of the dynamic table so far. What a block means can differ only where this does."""

    def set_max_table_size(self, max_table_size: int) -> None:
        """A new SETTINGS_HEADER_TABLE_SIZE in bytes, when the peer has acknowledged it.

        The table itself changes with the peer's update, which the next block must start with if the limit was lowered
        below what the peer uses.

        Source: RFC 7541 section 4.2.
        """
        self._limit = max_table_size
        lowest = max_table_size if self._lowered_to is None else min(max_table_size, self._lowered_to)
        if lowest < self._max_size:
            self._lowered_to = lowest
            self.insertions += 1

    def decode(self, block: bytes, max_list_size: int) -> list[Field]:
        """The fields of a whole block, in order. `max_list_size` in bytes counts 32 for each field (RFC 9113 10.5.1).

        Raises:
            HpackError: the block breaks RFC 7541.
            HeaderListTooLarge: the fields are over `max_list_size`; the table is as if they were not.
        """
        fields: list[Field] = []
        first = block[0] if block else 0
        position = 0
        try:
            if self._lowered_to is not None or UPDATE <= first < INCREMENTAL:
                position = self._size_updates(block)
            position = self._read(block, position, fields)
            # Counting costs as much as reading, and what is surely within the limit needs none: a name or value from a
            # table is no longer than the longest, and Huffman code makes 8 octets of 5 at most.
            at_most = len(fields) * (self._largest + FIELD_OVERHEAD) + 2 * len(block)
            if at_most > max_list_size or position < len(block):
                self._count(block, position, fields, max_list_size)
        except IndexError:
            raise HpackError("a field block ends inside a field, or has an index beyond the tables") from None
        return fields

    def _read(self, block: bytes, position: int, fields: list[Field]) -> int:
        """Appends the fields from `position` to the end, or for about `_CHUNK` octets, and returns where it stopped.

        All that is common stands here at length, because a call costs as much as a field.
        """
        table = self._table
        end = len(block)
        stop = end if end - position <= _CHUNK else position + _CHUNK
        while position < stop:
            octet = block[position]
            position += 1
            if octet >= INDEXED:
                if octet == 0x80 or octet == 0xFF:
                    index, position = _index(octet, block, position)
                    fields.append(table[_BASE + index])
                else:
                    fields.append(table[octet])
                continue
            place = _NAME_PLACES[octet]
            if place > 0:
                name = table[place][0]
            elif place and (more := block[position]) < 0x80:
                name = table[more - place][0]
                position += 1
            else:
                name, position = self._name(octet, block, position)
            length = block[position]
            position += 1
            if length < 0x7F:
                value = block[position : position + length]
                position += length
            elif 0x80 <= length < 0xFF:
                length += position - 0x80
                value = huffman_decode(block[position:length])
                position = length
            else:
                value, position = _string(length, block, position)
            field = (name, value)
            fields.append(field)
            if octet >= INCREMENTAL:
                self._insert(field)
        if position > end:
            raise IndexError
        return position

    def _name(self, octet: int, block: bytes, position: int) -> tuple[bytes, int]:
        """The name of a literal where its first octet does not tell it alone, and the position after."""
        if UPDATE <= octet < INCREMENTAL:
            raise HpackError("a table size update after a field, or a third one (RFC 7541 section 4.2)")
        if not octet & 0x0F:
            length = block[position] - 0x80
            end = position + 1 + length
            if 0 <= length < _SHORT_NAME and end < len(block):
                return huffman_decode_name(block[position + 1 : end]), end
            return _string(block[position], block, position + 1)
        index, position = _integer(octet, 0x3F if octet >= INCREMENTAL else 0x0F, block, position)
        return self._table[_BASE + index][0], position

    def _insert(self, field: Field) -> None:
        """The newest entry. One that is larger than the table only empties it (RFC 7541 section 4.4)."""
        name, value = field
        length = len(name) + len(value)
        if length > self._largest:
            self._largest = length
        size = length + FIELD_OVERHEAD
        if self._size + size > self._max_size:
            self._evict(self._max_size - size)
        if size <= self._max_size:
            self._table.insert(_NEWEST, field)
            self._size += size
        self.insertions += 1

    def _evict(self, max_size: int) -> None:
        """Drops the oldest entries until `max_size` bytes are left, or none."""
        table = self._table
        size = self._size
        while size > max_size and size:
            name, value = table.pop()
            size -= len(name) + len(value) + FIELD_OVERHEAD
        self._size = size

    def _size_updates(self, block: bytes) -> int:
        """Does the updates at the begin of the block; returns the position after (RFC 7541 sections 4.2, 6.3)."""
        position = 0
        for _ in range(MAX_SIZEUPDATES):
            if position == len(block) or not UPDATE <= block[position] < INCREMENTAL:
                break
            size, position = _integer(block[position], 0x1F, block, position + 1)
            if size > self._limit:
                raise HpackError(f"table size update: {size} bytes, SETTINGS_HEADER_TABLE_SIZE is {self._limit}")
            if self._lowered_to is not None and size <= self._lowered_to:
                self._lowered_to = None
            self._max_size = size
            self._evict(size)
            self.insertions += 1
        if self._lowered_to is not None:
            raise HpackError(f"no table size update to {self._lowered_to} bytes or less, after SETTINGS lowered it")
        return position

    def _count(self, block: bytes, position: int, fields: list[Field], max_list_size: int) -> None:
        """Reads what is left of the block, and counts. Fields over the limit are read for the table's sake only.

        Raises:
            HeaderListTooLarge: the size of the whole list is over `max_list_size`.
        """
        size = _list_size(fields)
        while position < len(block):
            read: list[Field] = []
            position = self._read(block, position, read)
            size += _list_size(read)
            if size <= max_list_size:
                fields += read
        if size > max_list_size:
            raise HeaderListTooLarge(size, max_list_size)


def _list_size(fields: Sequence[Field]) -> int:
    return sum([len(name) + len(value) for name, value in fields]) + FIELD_OVERHEAD * len(fields)


def _integer(octet: int, prefix: int, block: bytes, position: int) -> tuple[int, int]:
    """The integer that starts in `octet`, of which `prefix` is the largest, and the position after (RFC 7541 5.1)."""
    value = octet & prefix
    if value < prefix:
        return value, position
    for shift in range(0, 7 * MAX_INTEGER_OCTETS, 7):
        octet = block[position]
        position += 1
        value += (octet & 0x7F) << shift
        if octet < 0x80 and value <= MAX_INTEGER:
            return value, position
    raise HpackError(f"an integer over {MAX_INTEGER} or {MAX_INTEGER_OCTETS} octets (RFC 7541 section 5.1)")


def _index(octet: int, block: bytes, position: int) -> tuple[int, int]:
    index, position = _integer(octet, 0x7F, block, position)
    if not index:
        raise HpackError("index 0 (RFC 7541 section 6.1)")
    return index, position


def _string(octet: int, block: bytes, position: int) -> tuple[bytes, int]:
    """The string whose length starts in `octet`, and the position after it (RFC 7541 section 5.2).

    Where the block is too short the position is beyond its end.
    """
    length = octet & 0x7F
    if length == 0x7F:
        length, position = _integer(octet, 0x7F, block, position)
    end = position + length
    if octet >= 0x80:
        return huffman_decode(block[position:end]), end
    return block[position:end], end


def value_spans(block: bytes) -> list[tuple[int, int]]:
    """Where the value of each field begins, with its length, and ends; (0, 0) for a field that is indexed as a whole.

    `block` was decoded, and changed no table.
    """
    spans: list[tuple[int, int]] = []
    position = 0
    while position < len(block):
        octet = block[position]
        position += 1
        if octet >= INDEXED:
            _, position = _integer(octet, 0x7F, block, position)
            spans.append((0, 0))
            continue
        index, position = _integer(octet, 0x0F, block, position)
        if not index:
            position = _string_end(block, position)
        end = _string_end(block, position)
        spans.append((position, end))
        position = end
    return spans


def _string_end(block: bytes, position: int) -> int:
    length, position = _integer(block[position], 0x7F, block, position + 1)
    return position + length
