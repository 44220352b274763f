"""Calls with deadlines by a client that waits for longer than they say: what the server answers, and when, is seen.

An ordinary gRPC client ends a call at its deadline whatever the server does. This one only writes the deadline down.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from dataclasses import dataclass, field

import numpy as np
from tritonclient.grpc import service_pb2 as pb

from loadtests.soak.h2 import call, greeting
from server.transport.http2 import frames
from server.transport.http2.hpack import Decoder

_LIST_BYTES = 65_536
_WINDOW = 2**30
_LOOK_S = 0.01
LOST = "lost"
"""The connection ended before an answer."""


@dataclass(slots=True)
class Asked:
    """One request, and what came of it. Times are of `time.monotonic`."""

    at_s: float
    deadline_s: float
    """Seconds that the server had."""
    status: str = ""
    """grpc-status, `LOST`, or empty while nothing came."""
    answered_s: float = 0.0
    right: bool = False
    """The answer is the golden one; of a failure False."""
    answers: int = 0
    lag_s: float = 0.0
    """By how much this process itself was late in the second before the answer was seen."""

    @property
    def late_s(self) -> float:
        """By how much the answer was after the deadline, beyond what is this process's own doing."""
        return self.answered_s - self.at_s - self.deadline_s - self.lag_s


class Lag:
    """How late the event loop of this process comes to things: what it sees late did not come late."""

    def __init__(self) -> None:
        self._seen: deque[tuple[float, float]] = deque(maxlen=100)

    async def watch(self) -> None:
        """Until it is cancelled."""
        while True:
            due_s = time.monotonic() + _LOOK_S
            await asyncio.sleep(_LOOK_S)
            now_s = time.monotonic()
            self._seen.append((now_s, now_s - due_s))

    def lately(self, now_s: float) -> float:
        """The most in the second before, that which is not over yet too."""
        last_s = self._seen[-1][0] if self._seen else now_s
        return max([now_s - last_s - _LOOK_S, *(late for at_s, late in self._seen if at_s > now_s - 1), 0.0])


@dataclass
class Question:
    """What is asked, and what is right."""

    message: bytes
    expected: bytes
    tolerance: float = 1e-4
    asked: list[Asked] = field(default_factory=list)
    lag: Lag = field(default_factory=Lag)

    def is_right(self, data: bytes) -> bool:
        response = pb.ModelInferResponse.FromString(data)
        values = np.frombuffer(response.raw_output_contents[0], np.float32)
        expected = np.frombuffer(self.expected, np.float32)
        return values.size == expected.size and bool(np.allclose(values, expected, atol=self.tolerance))


class Caller(asyncio.Protocol):
    """One connection; calls are asked when they are due, however many are under way."""

    def __init__(self, question: Question) -> None:
        self._question = question
        self._decoder = Decoder()
        self._received = b""
        self._stream = 1
        self._open: dict[int, Asked] = {}
        self._data: dict[int, bytes] = {}
        self._over: dict[int, Asked] = {}
        self.closed = asyncio.get_running_loop().create_future()
        self._transport: asyncio.Transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        start = greeting({frames.INITIAL_WINDOW_SIZE: _WINDOW})
        transport.write(start + frames.window_update(0, _WINDOW))

    @property
    def usable(self) -> bool:
        return not self.closed.done() and not self._transport.is_closing() and self._stream < 100_000

    @property
    def idle(self) -> bool:
        return not self._open

    def ask(self, deadline_s: float) -> None:
        asked = Asked(time.monotonic(), deadline_s)
        self._question.asked.append(asked)
        self._open[self._stream] = asked
        timeout = b"%dm" % int(deadline_s * 1000)
        self._transport.write(call(self._stream, self._question.message, (b"grpc-timeout", timeout)))
        self._stream += 2

    def close(self) -> None:
        self._transport.close()

    def data_received(self, data: bytes) -> None:
        self._received += data
        at = 0
        while at + 9 <= len(self._received):
            high, low, kind, flags, stream = frames.read_header(self._received, at)
            end = at + 9 + (high << 8 | low)
            if end > len(self._received):
                break
            self._frame(kind, flags, stream, self._received[at + 9 : end])
            at = end
        self._received = self._received[at:]

    def _frame(self, kind: int, flags: int, stream: int, payload: bytes) -> None:
        if kind == frames.DATA:
            self._data[stream] = self._data.get(stream, b"") + payload
        elif kind == frames.HEADERS:
            fields = dict(self._decoder.decode(payload, _LIST_BYTES))
            if flags & frames.END_STREAM:
                self._end(stream, fields.get(b"grpc-status", b"?").decode())
        elif kind == frames.RST_STREAM:
            self._end(stream, "reset")
        elif kind == frames.PING and not flags & frames.ACK:
            self._transport.write(frames.frame(frames.PING, frames.ACK, 0, payload))
        elif kind == frames.GOAWAY:
            self._stream = 100_000  # No new calls by this one.

    def _end(self, stream: int, status: str) -> None:
        asked = self._open.pop(stream, None)
        if asked is None:
            if stream in self._over:
                self._over[stream].answers += 1
            return
        asked.status, asked.answered_s, asked.answers = status, time.monotonic(), 1
        asked.lag_s = self._question.lag.lately(asked.answered_s)
        data = self._data.pop(stream, b"")
        asked.right = status == "0" and self._question.is_right(data[5:])
        self._over[stream] = asked

    def connection_lost(self, _error: Exception | None) -> None:
        now_s = time.monotonic()
        for asked in self._open.values():
            asked.status, asked.answered_s, asked.answers = LOST, now_s, 1
        self._open.clear()
        if not self.closed.done():
            self.closed.set_result(None)


async def load(question: Question, address: str, per_s: float, deadline_s: float, until_s: float, callers: int) -> None:
    """Calls at a pace, open loop, over so many connections, until a time of the monotonic clock; then the last answers
    are waited for. Where nobody listens the pace goes on, and calls that can't be sent are not counted."""
    host, _, port = address.partition(":")
    loop = asyncio.get_running_loop()
    all_of_them: list[Caller] = []
    current: list[Caller | None] = [None] * callers
    due, turn = time.monotonic(), 0
    while (now_s := time.monotonic()) < until_s:
        if due > now_s:
            await asyncio.sleep(due - now_s)
        due += 1 / per_s
        turn = (turn + 1) % callers
        one = current[turn]
        if one is None or not one.usable:
            try:
                async with asyncio.timeout(1):
                    _, one = await loop.create_connection(lambda: Caller(question), host, int(port))
            except (OSError, TimeoutError):
                current[turn] = None
                due = max(due, time.monotonic())
                continue
            current[turn] = one
            all_of_them.append(one)
        one.ask(deadline_s)
        due = max(due, time.monotonic() - 0.25)  # Who was kept up catches up with a quarter of a second.
    last_s = time.monotonic() + deadline_s + 1
    while time.monotonic() < last_s and any(not one.idle and not one.closed.done() for one in all_of_them):  # noqa: ASYNC110
        await asyncio.sleep(0.02)
    for one in all_of_them:
        if not one.closed.done():
            one.close()
