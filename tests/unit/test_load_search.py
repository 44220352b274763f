"""The highest rate that holds: searched on a queue whose answer is known; and what it is held to."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from server.load.limits import Limits
from server.load.samples import Samples, half_width
from server.load.search import Probe, Search, highest, side_by_side

LIMIT_MS = 20.0


def queue(capacity: float, lag_above: float = math.inf) -> tuple[list[float], Callable[[float], Probe]]:
    """The rates that were asked, and windows of a server with one queue: p99 of M/M/1, exactly."""
    asked: list[float] = []

    def probe(rate: float) -> Probe:
        asked.append(rate)
        p99 = math.log(100) / (capacity - rate) * 1e3 if rate < capacity else math.inf
        late = "late" if rate > lag_above else ""
        return Probe(rate, ("p99",) if p99 > LIMIT_MS or late else (), late, rate, {99.0: p99})

    return asked, probe


@settings(max_examples=25)
@given(st.floats(300, 1e5), st.floats(0.05, 3))
def test_the_rate_is_found_from_any_guess(capacity: float, off: float) -> None:
    """To 2 %, within what is told of it, before the windows are used up; mostly in twenty, at worst in fifty."""
    holds = capacity - math.log(100) / LIMIT_MS * 1e3
    asked, probe = queue(capacity)
    found = highest(Search(capacity * off), probe)
    assert found.bound == "slo"
    assert found.rate == pytest.approx(holds, rel=0.02)
    low, high = found.between
    assert low < holds < high
    assert high / low <= 1.05
    assert len(asked) <= 60
    assert found.best is not None
    assert 0.9 * holds < found.best.rate <= holds


def test_a_generator_that_is_late_is_named_and_not_the_server() -> None:
    """Its rate is a lower bound."""
    _, probe = queue(10_000, lag_above=4_000)
    found = highest(Search(2_000), probe)
    assert found.bound == "generator"
    assert found.rate == pytest.approx(4_000, rel=0.02)


@pytest.mark.parametrize("disturbed", [0.2, 0.5])
def test_windows_that_are_disturbed_hardly_lower_the_rate(disturbed: float) -> None:
    """So many of them break at any rate; of twenty searches few end a twentieth off."""
    rng = np.random.default_rng(0)
    off = 0
    for _ in range(20):
        _, whole = queue(10_000)

        def probe(rate: float, whole: Callable[[float], Probe] = whole) -> Probe:
            return Probe(rate, ("p99",)) if rng.random() < disturbed else whole(rate)

        found = highest(Search(8_000), probe)
        off += abs(found.rate / (10_000 - math.log(100) / LIMIT_MS * 1e3) - 1) > 0.05
    assert off <= 2


@pytest.mark.parametrize("slow", [slice(0, 6), slice(2, 9), slice(5, 11)])
def test_a_slow_moment_does_not_lower_the_rate(slow: slice) -> None:
    """Many windows in a row have half of what there is else."""
    (_, whole), (_, half), made = queue(10_000), queue(5_000), 0

    def probe(rate: float) -> Probe:
        nonlocal made
        made += 1
        return (half if slow.start < made <= slow.stop else whole)(rate)

    assert highest(Search(8_000), probe).rate == pytest.approx(highest(Search(8_000), whole).rate, rel=0.05)


def test_where_the_machine_wanders_it_is_the_rate_that_half_of_the_windows_hold() -> None:
    """And it is in the interval that is told nine times of ten, or nearly."""
    rng = np.random.default_rng(1)
    found = [
        highest(Search(800), lambda rate: Probe(rate, ("p99",) if rate > rng.normal(1_000, 70) else ()))
        for _ in range(40)
    ]
    assert np.mean([one.rate for one in found]) == pytest.approx(1_000, rel=0.02)
    assert sum(one.between[0] < 1_000 < one.between[1] for one in found) >= 34


def test_where_most_windows_are_disturbed_it_looks_far_above() -> None:
    """Six of ten break at any rate, and the machine wanders: the others hold as often just below as far below."""
    rng = np.random.default_rng(0)

    def probe(rate: float) -> Probe:
        return Probe(rate, ("p99",) if rng.random() < 0.6 or rate > rng.normal(1_000, 60) else ())

    found = [highest(Search(780), probe).rate for _ in range(30)]
    assert sum(abs(rate / 1_000 - 1) < 0.1 for rate in found) >= 20


def test_a_server_that_holds_nothing_has_no_rate() -> None:
    """And the search ends soon, far below where it began."""
    found = highest(Search(1_000), lambda rate: Probe(rate, ("p99",)))
    assert (found.rate, found.best, found.bound) == (0.0, None, "slo")
    assert len(found.probes) <= 15
    assert found.probes[-1].rate < 10


def test_where_nothing_breaks_nothing_kept_it_from_more() -> None:
    """It ends with its windows."""
    found = highest(Search(1_000, windows=9), lambda rate: Probe(rate, ()))
    assert (found.bound, len(found.probes)) == ("none", 9)
    assert found.best is not None
    assert found.best.rate > 10_000


def test_a_sharper_search_takes_more_windows_and_is_nearer() -> None:
    """Until its last window at most."""
    coarse_asked, coarse = queue(10_000)
    sharp_asked, sharp = queue(10_000)
    found = highest(Search(3_000, 0.3), coarse), highest(Search(3_000, 0.03), sharp)
    assert len(coarse_asked) < len(sharp_asked)
    wide, narrow = (one.between[1] / one.between[0] for one in found)
    assert narrow <= 1.03 < wide <= 1.3


def test_a_search_that_is_out_of_time_tells_what_it_has() -> None:
    """One window held, and nothing else is known."""
    asked, probe = queue(10_000)
    found = highest(Search(5_000, over=lambda: len(asked) >= 1), probe)
    assert found.best is not None
    assert found.best.rate == 5_000
    assert len(asked) == 1


class TestSideBySide:
    """Searches that see the same minutes."""

    def test_each_finds_what_it_finds_alone(self) -> None:
        """By windows of its own, from its own guess, on a machine that stays as it is."""
        guesses = (2_000.0, 8_000.0, 30_000.0)
        found = side_by_side([Search(guess) for guess in guesses], lambda _, rate: queue(10_000)[1](rate))
        alone = [highest(Search(guess), queue(10_000)[1]) for guess in guesses]
        assert [one.rate for one in found] == pytest.approx([one.rate for one in alone], rel=0.01)

    def test_another_one_is_the_first_in_each_round(self) -> None:
        """And they end together: who has made its windows goes on with the others."""
        asked: list[int] = []

        def probe(number: int, rate: float) -> Probe:
            asked.append(number)
            return Probe(rate, ())

        side_by_side([Search(10, windows=windows) for windows in (4, 1, 2)], probe)
        assert asked == [0, 1, 2, 1, 2, 0, 2, 0, 1, 0, 1, 2]

    def test_a_machine_that_becomes_slower_has_all_of_them_find_the_same(self) -> None:
        """One after the other they differ by what it lost."""
        made = 0

        def probe(_number: int, rate: float) -> Probe:
            nonlocal made
            made += 1
            return Probe(rate, ("p99",) if rate > 1_000 - 4 * made else ())

        together = [found.rate for found in side_by_side([Search(700) for _ in range(3)], probe)]
        made = 0
        alone = [highest(Search(700), lambda rate: probe(0, rate)).rate for _ in range(3)]
        assert max(together) / min(together) < 1.05
        assert max(alone) / min(alone) > 1.2

    def test_no_search_takes_no_window(self) -> None:
        """And finds nothing."""
        assert side_by_side([], lambda number, rate: Probe(rate, ())) == []


class TestLimits:
    """``p99=20ms``."""

    def test_units_and_rates_are_read(self) -> None:
        """Milliseconds; parts of one."""
        read = Limits.parse("p99=20ms, p50=500us,p99.9=1s,errors=0.1%,refused=0.02")
        assert read == Limits({99.0: 20.0, 50.0: 0.5, 99.9: 1000.0}, 0.001, 0.02)

    @pytest.mark.parametrize(
        ("text", "said"),
        [
            ("p99=20", "'p99=20' is none of"),
            ("q99=20ms", "none of"),
            ("p100=1ms", "none of"),
            ("errors=1%", "a latency must be among them"),
            ("p99=0ms", "above 0"),
            ("p99=1ms,errors=101%", "at most 1"),
            ("", "a latency"),
        ],
    )
    def test_what_is_no_limit_is_said(self, text: str, said: str) -> None:
        """In words."""
        with pytest.raises(ValueError, match=said):
            Limits.parse(text)

    def test_each_limit_that_is_broken_is_named(self) -> None:
        """Of ten answers in 1 to 10 ms one is wrong, one is refused."""
        outcome = np.array([0] * 8 + [1, 3], np.uint8)
        due = np.zeros(10, np.int64)
        samples = Samples(due, due, np.arange(1, 11, dtype=np.int64) * 1_000_000, outcome, np.zeros(10, np.int16))
        assert Limits({50.0: 4.0, 99.0: 8.0}, 0.1, 0.1).broken(samples) == []
        assert Limits({50.0: 3.9}, 0.09, 0.0).broken(samples) == [
            "p50 4 ms, over 3.9",
            "errors 0.1, over 0.09",
            "refused 0.1, over 0",
        ]

    @pytest.mark.parametrize(
        ("latency_ms", "seconds"),
        [({50.0: 15.0, 95.0: 40.0, 99.0: 100.0}, 1.0), ({50.0: 15.0, 95.0: 19.0}, 2 / 3), ({}, 0.0)],
    )
    def test_a_window_is_long_enough_for_an_overload_to_show(
        self, latency_ms: dict[float, float], seconds: float
    ) -> None:
        """By the limit that a queue which grows by 3 % reaches first."""
        assert Limits(latency_ms).window_s(0.03) == pytest.approx(seconds, rel=0.01)

    def test_nothing_measured_holds_nothing(self) -> None:
        """An empty window."""
        none = np.zeros(0, np.int64)
        empty = Samples(none, none, none, np.zeros(0, np.uint8), np.zeros(0, np.int16))
        assert len(Limits({99.0: 1.0}).broken(empty)) == 3


def test_an_interval_is_students() -> None:
    """Four values: three degrees of freedom."""
    assert half_width([4, 5, 6, 5]) == pytest.approx(3.18 * np.std([4, 5, 6, 5], ddof=1) / 2)
    assert math.isnan(half_width([4]))
