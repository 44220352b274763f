"""What is remembered of header blocks says the same as reading each of them anew."""

from __future__ import annotations

from dataclasses import dataclass

import hpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.transport.http2 import huffman
from server.transport.http2.fields import VARYING, check_request
from server.transport.http2.frames import StreamFault
from server.transport.http2.heads import Heads
from server.transport.http2.hpack import Decoder, Field, HpackError
from server.transport.http2.hpack_encode import encode
from tests.support.header_blocks import KNOWN_METHODS, read_anew, said, table

"""A busy machine is no failure."""

MAX_LIST_BYTES = 700
"""So small that values of a few hundred bytes are over it."""

REQUEST = [
    (b":method", b"POST"),
    (b":scheme", b"http"),
    (b":path", b"/inference.GRPCInferenceService/ModelInfer"),
    (b"te", b"trailers"),
    (b"content-type", b"application/grpc"),
]
INSERTED = 0x40
HEX = st.text("0123456789abcdef", min_size=8, max_size=40).map(str.encode)
TIMEOUTS = st.one_of(*[st.integers(1, 10**8 - 1).map(lambda number: b"%du" % number)] * 6, st.sampled_from([b"", b"5"]))
ODD = st.one_of(
    st.sampled_from([b"", b" a", b"a ", b"a b", b"a\nb", b"\0", b"{a}", b"\xff", b"<" * 30, b"0" * 400]),
    st.binary(max_size=4),
)
VALUES = st.one_of(*[HEX] * 8, ODD)


def integer(value: int, largest: int, pattern: int) -> bytes:
    """RFC 7541 section 5.1, for what two octets hold."""
    return bytes([pattern | value]) if value < largest else bytes([pattern | largest, value - largest])


@dataclass(frozen=True)
class Literal:
    """How a field is written that is not among the others: by which representation, in Huffman code or not."""

    name: bytes
    pattern: int
    coded: bool

    def write(self, value: bytes) -> bytes:
        return bytes([self.pattern]) + self._string(self.name) + self._string(value)

    def _string(self, text: bytes) -> bytes:
        text = huffman.encode(text) if self.coded else text
        head = integer(min(len(text), 0x7F + 0x7F), 0x7F, 0x80 * self.coded)
        return head + text[: 0x7F + 0x7F]


NAMES = st.sampled_from([b"traceparent", b"baggage", b"x-request-id", b"x-other", b"grpc-timeout"])
LITERALS = st.builds(Literal, NAMES, st.sampled_from([0x00] * 4 + [0x10, INSERTED]), st.booleans())
TIMEOUT = st.builds(Literal, st.just(b"grpc-timeout"), st.sampled_from([0x00, 0x10]), st.booleans())
SHAPES = st.tuples(
    st.tuples(TIMEOUT, st.lists(LITERALS, max_size=2)).map(lambda parts: [parts[0], *parts[1]]),
    st.sampled_from([5, 5, 5, 4, 2]),
)
"""The literals of a request, and before which of the other fields the first of them stands: 5 is behind all."""


@dataclass(frozen=True)
class Step:
    """What a client sends next: which of its shapes, with which values, and a new size of its table if it has one."""

    shape: int
    timeout: bytes
    values: list[bytes]
    table_bytes: int | None


STEPS = st.lists(
    st.builds(
        Step,
        st.sampled_from([0, 0, 1]),
        TIMEOUTS,
        st.lists(VALUES, min_size=3, max_size=3),
        st.sampled_from([None] * 30 + [0, 60, 4096]),
    ),
    min_size=4,
    max_size=14,
)
DAMAGE = st.one_of(st.none(), st.tuples(st.integers(0, 80), st.integers(-1, 255)))
"""Of a block's octets one is replaced, or (-1) those from there on are cut off."""


class Client:
    """Writes what its steps say, and keeps the table that goes with it."""

    def __init__(self) -> None:
        self.encoder = hpack.Encoder()

    def write(self, step: Step, shape: tuple[list[Literal], int]) -> bytes:
        literals, at = shape
        if step.table_bytes is not None:
            self.encoder.header_table_size = step.table_bytes
        written = [self.encoder.encode([field]) for field in REQUEST[:at]]
        for literal, value in zip(literals, step.values, strict=False):
            written.append(self._more(literal, step.timeout if literal.name == b"grpc-timeout" else value))
        written += [self.encoder.encode([field]) for field in REQUEST[at:]]
        return b"".join(written)

    def _more(self, literal: Literal, value: bytes) -> bytes:
        if literal.pattern != INSERTED:
            return literal.write(value)
        written = self.encoder.encode([(literal.name, value)], literal.coded)
        assert isinstance(written, bytes)
        return written


def damaged(block: bytes, where: int, octet: int) -> bytes:
    return block[:where] + (bytes([octet]) + block[where + 1 :] if octet >= 0 else b"")


@given(st.lists(SHAPES, min_size=2, max_size=2), STEPS, DAMAGE)
def test_a_block_says_what_it_would_say_to_somebody_who_has_seen_no_other(
    shapes: list[tuple[list[Literal], int]], steps: list[Step], damage: tuple[int, int] | None
) -> None:
    """Whatever came before it: inserts, evictions, size updates, other values; damaged or not. Faults are the same
    too, and so is the table."""
    client, ours, anew = Client(), Decoder(), Decoder()
    heads = Heads(ours, KNOWN_METHODS, MAX_LIST_BYTES)
    blocks = [client.write(step, shapes[step.shape]) for step in [*steps, *steps]]
    for block in [*blocks[:-1], damaged(blocks[-1], *damage) if damage is not None else blocks[-1]]:
        wanted: object
        got: object
        try:
            opening = read_anew(anew, block, MAX_LIST_BYTES)
            wanted = "too large" if opening is None else said(opening)
        except (HpackError, StreamFault) as error:
            wanted = type(error), str(error)
        try:
            opening = heads.known.get(block) or heads.read(block)
            refusal = opening[0].refusal
            got = "too large" if refusal is not None and b"header list" in refusal else said(opening)
        except (HpackError, StreamFault) as error:
            got = type(error), str(error)

        assert got == wanted
        if isinstance(wanted, tuple) and wanted[0] is HpackError:
            return
        assert table(ours) == table(anew)


def test_values_that_vary_are_not_decoded_in_a_block_of_a_known_pattern() -> None:
    """The third of a kind is matched by its bytes; a value that is not all visible ASCII is decoded all the same."""
    decoder = _Counting()
    heads = Heads(decoder, KNOWN_METHODS, 16_384)
    encoder = hpack.Encoder()

    def block(timeout: bytes, trace: bytes) -> bytes:
        encoded = encoder.encode([*REQUEST, (b"grpc-timeout", timeout, True), (b"traceparent", trace, True)])
        assert isinstance(encoded, bytes)
        return encoded

    for number in range(4):
        heads.read(block(b"%dm" % number, b"00-%032x" % number))
    decoder.blocks = 0

    assert heads.read(block(b"7S", b"00-abcdef"))[1] == 7_000_000_000
    assert decoder.blocks == 0
    assert heads.read(block(b"8S", b"00 abcdef"))[1] == 8_000_000_000
    assert decoder.blocks == 1


def test_a_block_that_comes_twice_in_a_row_is_known_by_its_bytes() -> None:
    """Of a known pattern too; others of the pattern are not kept."""
    heads = Heads(Decoder(), KNOWN_METHODS, 16_384)
    start, timeout = encode(REQUEST), Literal(b"grpc-timeout", 0x00, coded=True)
    blocks = [start + timeout.write(b"%dm" % number) for number in range(6)]
    for block in [*blocks, blocks[-1]]:
        heads.read(block)

    assert list(heads.known) == blocks[-1:]
    assert heads.known[blocks[-1]][1] == 5_000_000


def test_values_too_long_for_a_pattern_leave_room_for_others() -> None:
    """There are few patterns, and one that no block is found to be of is not kept."""
    decoder = _Counting()
    heads = Heads(decoder, KNOWN_METHODS, 16_384)
    start, trace = encode(REQUEST), Literal(b"traceparent", 0x00, coded=False)
    for number in range(20):
        heads.read(start + trace.write(b"%0150d" % number))
    heads.read(start + trace.write(b"00-abc"))
    decoder.blocks = 0

    heads.read(start + trace.write(b"00-abcdef"))
    assert decoder.blocks == 0

    timeout = Literal(b"grpc-timeout", 0x00, coded=False)
    for number in range(1, 3):
        heads.read(start + timeout.write(b"%dm" % number))
    decoder.blocks = 0
    heads.read(start + timeout.write(b"3m"))
    assert decoder.blocks == 0


@pytest.mark.parametrize("name", [b"grpc-timeout", b"baggage"])
def test_clients_that_take_turns_are_told_apart(name: bytes) -> None:
    """Behind a proxy many share a connection: more of them than there are patterns, each with a tenant of its own."""
    heads = Heads(Decoder(), KNOWN_METHODS, 16_384)
    varying, tenant = Literal(name, 0x00, coded=True), Literal(b"x-tenant", 0x00, coded=False)
    for turn in range(1, 6):
        for client in range(20):
            for behind in (False, True):
                fields = [varying.write(b"%dm" % turn), tenant.write(b"%d" % client)]
                head, timeout_ns = heads.read(encode(REQUEST) + b"".join(fields[::-1] if behind else fields))
                assert head.tenant == str(client)
                assert timeout_ns == (turn * 1_000_000 if name == b"grpc-timeout" else 0)


def test_a_list_over_the_limit_is_found_in_a_block_of_a_known_pattern() -> None:
    """What is not decoded counts all the same."""
    heads = Heads(Decoder(), KNOWN_METHODS, 500)
    trace = Literal(b"traceparent", 0x00, coded=True)
    start = hpack.Encoder().encode([(*field, True) for field in REQUEST])
    for size in (20, 21, 22, 23):
        assert heads.read(start + trace.write(b"0" * size))[0].refusal is None

    refusal = heads.read(start + trace.write(b"0" * 200))[0].refusal
    assert refusal is not None
    assert b"header list" in refusal


def reads(heads: Heads, block: bytes) -> object:
    """The opening's values, "too large", or the fault's text."""
    try:
        opening = heads.known.get(block) or heads.read(block)
    except (HpackError, StreamFault) as error:
        return str(error)
    refusal = opening[0].refusal
    return "too large" if refusal is not None and b"header list" in refusal else said(opening)


def zeros(size: int, coded: bool) -> bytes:
    """A value of so many octets: a zero is one octet, or five bits."""
    return huffman.encode(b"0" * (size * 8 // 5)) if coded else b"0" * size


@pytest.mark.parametrize(
    ("seen", "coded"),
    [
        *[pytest.param(bytes([more]) + zeros(126, False), False, id=f"plain {more}") for more in range(0x25, 0x7F, 5)],
        *[
            pytest.param(seen, True, id=f"Huffman-coded {seen[0]}")
            for letter in b"13579abcdeghilmt"
            if len(seen := huffman.encode(bytes([letter]) + b"0" * 202)) == 127 and seen[0] > 0x24
        ],
    ],
)
def test_a_value_of_over_126_octets_is_not_of_a_pattern(seen: bytes, coded: bool) -> None:
    """Its length goes on in the octets behind the first (RFC 7541 section 5.1). Whoever took it for one of 127 octets,
    as what is `seen` would be, would find behind them the fields that follow in the pattern, a deadline among them."""
    heads, anew = (Heads(Decoder(), KNOWN_METHODS, 16_384) for _ in range(2))
    start, coding = encode(REQUEST), 0x80 * coded
    first, second, timeout = b"\0\x0btraceparent", b"\0\x07baggage", b"\0\x0cgrpc-timeout"

    def field(name: bytes, size: int) -> bytes:
        return name + bytes([coding | size]) + zeros(size, coded)

    for size in (5, 10, 15, 20):
        assert isinstance(reads(heads, start + field(first, size) + field(second, size) + timeout + b"\x025S"), list)
    more, behind = seen[0], timeout + b"\x029S"
    rest = seen[1:] + field(second, more + 1 - len(second) - 1 - len(behind)) + behind
    assert len(rest) == 127 + more
    block = start + first + bytes([coding | 0x7F, more]) + rest
    assert reads(heads, block) == reads(anew, block)


TRACES = sorted(VARYING - {b"grpc-timeout"})[:6]


@pytest.mark.parametrize("less", range(-3, 4))
@pytest.mark.parametrize("size", [1, 8, 40, 120, 200])
def test_the_limit_of_a_list_is_the_same_for_blocks_of_a_known_pattern(less: int, size: int) -> None:
    """To the octet: Huffman code makes five octets of eight at best, so a short block may be a long list. The names are
    in the dynamic table, so that hardly any octet of the block is not of a value."""
    fields = [*REQUEST, *((name, b"0" * size) for name in TRACES)]
    limit = sum(len(name) + len(value) + 32 for name, value in fields) - less
    ours, anew = Decoder(), Decoder()
    heads, other = Heads(ours, KNOWN_METHODS, limit), Heads(anew, KNOWN_METHODS, limit)
    encoder = hpack.Encoder()
    inserting = encoder.encode([*REQUEST, *((name, b"0") for name in TRACES)])
    for each in (heads, other):
        reads(each, inserting)
    head = encoder.encode(REQUEST)
    # Latest first: the last of the names has the index 62.
    indices = [62 + place for place in range(len(TRACES))][::-1]

    def block(length: int) -> bytes:
        value = huffman.encode(b"0" * length)
        return head + b"".join(integer(index, 0x0F, 0) + integer(len(value), 0x7F, 0x80) + value for index in indices)

    for length in (0, 1, 2, 3):
        reads(heads, block(length))
    assert reads(heads, block(size)) == reads(other, block(size)), (less, size)
    assert (reads(other, block(size)) == "too large") == (less > 0)


class _Counting(Decoder):
    blocks = 0

    def decode(self, block: bytes, max_list_size: int) -> list[Field]:
        self.blocks += 1
        return super().decode(block, max_list_size)


@given(st.one_of(st.binary(max_size=60), VALUES.map(huffman.encode)))
def test_a_string_is_plain_if_it_decodes_to_visible_ascii(data: bytes) -> None:
    """Wrong code is not plain, nor are blanks."""
    try:
        text = huffman.decode(data)
        plain = all(0x21 <= octet <= 0x7E for octet in text)
    except HpackError:
        plain = False

    assert huffman.is_plain(data) == plain


def test_names_that_vary_are_ordinary_fields() -> None:
    """An outline leaves them out: nothing that is read, but for the deadline, may be among them."""
    for name in VARYING:
        check_request([*REQUEST, (name, b"1")])
