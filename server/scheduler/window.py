"""How much one server may have of one model at a time: a window that learns from the answers. No clock, no I/O.

It counts rows where the server merges requests, else requests; here both are rows.

More rows in flight than a server needs to be busy only wait there, out of reach of deadlines and priorities; fewer
leave it idle. Which number is which, the rate of the answers tells: as long as more in flight brings more rows a
second (batches grow, instances fill), the window is too small; once it brings the same rate with longer answers
(Little's law), it is too large. So the window is moved by a step and back, and keeps what was worth it:

* up, where the rate grows by more than a quarter of the step;
* down, where it shrinks by less than a quarter of the step.

Between trials that changed nothing the pause doubles. Only rounds count in which the window was full all the time,
for else it was the demand that set the rate. The window is cut at once where a server refuses for a full queue of its
own, and where requests end there for want of time: they would rather wait here, or be refused.
"""

from __future__ import annotations

from typing import NamedTuple

_STEP = 1.5
_WORTH = 0.25
"""The part of a step by which the rate must follow it."""
_ROUND_WINDOWS = 2
"""A round is over when so many windows of rows were answered,"""
_ROUND_ROWS = 16
"""and at least so many rows,"""
_ROUND_NS = 50_000_000
"""and at least this time has gone by: a few answers say nothing of a rate."""
_LONGEST_PAUSE = 16
_MOST_LATE = 0.5
"""The part of a window that may end for want of time before the window is cut."""
_CUT = 0.7


class Bounds(NamedTuple):
    """Rows. `least` keeps every instance busy: one pass runs, the next one's rows are there."""

    least: int
    first: int
    most: int


class Window:
    """Of one server and one model version."""

    __slots__ = (
        "_answered",
        "_base",
        "_before",
        "_bounds",
        "_direction",
        "_late",
        "_pause",
        "_pauses",
        "_since_ns",
        "_skip",
        "in_flight",
        "size",
    )

    def __init__(self, bounds: Bounds) -> None:
        self._bounds = bounds
        self.size = bounds.first
        """The most rows in flight."""
        self.in_flight = 0
        self._answered = 0
        self._since_ns = -1
        """When the round began; -1: with the next end."""
        self._late = 0
        """Rows that had no time, lately."""
        self._skip = 0
        """Rows whose answers are still those of the window before."""
        self._before = 0
        """The window before the trial under way; 0: there is none."""
        self._base = 0.0
        """The rate at the window before it."""
        self._direction = 1
        self._pause = 1
        self._pauses = 0
        """Rounds until the next trial."""

    def fits(self, rows: int) -> bool:
        """A request of more rows than the window goes alone."""
        return not self.in_flight or self.in_flight + rows <= self.size

    def begin(self, rows: int) -> None:
        self.in_flight += rows

    def end(self, rows: int, now_ns: int, *, answered: bool, late: bool = False) -> None:
        """A request ended; one that was not answered is time without rows. `late`: the server had it, and no time."""
        self.in_flight -= rows
        if late:
            self._late += rows
            if self._late >= _MOST_LATE * self.size:
                self.cut()
                return
        if self._since_ns < 0:
            self._since_ns = now_ns
            return
        if self._skip > 0:
            self._skip -= rows
            self._answered, self._since_ns = 0, now_ns
            return
        self._answered += rows if answered else 0
        span_ns = now_ns - self._since_ns
        if self._answered >= max(_ROUND_ROWS, _ROUND_WINDOWS * self.size) and span_ns >= _ROUND_NS:
            self._judge(self._answered / span_ns)
            self._answered, self._late, self._since_ns = 0, 0, now_ns

    def slack(self) -> None:
        """Nobody waits, and there is room: this round says nothing of what the server can do."""
        self._answered, self._since_ns = 0, -1

    def cut(self) -> None:
        """The server has more than it can do in time, or says so itself."""
        self._before, self._late = 0, 0
        self._direction, self._pauses = 1, _LONGEST_PAUSE
        self._set(int(self.size * _CUT))

    def _judge(self, rate: float) -> None:
        if not self._before:
            self._base = rate
            self._pauses -= 1
            if self._pauses < 0:
                self._try()
            return
        before, self._before = self._before, 0
        step = self.size / before
        if rate >= self._base * (1 + _WORTH * (step - 1)):
            self._base = rate
            self._pause, self._pauses = 1, 0
            self._try()
        else:
            self._set(before)
            self._direction = -self._direction
            self._pauses = self._pause
            self._pause = min(2 * self._pause, _LONGEST_PAUSE)

    def _try(self) -> None:
        """Begin a trial in the direction that was worth it last; at a bound, in the other one."""
        for direction in (self._direction, -self._direction):
            wanted = round(self.size * (_STEP if direction > 0 else 1 / _STEP))
            wanted = max(wanted, self.size + 1) if direction > 0 else min(wanted, self.size - 1)
            if self._clipped(wanted) != self.size:
                self._before, self._direction = self.size, direction
                self._set(wanted)
                return

    def _clipped(self, rows: int) -> int:
        return min(max(rows, self._bounds.least), self._bounds.most)

    def _set(self, rows: int) -> None:
        self._skip = max(self.size, self._clipped(rows))
        self.size = self._clipped(rows)
        self._answered = 0
