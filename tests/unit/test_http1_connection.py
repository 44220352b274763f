"""One connection of HTTP/1: requests in any pieces, answers in order, limits, time-outs, the end. In memory."""

from __future__ import annotations

import asyncio
import random
import re
from typing import Any

import pytest

from server.settings import HttpSettings
from server.transport.http1.chunked import Chunked
from server.transport.http1.head import Refused
from server.transport.http1.reply import CONTINUE
from server.transport.http1.server import Http1Server
from tests.support.http1 import Echo, Peer

S = 1_000_000_000


def get(path: str = "/", *fields: str, method: str = "GET", version: str = "1.1") -> bytes:
    return "\r\n".join([f"{method} {path} HTTP/{version}", "Host: x", *fields, "", ""]).encode()


def post(body: bytes, *fields: str, path: str = "/") -> bytes:
    return get(path, f"Content-Length: {len(body)}", *fields, method="POST") + body


CHUNKED = "Transfer-Encoding: chunked"


def chunked(*pieces: bytes, end: bytes = b"0\r\n\r\n") -> bytes:
    return get("/", CHUNKED, method="POST") + b"".join(b"%X;x=1\r\n%s\r\n" % (len(p), p) for p in pieces) + end


@pytest.fixture
def app() -> Echo:
    return Echo()


# --- requests in ----------------------------------------------------------------------------------------------

STREAM = b"".join(
    (
        get("/a"),
        b"\r\n",
        post(b"hello"),
        chunked(b"one", b"twotwo", end=b"0\r\nTrailer: t\r\nX: \r\n\r\n"),
        get("/refused", "Content-Length: 3") + b"xyz",
        get("/b", method="HEAD"),
        chunked(),
        post(b"", "Connection: close"),
    )
)
METHODS = ("GET", "POST", "POST", "GET", "HEAD", "POST", "POST")
BODIES = [b"GET /a ", b"POST / hello", b"POST / onetwotwo", b"no", b"", b"POST / ", b"POST / "]


async def test_pipelined_requests_are_answered_in_order(app: Echo) -> None:
    """RFC 9112 9.3.2: in order, whatever their bodies; requests that arrive together are handed over together."""
    peer = Peer(app)
    peer.send(STREAM)
    answers = peer.answers(*METHODS)
    assert [answer.body for answer in answers] == BODIES
    assert [answer.status for answer in answers] == [200, 200, 200, 404, 200, 200, 200]
    assert [answer.headers.get("connection") for answer in answers] == [None] * 6 + ["close"]
    assert app.batches == [6]
    assert peer.transport.closed
    assert not peer.causes


@pytest.mark.parametrize("at", range(1, len(STREAM)))
async def test_bytes_may_be_split_anywhere(app: Echo, at: int) -> None:
    """Two pieces, cut at any place, are the same requests."""
    peer = Peer(app)
    peer.send(STREAM[:at])
    peer.send(STREAM[at:])
    assert [answer.body for answer in peer.answers(*METHODS)] == BODIES


@pytest.mark.parametrize("size", [1, 2, 3, 7, 50])
async def test_bytes_may_come_one_by_one(app: Echo, size: int) -> None:
    """Pieces of any size are the same requests."""
    peer = Peer(app)
    for at in range(0, len(STREAM), size):
        peer.send(STREAM[at : at + size])
    assert [answer.body for answer in peer.answers(*METHODS)] == BODIES


async def test_rfc_9112_2_2_empty_lines(app: Echo) -> None:
    """A few before a request line are skipped, also in pieces; a flood of them is no request."""
    peer = Peer(app)
    peer.send(b"\r\n\r\n" + get("/1") + b"\r")
    peer.send(b"\n" + get("/2"))
    assert [answer.status for answer in peer.answers()] == [200, 200]
    peer.send(b"\r\n" * 10_000)
    assert [answer.status for answer in peer.answers()] == [400]


async def test_answers_wait_for_those_before_them(app: Echo) -> None:
    """RFC 9112 9.3.2: a later answer that is ready first is kept back."""
    app.held = True
    peer = Peer(app)
    peer.send(get("/1") + get("/2") + get("/3"))
    first, second, third = app.waiting
    app.answer(third)
    app.answer(second)
    assert not peer.transport.sent
    app.answer(first)
    assert [answer.body for answer in peer.answers()] == [b"GET /1 ", b"GET /2 ", b"GET /3 "]


async def test_a_second_answer_is_dropped(app: Echo) -> None:
    """A turn is answered once."""
    app.held = True
    peer = Peer(app)
    peer.send(get())
    app.answer(app.waiting[0])
    app.answer(app.waiting[0])
    assert len(peer.answers()) == 1


async def test_every_answer_has_a_date(app: Echo) -> None:
    """RFC 9110 6.6.1: a server with a clock says when it answered."""
    peer = Peer(app)
    peer.send(get() + get("/refused") + b"bad\r\n")
    assert all(answer.headers["date"].endswith(" GMT") for answer in peer.answers())


@pytest.mark.parametrize(
    ("version", "field", "connection", "closed"),
    [
        ("1.1", "", None, False),
        ("1.1", "Connection: close", "close", True),
        ("1.0", "", "close", True),
        ("1.0", "Connection: keep-alive", "keep-alive", False),
    ],
)
async def test_rfc_9112_9_3_persistence(
    app: Echo, version: str, field: str, connection: str | None, closed: bool
) -> None:
    """The answer says what becomes of the connection, and so it happens."""
    peer = Peer(app)
    peer.send(get("/", *([field] if field else []), version=version))
    [answer] = peer.answers()
    assert answer.headers.get("connection") == connection
    assert peer.transport.closed is closed


async def test_nothing_is_answered_behind_the_last_request(app: Echo) -> None:
    """RFC 9112 9.6: what follows `Connection: close` is not read; the connection is closed without a reset."""
    peer = Peer(app)
    peer.send(get("/", "Connection: close") + get("/more"))
    peer.send(get("/more"))
    assert len(peer.answers()) == 1
    assert peer.transport.eof
    assert not peer.transport.closed


async def test_head_and_a_fault_have_no_body(app: Echo) -> None:
    """RFC 9110 9.3.2: an answer to HEAD has the length of the body that it leaves out."""
    peer = Peer(app)
    peer.send(get("/", method="HEAD") + get("/refused", method="HEAD"))
    assert [a.headers["content-length"] for a in peer.answers("HEAD", "HEAD")] == ["7", "2"]


# --- RFC 9110 10.1.1: Expect ----------------------------------------------------------------------------------

EXPECT = "Expect: 100-continue"


async def test_the_body_is_asked_for(app: Echo) -> None:
    """100 is sent once, if the body will be taken and is not here yet."""
    peer = Peer(app)
    request = post(b"hello", EXPECT)
    peer.send(request[:-5])
    assert [answer.status for answer in peer.answers()] == [100]
    peer.send(request[-5:-3])
    peer.send(request[-3:])
    assert [answer.body for answer in peer.answers()] == [b"POST / hello"]


async def test_a_body_that_is_here_is_not_asked_for(app: Echo) -> None:
    """Neither whole nor begun."""
    peer = Peer(app)
    peer.send(post(b"hello", EXPECT))
    peer.send(post(b"hello", EXPECT)[:-2])
    peer.send(b"lo")
    assert [answer.status for answer in peer.answers()] == [200, 200]


async def test_a_body_that_will_not_be_taken_is_not_asked_for(app: Echo) -> None:
    """The final answer comes instead, and the connection ends: the body may come or not."""
    for request in (
        get("/refused", "Content-Length: 5", EXPECT, method="POST"),
        get("/", "Content-Length: 1001", EXPECT, method="POST"),
    ):
        peer = Peer(app, max_body_bytes=1000)
        peer.send(request)
        [answer] = peer.answers()
        assert answer.status in (404, 413)
        assert answer.headers["connection"] == "close"
        assert peer.over


async def test_the_body_is_asked_for_in_turn(app: Echo) -> None:
    """100 goes behind the answers to the requests before it."""
    app.held = True
    peer = Peer(app)
    peer.send(get("/1") + post(b"hello", EXPECT)[:-5])
    assert not peer.transport.sent
    app.answer(app.waiting[0])
    assert [answer.status for answer in peer.answers()] == [200, 100]


# --- RFC 9112 7.1: chunks --------------------------------------------------------------------------------------

BAD_CHUNKS = {
    "no size": b"\r\nabc\r\n0\r\n\r\n",
    "a size that is none": b"g\r\nabc\r\n0\r\n\r\n",
    "a prefix": b"0x3\r\nabc\r\n0\r\n\r\n",
    "a sign": b"+3\r\nabc\r\n0\r\n\r\n",
    "a size of 17 digits": b"00000000000000003\r\nabc\r\n0\r\n\r\n",
    "a space": b"3 \r\nabc\r\n0\r\n\r\n",
    "an underscore": b"1_0\r\nabc\r\n0\r\n\r\n",
    "a bare LF behind the size": b"3\nabc\r\n0\r\n\r\n",
    "a bare CR in an extension": b"3;a\rb\r\nabc\r\n0\r\n\r\n",
    "a bare LF in an extension": b"3;a\nb\r\nabc\r\n0\r\n\r\n",
    "more than the size": b"3\r\nabcd\r\n0\r\n\r\n",
    "less than the size": b"3\r\nab\r\n0\r\n\r\n0\r\n\r\n",
    "a bare LF behind the data": b"3\r\nabc\n0\r\n\r\n",
    "a trailer without a colon": b"0\r\nabc\r\n\r\n",
    "a trailer with a space": b"0\r\na : b\r\n\r\n",
    "a folded trailer": b"0\r\na: b\r\n c\r\n\r\n",
    "NUL in a trailer": b"0\r\na: \0\r\n\r\n",
}


@pytest.mark.parametrize("body", BAD_CHUNKS.values(), ids=BAD_CHUNKS.keys())
async def test_broken_chunks_end_the_connection(app: Echo, body: bytes) -> None:
    """Nobody can tell where such a body ends, so nothing behind it is a request."""
    peer = Peer(app)
    peer.send(get("/", CHUNKED, method="POST") + body + get("/smuggled"))
    [answer] = peer.answers()
    assert (answer.status, answer.headers["connection"]) == (400, "close")
    assert not app.bodies
    assert peer.causes == {"malformed": 1}


async def test_a_size_line_that_goes_on_is_refused(app: Echo) -> None:
    """An extension is bounded, and so are trailers."""
    for body, status in (
        (b"3;" + b"a" * 2000, 400),
        (b"0\r\n" + b"a: b\r\n" * 400, 431),
        (b"0\r\n" + b"a" * 2000, 431),
    ):
        peer = Peer(app, max_head_bytes=1500)
        peer.send(get("/", CHUNKED, method="POST") + body)
        assert [answer.status for answer in peer.answers()] == [status]


def test_tiny_chunks_are_bounded() -> None:
    """A body of chunks of a byte each would keep the event loop; a body of many fair chunks is fine."""
    reader = Chunked(2**30, 1000)
    with pytest.raises(Refused, match="too small"):
        reader.feed(b"1\r\na\r\n" * 10_000, lambda _: None)
    reader = Chunked(2**30, 1000)
    assert reader.feed((b"40\r\n" + b"a" * 64 + b"\r\n") * 10_000, lambda _: None) is None


# --- what might hide a request -------------------------------------------------------------------------------

_UPGRADE = ("Connection: Upgrade, HTTP2-Settings", "Upgrade: h2c", "HTTP2-Settings: AAMAAABkAAQAAP__")
HIDING = {
    "GET with a body": (get("/", "Content-Length: 3") + b"GET", b"GET / GET"),
    "GET with chunks": (get("/", CHUNKED) + b"3\r\nGET\r\n0\r\n\r\n", b"GET / GET"),
    "OPTIONS *": (get("*", method="OPTIONS"), b"OPTIONS * "),
    "an upgrade": (get("/", *_UPGRADE), b"GET / "),
    "an upgrade with a body": (post(b"GET", *_UPGRADE), b"POST / GET"),
    "an upgrade with chunks": (get("/", CHUNKED, *_UPGRADE, method="POST") + b"1\r\nG\r\n0\r\n\r\n", b"POST / G"),
    "trailers that say a length": (
        get("/", CHUNKED, method="POST") + b"0\r\nContent-Length: 99\r\nTransfer-Encoding: gzip\r\n\r\n",
        b"POST / ",
    ),
    "quoted extensions": (
        get("/", CHUNKED, method="POST") + b'1;a="0;b";c\r\nx\r\n00;d="\\""\r\n\r\n',
        b"POST / x",
    ),
    "a length that Connection names": (post(b"GET", "Connection: content-length"), b"POST / GET"),
    "a length by another name": (get("/", "Content_Length: 99", "Content-Length-: 99", method="POST"), b"POST / "),
    "a body that was expected": (post(b"GET", EXPECT), b"POST / GET"),
    "empty lines": (b"\r\n\r\n" + get("/"), b"GET / "),
}


@pytest.mark.parametrize(("hiding", "body"), HIDING.values(), ids=HIDING.keys())
@pytest.mark.parametrize("size", [1, 10**6], ids=["byte by byte", "at once"])
async def test_what_follows_a_request_is_the_next_one(app: Echo, hiding: bytes, body: bytes, size: int) -> None:
    """Neither more nor less is taken for its body than another reader of the same bytes would take."""
    peer = Peer(app)
    data = hiding + get("/next")
    for at in range(0, len(data), size):
        peer.send(data[at : at + size])
    final = [answer for answer in peer.answers() if answer.status != 100]
    assert [answer.body for answer in final] == [body, b"GET /next "]
    assert not peer.causes


async def test_faults_of_single_requests_are_answered_in_their_places(app: Echo) -> None:
    """What the application refuses leaves the connection to those behind it; what is no HTTP ends it."""
    peer = Peer(app)
    refused = get("/refused", "Content-Length: 2") + b"ab"
    peer.send(get("/1") + refused + post(b"x") + refused + get("/2") + get("nothing") + get("/smuggled"))
    assert [answer.status for answer in peer.answers()] == [200, 404, 200, 404, 200, 400]
    assert peer.causes == {"malformed": 1}
    assert app.batches == [3]


# --- limits ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("request_", "status", "cause", "settings"),
    [
        (get("/", "A: " + "b" * 1000), 431, "head_too_large", {"max_head_bytes": 500}),
        (get("/", *["A: b"] * 9), 431, "head_too_large", {"max_headers": 9}),
        (get("/" + "b" * 200), 414, "target_too_long", {"max_target_bytes": 200}),
        (get("/", "A: \x00"), 400, "malformed", {}),
        (post(b"b" * 101), 413, "body_too_large", {"max_body_bytes": 100}),
        (chunked(b"b" * 101), 413, "body_too_large", {"max_body_bytes": 100}),
        (chunked(b"b" * 50, b"b" * 51), 413, "body_too_large", {"max_body_bytes": 100}),
        (post(b"b" * 300)[:-100], 503, "out_of_memory", {"max_bodies_bytes": 100}),
        (chunked(b"b" * 101), 503, "out_of_memory", {"max_bodies_bytes": 100}),
    ],
    ids=["head", "fields", "target", "NUL", "length", "a chunk", "chunks", "memory", "memory for chunks"],
)
async def test_limits_end_the_connection(
    app: Echo, request_: bytes, status: int, cause: str, settings: dict[str, Any]
) -> None:
    """The answer says what is wrong, the connection ends, the cause is counted, and the app sees nothing."""
    peer = Peer(app, **settings)
    peer.send(request_ + get("/smuggled"))
    [answer] = peer.answers()
    assert (answer.status, answer.headers["connection"]) == (status, "close")
    assert answer.error
    assert peer.causes == {cause: 1}
    assert not app.bodies
    assert peer.over


async def test_a_fault_is_answered_behind_the_good_requests(app: Echo) -> None:
    """What was right before the fault is answered, now or later."""
    app.held = True
    peer = Peer(app)
    peer.send(get("/1") + b"bad\r\n\r\n")
    assert not peer.transport.sent
    app.answer(app.waiting[0])
    assert [answer.status for answer in peer.answers()] == [200, 400]
    assert peer.over


async def test_memory_for_bodies_is_given_back(app: Echo) -> None:
    """By bodies that are complete, and by connections that are lost."""
    peer = Peer(app, max_bodies_bytes=100)
    lost = Peer(app, peer.server)
    lost.send(post(b"b" * 100)[:-10])
    lost.protocol.connection_lost(None)
    for _ in range(3):
        peer.send(post(b"b" * 100)[:-10])
        peer.send(b"b" * 10)
    assert [answer.status for answer in peer.answers()] == [200] * 3


async def test_too_many_connections(app: Echo) -> None:
    """One over the limit is told so and closed; a place that is free again is taken."""
    first = Peer(app, max_connections=1)
    second = Peer(app, first.server)
    assert [answer.status for answer in second.answers()] == [503]
    assert second.transport.closed
    second.protocol.connection_lost(None)
    assert first.causes == {"too_many_connections": 1}
    first.protocol.connection_lost(None)
    third = Peer(app, first.server)
    third.send(get())
    assert [answer.status for answer in third.answers()] == [200]


async def test_requests_under_way_are_bounded(app: Echo) -> None:
    """A connection is not read while it has as many requests as it may; then it goes on where it was."""
    app.held = True
    peer = Peer(app, max_pipelined_requests=3)
    peer.send(b"".join(get(f"/{i}") for i in range(8)))
    assert len(app.waiting) == 3
    assert not peer.transport.reading
    for i in range(8):
        app.answer(app.waiting[i])
        await asyncio.sleep(0)
    assert [answer.body for answer in peer.answers()] == [b"GET /%d " % i for i in range(8)]
    assert peer.transport.reading


# --- back-pressure and time-outs ---------------------------------------------------------------------------------


def later(peer: Peer, seconds: float) -> None:
    """So much time passes, and the server looks at its connections."""
    peer.server.look(peer.protocol._since_ns + int(seconds * S))


async def test_a_slow_reader_is_not_read(app: Echo) -> None:
    """Nothing is read from a peer that does not take its answers, until it does."""
    peer = Peer(app, max_unsent_bytes=1234)
    assert peer.transport.high == 1234
    peer.protocol.pause_writing()
    assert not peer.transport.reading
    peer.protocol.resume_writing()
    assert peer.transport.reading


async def test_a_reader_that_is_too_slow_is_cut_off(app: Echo) -> None:
    """After the time-out and what it has earned by what it took."""
    peer = Peer(app, write_timeout_s=10, min_bytes_per_s=100)
    peer.transport.buffered = 2000
    peer.protocol.pause_writing()
    paused_ns = peer.protocol._paused_ns
    peer.transport.buffered = 1500
    peer.server.look(paused_ns + 14 * S)
    assert not peer.transport.aborted
    peer.server.look(paused_ns + 16 * S)
    assert peer.transport.aborted
    assert peer.causes == {"slow_reader": 1}


async def test_an_idle_connection_is_closed(app: Echo) -> None:
    """Without a word; but not while a request is under way."""
    app.held = True
    peer = Peer(app, keep_alive_s=30)
    peer.send(get())
    later(peer, 31)
    assert not peer.over
    app.answer(app.waiting[0])
    later(peer, 29)
    assert not peer.over
    later(peer, 31)
    assert peer.transport.closed
    assert len(peer.answers()) == 1
    assert peer.causes == {"idle": 1}


@pytest.mark.parametrize(
    ("begin", "cause"),
    [
        (get()[:-1], "slow_head"),
        (b"G", "slow_head"),
        (post(b"12")[:-1], "slow_body"),
        (chunked(b"1")[:-3], "slow_body"),
    ],
    ids=["a head", "a byte", "a body", "a chunked body"],
)
async def test_a_slow_request_is_408(app: Echo, begin: bytes, cause: str) -> None:
    """RFC 9110 15.5.9: answered, and closed; in any case bytes that trickle in buy no time."""
    peer = Peer(app, head_timeout_s=10, body_timeout_s=10, min_bytes_per_s=1000)
    peer.send(begin[:1])
    peer.send(begin[1:])
    later(peer, 9)
    assert not peer.over
    later(peer, 11)
    [answer] = peer.answers()
    assert (answer.status, answer.headers["connection"]) == (408, "close")
    assert peer.causes == {cause: 1}
    assert peer.over


async def test_a_long_body_earns_its_time(app: Echo) -> None:
    """A body that comes at the least rate is waited for, a chunk that is only promised is not."""
    peer = Peer(app, body_timeout_s=10, min_bytes_per_s=100)
    peer.send(get("/", "Content-Length: 99999", method="POST") + b"b" * 1000)
    later(peer, 19)
    assert not peer.over
    promising = Peer(app, body_timeout_s=10, min_bytes_per_s=100)
    promising.send(get("/", CHUNKED, method="POST") + b"fffff\r\nabc")
    later(promising, 11)
    assert promising.over


async def test_a_peer_that_waits_for_its_turn_is_not_timed(app: Echo) -> None:
    """The body is not asked for yet, so it can't be late."""
    app.held = True
    peer = Peer(app, body_timeout_s=10)
    peer.send(get("/1") + post(b"hello", EXPECT)[:-5])
    later(peer, 60)
    assert not peer.over


async def test_lingering_ends(app: Echo) -> None:
    """A peer that goes on sending what nobody reads is cut off after a while."""
    peer = Peer(app, linger_s=2, max_body_bytes=10)
    peer.send(post(b"b" * 100)[:-50])
    peer.send(b"b" * 50)
    assert len(peer.answers()) == 1
    later(peer, 1)
    assert not peer.transport.aborted
    later(peer, 3)
    assert peer.transport.aborted


# --- leaving -----------------------------------------------------------------------------------------------------


async def test_a_peer_that_leaves_abandons_its_requests(app: Echo) -> None:
    """Each that was not answered, once; an answer that comes afterwards goes nowhere."""
    app.held = True
    peer = Peer(app)
    peer.send(get("/1") + get("/2"))
    app.answer(app.waiting[1])
    assert peer.protocol.eof_received() is False
    peer.protocol.connection_lost(None)
    assert app.abandoned == app.waiting[:1]
    app.answer(app.waiting[0])
    assert not peer.transport.sent


async def test_drain(app: Echo) -> None:
    """Idle connections are closed; what is under way, or has begun to arrive, is answered and closed behind."""
    idle = Peer(app)
    app.held = True
    busy, begun, pipelined = (Peer(app, idle.server) for _ in range(3))
    busy.send(get("/1"))
    begun.send(get("/2")[:-2])
    pipelined.send(get("/3") + get("/4"))
    idle.server.draining = True
    for connection in idle.server.connections:
        connection.drain()
    assert idle.transport.closed
    begun.send(b"\r\n")
    for turn in app.waiting:
        app.answer(turn)
    for peer, paths in ((busy, [b"/1"]), (begun, [b"/2"]), (pipelined, [b"/3", b"/4"])):
        answers = peer.answers()
        assert [answer.body for answer in answers] == [b"GET %s " % path for path in paths]
        assert [answer.headers.get("connection") for answer in answers] == [None] * (len(paths) - 1) + ["close"]
        assert peer.transport.closed


async def test_a_request_that_crosses_the_end_is_answered(app: Echo, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a connection that was idle as the server began to stop: a proxy that uses it again gets no end of file."""
    monkeypatch.setattr("server.transport.http1.server._IDLE_S", 20.0)
    server = Http1Server(app, "127.0.0.1", 0, HttpSettings())
    reader, writer = await asyncio.open_connection("127.0.0.1", await server.start())
    writer.write(get("/1"))
    assert b"GET /1" in await reader.readuntil(b"GET /1 ")
    stopping = asyncio.create_task(server.stop(20))
    while not server.draining:  # noqa: ASYNC110 - it has no event
        await asyncio.sleep(0)
    await asyncio.sleep(0.05)
    writer.write(get("/2"))
    rest = await asyncio.wait_for(reader.read(), 20)
    assert b"connection: close" in rest
    assert b"GET /2" in rest
    writer.close()
    await writer.wait_closed()
    await asyncio.wait_for(stopping, 20)


async def test_a_connection_that_stays_idle_is_closed_as_the_server_stops(
    app: Echo, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Behind the moment in which something might have crossed."""
    monkeypatch.setattr("server.transport.http1.server._IDLE_S", 0.01)
    server = Http1Server(app, "127.0.0.1", 0, HttpSettings())
    reader, writer = await asyncio.open_connection("127.0.0.1", await server.start())
    writer.write(get("/1"))
    assert b"GET /1" in await reader.readuntil(b"GET /1 ")
    await asyncio.wait_for(server.stop(20), 20)
    assert await asyncio.wait_for(reader.read(), 20) == b""
    writer.close()
    await writer.wait_closed()


# --- fuzz --------------------------------------------------------------------------------------------------------


def mutated(rng: random.Random) -> bytes:
    data = bytearray(STREAM * rng.randint(1, 2))
    for _ in range(rng.randint(1, 6)):
        at = rng.randrange(len(data))
        kind = rng.randrange(4)
        if kind == 0:
            data[at] = rng.choice(b"\r\n \t\0:;0aZ\xff") if rng.random() < 0.7 else rng.randrange(256)
        elif kind == 1:
            del data[at : at + rng.randint(1, 4)]
        elif kind == 2:
            data[at:at] = rng.choice([b"\r\n", b"\n", b"0", b" ", b"\r\n\r\n", b"Content-Length: 1\r\n", b"\x00"])
        else:
            data[at:at] = data[max(0, at - rng.randint(1, 40)) : at]
    return bytes(data)


@pytest.mark.parametrize("seed", range(20))
async def test_mutated_bytes_do_no_harm(seed: int) -> None:
    """Whatever arrives, in whatever pieces: well-formed answers, the same ones for any pieces, and no exception."""
    rng = random.Random(seed)
    for _ in range(40):
        data = mutated(rng)
        whole, pieces = Peer(Echo()), Peer(Echo())
        whole.send(data)
        at = 0
        while at < len(data):
            size = rng.randint(1, 60)
            pieces.send(data[at : at + size])
            at += size
        for _ in range(4):
            await asyncio.sleep(0)  # What closes.
        assert told(whole) == told(pieces)


def told(peer: Peer) -> tuple[list[bytes], list[bytes], bool]:
    """The statuses of the answers, what the app saw, and whether the connection is over. What is said of a fault
    may depend on how much of it was here."""
    app: Any = peer.server.app
    sent = peer.transport.sent.replace(CONTINUE, b"")
    assert not sent or sent.startswith(b"HTTP/1.1 ")
    return re.findall(rb"HTTP/1.1 (\d+) ", sent), app.bodies, peer.over
