"""The Huffman code of HPACK, both ways.

The code is canonical: codes of one length are consecutive in the order of their symbols, and longer ones follow shorter
ones. So the symbols by length are the whole table.

Decoding goes by octets. A *row* belongs to a place in the code's tree and has an entry for each octet that may come:
the text that is complete after it, and the row to go on with. A row is filled when it is first needed, which takes a
quarter of a millisecond, once in a process. There are 257 and all of them take 6 MB: more is never kept. To see that a
string is right, and holds nothing unusual, the way through the rows is enough: that takes a third of the time.

A canonical code is also what zlib's inflate reads, once it is told the lengths. It takes codes of up to 15 bits: those
of all visible ASCII but the backslash. The others, and EOS, begin with 15 ones, which is the one code that is left over
and must never come. Such a run has a whole octet of ones in it, and the octets around that tell of it: so it is easily
seen whether a string is without. Of these inflate decodes all but the shortest, in less than half the time.

Source: RFC 7541 section 5.2 and appendix B.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Callable
from functools import lru_cache
from typing import TypeAlias

_SYMBOLS_BY_LENGTH = {
    5: b"012aceiost",
    6: b" %-./3456789=A_bdfghlmnpru",
    7: b":BCDEFGHIJKLMNOPQRSTUVWYjkqvwxyz",
    8: b"&*,;XZ",
    10: b'!"()?',
    11: b"'+|",
    12: b"#>",
    13: b"\x00$@[]~",
    14: b"^}",
    15: b"<`{",
    19: bytes.fromhex("5cc3d0"),
    20: bytes.fromhex("808283a2b8c2e0e2"),
    21: bytes.fromhex("99a1a7acb0b1b3d1d8d9e3e5e6"),
    22: bytes.fromhex("8184858688929a9ca0a3a4a9aaadb2b5b9babbbdbec4c6e4e8e9"),
    23: bytes.fromhex("0187898a8b8c8d8f93959697989b9d9ea5a6a8aeafb4b6b7bcbfc5e7ef"),
    24: bytes.fromhex("098e9091949fabced7e1eced"),
    25: bytes.fromhex("c7cfeaeb"),
    26: bytes.fromhex("c0c1c8c9cacdd2d5dadbeef0f2f3ff"),
    27: bytes.fromhex("cbccd3d4d6dddedff1f4f5f6f7f8fafbfcfdfe"),
    28: bytes.fromhex("020304050607080b0c0e0f1011121314151718191a1b1c1d1e1f7fdcf9"),
    30: b"\n\r\x16",  # and EOS
}
"""Code length in bits to its symbols, in order."""

_EOS_BITS = 30

_NAMES = 1024
"""Names that are remembered; a process hears a few dozen."""

_WRONG = "a Huffman-coded string has EOS inside or wrong padding (RFC 7541 section 5.2)"

Row: TypeAlias = "list[tuple[bytes, Row]]"
Way: TypeAlias = "list[Way]"
"""A row without its texts; those that are not visible ASCII lead to where EOS does."""


class HpackError(Exception):
    """A field block that breaks RFC 7541; the connection has to end with COMPRESSION_ERROR (RFC 9113 section 4.3)."""


def _codes() -> list[str]:
    """The code of each octet, as a string of 0 and 1."""
    codes = [""] * 256
    code = length = 0
    for bits, symbols in _SYMBOLS_BY_LENGTH.items():
        code <<= bits - length
        length = bits
        for symbol in symbols:
            codes[symbol] = f"{code:0{bits}b}"
            code += 1
    return codes


_CODES = _codes()


def encode(data: bytes) -> bytes:
    """`data` in Huffman code, padded with the begin of EOS."""
    bits = "".join([_CODES[octet] for octet in data])
    bits += "1" * (-len(bits) % 8)
    return int(bits, 2).to_bytes(len(bits) // 8, "big") if bits else b""


_ROOT_PLACE = ""
_BROKEN_PLACE = "EOS"
"""Where EOS leads, and from where nothing leads away."""

_SYMBOLS = {code: bytes([symbol]) for symbol, code in enumerate(_CODES)}

_PLACES = {code[:depth] for code in [*_CODES, "1" * _EOS_BITS] for depth in range(len(code))} | {_BROKEN_PLACE}
"""A place is named by the bits that lead to it from the root."""

_ROWS: dict[str, Row] = {place: [] for place in _PLACES}
"""Filled by `_fill`."""

_ROOT = _ROWS[_ROOT_PLACE]

_WAYS: dict[str, Way] = {place: [] for place in _PLACES}
_WAYS[_BROKEN_PLACE] += [_WAYS[_BROKEN_PLACE]] * 256
_START = _WAYS[_ROOT_PLACE]

_PADDING = frozenset(id(_ROWS["1" * bits]) for bits in range(8))
"""The rows where a string may end: after a whole symbol and at most seven bits of EOS."""
_ENDS = frozenset(id(_WAYS["1" * bits]) for bits in range(8))

_visible = re.compile(rb"[!-~]*").fullmatch

_FEW = 16
"""Octets; fewer are decoded faster by the rows."""
_LONGEST_INFLATED = 15
_fifteen_ones = re.compile(rb"\xff[\x80-\xff]|\x7f\xff").search
"""True of some strings with a run of 9 too."""
_REVERSED = bytes(int(f"{octet:08b}"[::-1], 2) for octet in range(256))
"""Deflate has the first bit of an octet where HPACK has the last."""
_STOP = bytes([0x30, 0x5C]).translate(_REVERSED)
_STOPPED = frozenset((b"i16", b"g16", b"K16", b"Y0:", b"x=:", b"*=:", b"XE:", b'"=:'))
"""As what `_STOP` is read behind a padding of 0 to 7 ones, with no bit left over. Behind a code that is cut off it is
read as something that ends otherwise."""


def _deflate_head() -> bytes:
    """The begin of a deflate stream with HPACK's code, up to where the text begins (RFC 1951 section 3.2.7)."""
    lengths = [len(code) if len(code) <= _LONGEST_INFLATED else 0 for code in _CODES]
    lengths += [_LONGEST_INFLATED, 0]  # The end of a block has the code that is left over; there are no distances.
    # Each length is a code of four bits, whose own lengths come first: of 16 to 18, which don't come, then of 0 to 15.
    # Three empty blocks in front make the whole end with an octet.
    parts = ["010" + "0" * 7] * 3 + ["001", "00000", "00000", "1111"] + ["000"] * 3 + ["001"] * 16
    parts += [f"{length:04b}" for length in lengths]
    return bytes([int(octet, 2) for octet in re.findall("." * 8, "".join(parts))]).translate(_REVERSED)


def _new_inflate() -> Callable[[bytes, int], bytes]:
    stream = zlib.decompressobj(-9)
    stream.decompress(_deflate_head())
    return stream.decompress


_inflate = _new_inflate()
"""One stream, of one block, for all that this process decodes: between two strings it is at the begin of a code."""


def decode(data: bytes) -> bytes:
    """The octets that `data` stands for.

    Raises:
        HpackError: EOS inside, or padding that is longer than seven bits or not the begin of EOS.
    """
    if len(data) >= _FEW and not (0xFF in data and _fifteen_ones(data)):
        return _inflated(data)
    texts: list[bytes] = []
    row = _ROOT
    try:
        for octet in data:
            text, row = row[octet]
            texts.append(text)
    except IndexError:
        _fill_on_the_way(data)
        return decode(data)
    if id(row) not in _PADDING:
        raise HpackError(_WRONG)
    return b"".join(texts)


def _inflated(data: bytes) -> bytes:
    global _inflate
    text = _inflate(data.translate(_REVERSED) + _STOP, 2 * len(data) + 4)
    if text[-3:] not in _STOPPED:
        _inflate = _new_inflate()
        raise HpackError(_WRONG)
    return text[:-3]


decode_name = lru_cache(_NAMES)(decode)
"""The same for strings that come again and again, which must not be long."""


def is_plain(data: bytes) -> bool:
    """Whether `decode` would give visible ASCII and nothing else, not even blanks."""
    way = _START
    try:
        for octet in data:
            way = way[octet]
    except IndexError:
        _fill_on_the_way(data)
        return is_plain(data)
    return id(way) in _ENDS


def _fill_on_the_way(data: bytes) -> None:
    """Fills the rows that `data` leads to."""
    row = _ROOT
    for octet in data:
        if not row:
            _fill(row)
        _, row = row[octet]


def _fill(row: Row) -> None:
    place = next(place for place, known in _ROWS.items() if known is row)
    ways = [(b"", place)]
    for _ in range(8):
        ways = [_step(text, place, bit) for text, place in ways for bit in "01"]
    row[:] = [(text, _ROWS[to]) for text, to in ways]
    if place != _BROKEN_PLACE:
        _WAYS[place][:] = [_WAYS[to if _visible(text) else _BROKEN_PLACE] for text, to in ways]


def _step(text: bytes, place: str, bit: str) -> tuple[bytes, str]:
    """What is complete, and where one is, a bit further on."""
    if place == _BROKEN_PLACE:
        return text, place
    bits = place + bit
    symbol = _SYMBOLS.get(bits)
    if symbol is not None:
        return text + symbol, _ROOT_PLACE
    return text, bits if bits in _ROWS else _BROKEN_PLACE
