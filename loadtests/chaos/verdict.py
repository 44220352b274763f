"""Whether a run went well. Plain functions of what was seen."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from loadtests.chaos.caller import LOST, Asked
from loadtests.chaos.faults import FAULTS, Faults
from loadtests.chaos.readiness import Readiness
from loadtests.soak.verdict import Rule, at_most, equal, window_growth
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


def judge(
    asked: Sequence[Asked], faults: Faults, readiness: Readiness, samples: Sequence[Sample], growth: float, kinds: int
) -> list[Rule]:
    ended = [one for one in asked if one.status]
    late = [one for one in ended if one.status != LOST and one.late_s > SLACK_S]
    denied = [one for one in asked if one.status == "14"]
    done = {event.name for event in faults.events}
    untrue = [one for one in denied if readiness.always(one.answered_s - _AROUND_S, one.answered_s + _AROUND_S)]
    return [
        equal("requests without an answer", len(asked) - len(ended), 0),
        equal("requests with a second answer", sum(one.answers > 1 for one in asked), 0),
        equal("answers later than the deadline and 50 ms", len(late), 0),
        equal("answers that are not the golden one", sum(one.status == "0" and not one.right for one in asked), 0),
        equal("ends that nobody foresaw", sum(one.status not in NAMES for one in ended), 0),
        equal("requests that were told UNAVAILABLE while it said that it is ready", len(untrue), 0),
        at_most("part of the requests that was not answered well", 1 - _well(asked), 0.5),
        equal("faults that the server took wrongly", len(faults.wrong), 0),
        at_least("kinds of faults that were done", len(done), min(kinds, len(FAULTS))),
        at_most("growth of memory, last part of the run over the first", window_growth(samples), growth),
        equal("ready at the end", readiness.ready[-1], True),
    ]


def _well(asked: Sequence[Asked]) -> float:
    return sum(one.right for one in asked) / len(asked) if asked else 0.0
