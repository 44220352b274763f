"""What the benchmarks of Tritons make of their measurements."""

from __future__ import annotations

from collections import Counter

import pytest

from loadtests.benchmarks.over_triton import (
    Cell,
    Overload,
    capacity_of,
    closed_table,
    cpu_ms_of,
    judge,
    open_table,
    together,
)
from loadtests.benchmarks.triton_shared_memory import report, wins_from
from loadtests.client import OpenLoop
from loadtests.generators import Measured

MS = 1_000_000


@pytest.mark.parametrize(
    ("found", "least"),
    [
        ([(1.0, 0.5, 1), (1.0, 0.5, 1), (1.0, 0.5, 1)], 64),
        ([(1.0, 2.0, 1), (1.0, 0.5, 1), (1.0, 0.5, 1)], 128),
        ([(1.0, 0.5, 1), (1.0, 2.0, 1), (1.0, 0.5, 1)], 256),
        ([(1.0, 0.95, 1), (1.0, 0.5, 1), (1.0, 0.5, 1)], 128),
        ([(1.0, 0.5, 1), (1.0, 0.5, 1), (1.0, 1.0, 1)], None),
    ],
    ids=["at every size", "from the second on", "one lucky size does not count", "a little is noise", "never"],
)
def test_shared_memory_wins_from_where_it_wins_at_all_larger_sizes(
    found: list[tuple[float, float, float]], least: int | None
) -> None:
    """And by a tenth or more; the report says it."""
    assert wins_from([64, 128, 256], found) == least
    text = report([64, 128, 256], found, 9)
    assert (f"wins from {least} KiB" in text) == (least is not None)


def test_goodput_counts_answers_in_time_against_all_that_was_sent() -> None:
    """Late answers and refusals are offered load as well."""
    result = OpenLoop(Counter(OK=3, RESOURCE_EXHAUSTED=1), [10 * MS, 100 * MS, 101 * MS], [MS], [0, 0, 0, 0])

    found = judge(result, 200.0)

    assert (found.goodput_per_s, found.share_in_time, found.p50_ms, found.p99_ms) == (100.0, 0.5, 100.0, 101.0)
    assert found.valid


def test_rounds_are_taken_together_by_medians() -> None:
    """One round with a late generator makes the whole invalid; statuses are added."""
    runs = [
        Overload(goodput, share, 1.0, 2.0, valid, Counter(OK=2), 4.0)
        for goodput, share, valid in ((1.0, 0.1, True), (9.0, 0.9, False), (3.0, 0.3, True))
    ]

    assert together(runs) == Overload(3.0, 0.3, 1.0, 2.0, False, Counter(OK=6), 4.0)
    assert "| x | 3 | 0.50 | 0.75 | 30% | 1.0 | 2.0 | no | OK 6 |" in open_table({"x": together(runs)}, 6.0)


def test_capacity_is_the_best_median_of_triton_alone() -> None:
    """Not its luckiest round, nor another server's."""

    def runs(*rates: float) -> list[Cell]:
        return [Cell(Measured(rate, 1.0, 2.0, 10, 1), 1000 / rate) for rate in rates]

    found = {("t", 8): runs(10, 90, 20), ("t", 32): runs(30, 31, 1), ("other", 8): runs(99, 99, 99)}

    assert capacity_of(found, "t") == 30
    assert round(cpu_ms_of(found, "t")) == 33
    assert "| t | 8 | 20 | 10-90 | 1.0 | 2.0 | 50.00 | 3 |" in closed_table(found)
