"""How many rows of a pass that makes its own tensors the engine gets at once.

A row that was just made lies in the core's own cache, and so does what the engine makes of it, if it is run before the
next picture is decoded. But a model that reads much for each run, weights or its own code, is quicker with many rows.
Which of both a model is, its passes tell.
"""

from __future__ import annotations

_WEIGHT = 8
_TRIAL_EVERY = 32
"""Passes; what is not in use is seen to once in so many."""


class Pieces:
    """Of one model version. From any thread: what is lost between two of them is a measurement."""

    __slots__ = ("_ns", "_passes")

    def __init__(self) -> None:
        self._ns: dict[int, float] = {}
        """What the engine takes for a row, by the rows that it gets at once: powers of two."""
        self._passes = 0

    def rows(self, of: int) -> int:
        """How many are to be run at once in a pass `of` so many; that many or more: all of them."""
        sizes = [1 << power for power in range((of - 1).bit_length() + 1)]
        for size in sizes:
            if size not in self._ns:
                return size
        self._passes += 1
        turn, rest = divmod(self._passes, _TRIAL_EVERY)
        return min(sizes, key=self._ns.__getitem__) if rest else sizes[turn % len(sizes)]

    def learn(self, at_once: int, rows: int, engine_ns: int) -> None:
        """The engine took so long for a pass of `rows`. It may be disturbed, never quicker by accident: so a shorter
        time is believed at once, a longer one little by little."""
        ns = engine_ns / rows
        known = self._ns.get(at_once, ns)
        self._ns[at_once] = min(ns, known + max(0.0, ns - known) / _WEIGHT)
