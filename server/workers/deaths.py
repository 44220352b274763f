"""How soon a process that died is replaced, and when that is given up. No clock."""

from __future__ import annotations

from collections import deque

_WINDOW_S = 60.0
_FIRST_S = 0.1
_LONGEST_S = 5.0


class Deaths:
    """Of one server. The first within a minute is replaced at once, each further one after twice as long a wait."""

    def __init__(self, most: int) -> None:
        """`most` deaths in a minute are taken for accidents."""
        self._most = most
        self._at: deque[float] = deque()

    def wait_s(self, now_s: float) -> float | None:
        """One died at `now_s`: when to replace it, from now; None: no more."""
        while self._at and now_s - self._at[0] > _WINDOW_S:
            self._at.popleft()
        before = len(self._at)
        self._at.append(now_s)
        if before >= self._most:
            return None
        return min(_FIRST_S * 2 ** (before - 1), _LONGEST_S) if before else 0.0
