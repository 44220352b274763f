"""How long a pass may take before its instance is replaced, on a loop whose time a test tells."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, cast

import pytest

from server.errors import DeviceLost
from server.scheduler.cost import CostModel
from server.scheduler.instances import Instances, Run
from server.scheduler.watchdog import Watchdog
from server.scheduler.worker import Runner, Worker


class Hanging(Worker):
    """A worker without a thread."""

    def __init__(self) -> None:
        self.given_up = 0
        self.fails = False

    def give_up(self) -> None:
        self.given_up += 1

    async def renew(self) -> None:
        if self.fails:
            raise OSError("no memory")


class Loop:
    """Its timers run when their time has come; tasks run to their ends at once."""

    def __init__(self) -> None:
        self.now_s = 100.0
        self.timers: list[tuple[float, Callable[[], None]]] = []

    def time(self) -> float:
        return self.now_s

    def call_later(self, delay_s: float, callback: Callable[[], None]) -> Any:
        entry = (self.now_s + delay_s, callback)
        self.timers.append(entry)
        timers = self.timers

        class Timer:
            def cancel(self) -> None:
                timers.remove(entry)

        return Timer()

    def create_task(self, coroutine: Any) -> asyncio.Future[None]:
        done: asyncio.Future[None] = cast("Any", Done())
        with pytest.raises(StopIteration):
            coroutine.send(None)
        return done

    def run(self, seconds: float, step_s: float = 0.25) -> None:
        """The time goes by, step by step."""
        for _ in range(round(seconds / step_s)):
            self.now_s += step_s
            for timer in [timer for timer in self.timers if timer[0] <= self.now_s]:
                self.timers.remove(timer)
                timer[1]()


class Done:
    def add_done_callback(self, callback: Callable[[Any], None]) -> None:
        callback(self)


class Bench:
    """A pass may take four seconds at least; the watchdog looks each second."""

    def __init__(self, hang_s: float = 4.0) -> None:
        self.loop = Loop()
        self.running: dict[Runner, Run] = {}
        self.ended: list[Run] = []
        self.back: list[Runner] = []
        instances = cast("Instances", self)
        self.watchdog = Watchdog("m", instances, cast("Any", self.loop), hang_s, self._give_up, self.back.append)

    def _give_up(self, runner: Runner, run: Run) -> None:
        assert runner is run.runner
        self.ended.append(run)
        del self.running[runner]

    def begin(self, ms: int | None = 100, runner: Worker | None = None) -> Run:
        runner = runner or Hanging()
        run = self.running[runner] = Run([], runner, 0, CostModel({1: ms * 1_000_000} if ms else None))
        return run


@pytest.mark.parametrize(("ms", "budget_s"), [(100, 4), (200, 4), (300, 6), (None, 40)])
def test_a_pass_may_take_twenty_times_what_was_foreseen(ms: int | None, budget_s: float) -> None:
    """Never less than the bound; one of unknown cost ten times that. Counted from when it is first seen."""
    bench = Bench()
    run = bench.begin(ms)
    assert bench.watchdog.budget_s(run) == budget_s
    bench.loop.run(1 + budget_s)
    assert not bench.ended, "just as long is not longer"
    bench.loop.run(1)
    assert bench.ended == [run]
    assert cast("Hanging", run.runner).given_up == 1
    assert bench.back == [run.runner]
    assert not bench.watchdog._replacing


def test_each_pass_has_its_own_time() -> None:
    """One that ended is forgotten, and the next on its instance begins anew."""
    bench = Bench()
    first = bench.begin()
    bench.loop.run(4)
    second = bench.begin(runner=cast("Worker", first.runner))
    bench.loop.run(5)
    assert not bench.ended
    bench.loop.run(1)
    assert bench.ended == [second]


def test_while_the_process_stands_still_no_time_goes_by() -> None:
    """Two looks' worth at most."""
    bench = Bench()
    run = bench.begin()
    bench.loop.run(1)
    bench.loop.run(3600, 3600)
    bench.loop.run(2)
    assert not bench.ended
    bench.loop.run(1)
    assert bench.ended == [run]


@pytest.mark.parametrize(("hang_s", "look_s"), [(1.0, 0.25), (4.0, 1.0), (60.0, 1.0)])
def test_it_looks_each_second_and_oftener_where_passes_may_not_take_that_long(hang_s: float, look_s: float) -> None:
    """Until it is closed."""
    bench = Bench(hang_s)
    assert [at for at, _ in bench.loop.timers] == [100 + look_s]
    bench.loop.run(1)
    assert [at for at, _ in bench.loop.timers] == [101 + look_s]
    bench.watchdog.close()
    assert not bench.loop.timers


def test_what_is_no_worker_is_left_alone() -> None:
    """Nothing else can be replaced."""
    bench = Bench()
    bench.running[cast("Runner", object())] = Run([], cast("Runner", None), 0, CostModel({1: 1}))
    bench.loop.run(60)
    bench.watchdog.lost(cast("Runner", object()), [], DeviceLost("m", "gone"))
    assert not bench.ended
    assert not bench.back


def test_an_instance_that_lost_its_device_is_replaced_at_once() -> None:
    """One that can't be is not put back."""
    bench = Bench()
    good, bad = Hanging(), Hanging()
    bad.fails = True
    for worker in (good, bad):
        bench.watchdog.lost(worker, [], DeviceLost("m", "gone"))
    assert (good.given_up, bad.given_up) == (1, 1)
    assert bench.back == [good]
