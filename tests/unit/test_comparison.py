"""`forwardpass diff`: the counts of a Triton, which come a while behind its answers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from server.comparison import compare
from server.comparison.compare import Comparison
from server.comparison.side import Counts


class Told:
    """A side that tells these counts, one at each look; the last ones for ever."""

    def __init__(self, *counts: Counts) -> None:
        self._counts = list(counts)

    def counts(self, _model: str, _version: str) -> Counts:
        return self._counts.pop(0) if len(self._counts) > 1 else self._counts[0]


def added(ours: Told, theirs: Told) -> list[list[int]]:
    sides: Any = (ours, theirs)
    return Comparison(Path("m"), *sides)._added("1", [(0, 0, 0), (7, 7, 7)])


def test_counts_that_come_late_are_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """However many looks it takes until both agree."""
    monkeypatch.setattr(compare, "_LOOK_S", 0.0)
    theirs = Told((7, 7, 7), (9, 11, 8), (9, 11, 9))

    assert added(Told((2, 4, 2)), theirs) == [[2, 4, 2], [2, 4, 2]]


def test_counts_that_stay_apart_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where nobody waits any more."""
    monkeypatch.setattr(compare, "_PATIENCE_S", 0.0)

    assert added(Told((2, 4, 2)), Told((9, 11, 8))) == [[2, 4, 2], [2, 4, 1]]
