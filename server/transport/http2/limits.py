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


class Resets:
    """How many of its streams a peer may make end by RST_STREAM: as many as `Allowance` says, and for each that it lets
    end otherwise one more, `most` of these at once.

    What is earned is for proxies: on one connection they bring the calls of many clients, of whom some give up. Whoever
    opens streams only to reset them earns nothing.
    """

    __slots__ = ("_allowance", "_earned", "_most", "_opened")

    def __init__(self, per_s: int, most: int) -> None:
        self._allowance = Allowance(per_s)
        self._most = most
        self._opened = 0
        self._earned = 0
        """Below 0 if more were reset than opened since there was something left: they were opened before that."""

    def take(self, now_ns: int, opened: int) -> bool:
        """Whether one more may end so, which is then counted; `opened` are all streams of the connection so far."""
        self._earned = max(min(self._earned + opened - self._opened, self._most) - 1, -self._most)
        self._opened = opened
        if self._earned > 0:
            self._earned -= 1
            return True
        return self._allowance.take(now_ns)
