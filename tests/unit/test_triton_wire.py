"""HTTP/2 to a Triton as its client: what goes out, and what becomes of calls, without a socket."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest

from server.engine.triton.addresses import Endpoint, parse
from server.engine.triton.link import Link, _timeout
from server.engine.triton.wire import Answered, Failed, Fate, Result, Stream, Wire
from server.settings import TritonSettings
from server.transport.http2 import frames
from server.transport.http2.frames import ConnectionFault, ErrorCode
from server.transport.http2.hpack_encode import encode
from tests.support.http2_client import Frame
from tests.support.http2_client import parse as frames_in

END = frames.END_STREAM | frames.END_HEADERS
RESPONSE = encode([(b":status", b"200"), (b"content-type", b"application/grpc")])
OK = encode([(b"grpc-status", b"0")])
_LONGEST = b"99999999M"


def message(data: bytes) -> bytes:
    return b"\0" + len(data).to_bytes(4) + data


def headers(stream_id: int, block: bytes, flags: int = frames.END_HEADERS) -> bytes:
    return frames.frame(frames.HEADERS, flags, stream_id, block)


def answer(stream_id: int, data: bytes = b"answer") -> bytes:
    return (
        headers(stream_id, RESPONSE)
        + frames.frame(frames.DATA, 0, stream_id, message(data))
        + headers(stream_id, OK, END)
    )


class Client:
    """A wire whose server is the test."""

    def __init__(self, max_message_bytes: int = 1000, *, greeted: bool = True) -> None:
        self.wire = Wire(max_message_bytes)
        self.results: dict[Stream, list[Result]] = {}
        self.first = self.sent() if greeted else []

    def ask(self, data: bytes = b"question") -> Stream:
        results: list[Result] = []
        stream = self.wire.ask(b"", data, results.append)
        assert not results
        self.results[stream] = results
        return stream

    def sent(self) -> list[Frame]:
        data, self.wire.out = b"".join(self.wire.out), []
        return frames_in(data.removeprefix(frames.PREFACE))

    def kinds(self) -> list[int]:
        return [frame.kind for frame in self.sent()]

    def result(self, stream: Stream) -> Result | None:
        results = self.results[stream]
        assert len(results) <= 1, "told twice"
        return results[0] if results else None


def test_it_begins_with_the_preface_and_windows_that_no_answer_exhausts() -> None:
    """An answer may be as large as the largest message, and no push is wanted."""
    client = Client(max_message_bytes=1 << 26, greeted=False)
    assert client.wire.out[0] == frames.PREFACE
    settings, window = client.sent()
    assert settings.kind == frames.SETTINGS
    assert settings.payload == bytes([0, 2, 0, 0, 0, 0]) + bytes([0, 4]) + ((1 << 26) + 5).to_bytes(4)
    assert (window.kind, window.stream_id) == (frames.WINDOW_UPDATE, 0)


def test_a_call_is_one_message_each_way() -> None:
    client = Client()
    stream = client.ask()
    first, data, end = client.sent()
    assert (first.kind, first.flags, first.stream_id) == (frames.HEADERS, frames.END_HEADERS, 1)
    assert (data.payload, end.flags) == (message(b"question"), frames.END_STREAM)
    client.wire.receive(answer(1))
    assert client.result(stream) == Answered(0, "", b"answer")
    assert client.wire.idle


@pytest.mark.parametrize("size", [1, 5, 9, 40])
def test_an_answer_may_come_in_any_pieces(size: int) -> None:
    client = Client()
    stream = client.ask()
    data = answer(1) + frames.settings({frames.MAX_CONCURRENT_STREAMS: 7})
    for at in range(0, len(data), size):
        client.wire.receive(data[at : at + size])
    assert client.result(stream) == Answered(0, "", b"answer")


@pytest.mark.parametrize(
    ("block", "status", "details"),
    [
        ([(b"grpc-status", b"5"), (b"grpc-message", b"no 100%25 m%C3%BCsli")], 5, "no 100% müsli"),
        ([(b"grpc-status", b"x")], 2, "no grpc-status, HTTP status 200"),
        ([], 2, "no grpc-status, HTTP status 200"),
    ],
    ids=["with a message", "without a number", "without anything"],
)
def test_a_failed_call_says_why(block: list[tuple[bytes, bytes]], status: int, details: str) -> None:
    """In one block, or behind data."""
    only, behind = Client(), Client()
    streams = only.ask(), behind.ask()
    only.wire.receive(headers(1, RESPONSE + encode(block), END))
    behind.wire.receive(headers(1, RESPONSE) + headers(1, encode(block), END))
    assert only.result(streams[0]) == behind.result(streams[1]) == Answered(status, details)


def test_what_is_no_grpc_is_told_by_its_http_status() -> None:
    client = Client()
    stream = client.ask()
    client.wire.receive(headers(1, encode([(b":status", b"503")])))
    assert client.result(stream) == Answered(2, "HTTP status 503")


@pytest.mark.parametrize(
    "data", [b"", b"\1\0\0\0\1x", message(b"ab")[:-1], message(b"a") + b"b"], ids=["none", "compressed", "cut", "more"]
)
def test_an_answer_that_is_not_one_plain_message_fails_its_call(data: bytes) -> None:
    client = Client()
    stream = client.ask()
    client.wire.receive(headers(1, RESPONSE) + frames.frame(frames.DATA, 0, 1, data) + headers(1, OK, END))
    assert client.result(stream) == Answered(13, "the answer is not one plain message")


def test_an_answer_over_the_limit_is_not_taken() -> None:
    client = Client(max_message_bytes=100)
    stream = client.ask()
    client.sent()
    client.wire.receive(headers(1, RESPONSE) + frames.frame(frames.DATA, 0, 1, message(bytes(101))))
    result = client.result(stream)
    assert isinstance(result, Answered)
    assert result.status == 8
    assert client.kinds() == [frames.RST_STREAM]


def test_a_large_message_waits_for_the_servers_windows() -> None:
    """The end of the stream is sent behind all of it; what is not sent as a whole can't have been executed."""
    client = Client()
    stream = client.ask(bytes(100_000))
    sent = client.sent()
    assert sum(len(frame.payload) for frame in sent if frame.kind == frames.DATA) == 65_535
    assert not any(frame.flags & frames.END_STREAM for frame in sent)
    client.wire.receive(frames.window_update(0, 100_000))
    assert client.kinds() == []
    client.wire.receive(frames.settings({frames.INITIAL_WINDOW_SIZE: 100_000, frames.MAX_FRAME_SIZE: 20_000}))
    sent = client.sent()
    assert max(len(frame.payload) for frame in sent) == 20_000
    client.wire.lose("gone")
    assert client.result(stream) == Failed(Fate.UNSENT, "gone")


def test_a_streams_window_that_is_too_large_ends_its_call() -> None:
    """And no other: the error is the stream's (RFC 9113 section 6.9.1)."""
    client = Client()
    stream, other = client.ask(bytes(70_000)), client.ask()
    client.sent()
    client.wire.receive(frames.window_update(1, 2**31 - 1) + frames.window_update(1, 2**31 - 1))
    assert client.kinds()[-1] == frames.RST_STREAM
    assert client.result(stream) == Failed(Fate.LOST, "the stream's window is over 2^31 - 1")
    client.wire.receive(headers(3, RESPONSE) + frames.frame(frames.DATA, 0, 3, message(b"a")) + headers(3, OK, END))
    assert client.result(other) == Answered(0, "", b"a")


def test_the_connections_window_is_given_back() -> None:
    client = Client(max_message_bytes=1 << 26)
    client.ask()
    client.sent()
    client.wire.receive(headers(1, RESPONSE))
    chunk = frames.frame(frames.DATA, 0, 1, bytes(16_384))
    for _ in range((1 << 25) // 16_384 + 1):
        client.wire.receive(chunk)
    (update,) = client.sent()
    assert (update.kind, update.stream_id) == (frames.WINDOW_UPDATE, 0)


def test_no_more_streams_than_the_server_takes() -> None:
    """The others wait, in their order; one that is given up waits no more."""
    client = Client()
    client.wire.receive(frames.settings({frames.MAX_CONCURRENT_STREAMS: 1}))
    client.sent()
    first, second, third, fourth = (client.ask() for _ in range(4))
    assert len([frame for frame in client.sent() if frame.kind == frames.HEADERS]) == 1
    client.wire.give_up(second)
    client.wire.receive(answer(1))
    assert client.result(first) == Answered(0, "", b"answer")
    assert [frame.stream_id for frame in client.sent()] == [3, 3, 3]
    client.wire.receive(answer(3))
    assert client.result(third) == Answered(0, "", b"answer")
    client.wire.lose("gone")
    assert client.result(fourth) == Failed(Fate.LOST, "gone")
    assert client.result(second) is None


def test_a_call_that_is_given_up_is_cancelled_there_and_its_late_answer_ignored() -> None:
    client = Client()
    stream = client.ask()
    client.sent()
    client.wire.give_up(stream)
    (reset,) = client.sent()
    assert (reset.kind, reset.code) == (frames.RST_STREAM, ErrorCode.CANCEL)
    client.wire.receive(answer(1))
    assert client.result(stream) is None


@pytest.mark.parametrize(
    ("code", "fate"), [(ErrorCode.REFUSED_STREAM, Fate.DECLINED), (ErrorCode.INTERNAL_ERROR, Fate.LOST)]
)
def test_a_reset_tells_whether_it_can_have_been_executed(code: ErrorCode, fate: Fate) -> None:
    """Source: RFC 9113 section 8.7."""
    client = Client()
    stream = client.ask()
    client.wire.receive(frames.rst_stream(1, code))
    result = client.result(stream)
    assert isinstance(result, Failed)
    assert result.fate is fate


def test_goaway_ends_what_was_not_processed_and_lets_the_rest_finish() -> None:
    """Source: RFC 9113 section 6.8."""
    client = Client()
    taken, not_taken = client.ask(), client.ask()
    client.wire.receive(frames.goaway(1, ErrorCode.NO_ERROR, b"max_age"))
    result = client.result(not_taken)
    assert isinstance(result, Failed)
    assert result.fate is Fate.DECLINED
    assert client.wire.over == "it sent GOAWAY max_age"
    client.wire.receive(answer(1))
    assert client.result(taken) == Answered(0, "", b"answer")


def test_pings_and_settings_are_acknowledged_and_unknown_frames_ignored() -> None:
    client = Client()
    ping = frames.ping(b"12345678")
    client.wire.receive(ping + frames.settings({}) + frames.frame(0xBE, 0, 0, b"grease") + frames.ping(b"12345678", 1))
    sent = client.sent()
    assert [(frame.kind, frame.flags) for frame in sent] == [(frames.PING, frames.ACK), (frames.SETTINGS, frames.ACK)]


@pytest.mark.parametrize(
    "data",
    [
        frames.frame(frames.DATA, 0, 3, b"x"),
        frames.frame(frames.HEADERS, END, 2, OK),
        frames.frame(frames.PUSH_PROMISE, frames.END_HEADERS, 1, bytes(4) + OK),
        frames.frame(frames.CONTINUATION, frames.END_HEADERS, 1, OK),
        headers(1, OK, 0) + frames.ping(bytes(8)),
        headers(1, b"\xff\xff\xff\xff\xff\xff"),
        frames.frame(frames.DATA, frames.PADDED, 1, b"\x05abc"),
        frames.frame(frames.WINDOW_UPDATE, 0, 0, b"x"),
        frames.frame(frames.DATA, 0, 1, bytes(16_385)),
    ],
    ids=["never opened", "the server's", "push", "no block", "amid a block", "hpack", "padding", "size", "too large"],
)
def test_what_breaks_the_protocol_ends_the_connection(data: bytes) -> None:
    client = Client()
    client.ask()
    with pytest.raises(ConnectionFault):
        client.wire.receive(data)


def test_header_blocks_may_come_in_several_frames_with_padding_and_priority() -> None:
    client = Client()
    stream = client.ask()
    padded = bytes([2]) + bytes(5) + RESPONSE[:3] + bytes(2)
    client.wire.receive(
        frames.frame(frames.HEADERS, frames.PADDED | frames.WITH_PRIORITY, 1, padded)
        + frames.frame(frames.CONTINUATION, frames.END_HEADERS, 1, RESPONSE[3:])
        + frames.frame(frames.DATA, frames.PADDED, 1, bytes([1]) + message(b"a") + bytes(1))
        + headers(1, OK, END)
    )
    assert client.result(stream) == Answered(0, "", b"a")


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.0, b"1u"),
        (0.1, b"100000u"),
        (99.0, b"99000000u"),
        (100.0, b"100000m"),
        (1e6, b"1000000S"),
        (1e12, b"99999999M"),
    ],
)
def test_time_outs_have_eight_digits_at_most(seconds: float, text: bytes) -> None:
    """Source: gRPC "gRPC over HTTP2", TimeoutValue."""
    assert _timeout(seconds) == text


# --- with a socket -----------------------------------------------------------------------------------


class Script(asyncio.Protocol):
    """A server that reads the client's frames and answers each whole request by `on_call`."""

    def __init__(self, on_call: Callable[[Script, int], None]) -> None:
        self._on_call = on_call
        self._data = b""
        self.transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport
        transport.write(frames.settings({}))

    def data_received(self, data: bytes) -> None:
        self._data += data
        while len(self._data) >= 24 + 9 if self._data.startswith(b"PRI") else len(self._data) >= 9:
            self._data = self._data.removeprefix(frames.PREFACE)
            high, low, kind, flags, stream_id = frames.read_header(self._data)
            end = 9 + (high << 8 | low)
            if len(self._data) < end:
                return
            self._data = self._data[end:]
            if kind == frames.DATA and flags & frames.END_STREAM:
                self._on_call(self, stream_id)

    def send(self, data: bytes) -> None:
        assert self.transport is not None
        self.transport.write(data)


class Served:
    """`Script`s at a port, and a link to them."""

    def __init__(self, on_call: Callable[[Script, int], None], **settings: float) -> None:
        self._on_call = on_call
        self._settings = TritonSettings(url="grpc://a:1").model_copy(update=settings)
        self.connections = 0

    async def __aenter__(self) -> Link:
        self._server = await asyncio.get_running_loop().create_server(self._make, "127.0.0.1", 0)
        port = self._server.sockets[0].getsockname()[1]
        target = parse(f"grpc://127.0.0.1:{port}", tls=False)[0]
        self._link = Link(Endpoint(target, "127.0.0.1"), self._settings, 1 << 20)
        return self._link

    def _make(self) -> Script:
        self.connections += 1
        return Script(self._on_call)

    async def __aexit__(self, *_: object) -> None:
        await self._link.close(0)
        self._server.close()


def answers(script: Script, stream_id: int) -> None:
    script.send(answer(stream_id))


async def test_calls_share_a_connection_that_is_opened_for_the_first() -> None:
    served = Served(answers)
    async with served as link:
        results = await asyncio.gather(*(link.reply("/a/b", b"x", 5.0) for _ in range(20)))
    assert results == [Answered(0, "", b"answer")] * 20
    assert served.connections == 1


async def test_a_deadline_that_is_over_is_told_without_the_server() -> None:
    async with Served(lambda _script, _id: None) as link:
        result = await link.reply("/a/b", b"x", 0.05)
    assert isinstance(result, Answered)
    assert result.status == 4


async def test_who_can_not_be_reached_has_executed_nothing() -> None:
    served = Served(answers)
    async with served as link:
        served._server.close()
        result = await link.reply("/a/b", b"x", None)
    assert isinstance(result, Failed)
    assert result.fate is Fate.UNSENT


async def test_a_connection_that_breaks_loses_what_it_had_and_the_next_call_opens_another() -> None:
    calls: list[int] = []

    def breaks_once(script: Script, stream_id: int) -> None:
        calls.append(stream_id)
        if len(calls) == 1:
            assert script.transport is not None
            script.transport.abort()
        else:
            answers(script, stream_id)

    served = Served(breaks_once)
    async with served as link:
        first = await link.reply("/a/b", b"x", 5.0)
        second = await link.reply("/a/b", b"x", 5.0)
    assert isinstance(first, Failed)
    assert first.fate is Fate.LOST
    assert second == Answered(0, "", b"answer")
    assert served.connections == 2


async def test_after_goaway_calls_go_by_a_new_connection() -> None:
    def leaves(script: Script, stream_id: int) -> None:
        script.send(frames.goaway(stream_id, ErrorCode.NO_ERROR) + answer(stream_id))

    served = Served(leaves)
    async with served as link:
        results = [await link.reply("/a/b", b"x", 5.0) for _ in range(3)]
    assert results == [Answered(0, "", b"answer")] * 3
    assert served.connections == 3


async def test_a_server_that_answers_no_ping_is_given_up() -> None:
    async with Served(lambda _script, _id: None, keepalive_s=0.1, keepalive_timeout_s=0.1) as link:
        result = await asyncio.wait_for(link.reply("/a/b", b"x", None), 5)
    assert result == Failed(Fate.LOST, "no answer to a keepalive ping")


async def test_a_server_that_breaks_the_protocol_is_left() -> None:
    async with Served(lambda script, _id: script.send(frames.frame(frames.DATA, 0, 99, b"x"))) as link:
        result = await link.reply("/a/b", b"x", 5.0)
    assert isinstance(result, Failed)
    assert result.fate is Fate.LOST


async def test_a_call_is_given_up_once() -> None:
    """Its caller hears of it, and of nothing later."""
    told: list[Result] = []
    async with Served(lambda _script, _id: None) as link:
        give_up = link.call("/a/b", b"x", 5.0, [("traceparent", "00-1")], told.append)
        await asyncio.sleep(0.05)
        give_up()
        give_up()
    assert [result.fate for result in told if isinstance(result, Failed)] == [Fate.GIVEN_UP]
