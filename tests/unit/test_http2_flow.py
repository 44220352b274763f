"""What waits for a window: it goes as soon as it may, and costs nothing meanwhile."""

from __future__ import annotations

from collections import deque

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.transport.http2 import answers, frames
from server.transport.http2.flow import Sender
from server.transport.http2.frames import LARGEST_WINDOW_BYTES, ConnectionFault


class Waiting:
    """A stream that counts how often its window is looked at."""

    def __init__(self, id: int) -> None:
        self.id = id
        self.pending: deque[memoryview] | None = None
        self.pending_bytes = 0
        self.blocked_ns = 0
        self.looks = 0
        self._offset = 0

    @property
    def send_offset(self) -> int:
        self.looks += 1
        return self._offset

    @send_offset.setter
    def send_offset(self, offset: int) -> None:
        self._offset = offset


def waiting(sender: Sender[Waiting], count: int, size: int = 100) -> list[Waiting]:
    """`count` streams, each with something to send and a window of 0."""
    sender.change_initial([0], ())
    streams = [Waiting(2 * number + 1) for number in range(count)]
    for stream in streams:
        sender.data(stream, bytes(size))
        stream.looks = 0
    return streams


@pytest.mark.parametrize("of_a_stream", [False, True], ids=["the connection's", "a stream's"])
def test_what_a_widened_window_costs_does_not_depend_on_how_many_wait(of_a_stream: bool) -> None:
    """Else a client that lets a thousand answers wait would keep the event loop with frames of 13 bytes."""
    looks = []
    for count in (2, 1000):
        sender: Sender[Waiting] = Sender()
        streams = waiting(sender, count)
        for _ in range(50):
            if of_a_stream:
                sender.widen_stream(streams[0], 1)
            else:
                sender.widen(1)
            sender.pump()
        looks.append(sum(stream.looks for stream in streams))
        assert len(sender.out) == (50 if of_a_stream else 0)
    assert looks[0] == looks[1]


def test_many_sizes_in_one_frame_cost_one_look_at_each_stream() -> None:
    """The last of them holds; one in the middle that was too large is a fault as it would be alone."""
    sender: Sender[Waiting] = Sender()
    streams = waiting(sender, 10)
    sender.change_initial([5, 7, 5] * 900 + [1], streams)
    assert [stream.looks for stream in streams] == [1] * 10
    assert [stream.id for stream in sender.pump()] == []
    assert len(sender.out) == 10
    sender.widen_stream(streams[3], 2)
    with pytest.raises(ConnectionFault):
        sender.change_initial([1, LARGEST_WINDOW_BYTES, 1], streams)


def test_who_waits_for_its_own_window_holds_up_nobody() -> None:
    """Others take turns, frame by frame, and it comes in again behind them once its window is widened."""
    sender: Sender[Waiting] = Sender()
    shut, *others = waiting(sender, 3, size=40_000)
    for stream in others:
        sender.widen_stream(stream, 40_000)
    sender.window = 3 * sender.max_frame_bytes
    assert sender.pump() == []
    sent = [int.from_bytes(frame[5:9]) for frame in sender.out]
    assert sent == [3, 5, 3]
    sender.widen_stream(shut, 40_000)
    sender.widen(sender.max_frame_bytes * 2)
    sender.pump()
    assert [int.from_bytes(frame[5:9]) for frame in sender.out[3:]] == [5, 3, 1]
    sender.forget(shut)
    sender.widen(100_000)
    assert [stream.id for stream in sender.pump()] == [5]
    assert (sender.pending_bytes, sender.blocked) == (0, {})


@given(
    st.lists(
        st.tuples(
            st.sampled_from(["data", "stream", "connection", "initial", "forget"]),
            st.integers(0, 3),
            st.integers(0, 300),
        ),
        max_size=60,
    )
)
def test_nothing_waits_that_could_go(steps: list[tuple[str, int, int]]) -> None:
    """Whatever comes in whatever order: bytes wait for a window that is used up, of their stream or the connection."""
    sender: Sender[Waiting] = Sender()
    sender.window = sender.initial_window = 100
    sender.max_frame_bytes = 64
    streams = [Waiting(number) for number in range(4)]
    for step, number, amount in steps:
        stream = streams[number]
        if step == "data":
            sender.data(stream, bytes(amount))
        elif step == "stream":
            sender.widen_stream(stream, amount)
        elif step == "connection":
            sender.widen(amount)
        elif step == "initial":
            sender.change_initial([300, amount], streams)
        else:
            sender.forget(stream)
            streams[number] = Waiting(number)
        sender.pump()
        for stream in streams:
            room = min(sender.window, sender.initial_window + stream.send_offset)
            assert (stream.pending is None) == (stream not in sender.blocked)
            assert stream.pending is None or room <= 0
        assert sender.pending_bytes == sum(stream.pending_bytes for stream in streams)


def test_an_answer_in_one_go_is_the_three_frames_that_it_consists_of() -> None:
    """Whatever the size of its message, also once more sizes have come than are remembered."""
    for size in (0, 1, 255, 256, 16_379, *range(1500), 1):
        message = bytes([size & 0xFF]) * size
        assert answers.whole(7, message) == (
            frames.headers(7, answers.RESPONSE, end_stream=False)
            + frames.frame(frames.DATA, 0, 7, b"\0" + size.to_bytes(4) + message)
            + frames.headers(7, answers.OK_TRAILERS, end_stream=True)
        )
    assert len(answers._layouts) <= 1024
