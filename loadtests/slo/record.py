"""What came of the requests of a run: by kind and window, latencies as HDR histograms of microseconds.

A request counts in the window in which it was due, whatever became of it and when.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from hdrh.histogram import HdrHistogram

from loadtests.slo.objectives import MOST_MS
from server.load.payloads import OUTCOMES, Outcome
from server.load.samples import Samples

_MOST_US = MOST_MS * 1000
_MOST_WORDS = 160
"""Of a fault that are kept."""
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
    faults: Counter[str] = field(default_factory=Counter)
    """What was not right, by its words."""
    streamed_us: dict[str, Any] = field(default_factory=lambda: defaultdict(histogram))
    """Of streams: ``first`` answers, from the time that they were due, and the times ``between`` answers."""

    def add(self, other: Window) -> None:
        self.latency_us.add(other.latency_us)
        self.lag_us.add(other.lag_us)
        self.outcomes.update(other.outcomes)
        self.faults.update(other.faults)
        for name, times in other.streamed_us.items():
            self.streamed_us[name].add(times)

    def encoded(self) -> dict[str, Any]:
        """As plain values, for another process."""
        return {
            "latency": self.latency_us.encode().decode(),
            "lag": self.lag_us.encode().decode(),
            "outcomes": dict(self.outcomes),
            "faults": dict(self.faults),
            "streamed": {name: times.encode().decode() for name, times in self.streamed_us.items()},
        }

    def add_encoded(self, encoded: dict[str, Any]) -> None:
        self.latency_us.decode_and_add(encoded["latency"])
        self.lag_us.decode_and_add(encoded["lag"])
        self.outcomes.update(encoded["outcomes"])
        self.faults.update(encoded["faults"])
        for name, times in encoded["streamed"].items():
            self.streamed_us[name].decode_and_add(times)

    @property
    def asked(self) -> int:
        return self.outcomes.total()


class Record:
    """Of one generator, or of several together (`add`)."""

    @classmethod
    def of(cls, samples: Samples, kinds: Sequence[str], window_s: float) -> Record:
        """What `server.load` has recorded of kinds that were asked together, in their order."""
        made = cls(window_s)
        for due, sent, ended, outcome, leg in zip(
            *(
                one.tolist()
                for one in (samples.due_ns, samples.sent_ns, samples.ended_ns, samples.outcome, samples.leg)
            ),
            strict=True,
        ):
            made.count(kinds[leg], due / 1e9, OUTCOMES[outcome], (ended - due) / 1e3, (sent - due) / 1e3)
        for (leg, words), times in samples.faults.items():
            made.windows[kinds[leg]][0].faults[words] += times
        return made

    def __init__(self, window_s: float) -> None:
        self.window_s = window_s
        self.windows: dict[str, dict[int, Window]] = defaultdict(lambda: defaultdict(Window))
        """By kind, and by the number of the window from the start of the run."""
        self.stages: dict[str, Counter[str]] = defaultdict(Counter)
        """By kind, of the calls that the server explained: milliseconds of each stage, and how many ``calls``."""

    def count(
        self,
        kind: str,
        due_s: float,
        outcome: Outcome,
        latency_us: float,
        lag_us: float,
        words: str = "",
        answered_us: Sequence[float] = (),
    ) -> None:
        """One request, due `due_s` seconds after the start of the run. `answered_us`: when a stream's answers came."""
        window = self.windows[kind][window_of(due_s, self.window_s)]
        window.outcomes[outcome] += 1
        window.lag_us.record_value(_fitting(lag_us))
        if words:
            window.faults[words[:_MOST_WORDS]] += 1
        if outcome == "right":
            window.latency_us.record_value(_fitting(latency_us))
            for number, at_us in enumerate(answered_us):
                name, since_us = ("between", answered_us[number - 1]) if number else ("first", 0.0)
                window.streamed_us[name].record_value(_fitting(at_us - since_us))

    def explained(self, kind: str, parts_ms: Mapping[str, float]) -> None:
        self.stages[kind].update({**parts_ms, "calls": 1})

    def whole(self, kind: str, windows: Iterable[int]) -> Window:
        """These windows of a kind together."""
        total = Window()
        for number in windows:
            if number in self.windows[kind]:
                total.add(self.windows[kind][number])
        return total

    def encoded(self) -> dict[str, Any]:
        """As plain values, for another process."""
        windows = {
            kind: {str(number): window.encoded() for number, window in windows.items()}
            for kind, windows in self.windows.items()
        }
        return {"windows": windows, "stages": {kind: dict(stages) for kind, stages in self.stages.items()}}

    def add(self, encoded: dict[str, Any]) -> None:
        """What another process recorded."""
        for kind, windows in encoded.get("windows", {}).items():
            for number, window in windows.items():
                self.windows[kind][int(number)].add_encoded(window)
        for kind, stages in encoded.get("stages", {}).items():
            self.stages[kind].update(stages)


def window_of(due_s: float, window_s: float) -> int:
    """Its number. By the microsecond: a time that was added to a clock and taken from it again is still in its own."""
    return int(round(due_s, 6) / window_s)


def _fitting(us: float) -> int:
    return min(_MOST_US, max(1, round(us)))
