"""Whether the requests that were due after the warm-up held the objectives: each limit, and what was measured."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from loadtests.slo.objectives import Objective, Slo
from loadtests.slo.record import Record, Window, window_of
from server.load.samples import half_width

Exit = Literal[0, 1, 2]
HELD, BROKEN, INVALID = 0, 1, 2
MISUSED = 3
"""The exit code of what can't be asked; no verdict has it."""


@dataclass(frozen=True)
class Check:
    """One limit of one objective."""

    kind: str
    what: str
    limit: float
    measured: float
    interval: float
    """Half the width of the 95 % confidence interval, from the windows; NaN of fewer than two."""
    at_least: bool = False
    """The limit is one from below."""

    @property
    def held(self) -> bool:
        """Nothing measured holds nothing."""
        return self.measured >= self.limit if self.at_least else self.measured <= self.limit


@dataclass(frozen=True)
class Verdict:
    checks: Sequence[Check]
    lag_p99_ms: float
    invalid: str
    """Why the run tells nothing; empty if it does."""

    @property
    def exit_code(self) -> Exit:
        if self.invalid:
            return INVALID
        return HELD if all(check.held for check in self.checks) else BROKEN


Schedules = Mapping[str, Sequence[tuple[int, int]]]
"""By kind: when requests are due, in nanoseconds from the start, and what each one is."""


def judge(slo: Slo, record: Record, seconds: float, schedules: Schedules | None = None) -> Verdict:
    """A run of `seconds`, of which `slo.warm_up_s` are cut off. `schedules`: of an open loop, what it had to send."""
    first, last = math.ceil(slo.warm_up_s / slo.window_s), int(seconds / slo.window_s)
    windows = range(first, last)
    checks = [check for objective in slo.objectives for check in _checks(objective, record, windows)]
    sent = {str(objective.kind): record.whole(str(objective.kind), windows) for objective in slo.objectives}
    lag = Window()
    for window in sent.values():
        lag.add(window)
    lag_ms = percentile_ms(lag.lag_us, 99)
    invalid = _too_short(slo, windows) or _not_as_asked(slo, sent, windows, schedules) or _late(slo, lag_ms)
    return Verdict(checks, lag_ms, invalid)


def _too_short(slo: Slo, windows: range) -> str:
    if windows:
        return ""
    return f"shorter than the warm-up ({slo.warm_up_s:g} s) and one window ({slo.window_s:g} s)"


def _not_as_asked(slo: Slo, sent: Mapping[str, Window], windows: range, schedules: Schedules | None) -> str:
    """A generator that ended too soon, or whose users were too few or too many, has not asked what it had to."""
    for kind, window in sent.items():
        if not window.asked:
            return f"{kind}: nothing was sent after the warm-up"
        if schedules is None:
            continue
        due = sum(window_of(at_ns / 1e9, slo.window_s) in windows for at_ns, _ in schedules[kind])
        if window.asked != due:
            return f"{kind}: {window.asked} requests are known of, and {due} were due"
    return ""


def _late(slo: Slo, lag_ms: float) -> str:
    if lag_ms > slo.max_lag_ms:
        return (
            f"the generator was late itself: {lag_ms:.1f} ms at the 99th percentile, {slo.max_lag_ms:g} ms are allowed"
        )
    return ""


def _checks(objective: Objective, record: Record, windows: range) -> list[Check]:
    kind = str(objective.kind)
    whole = record.whole(kind, windows)
    parts = [part for number in windows if (part := record.windows[kind].get(number)) and part.asked]
    checks = []
    for what, limits, times in (
        ("", objective.latency_ms, lambda part: part.latency_us),
        ("first answer ", objective.first_answer_ms, lambda part: part.streamed_us["first"]),
        ("between answers ", objective.between_answers_ms, lambda part: part.streamed_us["between"]),
    ):
        for name, limit in limits.items():
            q = float(name[1:])
            each = [percentile_ms(times(part), q) for part in parts if times(part).get_total_count()]
            checks.append(Check(kind, f"{what}{name} ms", limit, percentile_ms(times(whole), q), half_width(each)))
    for what, limit, outcomes in (
        ("error rate", objective.max_error_rate, ("failed", "wrong")),
        ("refused rate", objective.max_refused_rate, ("refused",)),
    ):
        each = [_share(part, outcomes) for part in parts]
        checks.append(Check(kind, what, limit, _share(whole, outcomes), half_width(each)))
    if objective.min_answers_per_s:
        span_s, limit = len(windows) * record.window_s, objective.min_answers_per_s
        each = [part.outcomes["right"] / record.window_s for part in parts]
        rate = whole.outcomes["right"] / span_s if span_s else 0.0
        checks.append(Check(kind, "answers/s", limit, rate, half_width(each), at_least=True))
    return checks


def _share(window: Window, outcomes: Sequence[str]) -> float:
    return sum(window.outcomes[name] for name in outcomes) / window.asked if window.asked else math.nan


def percentile_ms(histogram: object, q: float) -> float:
    """By the nearest rank, as everywhere here; NaN of nothing, which holds no limit."""
    total: int = histogram.get_total_count()  # type: ignore[attr-defined]
    if not total:
        return math.nan
    # The histogram itself would round to a rank, which of few requests is the one before.
    rank = max(1, math.ceil(q / 100 * total - 1e-6))
    value: float = histogram.get_value_at_percentile(100 * rank / total)  # type: ignore[attr-defined]
    return value / 1e3
