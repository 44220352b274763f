"""RFC 7541, rule by rule: each test is named by the section that has the rule."""

from __future__ import annotations

import tracemalloc
from itertools import pairwise

import pytest

from server.transport.http2 import huffman
from server.transport.http2.hpack import Decoder, Field, HeaderListTooLarge, HpackError
from server.transport.http2.hpack_encode import encode
from server.transport.http2.static_table import STATIC_TABLE

LIMIT = 1 << 20
"""A list size that no test reaches by chance, in bytes."""


def integer(value: int, bits: int, pattern: int = 0) -> bytes:
    """Section 5.1, written down a second time: `value` in a prefix of `bits`, below the bits of `pattern`."""
    largest = (1 << bits) - 1
    if value < largest:
        return bytes([pattern | value])
    value -= largest
    octets = [pattern | largest]
    while value > 127:
        octets.append(128 + value % 128)
        value //= 128
    return bytes([*octets, value])


def string(text: bytes) -> bytes:
    return integer(len(text), 7) + text


def inserted(name: bytes, value: bytes) -> bytes:
    """A literal with incremental indexing and a new name."""
    return b"\x40" + string(name) + string(value)


def size_update(size: int) -> bytes:
    return integer(size, 5, 0x20)


def decode(block: bytes, decoder: Decoder | None = None) -> list[Field]:
    return (decoder or Decoder()).decode(block, LIMIT)


def dynamic_table(decoder: Decoder) -> list[Field]:
    """The entries, newest first, as a peer sees them: by their indices."""
    entries: list[Field] = []
    while True:
        try:
            entries += decode(integer(62 + len(entries), 7, 0x80), decoder)
        except HpackError:
            return entries


def table_size(decoder: Decoder) -> int:
    return sum(len(name) + len(value) + 32 for name, value in dynamic_table(decoder))


def fields(text: str) -> list[Field]:
    """A list as appendix C prints it."""
    return [
        (f":{name}".encode() if colon else name.encode(), value.encode())
        for colon, name, value in map(_cut, _lines(text))
    ]


def _lines(text: str) -> list[str]:
    return [line.strip() for line in text.strip().splitlines()]


def _cut(line: str) -> tuple[bool, str, str]:
    name, _, value = line.removeprefix(":").partition(": ")
    return line.startswith(":"), name, value


# The lists of C.5 and C.6, then those of C.3 and C.4.
ANSWER_1 = fields("""
    :status: 302
    cache-control: private
    date: Mon, 21 Oct 2013 20:13:21 GMT
    location: https://www.example.com
""")
ANSWER_2 = [(b":status", b"307"), *ANSWER_1[1:]]
ANSWER_3 = fields("""
    :status: 200
    cache-control: private
    date: Mon, 21 Oct 2013 20:13:22 GMT
    location: https://www.example.com
    content-encoding: gzip
    set-cookie: foo=ASDJKHQKBZXOQWEOPIUAXQWEOIU; max-age=3600; version=1
""")
GET = fields("""
    :method: GET
    :scheme: http
    :path: /
    :authority: www.example.com
""")
AUTHORITY = (b":authority", b"www.example.com")
NO_CACHE = (b"cache-control", b"no-cache")
CUSTOM = (b"custom-key", b"custom-value")
HTTPS = fields("""
    :method: GET
    :scheme: https
    :path: /index.html
    :authority: www.example.com
    custom-key: custom-value
""")

# Block, its fields, the dynamic table after it and its size.
C_3 = [
    ("828684410f7777772e6578616d706c652e636f6d", GET, [AUTHORITY], 57),
    ("828684be58086e6f2d6361636865", [*GET, NO_CACHE], [NO_CACHE, AUTHORITY], 110),
    ("828785bf400a637573746f6d2d6b65790c637573746f6d2d76616c7565", HTTPS, [CUSTOM, NO_CACHE, AUTHORITY], 164),
]
C_4 = [
    ("828684418cf1e3c2e5f23a6ba0ab90f4ff", *C_3[0][1:]),
    ("828684be5886a8eb10649cbf", *C_3[1][1:]),
    ("828785bf408825a849e95ba97d7f8925a849e95bb8e8b4bf", *C_3[2][1:]),
]
C_5 = [
    (
        "4803333032580770726976617465611d4d6f6e2c203231204f637420323031332032303a31333a323120474d54"
        "6e1768747470733a2f2f7777772e6578616d706c652e636f6d",
        ANSWER_1,
        ANSWER_1[::-1],
        222,
    ),
    ("4803333037c1c0bf", ANSWER_2, [ANSWER_2[0], *ANSWER_1[:0:-1]], 222),
    (
        "88c1611d4d6f6e2c203231204f637420323031332032303a31333a323220474d54c05a04677a69707738666f6f3d4153444a4b48514b"
        "425a584f5157454f50495541585157454f49553b206d61782d6167653d333630303b2076657273696f6e3d31",
        ANSWER_3,
        [ANSWER_3[5], ANSWER_3[4], ANSWER_3[2]],
        215,
    ),
]
C_6 = [
    (
        "488264025885aec3771a4b6196d07abe941054d444a8200595040b8166e082a62d1bff6e919d29ad171863c78f0b97c8e9ae82ae43d3",
        *C_5[0][1:],
    ),
    ("4883640effc1c0bf", *C_5[1][1:]),
    (
        "88c16196d07abe941054d444a8200595040b8166e084a62d1bffc05a839bd9ab77ad94e7821dd7f2e6c7b335dfdfcd5b3960d5af27087f"
        "3672c1ab270fb5291f9587316065c003ed4ee5b1063d5007",
        *C_5[2][1:],
    ),
]


@pytest.mark.parametrize(
    ("max_table_size", "blocks"),
    [(4096, C_3), (4096, C_4), (256, C_5), (256, C_6)],
    ids=["C.3 requests", "C.4 requests, Huffman", "C.5 responses, evictions", "C.6 responses, Huffman, evictions"],
)
def test_rfc7541_appendix_c_3_to_6(
    max_table_size: int, blocks: list[tuple[str, list[Field], list[Field], int]]
) -> None:
    """Each example's fields, and after each block the dynamic table and its size as printed."""
    decoder = Decoder(max_table_size)
    for block, expected, table, size in blocks:
        assert decode(bytes.fromhex(block), decoder) == expected
        assert dynamic_table(decoder) == table
        assert table_size(decoder) == size


@pytest.mark.parametrize(
    ("block", "field", "size"),
    [
        ("400a637573746f6d2d6b65790d637573746f6d2d686561646572", (b"custom-key", b"custom-header"), 55),
        ("040c2f73616d706c652f70617468", (b":path", b"/sample/path"), 0),
        ("100870617373776f726406736563726574", (b"password", b"secret"), 0),
        ("82", (b":method", b"GET"), 0),
    ],
    ids=["C.2.1 with indexing", "C.2.2 without indexing", "C.2.3 never indexed", "C.2.4 indexed"],
)
def test_rfc7541_appendix_c_2(block: str, field: Field, size: int) -> None:
    """Each representation by itself: only the one with incremental indexing goes into the table."""
    decoder = Decoder()

    assert decode(bytes.fromhex(block), decoder) == [field]
    assert table_size(decoder) == size


@pytest.mark.parametrize(("octets", "value"), [("2a", 10), ("3f9a0a", 1337)], ids=["C.1.1", "C.1.2"])
def test_rfc7541_appendix_c_1_integers(octets: str, value: int) -> None:
    """Integers in a prefix of five bits, as sizes: taken when the limit is their value, refused when it is one less."""
    assert decode(bytes.fromhex(octets), Decoder(value)) == []
    with pytest.raises(HpackError, match=f"{value} bytes"):
        decode(bytes.fromhex(octets), Decoder(value - 1))


def test_rfc7541_appendix_a_the_static_table() -> None:
    """61 entries, each by its index; some by name, as anchors against a shift."""
    decoder = Decoder()

    assert [decode(integer(index, 7, 0x80), decoder)[0] for index in range(1, 62)] == list(STATIC_TABLE)
    assert len(set(STATIC_TABLE)) == 61
    anchors = {2: (b":method", b"GET"), 8: (b":status", b"200"), 16: (b"accept-encoding", b"gzip, deflate")}
    anchors |= {31: (b"content-type", b""), 58: (b"user-agent", b""), 61: (b"www-authenticate", b"")}
    assert {index: STATIC_TABLE[index - 1] for index in anchors} == anchors


def test_rfc7541_2_3_2_newest_entry_has_the_lowest_index() -> None:
    """The dynamic table is first in, first out; duplicates are allowed."""
    decoder = Decoder()
    decode(inserted(b"a", b"1") + inserted(b"b", b"2") + inserted(b"a", b"1"), decoder)

    assert dynamic_table(decoder) == [(b"a", b"1"), (b"b", b"2"), (b"a", b"1")]


def test_rfc7541_2_3_3_one_address_space_past_the_first_prefix() -> None:
    """Static and dynamic entries share the indices, also where an index takes two or three octets."""
    decoder = Decoder()
    decode(b"".join(inserted(b"n%d" % number, b"") for number in range(100)), decoder)

    assert decode(b"\xff\x00", decoder) == [(b"n34", b"")]  # 127: the 66th newest
    assert decode(integer(161, 7, 0x80), decoder) == [(b"n0", b"")]
    assert decode(integer(161, 6, 0x40) + string(b"v"), decoder) == [(b"n0", b"v")]
    assert decode(integer(62, 4, 0x00) + string(b"w"), decoder) == [(b"n0", b"w")]


def test_rfc7541_2_3_3_names_by_index_in_every_kind_of_literal() -> None:
    """4 or 6 bits of prefix; one more octet where they are full, and two where that is full."""
    for bits, pattern in ((6, 0x40), (4, 0x00), (4, 0x10)):
        for index in (1, 14, 15, 16, 61, 62, 63, 64, 75, 142, 143, 161):
            decoder = Decoder()
            decode(b"".join(inserted(b"n%d" % number, b"") for number in range(100)), decoder)
            name = STATIC_TABLE[index - 1][0] if index < 62 else b"n%d" % (99 - (index - 62))
            assert decode(integer(index, bits, pattern) + string(b"v"), decoder) == [(name, b"v")]


@pytest.mark.parametrize(
    "block",
    [
        integer(62, 7, 0x80),
        integer(127, 7, 0x80),
        integer(10**6, 7, 0x80),
        integer(62, 6, 0x40) + b"\x00",
        integer(63, 6, 0x40) + b"\x00",
        integer(62, 4, 0x00) + b"\x00",
        integer(62, 4, 0x10) + b"\x00",
        integer(10**6, 4, 0x10) + b"\x00",
    ],
    ids=bytes.hex,
)
def test_rfc7541_2_3_3_an_index_beyond_both_tables_is_an_error(block: bytes) -> None:
    """Whatever the representation, and however the index is written."""
    with pytest.raises(HpackError, match="index beyond the tables"):
        decode(block)


@pytest.mark.parametrize("block", [b"\x80", b"\x82\x80"], ids=["alone", "after a field"])
def test_rfc7541_6_1_index_zero_is_an_error(block: bytes) -> None:
    """Index 0 of an indexed field names nothing."""
    with pytest.raises(HpackError, match="index 0"):
        decode(block)


def test_rfc7541_3_2_fields_keep_their_order_and_duplicates() -> None:
    """A list is ordered, and a name may come twice."""
    block = b"\x84\x82\x84" + inserted(b"a", b"2") + inserted(b"a", b"1")

    assert decode(block) == [(b":path", b"/"), (b":method", b"GET"), (b":path", b"/"), (b"a", b"2"), (b"a", b"1")]


def test_rfc7541_3_2_an_empty_block_is_an_empty_list() -> None:
    """Trailers may be empty."""
    assert decode(b"") == []


def test_rfc7541_4_1_an_entry_counts_its_octets_and_32_more() -> None:
    """A table of 2 * 34 bytes holds two entries of a letter each, and no third."""
    decoder = Decoder(68)
    decode(inserted(b"a", b"1") + inserted(b"b", b"2"), decoder)
    assert dynamic_table(decoder) == [(b"b", b"2"), (b"a", b"1")]

    decode(inserted(b"c", b"3"), decoder)
    assert dynamic_table(decoder) == [(b"c", b"3"), (b"b", b"2")]


def test_rfc7541_4_1_huffman_coded_strings_count_decoded() -> None:
    """The size is that of the strings without Huffman code."""
    coded = huffman.encode(b"0" * 16)
    assert len(coded) == 10
    decoder = Decoder(32 + 16 + 1 + 34 - 1)
    decode(inserted(b"a", b"1") + b"\x40" + string(b"n") + integer(len(coded), 7, 0x80) + coded, decoder)

    assert dynamic_table(decoder) == [(b"n", b"0" * 16)]


def test_rfc7541_4_3_a_smaller_size_evicts_the_oldest() -> None:
    """An update drops entries until the table fits, from its end."""
    decoder = Decoder()
    decode(b"".join(inserted(bytes([letter]), b"1") for letter in b"abcde"), decoder)
    decode(size_update(34 * 3 + 33), decoder)

    assert [name for name, _ in dynamic_table(decoder)] == [b"e", b"d", b"c"]


def test_rfc7541_4_3_a_size_of_zero_empties_the_table() -> None:
    """And nothing goes into it until the size grows again; fields are decoded all the same."""
    decoder = Decoder()
    decode(inserted(b"a", b"1"), decoder)

    assert decode(size_update(0) + inserted(b"b", b"2"), decoder) == [(b"b", b"2")]
    assert dynamic_table(decoder) == []
    decode(size_update(4096) + inserted(b"c", b"3"), decoder)
    assert dynamic_table(decoder) == [(b"c", b"3")]


@pytest.mark.parametrize("length", [4096 - 33, 4096 - 32], ids=["just as large", "a byte larger"])
def test_rfc7541_4_4_an_entry_larger_than_the_table_empties_it(length: int) -> None:
    """That is no error; an entry just as large as the table stands there alone."""
    decoder = Decoder()
    decode(inserted(b"a", b"1"), decoder)
    large = (b"n", b"v" * length)

    assert decode(inserted(*large), decoder) == [large]
    assert dynamic_table(decoder) == ([large] if length == 4096 - 33 else [])


def test_rfc7541_4_4_a_name_may_come_from_the_entry_that_is_evicted_for_it() -> None:
    """The name is looked up before the old entry goes."""
    decoder = Decoder(40)
    decode(inserted(b"name", b"old"), decoder)

    assert decode(b"\x7e" + string(b"new"), decoder) == [(b"name", b"new")]
    assert dynamic_table(decoder) == [(b"name", b"new")]


@pytest.mark.parametrize(
    "block",
    [b"\x82" + size_update(0), inserted(b"a", b"1") + size_update(100), size_update(0) + b"\x82" + size_update(4096)],
    ids=["after an indexed field", "after a literal", "second one after a field"],
)
def test_rfc7541_4_2_a_size_update_after_a_field_is_an_error(block: bytes) -> None:
    """Updates stand at the begin of a block only."""
    with pytest.raises(HpackError, match="size update after a field"):
        decode(block)


def test_rfc7541_4_2_two_size_updates_are_taken_and_a_third_is_an_error() -> None:
    """The smallest limit and the last one: more is never needed."""
    decoder = Decoder()
    decode(inserted(b"a", b"1"), decoder)

    assert decode(size_update(0) + size_update(4096) + b"\x82", decoder) == [(b":method", b"GET")]
    assert dynamic_table(decoder) == []
    with pytest.raises(HpackError, match="a third one"):
        decode(size_update(0) + size_update(1) + size_update(2), decoder)


def test_rfc7541_6_3_a_size_over_the_limit_is_an_error() -> None:
    """SETTINGS_HEADER_TABLE_SIZE is the limit, also after it changed."""
    with pytest.raises(HpackError, match="4097 bytes, SETTINGS_HEADER_TABLE_SIZE is 4096"):
        decode(size_update(4097))
    raised = Decoder()
    raised.set_max_table_size(10_000)
    assert decode(size_update(10_000), raised) == []
    with pytest.raises(HpackError, match="SETTINGS_HEADER_TABLE_SIZE is 10000"):
        decode(size_update(10_001), raised)


@pytest.mark.parametrize("block", [b"", b"\x82", size_update(101) + b"\x82"], ids=["empty", "none", "too large"])
def test_rfc7541_4_2_a_lowered_limit_wants_a_size_update(block: bytes) -> None:
    """The first block after it must start with one that keeps to the limit."""
    decoder = Decoder()
    decoder.set_max_table_size(100)

    with pytest.raises(HpackError, match="size update"):
        decode(block, decoder)


def test_rfc7541_4_2_a_lowered_limit_holds_from_the_update_on() -> None:
    """Until then the table is the peer's; then it is cut, and later blocks need no update."""
    decoder = Decoder()
    decode(inserted(b"a", b"1") + inserted(b"b", b"2"), decoder)
    decoder.set_max_table_size(34)

    assert decode(size_update(34) + b"\xbe", decoder) == [(b"b", b"2")]
    assert dynamic_table(decoder) == [(b"b", b"2")]


def test_rfc7541_4_2_the_smallest_limit_in_between_must_be_told() -> None:
    """Lowered and raised again before a block came: the entries are gone all the same, so the update is due."""
    decoder = Decoder()
    decoder.set_max_table_size(100)
    decoder.set_max_table_size(4096)
    with pytest.raises(HpackError, match="no table size update to 100 bytes or less"):
        decode(size_update(4096), decoder)

    decoder = Decoder()
    decoder.set_max_table_size(100)
    decoder.set_max_table_size(200)
    with pytest.raises(HpackError, match="no table size update to 100 bytes or less"):
        decode(size_update(200), decoder)

    decoder = Decoder()
    decode(inserted(b"a", b"1"), decoder)
    decoder.set_max_table_size(0)
    decoder.set_max_table_size(100)
    assert decode(size_update(0) + size_update(100) + inserted(b"b", b"2"), decoder) == [(b"b", b"2")]
    assert dynamic_table(decoder) == [(b"b", b"2")]


def test_rfc7541_4_2_no_update_is_due_where_the_peer_uses_less_already() -> None:
    """Lowering the limit to what the peer keeps to, or raising it, changes nothing for it."""
    decoder = Decoder()
    decode(size_update(50), decoder)
    decoder.set_max_table_size(50)
    assert decode(b"\x82", decoder) == [(b":method", b"GET")]
    decoder.set_max_table_size(8192)
    assert decode(inserted(b"a", b"1") + inserted(b"b", b"2"), decoder)

    assert dynamic_table(decoder) == [(b"b", b"2")]


@pytest.mark.parametrize("start", [b"\xff", b"\x7f", b"\x0f", b"\x1f", b"\x3f", b"\x00\x7f", b"\x00\xff", b"\x01\x7f"])
def test_rfc7541_5_1_integers_that_are_too_long_or_too_large_are_errors(start: bytes) -> None:
    """At most five octets after the prefix and 32 bits, in every place where an integer may stand."""
    for octets in (b"\x80" * 5 + b"\x00", b"\xff" * 5 + b"\x7f", b"\xff\xff\xff\xff\x7f", b"\x80" * 100_000):
        with pytest.raises(HpackError, match="an integer over"):
            decode(start + octets + b"\x00" * 200)


def test_rfc7541_5_1_zeros_that_add_nothing_are_taken() -> None:
    """An integer may be written longer than needed."""
    assert decode(b"\x0f\x80\x80\x80\x80\x00" + string(b"gzip")) == [(b"accept-charset", b"gzip")]


@pytest.mark.parametrize("start", [b"\xff", b"\x7f\x80", b"\x0f", b"\x1f", b"\x3f", b"\x00\x7f\x80", b"\x01\xff"])
def test_rfc7541_5_1_integers_that_the_block_cuts_off_are_errors(start: bytes) -> None:
    """The block ends where the next octet should be."""
    with pytest.raises(HpackError, match="ends inside a field"):
        decode(start)


@pytest.mark.parametrize("length", [0, 1, 126, 127, 128, 254, 255, 5_000, 20_000])
@pytest.mark.parametrize("coded", [False, True], ids=["plain", "Huffman"])
def test_rfc7541_5_2_strings_of_every_length(length: int, coded: bool) -> None:
    """As names and as values, at the edges of the length's octets."""
    text = bytes(32 + number % 90 for number in range(length))
    octets = huffman.encode(text) if coded else text
    written = integer(len(octets), 7, 0x80 if coded else 0) + octets

    assert decode(b"\x00" + written + written + b"\x82") == [(text, text), (b":method", b"GET")]


def test_rfc7541_5_2_a_string_beyond_the_block_is_an_error() -> None:
    """Every block that is cut inside a field, plain or Huffman-coded; cut between fields it is a block."""
    whole = bytes.fromhex(C_3[2][0]) + bytes.fromhex(C_6[0][0]) + b"\x00" + string(b"n" * 200) + string(b"v" * 200)
    prefix = bytes.fromhex(C_3[0][0] + C_3[1][0])
    cut_between = 0
    for end in range(len(whole)):
        try:
            decoder = Decoder()
            decode(prefix, decoder)
            decode(whole[:end], decoder)
            cut_between += 1
        except HpackError:
            pass

    assert cut_between == 10  # before each of the ten fields


@pytest.mark.parametrize(
    "block", [b"\x00\x05abc", b"\x00\x01a\x05abc", b"\x40\x01a\x7f\x00abc", b"\x01\xfe" + b"\xff" * 4, b"\x00", b"\x01"]
)
def test_rfc7541_5_2_a_length_beyond_the_block_is_an_error(block: bytes) -> None:
    """A string is never shortened to what is there."""
    with pytest.raises(HpackError):
        decode(block)


@pytest.mark.parametrize("octet", range(256))
def test_rfc7541_5_2_huffman_code_of_each_octet(octet: int) -> None:
    """Alone, so that the padding has every length, and among others."""
    one = bytes([octet])
    for text in (one, one * 9, one * 40, b"a" + one + b"z", b"a" * 40 + one + b"z", b"<" * 20 + one):
        assert huffman.decode(huffman.encode(text)) == text


BEFORE = [pytest.param(b"", id="alone"), pytest.param(b"\xf8" * 20, id="after 20 octets")]
"""Each octet is the whole code of an ampersand."""


@pytest.mark.parametrize("before", BEFORE)
def test_rfc7541_5_2_padding_longer_than_seven_bits_is_an_error(before: bytes) -> None:
    """An octet of ones is no padding, alone or after a symbol that ends with its octet."""
    assert huffman.encode(b"&") == b"\xf8"
    assert huffman.decode(before + b"\xf8") == b"&" * len(before) + b"&"
    for data in (b"\xff", b"\xf8\xff", b"\xf8\xff\xff", b"\x1f\xff"):
        with pytest.raises(HpackError, match="padding"):
            huffman.decode(before + data)


@pytest.mark.parametrize("before", BEFORE)
def test_rfc7541_5_2_padding_that_is_not_the_begin_of_eos_is_an_error(before: bytes) -> None:
    """`a` is 00011: of the eight ways to fill its octet only ones are padding, and zeros begin another symbol."""
    assert huffman.decode(before + b"\x1f") == b"&" * len(before) + b"a"
    for bits in range(7):
        with pytest.raises(HpackError, match="padding"):
            huffman.decode(before + bytes([0x18 | bits]))


def test_rfc7541_5_2_a_string_ends_with_a_whole_code_and_no_other_place() -> None:
    """Every place in the tree of codes as the end, of short strings and of long ones. After a wrong string the next one
    is read as ever."""
    for place in sorted({code[:bits] for code in huffman._CODES for bits in range(len(code))}):
        for least in (0, 20):
            # Codes of six bits, then of five, until the place ends with an octet.
            sixes, fives = next(
                (sixes, fives)
                for fives in range(least, least + 8)
                for sixes in range(8)
                if (6 * sixes + 5 * fives + len(place)) % 8 == 0
            )
            bits = huffman._CODES[ord("%")] * sixes + huffman._CODES[ord("0")] * fives + place
            data = int(f"1{bits}", 2).to_bytes(len(bits) // 8 + 1, "big")[1:]
            if place == "1" * len(place) and len(place) <= 7:
                assert huffman.decode(data) == b"%" * sixes + b"0" * fives
            else:
                with pytest.raises(HpackError, match="padding"):
                    huffman.decode(data)


@pytest.mark.parametrize("before", BEFORE)
@pytest.mark.parametrize("after", [b"", b"\xff", b"\x1f" * 3, b"\xf8\xf8"], ids=bytes.hex)
def test_rfc7541_5_2_eos_inside_a_string_is_an_error(before: bytes, after: bytes) -> None:
    """30 ones are EOS, whatever follows."""
    for data in (b"\xff\xff\xff\xff", b"\xf8\xff\xff\xff\xff", b"\xff\xff\xff\xfc"):
        with pytest.raises(HpackError, match="EOS"):
            huffman.decode(before + data + after)


def test_rfc7541_5_2_bad_huffman_code_in_a_block_is_an_error() -> None:
    """As a name and as a value."""
    for block in (b"\x00\x81\xff\x00", b"\x00\x01a\x81\xff", b"\x41\x84\xff\xff\xff\xff"):
        with pytest.raises(HpackError, match="Huffman"):
            decode(block)


def test_rfc7541_appendix_b_the_code_is_complete() -> None:
    """With EOS the codes fill the space of 30 bits exactly, and none begins another."""
    codes = sorted([*huffman._CODES, "1" * 30])

    assert sum(1 << (30 - len(code)) for code in codes) == 1 << 30
    assert not any(longer.startswith(code) for code, longer in pairwise(codes))
    assert max(map(len, huffman._CODES)) == 30


def test_rfc7541_6_2_2_and_6_2_3_only_incremental_indexing_changes_the_table() -> None:
    """A literal without indexing, or never indexed, leaves it and `insertions` alone."""
    decoder = Decoder()
    for pattern in (b"\x00", b"\x10"):
        decode(pattern + string(b"a") + string(b"1") + bytes([pattern[0] | 4]) + string(b"/x"), decoder)
    assert (dynamic_table(decoder), decoder.insertions) == ([], 0)

    decode(b"\x40" + string(b"a") + string(b"1") + b"\x44" + string(b"/x"), decoder)
    assert (dynamic_table(decoder), decoder.insertions) == ([(b":path", b"/x"), (b"a", b"1")], 2)


def test_insertions_tell_whether_a_block_may_mean_something_else() -> None:
    """They grow with every insertion, also of what doesn't fit, with every update and with a lowered limit."""
    decoder = Decoder()
    for block, changes in (
        (b"\x82\x01\x00", False),
        (inserted(b"a", b"1"), True),
        (b"\xbe", False),
        (inserted(b"n", b"v" * 5000), True),
        (size_update(4096), True),
        (size_update(0), True),
    ):
        before = decoder.insertions
        decode(block, decoder)
        assert (decoder.insertions != before) is changes

    before = decoder.insertions
    decoder.set_max_table_size(8192)
    assert decoder.insertions == before
    decode(size_update(8192), decoder)
    before = decoder.insertions
    decoder.set_max_table_size(100)
    assert decoder.insertions != before


def test_an_indexed_field_is_the_same_tuple_each_time() -> None:
    """A repeated field costs no new object, so what is known of it can be looked up by it."""
    decoder = Decoder()
    first = decode(b"\x82" + inserted(b"a", b"1"), decoder)
    second = decode(b"\x82\xbe", decoder)

    assert all(one is other for one, other in zip(first, second, strict=True))


def test_decoders_share_nothing() -> None:
    """The table of one connection is not seen on another."""
    decode(inserted(b"a", b"1"))

    assert dynamic_table(Decoder()) == []


def test_rfc9113_10_5_1_a_list_at_its_limit_is_taken_and_a_byte_over_is_refused() -> None:
    """Each field counts its name, its value and 32."""
    block = b"\x82" + inserted(b"name", b"value") + b"\xbe"
    size = (7 + 3 + 32) + 2 * (4 + 5 + 32)

    assert len(Decoder().decode(block, size)) == 3
    with pytest.raises(HeaderListTooLarge) as refused:
        Decoder().decode(block, size - 1)
    assert (refused.value.size, refused.value.limit) == (size, size - 1)
    assert str(size) in str(refused.value)


def test_rfc9113_10_5_1_references_count_what_they_refer_to() -> None:
    """An octet that stands for a large entry, and a literal with a large name, count in full."""
    decoder = Decoder()
    decode(inserted(b"n" * 1000, b"v" * 2000), decoder)

    assert len(decoder.decode(b"\xbe", 3032)) == 1
    assert len(decoder.decode(b"\x0f\x2f\x00", 1032)) == 1
    with pytest.raises(HeaderListTooLarge):
        decoder.decode(b"\xbe", 3031)
    with pytest.raises(HeaderListTooLarge):
        decoder.decode(b"\x0f\x2f\x00", 1031)


def test_rfc9113_10_5_1_huffman_code_does_not_hide_a_lists_size() -> None:
    """The octets count decoded, which is 8 for 5 at most."""
    coded = huffman.encode(b"0" * 80)
    block = b"\x00" + integer(50, 7, 0x80) + coded + integer(50, 7, 0x80) + coded

    assert len(Decoder().decode(block, 192)) == 1
    with pytest.raises(HeaderListTooLarge):
        Decoder().decode(block, 191)


def test_a_list_over_the_limit_leaves_the_table_in_sync() -> None:
    """What stands behind the limit goes into the table all the same, also far behind it."""
    behind = b"\x01" + string(b"v" * 5000) + inserted(b"b", b"2") + size_free(20_000) + inserted(b"c", b"3")
    decoder = Decoder()
    with pytest.raises(HeaderListTooLarge):
        decoder.decode(inserted(b"a", b"1") + behind, 100)

    assert dynamic_table(decoder) == [(b"c", b"3"), (b"b", b"2"), (b"a", b"1")]
    assert decode(b"\xbe\x82", decoder) == [(b"c", b"3"), (b":method", b"GET")]


def size_free(octets: int) -> bytes:
    """Fields that touch no table: empty `:authority` literals."""
    return b"\x01\x00" * (octets // 2)


def test_an_error_behind_the_limit_is_still_an_error() -> None:
    """The connection can't go on, so it must not look as if only the stream were refused."""
    with pytest.raises(HpackError, match="index 0"):
        Decoder().decode(size_free(20_000) + b"\x80", 100)
    with pytest.raises(HpackError, match="ends inside a field"):
        Decoder().decode(size_free(20_000) + b"\x00\x05a", 100)


def test_long_blocks_within_the_limit_are_whole() -> None:
    """Blocks longer than what is read in one go, with fields across its borders."""
    texts = [b"%d" % number * 300 for number in range(200)]
    block = b"".join(b"\x00" + string(b"n") + string(text) for text in texts)
    assert len(block) > 100_000

    assert decode(block) == [(b"n", text) for text in texts]


@pytest.mark.parametrize("octets", [16_384, 131_072], ids=["16 KiB", "128 KiB"])
def test_a_bomb_of_references_is_refused_with_its_size_and_its_memory_is_bounded(octets: int) -> None:
    """One entry as large as the table, then a reference an octet: 4096 bytes each, and nothing of it is kept."""
    decoder = Decoder()
    value = b"v" * (4096 - 33)
    decode(inserted(b"n", value), decoder)
    bomb = b"\xbe" * octets
    tracemalloc.start()
    with pytest.raises(HeaderListTooLarge) as refused:
        decoder.decode(bomb, 16_384)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()

    assert refused.value.size == 4096 * octets
    assert peak < 256 * 1024
    assert dynamic_table(decoder) == [(b"n", value)]


def test_a_bomb_of_empty_fields_is_refused_and_its_memory_is_bounded() -> None:
    """Two octets a field that count 42: 65,536 fields are never there at once."""
    bomb = size_free(131_072)
    tracemalloc.start()
    with pytest.raises(HeaderListTooLarge) as refused:
        Decoder().decode(bomb, 16_384)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()

    assert refused.value.size == 65_536 * (len(b":authority") + 32)
    assert peak < 512 * 1024


def test_encode_takes_whole_static_fields_by_index() -> None:
    """Every entry of the static table is one octet."""
    assert encode(STATIC_TABLE) == bytes(range(0x81, 0xBE))


def test_encode_writes_literals_without_indexing() -> None:
    """Static names by the lowest index, in one octet or two; others in full; no Huffman code."""
    assert encode([(b":status", b"201")]) == b"\x08\x03201"
    assert encode([(b"content-type", b"application/grpc")]) == b"\x0f\x10\x10application/grpc"
    assert encode([(b"grpc-status", b"0")]) == b"\x00\x0bgrpc-status\x010"
    assert encode([(b"n" * 127, b"")]) == b"\x00\x7f\x00" + b"n" * 127 + b"\x00"
    assert encode([]) == b""


@pytest.mark.parametrize("name", [b"authorization", b"set-cookie"])
def test_rfc7541_7_1_3_encode_never_lets_a_secret_be_indexed(name: bytes) -> None:
    """A hop that forwards such a literal must keep it one."""
    block = encode([(name, b"secret")])

    assert block[0] == 0x1F
    assert decode(block) == [(name, b"secret")]


def test_encode_never_changes_the_peers_table() -> None:
    """So an answer's block means the same on every connection, in any order."""
    decoder = Decoder()
    sent = [*STATIC_TABLE, *ANSWER_3, (b"x" * 300, b"y" * 70_000), (b"grpc-message", b"a%20b")]

    assert decode(encode(iter(sent)), decoder) == sent
    assert decoder.insertions == 0
