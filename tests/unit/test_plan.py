"""The planner, asked directly: a queue, a time, limits."""

from __future__ import annotations

import pytest

from server.scheduler.cost import CostModel
from server.scheduler.plan import Dispatch, Idle, Limits, Wait, in_halves, plan
from server.scheduler.queue import Priorities, QueuePolicy, RequestQueue
from server.types import InferRequest
from tests.support.scheduler import MS, Caller, ManualClock, StillCost, admit


class Waiting:
    """A queue filled by a line of rows: each request has the next value."""

    def __init__(self, policy: QueuePolicy | None = None) -> None:
        self.clock = ManualClock(0)
        self.caller = Caller(self.clock)
        self.queue = RequestQueue(policy or QueuePolicy())
        self.requests: list[InferRequest] = []

    def arrive(self, *rows: int, at_ns: int = 0, columns: int = 1) -> Waiting:
        for number in rows:
            request = self.caller.request([1] * number, columns=columns)
            assert admit(self.queue, request, at_ns)
            self.requests.append(request)
        return self

    def plan(self, now_ns: int, limits: Limits) -> list[int] | int | None:
        """The places of the requests dispatched, or the time waited for, or None."""
        step = plan(self.queue, now_ns, limits)
        if isinstance(step, Dispatch):
            return [self.requests.index(request) for request in step.requests]
        return step.until_ns if isinstance(step, Wait) else None


def test_nothing_waits() -> None:
    """An empty queue is Idle, whatever the time."""
    assert isinstance(plan(RequestQueue(QueuePolicy()), 5, Limits(4, (2,), 7)), Idle)


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        ((1,), [0]),
        ((1, 1, 1, 1, 1), [0, 1, 2, 3]),
        ((3, 1, 1), [0, 1]),
        ((3, 2, 1), [0]),
        ((4, 1), [0]),
        ((1, 4, 1), [0]),
    ],
)
def test_rows_are_counted_and_nobody_is_overtaken(rows: tuple[int, ...], expected: list[int]) -> None:
    """A batch never exceeds max_batch_size rows, and ends at the first request that does not fit."""
    assert Waiting().arrive(*rows).plan(0, Limits(4)) == expected


def test_a_model_without_batching_runs_one_request_a_pass() -> None:
    """max_batch_size 0 means one request, at once, whatever else the config says."""
    waiting = Waiting().arrive(1, 1)
    assert waiting.plan(0, Limits(0)) == [0]
    assert waiting.plan(0, Limits(0, (), 5 * MS)) == [0]


def test_without_a_delay_nothing_waits() -> None:
    """Work-conserving: a delay of 0 never answers Wait, preferred sizes or not."""
    assert Waiting().arrive(1).plan(0, Limits(8)) == [0]
    assert Waiting().arrive(1).plan(0, Limits(8, (4,))) == [0]


def test_a_window_is_waited_for_and_ends_on_time() -> None:
    """A batch that may grow waits until the oldest request's delay is over, to the nanosecond."""
    waiting = Waiting().arrive(1, at_ns=100).arrive(1, at_ns=180)
    limits = Limits(4, (), 100)
    assert waiting.plan(150, limits) == 200
    assert waiting.plan(199, limits) == 200
    assert waiting.plan(200, limits) == [0, 1]


@pytest.mark.parametrize("rows", [(1, 1, 1, 1), (2, 2), (4,), (3, 2)])
def test_a_full_batch_closes_at_once(rows: tuple[int, ...]) -> None:
    """A batch that can't grow, because it is full or the next request does not fit, waits for nothing."""
    assert isinstance(Waiting().arrive(*rows).plan(0, Limits(4, (), 5 * MS)), list)


def test_a_preferred_size_closes_at_once() -> None:
    """A preferred size, met exactly, is dispatched within the window."""
    assert Waiting().arrive(1, 1).plan(0, Limits(8, (2,), 5 * MS)) == [0, 1]


def test_the_largest_preferred_size_that_can_be_formed_is_taken() -> None:
    """Among the preferred sizes that a first part of the queue has exactly, the largest wins."""
    limits = Limits(16, (2, 4, 8), 5 * MS)
    assert Waiting().arrive(1, 1, 1, 1, 1).plan(0, limits) == [0, 1, 2, 3]
    assert Waiting().arrive(2, 2, 3).plan(0, limits) == [0, 1]


def test_without_a_delay_the_largest_preferred_size_still_wins() -> None:
    """With delay 0 a preferred first part goes first; what is left goes to the next idle instance."""
    assert Waiting().arrive(1, 1, 1).plan(0, Limits(8, (2,))) == [0, 1]


def test_after_the_delay_goes_whatever_is_there() -> None:
    """When the window is over, preferred sizes no longer hold anybody back."""
    assert Waiting().arrive(1, 1, 1).plan(100, Limits(8, (2,), 100)) == [0, 1, 2]


def test_a_batch_that_passed_every_preferred_size_does_not_wait() -> None:
    """Sizes of first parts never change, so a batch beyond the largest preferred size gains nothing by waiting."""
    waiting = Waiting().arrive(3)
    limits = Limits(8, (2, 4), 5 * MS)
    assert waiting.plan(0, limits) == 5 * MS
    assert waiting.arrive(3).plan(0, limits) == [0, 1]


def test_signatures_never_share_a_batch() -> None:
    """The oldest request's signature is gathered, over the heads of the others."""
    waiting = Waiting().arrive(1, columns=1).arrive(1, columns=2).arrive(1, columns=1)
    assert waiting.plan(0, Limits(4)) == [0, 2]


def test_no_signature_starves() -> None:
    """However full another signature's batch is, the oldest request goes first once its window is over."""
    waiting = Waiting().arrive(1, columns=2, at_ns=0).arrive(1, 1, 1, 1, columns=1, at_ns=1)
    limits = Limits(4, (), 100)
    assert waiting.plan(50, limits) == [1, 2, 3, 4], "meanwhile a full batch may use the instance"
    assert waiting.plan(100, limits) == [0]


def test_the_wait_is_for_the_first_window_to_end() -> None:
    """With several signatures waiting, the earliest end of a window counts."""
    waiting = Waiting().arrive(1, columns=1, at_ns=10).arrive(1, columns=2, at_ns=20)
    assert waiting.plan(30, Limits(4, (), 100)) == 110


def test_the_planner_only_looks() -> None:
    """Asked twice the planner answers the same: it takes nothing out of the queue."""
    waiting = Waiting().arrive(1, 1)
    assert waiting.plan(0, Limits(4)) == waiting.plan(0, Limits(4)) == [0, 1]
    assert len(waiting.queue) == 2


def test_delayed_requests_fill_up_behind_the_others() -> None:
    """Who timed out under DELAY joins its signature's batch behind everybody else, and is executed."""
    waiting = Waiting(QueuePolicy(default_timeout_ns=10, timeout_action="DELAY"))
    waiting.arrive(1, at_ns=0).arrive(1, at_ns=5)
    assert waiting.queue.expire(12) == []
    assert waiting.plan(12, Limits(4)) == [1, 0]
    assert waiting.plan(12, Limits(1)) == [1]


def test_a_delayed_request_waits_for_no_window() -> None:
    """A request that timed out has waited enough: an idle instance takes it, even if its window is longer."""
    waiting = Waiting(QueuePolicy(default_timeout_ns=10, timeout_action="DELAY")).arrive(1)
    waiting.queue.expire(10)
    assert waiting.plan(10, Limits(4, (), 5 * MS)) == [0]


def deadlines(*deadlines_ns: int, levels: tuple[int, ...] = ()) -> Waiting:
    """One request of a row for each deadline; `levels` are their priorities."""
    waiting = Waiting()
    waiting.queue = RequestQueue(QueuePolicy(), Priorities(3, 3) if levels else None)
    for index, deadline_ns in enumerate(deadlines_ns):
        parameters = {"priority": levels[index]} if levels else None
        request = waiting.caller.request([1], deadline_ns=deadline_ns, parameters=parameters)
        assert admit(waiting.queue, request, 0)
        waiting.requests.append(request)
    return waiting


def chosen(waiting: Waiting, now_ns: int, limits: Limits, cost: CostModel) -> list[int]:
    step = plan(waiting.queue, now_ns, limits, cost)
    assert isinstance(step, Dispatch)
    return [waiting.requests.index(request) for request in step.requests]


def test_the_earliest_deadline_goes_first_and_of_equal_ones_the_first_that_came() -> None:
    """The order within a level is by deadline, then by arrival."""
    assert deadlines(50, 20, 50, 20, 90).plan(0, Limits(9)) == [1, 3, 0, 2, 4]


def test_a_more_urgent_level_goes_before_any_deadline() -> None:
    """Level 1 first; a batch that is not full takes from the next level."""
    assert deadlines(10, 90, 80, 20, levels=(3, 1, 2, 1)).plan(0, Limits(3)) == [3, 1, 2]


def test_no_batch_is_larger_than_is_worth_it() -> None:
    """best_rows caps a batch, unless preferred sizes are set: those were chosen by somebody."""
    waiting = deadlines(*[10**9] * 6)
    assert chosen(waiting, 0, Limits(8), StillCost(1, best=2)) == [0, 1]
    assert chosen(waiting, 0, Limits(8, (4,)), StillCost(1, best=2)) == [0, 1, 2, 3]


def test_no_batch_is_larger_than_its_earliest_deadline_allows() -> None:
    """By the high quantile of its cost a batch ends in time for the earliest deadline in it."""
    cost = CostModel({1: 100, 8: 800})
    assert len(chosen(deadlines(*[10**9] * 8), 0, Limits(8, (8,)), cost)) == 8
    assert len(chosen(deadlines(485, *[10**9] * 7), 0, Limits(8, (8,)), cost)) == 4


def test_who_is_late_anyway_makes_nobody_else_late() -> None:
    """Who can't be in time is left out while there is anybody else, of its signature or another, and only then runs."""
    waiting = deadlines(90, 250, 95)
    assert chosen(waiting, 0, Limits(1), StillCost(100)) == [1]
    waiting.queue.remove(waiting.requests[1])
    assert chosen(waiting, 0, Limits(4), StillCost(100)) == [0, 2]
    waiting.arrive(1, columns=2)
    assert chosen(waiting, 0, Limits(4), StillCost(100)) == [3]


def test_a_window_ends_in_time_for_the_earliest_deadline() -> None:
    """Waiting for company stops when waiting on would miss a deadline."""
    waiting = deadlines(500)
    assert plan(waiting.queue, 0, Limits(4, (), 900), StillCost(100)) == Wait(400)
    assert chosen(waiting, 400, Limits(4, (), 900), StillCost(100)) == [0]


@pytest.mark.parametrize(
    ("rows", "idle_us", "halves"),
    [(32, 121, True), (32, 120, False), (32, 0, False), (8, 61, True), (8, 60, False), (7, 10_000, False)],
)
def test_rows_of_one_client_go_in_halves_where_the_loop_has_waited_longer_than_that_costs(
    rows: int, idle_us: int, halves: bool
) -> None:
    """Twice as long: 32 rows take 100 us and 16 take 80, so that two passes cost 60 more."""
    cost = CostModel({4: 30_000, 8: 30_000, 16: 80_000, 32: 100_000})
    assert in_halves(rows, idle_us * 1000, cost) is halves


def test_of_an_unknown_cost_nothing_is_halved() -> None:
    """Nobody knows what a second pass takes."""
    assert not in_halves(32, MS, CostModel({}))
