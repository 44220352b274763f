"""The soak, cut to seconds, against a real server: it finds nothing wrong, and it finds what is planted."""

from __future__ import annotations

from itertools import count
from pathlib import Path

import pytest

from loadtests.soak.chaos import ACTS
from loadtests.soak.run import Plan, judge, soak
from loadtests.soak.steady import WAYS

pytestmark = pytest.mark.e2e

PLAN = Plan(seconds=5, capacity_seconds=2, load=0.2, acts_per_s=25, growth=0.5, tiny=True)
"""Memory still settles in the first seconds."""
PACE = "part of the pace that was missed"
"""Says something of the machine, too."""


def test_a_soak_finds_nothing_wrong_with_the_server(tmp_path: Path) -> None:
    """Every way was asked, every act was done, all counts agree to the last request, and nothing is left open."""
    seen = soak(PLAN, tmp_path)
    broken = [rule for rule in judge(seen, PLAN) if not rule.kept and rule.name != PACE]
    assert not broken, (broken, seen.asked.faults, seen.chaos.faults, seen.complaints)
    assert set(seen.asked.right) == set(WAYS)
    assert set(seen.chaos.acts) == set(ACTS)
    assert len(seen.samples) > 5


def test_a_server_that_grows_fails_its_soak(tmp_path: Path) -> None:
    """Ten per cent a sample are planted where the watcher reads the memory; nothing else is found."""
    grown = count()
    plan = Plan(seconds=2, capacity_seconds=0.5, load=0.2, acts_per_s=25, tiny=True)
    seen = soak(plan, tmp_path, lambda _pid: 10**8 + 10**7 * next(grown))
    broken = {rule.name for rule in judge(seen, plan) if not rule.kept} - {PACE, "kinds of acts that were done"}
    assert broken == {
        "growth of memory over the run, by a fitted line",
        "growth of memory, last window over first",
    }, (seen.asked.faults, seen.chaos.faults)
