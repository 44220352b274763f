"""Sequences on a fake clock: their slots, their order, what a lost request means, their ends."""

from __future__ import annotations

import asyncio

import numpy as np
import pytest

from server.errors import (
    Cancelled,
    DeadlineExceeded,
    Draining,
    EngineFailure,
    ModelNotReady,
    QueueFull,
    SequenceLost,
    SequenceUnknown,
)
from server.explain import Explanation, WaitReason
from server.scheduler.batcher import STALL_NS
from server.scheduler.queue import QueuePolicy
from server.scheduler.sequence_batcher import SequenceBatcher
from server.scheduler.share import Share
from server.scheduler.slots import Ending
from server.scheduler.statistics import ModelStatistics
from server.sequences import Direct, Oldest, SequenceBatching
from server.tensor import Array, Tensor
from server.types import NO_DEADLINE, Batch, InferRequest, InferResponse, Outcome
from tests.support.scheduler import MS, POISON, StillCost
from tests.support.sequences import CONTROLS, TOTAL, SequenceBench

STRATEGIES = pytest.mark.parametrize("strategy", [Direct(), Oldest()], ids=["direct", "oldest"])


# --- the way of a sequence ----------------------------------------------------------------------------


@STRATEGIES
def test_each_request_meets_the_state_that_the_one_before_it_left(strategy: Direct | Oldest) -> None:
    """Requests that come together run one after the other."""
    bench = SequenceBench(strategy)

    requests = [bench.request(1, value, start=value == 1, end=value == 4) for value in (1, 2, 3, 4)]
    bench.submit(*requests)
    bench.finish()

    assert bench.answers(requests) == [1, 3, 6, 10]
    assert bench.passes == [[1], [2], [3], [4]]


@STRATEGIES
def test_sequences_share_passes_and_no_state(strategy: Direct | Oldest) -> None:
    """One request of each in a pass."""
    bench = SequenceBench(strategy)

    requests = [bench.request(name, value, start=value < 10) for value in (1, 10, 100) for name in (1, 2)]
    bench.submit(*requests)
    bench.finish()

    assert bench.answers(requests) == [1, 1, 11, 11, 111, 111]
    assert bench.passes == [[1, 1], [10, 10], [100, 100]]


def test_a_number_and_the_same_digits_are_two_sequences() -> None:
    """As in Triton; and a negative number is what its 64 bits say unsigned."""
    bench = SequenceBench(max_batch_size=4)

    first, second = bench.send(7, 1, start=True), bench.request("7", 1)
    bench.submit(second)
    bench.send(-1, 1, start=True)
    last = bench.send((1 << 64) - 1, 2)
    bench.finish()

    assert bench.answer(first) == 1
    assert isinstance(bench.outcome(second), SequenceUnknown)
    assert bench.answer(last) == 3


def test_who_joins_a_sequence_that_nobody_started_is_told_so() -> None:
    """With Triton's words."""
    bench = SequenceBench()

    outcome = bench.outcome(bench.send("seven"))

    assert isinstance(outcome, SequenceUnknown)
    assert outcome.public_message == (
        "inference request for sequence seven to model 'adder' must specify the START flag on the first request of "
        "the sequence"
    )


def test_after_its_end_a_sequence_is_unknown() -> None:
    """Also while its last requests still wait."""
    bench = SequenceBench()
    bench.send(1, start=True)
    last = bench.send(1, end=True)

    late = bench.send(1)
    bench.finish()

    assert isinstance(bench.outcome(late), SequenceUnknown)
    assert bench.answer(last) == 2


def test_a_start_where_a_sequence_runs_begins_it_anew_behind_what_it_has() -> None:
    """As in Triton: what came before the start is served first, and not on the new state."""
    bench = SequenceBench()
    requests = [bench.send(1, 1, start=True), bench.send(1, 2), bench.send(1, 5, start=True), bench.send(1, 6)]

    bench.finish()

    assert bench.answers(requests) == [1, 3, 5, 11]


# --- slots --------------------------------------------------------------------------------------------


def test_direct_keeps_each_sequence_in_its_row_with_nothing_in_the_others() -> None:
    """Rows behind the last one that has something are left out; those between are not ready."""
    bench = SequenceBench(max_batch_size=3)
    for name in (1, 2, 3):
        bench.send(name, name, start=True)
    bench.finish()
    del bench.passes[:]

    last = bench.send(3, 30)
    bench.complete()
    second = bench.send(2, 20)
    bench.complete()

    assert bench.passes == [[None, None, 30], [None, 20]]
    assert bench.answers([last, second]) == [33, 22]
    # The rows of nobody are no rows of the statistics.
    assert bench.statistics.inference_count == 5


def test_slots_are_given_across_the_instances_the_lowest_first() -> None:
    """As in Triton, so that no instance has a full batch where another is idle."""
    bench = SequenceBench(instances=2)

    for name in (1, 2, 3):
        bench.send(name, name, start=True)
        bench.finish()
    bench.submit(*(bench.request(name, name * 10) for name in (1, 2, 3)))
    bench.finish()

    assert [runner.instance.passes for runner in bench.runners] == [[[1], [None, 3], [10, 30]], [[2], [20]]]


@STRATEGIES
def test_who_finds_no_slot_waits_for_one_in_order(strategy: Direct | Oldest) -> None:
    """Nobody is lost: the backlog is served as sequences end."""
    bench = SequenceBench(strategy, max_batch_size=1)
    one = bench.send(1, 1, start=True)
    two = [bench.send(2, 2, start=True), bench.send(2, 3, end=True)]
    three = bench.send(3, 4, start=True)
    bench.finish()
    assert (bench.outcome(two[0]), bench.outcome(three)) == (None, None)
    sequences = bench.statistics.sequences
    assert sequences is not None
    assert (sequences.active, sequences.backlog, bench.statistics.pending) == (1, 2, 3)

    bench.send(1, 1, end=True)
    bench.finish()

    assert bench.answer(one) == 1
    assert bench.answers([*two, three]) == [2, 5, 4]
    assert (sequences.active, sequences.backlog, sequences.started) == (1, 0, 3)


def test_the_backlog_is_bounded() -> None:
    """Requests that wait count, with a slot or without; who is one too many is told the limit."""
    bench = SequenceBench(max_batch_size=1, max_queue_size=2)
    first = bench.send(1, start=True)
    bench.send(2, start=True)
    bench.send(2, 5)

    refused = bench.outcome(bench.send(3, start=True))
    bench.finish()

    assert isinstance(refused, QueueFull)
    assert refused.limit == 2
    assert bench.answer(first) == 1


def test_oldest_takes_who_has_been_ready_longest() -> None:
    """More candidates than rows: nobody is left behind."""
    bench = SequenceBench(Oldest(max_candidate_sequences=3), max_batch_size=2)
    bench.submit(*(bench.request(name, name * 10 + step, start=step == 0) for step in (0, 1) for name in (1, 2, 3)))

    bench.finish()

    assert bench.passes == [[10, 20], [30, 11], [21, 31]]


def test_oldest_waits_for_company_as_long_as_it_may() -> None:
    """max_queue_delay, ended early by a full batch."""
    bench = SequenceBench(Oldest(max_queue_delay_microseconds=5000), max_batch_size=2)
    first = bench.send(1, start=True)
    bench.advance(5 * MS - 1)
    assert bench.passes == []
    bench.advance(1)
    bench.finish()
    assert bench.answer(first) == 1

    bench.send(1, 2)
    bench.send(2, 3, start=True)
    bench.finish()

    assert bench.passes == [[1], [2, 3]]


def test_oldest_goes_at_a_preferred_size() -> None:
    """Without waiting for more."""
    bench = SequenceBench(Oldest(0, (2,), 5000), max_batch_size=4)

    bench.submit(*(bench.request(name, name, start=True) for name in (1, 2, 3)))
    bench.finish()

    assert bench.passes == [[1, 2]]
    bench.advance(5 * MS)
    bench.finish()
    assert bench.passes == [[1, 2], [3]]


def test_direct_waits_until_enough_slots_are_ready() -> None:
    """minimum_slot_utilization, but no longer than max_queue_delay."""
    bench = SequenceBench(Direct(5000, 0.5), max_batch_size=4)
    bench.send(1, 1, start=True)
    assert bench.runner.job is None
    bench.send(2, 2, start=True)
    bench.finish()
    assert bench.passes == [[1, 2]]

    bench.send(1, 3)
    bench.advance(5 * MS)
    bench.finish()

    assert bench.passes == [[1, 2], [3]]


def test_a_window_ends_for_a_deadline() -> None:
    """Waiting on would miss it."""
    bench = SequenceBench(Oldest(max_queue_delay_microseconds=9000), cost=StillCost(2 * MS))
    request = bench.send(1, start=True, deadline_ns=bench.clock.now_ns + 5 * MS)

    bench.advance(3 * MS)
    bench.finish()

    assert bench.answer(request) == 1


def test_rows_that_can_not_be_stacked_take_turns() -> None:
    """Of other shapes; the longest ready says which go."""
    bench = SequenceBench(max_batch_size=2)

    narrow, wide = bench.request(1, 1, start=True), bench.request(2, 2, start=True, columns=3)
    bench.submit(narrow, wide)
    bench.finish()

    assert bench.passes == [[1], [None, 2]]


def test_answers_leave_in_order_where_that_is_asked() -> None:
    """preserve_ordering: of requests that could run, not of those whose sequences had no slot yet."""
    bench = SequenceBench(Oldest(1, preserve_ordering=True), max_batch_size=1, instances=2)
    first, second = bench.send(1, start=True), bench.send(2, 2, start=True)
    homeless = bench.send(3, 3, start=True)

    bench.complete(1)
    assert bench.outcome(second) is None
    bench.complete(0)

    assert bench.answers([first, second]) == [1, 2]
    assert bench.outcome(homeless) is None


# --- requests that are lost ---------------------------------------------------------------------------


@STRATEGIES
def test_a_failed_pass_leaves_the_state_as_it_was(strategy: Direct | Oldest) -> None:
    """A caller that waits for its answers may send the request again."""
    bench = SequenceBench(strategy)
    bench.send(1, 1, start=True)
    bench.finish()

    failed = bench.send(1, POISON)
    bench.finish()
    again = bench.send(1, 2)
    bench.finish()

    assert isinstance(bench.outcome(failed), EngineFailure)
    assert bench.answer(again) == 3


def test_who_came_behind_a_failed_one_is_not_run_without_it() -> None:
    """Its caller believes the state to be another; the sequence is over."""
    bench = SequenceBench()
    first = bench.send(1, 1, start=True)
    failed, behind = bench.send(1, POISON), bench.send(1, 2)
    bench.finish()
    late = bench.send(1, 3)

    assert bench.answer(first) == 1
    assert isinstance(bench.outcome(failed), EngineFailure)
    lost = bench.outcome(behind)
    assert isinstance(lost, SequenceLost)
    assert "sequence 1 of model 'adder' is over: a request of it was not answered" in lost.public_message
    assert isinstance(bench.outcome(late), SequenceUnknown)


def test_a_failed_start_is_no_start() -> None:
    """Who goes on without one is told so."""
    bench = SequenceBench()
    bench.send(1, POISON, start=True)
    bench.finish()

    assert isinstance(bench.outcome(bench.send(1)), SequenceUnknown)


@STRATEGIES
def test_a_neighbours_failure_changes_nobodys_outcome(strategy: Direct | Oldest) -> None:
    """Each is run once more, alone, in its own row."""
    bench = SequenceBench(strategy)
    bench.submit(bench.request(1, 1, start=True), bench.request(2, 2, start=True))
    bench.finish()

    bad, good = bench.request(1, POISON), bench.request(2, 20)
    bench.submit(bad, good)
    bench.finish()

    assert isinstance(bench.outcome(bad), EngineFailure)
    assert bench.answer(good) == 22
    assert bench.passes[1:] == [
        [POISON, 20],
        [POISON],
        [None, 20] if isinstance(strategy, Direct) else [20],
    ]


def test_who_waits_too_long_is_not_run_nor_is_who_stands_behind() -> None:
    """The request before it in its sequence is served."""
    bench = SequenceBench()
    first = bench.send(1, 1, start=True)
    late = bench.send(1, 2, deadline_ns=bench.clock.now_ns + MS)
    behind = bench.send(1, 3)

    bench.advance(MS)
    bench.finish()

    assert bench.answer(first) == 1
    assert isinstance(bench.outcome(late), DeadlineExceeded)
    assert isinstance(bench.outcome(behind), SequenceLost)
    assert bench.passes == [[1]]
    assert bench.statistics.expired == 1


def test_a_timeout_of_its_own_is_a_deadline() -> None:
    """As everywhere: microseconds of waiting, also in the backlog."""
    bench = SequenceBench(max_batch_size=1)
    bench.send(1, start=True)
    waiting = bench.send(2, start=True, timeout=1000)

    bench.advance(MS)

    assert isinstance(bench.outcome(waiting), DeadlineExceeded)


def test_a_refused_request_of_a_caller_that_does_not_wait_ends_its_sequence() -> None:
    """What it sends next must not be served as if the refused one had been."""
    bench = SequenceBench(max_queue_size=1)
    first, second = bench.send(1, 1, start=True), bench.send(1, 2)
    refused, next_one = bench.send(1, 3), bench.send(1, 4)
    bench.finish()

    assert bench.answers([first, second]) == [1, 3]
    assert isinstance(bench.outcome(refused), QueueFull)
    assert isinstance(bench.outcome(next_one), SequenceUnknown)


def test_a_refused_start_ends_the_sequence_that_it_was_to_begin_anew() -> None:
    """What follows it is meant for the new sequence, and must not meet the state of the old one."""
    bench = SequenceBench()
    bench.send(1, 1, start=True)
    bench.finish()
    refused = bench.send(1, 2, start=True, deadline_ns=bench.clock.now_ns)

    behind = bench.send(1, 3)

    assert isinstance(bench.outcome(refused), DeadlineExceeded)
    assert isinstance(bench.outcome(behind), SequenceUnknown)
    sequences = bench.statistics.sequences
    assert sequences is not None
    assert sequences.active == 0


def test_a_refused_request_of_a_caller_that_waits_may_be_sent_again() -> None:
    """Also one whose tensors were wrong, which comes here settled."""
    bench = SequenceBench()
    bench.send(1, 1, start=True)
    bench.finish()
    wrong = bench.request(1, 2)
    wrong.settle(QueueFull("adder", 1))
    bench.submit(wrong)

    again = bench.send(1, 2)
    bench.finish()

    assert bench.answer(again) == 3


def test_a_cancelled_request_ends_its_sequence() -> None:
    """As in Triton. It waits or runs: its result is thrown away, its slot is another's when its pass is over."""
    bench = SequenceBench(max_batch_size=1)
    first = bench.send(1, 1, start=True)
    behind = bench.send(1, 2)
    other = bench.send(2, 5, start=True)

    bench.batcher.cancel(first)
    assert isinstance(bench.outcome(first), Cancelled)
    assert isinstance(bench.outcome(behind), SequenceLost)
    assert isinstance(bench.outcome(bench.send(1)), SequenceUnknown)
    bench.finish()

    assert bench.answer(other) == 5
    assert bench.passes == [[1], [5]]
    sequences = bench.statistics.sequences
    assert sequences is not None
    assert sequences.ended[Ending.CANCELLED] == 1


def test_a_cancelled_request_ends_its_sequence_also_where_it_was_the_only_one() -> None:
    """Whoever goes away from one request is not taken to come back for the next."""
    bench = SequenceBench()
    bench.send(1, 1, start=True)
    bench.finish()
    running = bench.send(1, 2)
    bench.batcher.cancel(running)
    bench.finish()

    assert isinstance(bench.outcome(bench.send(1, 3)), SequenceUnknown)
    sequences = bench.statistics.sequences
    assert sequences is not None
    assert sequences.active == 0


def test_who_expires_between_two_tries_is_not_run_again() -> None:
    """A neighbour broke the pass; by the time of its own the deadline is over."""
    bench = SequenceBench()
    bench.submit(bench.request(1, 1, start=True), bench.request(2, 2, start=True))
    bench.finish()
    bad = bench.request(1, POISON)
    late = bench.request(2, 20, deadline_ns=bench.clock.now_ns + MS)
    bench.submit(bad, late)
    bench.complete()

    bench.clock.now_ns += MS
    bench.finish()
    again = bench.send(2, 30)
    bench.finish()

    assert isinstance(bench.outcome(late), DeadlineExceeded)
    assert bench.passes[1:3] == [[POISON, 20], [POISON]]
    assert bench.answer(again) == 32


def test_a_request_cancelled_in_the_tick_of_its_arrival_ends_its_sequence_too() -> None:
    """Whoever comes behind it in that tick is not served without it."""
    bench = SequenceBench()
    bench.send(1, 1, start=True)
    bench.finish()
    cancelled, behind = bench.request(1, 2), bench.request(1, 3)
    bench.batcher.submit((cancelled, behind))
    bench.batcher.cancel(cancelled)
    bench.loop.run()

    assert isinstance(bench.outcome(behind), SequenceLost)
    assert bench.passes == [[1]]


# --- time ---------------------------------------------------------------------------------------------


def test_an_idle_sequence_loses_its_slot() -> None:
    """max_sequence_idle_microseconds after its last answer; who was in the backlog gets the slot."""
    bench = SequenceBench(max_batch_size=1, idle_us=5000)
    bench.send(1, 1, start=True)
    bench.finish()
    waiting = bench.send(2, 2, start=True)
    bench.advance(5 * MS - 1)
    assert bench.outcome(waiting) is None

    bench.advance(1)
    bench.finish()

    assert bench.answer(waiting) == 2
    assert isinstance(bench.outcome(bench.send(1)), SequenceUnknown)


def test_a_long_pass_is_no_idleness() -> None:
    """It has a request, however long that takes."""
    bench = SequenceBench(idle_us=5000)
    bench.send(1, 1, start=True)
    bench.advance(50 * MS)
    bench.finish()

    next_one = bench.send(1, 2)
    bench.finish()

    assert bench.answer(next_one) == 3


def test_a_models_objective_is_a_deadline() -> None:
    """slo_ms counts for requests of sequences as for all."""
    bench = SequenceBench(slo_ns=2 * MS)
    bench.send(1, 1, start=True)
    behind = bench.send(1, 2)

    bench.advance(2 * MS)

    assert isinstance(bench.outcome(behind), DeadlineExceeded)


# --- ends ---------------------------------------------------------------------------------------------


def test_a_drain_serves_sequences_to_their_ends_and_starts_none() -> None:
    """It is over when the last one is."""
    bench = SequenceBench()
    bench.send(1, 1, start=True)
    bench.finish()
    drain = bench.batcher.drain(bench.clock.now_ns + 100 * MS)
    drain.send(None)
    bench.loop.run()

    refused, going_on = bench.send(2, start=True), bench.send(1, 2)
    bench.finish()
    drain.send(None)  # Not over yet.
    last = bench.send(1, 3, end=True)
    bench.finish()

    assert isinstance(bench.outcome(refused), Draining)
    assert bench.answers([going_on, last]) == [3, 6]
    with pytest.raises(StopIteration):
        drain.send(None)


def test_a_sequence_that_began_in_the_turn_of_a_drain_is_served() -> None:
    """It came before the end, and would have been admitted in that very turn of the loop."""
    bench = SequenceBench()
    only = bench.request(1, 1, start=True, end=True)
    bench.batcher.submit([only])
    drain = bench.batcher.drain(bench.clock.now_ns + 100 * MS)
    drain.send(None)
    bench.loop.run()
    bench.finish()

    assert bench.answers([only]) == [1]
    with pytest.raises(StopIteration):
        drain.send(None)


def test_a_drain_ends_with_its_time() -> None:
    """Whoever is still held then is told so, what runs too."""
    bench = SequenceBench(max_batch_size=1)
    running, waiting = bench.send(1, 1, start=True), bench.send(2, 2, start=True)
    drain = bench.batcher.drain(bench.clock.now_ns + 10 * MS)
    drain.send(None)

    bench.advance(10 * MS)

    assert isinstance(bench.outcome(running), Draining)
    assert isinstance(bench.outcome(waiting), Draining)
    with pytest.raises(StopIteration):
        drain.send(None)
    bench.finish()


def test_an_idle_sequence_does_not_hold_up_a_drain_for_ever() -> None:
    """It loses its slot as ever."""
    bench = SequenceBench(idle_us=5000)
    bench.send(1, 1, start=True)
    bench.finish()
    drain = bench.batcher.drain(bench.clock.now_ns + 1000 * MS)
    drain.send(None)

    bench.advance(5 * MS)

    with pytest.raises(StopIteration):
        drain.send(None)


def test_a_sequence_that_went_elsewhere_finishes_what_it_has() -> None:
    """supersede: nobody joins any more, what came is served."""
    bench = SequenceBench()
    requests = [bench.send(1, 1, start=True), bench.send(1, 2)]

    bench.batcher.supersede(1)
    assert not bench.batcher.knows(1)
    bench.finish()

    assert bench.answers(requests) == [1, 3]


def test_when_an_instance_dies_its_sequences_are_over_and_the_others_go_on() -> None:
    """The request that ran fails; those behind it are lost; new sequences go to who lives."""
    bench = SequenceBench(max_batch_size=1, instances=2)
    other = bench.send(1, 1, start=True)
    bench.finish()
    struck, behind = bench.send(2, 2, start=True), bench.send(2, 3)
    bench.runners[1].die()
    bench.loop.run()

    assert isinstance(bench.outcome(struck), EngineFailure)
    assert isinstance(bench.outcome(behind), SequenceLost)
    last = bench.send(1, 2, end=True)
    bench.finish()
    new = bench.send(2, 7, start=True)
    bench.finish()
    assert bench.answers([other, last, new]) == [1, 3, 7]
    assert not bench.batcher.healthy()


def test_when_all_have_died_nobody_waits() -> None:
    """Whoever is in the backlog, and whoever comes, is told."""
    bench = SequenceBench(max_batch_size=1)
    bench.send(1, start=True)
    waiting = bench.send(2, start=True)

    bench.runner.die()
    bench.loop.run()

    assert isinstance(bench.outcome(waiting), ModelNotReady)
    assert isinstance(bench.outcome(bench.send(3, start=True)), ModelNotReady)


def test_a_bug_of_ours_lets_nobody_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever was in the pass, and whoever waits, is settled, and the batcher goes on."""
    bench = SequenceBench()
    running, waiting = bench.send(1, 1, start=True), bench.send(1, 2)

    def broken(*_: object) -> None:
        raise RuntimeError("a bug")

    with monkeypatch.context() as patch:
        patch.setattr(bench.batcher._instances, "learn", broken)
        bench.finish()
    new = bench.send(3, 3, start=True)
    bench.finish()

    assert isinstance(bench.outcome(running), EngineFailure)
    assert isinstance(bench.outcome(waiting), SequenceLost)
    assert bench.answer(new) == 3
    assert (list(bench.batcher._slots), bench.batcher._slots.active) == ([], 1), "that of the new one"


def test_a_caller_that_fails_to_take_its_answer_is_alone_with_it() -> None:
    """The sequence goes on."""
    bench = SequenceBench()

    def broken(*_: object) -> None:
        raise RuntimeError("gone")

    bench.submit(bench.request(1, 1, start=True, on_settle=broken))
    bench.finish()
    next_one = bench.send(1, 2)
    bench.finish()

    assert bench.answer(next_one) == 3


# --- what is told -------------------------------------------------------------------------------------


def test_an_explained_request_is_told_that_it_waited_for_its_sequence() -> None:
    """For a slot, or for the request before it."""
    bench = SequenceBench(max_batch_size=1)
    bench.send(1, 1, start=True)
    homeless = bench.request(2, 2, start=True)
    homeless.explanation = Explanation(homeless.received_ns, bench.clock)
    bench.submit(homeless)

    bench.advance(MS)
    bench.complete()
    bench.send(1, end=True)
    bench.finish()

    assert homeless.explanation.waited is WaitReason.SEQUENCE
    outcome = bench.outcome(homeless)
    assert isinstance(outcome, InferResponse)
    assert outcome.timing is not None
    assert outcome.timing.queue_ns == MS


def test_every_request_is_counted_once() -> None:
    """success and fail add up; waiting ones are pending."""
    bench = SequenceBench()
    bench.submit(bench.request(1, 1, start=True), bench.request(1, POISON), bench.request(1, 2), bench.request(9))
    assert bench.statistics.pending == 2

    bench.finish()

    assert (bench.statistics.success.count, bench.statistics.fail.count) == (1, 3)
    assert bench.statistics.admitted == 3
    assert bench.statistics.pending == 0


# --- what it tells ------------------------------------------------------------------------------------


def test_who_is_refused_is_not_admitted() -> None:
    """For its deadline, for no sequence, for the limit; the last one is work that arrived, for there was room once."""
    bench = SequenceBench(max_queue_size=1)
    running = bench.send(1, start=True)
    arrived = bench.statistics.load.work(bench.clock())
    assert arrived > 0
    late = bench.send(2, start=True, deadline_ns=bench.clock())
    unknown = bench.send(3)
    outcome = bench.outcome(late)
    assert isinstance(outcome, DeadlineExceeded)
    assert outcome.waited_us == 0
    assert isinstance(bench.outcome(unknown), SequenceUnknown)
    assert (bench.statistics.admitted, bench.statistics.load.work(bench.clock())) == (1, arrived)
    bench.send(4, start=True)
    full = bench.outcome(bench.send(5, start=True))
    assert isinstance(full, QueueFull)
    assert full.limit == 1
    assert bench.statistics.admitted == 2
    assert bench.statistics.load.work(bench.clock()) == pytest.approx(3 * arrived)
    assert bench.outcome(running) is None


def test_where_all_have_died_nobody_is_admitted() -> None:
    """Nor is it well."""
    bench = SequenceBench(max_batch_size=1)
    bench.send(1, start=True)
    bench.runner.die()
    bench.loop.run()
    admitted = bench.statistics.admitted
    assert isinstance(bench.outcome(bench.send(3, start=True)), ModelNotReady)
    assert bench.statistics.admitted == admitted
    assert not bench.batcher.healthy()


def test_its_ability_is_that_of_its_passes() -> None:
    """Rows and time of one, in the mean; before the first nothing is known."""
    bench = SequenceBench(slo_ns=500 * MS, instances=2)
    assert bench.batcher.ability()[:4] == (2, 1, 0, 500 * MS)
    for number in (1, 2, 3, 4):
        bench.batcher.submit([bench.request(number, start=True)])
    bench.loop.run()
    bench.clock.now_ns += 6 * MS
    for runner in bench.runners:
        if runner.job:
            runner.complete()
    bench.loop.run()
    counts = bench.statistics
    assert (counts.inference_count, counts.execution_count, counts.busy_ns) == (4, 2, 12 * MS)
    assert bench.batcher.ability()[:3] == (2, 2, 6 * MS)


def test_pending_has_those_who_were_not_looked_at_yet() -> None:
    """And those that wait for a slot or a pass."""
    bench = SequenceBench(max_batch_size=1)
    bench.submit(bench.request(1, start=True), bench.request(1), bench.request(2, start=True))
    bench.batcher.submit([bench.request(3, start=True)])
    assert (bench.batcher.pending, bench.statistics.pending) == (3, 2)
    bench.loop.run()
    assert (bench.batcher.pending, bench.statistics.pending) == (3, 3)


def test_a_sequence_that_has_just_come_is_known() -> None:
    """Though it was not looked at yet."""
    bench = SequenceBench()
    bench.batcher.submit([bench.request(1, start=True)])
    assert bench.batcher.knows(1)
    assert not bench.batcher.knows(2)


def test_it_is_ill_where_somebody_could_run_and_does_not() -> None:
    """For longer than its window and some seconds, while every instance is idle."""
    window_us = 3_000_000
    bench = SequenceBench(Oldest(max_queue_delay_microseconds=window_us))
    assert bench.batcher.healthy()
    bench.send(1, start=True)
    bench.clock.now_ns += window_us * 1000 + STALL_NS - 1
    assert bench.batcher.healthy()
    bench.clock.now_ns += 1
    assert not bench.batcher.healthy()
    bench.loop.run()
    assert bench.batcher.healthy(), "it runs"


@pytest.mark.parametrize("max_batch_size", [0, 2])
async def test_a_model_runs_on_threads_of_its_own_with_rows_or_without(max_batch_size: int) -> None:
    """As the config says; its outputs are told as they are."""

    class Adds:
        name, threads, device = "adds", 1, "cpu"

        def run(self, batch: Batch) -> dict[str, Array]:
            x, total = batch.inputs["x"], batch.inputs["total_in"]
            assert x.shape == ((1, 3) if max_batch_size else (3,))
            added = total + x.sum().reshape(total.shape)
            return {"y": np.repeat(added, 3, axis=-1), "total_out": added}

    loop = asyncio.get_running_loop()
    statistics = ModelStatistics("adds", "1")
    batcher = SequenceBatcher(
        "adds",
        "1",
        [Adds()],  # type: ignore[list-item]
        SequenceBatching(Direct(), 10**9, CONTROLS, (TOTAL,)),
        max_batch_size,
        QueuePolicy(),
        StillCost(),
        statistics,
        loop,
        outputs=["y"],
    )
    sums = []
    for number, flags in enumerate(({"sequence_start": True}, {}, {"sequence_end": True})):
        outcome: asyncio.Future[Outcome] = loop.create_future()
        shape = (1, 3) if max_batch_size else (3,)
        request = InferRequest(
            "adds",
            [Tensor("x", "INT64", shape, np.full(3, number + 1, np.int64).tobytes())],
            on_settle=lambda _, it, to=outcome: to.set_result(it),
            received_ns=0,
            parameters={"sequence_id": 1, **flags},
        )
        batcher.submit([request])
        told = await outcome
        assert isinstance(told, InferResponse), repr(told)
        assert told.outputs[0].shape == shape
        sums.append(int(told.outputs[0].numpy().reshape(-1)[0]))
    assert sums == [3, 9, 18]
    await batcher.close()


def test_who_leaves_while_others_have_the_cores_gives_up_its_turn() -> None:
    """Nobody else waits behind it for nothing; the time that it waited is counted."""
    share = Share(1)
    other = share.join("other", 1, lambda: None)
    bench = SequenceBench(share=share, cost=StillCost(10 * MS))
    lease = other.take(1, 10 * MS, NO_DEADLINE, bench.clock())
    assert lease is not None
    request = bench.send(1, start=True)
    turn = bench.batcher._instances.turn
    assert turn.waiting
    assert bench.runner.job is None
    bench.clock.now_ns += 4 * MS
    bench.batcher.cancel(request)
    bench.loop.run()
    assert (turn.waiting, bench.statistics.turn_wait_ns) == (False, 4 * MS)
    again = bench.send(2, 5, start=True)
    other.give(lease, bench.clock())
    bench.batcher._tick_soon()
    bench.loop.run()
    bench.finish()
    assert bench.answer(again) == 5
