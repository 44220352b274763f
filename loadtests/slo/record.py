"""What came of the requests of a run: by kind and window, latencies as HDR histograms of microseconds.

A request counts in the window in which it was due, whatever became of it and when.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from hdrh.histogram import HdrHistogram

from server.load.payloads import Outcome

_MOST_US = 120_000_000
_DIGITS = 3
"""Significant digits: within 0.1 % of each value."""


def histogram() -> Any:
    return HdrHistogram(1, _MOST_US, _DIGITS)


@dataclass
class Window:
    """Requests that were due within the same seconds."""

    latency_us: Any = field(default_factory=histogram)
    """Of right answers, from the time that the request was due (open loop) or sent (closed loop)."""
    lag_us: Any = field(default_factory=histogram)
    """How late requests were sent."""
    outcomes: Counter[str] = field(default_factory=Counter)

    def add(self, other: Window) -> None:
        self.latency_us.add(other.latency_us)
        self.lag_us.add(other.lag_us)
        self.outcomes.update(other.outcomes)

    @property
    def asked(self) -> int:
        return self.outcomes.total()


class Record:
    """Of one generator, or of several together (`add`)."""

    def __init__(self, window_s: float) -> None:
        self.window_s = window_s
        self.windows: dict[str, dict[int, Window]] = defaultdict(lambda: defaultdict(Window))
        """By kind, and by the number of the window from the start of the run."""

    def count(self, kind: str, due_s: float, outcome: Outcome, latency_us: float, lag_us: float) -> None:
        """One request, due `due_s` seconds after the start of the run."""
        window = self.windows[kind][int(due_s / self.window_s)]
        window.outcomes[outcome] += 1
        window.lag_us.record_value(max(1, round(lag_us)))
        if outcome == "right":
            window.latency_us.record_value(min(_MOST_US, max(1, round(latency_us))))

    def whole(self, kind: str, windows: Iterable[int]) -> Window:
        """These windows of a kind together."""
        total = Window()
        for number in windows:
            if number in self.windows[kind]:
                total.add(self.windows[kind][number])
        return total

    def encoded(self) -> dict[str, Any]:
        """As plain values, for another process."""
        return {
            kind: {
                str(number): [w.latency_us.encode().decode(), w.lag_us.encode().decode(), dict(w.outcomes)]
                for number, w in windows.items()
            }
            for kind, windows in self.windows.items()
        }

    def add(self, encoded: dict[str, Any]) -> None:
        """What another process recorded."""
        for kind, windows in encoded.items():
            for number, (latency, lag, outcomes) in windows.items():
                window = self.windows[kind][int(number)]
                window.latency_us.decode_and_add(latency)
                window.lag_us.decode_and_add(lag)
                window.outcomes.update(outcomes)
