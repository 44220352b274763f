"""HTTP/1 in memory: a connection of the real server without a socket, and the answers that it wrote."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from typing import Any, NamedTuple

from server.settings import HttpSettings
from server.transport.http1.head import Head
from server.transport.http1.protocol import Http1Protocol, Turn
from server.transport.http1.reply import Reply
from server.transport.http1.server import App, Http1Server


class Answer(NamedTuple):
    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def error(self) -> str:
        [(key, text)] = self.json.items()
        assert key == "error"
        return str(text)


def parse_answers(data: bytes, methods: Sequence[str] = ()) -> list[Answer]:
    """Every answer in `data`, which must end with the last one. `methods` are those of their requests, GET where
    nothing is said: an answer to HEAD has no body."""
    answers: list[Answer] = []
    asked = list(methods)
    while data:
        head, separator, data = data.partition(b"\r\n\r\n")
        assert separator, head
        line, *fields = head.decode().split("\r\n")
        version, status, _ = line.split(" ", 2)
        assert version == "HTTP/1.1"
        if status == "100":
            answers.append(Answer(100, {}, b""))
            continue
        headers = dict(field.split(": ", 1) for field in fields)
        assert len(headers) == len(fields), f"a header is there twice: {fields}"
        head_only = bool(asked) and asked.pop(0) == "HEAD"
        body, data = (b"", data) if head_only else take_body(headers, data)
        answers.append(Answer(int(status), headers, body))
    return answers


def take_body(headers: dict[str, str], data: bytes) -> tuple[bytes, bytes]:
    """A body, and what follows it. One without a length goes on to the end of the connection, which `data` is."""
    if headers.get("transfer-encoding") == "chunked":
        chunks, rest = take_chunks(data)
        assert chunks[-1] == b"", "the last chunk is missing"
        return b"".join(chunks), rest
    size = int(headers.get("content-length", len(data)))
    assert len(data) >= size
    return data[:size], data[size:]


def take_chunks(data: bytes) -> tuple[list[bytes], bytes]:
    """The chunks that are whole, the last and empty one included, and what follows it."""
    chunks: list[bytes] = []
    while data and b"" not in chunks:
        line, _, data = data.partition(b"\r\n")
        size = int(line, 16)
        assert data[size : size + 2] == b"\r\n"
        chunks.append(data[:size])
        data = data[size + 2 :]
    return chunks, data


class MemoryTransport(asyncio.Transport):
    """Keeps what is written. `buffered` is what a peer that reads slowly has not taken yet."""

    def __init__(self) -> None:
        super().__init__()
        self.sent = b""
        self.written = asyncio.Event()
        self.reading = True
        self.closed = False
        self.aborted = False
        self.eof = False
        self.buffered = 0
        self.high: int | None = None
        self.protocol: asyncio.Protocol | None = None

    def is_closing(self) -> bool:
        return self.closed or self.aborted

    def set_protocol(self, protocol: Any) -> None:
        self.protocol = protocol

    def write(self, data: Any) -> None:
        assert not self.closed, "written behind the end"
        self.sent += bytes(data)
        self.written.set()

    def writelines(self, list_of_data: Any) -> None:
        for data in list_of_data:
            self.write(data)

    def pause_reading(self) -> None:
        self.reading = False

    def resume_reading(self) -> None:
        self.reading = True

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        self.high = high

    def get_write_buffer_size(self) -> int:
        return self.buffered

    def can_write_eof(self) -> bool:
        return True

    def write_eof(self) -> None:
        self.eof = True

    def close(self) -> None:
        self.closed = True
        self._lose()

    def abort(self) -> None:
        self.aborted = True
        self._lose()

    def _lose(self) -> None:
        if self.protocol is not None:
            asyncio.get_running_loop().call_soon(self.protocol.connection_lost, None)
            self.protocol = None


class Echo:
    """An app that answers 200 with the method, the path and the body; `held` turns wait for `release`.

    The path /refused is refused by its head.
    """

    def __init__(self) -> None:
        self.held = False
        self.waiting: list[Turn] = []
        self.abandoned: list[Turn] = []
        self.batches: list[int] = []
        self.bodies: list[bytes] = []

    def plan(self, head: Head) -> None:
        if head.path == b"/refused":
            head.refusal = Reply(404, b"no")

    def take(self, turns: Sequence[Turn]) -> None:
        self.batches.append(len(turns))
        for turn in turns:
            self.bodies.append(turn.body)
            if self.held:
                self.waiting.append(turn)
            else:
                self.answer(turn)

    def answer(self, turn: Turn) -> None:
        assert turn.head is not None
        turn.reply(Reply(200, b"%s %s %s" % (turn.head.method.encode(), turn.head.path, turn.body)))

    def abandon(self, turn: Turn) -> None:
        self.abandoned.append(turn)


class Peer:
    """One connection to `app`, driven by hand."""

    def __init__(self, app: App, server: Http1Server | None = None, **settings: Any) -> None:
        self.server = server or Http1Server(app, "127.0.0.1", 0, HttpSettings(**settings))
        self.transport = MemoryTransport()
        self.protocol = self.transport.protocol = Http1Protocol(self.server)
        self.protocol.connection_made(self.transport)

    def send(self, data: bytes) -> None:
        self.protocol.data_received(data)

    def answers(self, *methods: str) -> list[Answer]:
        """What was written since the last call."""
        sent, self.transport.sent = self.transport.sent, b""
        return parse_answers(sent, methods)

    @property
    def over(self) -> bool:
        """The server has written its last answer and said so."""
        return self.transport.closed or self.transport.aborted or self.transport.eof

    @property
    def causes(self) -> dict[str, int]:
        return dict(self.server.connections.closed)
