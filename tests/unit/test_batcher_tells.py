"""What a batcher tells of itself: to the preprocessing in front of it, to the statistics, to whoever scales it."""

from __future__ import annotations

import asyncio

import pytest

from server.errors import Draining, InvalidRequest, ModelNotReady, Overloaded
from server.scheduler.batcher import STALL_NS
from server.scheduler.cost import CostModel
from server.scheduler.saturation import Ability
from server.scheduler.share import Share
from server.types import InferRequest, Outcome
from tests.support.scheduler import MS, POISON, Bench, StillCost


class Counting(CostModel):
    """How often it was told of a pass."""

    def __init__(self, seed: dict[int, int]) -> None:
        super().__init__(seed)
        self.told: list[tuple[int, int, int]] = []

    def observe(self, rows: int, ns: int, overhead_ns: int = 0) -> None:
        self.told.append((rows, ns, overhead_ns))


def test_before_one_that_comes_now_are_those_who_run_who_came_and_who_wait() -> None:
    """In rows; those that wait and go behind it are not."""
    bench = Bench(4)
    bench.submit(bench.caller.request([1, 2, 3]))
    bench.submit(bench.caller.request([1, 2], deadline_ns=bench.clock.now_ns + 900 * MS), bench.caller.request())
    bench.batcher.submit([bench.caller.request([1] * 4)])
    request = bench.caller.request(deadline_ns=bench.clock.now_ns + 950 * MS)
    assert bench.batcher.rows_before(request) == 3 + 4 + bench.batcher.queue.rows_before(request)
    assert bench.batcher.queue.rows_before(request) == 2
    assert (bench.batcher.pending, bench.statistics.pending) == (3, 2)


def test_a_pass_is_held_against_what_was_foreseen_and_what_is_beside_its_compute_is_overhead() -> None:
    """From its begin to its end on the loop."""
    cost = Counting({1: 3 * MS})
    bench = Bench(4, cost=cost)
    bench.submit(bench.caller.request([1, 2]))
    bench.clock.now_ns += 7 * MS
    bench.complete()
    counts = bench.statistics
    assert (counts.busy_ns, counts.predicted_ns, counts.actual_ns) == (7 * MS, 6 * MS, 7 * MS)
    assert cost.told == [(2, 0, 7 * MS)]


def test_the_answers_of_a_pass_are_part_of_what_it_costs() -> None:
    """The next one can't begin before they are given. Who waited for it was answered when it ended."""
    cost = Counting({1: 3 * MS})
    bench = Bench(4, cost=cost)

    def taken(_request: InferRequest, _outcome: Outcome) -> None:
        bench.clock.now_ns += 2 * MS

    bench.submit(bench.caller.request([1, 2], on_settle=taken))
    bench.clock.now_ns += 7 * MS
    bench.complete()
    assert cost.told == [(2, 0, 9 * MS)]
    assert bench.statistics.actual_ns == 9 * MS
    assert bench.statistics.success.ns == 7 * MS


def test_a_pass_that_failed_teaches_nothing() -> None:
    """But takes its time."""
    cost = Counting({1: 3 * MS})
    bench = Bench(4, cost=cost)
    bench.submit(bench.caller.request([POISON]))
    bench.clock.now_ns += 7 * MS
    bench.complete()
    assert (cost.told, bench.statistics.busy_ns) == ([], 7 * MS)


def test_of_passes_on_the_loop_one_in_half_a_millisecond_teaches() -> None:
    """They are many, and each is short."""
    cost = Counting({1: 5_000})
    bench = Bench(4, cost=cost)
    for after_ns, told in ((0, 1), (499_999, 1), (1, 2), (1, 2)):
        bench.clock.now_ns += after_ns
        bench.submit(bench.caller.request())
        assert len(cost.told) == told, after_ns
    assert bench.statistics.execution_count == 4


def test_its_ability_is_that_of_its_living_instances() -> None:
    """Of passes of the best size; of the cores their part, where they are shared."""
    bench = Bench(4, cost=StillCost(8 * MS), instances=2, slo_ns=100 * MS, share=Share(4))
    assert bench.batcher.ability() == Ability(2, 4, 8 * MS, 100 * MS, 0.25)
    bench.submit(bench.caller.request())
    next(runner for runner in bench.runners if runner.job).die()
    bench.loop.run()
    assert bench.batcher.ability().instances == 1
    assert not bench.batcher.healthy()


def test_nobody_is_hopeless_while_an_instance_is_idle() -> None:
    """Only the last one that was late tells, once none is."""
    bench = Bench(1, cost=StillCost(10 * MS))
    now_ns = bench.clock.now_ns
    assert bench.batcher.hopeless(1, now_ns) is None
    bench.submit(bench.caller.request())
    assert bench.batcher.hopeless(1, now_ns + 15 * MS) is None
    bench.submit(bench.caller.request(deadline_ns=now_ns + 15 * MS))
    assert isinstance(bench.batcher.hopeless(1, now_ns + 15 * MS), Overloaded)
    bench.complete()
    assert bench.batcher.hopeless(1, now_ns + 15 * MS) is None


def test_it_is_ill_where_somebody_waits_beside_an_idle_instance() -> None:
    """For longer than the window and some seconds."""
    bench = Bench(4, max_queue_delay_ns=3 * MS, seed={1: MS, 4: MS})
    bench.submit(bench.caller.request())
    bench.clock.now_ns += 3 * MS + STALL_NS - 1
    assert bench.batcher.healthy()
    bench.clock.now_ns += 1
    assert not bench.batcher.healthy()
    bench.loop.run()
    assert bench.batcher.healthy(), "it runs"


def test_a_close_tells_that_nobody_waits() -> None:
    """At once; who runs is thrown away, and counted once."""

    async def close() -> None:
        bench = Bench(1)
        running, waiting = bench.caller.request(), bench.caller.request()
        bench.submit(running, waiting)
        assert bench.statistics.pending == 1
        closing = asyncio.ensure_future(bench.batcher.close())
        await asyncio.sleep(0)
        assert bench.statistics.pending == 0
        await closing
        assert all(isinstance(bench.caller.outcome(request), Draining) for request in (running, waiting))
        assert bench.statistics.fail.count == 2
        assert bench.runner.stopped

    asyncio.run(close())


@pytest.mark.parametrize(("waited_ms", "waited_us"), [(3, 3000), (0, 0)])
def test_who_expires_tells_how_long_it_waited(waited_ms: int, waited_us: int) -> None:
    """Since it was admitted; one that was over when it came did not wait."""
    bench = Bench(1)
    bench.submit(bench.caller.request())
    late = bench.caller.request(deadline_ns=bench.clock.now_ns + waited_ms * MS)
    bench.submit(late)
    bench.advance(waited_ms * MS)
    outcome = bench.caller.outcome(late)
    assert getattr(outcome, "waited_us", None) == waited_us
    assert bench.statistics.admitted == (2 if waited_ms else 1)


def test_who_is_still_made_ready_is_foreseen_behind_all_who_are_there_or_come_before_it() -> None:
    """Who runs, who has just come, and those that are made ready too; it is told at once that it can't be."""
    bench = Bench(1, cost=StillCost(10 * MS))
    bench.submit(bench.caller.request())
    bench.clock.now_ns += 4 * MS
    bench.batcher.submit([bench.caller.request()])
    request = bench.caller.request(deadline_ns=bench.clock.now_ns + 500 * MS)
    told = bench.batcher.foresee(request, 2)
    assert (told.refusal, told.own_ns) == (None, 10 * MS)
    assert request.predicted_ns - bench.clock.now_ns == (6 + 10 + 2 * 10 + 10) * MS
    too_large = bench.batcher.foresee(bench.caller.request([1, 2]), 0).refusal
    assert isinstance(too_large, InvalidRequest)
    assert too_large.field == "inputs"
    bench.runner.die()
    bench.loop.run()
    assert isinstance(bench.batcher.foresee(bench.caller.request(), 0).refusal, ModelNotReady)
    bench.batcher.drain(bench.clock.now_ns + MS).send(None)
    assert isinstance(bench.batcher.foresee(bench.caller.request(), 0).refusal, Draining)


def test_reruns_go_before_everybody() -> None:
    """Each alone; an instance that is idle is not free for those who come then."""
    bench = Bench(4, cost=StillCost(10 * MS), instances=2)
    bench.submit(*(bench.caller.request([value]) for value in (POISON, 1, 2)))
    later = bench.caller.request(deadline_ns=bench.clock.now_ns + 500 * MS)
    next(runner for runner in bench.runners if runner.job).complete()
    bench.loop.run()
    assert len([runner for runner in bench.runners if runner.job]) == 2
    bench.submit(later)
    # Two run, for 10 ms yet; one more rerun goes before it; two instances share that.
    assert later.predicted_ns - bench.clock.now_ns == (30 / 2 + 10) * MS
    assert bench.statistics.pending == 2
