"""Whether a run went well. Plain functions of what was seen."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from loadtests.chaos.caller import LOST, Asked
from loadtests.chaos.faults import Faults
from loadtests.chaos.readiness import Readiness
from loadtests.chaos.starved import Starved
from loadtests.soak.verdict import WARM_UP, Rule, at_most, equal, window_growth
from loadtests.soak.watch import Sample

SLACK_S = 0.05
NAMES = {"0": "OK", "4": "DEADLINE_EXCEEDED", "8": "RESOURCE_EXHAUSTED", "14": "UNAVAILABLE", LOST: "connection lost"}
"""How a request may end: anything else is wrong."""
_AROUND_S = 0.75
"""A process that dies is missed so much later, or earlier, by those who ask whether it is ready."""


def at_least(name: str, found: float, least: float) -> Rule:
    return Rule(name, found, f"at least {least:g}", found >= least)


def outcomes(asked: Sequence[Asked]) -> Counter[str]:
    return Counter(NAMES.get(one.status, one.status or "no answer") for one in asked)


def is_late(one: Asked, starved: Starved | None = None) -> bool:
    """`starved`: but for the time in which the server had no core, from the deadline to the answer."""
    late_s = one.late_s - SLACK_S if one.status and one.status != LOST else 0.0
    if late_s <= 0 or starved is None:
        return late_s > 0
    return late_s > starved.between(one.at_s + one.deadline_s, one.answered_s)


def latest(asked: Sequence[Asked], faults: Faults, starved: Starved) -> list[tuple[str, str, str, int, str, str]]:
    """The answers that were late, by second: when, behind which fault, how many, by how much at most, and how long a
    process of the server's waited for a core meanwhile."""
    begin_s = min([one.at_s for one in asked], default=0.0)
    found: dict[int, list[Asked]] = {}
    for one in asked:
        if is_late(one):
            found.setdefault(int(one.answered_s - begin_s), []).append(one)
    return [_late(second, late, begin_s, faults, starved) for second, late in sorted(found.items())]


def _late(
    second: int, late: Sequence[Asked], begin_s: float, faults: Faults, starved: Starved
) -> tuple[str, str, str, int, str, str]:
    at_s, asked_s = late[0].answered_s, min(one.at_s for one in late)
    before = [event for event in faults.events if event.begun_s <= at_s]
    fault = f"{at_s - before[-1].begun_s:.1f} s after {before[-1].name}" if before else ""
    names = ", ".join(sorted({NAMES.get(one.status, one.status) for one in late}))
    most_s = max(one.late_s for one in late)
    waited_s = starved.between(min(one.at_s + one.deadline_s for one in late), max(one.answered_s for one in late))
    when = f"{second} s, asked from {asked_s - begin_s:.2f} s on"
    return when, fault, names, len(late), f"{most_s * 1e3:.0f} ms", f"{waited_s * 1e3:.0f} ms"


def judge(
    asked: Sequence[Asked],
    faults: Faults,
    readiness: Readiness,
    samples: Sequence[Sample],
    growth: float,
    kinds: int,
    starved: Starved,
) -> list[Rule]:
    ended = [one for one in asked if one.status]
    late = [one for one in ended if is_late(one, starved)]
    denied = [one for one in asked if one.status == "14" and not _had(one, faults)]
    done = {event.name for event in faults.events}
    late_samples = samples[int(len(samples) * WARM_UP) :]
    untrue = [one for one in denied if readiness.always(one.answered_s - _AROUND_S, one.answered_s + _AROUND_S)]
    return [
        equal("requests without an answer", len(asked) - len(ended), 0),
        equal("requests with a second answer", sum(one.answers > 1 for one in asked), 0),
        equal("answers later than the deadline and 50 ms, without a core not counted", len(late), 0),
        equal("answers that are not the golden one", sum(one.status == "0" and not one.right for one in asked), 0),
        equal("ends that nobody foresaw", sum(one.status not in NAMES for one in ended), 0),
        equal("requests that were told UNAVAILABLE while it said that it is ready", len(untrue), 0),
        at_most("part of the requests that was not answered well", 1 - _well(asked), 0.5),
        equal("faults that the server took wrongly", len(faults.wrong), 0),
        at_least("kinds of faults that were done", len(done), min(kinds, len(faults.kinds))),
        at_most("growth of memory, last part of the run over the first", window_growth(late_samples), growth),
        equal("ready at the end", readiness.ready[-1], True),
    ]


def _had(one: Asked, faults: Faults) -> bool:
    """It was under way while a server behind this one was harmed."""
    return any(begin_s <= one.answered_s and one.at_s <= end_s for begin_s, end_s in faults.lost)


def _well(asked: Sequence[Asked]) -> float:
    return sum(one.right for one in asked) / len(asked) if asked else 0.0
