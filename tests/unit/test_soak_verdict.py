"""What a soak makes of a series of samples and of counts: the rules, without a server."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from random import Random

import pytest

from loadtests.soak.verdict import Counted, all_answered, all_settled, leaks, memory
from loadtests.soak.watch import Sample, total

REST = Sample(0, 10**8, 20, 13, 0, 0, 0, 0)
COUNT = 900


def series(held: Callable[[int], float]) -> list[Sample]:
    return [replace(REST, at_s=float(at), resident_bytes=int(held(at))) for at in range(COUNT)]


def kept(held: Callable[[int], float], most: float = 0.05) -> list[bool]:
    return [rule.kept for rule in memory(series(held), most)]


class TestMemory:
    def test_noise_around_a_level_is_no_growth(self) -> None:
        """Some per cent up and down, as an allocator does."""
        rng = Random(1)
        assert kept(lambda _at: 1e8 * (1 + rng.uniform(-0.03, 0.03))) == [True, True]

    def test_growth_of_the_first_fifth_is_the_warm_up(self) -> None:
        """Buffers and caches fill to what they are bounded by."""
        assert kept(lambda at: 1e8 + min(at, COUNT * 0.2) * 1e6) == [True, True]

    @pytest.mark.parametrize(("growth", "expected"), [(0.04, True), (0.10, False), (1.0, False)])
    def test_a_steady_leak_is_found_by_both_measures(self, growth: float, expected: bool) -> None:
        """So much of the memory over the whole run; a fifth of it is the warm-up's."""
        assert kept(lambda at: 1e8 * (1 + growth * at / COUNT)) == [expected, expected]

    def test_a_leap_at_the_end_is_found_by_the_windows(self) -> None:
        """A line through the whole run hardly sees it."""
        assert kept(lambda at: 1e8 * (1.1 if at > COUNT * 0.93 else 1)) == [True, False]

    def test_memory_that_is_given_back_is_no_leak(self) -> None:
        """Less at the end than at the begin."""
        assert kept(lambda at: 1e8 - at * 3e4) == [True, True]


@pytest.mark.parametrize("leaked", ["grpc_connections", "grpc_streams", "grpc_held_bytes", "pending_requests"])
def test_whatever_is_left_open_is_named(leaked: str) -> None:
    """One is too many."""
    broken = [rule.name for rule in leaks(REST, [REST], replace(REST, **{leaked: 1.0})) if not rule.kept]
    assert broken == [f"{leaked.replace('_', ' ')} afterwards"]


@pytest.mark.parametrize("leaked", ["open_files", "threads"])
def test_files_and_threads_are_as_many_as_before(leaked: str) -> None:
    """Fewer are as good."""
    more, fewer = (replace(REST, **{leaked: getattr(REST, leaked) + by}) for by in (1, -1))
    assert [rule.kept for rule in leaks(REST, [REST] * 9, more)].count(False) == 1
    assert all(rule.kept for rule in leaks(REST, [REST] * 9, fewer))


@pytest.mark.parametrize(
    "counted", [Counted(99, 0, 99), Counted(101, 0, 101), Counted(100, 1, 100), Counted(100, 0, 99)]
)
def test_counts_agree_to_the_last_request(counted: Counted) -> None:
    """One lost, one counted twice, one failure, one row short."""
    assert all(rule.kept for rule in all_answered("m", 100, Counted(100, 0, 100)))
    assert not all(rule.kept for rule in all_answered("m", 100, counted))


@pytest.mark.parametrize(
    ("settled", "arrived", "expected"),
    [
        (100, True, True),
        (99, True, False),
        (101, True, False),
        (100, False, True),
        (99, False, True),
        (101, False, False),
    ],
)
def test_a_request_that_arrived_is_counted_once(settled: int, arrived: bool, expected: bool) -> None:
    """Of those that may be lost on the way no more than were sent are counted."""
    assert all_settled("m", 100, Counted(settled - 10, 10, 0), arrived=arrived).kept is expected


def test_a_gauge_is_summed_over_its_models() -> None:
    """And is not taken for one whose name begins alike."""
    text = '# HELP pending x\npending{model="a"} 2.0\npending{model="b"} 3.0\npending_total 7.0\nfree 4.0\n'
    assert (total(text, "pending"), total(text, "free"), total(text, "none")) == (5.0, 4.0, 0.0)
