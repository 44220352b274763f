"""Whose requests of the sequences in an instance's slots go now, and until when they wait for company."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from server.scheduler.plan import Wait
from server.scheduler.sequence_plan import Step, plan_lane
from server.scheduler.slots import Chain, Lane
from server.sequences import Direct, Oldest
from server.types import NO_DEADLINE
from tests.support.scheduler import Caller, ManualClock, StillCost

DELAY_US = 5


def lane_of(*heads: tuple[int, int], size: int = 4) -> Lane:
    """Sequences that are ready: when the request of each was admitted, and its deadline. All are of one kind."""
    lane, caller = Lane(size), Caller(ManualClock(0))
    for number, (enqueued_ns, deadline_ns) in enumerate(heads):
        chain = Chain(number)
        request = caller.request([1], deadline_ns=deadline_ns)
        request.enqueued_ns = enqueued_ns
        chain.waiting.append(request)
        lane.ready[chain] = None
    return lane


def planned(
    lane: Lane, strategy: Direct | Oldest, now_ns: int = 0, *, largest: int = 4, kinds: str = "aaaaaaaa", best: int = 9
) -> list[int] | int:
    """The sequences that go, or until when nobody does. A pass takes 300 ns."""
    step = plan_lane(lane, now_ns, strategy, largest, lambda chain: kinds[int(chain.id)], StillCost(300, best))
    if isinstance(step, Wait):
        return step.until_ns
    assert isinstance(step, Step)
    return [int(chain.id) for chain in step.chains]


def ready(number: int) -> Lane:
    return lane_of(*[(1000 * (1 + place), NO_DEADLINE) for place in range(number)])


@pytest.mark.parametrize("strategy", [Direct(), Oldest()])
def test_without_a_window_all_who_are_ready_go(strategy: Direct | Oldest) -> None:
    """Those that can be stacked with the one that has been ready longest."""
    assert planned(ready(3), strategy) == [0, 1, 2]
    assert planned(ready(4), strategy, kinds="abab") == [0, 2]


@pytest.mark.parametrize(("number", "goes"), [(1, False), (2, True), (3, True)])
def test_direct_goes_with_enough_slots_or_at_the_windows_end(number: int, goes: bool) -> None:
    """Half of four; the window is that of the first."""
    strategy = Direct(max_queue_delay_microseconds=DELAY_US, minimum_slot_utilization=0.5)
    lane = ready(number)
    assert planned(lane, strategy, 5999) == (list(range(number)) if goes else 6000)
    assert planned(lane, strategy, 6000) == list(range(number))


def test_direct_without_a_window_or_a_least_use_never_waits() -> None:
    """Each alone says nothing."""
    assert planned(ready(1), Direct(minimum_slot_utilization=1.0)) == [0]
    assert planned(ready(1), Direct(max_queue_delay_microseconds=DELAY_US)) == [0]


@pytest.mark.parametrize(
    ("number", "preferred", "goes"),
    [
        (1, (), 6000),
        (4, (), [0, 1, 2, 3]),
        (6, (), [0, 1, 2, 3]),
        (3, (2,), [0, 1]),
        (1, (2,), 6000),
        (3, (2, 3), [0, 1, 2]),
    ],
)
def test_oldest_goes_full_or_at_a_preferred_size_or_at_the_windows_end(
    number: int, preferred: Sequence[int], goes: list[int] | int
) -> None:
    """Then with everybody; the largest size that is there counts."""
    strategy = Oldest(max_queue_delay_microseconds=DELAY_US, preferred_batch_size=tuple(preferred))
    assert planned(ready(number), strategy, 5999) == goes
    assert planned(ready(number), strategy, 6000) == list(range(min(number, 4)))


def test_oldest_takes_what_is_worth_it_unless_sizes_are_preferred() -> None:
    """One at least, also of a model without a batch dimension."""
    assert planned(ready(4), Oldest(), best=3) == [0, 1, 2]
    assert planned(ready(4), Oldest(preferred_batch_size=(4,)), best=3) == [0, 1, 2, 3]
    assert planned(ready(4), Oldest(), largest=0) == [0]


@pytest.mark.parametrize(
    "strategy",
    [
        Direct(max_queue_delay_microseconds=DELAY_US, minimum_slot_utilization=1.0),
        Oldest(max_queue_delay_microseconds=DELAY_US),
    ],
)
def test_a_window_ends_where_it_would_miss_a_deadline(strategy: Direct | Oldest) -> None:
    """By the pass of those who are there; of the earliest one, whoever has been ready longest."""
    lane = lane_of((1000, NO_DEADLINE), (2000, 4000))
    assert planned(lane, strategy, 3699) == 3700
    assert planned(lane, strategy, 3700) == [0, 1]
    far = lane_of((1000, 9000), (500, NO_DEADLINE))
    assert planned(far, strategy) == 5500
