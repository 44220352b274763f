"""The package `hpack` is the second opinion on RFC 7541: both take the same blocks, as the same fields and table."""

from __future__ import annotations

from dataclasses import dataclass

import hpack
import pytest
from hpack.huffman import HuffmanEncoder
from hpack.huffman_constants import REQUEST_CODES, REQUEST_CODES_LENGTH
from hpack.huffman_table import decode_huffman
from hypothesis import given
from hypothesis import strategies as st

from server.transport.http2 import huffman
from server.transport.http2.hpack import Decoder, Field, HeaderListTooLarge, HpackError
from server.transport.http2.hpack_encode import encode
from server.transport.http2.static_table import STATIC_TABLE

"""A busy machine is no failure of a codec."""

LIMIT = 1 << 30

TEXTS = st.one_of(
    st.sampled_from(
        [b"", b"0", b"gzip", b"application/grpc", b"00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"]
    ),
    st.binary(max_size=40),
    st.binary(min_size=1, max_size=3).map(lambda text: text * 60),
)
NAMES = st.one_of(
    st.sampled_from(sorted({name for name, _ in STATIC_TABLE})), st.sampled_from([b"a", b"b", b"c"]), TEXTS
)
FIELDS = st.one_of(st.sampled_from(STATIC_TABLE), st.tuples(NAMES, TEXTS))

SIZES = st.lists(st.sampled_from([0, 33, 34, 100, 500, 4095, 4096, 9000]), max_size=2, unique=True).map(sorted)
"""Sizes of the table since the last block: the smallest and the last, as section 4.2 wants them told."""


@dataclass(frozen=True)
class Block:
    """What an encoder does next."""

    fields: list[Field]
    sensitive: bool
    """Fields as literals that are never indexed."""
    coded: bool
    """Huffman code."""
    sizes: list[int]
    told: bool
    """The sizes are new limits in SETTINGS; else the encoder's own choice, within the limit."""


BLOCKS = st.lists(
    st.builds(
        Block,
        st.lists(FIELDS, max_size=8),
        st.sampled_from([False, False, True]),
        st.booleans(),
        st.one_of(st.just([]), SIZES),
        st.booleans(),
    ),
    min_size=1,
    max_size=8,
)


class Connection:
    """An encoder of `hpack`, and both decoders."""

    def __init__(self) -> None:
        self.encoder = hpack.Encoder()
        self.ours = Decoder()
        self.theirs = hpack.Decoder(max_header_list_size=LIMIT)
        self.limit = 4096

    def write(self, block: Block) -> bytes:
        for size in block.sizes:
            if block.told:
                self.limit = size
                self.ours.set_max_table_size(size)
                self.theirs.max_allowed_table_size = size
            if size <= self.limit and size != self.encoder.header_table_size:
                self.encoder.header_table_size = size
        return self.encoder.encode([(*field, block.sensitive) for field in block.fields], block.coded)

    def tables_agree(self) -> bool:
        return dynamic_table(self.ours) == [*self.theirs.header_table.dynamic_entries]


def dynamic_table(decoder: Decoder) -> list[Field]:
    """The entries as a peer sees them, by their indices from 62 on, which stand in two octets or three."""
    entries: list[Field] = []
    while True:
        index = 62 + len(entries)
        more = index - 127
        octets = [0x80 | index] if more < 0 else [0xFF, more] if more < 128 else [0xFF, 0x80 | more % 128, more // 128]
        try:
            entries += decoder.decode(bytes(octets), LIMIT)
        except HpackError:
            return entries


def ours_of(decoder: Decoder, block: bytes) -> list[Field] | None:
    """The fields, or None where the block is refused."""
    try:
        return decoder.decode(block, LIMIT)
    except HpackError:
        return None


def theirs_of(decoder: hpack.Decoder, block: bytes) -> list[Field] | None:
    try:
        return [(name, value) for name, value in decoder.decode(block, raw=True)]
    except hpack.HPACKError:
        return None


def size_updates(block: bytes) -> int:
    """How many updates the block starts with, as far as their octets go."""
    count = position = 0
    while position < len(block) and block[position] & 0xE0 == 0x20:
        more = block[position] & 0x1F == 0x1F
        position += 1
        while more and position < len(block):
            more = block[position] >= 0x80
            position += 1
        count += 1
    return count


def agree(blocks: list[bytes], connection: Connection | None = None) -> None:
    """Both decoders say the same of each block, up to the first that is refused.

    One difference is meant: section 4.2 needs two size updates at most, and we take no more.
    """
    connection = connection or Connection()
    for block in blocks:
        ours = ours_of(connection.ours, block)
        if size_updates(block) > 2:
            assert ours is None
            return
        assert ours == theirs_of(connection.theirs, block)
        if ours is None:
            return
        assert connection.tables_agree()


@given(BLOCKS)
def test_what_an_encoder_writes_on_a_connection_is_decoded_to_the_same(blocks: list[Block]) -> None:
    """With and without Huffman code, indexing and changes of size: the fields that went in, and the encoder's table."""
    connection = Connection()
    for block in blocks:
        written = connection.write(block)

        assert connection.ours.decode(written, LIMIT) == block.fields
        assert theirs_of(connection.theirs, written) == block.fields
        assert dynamic_table(connection.ours) == [*connection.encoder.header_table.dynamic_entries]


@given(BLOCKS)
def test_a_block_that_changes_no_table_means_the_same_again(blocks: list[Block]) -> None:
    """As long as `insertions` is what it was, the bytes of a block tell its fields."""
    connection = Connection()
    known: dict[tuple[int, bytes], list[Field]] = {}
    for block in [*blocks, *blocks]:
        written = connection.write(block)
        before = connection.ours.insertions
        read = connection.ours.decode(written, LIMIT)
        if connection.ours.insertions == before:
            assert known.setdefault((before, written), read) == read


@given(BLOCKS, st.integers(0, 2000), st.integers(1, 60))
def test_a_refused_list_leaves_the_same_table(blocks: list[Block], max_list_size: int, times: int) -> None:
    """Whatever the limit: the fields that fit, or their size; and the table of a decoder without a limit."""
    connection = Connection()
    limited = Decoder()
    for block in blocks:
        for size in block.sizes if block.told else ():
            limited.set_max_table_size(size)
        written = connection.write(Block(block.fields * times, block.sensitive, block.coded, block.sizes, block.told))
        whole = connection.ours.decode(written, LIMIT)
        whole_size = sum(len(name) + len(value) + 32 for name, value in whole)
        if whole_size <= max_list_size:
            assert limited.decode(written, max_list_size) == whole
        else:
            with pytest.raises(HeaderListTooLarge) as refused:
                limited.decode(written, max_list_size)
            assert (refused.value.size, refused.value.limit) == (whole_size, max_list_size)

        assert dynamic_table(limited) == dynamic_table(connection.ours)
        assert limited.insertions == connection.ours.insertions


@given(st.lists(st.binary(max_size=60), min_size=1, max_size=4))
def test_random_bytes_are_taken_or_refused_alike(blocks: list[bytes]) -> None:
    """Nothing but an `HpackError` comes of them."""
    agree(blocks)


@st.composite
def strings(draw: st.DrawFn) -> bytes:
    """Strings as they stand in a block: mostly right, some with another length or with bad Huffman code."""
    text = draw(TEXTS)
    coded = draw(st.booleans())
    if coded and draw(st.integers(0, 4)):
        text = huffman.encode(text)
    length = max(0, min(126, len(text) + draw(st.sampled_from([0] * 12 + [-1, 1, 200]))))
    return bytes([0x80 * coded | length]) + text[:126]


REPRESENTATIONS = st.one_of(
    st.integers(0x80, 0xFF).map(lambda octet: bytes([octet])),
    st.tuples(st.sampled_from([b"\x40", b"\x00", b"\x10"]), strings(), strings()).map(b"".join),
    st.tuples(st.integers(0x00, 0x7F).map(lambda octet: bytes([octet])), strings()).map(b"".join),
    st.tuples(st.sampled_from([b"\xff", b"\x7f", b"\x0f", b"\x1f", b"\x3f"]), st.binary(max_size=6), strings()).map(
        b"".join
    ),
    st.integers(0x20, 0x3F).map(lambda octet: bytes([octet])),
)


@given(st.lists(st.lists(REPRESENTATIONS, max_size=6).map(b"".join), min_size=1, max_size=5))
def test_random_representations_are_taken_or_refused_alike(blocks: list[bytes]) -> None:
    """Bytes that look like fields get further than random ones."""
    agree(blocks)


@st.composite
def mutations(draw: st.DrawFn, block: bytes) -> bytes:
    """The block with some octets changed, dropped, put in or doubled."""
    octets = bytearray(block)
    for _ in range(draw(st.integers(1, 3))):
        start = draw(st.integers(0, len(octets)))
        end = draw(st.integers(start, min(len(octets), start + 4)))
        octets[start:end] = draw(st.one_of(st.binary(max_size=3), st.just(bytes(octets[start:end]) * 2)))
    return bytes(octets)


@given(BLOCKS, st.data())
def test_mutated_blocks_are_taken_or_refused_alike(blocks: list[Block], data: st.DataObject) -> None:
    """A connection that went well, and then one block that is not what an encoder wrote."""
    connection = Connection()
    for block in blocks[:-1]:
        written = connection.write(block)
        connection.ours.decode(written, LIMIT)
        theirs_of(connection.theirs, written)
    last = Block(blocks[-1].fields, blocks[-1].sensitive, blocks[-1].coded, [], told=False)
    agree([data.draw(mutations(connection.write(last)))], connection)


@given(st.lists(FIELDS, max_size=12))
def test_what_we_encode_is_decoded_to_the_same_and_enters_no_table(fields: list[Field]) -> None:
    """Any names and values, of any length."""
    theirs = hpack.Decoder(max_header_list_size=LIMIT)

    assert theirs_of(theirs, encode(fields)) == fields
    assert not theirs.header_table.dynamic_entries


RUNS_OF_ONES = st.lists(st.sampled_from([0xFF, 0x7F, 0xFE, 0x3F, 0xFC, 0x01, 0x80, 0xF8, 0x00]), max_size=40).map(bytes)
VISIBLE = st.binary(min_size=10, max_size=60).map(lambda text: bytes(0x21 + octet % 0x5E for octet in text))
CODED = st.one_of(TEXTS, VISIBLE).map(huffman.encode)


@given(st.one_of(st.binary(max_size=60), RUNS_OF_ONES, st.tuples(CODED, st.binary(max_size=5)).map(b"".join)))
def test_huffman_code_is_decoded_or_refused_alike(data: bytes) -> None:
    """Random octets, runs of ones at any place of an octet, and a good string with something behind it."""
    try:
        ours = huffman.decode(data)
    except HpackError:
        ours = None
    try:
        theirs = decode_huffman(data)
    except hpack.HPACKError:
        theirs = None

    assert ours == theirs


@given(st.binary(max_size=300))
def test_huffman_code_is_written_alike(text: bytes) -> None:
    """And read back to the same."""
    assert huffman.encode(text) == HuffmanEncoder(REQUEST_CODES, REQUEST_CODES_LENGTH).encode(text)
    assert huffman.decode(huffman.encode(text)) == text
