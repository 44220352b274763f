"""RFC 9113, section by section, as far as it binds a server: bytes in, frames out, no socket."""

from __future__ import annotations

from collections.abc import Callable
from struct import pack

import pytest

from server.settings import GrpcSettings
from server.transport.http2 import frames
from server.transport.http2.frames import ErrorCode, frame
from server.transport.http2.hpack_encode import encode
from server.transport.http2.streams import Kind
from tests.support.http2_client import (
    END_HEADERS,
    END_STREAM,
    LIVE,
    STREAM,
    Frame,
    Peer,
    call_fields,
    data,
    goaway_code,
    headers,
    message,
    reset_code,
    settings_of,
)

PROTOCOL, SIZE, FLOW, CLOSED = (
    ErrorCode.PROTOCOL_ERROR,
    ErrorCode.FRAME_SIZE_ERROR,
    ErrorCode.FLOW_CONTROL_ERROR,
    ErrorCode.STREAM_CLOSED,
)
MESSAGE = message(b"x")
PRIORITY_FIELDS = pack(">IB", 0, 15)


# --- 3.4 the preface ------------------------------------------------------------------------------


def test_3_4_the_server_begins_with_settings() -> None:
    """The first frame of the server is SETTINGS, whatever the client does; they tell our limits."""
    first, window = Peer(greeted=False).sent()
    assert first.kind == frames.SETTINGS
    assert settings_of(first) == {
        frames.MAX_CONCURRENT_STREAMS: 1024,
        frames.INITIAL_WINDOW_SIZE: 1024 * 1024,
        frames.MAX_HEADER_LIST_SIZE: 16 * 1024,
    }
    assert int.from_bytes(window.payload) == 16 * 1024 * 1024 - 65_535


@pytest.mark.parametrize("chunk", [1, 2, 7, 24, 1000])
def test_3_4_the_preface_may_come_in_pieces(chunk: int) -> None:
    """However the preface and the first SETTINGS are cut, the client is greeted once."""
    peer = Peer(greeted=False)
    peer.sent()
    everything = frames.PREFACE + frames.settings({frames.ENABLE_PUSH: 0}) + headers(flags=END_HEADERS)
    sent = [f for i in range(0, len(everything), chunk) for f in peer.send(everything[i : i + chunk])]
    assert [f.kind for f in sent] == [frames.SETTINGS]
    assert sent[0].flags == frames.ACK


@pytest.mark.parametrize("start", [b"GET / HTTP/1.1\r\n\r\n", b"PRI * HTTP/2.0\r\n\r\nXX", b"\x16\x03\x01"])
def test_3_4_anything_else_than_the_preface(start: bytes) -> None:
    """A client that does not begin with the preface is sent away."""
    peer = Peer(greeted=False)
    assert goaway_code(peer.send(start)) is PROTOCOL
    assert peer.connection.fault is not None
    assert peer.connection.fault.cause == "bad_preface"


@pytest.mark.parametrize(
    "first", [headers(), frames.ping(b"12345678"), frames.SETTINGS_ACK], ids=["HEADERS", "PING", "an ACK"]
)
def test_3_4_the_first_frame_is_settings(first: bytes) -> None:
    """The preface ends with SETTINGS that are not an ACK."""
    assert goaway_code(Peer(greeted=False).send(frames.PREFACE, first)) is PROTOCOL


# --- 4.1, 5.5 frames ------------------------------------------------------------------------------


def test_4_1_unknown_types_flags_and_the_reserved_bit_are_ignored() -> None:
    """What is not known has no effect."""
    peer = Peer()
    assert peer.send(frame(0xFA, 0xFF, 0, b"any"), frame(0xFB, 0, 77)) == []
    [pong] = peer.send(frame(frames.PING, 0x16, 1 << 31, b"12345678"))
    assert (pong.kind, pong.flags, pong.payload) == (frames.PING, frames.ACK, b"12345678")


def test_5_5_an_unknown_frame_inside_of_a_header_block() -> None:
    """Extension frames are not ignored between HEADERS and CONTINUATION."""
    peer = Peer()
    assert goaway_code(peer.send(headers(flags=0), frame(0xFA, 0, 1))) is PROTOCOL


# --- 4.2 frame size -------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [frames.DATA, frames.HEADERS, frames.PING, 0xFA])
def test_4_2_a_frame_over_the_maximum(kind: int) -> None:
    """A frame larger than we said is an error before its payload has come, whatever its type."""
    peer = Peer()
    sent = peer.send(headers(), frame(kind, 0, 1, bytes(16_385))[:100])
    assert goaway_code(sent) is SIZE


def test_4_2_a_frame_of_just_the_maximum() -> None:
    """2^14 bytes are no error."""
    peer = Peer()
    assert goaway_code(peer.send(headers(), data(1, message(bytes(20_000))[:16_384]))) is None
    assert peer.kinds == [Kind.OPENED, Kind.DATA]


# --- 4.3 field sections ---------------------------------------------------------------------------


@pytest.mark.parametrize("block", [b"\x80", b"\xff\xff\xff\xff\xff\xff", b"\x00\x85\xf2\xb2\x4a\x84\xff\x84\x49\x50"])
def test_4_3_a_block_that_can_not_be_decoded(block: bytes) -> None:
    """A decoding error is a connection error, for the table is lost with it."""
    assert goaway_code(Peer().send(headers(block=block))) is ErrorCode.COMPRESSION_ERROR


def test_4_3_blocks_of_refused_streams_keep_the_table_right() -> None:
    """A block must be decoded even where its stream is not served: the next one refers to what it inserted."""
    peer = Peer(max_concurrent_streams=1)
    inserted = encode(call_fields(STREAM)) + b"\x40\x05x-one\x01a"
    sent = peer.send(headers(1), headers(3, block=inserted))
    assert reset_code(sent, 3) is ErrorCode.REFUSED_STREAM
    peer.send(frames.rst_stream(1, ErrorCode.CANCEL))
    assert goaway_code(peer.send(headers(5, block=encode(call_fields(STREAM)) + b"\xbe"))) is None
    assert peer.kinds == [Kind.OPENED]


# --- 5.1 stream states ----------------------------------------------------------------------------

IDLE_FRAMES = [
    pytest.param(data(1, b"x"), id="DATA"),
    pytest.param(frames.rst_stream(1, 0), id="RST_STREAM"),
    pytest.param(frames.window_update(1, 1), id="WINDOW_UPDATE"),
]


@pytest.mark.parametrize("bytes_sent", IDLE_FRAMES)
def test_5_1_idle(bytes_sent: bytes) -> None:
    """On an idle stream only HEADERS and PRIORITY may come."""
    assert goaway_code(Peer().send(bytes_sent)) is PROTOCOL


def test_5_1_idle_priority() -> None:
    """PRIORITY may come in any state, and changes none."""
    peer = Peer()
    assert peer.send(frame(frames.PRIORITY, 0, 7, PRIORITY_FIELDS)) == []
    assert peer.send(headers(1)) == []


@pytest.mark.parametrize("late", [data(1, b"x"), headers(1, call_fields())], ids=["DATA", "HEADERS"])
def test_5_1_half_closed_remote(late: bytes) -> None:
    """After END_STREAM the client may send no more on the stream: an error of the stream."""
    peer = Peer()
    sent = peer.send(headers(1, call_fields(LIVE)), data(1, MESSAGE, END_STREAM), late)
    assert reset_code(sent) is CLOSED
    assert goaway_code(sent) is None
    assert peer.kinds[-1] is Kind.RESET


def test_5_1_half_closed_remote_allows_the_rest() -> None:
    """WINDOW_UPDATE, PRIORITY and RST_STREAM may still come."""
    peer = Peer()
    whole = headers(1) + data(1, MESSAGE, END_STREAM)
    sent = peer.send(
        whole,
        frames.window_update(1, 10),
        frame(frames.PRIORITY, 0, 1, PRIORITY_FIELDS),
        frames.rst_stream(1, ErrorCode.CANCEL),
    )
    assert sent == []
    assert peer.kinds == [Kind.CALL, Kind.RESET]
    assert not peer.connection.streams


@pytest.mark.parametrize("late", [data(1, b"x"), headers(1, call_fields())], ids=["DATA", "HEADERS"])
@pytest.mark.parametrize("end", ["reset by the client", "answered"])
def test_5_1_closed(end: str, late: bytes) -> None:
    """On a closed stream they are an error of the connection."""
    peer = Peer()
    peer.send(headers(1), data(1, MESSAGE, END_STREAM))
    if end == "answered":
        peer.connection.answer(peer.connection.streams[1], b"")
    else:
        peer.send(frames.rst_stream(1, ErrorCode.CANCEL))
    peer.sent()
    assert goaway_code(peer.send(late)) is CLOSED


def test_5_1_closed_frames_that_crossed() -> None:
    """WINDOW_UPDATE, RST_STREAM and PRIORITY that crossed the server's END_STREAM are nothing."""
    peer = Peer()
    peer.send(headers(1), data(1, MESSAGE, END_STREAM))
    peer.connection.answer(peer.connection.streams[1], b"")
    peer.sent()
    assert (
        peer.send(frames.window_update(1, 10), frames.rst_stream(1, 0), frame(frames.PRIORITY, 0, 1, PRIORITY_FIELDS))
        == []
    )


def test_5_1_what_crosses_our_reset_is_ignored() -> None:
    """After our RST_STREAM frames of the client may still be on their way; they count for flow control only."""
    peer = Peer()
    peer.send(headers(1, call_fields(STREAM)))
    peer.connection.reset(peer.connection.streams[1], ErrorCode.CANCEL)
    peer.sent()
    late = (data(1, b"x" * 100), headers(1, [(b"x", b"y")], END_HEADERS | END_STREAM), frames.rst_stream(1, 0))
    assert peer.send(*late, frames.window_update(1, 5)) == []
    assert peer.events == []


# --- 5.1.1, 5.1.2 identifiers and concurrency -----------------------------------------------------


@pytest.mark.parametrize("stream_id", [0, 2, 100])
def test_5_1_1_even_streams(stream_id: int) -> None:
    """A client's streams are odd; 0 is the connection."""
    assert goaway_code(Peer().send(headers(stream_id))) is PROTOCOL


def test_5_1_1_numbers_rise() -> None:
    """A number below the last one, of a stream that never was, is an error of the connection."""
    peer = Peer()
    assert goaway_code(peer.send(headers(5), headers(3))) is PROTOCOL
    peer = Peer()
    assert goaway_code(peer.send(headers(5), data(3, b"x"))) is PROTOCOL


def test_5_1_2_more_streams_than_allowed() -> None:
    """One stream more than SETTINGS_MAX_CONCURRENT_STREAMS is refused, which a client may repeat; others go on."""
    peer = Peer(max_concurrent_streams=2)
    sent = peer.send(headers(1), headers(3), headers(5), data(5, b"x"))
    assert [(f.kind, f.stream_id, f.code) for f in sent] == [(frames.RST_STREAM, 5, ErrorCode.REFUSED_STREAM)]
    assert peer.refused == {"too_many_streams": 1}
    peer.send(frames.rst_stream(1, ErrorCode.CANCEL))
    assert peer.send(headers(7)) == []


# --- 6.1 DATA, 6.2 HEADERS: padding and priority --------------------------------------------------


@pytest.mark.parametrize("kind", [frames.DATA, frames.HEADERS])
def test_6_1_6_2_too_much_padding(kind: int) -> None:
    """Padding that is all of the payload or more is an error of the connection."""
    peer = Peer()
    peer.send(headers(1))
    stream_id = 1 if kind == frames.DATA else 3
    assert goaway_code(peer.send(frame(kind, frames.PADDED | END_HEADERS, stream_id, b"\x04abc"))) is PROTOCOL


def test_6_1_padding_is_not_data() -> None:
    """Padded DATA is what is in front of the padding, to the last byte."""
    peer = Peer()
    peer.send(headers(1, call_fields(LIVE)), frame(frames.DATA, frames.PADDED, 1, b"\x03" + MESSAGE + b"\0\0\0"))
    assert [payload for kind, _, payload in peer.events if kind is Kind.DATA] == [[MESSAGE]]
    assert peer.send(frame(frames.DATA, frames.PADDED | END_STREAM, 1, b"\x00")) == []
    assert peer.kinds == [Kind.ENDED]


def test_6_1_data_on_stream_0() -> None:
    """DATA belongs to a stream."""
    assert goaway_code(Peer().send(data(0, b"x"))) is PROTOCOL


def test_6_2_padded_headers_with_priority() -> None:
    """Padding and the deprecated priority stand around the block and are skipped."""
    peer = Peer()
    block = encode(call_fields(LIVE))
    flags = END_HEADERS | frames.PADDED | frames.WITH_PRIORITY
    assert peer.send(frame(frames.HEADERS, flags, 1, b"\x02" + PRIORITY_FIELDS + block + b"\0\0")) == []
    assert peer.kinds == [Kind.OPENED]
    assert goaway_code(peer.send(frame(frames.HEADERS, flags, 3, b"\x00\x00"))) is SIZE


def test_6_2_end_stream_on_headers() -> None:
    """A request without any DATA is opened and ended."""
    peer = Peer()
    for stream_id in (1, 3):
        assert peer.send(headers(stream_id, flags=END_HEADERS | END_STREAM)) == []
        assert peer.kinds == [Kind.OPENED, Kind.ENDED]


# --- 6.3 PRIORITY ---------------------------------------------------------------------------------


def test_6_3_priority() -> None:
    """On stream 0 it is an error of the connection, of another length than 5 one of the stream; else it is ignored."""
    assert goaway_code(Peer().send(frame(frames.PRIORITY, 0, 0, PRIORITY_FIELDS))) is PROTOCOL
    peer = Peer()
    peer.send(headers(1))
    assert reset_code(peer.send(frame(frames.PRIORITY, 0, 1, b"1234"))) is SIZE


@pytest.mark.parametrize("exclusive", [0, 1 << 31], ids=["shared", "exclusive"])
@pytest.mark.parametrize(
    ("kind", "flags", "block"),
    [(frames.PRIORITY, 0, b""), (frames.HEADERS, END_HEADERS | frames.WITH_PRIORITY, encode(call_fields(LIVE)))],
    ids=["PRIORITY", "HEADERS"],
)
def test_6_3_a_stream_that_depends_on_itself(kind: int, flags: int, block: bytes, exclusive: int) -> None:
    """Priorities mean nothing here; but of those who send them, by RFC 7540, none may send this (its section 5.3.1)."""
    for depends_on, code in ((1, PROTOCOL), (3, None)):
        fields = pack(">IB", exclusive | depends_on, 15)
        assert goaway_code(Peer().send(frame(kind, flags, 1, fields + block))) is code


# --- 6.4 RST_STREAM -------------------------------------------------------------------------------


def test_6_4_rst_stream() -> None:
    """It ends a stream that is open; elsewhere, or of another length than 4, it is an error."""
    peer = Peer()
    peer.send(headers(1, call_fields(STREAM)))
    assert peer.send(frames.rst_stream(1, ErrorCode.CANCEL)) == []
    assert peer.kinds == [Kind.RESET]
    assert goaway_code(Peer().send(frames.rst_stream(0, 0))) is PROTOCOL
    assert goaway_code(Peer().send(headers(1), frame(frames.RST_STREAM, 0, 1, b"123"))) is SIZE


# --- 6.5 SETTINGS ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("bad", "code"),
    [
        (frame(frames.SETTINGS, frames.ACK, 0, bytes(6)), SIZE),
        (frame(frames.SETTINGS, 0, 1), PROTOCOL),
        (frame(frames.SETTINGS, 0, 0, bytes(5)), SIZE),
        (frames.settings({frames.ENABLE_PUSH: 2}), PROTOCOL),
        (frames.settings({frames.INITIAL_WINDOW_SIZE: 2**31}), FLOW),
        (frames.settings({frames.MAX_FRAME_SIZE: 16_383}), PROTOCOL),
        (frames.settings({frames.MAX_FRAME_SIZE: 2**24}), PROTOCOL),
    ],
    ids=["ACK with payload", "on a stream", "length", "push 2", "window 2^31", "frame small", "frame large"],
)
def test_6_5_bad_settings(bad: bytes, code: ErrorCode) -> None:
    """Each is an error of the connection with the code that its section says."""
    assert goaway_code(Peer().send(bad)) is code


def test_6_5_settings_are_acknowledged_and_unknown_ones_ignored() -> None:
    """SETTINGS, empty, known or unknown, at the ends of their ranges, are answered by one ACK each, in order."""
    most = {
        frames.ENABLE_PUSH: 1,
        frames.MAX_CONCURRENT_STREAMS: 2**32 - 1,
        frames.INITIAL_WINDOW_SIZE: 2**31 - 1,
        frames.MAX_FRAME_SIZE: 2**24 - 1,
        frames.MAX_HEADER_LIST_SIZE: 0,
    }
    least = {frames.ENABLE_PUSH: 0, frames.INITIAL_WINDOW_SIZE: 0, frames.MAX_FRAME_SIZE: 2**14}
    unknown = {0xABCD: 5, frames.HEADER_TABLE_SIZE: 0}
    sent = Peer().send(*map(frames.settings, ({}, most, least, unknown)))
    assert [(f.kind, f.flags, f.payload) for f in sent] == [(frames.SETTINGS, frames.ACK, b"")] * 4


# --- 6.6, 8.4 PUSH_PROMISE ------------------------------------------------------------------------


def test_8_4_a_client_can_not_push() -> None:
    """PUSH_PROMISE from a client is an error of the connection."""
    assert goaway_code(Peer().send(headers(1), frame(frames.PUSH_PROMISE, END_HEADERS, 1, pack(">I", 2)))) is PROTOCOL


# --- 6.7 PING -------------------------------------------------------------------------------------


def test_6_7_ping() -> None:
    """A PING is answered with its payload, an ACK is not answered; on a stream or of another length it is an error."""
    peer = Peer()
    [pong] = peer.send(frames.ping(b"abcdefgh"))
    assert (pong.kind, pong.flags, pong.payload) == (frames.PING, frames.ACK, b"abcdefgh")
    assert peer.send(frames.ping(b"abcdefgh", frames.ACK)) == []
    assert goaway_code(Peer().send(frame(frames.PING, 0, 1, bytes(8)))) is PROTOCOL
    assert goaway_code(Peer().send(frame(frames.PING, 0, 0, bytes(7)))) is SIZE


# --- 6.8 GOAWAY -----------------------------------------------------------------------------------


def test_6_8_goaway_of_the_client() -> None:
    """Its open streams go on; on a stream, or too short, it is an error."""
    peer = Peer()
    peer.send(headers(1), data(1, MESSAGE, END_STREAM))
    assert peer.send(frames.goaway(0, ErrorCode.NO_ERROR, b"bye")) == []
    peer.connection.answer(peer.connection.streams[1], b"")
    assert [f.kind for f in peer.sent()] == [frames.HEADERS, frames.DATA, frames.HEADERS]
    assert goaway_code(Peer().send(frame(frames.GOAWAY, 0, 1, bytes(8)))) is PROTOCOL
    assert goaway_code(Peer().send(frame(frames.GOAWAY, 0, 0, bytes(7)))) is SIZE


def test_6_8_draining() -> None:
    """GOAWAY(2^31-1) and PING; streams on the way are taken; after the PING's ACK GOAWAY says the last one taken."""
    peer = Peer()
    peer.send(headers(1))
    peer.connection.drain(peer.now_ns, 30)
    goaway, ping = peer.sent()
    assert (goaway.kind, goaway.payload[:4], goaway.code) == (frames.GOAWAY, pack(">I", 2**31 - 1), ErrorCode.NO_ERROR)
    assert peer.send(headers(3)) == []
    [final] = peer.send(frames.ping(ping.payload, frames.ACK))
    assert (final.kind, final.payload[:4]) == (frames.GOAWAY, pack(">I", 3))
    assert peer.send(headers(5), data(5, b"x", END_STREAM)) == []
    assert not peer.connection.done
    for stream_id in (1, 3):
        assert peer.send(data(stream_id, MESSAGE, END_STREAM)) == []
        peer.connection.answer(peer.connection.streams[stream_id], b"")
        assert len(peer.sent()) == 3
    assert peer.connection.done


def test_6_8_draining_a_client_that_does_not_answer() -> None:
    """The last GOAWAY does not wait for the ACK for ever."""
    peer = Peer()
    peer.connection.drain(peer.now_ns, 30)
    peer.sent()
    assert goaway_code(peer.wait(1.5)) is ErrorCode.NO_ERROR
    assert peer.connection.done


# --- 6.9 flow control -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("bad", "stream_id", "code"),
    [
        (frames.window_update(0, 0), 0, PROTOCOL),
        (frames.window_update(1, 0), 1, PROTOCOL),
        (frames.window_update(0, 2**31 - 1), 0, FLOW),
        (frames.window_update(1, 2**31 - 1), 1, FLOW),
        (frame(frames.WINDOW_UPDATE, 0, 0, b"123"), 0, SIZE),
        (frame(frames.WINDOW_UPDATE, 0, 1, b"12345"), 0, SIZE),
    ],
    ids=["0", "0 of a stream", "over", "over of a stream", "length", "length of a stream"],
)
def test_6_9_bad_window_updates(bad: bytes, stream_id: int, code: ErrorCode) -> None:
    """An increment of 0 or a window over 2^31-1 is an error of the stream or of the connection."""
    peer = Peer()
    peer.send(headers(1))
    sent = peer.send(bad)
    assert (goaway_code(sent), reset_code(sent)) == ((None, code) if stream_id else (code, None))


def ask(peer: Peer, stream_id: int = 1) -> None:
    peer.send(headers(stream_id), data(stream_id, MESSAGE, END_STREAM))


def payloads(sent: list[Frame]) -> list[int]:
    """The lengths of the DATA among them."""
    return [len(f.payload) for f in sent if f.kind == frames.DATA]


def test_6_9_1_answers_wait_for_the_windows() -> None:
    """DATA goes as far as the smaller of both windows, the rest when they widen, the trailers behind all of it."""
    peer = Peer()
    ask(peer)
    peer.connection.answer(peer.connection.streams[1], bytes(100_000))
    sent = peer.sent()
    assert sum(payloads(sent)) == 65_535
    assert max(payloads(sent)) == 16_384
    assert sent[-1].kind == frames.DATA
    assert peer.send(frames.window_update(0, 10_000)) == []
    assert payloads(peer.send(frames.window_update(1, 3_000))) == [3_000]
    sent = peer.send(frames.window_update(1, 50_000))
    assert sum(payloads(sent)) == 7_000
    sent = peer.send(frames.window_update(0, 50_000))
    assert sum(payloads(sent)) == 100_005 - 65_535 - 10_000
    assert (sent[-1].kind, sent[-1].flags) == (frames.HEADERS, END_HEADERS | END_STREAM)
    assert not peer.connection.streams


def test_6_9_2_the_initial_window_changes_open_streams() -> None:
    """SETTINGS_INITIAL_WINDOW_SIZE moves the windows of open streams, also below zero."""
    peer = Peer()
    peer.send(frames.settings({frames.INITIAL_WINDOW_SIZE: 10}), frames.window_update(0, 10**6))
    ask(peer)
    peer.connection.answer(peer.connection.streams[1], bytes(100))
    assert payloads(peer.sent()) == [10]
    assert payloads(peer.send(frames.settings({frames.INITIAL_WINDOW_SIZE: 0}))) == []
    assert payloads(peer.send(frames.window_update(1, 10))) == []
    assert payloads(peer.send(frames.window_update(1, 1))) == [1]
    assert payloads(peer.send(frames.settings({frames.INITIAL_WINDOW_SIZE: 5}))) == [5]
    sent = peer.send(frames.settings({frames.INITIAL_WINDOW_SIZE: 1000}))
    assert payloads(sent) == [89]
    assert not peer.connection.streams


def test_6_9_2_a_setting_that_makes_a_window_too_large() -> None:
    """A change that lifts a stream's window over 2^31-1 is an error of the connection."""
    peer = Peer()
    ask(peer)
    peer.send(frames.window_update(1, 2**31 - 1 - 65_535))
    assert goaway_code(peer.send(frames.settings({frames.INITIAL_WINDOW_SIZE: 65_536}))) is FLOW


def test_6_5_3_settings_of_one_frame_hold_in_their_order() -> None:
    """Of a setting that comes more than once in a frame the last value holds, and none before it may break a window."""
    peer = Peer()
    ask(peer)
    twice = pack(">HIHI", frames.INITIAL_WINDOW_SIZE, 1000, frames.INITIAL_WINDOW_SIZE, 10)
    peer.send(frame(frames.SETTINGS, 0, 0, twice))
    peer.connection.answer(peer.connection.streams[1], bytes(100))
    assert payloads(peer.sent()) == [10]
    peer.send(frames.window_update(1, 2**31 - 1))
    over = pack(">HIHI", frames.INITIAL_WINDOW_SIZE, 1000, frames.INITIAL_WINDOW_SIZE, 10)
    ask(peer, 3)
    peer.send(frames.window_update(3, 2**31 - 1 - 500))
    assert goaway_code(peer.send(frame(frames.SETTINGS, 0, 0, over))) is FLOW


def test_6_9_streams_share_the_connection_window() -> None:
    """Two large answers take turns, frame by frame."""
    peer = Peer()
    for stream_id in (1, 3):
        ask(peer, stream_id)
    peer.send(frames.settings({frames.INITIAL_WINDOW_SIZE: 10**6}))
    for stream_id in (1, 3):
        peer.connection.answer(peer.connection.streams[stream_id], bytes(200_000))
    peer.sent()
    sent = peer.send(frames.window_update(0, 16_384 * 4))
    assert [f.stream_id for f in sent if f.kind == frames.DATA] == [1, 3, 1, 3]


def test_6_9_max_frame_size_of_the_client() -> None:
    """Once the client allows larger frames they are used."""
    peer = Peer()
    peer.send(
        frames.settings({frames.MAX_FRAME_SIZE: 50_000, frames.INITIAL_WINDOW_SIZE: 10**6}),
        frames.window_update(0, 10**6),
    )
    ask(peer)
    peer.connection.answer(peer.connection.streams[1], bytes(100_000))
    assert payloads(peer.sent()) == [50_000, 50_000, 5]


def test_6_9_more_data_than_a_streams_window() -> None:
    """A client that sends more than the stream's window allows loses the stream."""
    peer = Peer(stream_window_bytes=65_535)
    peer.send(headers(1, call_fields(STREAM)))
    sent = [f for _ in range(5) for f in peer.send(data(1, bytes(16_384)))]
    assert reset_code(sent) is FLOW


def test_6_9_more_data_than_the_connections_window() -> None:
    """The connection's window is given back as bytes come, so only a frame that overshoots it at once breaks it."""
    peer = Peer(stream_window_bytes=2**20, connection_window_bytes=65_535)
    peer.send(headers(1, call_fields(STREAM)))
    updates = [f for _ in range(20) for f in peer.send(data(1, bytes(16_384))) if f.kind == frames.WINDOW_UPDATE]
    assert sum(int.from_bytes(f.payload) for f in updates if not f.stream_id) >= 16_384 * 18


def test_6_9_windows_are_given_back() -> None:
    """What is taken up comes back by WINDOW_UPDATE, of the stream when half of it is used."""
    peer = Peer(stream_window_bytes=65_535)
    peer.send(headers(1, call_fields(STREAM)))
    stream = peer.connection.streams[1]
    for _ in range(3):
        peer.send(data(1, bytes(10_000)))
        peer.connection.consumed(stream, 10_000)
    assert peer.sent() == []
    peer.send(data(1, bytes(10_000)))
    peer.connection.consumed(stream, 10_000)
    [update] = peer.sent()
    assert (update.stream_id, int.from_bytes(update.payload)) == (1, 40_000)


def test_6_1_data_of_one_read_is_one_event_for_each_stream() -> None:
    """Frames of two streams in turns: each is told once what came, in order, and anew with the next read."""
    peer = Peer()
    peer.send(
        *(headers(stream_id, call_fields(LIVE)) for stream_id in (1, 3)),
        *(data(stream_id, bytes([number])) for number in range(3) for stream_id in (1, 3)),
        data(1, b"\x09", END_STREAM),
    )
    told = [(kind, stream.id, payload) for kind, stream, payload in peer.events if kind is not Kind.OPENED]
    parts = [b"\0", b"\1", b"\2"]
    assert told == [(Kind.DATA, 1, [*parts, b"\x09"]), (Kind.DATA, 3, parts), (Kind.ENDED, 1, b"")]
    peer.send(data(3, b"\3", END_STREAM))
    assert [payload for kind, _, payload in peer.events if kind is Kind.DATA] == [[b"\3"]]


# --- 6.10 CONTINUATION ----------------------------------------------------------------------------


def test_6_10_a_block_in_pieces() -> None:
    """A block may be cut anywhere, into as many frames as the limit allows."""
    block = encode(call_fields(LIVE))
    peer = Peer()
    pieces = [block[i : i + 10] for i in range(10, len(block), 10)]
    parts = [frame(frames.CONTINUATION, 0, 1, piece) for piece in pieces]
    sent = peer.send(headers(flags=0, block=block[:10]), *parts, frame(frames.CONTINUATION, END_HEADERS, 1))
    assert sent == []
    assert peer.kinds == [Kind.OPENED]


@pytest.mark.parametrize(
    "bad",
    [
        frame(frames.CONTINUATION, END_HEADERS, 1),
        headers(flags=0) + data(1, b"x"),
        headers(flags=0) + headers(3),
        headers(flags=0) + frame(frames.CONTINUATION, END_HEADERS, 3),
        headers(flags=0) + frames.ping(bytes(8)),
        headers(flags=0) + frame(frames.PRIORITY, 0, 1, PRIORITY_FIELDS),
        headers(flags=0) + frame(frames.CONTINUATION, END_HEADERS, 0),
        headers() + frame(frames.CONTINUATION, END_HEADERS, 1),
        headers(flags=0) + frame(frames.CONTINUATION, END_HEADERS, 1) * 2,
        headers() + data(1, MESSAGE, END_STREAM) + frame(frames.CONTINUATION, END_HEADERS, 1),
    ],
    ids=[
        *("first", "DATA inside", "HEADERS inside", "other stream", "PING inside", "PRIORITY inside", "stream 0"),
        *("after END_HEADERS", "after the last", "after DATA"),
    ],
)
def test_6_10_continuation_out_of_place(bad: bytes) -> None:
    """Between HEADERS and the last CONTINUATION nothing else may come, nor CONTINUATION elsewhere."""
    assert goaway_code(Peer().send(bad)) is PROTOCOL


# --- 7 error codes --------------------------------------------------------------------------------


def test_7_unknown_error_codes() -> None:
    """They are nothing special: a reset is one, and who goes away by GOAWAY has its calls answered before."""
    peer = Peer()
    peer.send(headers(1), headers(3))
    peer.send(frame(frames.RST_STREAM, 0, 1, pack(">I", 0xDEADBEEF)))
    assert peer.kinds == [Kind.RESET]
    assert peer.send(frame(frames.GOAWAY, 0, 0, pack(">II", 0, 0xDEADBEEF)), data(3, MESSAGE, END_STREAM)) == []
    peer.connection.answer(peer.connection.streams[3], b"")
    assert [f.kind for f in peer.sent()] == [frames.HEADERS, frames.DATA, frames.HEADERS]


# --- 8.1 messages ---------------------------------------------------------------------------------


def test_8_1_trailers() -> None:
    """HEADERS after DATA are trailers, which end the request."""
    peer = Peer()
    peer.send(headers(1), data(1, MESSAGE))
    assert peer.send(headers(1, [(b"x-trailer", b"1")], END_HEADERS | END_STREAM)) == []
    assert peer.kinds == [Kind.ENDED]


@pytest.mark.parametrize(
    "second",
    [headers(1, [(b"x", b"1")]), headers(1, [(b":path", b"/")], END_HEADERS | END_STREAM)],
    ids=["no END_STREAM", "a pseudo-header field"],
)
def test_8_1_bad_trailers(second: bytes) -> None:
    """Trailers end the stream, and have no pseudo-header fields."""
    assert reset_code(Peer().send(headers(1), data(1, MESSAGE), second)) is PROTOCOL


@pytest.mark.parametrize(
    ("length", "body"), [(b"5", b""), (b"5", MESSAGE), (b"7", MESSAGE)], ids=["none", "more", "less"]
)
@pytest.mark.parametrize("known", [False, True], ids=["a new block", "a known block"])
def test_8_1_1_content_length(length: bytes, body: bytes, known: bool) -> None:
    """DATA that is not as long as content-length says makes the request malformed."""
    peer = Peer()
    fields = call_fields(LIVE, (b"content-length", length))
    if known:
        peer.send(headers(1, fields), data(1, bytes(int(length)), END_STREAM))
    stream_id = 3
    sent = peer.send(headers(stream_id, fields), data(stream_id, body, END_STREAM))
    assert reset_code(sent, stream_id) is PROTOCOL
    right = peer.send(headers(5, fields), data(5, bytes(int(length)), END_STREAM))
    assert right == []


@pytest.mark.parametrize(("length", "code"), [(b"5", PROTOCOL), (b"12", None), (b"13", PROTOCOL)])
def test_8_1_1_content_length_of_several_frames(length: bytes, code: ErrorCode | None) -> None:
    """It is held against the sum of them."""
    fields = call_fields(STREAM, (b"content-length", length))
    assert reset_code(Peer().send(headers(1, fields), data(1, MESSAGE), data(1, MESSAGE, END_STREAM))) is code


# --- 8.2, 8.3 fields ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "field",
    [
        (b"X-Upper", b"1"),
        (b"x y", b"1"),
        (b"x\x00", b"1"),
        (b"", b"1"),
        (b"x:y", b"1"),
        (b"x\xe9", b"1"),
        (b"x", b"a\x00"),
        (b"x", b"a\nb"),
        (b"x", b"a\rb"),
        (b"x", b" a"),
        (b"x", b"a\t"),
        (b"connection", b"close"),
        (b"proxy-connection", b"close"),
        (b"keep-alive", b"1"),
        (b"transfer-encoding", b"chunked"),
        (b"upgrade", b"h2c"),
        (b"te", b"gzip"),
        (b"te", b"trailers, deflate"),
        (b"content-length", b"-1"),
        (b"content-length", b"x"),
        (b":status", b"200"),
        (b":unknown", b"1"),
        (b":method", b"POST"),
        (b":path", b"/"),
        (b":scheme", b"http"),
        (b":authority", b"x"),
    ],
)
def test_8_2_8_3_malformed_fields(field: tuple[bytes, bytes]) -> None:
    """A field that HTTP/2 forbids, or a pseudo-header field behind others, makes the request malformed: 8.2.1, 8.2.2,
    8.3. It is so each time, and neighbours are served."""
    peer = Peer()
    for stream_id in (1, 3):
        sent = peer.send(headers(stream_id, call_fields(LIVE, field)))
        assert reset_code(sent, stream_id) is PROTOCOL
        assert goaway_code(sent) is None
    assert peer.send(headers(5)) == []


def test_8_2_3_a_cookie_in_pieces() -> None:
    """One of the fields that may come several times."""
    pieces = [(b"cookie", b"a=1"), (b"cookie", b"b=2")]
    assert Peer().send(headers(1, call_fields(LIVE, *pieces))) == []


def test_8_5_connect() -> None:
    """It has no :scheme and no :path, and is refused as any method but POST is: it is well-formed."""
    authority = (b":authority", b"x:443")
    peer = Peer()
    assert peer.send(headers(1, [(b":method", b"CONNECT"), authority])) == []
    [(_, stream, _)] = peer.events
    assert dict(peer.decoder.decode(stream.head.refusal, 2**20))[b":status"] == b"405"
    path = [(b":scheme", b"http"), (b":path", b"/")]
    assert reset_code(peer.send(headers(3, [(b":method", b"CONNECT"), authority, *path])), 3) is PROTOCOL


@pytest.mark.parametrize("missing", [b":method", b":scheme", b":path"])
def test_8_3_1_missing_pseudo_header_fields(missing: bytes) -> None:
    """:method, :scheme and :path are needed."""
    assert reset_code(Peer().send(headers(1, call_fields(without=[missing])))) is PROTOCOL


@pytest.mark.parametrize("twice", [b":method", b":scheme", b":path", b":authority"])
def test_8_3_pseudo_header_fields_come_once(twice: bytes) -> None:
    """Even with the same value."""
    fields = call_fields()
    again = next(field for field in fields if field[0] == twice)
    assert reset_code(Peer().send(headers(1, [again, *fields]))) is PROTOCOL


@pytest.mark.parametrize("path", [b"", b"x", b"http://x/", b"/a b"])
def test_8_3_1_bad_paths(path: bytes) -> None:
    """:path is not empty, and begins with /."""
    assert reset_code(Peer().send(headers(1, call_fields(path)))) is PROTOCOL


def test_8_2_a_malformed_request_takes_its_number() -> None:
    """The stream of a malformed request is used up."""
    peer = Peer()
    peer.send(headers(1, call_fields(LIVE, (b"X", b"1"))))
    assert peer.connection.streams == {}
    assert peer.send(data(1, b"x")) == []
    assert peer.refused["malformed"] == 1


# --- 10.5 denial of service -----------------------------------------------------------------------


def test_10_5_1_a_header_list_over_the_limit() -> None:
    """The call is refused, the connection goes on."""
    peer = Peer()
    big = [(b"x-%d" % i, b"y" * 200) for i in range(70)]
    peer.send(headers(1, call_fields(LIVE, *big[:40])))
    assert peer.events[0][1].head.refusal is None
    assert goaway_code(peer.send(headers(3, call_fields(LIVE, *big)))) is None
    assert peer.events[0][1].head.refusal is not None


@pytest.mark.parametrize(
    ("flood", "cause", "limits"),
    [
        ([frames.ping(bytes(8))], "ping_flood", {"max_pings_per_s": 10}),
        ([frames.settings({})], "settings_flood", {"max_settings_per_s": 10}),
        ([data(1)], "empty_frame_flood", {"max_empty_frames_per_s": 10}),
        ([frame(frames.PRIORITY, 0, 1, PRIORITY_FIELDS)], "empty_frame_flood", {"max_empty_frames_per_s": 10}),
        ([frame(0xFA, 0, 0)], "empty_frame_flood", {"max_empty_frames_per_s": 10}),
    ],
    ids=["PING", "SETTINGS", "empty DATA", "PRIORITY", "unknown"],
)
def test_10_5_floods(flood: list[bytes], cause: str, limits: dict[str, int]) -> None:
    """What costs a client nothing it may do so often a second, and no oftener; patience is rewarded."""
    peer = Peer(GrpcSettings(**limits))
    peer.send(headers(1, call_fields(STREAM)))
    for _ in range(5):
        assert goaway_code(peer.send(*flood * 10)) is None
        peer.now_ns += 10**9
    assert goaway_code(peer.send(*flood * 30)) is ErrorCode.ENHANCE_YOUR_CALM
    assert peer.connection.fault is not None
    assert peer.connection.fault.cause == cause


def test_10_5_rapid_reset() -> None:
    """Streams that are opened to be reset, by the client or by faults that make us do it, end the connection."""
    for ending in (lambda i: frames.rst_stream(i, ErrorCode.CANCEL), lambda i: frames.window_update(i, 0)):
        peer = Peer(max_resets_per_s=10)
        pairs = [headers(i) + ending(i) for i in range(1, 100, 2)]
        assert goaway_code(peer.send(*pairs)) is ErrorCode.ENHANCE_YOUR_CALM
        assert peer.connection.fault is not None
        assert peer.connection.fault.cause == "rapid_reset"


def mostly_reset(peer: Peer, first: int, count: int, kept: int) -> ErrorCode | None:
    """Open streams, of which all but each `kept`-th are reset, and that one is answered; the code of a GOAWAY."""
    for n in range(count):
        stream_id = first + 2 * n
        if n % kept:
            out = peer.send(headers(stream_id), frames.rst_stream(stream_id, ErrorCode.CANCEL))
        else:
            out = peer.send(headers(stream_id), data(stream_id, message(b""), END_STREAM))
            if stream := peer.connection.streams.get(stream_id):
                peer.connection.send_trailers(stream, b"")
        if code := goaway_code(out):
            return code
    assert not peer.connection.streams
    return None


def test_10_5_resets_among_calls_that_end_well() -> None:
    """A proxy brings the calls of many clients, and one in two may give up for ever; of two in three it is too much."""
    peer = Peer(max_resets_per_s=10)
    assert mostly_reset(peer, 1, 1000, kept=2) is None
    assert mostly_reset(peer, 2001, 1000, kept=3) is ErrorCode.ENHANCE_YOUR_CALM


def test_10_5_a_client_that_gives_up_all_its_calls_at_once() -> None:
    """As many as it may have are reset together, of its first calls, and of those behind many that ended well."""
    peer = Peer(max_resets_per_s=10, max_concurrent_streams=40)
    for first in (1, 2001, 4001):
        ids = range(first, first + 2 * 38, 2)
        assert goaway_code(peer.send(*map(headers, ids))) is None
        assert goaway_code(peer.send(*(frames.rst_stream(i, ErrorCode.CANCEL) for i in ids))) is None
        assert mostly_reset(peer, first + 1000, 100, kept=1) is None
        peer.now_ns += 2 * 10**9


@pytest.mark.parametrize("idle", [lambda i: i + 2000, lambda i: i + 2], ids=["numbers left out", "one after the other"])
def test_10_5_numbers_that_are_left_out_are_no_calls(idle: Callable[[int], int]) -> None:
    """To skip numbers of streams earns no resets, nor do streams that are refused."""
    peer = Peer(max_resets_per_s=10, max_concurrent_streams=3)
    peer.send(headers(1), headers(3))
    stream_id, ended = 5, None
    for _ in range(100):
        refused = idle(stream_id)
        pair = [headers(stream_id), headers(refused), frames.rst_stream(stream_id, ErrorCode.CANCEL)]
        ended = ended or goaway_code(peer.send(*pair))
        stream_id = idle(refused)
    assert ended is ErrorCode.ENHANCE_YOUR_CALM


@pytest.mark.parametrize("piece", [b"", b"\x00\x01x\x01y" * 200], ids=["empty", "large"])
def test_10_5_a_continuation_flood(piece: bytes) -> None:
    """A block without an end is cut off: by the number of its frames, or by its bytes."""
    peer = Peer()
    flood = [frame(frames.CONTINUATION, 0, 1, piece)] * 30
    assert goaway_code(peer.send(headers(flags=0), *flood)) is ErrorCode.ENHANCE_YOUR_CALM
    assert peer.connection.fault is not None
    assert peer.connection.fault.cause == "continuation_flood"


@pytest.mark.parametrize(("limit", "code"), [(3, None), (2, ErrorCode.ENHANCE_YOUR_CALM)], ids=["enough", "too few"])
def test_10_5_as_many_continuations_as_the_setting_says(limit: int, code: ErrorCode | None) -> None:
    """A block in four frames has three of them."""
    block = encode(call_fields(LIVE))
    pieces = [block[:5], block[5:10], block[10:15], block[15:]]
    rest = [
        frame(frames.CONTINUATION, flags, 1, piece)
        for flags, piece in zip((0, 0, END_HEADERS), pieces[1:], strict=True)
    ]
    peer = Peer(max_continuations=limit)
    assert goaway_code(peer.send(headers(flags=0, block=pieces[0]), *rest)) is code
    assert (len(peer.events) == 1) == (code is None)


def test_10_5_an_hpack_bomb() -> None:
    """A small block that expands to a large list is refused for its list, and holds no memory."""
    peer = Peer()
    bomb = b"\x40\x01x\x7f\xb1\x1e" + b"y" * 4000 + b"\xbe" * 10_000
    peer.send(headers(1, block=encode(call_fields(LIVE)) + bomb))
    assert peer.events[0][1].head.refusal is not None


# --- time -----------------------------------------------------------------------------------------


def test_a_client_that_does_not_finish_the_handshake() -> None:
    """Without its preface and the ACK of our SETTINGS a connection lasts for the handshake's time."""
    for start in (b"", frames.PREFACE[:5], frames.PREFACE + frames.settings({})):
        peer = Peer(greeted=False)
        peer.send(start)
        assert goaway_code(peer.wait(9)) is None
        assert goaway_code(peer.wait(2)) is ErrorCode.SETTINGS_TIMEOUT
    peer = Peer()
    assert goaway_code(peer.wait(11)) is None


def test_keepalive() -> None:
    """A silent client is pinged; one that answers stays, one that does not is closed."""
    peer = Peer(keepalive_s=10, keepalive_timeout_s=5)
    for _ in range(3):
        assert peer.wait(9) == []
        [ping] = peer.wait(2)
        assert (ping.kind, ping.flags) == (frames.PING, 0)
        assert peer.wait(4) == []
        peer.send(frames.ping(ping.payload, frames.ACK))
    peer.wait(11)
    assert goaway_code(peer.wait(6)) is ErrorCode.NO_ERROR
    assert peer.connection.fault is not None
    assert peer.connection.fault.cause == "keepalive_timeout"


def test_idle_and_old_connections_are_asked_to_leave() -> None:
    """An idle connection and one over its age get GOAWAY; the grace ends what does not leave."""
    peer = Peer(idle_timeout_s=10)
    peer.send(headers(1))
    assert peer.wait(11) == []
    peer.send(frames.rst_stream(1, ErrorCode.CANCEL))
    assert goaway_code(peer.wait(11)) is ErrorCode.NO_ERROR
    assert peer.connection.leaves == "idle"
    peer = Peer(max_connection_age_s=10, max_connection_age_grace_s=5)
    peer.send(headers(1))
    assert goaway_code(peer.wait(11)) is ErrorCode.NO_ERROR
    assert peer.connection.leaves == "old"
    peer.wait(2)
    assert peer.connection.fault is None
    peer.wait(4)
    assert peer.connection.fault is not None
    assert peer.connection.fault.cause == "grace_over"


def test_a_slow_writer() -> None:
    """A unary request that is not here in time is late, whether nothing of it came or all but its end."""
    for start in (headers(1), headers(1) + data(1, MESSAGE)):
        peer = Peer()
        peer.send(start)
        for _, stream, _ in peer.events:
            stream.due_ns = peer.now_ns + int(60e9)
        peer.wait(59)
        assert peer.events == []
        peer.wait(2)
        assert peer.kinds[-1] is Kind.LATE


def test_a_slow_reader() -> None:
    """An answer that the client's windows hold up for too long is given up, and only that."""
    peer = Peer(send_timeout_s=10)
    ask(peer)
    ask(peer, 3)
    peer.connection.answer(peer.connection.streams[1], bytes(100_000))
    peer.sent()
    peer.wait(8)
    peer.send(frames.window_update(1, 1000), frames.window_update(0, 1))
    assert reset_code(peer.wait(8)) is None
    assert reset_code(peer.wait(3)) is ErrorCode.CANCEL
    assert peer.refused == {"slow_reader": 1}
    assert list(peer.connection.streams) == [3]


def test_nothing_is_read_after_a_fault() -> None:
    """After GOAWAY for an error what still comes is not looked at."""
    peer = Peer()
    peer.send(data(0, b"x"))
    assert peer.send(headers(1), frames.ping(bytes(8))) == []
    assert peer.events == []
    assert peer.wait(100) == []
