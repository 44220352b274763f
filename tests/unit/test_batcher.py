"""The batcher, with a manual clock, loop and workers."""

from __future__ import annotations

import logging
from collections.abc import Coroutine
from typing import Any

import pytest

from server.afterwards import afterwards
from server.buckets import Buckets
from server.errors import (
    Cancelled,
    DeadlineExceeded,
    Draining,
    EngineFailure,
    InvalidRequest,
    ModelNotReady,
    Overloaded,
    QueueFull,
)
from server.scheduler.batcher import STALL_NS
from server.scheduler.costs import CostsByLength
from server.scheduler.handoff import HANDOFF_NS
from server.scheduler.queue import Priorities, QueuePolicy
from server.scheduler.share import Share
from server.scheduler.statistics import FailureReason, Refusal
from server.types import InferRequest, InferResponse, Outcome
from tests.support.scheduler import MS, POISON, Bench, StillCost, admit

CHEAP = {1: HANDOFF_NS // 10}


def ended(coroutine: Coroutine[Any, Any, None]) -> bool:
    """Push a coroutine on; whether it has returned."""
    try:
        coroutine.send(None)
    except StopIteration:
        return True
    return False


# --- batching ------------------------------------------------------------------------------------


def test_one_tick_is_one_batch() -> None:
    """Requests that arrive in one tick of the loop are planned together, though each could go alone."""
    bench = Bench()
    requests = [bench.caller.request([n], id=f"r{n}") for n in (1, 2, 3)]
    bench.submit(*requests)
    bench.loop.run()
    bench.complete()
    assert bench.batches == [[1, 2, 3]]
    assert [bench.caller.answer(request) for request in requests] == [[2], [4], [6]]


def test_an_idle_instance_takes_a_request_at_once() -> None:
    """Work-conserving: with a delay of 0 and an idle instance a request starts within its tick."""
    bench = Bench(instances=2)
    bench.submit(bench.caller.request([1]))
    bench.loop.run()
    bench.submit(bench.caller.request([2]))
    bench.loop.run()
    assert all(runner.job for runner in bench.runners)
    assert bench.batcher.pending == 0


def test_what_arrives_during_a_pass_goes_together_in_the_next() -> None:
    """While every instance is busy the queue grows, and the next pass takes what fits, in order."""
    bench = Bench(max_batch_size=4)
    requests = [bench.caller.request([n]) for n in range(1, 7)]
    for request in requests:
        bench.submit(request)
        bench.loop.run()
    bench.complete()
    bench.complete()
    bench.complete()
    assert bench.batches == [[1], [2, 3, 4, 5], [6]]


def test_a_cheap_pass_runs_on_the_loop_and_a_dear_one_does_not() -> None:
    """A pass goes to the thread exactly when its predicted time is not below the hand-off's, or is unknown."""
    for seed, inline in (({}, False), ({1: HANDOFF_NS}, False), ({1: HANDOFF_NS - 1}, True)):
        bench = Bench(seed=seed)
        request = bench.caller.request([1])
        bench.submit(request)
        bench.loop.run()
        assert (bench.caller.outcome(request) is not None) is inline
        assert (bench.runner.job is None) is inline


@pytest.mark.parametrize("pass_ns", [HANDOFF_NS - 1, HANDOFF_NS * 10], ids=["on the loop", "on a thread"])
def test_what_answers_leave_to_be_done_is_done_behind_them(pass_ns: int) -> None:
    """Once all of them are given, and without another turn of the loop."""
    done: list[str] = []

    def settled(request: InferRequest, _outcome: Outcome) -> None:
        done.append(request.id)
        afterwards(lambda: done.append(f"written {request.id}"))

    bench = Bench(seed={1: pass_ns, 2: pass_ns})
    bench.batcher.submit([bench.caller.request(id=name, on_settle=settled) for name in "ab"])
    if pass_ns > HANDOFF_NS:
        bench.loop.run()
        bench.runner.complete()
    bench.loop.call_soon(lambda: done.append("next"))
    bench.loop.run()
    assert done == ["a", "b", "written a", "written b", "next"]


@pytest.mark.parametrize(
    ("cores", "beside", "batches"),
    [(1, False, [[1], [2, 3]]), (2, False, [[1], [2], [3]]), (1, True, [[1], [2], [3]])],
    ids=["on the only core", "on one of two", "where another model would take it"],
)
def test_on_the_only_core_answers_come_before_the_next_pass(cores: int, beside: bool, batches: list[list[int]]) -> None:
    """Who is answered, and asks again as that is written, shares the next pass; else it begins at once."""
    share = Share(cores)
    bench = Bench(share=share, cost=StillCost(10 * HANDOFF_NS))

    def settled(_request: InferRequest, _outcome: Outcome) -> None:
        afterwards(lambda: bench.batcher.submit([bench.caller.request([3])]))

    if beside:
        share.join("other", 1, lambda: None).charge(20 * MS, bench.clock())
    bench.submit(bench.caller.request([1], on_settle=settled))
    bench.submit(bench.caller.request([2]))
    bench.complete()
    while bench.runner.job is not None:
        bench.complete()
    assert bench.batches == batches
    assert bench.batcher.healthy()


def test_the_sockets_come_between_passes_on_the_loop() -> None:
    """After one pass on the loop other callbacks run before the next, and join its batch."""
    bench = Bench(max_batch_size=2, cost=StillCost(1))
    late = bench.caller.request([9])
    bench.batcher.submit([bench.caller.request([n]) for n in (1, 2, 3)])
    bench.loop.call_soon(bench.batcher.submit, (late,))
    bench.loop.run()
    assert bench.batches == [[1, 2], [3, 9]]


def test_answers_carry_id_timing_and_the_models_name() -> None:
    """An answer echoes its request's id and says where the time went, its wait from its own admission on."""
    bench = Bench()
    first, second, third = (bench.caller.request([n], id=f"r{n}") for n in (1, 2, 3))
    bench.submit(first)
    bench.loop.run()
    bench.submit(second)
    bench.advance(3 * MS)
    bench.submit(third)
    bench.advance(2 * MS)
    bench.complete()
    bench.complete()
    outcomes = [bench.caller.outcome(request) for request in (first, second, third)]
    assert all(isinstance(outcome, InferResponse) for outcome in outcomes)
    assert [outcome.id for outcome in outcomes] == ["r1", "r2", "r3"]  # type: ignore[union-attr]
    assert [outcome.timing.queue_ns for outcome in outcomes] == [5 * MS, 5 * MS, 2 * MS]  # type: ignore[union-attr]
    assert outcomes[2].timing.batch_rows == 2  # type: ignore[union-attr]
    assert outcomes[2].model_version == "1"  # type: ignore[union-attr]


def test_a_window_ends_by_timer() -> None:
    """A request that waits for company goes when its max_queue_delay is over, though nothing else happens."""
    bench = Bench(max_queue_delay_ns=2 * MS)
    request = bench.caller.request([1])
    bench.submit(request)
    bench.advance(2 * MS - 1)
    assert bench.runner.job is None
    bench.advance(1)
    assert bench.runner.job is not None


def test_a_timer_that_rings_early_is_set_again() -> None:
    """uvloop rounds short timers down: a wake-up before the time neither dispatches nor is the last."""
    bench = Bench(max_queue_delay_ns=2 * MS)
    bench.submit(bench.caller.request([1]))
    bench.loop.run()
    bench.clock.now_ns += MS
    bench.batcher._alarm._ring()
    assert bench.runner.job is None
    bench.advance(MS)
    assert bench.runner.job is not None


def test_every_window_has_its_alarm() -> None:
    """One wake-up after another: each window ends on time, not only the first."""
    bench = Bench(max_queue_delay_ns=2 * MS)
    for number in (1, 2, 3):
        request = bench.caller.request([number])
        bench.submit(request)
        bench.loop.run()
        bench.advance(2 * MS)
        bench.complete()
        assert bench.caller.answer(request) == [2 * number]


def test_timers_are_few() -> None:
    """Requests whose deadlines come later than the timer that is set cost no timer."""
    bench = Bench()
    bench.submit(bench.caller.request([0]))
    bench.loop.run()
    for number in range(50):
        bench.submit(bench.caller.request([1], deadline_ns=bench.clock.now_ns + 10**9 + number))
        bench.loop.run()
    assert bench.loop.timers_made == 1


def test_a_far_deadline_makes_a_timer_that_loops_accept() -> None:
    """Times beyond what a loop takes are waited for in steps."""
    bench = Bench(policy=QueuePolicy())
    bench.submit(bench.caller.request([1]))
    bench.loop.run()
    bench.submit(bench.caller.request([2], parameters={"timeout": 2**62}, deadline_ns=2**62))
    bench.loop.run()
    assert (bench.loop.next_timer_ns() or 0) <= bench.clock.now_ns + 3600 * 10**9


# --- refusals ------------------------------------------------------------------------------------


def test_a_full_queue_says_when_to_come_back() -> None:
    """The hint is the time for what runs and for the rows that wait, in full batches, over all instances."""
    bench = Bench(max_batch_size=4, policy=QueuePolicy(max_queue_size=5), cost=StillCost(10 * MS), instances=2)
    for _ in range(2):
        bench.submit(bench.caller.request([1] * 4))
        bench.loop.run()
    bench.submit(*(bench.caller.request([1, 1]) for _ in range(5)))
    refused = bench.caller.request([1])
    bench.submit(refused)
    outcome = bench.caller.outcome(refused)
    assert isinstance(outcome, QueueFull)
    assert (outcome.limit, outcome.retry_after_ms) == (5, 25)


def test_nobody_knows_when_to_come_back() -> None:
    """Without any measured pass the hint is 0."""
    bench = Bench(policy=QueuePolicy(max_queue_size=1), seed={})
    first, second = bench.caller.request(), bench.caller.request()
    bench.submit(bench.caller.request())
    bench.submit(first, second)
    outcome = bench.caller.outcome(second)
    assert isinstance(outcome, QueueFull)
    assert outcome.retry_after_ms == 0


def test_more_rows_than_fit_are_refused() -> None:
    """A request that no batch can hold is refused at the door, for it would block its queue for ever."""
    bench = Bench(max_batch_size=2)
    request = bench.caller.request([1, 2, 3])
    bench.submit(request)
    assert isinstance(bench.caller.outcome(request), InvalidRequest)


def test_an_over_deadline_is_refused_at_the_door() -> None:
    """A request that arrives at its deadline is never executed."""
    bench = Bench(seed=CHEAP)
    request = bench.caller.request([1], deadline_ns=bench.clock.now_ns)
    bench.submit(request)
    bench.loop.run()
    assert isinstance(bench.caller.outcome(request), DeadlineExceeded)
    assert bench.batches == []


def test_an_over_deadline_is_refused_also_in_the_middle_of_a_tick() -> None:
    """A request that a settled caller sends at once is not executed if its deadline is over by then."""
    bench = Bench(max_batch_size=2, max_queue_delay_ns=2 * MS)
    late = bench.caller.request([2, 2], deadline_ns=bench.clock.now_ns + 2 * MS)
    first = bench.caller.request(
        [1], deadline_ns=bench.clock.now_ns + 2 * MS, on_settle=lambda _, __: bench.batcher.submit((late,))
    )
    bench.submit(first)
    bench.advance(2 * MS)
    assert isinstance(bench.caller.outcome(late), DeadlineExceeded)
    assert bench.runner.job is None


def test_submit_never_raises(caplog: pytest.LogCaptureFixture) -> None:
    """A request that breaks admission itself is settled as our failure, and its neighbours are served."""
    bench = Bench(seed=CHEAP)
    broken, fine = bench.caller.request([1]), bench.caller.request([2])
    broken.signature = []
    bench.submit(broken, fine)
    bench.loop.run()
    assert isinstance(bench.caller.outcome(broken), EngineFailure)
    assert bench.caller.answer(fine) == [4]
    assert len(caplog.records) == 1


def test_a_settled_request_is_not_admitted() -> None:
    """A request that is settled before it arrives takes no place and no pass."""
    bench = Bench(seed=CHEAP)
    request = bench.caller.request([1])
    request.settle(Cancelled())
    bench.submit(request)
    bench.loop.run()
    assert bench.batches == []
    assert bench.statistics.fail.count == 0


# --- expiry and cancellation ---------------------------------------------------------------------


def test_rejected_when_its_time_is_over_though_every_instance_is_busy() -> None:
    """A waiting request is settled at its expiry, not when an instance becomes idle."""
    bench = Bench(policy=QueuePolicy(default_timeout_ns=5 * MS))
    running, waiting = bench.caller.request([1]), bench.caller.request([2])
    bench.submit(running)
    bench.loop.run()
    bench.submit(waiting)
    bench.advance(5 * MS)
    outcome = bench.caller.outcome(waiting)
    assert isinstance(outcome, DeadlineExceeded)
    assert outcome.waited_us == 5000
    bench.complete()
    assert bench.batches == [[1]]


def test_running_requests_do_not_expire() -> None:
    """A deadline ends a wait, not a pass that has begun: its answer counts if it comes first."""
    bench = Bench()
    request = bench.caller.request([1], deadline_ns=bench.clock.now_ns + MS)
    bench.submit(request)
    bench.loop.run()
    bench.advance(2 * MS)
    bench.complete()
    assert bench.caller.answer(request) == [2]


def test_delayed_behind_the_others_and_executed() -> None:
    """Under DELAY a request that timed out goes behind those that did not, and is answered."""
    bench = Bench(max_batch_size=1, policy=QueuePolicy(default_timeout_ns=5 * MS, timeout_action="DELAY"))
    busy, slow, fresh = (bench.caller.request([n]) for n in (1, 2, 3))
    bench.submit(busy)
    bench.loop.run()
    bench.submit(slow)
    bench.advance(5 * MS)
    bench.submit(fresh)
    bench.loop.run()
    for _ in range(3):
        bench.complete()
    assert bench.batches == [[1], [3], [2]]
    assert bench.caller.answer(slow) == [4]


def test_a_cancelled_request_frees_its_place_at_once() -> None:
    """A cancelled request that waits is settled, makes room for another, and is never executed."""
    bench = Bench(policy=QueuePolicy(max_queue_size=1))
    running, cancelled, other = (bench.caller.request([n]) for n in (1, 2, 3))
    bench.submit(running)
    bench.loop.run()
    bench.submit(cancelled)
    bench.batcher.cancel(cancelled)
    assert isinstance(bench.caller.outcome(cancelled), Cancelled)
    bench.submit(other)
    bench.loop.run()
    bench.complete()
    bench.complete()
    assert bench.batches == [[1], [3]]
    assert bench.caller.answer(other) == [6]


def test_cancelled_in_the_middle_of_its_pass() -> None:
    """Who is cancelled while running is settled then; its neighbours get their own rows."""
    bench = Bench()
    first, second, third = (bench.caller.request([n]) for n in (1, 2, 3))
    bench.submit(first, second, third)
    bench.loop.run()
    bench.batcher.cancel(second)
    bench.batcher.cancel(second)
    bench.complete()
    assert isinstance(bench.caller.outcome(second), Cancelled)
    assert (bench.caller.answer(first), bench.caller.answer(third)) == ([2], [6])
    assert (bench.statistics.success.count, bench.statistics.fail.count) == (2, 1)
    assert bench.statistics.inference_count == 3


# --- failures ------------------------------------------------------------------------------------


def test_only_the_culprit_fails() -> None:
    """When a pass of several fails, each is run once more alone, and only the one at fault fails."""
    bench = Bench()
    good, bad, fine = bench.caller.request([1]), bench.caller.request([POISON]), bench.caller.request([3])
    bench.submit(good, bad, fine)
    bench.loop.run()
    for _ in range(4):
        bench.complete()
    assert bench.batches == [[1, POISON, 3], [1], [POISON], [3]]
    assert (bench.caller.answer(good), bench.caller.answer(fine)) == ([2], [6])
    failure = bench.caller.outcome(bad)
    assert isinstance(failure, EngineFailure)
    assert isinstance(failure.__cause__, ValueError)
    assert "poison" not in str(failure), "the client does not see the engine's words"
    assert bench.statistics.failures[FailureReason.BACKEND] == 1


def test_a_request_alone_is_not_run_again() -> None:
    """A pass of one request that fails is final."""
    bench = Bench()
    bench.runner.instance.faults.append(RuntimeError("once"))
    request = bench.caller.request([1])
    bench.submit(request)
    bench.loop.run()
    bench.complete()
    assert isinstance(bench.caller.outcome(request), EngineFailure)
    assert bench.runner.job is None


def test_cancelled_and_expired_requests_are_not_run_again() -> None:
    """Of a failed pass only those are run again that somebody still waits for, at the time of their turn."""
    bench = Bench()
    now_ns = bench.clock.now_ns
    requests = [bench.caller.request([n], deadline_ns=now_ns + min(n, 2) * MS) for n in (1, 2, 3)]
    bench.submit(*requests)
    bench.loop.run()
    bench.runner.instance.faults.append(RuntimeError("once"))
    bench.complete()
    assert bench.batcher.pending == 2
    bench.batcher.cancel(requests[1])
    assert bench.batcher.pending == 1
    bench.advance(2 * MS)
    assert isinstance(bench.caller.outcome(requests[2]), DeadlineExceeded), "settled at its deadline, not at its turn"
    bench.complete()
    assert bench.batches == [[1, 2, 3], [1]]
    assert bench.caller.answer(requests[0]) == [2]


def test_who_was_cancelled_in_a_failed_pass_waits_for_nothing() -> None:
    """A request that was cancelled while its pass ran is no longer pending when that pass fails."""
    bench = Bench()
    requests = [bench.caller.request([n]) for n in (1, 2, 3)]
    bench.submit(*requests)
    bench.loop.run()
    bench.batcher.cancel(requests[2])
    bench.runner.instance.faults.append(RuntimeError("once"))
    bench.complete()
    assert bench.batcher.pending == 1, "one runs again, one is next"
    bench.complete()
    bench.complete()
    assert bench.batches == [[1, 2, 3], [1], [2]]


def test_a_dead_worker_settles_its_callers_and_the_others_go_on() -> None:
    """The callers of a worker that died fail; the queue is served by those that live; liveness is gone."""
    bench = Bench(instances=2)
    first, second = bench.caller.request([1]), bench.caller.request([2])
    bench.submit(first, second)
    bench.loop.run()
    dead = next(runner for runner in bench.runners if runner.job)
    living = next(runner for runner in bench.runners if runner is not dead)
    dead.die()
    bench.loop.run()
    assert isinstance(bench.caller.outcome(first), EngineFailure)
    assert isinstance(bench.caller.outcome(second), EngineFailure)
    assert not bench.batcher.healthy()
    assert bench.statistics.instances == 1
    third = bench.caller.request([3])
    bench.submit(third)
    bench.loop.run()
    living.complete()
    bench.loop.run()
    assert bench.caller.answer(third) == [6]


def test_when_all_workers_are_dead_nobody_waits() -> None:
    """With the last worker gone, who waits and who comes is told that the model is not ready."""
    bench = Bench(max_batch_size=1)
    running, waiting, late = (bench.caller.request([n]) for n in (1, 2, 3))
    bench.submit(running, waiting)
    bench.loop.run()
    bench.runner.die()
    bench.loop.run()
    bench.submit(late)
    assert isinstance(bench.caller.outcome(waiting), ModelNotReady)
    assert isinstance(bench.caller.outcome(late), ModelNotReady)
    assert bench.batcher.pending == bench.statistics.pending == 0


@pytest.mark.parametrize("seed", [None, CHEAP], ids=["on a thread", "on the loop"])
def test_a_callback_that_raises_hurts_nobody(seed: dict[int, int] | None, caplog: pytest.LogCaptureFixture) -> None:
    """A caller whose callback raises is settled and counted; its neighbours are answered."""

    def explode(request: InferRequest, outcome: Outcome) -> None:
        raise RuntimeError("callback")

    bench = Bench(seed=seed)
    bad = bench.caller.request([1], on_settle=explode)
    good = bench.caller.request([2])
    bench.submit(bad, good)
    bench.loop.run()
    if seed is None:
        bench.complete()
    assert bench.caller.answer(good) == [4]
    assert bench.statistics.success.count == 2
    assert len(caplog.records) == 1


class Broken:
    """Stands for a bug: everything asked of it raises."""

    def __getattr__(self, name: str) -> Any:
        raise RuntimeError("bug")


def test_a_bug_in_the_tick_settles_everybody_once_and_is_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    """Whatever raises in planning, those that wait are told, and the batcher serves the next ones."""
    bench = Bench()
    healthy, bench.batcher._limits = bench.batcher._limits, Broken()  # type: ignore[assignment]
    requests = [bench.caller.request([n]) for n in (1, 2)]
    for request in requests:
        admit(bench.batcher._backlog.queue, request, bench.clock.now_ns)
    bench.batcher._tick()
    assert all(isinstance(bench.caller.outcome(request), EngineFailure) for request in requests)
    assert len(caplog.records) == 1
    bench.batcher._limits = healthy
    after = bench.caller.request([3])
    bench.submit(after)
    bench.loop.run()
    bench.complete()
    assert bench.caller.answer(after) == [6]


@pytest.mark.parametrize("seed", [None, CHEAP], ids=["on a thread", "on the loop"])
def test_a_bug_at_the_end_of_a_pass_settles_its_requests(
    seed: dict[int, int] | None, caplog: pytest.LogCaptureFixture
) -> None:
    """If the end of a pass breaks, its requests are settled and the instance is used again."""
    bench = Bench(seed=seed)
    healthy, bench.statistics._wall = bench.statistics._wall, Broken()  # type: ignore[assignment]
    request = bench.caller.request([1])
    bench.submit(request)
    bench.loop.run()
    if seed is None:
        bench.complete()
    assert isinstance(bench.caller.outcome(request), EngineFailure)
    assert [record.levelno for record in caplog.records] == [logging.ERROR]
    bench.statistics._wall = healthy
    after = bench.caller.request([3])
    bench.submit(after)
    bench.loop.run()
    if seed is None:
        bench.complete()
    assert bench.caller.answer(after) == [6]


def test_a_worker_that_cannot_start_settles_its_requests() -> None:
    """If a pass can't even be begun, its requests fail and the instance stays in use."""
    bench = Bench()
    del bench.runner.on_begin
    request = bench.caller.request([1])
    bench.submit(request)
    bench.loop.run()
    assert isinstance(bench.caller.outcome(request), EngineFailure)
    bench.runner.on_begin = lambda requests: None
    after = bench.caller.request([3])
    bench.submit(after)
    bench.loop.run()
    bench.complete()
    assert bench.caller.answer(after) == [6]


def test_an_interrupt_on_the_loop_settles_and_goes_on_up() -> None:
    """KeyboardInterrupt in a pass on the loop reaches the loop, after everybody was settled."""
    bench = Bench(max_batch_size=1, seed=CHEAP)
    bench.runner.instance.faults.append(KeyboardInterrupt())
    running, waiting = bench.caller.request([1]), bench.caller.request([2])
    bench.batcher.submit((running, waiting))
    with pytest.raises(KeyboardInterrupt):
        bench.loop.run()
    assert isinstance(bench.caller.outcome(running), EngineFailure)
    assert isinstance(bench.caller.outcome(waiting), EngineFailure)


def test_callers_may_call_back() -> None:
    """Settling may submit and cancel: a new request is served, a neighbour's cancellation is its only end."""
    bench = Bench(seed=CHEAP)
    after = bench.caller.request([5])
    neighbour = bench.caller.request([2])

    def react(request: InferRequest, outcome: Outcome) -> None:
        bench.batcher.submit((after,))
        bench.batcher.cancel(neighbour)
        bench.batcher.cancel(request)

    first = bench.caller.request([1], on_settle=react)
    bench.submit(first, neighbour)
    bench.loop.run()
    assert bench.caller.answer(first) == [2]
    assert isinstance(bench.caller.outcome(neighbour), Cancelled)
    assert bench.caller.answer(after) == [10]
    assert (bench.statistics.success.count, bench.statistics.fail.count) == (2, 1)


# --- the end -------------------------------------------------------------------------------------


def test_a_drain_answers_what_is_held_and_admits_nothing() -> None:
    """Running and waiting requests are answered, a new one is told; no batch waits for its window."""
    bench = Bench(max_batch_size=2, max_queue_delay_ns=10**12)
    held = [bench.caller.request([n]) for n in (1, 2, 3)]
    bench.submit(*held)
    bench.loop.run()
    drain = bench.batcher.drain(bench.clock.now_ns + 10 * MS)
    assert not ended(drain)
    bench.loop.run()
    late = bench.caller.request([4])
    bench.submit(late)
    assert isinstance(bench.caller.outcome(late), Draining)
    bench.complete()
    assert not ended(drain)
    bench.complete()
    assert [bench.caller.answer(request) for request in held] == [[2], [4], [6]]
    assert ended(drain)


def test_who_came_in_the_turn_of_a_drain_is_answered() -> None:
    """It came before the end, and would have been admitted in that very turn of the loop."""
    bench = Bench(max_batch_size=2)
    request = bench.caller.request([1])
    bench.batcher.submit([request])
    drain = bench.batcher.drain(bench.clock.now_ns + 10 * MS)
    assert not ended(drain)
    bench.loop.run()
    bench.complete()
    assert bench.caller.answer(request) == [2]
    assert ended(drain)


def test_a_drain_ends_at_its_time() -> None:
    """At the end of the grace the rest is settled, waiting or running, and the late answer is thrown away."""
    bench = Bench(max_batch_size=1)
    running, waiting = bench.caller.request([1]), bench.caller.request([2])
    bench.submit(running, waiting)
    bench.loop.run()
    drain = bench.batcher.drain(bench.clock.now_ns + 10 * MS)
    assert not ended(drain)
    bench.advance(10 * MS)
    assert ended(drain)
    assert isinstance(bench.caller.outcome(running), Draining)
    assert isinstance(bench.caller.outcome(waiting), Draining)
    bench.complete()
    assert bench.batches == [[1]]
    assert bench.statistics.success.count == 0


def test_an_idle_batcher_drains_at_once() -> None:
    """With nothing held a drain returns within a tick; a second drain too."""
    bench = Bench()
    for _ in range(2):
        drain = bench.batcher.drain(bench.clock.now_ns + 10 * MS)
        assert not ended(drain)
        bench.loop.run()
        assert ended(drain)


def test_cancelling_the_last_one_ends_a_drain() -> None:
    """A drain does not wait for requests that nobody waits for."""
    bench = Bench(max_batch_size=1)
    running, waiting = bench.caller.request([1]), bench.caller.request([2])
    bench.submit(running, waiting)
    bench.loop.run()
    drain = bench.batcher.drain(bench.clock.now_ns + 10 * MS)
    assert not ended(drain)
    bench.batcher.cancel(waiting)
    bench.complete()
    assert ended(drain)


def test_close_settles_the_rest_and_stops_the_workers() -> None:
    """Closing without a drain settles everything as Draining, also for who is waiting in a drain."""
    bench = Bench(max_batch_size=1)
    running, waiting = bench.caller.request([1]), bench.caller.request([2])
    bench.submit(running, waiting)
    bench.loop.run()
    drain = bench.batcher.drain(bench.clock.now_ns + 10 * MS)
    assert not ended(drain)
    assert ended(bench.batcher.close())
    bench.loop.run()
    assert ended(drain)
    assert bench.runner.stopped
    assert isinstance(bench.caller.outcome(running), Draining)
    assert isinstance(bench.caller.outcome(waiting), Draining)
    assert bench.statistics.pending == 0
    assert bench.loop.next_timer_ns() is None


# --- health and counts ---------------------------------------------------------------------------


def test_healthy_while_the_queue_moves() -> None:
    """A long pass and a long window are no stall; a request that waits for seconds beside idle workers is."""
    bench = Bench(max_batch_size=4, max_queue_delay_ns=10 * MS)
    assert bench.batcher.healthy()
    bench.submit(bench.caller.request([1]))
    bench.loop.run()
    assert bench.batcher.healthy()
    bench.clock.now_ns += 10 * MS + STALL_NS
    assert not bench.batcher.healthy(), "its wake-up was lost"
    bench.loop.run()
    assert bench.runner.job is not None
    bench.submit(bench.caller.request([2]))
    bench.clock.now_ns += 100 * STALL_NS
    assert bench.batcher.healthy(), "a pass is under way"


def test_pending_counts_who_waits() -> None:
    """Neither running nor settled requests are pending, in the batcher and in the statistics alike."""
    bench = Bench(max_batch_size=1)
    requests = [bench.caller.request([n]) for n in (1, 2, 3)]
    bench.submit(*requests)
    bench.loop.run()
    assert bench.batcher.pending == bench.statistics.pending == 2
    bench.batcher.cancel(requests[2])
    bench.loop.run()
    assert bench.batcher.pending == bench.statistics.pending == 1


def test_a_model_without_batching_gets_its_tensors_whole() -> None:
    """With max_batch_size 0 requests run one by one, and their outputs are not cut."""
    bench = Bench(max_batch_size=0)
    requests = [bench.caller.request([1, 2]), bench.caller.request([3, 4])]
    for request in requests:
        request.rows = 1
    bench.submit(*requests)
    bench.loop.run()
    bench.complete()
    bench.complete()
    assert bench.batches == [[1, 2], [3, 4]]
    assert bench.caller.answer(requests[1]) == [6, 8]


def test_the_cost_is_learned_from_passes() -> None:
    """The time of every pass goes into the cost model, by its rows."""
    bench = Bench(seed={})
    run = bench.runner.instance.run

    def slow(batch: Any) -> Any:
        bench.clock.now_ns += 7 * MS
        return run(batch)

    bench.runner.instance.run = slow
    bench.submit(bench.caller.request([1, 2]))
    bench.loop.run()
    bench.complete()
    assert bench.batcher._instances._costs.for_signature(1).predict_ns(2) == 7 * MS
    assert bench.statistics.compute_infer.ns == 7 * MS


def test_what_cannot_be_answered_in_time_is_refused_at_once() -> None:
    """Behind 10 ms of work a request with 15 ms is refused, one with 25 ms is not; the hint is the drain time."""
    bench = Bench(max_batch_size=1, cost=StillCost(10 * MS))
    now_ns = bench.clock.now_ns
    bench.submit(bench.caller.request([1]))
    bench.loop.run()
    hurried, patient = (bench.caller.request([n], deadline_ns=now_ns + n * MS) for n in (15, 25))
    bench.submit(hurried, patient)
    outcome = bench.caller.outcome(hurried)
    assert isinstance(outcome, Overloaded)
    assert (outcome.predicted_ms, outcome.retry_after_ms) == (20, 10)
    assert bench.caller.outcome(patient) is None
    assert (bench.statistics.admitted, bench.statistics.refused[Refusal.OVERLOAD]) == (2, 1)


def test_an_idle_instance_refuses_nobody() -> None:
    """With nobody ahead a request is tried, however little time it has."""
    bench = Bench(cost=StillCost(10 * MS))
    request = bench.caller.request([4], deadline_ns=bench.clock.now_ns + 1)
    bench.submit(request)
    bench.loop.run()
    bench.complete()
    assert bench.caller.answer(request) == [8]


def test_nothing_known_refuses_nobody() -> None:
    """Without a measured cost there is no prediction to refuse by."""
    bench = Bench(max_batch_size=1, seed={})
    requests = [bench.caller.request([n], deadline_ns=bench.clock.now_ns + 5) for n in range(4)]
    bench.submit(bench.caller.request(), *requests)
    assert all(bench.caller.outcome(request) is None for request in requests)


def test_more_urgent_work_counts_and_less_urgent_work_does_not() -> None:
    """Admission looks at what goes before the request: its level's earlier deadlines and the levels above."""
    bench = Bench(max_batch_size=1, cost=StillCost(10 * MS), priorities=Priorities(3, 2))
    now_ns = bench.clock.now_ns
    bench.submit(bench.caller.request())
    bench.loop.run()
    bench.submit(bench.caller.request([1], parameters={"priority": 3}), bench.caller.request([2]))
    first = bench.caller.request([3], deadline_ns=now_ns + 20 * MS)
    bench.submit(first)
    assert bench.caller.outcome(first) is None
    bench.submit(bench.caller.request([4], parameters={"priority": 1}))
    second = bench.caller.request([5], deadline_ns=now_ns + 35 * MS)
    bench.submit(second)
    assert isinstance(bench.caller.outcome(second), Overloaded)


def test_answers_keep_the_order_of_admission() -> None:
    """preserve_ordering: an answer waits for those before it, an error for nobody, and a cancellation lets go."""
    bench = Bench(max_batch_size=1, instances=2, preserve_ordering=True)
    requests = [bench.caller.request([n]) for n in (1, 2, 3)]
    bench.submit(*requests)
    bench.loop.run()
    runner = next(runner for runner in bench.runners if runner.job and runner.job[0] == [requests[1]])
    runner.complete()
    bench.loop.run()
    assert bench.caller.outcome(requests[1]) is None
    bench.batcher.cancel(requests[0])
    bench.loop.run()
    assert bench.caller.answer(requests[1]) == [4]
    assert bench.statistics.success.count == 1


def test_late_answers_and_the_time_of_passes_are_counted() -> None:
    """A pass that ends after the deadline still answers; predicted and actual time are sums over passes."""
    bench = Bench(max_batch_size=1, cost=StillCost(10 * MS))
    request = bench.caller.request([1], deadline_ns=bench.clock.now_ns + 12 * MS)
    bench.submit(request)
    bench.loop.run()
    bench.advance(13 * MS)
    bench.complete()
    statistics = bench.statistics
    assert bench.caller.answer(request) == [2]
    assert (statistics.settled_late, statistics.expired) == (1, 0)
    assert (statistics.predicted_ns, statistics.actual_ns, statistics.busy_ns) == (10 * MS, 13 * MS, 13 * MS)
    assert statistics.saturation(bench.clock.now_ns) > 0


# --- length buckets ------------------------------------------------------------------------------


def test_requests_of_one_bucket_run_together_and_get_their_own_lengths() -> None:
    """Unequal lengths share a pass; each answer has its own, and statistics and timing know the padding."""
    bench = Bench(buckets=Buckets((4,), {"x": 0}, {"y": (0,)}))
    requests = [bench.caller.request([n], columns=n) for n in (1, 3, 4)]
    for request in requests:
        request.signature = 4
    bench.submit(*requests)
    bench.loop.run()
    bench.complete()
    outcomes = [bench.caller.outcome(request) for request in requests]
    assert all(isinstance(outcome, InferResponse) for outcome in outcomes)
    answers = [outcome.outputs[0].numpy().tolist() for outcome in outcomes]  # type: ignore[union-attr]
    assert answers == [[[2]], [[6, 6, 6]], [[8, 8, 8, 8]]]
    assert (bench.statistics.input_elements, bench.statistics.padding_elements) == (12, 4)
    assert outcomes[0].timing.padding == pytest.approx(1 / 3)  # type: ignore[union-attr]


def test_a_pass_that_failed_in_a_bucket_is_rerun_alone() -> None:
    """Only the culprit fails, padded or not."""
    bench = Bench(buckets=Buckets((4,), {"x": 0}, {"y": (0,)}))
    good, bad = bench.caller.request([1], columns=3), bench.caller.request([POISON], columns=2)
    good.signature = bad.signature = 4
    bench.submit(good, bad)
    bench.loop.run()
    for _ in range(3):
        bench.complete()
    assert bench.caller.answer(good) == [2]
    assert isinstance(bench.caller.outcome(bad), EngineFailure)


def test_costs_are_asked_by_bucket() -> None:
    """A request of a long bucket is foreseen with what passes of that bucket take."""
    costs = CostsByLength({16: {1: MS, 4: MS}, 64: {1: 8 * MS, 4: 8 * MS}}, (16, 64))
    bench = Bench(cost=costs, max_batch_size=4)
    bench.submit(bench.caller.request([1], columns=16))
    bench.loop.run()
    soon_ns = bench.clock.now_ns + 5 * MS
    short, long = (bench.caller.request([1], columns=columns, deadline_ns=soon_ns) for columns in (16, 64))
    bench.submit(short, long)
    bench.loop.run()
    assert bench.caller.outcome(short) is None
    assert isinstance(bench.caller.outcome(long), Overloaded)
