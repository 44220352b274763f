"""Foresight, its margin, and the load."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from server.scheduler.admission import Known, Margin, Outlook, foresee_ns
from server.scheduler.cost import CostModel
from server.scheduler.load import WINDOW_NS, Load
from server.scheduler.plan import Cost
from server.scheduler.queue import QueuePolicy, RequestQueue
from server.types import NO_DEADLINE
from tests.support.scheduler import Caller, ManualClock, StillCost, admit


def outlook(left_ns: int = 0, instances: int = 1, turn_ns: int = 0, slowdown: float = 1.0) -> Outlook:
    return Outlook(0, left_ns, instances, False, turn_ns, slowdown)


def costing(cost: Cost, cap: int) -> Callable[[object], Known]:
    """All signatures cost the same."""
    return lambda signature: Known(cost, cap, 0)


@pytest.mark.parametrize(
    ("waiting", "cap", "left_ns", "instances", "expected_ns"),
    [
        (0, 1, 0, 1, 100),
        (0, 1, 70, 1, 170),
        (3, 1, 70, 1, 470),
        (3, 4, 70, 1, 170),
        (4, 4, 0, 1, 200),
        (4, 1, 100, 2, 350),
        (3, 0, 0, 1, 400),
    ],
)
def test_the_wait_is_what_is_ahead_and_the_own_pass(
    waiting: int, cap: int, left_ns: int, instances: int, expected_ns: int
) -> None:
    """Passes of 100 ns, in batches of the cap, spread over the instances, behind what is under way."""
    caller, queue = Caller(ManualClock(0)), RequestQueue(QueuePolicy())
    for _ in range(waiting):
        admit(queue, caller.request([1]), 0)
    request = caller.request([1])
    assert foresee_ns(queue, request, costing(StillCost(100), cap), outlook(left_ns, instances)) == expected_ns


def test_other_signatures_take_passes_of_their_own() -> None:
    """Rows that can't share the request's batch are ahead of it."""
    caller, queue = Caller(ManualClock(0)), RequestQueue(QueuePolicy())
    admit(queue, caller.request([1], columns=2), 0)
    assert foresee_ns(queue, caller.request([1]), costing(StillCost(100), 8), outlook()) == 200


def test_later_deadlines_are_not_ahead() -> None:
    """Only who goes before counts."""
    caller, queue = Caller(ManualClock(0)), RequestQueue(QueuePolicy())
    for deadline_ns in (500, 900, NO_DEADLINE):
        admit(queue, caller.request([1], deadline_ns=deadline_ns), 0)
    assert foresee_ns(queue, caller.request([1], deadline_ns=600), costing(StillCost(100), 1), outlook()) == 200


def test_other_models_make_the_work_ahead_longer() -> None:
    """Passes ahead take so many times as long; the own pass waits for its turn and then has its core."""
    caller, queue = Caller(ManualClock(0)), RequestQueue(QueuePolicy())
    for _ in range(4):
        admit(queue, caller.request([1]), 0)
    request = caller.request([1])
    assert foresee_ns(queue, request, costing(StillCost(100), 2), outlook(0, 1, 30, 2.5)) == 200 * 2.5 + 30 + 100


def test_without_a_cost_nothing_is_foreseen() -> None:
    """None, never a number that looks short."""
    cost: Cost = CostModel()
    assert (
        foresee_ns(RequestQueue(QueuePolicy()), Caller(ManualClock(0)).request(), costing(cost, 1), outlook()) is None
    )


def test_the_margin_covers_nearly_all_errors_and_shrinks_again() -> None:
    """It comes to lie above the usual error, one huge error moves it by a step, and it never is negative."""
    margin = Margin()
    for _ in range(200):
        margin.learn(300, 1000)
    assert margin.ns == pytest.approx(300, abs=70)
    margin.learn(10**9, 1000)
    assert margin.ns < 450
    for _ in range(2_000):
        margin.learn(-500, 1000)
    assert margin.ns == 0


def test_work_is_of_the_time_gone_by_and_is_forgotten() -> None:
    """Half of the time asked for is 0.5; after the window nothing is left."""
    load = Load()
    for ms in range(0, 10_000, 10):
        load.arrive(5_000_000, ms * 1_000_000)
    now_ns = 10_000_000_000
    assert load.work(now_ns) == pytest.approx(0.5, rel=0.1)
    assert load.work(now_ns + 2 * WINDOW_NS) == 0
    assert Load().work(now_ns) == 0
