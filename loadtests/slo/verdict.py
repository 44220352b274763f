"""Whether the requests that were due after the warm-up held the objectives: each limit, and what was measured."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from loadtests.slo.objectives import Objective, Slo
from loadtests.slo.record import Record, Window
from server.load.samples import half_width

Exit = Literal[0, 1, 2]
HELD, BROKEN, INVALID = 0, 1, 2


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


def judge(slo: Slo, record: Record, seconds: float) -> Verdict:
    """A run of `seconds`, of which `slo.warm_up_s` are cut off."""
    first, last = math.ceil(slo.warm_up_s / slo.window_s), int(seconds / slo.window_s)
    windows = range(first, last)
    checks = [check for objective in slo.objectives for check in _checks(objective, record, windows)]
    lag = Window()
    for objective in slo.objectives:
        lag.add(record.whole(str(objective.kind), windows))
    lag_ms = percentile_ms(lag.lag_us, 99)
    return Verdict(checks, lag_ms, _invalid(slo, len(windows), lag, lag_ms))


def _invalid(slo: Slo, windows: int, lag: Window, lag_ms: float) -> str:
    if windows < 1:
        return f"shorter than the warm-up ({slo.warm_up_s:g} s) and one window ({slo.window_s:g} s)"
    if not lag.asked:
        return "nothing was sent"
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
    """NaN of nothing, which holds no limit."""
    total: int = histogram.get_total_count()  # type: ignore[attr-defined]
    value: float = histogram.get_value_at_percentile(q)  # type: ignore[attr-defined]
    return value / 1e3 if total else math.nan
