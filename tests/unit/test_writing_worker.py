"""The thread that takes the steps of a model that writes text, over an instance that does as it is told."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import count
from typing import Any

import pytest

from server.errors import EngineFailure, ModelNotReady
from server.scheduler.writing_worker import WritingWorker, Written


@dataclass(eq=False)
class Text:
    steps: int
    finish: str = ""


@dataclass
class Step:
    wrote: list[Text]
    pieces: list[tuple[Text, list[Any]]]
    failed: list[Text] = field(default_factory=list)
    prefilled: int = 0
    prefill_ns: int = 0


class Instance:
    """Each step gives every text a token; one that has all of its own has left."""

    name = "scripted"

    def __init__(self) -> None:
        self.texts: list[Text] = []
        self.told: list[tuple[str, Text]] = []
        self.before: Callable[[], None] = lambda: None
        """Called before each step."""
        self.taken = 0
        self.fails: set[int] = set()
        """Steps, by their numbers, in which the model gives no numbers for the first text."""

    @property
    def busy(self) -> bool:
        return bool(self.texts)

    def join(self, text: Text) -> None:
        self.told.append(("join", text))
        self.texts.append(text)

    def leave(self, text: Text) -> None:
        self.told.append(("leave", text))
        if text in self.texts:
            self.texts.remove(text)

    def hold(self, text: Text) -> None:
        self.told.append(("hold", text))

    def go_on(self, text: Text) -> None:
        self.told.append(("go on", text))

    def step(self) -> Step:
        self.before()
        self.taken += 1
        failed = [self.texts.pop(0)] if self.taken in self.fails else []
        wrote = list(self.texts)
        for text in wrote:
            text.steps -= 1
            if not text.steps:
                text.finish = "length"
                self.texts.remove(text)
        return Step(wrote, [(text, []) for text in wrote], failed)


class Bench:
    """On a running loop; the clock counts its calls."""

    def __init__(self) -> None:
        self.instance = Instance()
        self.written: list[Written] = []
        self.came = asyncio.Event()
        self.clock = count(1).__next__
        self.worker = WritingWorker(
            self.instance,  # type: ignore[arg-type]
            "m",
            asyncio.get_running_loop(),
            self.on_step,
            self.clock,
        )

    def on_step(self, written: Written) -> None:
        self.written.append(written)
        self.came.set()

    async def steps(self, number: int) -> list[Written]:
        """The first so many."""
        async with asyncio.timeout(30):
            while len(self.written) < number:
                self.came.clear()
                await self.came.wait()
        return self.written[:number]

    async def idle(self) -> None:
        """The thread has seen that there is nothing to do."""
        async with asyncio.timeout(30):
            while self.worker._since_ns:  # noqa: ASYNC110 - it tells nobody
                await asyncio.sleep(0)

    async def close(self) -> None:
        async with asyncio.timeout(30):
            await self.worker.close(self.clock)


async def test_steps_are_taken_as_long_as_there_is_something_to_do() -> None:
    """Each is handed over with its texts, and why one was the last of its text."""
    bench = Bench()
    text = Text(3)
    bench.worker.join(text)  # type: ignore[arg-type]
    written = await bench.steps(3)
    assert [one.responses for one in written] == [[(text, [], "")], [(text, [], "")], [(text, [], "length")]]
    assert all(one.step is not None and one.error is None and not one.died for one in written)
    await bench.close()
    assert bench.instance.taken == 3


async def test_a_step_began_when_the_one_before_it_ended_unless_there_was_nothing_to_do() -> None:
    """By the clock that it is given."""
    bench = Bench()
    for _ in range(2):
        bench.worker.join(Text(2))  # type: ignore[arg-type]
        await bench.steps(len(bench.written) + 2)
        await bench.idle()
    first, second, third, fourth = bench.written
    assert first.since_ns == first.began_ns < first.ended_ns
    assert second.since_ns == first.ended_ns < second.began_ns
    assert third.since_ns == third.began_ns > second.ended_ns
    assert fourth.since_ns == third.ended_ns
    await bench.close()


async def test_it_is_two_steps_before_the_loop_and_no_more() -> None:
    """While the loop does something else; then it goes on."""
    bench = Bench()
    ahead: list[int] = []
    two = threading.Event()

    def before() -> None:
        ahead.append(bench.instance.taken - len(bench.written))
        if bench.instance.taken == 1:
            two.set()

    bench.instance.before = before
    bench.worker.join(Text(9))  # type: ignore[arg-type]
    assert two.wait(30), "and the loop stands still"
    await bench.steps(9)
    assert max(ahead) == 1
    await bench.close()


async def test_orders_are_obeyed_in_their_order_before_the_next_step() -> None:
    """Also while there is nothing to do."""
    bench = Bench()
    text, other = Text(1000), Text(1)
    for order in (bench.worker.join, bench.worker.hold, bench.worker.go_on, bench.worker.leave):
        order(text)  # type: ignore[operator]
    bench.worker.join(other)  # type: ignore[arg-type]
    while ("join", other) not in bench.instance.told or not other.finish:
        await bench.steps(len(bench.written) + 1)
    assert bench.instance.told == [("join", text), ("hold", text), ("go on", text), ("leave", text), ("join", other)]
    await bench.close()


@pytest.mark.parametrize("error", [ValueError("bug"), ModelNotReady("m")])
async def test_a_step_that_raises_ends_everybody_who_was_in_it_and_no_more(error: Exception) -> None:
    """An error of ours is told as one of the engine, with its cause; the thread goes on."""
    bench = Bench()
    texts = [Text(5), Text(1), Text(5)]
    gate = threading.Event()

    def raises() -> None:
        gate.wait(30)
        if bench.instance.taken == 1:
            raise error

    bench.instance.before = raises
    for text in texts:
        bench.worker.join(text)  # type: ignore[arg-type]
    gate.set()
    await bench.steps(2)
    bench.instance.before = lambda: None
    failed = next(one for one in bench.written if one.step is None)
    assert not failed.died
    assert not failed.responses
    if isinstance(error, ModelNotReady):
        assert failed.error is error
    else:
        assert isinstance(failed.error, EngineFailure)
        assert failed.error.__cause__ is error
    assert failed.since_ns <= failed.began_ns < failed.ended_ns
    left = {text for order, text in bench.instance.told if order == "leave"}
    assert {texts[0], texts[2]} <= left, "the second had left by itself, or is with them"
    assert bench.worker.alive
    bench.worker.join(after := Text(1))  # type: ignore[arg-type]
    while not after.finish:
        await bench.steps(len(bench.written) + 1)
    await bench.close()


async def test_who_has_no_numbers_or_is_over_is_not_ended_again_by_a_later_failure() -> None:
    """They have left by then."""
    bench = Bench()
    bench.instance.fails = {1}
    texts = [Text(5), Text(1), Text(5)]
    gate = threading.Event()

    def raises() -> None:
        gate.wait(30)
        if bench.instance.taken == 1:
            raise ValueError("bug")

    bench.instance.before = raises
    with bench.worker._news:  # So that all are there at the first step.
        for text in texts:
            bench.worker._orders.append((bench.worker._join, text))  # type: ignore[arg-type]
        bench.worker._news.notify()
    gate.set()
    await bench.steps(2)
    assert [text for order, text in bench.instance.told if order == "leave"] == texts[2:]
    await bench.close()


async def test_a_thread_that_dies_says_so() -> None:
    """With an error for everybody; it can be closed all the same."""
    bench = Bench()

    def dies() -> None:
        raise SystemExit(1)

    bench.instance.before = dies
    bench.worker.join(Text(1))  # type: ignore[arg-type]
    [written] = await bench.steps(1)
    assert written.died
    assert written.step is None
    assert isinstance(written.error, EngineFailure)
    assert not bench.worker.alive
    await bench.close()


async def test_a_hand_over_that_raises_holds_up_no_step() -> None:
    """It is the loop's to log."""
    bench = Bench()
    heard: list[Any] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: heard.append(context["exception"]))
    taken = bench.on_step

    def on_step(written: Written) -> None:
        taken(written)
        raise ValueError("bug")

    bench.worker._on_step = on_step
    bench.worker.join(Text(5))  # type: ignore[arg-type]
    await bench.steps(5)
    assert [type(error) for error in heard] == [ValueError] * 5
    await bench.close()


async def test_after_a_close_no_step_is_taken() -> None:
    """Whoever is still there."""
    bench = Bench()
    bench.worker.join(Text(10**9))  # type: ignore[arg-type]
    await bench.steps(1)
    await bench.close()
    assert not bench.worker._thread.is_alive()
    taken = bench.instance.taken
    bench.worker.join(Text(1))  # type: ignore[arg-type]
    assert bench.instance.taken == taken
