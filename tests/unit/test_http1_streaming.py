"""Answers in pieces over HTTP/1: their framing, their turn, back-pressure, the end. In memory."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import pytest

from server.transport.http1.head import Head
from server.transport.http1.protocol import Turn
from server.transport.http1.reply import Reply
from server.transport.http1.streaming import Stream
from tests.support.http1 import Peer, take_chunks
from tests.unit.test_http1_connection import S, get, post

TYPE = [(b"content-type", b"text/plain")]


class Streamer:
    """Begins a stream for every turn but those for /plain, whose answers are held until `answer`."""

    def __init__(self) -> None:
        self.streams: list[Stream] = []
        self.plain: list[Turn] = []
        self.abandoned: list[Turn] = []

    def plan(self, head: Head) -> None:
        pass

    def take(self, turns: Sequence[Turn]) -> None:
        for turn in turns:
            if turn.head is not None and turn.head.path == b"/plain":
                self.plain.append(turn)
            else:
                self.streams.append(turn.stream(200, TYPE))

    def abandon(self, turn: Turn) -> None:
        self.abandoned.append(turn)


@pytest.fixture
def app() -> Streamer:
    return Streamer()


def sent(peer: Peer) -> tuple[str, list[bytes]]:
    """The head and the chunks that were written."""
    head, _, body = peer.transport.sent.partition(b"\r\n\r\n")
    return head.decode(), take_chunks(body)[0]


async def settle() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


async def test_each_piece_is_a_chunk_and_is_written_at_once(app: Streamer) -> None:
    """RFC 9112 7.1: chunks, and an empty one at the end; the connection goes on behind it."""
    peer = Peer(app)
    peer.send(get())
    [stream] = app.streams
    assert peer.transport.sent == b""
    for piece in (b"one", b"", b"two" * 10):
        await stream.send(piece)
    assert sent(peer)[1] == [b"one", b"two" * 10]
    stream.end(b"three")
    head, chunks = sent(peer)
    assert chunks == [b"one", b"two" * 10, b"three", b""]
    assert head.startswith("HTTP/1.1 200 OK\r\ndate: ")
    assert "content-length" not in head
    assert "connection" not in head
    assert not peer.over
    peer.send(get())
    app.streams[-1].end()
    assert [answer.body for answer in peer.answers()] == [b"one" + b"two" * 10 + b"three", b""]


@pytest.mark.parametrize("field", [(), ("Connection: keep-alive",)], ids=["plain", "that asks to keep the connection"])
async def test_http_1_0_is_answered_to_the_end_of_the_connection(app: Streamer, field: tuple[str, ...]) -> None:
    """RFC 9112 6.3 and 7.1: HTTP/1.0 knows no chunks, so the end of the connection is the end of the answer."""
    peer = Peer(app)
    peer.send(get("/", *field, version="1.0"))
    await app.streams[0].send(b"one")
    assert not peer.over
    app.streams[0].end(b"two")
    assert peer.transport.closed
    [answer] = peer.answers()
    assert answer.body == b"onetwo"
    assert answer.headers["connection"] == "close"
    assert "transfer-encoding" not in answer.headers


async def test_nothing_is_answered_behind_a_stream_to_http_1_0(app: Streamer) -> None:
    """What the client has asked for behind it is given up: an answer would be taken for more of the body."""
    peer = Peer(app)
    fields = ("Connection: keep-alive",)
    peer.send(get("/", *fields, version="1.0") + get("/plain", *fields, version="1.0"))
    assert [turn.head and turn.head.path for turn in app.abandoned] == [b"/plain"]
    await app.streams[0].send(b"one")
    app.plain[0].reply(Reply(200, b"more"))
    app.streams[0].end()
    assert peer.over
    assert [answer.body for answer in peer.answers()] == [b"one"]


async def test_head_is_answered_by_the_head_alone(app: Streamer) -> None:
    """RFC 9110 9.3.2: the headers are those of GET, there is no body, and the connection goes on."""
    peer = Peer(app)
    peer.send(get(method="HEAD"))
    app.streams[0].end(b"piece")
    assert peer.transport.sent.endswith(b"transfer-encoding: chunked\r\n\r\n")
    assert not peer.over


async def test_a_stream_waits_for_the_answers_before_it_and_others_for_its_end(app: Streamer) -> None:
    """RFC 9112 9.3.2: pipelined requests are answered in order, in pieces or not."""
    peer = Peer(app)
    peer.send(get("/plain") + get("/a") + get("/b") + get("/plain"))
    first, second = app.streams
    app.plain[1].reply(Reply(200, b"last"))
    sending = [asyncio.ensure_future(stream.send(b"piece")) for stream in (first, second)]
    second_done = sending[1]
    await settle()
    assert peer.transport.sent == b""
    app.plain[0].reply(Reply(200, b"first"))
    await settle()
    assert sending[0].done()
    assert not second_done.done()
    assert peer.transport.sent.endswith(b"5\r\npiece\r\n")
    first.end(b"!")
    await settle()
    assert second_done.done()
    second.end(b"?")
    assert [answer.body for answer in peer.answers()] == [b"first", b"piece!", b"piece?", b"last"]


async def test_an_ended_stream_keeps_its_place(app: Streamer) -> None:
    """One that is over before its turn has come is written whole when it comes."""
    peer = Peer(app)
    peer.send(get("/plain") + get("/a"))
    app.streams[0].end(b"whole")
    assert peer.transport.sent == b""
    app.plain[0].reply(Reply(200, b"first"))
    assert [answer.body for answer in peer.answers()] == [b"first", b"whole"]


async def test_a_peer_that_does_not_read_holds_the_pieces_up(app: Streamer) -> None:
    """While more than max_unsent_bytes wait for the peer, `send` does too; nothing is lost."""
    peer = Peer(app)
    assert peer.transport.high == peer.server.settings.max_unsent_bytes
    peer.send(get())
    [stream] = app.streams
    await stream.send(b"one")
    peer.protocol.pause_writing()
    sending = asyncio.ensure_future(stream.send(b"two"))
    await settle()
    assert not sending.done()
    peer.protocol.resume_writing()
    await sending
    assert sent(peer)[1] == [b"one", b"two"]


async def test_a_peer_that_takes_nothing_of_a_stream_is_cut_off(app: Streamer) -> None:
    """After write_timeout_s it is counted as a slow reader, and its turn is given up."""
    peer = Peer(app, write_timeout_s=20)
    peer.send(get())
    await app.streams[0].send(b"one")
    peer.transport.buffered = 300_000
    peer.protocol.pause_writing()
    since_ns = peer.protocol._paused_ns
    peer.protocol.check_time(since_ns + 19 * S)
    assert not peer.transport.aborted
    peer.protocol.check_time(since_ns + 21 * S)
    assert peer.transport.aborted
    assert peer.causes == {"slow_reader": 1}
    await settle()
    assert len(app.abandoned) == 1


async def test_a_stream_may_take_longer_than_any_time_out(app: Streamer) -> None:
    """A peer that waits for the next piece is not timed."""
    peer = Peer(app)
    peer.send(get())
    await app.streams[0].send(b"one")
    for hour in range(1, 4):
        peer.protocol.check_time(peer.protocol._since_ns + hour * 3600 * S)
    assert not peer.over


async def test_a_peer_that_leaves_abandons_its_stream(app: Streamer) -> None:
    """The application hears of it; what it still says is dropped."""
    peer = Peer(app)
    peer.send(get())
    [stream] = app.streams
    await stream.send(b"one")
    written = peer.transport.sent
    peer.protocol.connection_lost(None)
    assert len(app.abandoned) == 1
    stream.end(b"late")
    assert peer.transport.sent == written
    assert peer.protocol.streams == []


@pytest.mark.parametrize("version", ["1.0", "1.1"])
async def test_a_stream_that_begins_behind_the_end_is_dropped(app: Streamer, version: str) -> None:
    """Whoever begins to answer a peer that has left does no harm."""
    peer = Peer(app)
    peer.send(get("/plain", version=version))
    [turn] = app.plain
    peer.protocol.connection_lost(None)
    turn.stream(200, TYPE).end(b"late")
    assert peer.transport.sent == b""


async def test_a_drain_waits_for_the_end_of_a_stream(app: Streamer) -> None:
    """Its pieces go on; behind its end the connection is closed."""
    peer = Peer(app)
    peer.send(get())
    [stream] = app.streams
    await stream.send(b"one")
    peer.server.draining = True
    peer.protocol.drain()
    await stream.send(b"two")
    assert not peer.over
    stream.end()
    assert sent(peer)[1] == [b"one", b"two", b""]
    assert peer.transport.closed


async def test_the_end_of_the_grace_gives_a_stream_up(app: Streamer) -> None:
    """The application may still end it, which closes the connection."""
    peer = Peer(app)
    peer.send(get())
    [stream] = app.streams
    await stream.send(b"one")
    peer.server.draining = True
    peer.protocol.cut_off()
    assert len(app.abandoned) == 1
    assert not peer.over
    stream.end(b"bye")
    assert sent(peer)[1] == [b"one", b"bye", b""]
    assert peer.transport.closed


async def test_the_last_stream_of_a_connection_says_so(app: Streamer) -> None:
    """A client that asked for it to be the last is told so, and it is."""
    peer = Peer(app)
    peer.send(post(b"", "Connection: close"))
    app.streams[0].end(b"one")
    [answer] = peer.answers()
    assert (answer.headers["connection"], answer.body) == ("close", b"one")
    assert peer.over


async def test_a_stream_is_ended_once(app: Streamer) -> None:
    """A second end is dropped, as a second answer is."""
    peer = Peer(app)
    peer.send(get())
    app.streams[0].end(b"one")
    app.streams[0].end(b"two")
    answers: list[Any] = peer.answers()
    assert [answer.body for answer in answers] == [b"one"]
