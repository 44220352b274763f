"""Whether a soak went well: each rule, what was found, what is allowed. Plain functions of what was seen."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean, median

from loadtests.soak.watch import Sample

WARM_UP = 0.2
"""The part of a run whose memory is not judged: buffers, pools and caches are filled."""
_WINDOW = 0.1
"""The parts at both ends of what is left that are held against each other."""


@dataclass(frozen=True)
class Rule:
    name: str
    found: float
    allowed: str
    kept: bool

    def line(self) -> tuple[str, str, str, str]:
        found = f"{self.found:.4g}" if isinstance(self.found, float) else f"{self.found}"
        return self.name, found, self.allowed, "yes" if self.kept else "**no**"


def at_most(name: str, found: float, most: float) -> Rule:
    return Rule(name, found, f"at most {most:g}", found <= most)


def equal(name: str, found: float, wanted: float) -> Rule:
    return Rule(name, found, f"{wanted:g}", found == wanted)


def memory(samples: Sequence[Sample], most: float) -> list[Rule]:
    """Resident memory does not grow by more than `most` of itself, by a line fitted to the run without its warm-up
    and by the medians of the first and the last part of that."""
    late = samples[int(len(samples) * WARM_UP) :]
    return [
        at_most("growth of memory over the run, by a fitted line", fitted_growth(late), most),
        at_most("growth of memory, last window over first", window_growth(late), most),
    ]


def fitted_growth(samples: Sequence[Sample]) -> float:
    """What a line of least squares grows by between the first sample and the last, over its mean. 0 of one sample."""
    at = [sample.at_s for sample in samples]
    held = [sample.resident_bytes for sample in samples]
    mean_at, mean_held = fmean(at), fmean(held)
    spread = sum((x - mean_at) ** 2 for x in at)
    if not spread:
        return 0.0
    slope = sum((x - mean_at) * (y - mean_held) for x, y in zip(at, held, strict=True)) / spread
    return slope * (at[-1] - at[0]) / mean_held


def window_growth(samples: Sequence[Sample]) -> float:
    """The median of the last tenth over that of the first, less 1."""
    size = max(1, int(len(samples) * _WINDOW))
    held = [sample.resident_bytes for sample in samples]
    return median(held[-size:]) / median(held[:size]) - 1


def leaks(before: Sample, samples: Sequence[Sample], after: Sample) -> list[Rule]:
    """At rest afterwards as before: nothing is connected, under way or open. Threads of a pool come when they are
    wanted, so they are as many as there were in the warm-up of the run."""
    threads = max(sample.threads for sample in (before, *samples[: int(len(samples) * WARM_UP)]))
    gauges = ("grpc_connections", "grpc_streams", "grpc_held_bytes", "pending_requests")
    return [
        *(equal(f"{name.replace('_', ' ')} afterwards", getattr(after, name), 0) for name in gauges),
        at_most("open files afterwards", after.open_files, before.open_files),
        at_most("threads afterwards", after.threads, threads),
    ]


@dataclass(frozen=True)
class Counted:
    """What ModelStatistics say of a model."""

    success: int
    fail: int
    rows: int


def all_answered(model: str, asked: int, counted: Counted) -> list[Rule]:
    """Requests of one row, each of which was answered."""
    return [
        equal(f"{model}: successes counted", counted.success, asked),
        equal(f"{model}: failures counted", counted.fail, 0),
        equal(f"{model}: rows counted", counted.rows, asked),
    ]


def all_settled(model: str, sent: int, counted: Counted, *, arrived: bool) -> Rule:
    """Requests that failed or not, for their clients' fault; each was counted once, if it `arrived` for certain."""
    settled = counted.success + counted.fail
    rule = equal if arrived else at_most
    return rule(f"{model}: successes and failures counted", settled, sent)
