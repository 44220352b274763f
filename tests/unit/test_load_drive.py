"""The generator: when requests are due, and what they are."""

from __future__ import annotations

import os
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest

from server.load.drive import Leg, closed_loop, open_loop, poisson
from server.load.payloads import RIGHT, Judged, Payload


class Ready:
    """A wire to a server that has answered everything already."""

    def __init__(self) -> None:
        self.sent: Counter[float] = Counter()
        self._numbers: list[int] = []
        self._reads, writes = os.pipe()
        os.write(writes, b"always readable")
        os.close(writes)

    def fileno(self) -> int:
        return self._reads

    def send(self, number: int, payload: Payload) -> None:
        self.sent[payload.weight] += 1
        self._numbers.append(number)

    def ready(self) -> list[tuple[int, Judged]]:
        ended, self._numbers = [(number, RIGHT) for number in self._numbers], []
        return ended

    def close(self) -> None:
        os.close(self._reads)


@pytest.mark.parametrize("loop", ["open", "closed"])
def test_payloads_are_sent_as_often_as_they_weigh(loop: str) -> None:
    """By callers who wait too: one input alone would not be what is asked, nor all answers that are checked."""
    wire = Ready()
    one = Payload(None, bool)  # type: ignore[arg-type]
    leg = Leg(wire, [replace(one, weight=weight) for weight in (1.0, 2.0, 5.0)], poisson(20_000, 0.1, 0))
    samples = open_loop([leg]) if loop == "open" else closed_loop(leg, 64, 0.1)
    wire.close()
    assert samples.share("right") == 1
    assert len(samples) == wire.sent.total() > 300
    parts = [wire.sent[weight] / len(samples) for weight in (1.0, 2.0, 5.0)]
    assert parts == pytest.approx([1 / 8, 2 / 8, 5 / 8], abs=0.12)


def test_arrivals_are_as_many_as_the_rate_says_and_more_at_a_higher_one() -> None:
    """Each at any time: distances are exponential, near enough. The same for a seed."""
    due = poisson(1_000, 10, 3)
    assert len(due) == 10_000
    assert due == sorted(due) == poisson(1_000, 10, 3) != poisson(1_000, 10, 4)
    assert 0 <= due[0] <= due[-1] < 10e9
    assert set(due) < set(poisson(1_100, 10, 3))
    distances = np.diff(due)
    assert distances.std() == pytest.approx(distances.mean(), rel=0.05)
    assert poisson(0.01, 1, 0) == []
