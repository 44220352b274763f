"""The highest rate that holds: searched on a queue whose answer is known; and what it is held to."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import cycle

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.load.limits import Limits
from server.load.samples import Samples, half_width
from server.load.search import Probe, Search, highest, side_by_side

LIMIT_MS = 20.0


def queue(capacity: float, lag_above: float = math.inf) -> tuple[list[float], object]:
    """The rates that were asked, and windows of a server with one queue: p99 of M/M/1, exactly."""
    asked: list[float] = []

    def probe(rate: float) -> Probe:
        asked.append(rate)
        p99 = math.log(100) / (capacity - rate) * 1e3 if rate < capacity else math.inf
        late = "late" if rate > lag_above else ""
        return Probe(rate, ("p99",) if p99 > LIMIT_MS or late else (), late, rate, {99.0: p99})

    return asked, probe


@given(st.floats(300, 1e5), st.floats(0.05, 3))
def test_the_rate_is_found_from_any_guess(capacity: float, off: float) -> None:
    """Within the precision, from below."""
    holds = capacity - math.log(100) / LIMIT_MS * 1e3
    _, probe = queue(capacity)
    found = highest(probe, capacity * off, 0.02)  # type: ignore[arg-type]
    assert found.bound == "slo"
    assert holds / 1.0201 <= found.rate <= holds
    assert found.best is not None
    assert found.best.rate == found.rate


def test_a_search_takes_few_windows() -> None:
    """From the usual guess, 0.8 of the closed loop's rate."""
    asked, probe = queue(10_000)
    highest(probe, 8_000, 0.03)  # type: ignore[arg-type]
    assert len(asked) <= 15


def test_a_generator_that_is_late_is_named_and_not_the_server() -> None:
    """Its rate is a lower bound."""
    asked, probe = queue(10_000, lag_above=4_000)
    found = highest(probe, 2_000, 0.05)  # type: ignore[arg-type]
    assert found.bound == "generator"
    assert 4_000 / 1.05 <= found.rate <= 4_000
    assert max(asked.count(rate) for rate in asked) == 4 + 3, "a window that tells nothing is repeated"


def test_one_disturbed_window_does_not_lower_the_rate() -> None:
    """Every other one is broken by somebody else."""
    _, steady = queue(10_000)
    turn = iter(range(1000))

    def disturbed(rate: float) -> Probe:
        return steady(rate) if next(turn) % 2 else Probe(rate, ("p99",))  # type: ignore[operator]

    assert highest(disturbed, 8_000, 0.02).rate == pytest.approx(highest(steady, 8_000, 0.02).rate, rel=0.03)  # type: ignore[arg-type]


def test_windows_that_are_disturbed_at_random_hardly_lower_the_rate() -> None:
    """Two of three have a part less of what there is else; of a hundred searches few end a twentieth below."""
    rng = np.random.default_rng(0)
    below = 0
    for _ in range(100):
        queues = [queue(10_000 * (1 - loss)) for loss in np.linspace(0, 0.5, 6)]

        def probe(rate: float, queues: list[tuple[list[float], object]] = queues) -> Probe:
            which = rng.integers(1, len(queues)) if rng.random() < 2 / 3 else 0
            return queues[which][1](rate)  # type: ignore[operator, no-any-return]

        below += highest(probe, 8_000, 0.03).rate < 0.95 * (10_000 - math.log(100) / LIMIT_MS * 1e3)
    assert below <= 20


@pytest.mark.parametrize("slow", [slice(0, 6), slice(2, 9), slice(5, 11)])
def test_a_slow_moment_does_not_lower_the_rate(slow: slice) -> None:
    """Many windows in a row have half of what there is else."""
    (_, whole), (_, half), made = queue(10_000), queue(5_000), 0

    def probe(rate: float) -> Probe:
        nonlocal made
        made += 1
        return (half if slow.start < made <= slow.stop else whole)(rate)  # type: ignore[operator]

    found = highest(probe, 8_000, 0.03)
    assert found.rate == pytest.approx(highest(whole, 8_000, 0.03).rate, rel=0.03)  # type: ignore[arg-type]


def test_a_server_that_holds_nothing_has_no_rate() -> None:
    """And the search ends soon."""
    found = highest(lambda rate: Probe(rate, ("p99",)), 1_000)
    assert (found.rate, found.best, found.bound) == (0.0, None, "slo")
    assert len(found.probes) <= 12


def test_no_rate_above_the_most_is_tried() -> None:
    """Nothing kept it from more."""
    asked, probe = queue(10_000)
    found = highest(probe, 1_000, most=3_000)  # type: ignore[arg-type]
    assert (found.rate, found.bound) == (3_000, "none")
    assert max(asked) == 3_000


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

    def test_nothing_measured_holds_nothing(self) -> None:
        """An empty window."""
        none = np.zeros(0, np.int64)
        empty = Samples(none, none, none, np.zeros(0, np.uint8), np.zeros(0, np.int16))
        assert len(Limits({99.0: 1.0}).broken(empty)) == 3


def test_an_interval_is_students() -> None:
    """Four values: three degrees of freedom."""
    assert half_width([4, 5, 6, 5]) == pytest.approx(3.18 * np.std([4, 5, 6, 5], ddof=1) / 2)
    assert math.isnan(half_width([4]))


def test_a_search_that_is_out_of_time_tells_what_it_has() -> None:
    """One window held."""
    asked, probe = queue(10_000)
    found = highest(probe, 5_000, over=lambda: len(asked) >= 1)  # type: ignore[arg-type]
    assert found.rate == 5_000
    assert len(asked) == 1


def scripted(script: str) -> Callable[[float], Probe]:
    """A machine that holds 1,000 requests a second in windows with a dot; in those with an l the generator is late."""
    turns = cycle(script)

    def probe(rate: float) -> Probe:
        turn = next(turns)
        return Probe(rate, () if turn == "." and rate <= 1_000 else ("p99",), "late" if turn == "l" else "")

    return probe


@pytest.mark.parametrize(
    ("script", "guess", "most", "rate", "asked"),
    [
        (".", 800, math.inf, 947, [800, *[1120] * 3, 947, *[1030] * 6]),
        (".", 3000, math.inf, 951, [*[3000] * 3, *[1800] * 3, 648, *[1080] * 3, 837, 951, *[1013] * 6]),
        ("..xxxxxx", 800, math.inf, 947, [800, *[1120] * 3, *[947] * 3, 870, 870, 947, *[1136] * 3, *[1037] * 6]),
        (".l", 800, math.inf, 947, [800, *[1120] * 6, 947, 947, *[1030] * 9]),
        ("xxl", 800, math.inf, 0, [*[800] * 4, *[480] * 4, *[173] * 5, *[22] * 4]),
        (".", 500, 900.0, 900, [500, 700, 900]),
    ],
)
def test_the_windows_of_a_search_are_these(
    script: str, guess: float, most: float, rate: float, asked: list[float]
) -> None:
    """Up by 1.4, down by more each time, then between; what is broken three times, or late four, is given up."""
    found = highest(scripted(script), guess, 0.1, most)
    assert (round(found.rate), [round(one.rate) for one in found.probes]) == (rate, asked)


class TestSideBySide:
    """Searches that see the same minutes."""

    def test_each_finds_what_it_finds_alone(self) -> None:
        """By windows of its own, from its own guess, on a machine that stays as it is."""
        guesses = (200.0, 800.0, 3_000.0)
        machines = [scripted(".") for _ in guesses]
        found = side_by_side([Search(guess, 0.1) for guess in guesses], lambda number, rate: machines[number](rate))
        assert found == [highest(scripted("."), guess, 0.1) for guess in guesses]

    def test_another_one_is_the_first_in_each_round(self) -> None:
        """And one that has found its rate, here the second, leaves the others their turns."""
        asked: list[int] = []

        def probe(number: int, rate: float) -> Probe:
            asked.append(number)
            return Probe(rate, ())

        side_by_side([Search(10, most=most) for most in (35.0, 14.0, 35.0)], probe)
        assert asked == [0, 1, 2, 1, 2, 0, 2, 0, 0, 2, 2, 0]

    def test_a_machine_that_becomes_slower_has_all_of_them_find_the_same(self) -> None:
        """One after the other they differ by what it lost."""
        made = 0

        def probe(_number: int, rate: float) -> Probe:
            nonlocal made
            made += 1
            return Probe(rate, ("p99",) if rate > 1_000 - 8 * made else ())

        together = [found.rate for found in side_by_side([Search(700) for _ in range(3)], probe)]
        made = 0
        alone = [highest(lambda rate: probe(0, rate), 700).rate for _ in range(3)]
        assert max(together) / min(together) < 1.05
        assert max(alone) / min(alone) > 1.3

    def test_who_is_through_waits_for_the_others_and_looks_again_with_them(self) -> None:
        """The machine is twice as fast from the forty-second window on: the first search is long through by then, and
        the second, which began far off, is not."""
        made = 0

        def probe(_number: int, rate: float) -> Probe:
            nonlocal made
            made += 1
            return Probe(rate, ("p99",) if rate > (1_000 if made < 42 else 2_000) else ())

        near, far = side_by_side([Search(900), Search(10)], probe)
        assert near.rate == pytest.approx(2_000, rel=0.03)
        assert far.rate == pytest.approx(2_000, rel=0.03)

    def test_what_holds_after_all_for_one_is_looked_for_by_all(self) -> None:
        """The first one's last look holds, the others' do not; while it goes on above, the machine is fast for all."""
        made = 0
        looks = 0

        def probe(number: int, rate: float) -> Probe:
            nonlocal made, looks
            made += 1
            at_the_end = made > 3 * 9
            looks += at_the_end
            return Probe(
                rate, ("p99",) if rate > (1_300 if at_the_end and (number == 0 or looks > 8) else 1_000) else ()
            )

        found = side_by_side([Search(800, 0.1) for _ in range(3)], probe)
        assert [one.rate for one in found] == pytest.approx([1_300] * 3, rel=0.1)

    def test_no_search_takes_no_window(self) -> None:
        """And finds nothing."""
        assert side_by_side([], lambda number, rate: Probe(rate, ())) == []
