"""How often a peer may do what costs it nothing: an allowance that fills up again with time."""

from __future__ import annotations


class Allowance:
    """`per_s` times a second, and twice that at once. `take` is told the time, in ns, and never reads a clock."""

    __slots__ = ("_at_ns", "_full", "_left", "_per_ns")

    def __init__(self, per_s: int) -> None:
        self._full = 2.0 * per_s
        self._left = self._full
        self._per_ns = per_s / 1e9
        self._at_ns = 0

    def take(self, now_ns: int) -> bool:
        """Whether it may be done once more, which is then counted."""
        self._left = min(self._full, self._left + (now_ns - self._at_ns) * self._per_ns)
        self._at_ns = now_ns
        if self._left < 1:
            return False
        self._left -= 1
        return True
