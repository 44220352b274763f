"""How quick files of one model are, beside each other in one run: each in turn, again and again, so that whatever else
the machine does meanwhile hits all of them. Sessions have one thread, and the time is that thread's own on its core."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from statistics import median

import numpy as np
import onnxruntime as ort

from exporter.recipes.base import Arrays

_ROUNDS = 5
_LEAST_S = 0.04
"""How long a file is run in a round, with a batch size: at least one pass."""


@dataclass(frozen=True, slots=True)
class Speed:
    """Of one file, by rows in a batch."""

    p50_ms: Mapping[int, float] = field(default_factory=dict)
    """The median time of a pass."""
    rows_per_s: Mapping[int, float] = field(default_factory=dict)
    """The median of the rounds: one that was disturbed, or lucky, does not count."""


def measure(
    sessions: Mapping[str, ort.InferenceSession], feeds: Mapping[int, Sequence[Arrays]], *, rounds: int = _ROUNDS
) -> dict[str, Speed]:
    """The speed of each session on the same inputs. `feeds` are batches, by their rows; each is run once beforehand."""
    passes: dict[tuple[str, int], list[list[float]]] = {(name, rows): [] for name in sessions for rows in feeds}
    for session in sessions.values():
        for batches in feeds.values():
            session.run(None, dict(batches[0]))
    for _ in range(rounds):
        for name, session in sessions.items():
            for rows, batches in feeds.items():
                passes[name, rows].append(_round(session, batches))
    found = {}
    for name in sessions:
        p50 = {rows: 1e3 * median(chain.from_iterable(passes[name, rows])) for rows in feeds}
        rates = {rows: median(rows / float(np.mean(each)) for each in passes[name, rows]) for rows in feeds}
        found[name] = Speed(p50, rates)
    return found


def _round(session: ort.InferenceSession, batches: Sequence[Arrays]) -> list[float]:
    """Seconds of passes over the batches in turn: all of them at least, so that each round has the same work."""
    took: list[float] = []
    begin = time.thread_time()
    while time.thread_time() - begin < _LEAST_S:
        for batch in batches:
            start = time.thread_time()
            session.run(None, dict(batch))
            took.append(time.thread_time() - start)
    return took
