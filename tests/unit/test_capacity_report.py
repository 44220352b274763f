"""Capacities as a table and a plot, of odd searches."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import pytest
import yaml

from loadtests.capacity_report import Capacity, knees, table_of, values
from server.load.limits import Limits
from server.load.search import Found, Probe


def capacity(rate: float, probes: Sequence[Probe], limits: Limits) -> Capacity:
    return Capacity(
        "rest infer m", limits, Found(rate, "generator", tuple(probes)), (), 120.0, None, 0, (100.0, 125.0, 120.0)
    )


@pytest.mark.parametrize("limit", [{99.0: 20.0}, {50.0: 5.0}], ids=["p99 has a limit", "p99 has none"])
@pytest.mark.parametrize(
    "probes",
    [[Probe(100.0, (), "late", 100.0, {99.0: 3.0})], [Probe(100.0, ("p99",), "", 0.0, {99.0: math.nan})], []],
    ids=["each window was late", "nothing was answered", "no window"],
)
def test_a_search_without_a_point_for_the_plot_is_drawn(limit: dict[float, float], probes: list[Probe]) -> None:
    """All has been measured by then, and would be lost."""
    drawn = knees([capacity(100.0, probes, Limits(limit))])
    assert drawn.count("<g ") == 1
    assert ("limit" in drawn) == (99.0 in limit)


@pytest.mark.parametrize(
    ("rates", "said", "agreed"),
    [
        ([100.0, 109.0], "9.0% at most", True),
        ([100.0, 120.0], "20.0% at most", False),
        ([0.0, 120.0], "in whether anything holds at all", False),
        ([0.0, 0.0], "0.0% at most", True),
    ],
)
def test_repeats_are_told_apart(rates: list[float], said: str, agreed: bool) -> None:
    """Where a kind holds nothing at all too."""
    text, code = table_of([[capacity(rate, [], Limits({99.0: 20.0}))] for rate in rates], 0.1)
    assert said in text
    assert code is agreed


def test_how_far_the_machine_wandered_stands_beside_how_far_the_repeats_are_apart() -> None:
    """Its closed loop searches nothing; one run has that too."""
    run = [capacity(100.0, [], Limits({99.0: 20.0}))]
    text, agreed = table_of([run, [replace(run[0], found=Found(104.0, "slo", ()))]], 0.1)
    assert "| 100, 104 (4.0%) |" in text
    assert "| 100 to 125 (25.0%) |" in text
    assert "wandered by 25.0% at most" in text
    assert agreed
    alone, _ = table_of([run], 0.1)
    assert "| 100 |" in alone
    assert "wandered by 25.0% at most" in alone
    assert "differ" not in alone


def test_a_kind_that_holds_nothing_has_no_rate_in_the_values() -> None:
    """It is named in a comment."""
    written = values([capacity(0.0, [], Limits({99.0: 20.0}))], 1, 0.8)
    assert "rest infer m: 0 requests/s" in written
    assert yaml.safe_load(written) == {"capacity": {"kinds": {}}}
    assert "nothing held" in knees([capacity(0.0, [], Limits({99.0: 20.0}))])
