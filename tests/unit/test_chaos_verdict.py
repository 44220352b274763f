"""What a run of chaos is judged by: each rule on a run that breaks it alone."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from random import Random

import pytest

from loadtests.chaos.__main__ import callers
from loadtests.chaos.caller import LOST, Asked, Lag
from loadtests.chaos.faults import Event, Faults
from loadtests.chaos.page import page
from loadtests.chaos.readiness import Readiness
from loadtests.chaos.starved import Starved
from loadtests.chaos.verdict import judge, outcomes
from loadtests.process import Server
from loadtests.soak.watch import Sample
from server.settings import GrpcSettings

OK = Asked(10.0, 1.0, "0", 10.1, True, 1)
SAMPLE = Sample(0.0, 10**8, 10, 5, 0, 0, 0, 0)


def broken(
    asked: list[Asked],
    *,
    down: tuple[float, float] = (0, 0),
    grown: int = 0,
    ready: bool = True,
    waited_s: float = 0.0,
    lost: tuple[float, float] | None = None,
) -> list[str]:
    """The rules that are not kept. `down`: it says that it is not ready between these times."""
    readiness = Readiness([n / 10 for n in range(400)], [not down[0] <= n / 10 < down[1] for n in range(400)])
    readiness.ready[-1] = ready
    faults = Faults(Server(1, "", "", ""), Path(), Random(0), (), b"")
    faults.lost += [lost] if lost else []
    faults.events.append(Event("kills", 10, 11, ""))
    samples = [replace(SAMPLE, at_s=float(n), resident_bytes=10**8 + (grown if n > 30 else 0)) for n in range(60)]
    return [
        rule.name
        for rule in judge(asked, faults, readiness, samples, 0.2, 1, Starved([11.05], [waited_s]))
        if not rule.kept
    ]


def test_a_run_that_goes_well_breaks_nothing() -> None:
    """A process that died is told by UNAVAILABLE, by a connection that is lost, and by readiness."""
    denied, lost = replace(OK, status="14", right=False), replace(OK, status=LOST, right=False, answered_s=99.0)
    assert broken([OK] * 10 + [denied, lost], down=(9.8, 10.3)) == []


@pytest.mark.parametrize(
    ("one", "rule"),
    [
        (replace(OK, status="", answers=0), "requests without an answer"),
        (replace(OK, answers=2), "requests with a second answer"),
        (replace(OK, answered_s=11.06), "answers later than the deadline and 50 ms, without a core not counted"),
        (replace(OK, right=False), "answers that are not the golden one"),
        (replace(OK, status="13", right=False), "ends that nobody foresaw"),
        (
            replace(OK, status="14", right=False),
            "requests that were told UNAVAILABLE while it said that it is ready",
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_each_rule_is_broken_by_one_request(one: Asked, rule: str) -> None:
    assert broken([OK] * 10 + [one]) == [rule]


def test_what_the_client_itself_was_late_is_not_the_servers() -> None:
    assert broken([OK] * 10 + [replace(OK, answered_s=11.06, lag_s=0.02)]) == []


def test_while_it_had_no_core_a_server_is_not_late() -> None:
    """Between the deadline and the answer; and no longer than it had none."""
    late = replace(OK, answered_s=11.09)
    assert broken([OK] * 10 + [late], waited_s=0.05) == []
    assert broken([OK] * 10 + [late], waited_s=0.03) != []
    assert broken([OK] * 10 + [replace(late, at_s=10.2, answered_s=11.29)], waited_s=0.05) != []


def test_what_a_gateway_lost_with_a_server_may_be_told_so() -> None:
    """Only of what was under way there."""
    denied = replace(OK, status="14", right=False)
    rule = "requests that were told UNAVAILABLE while it said that it is ready"
    assert broken([OK] * 10 + [denied], lost=(9.9, 10.05)) == []
    assert broken([OK] * 10 + [denied], lost=(10.2, 10.9)) == [rule]


def test_memory_that_grows_and_a_server_that_is_not_well_at_the_end() -> None:
    assert broken([OK], grown=5 * 10**7) == ["growth of memory, last part of the run over the first"]
    assert broken([OK], ready=False) == ["ready at the end"]
    assert broken([replace(OK, status="8", right=False)]) == ["part of the requests that was not answered well"]


def test_the_page_has_everything() -> None:
    asked = [replace(OK, at_s=10.0 + n / 10) for n in range(50)] + [replace(OK, status=LOST, right=False)]
    events = [Event("kills <it>", 11, 12, "process 7")]
    shown = page("a run", asked, events, Readiness([10.5, 11.5], [True, False]), [])
    assert shown.count("<rect") >= 5 + 2 + 1
    assert "kills &lt;it&gt;" in shown
    assert outcomes(asked) == {"OK": 50, "connection lost": 1}


async def test_lag_is_seen_while_it_lasts() -> None:
    assert Lag().lately(5.0) == 0.0


@pytest.mark.parametrize(("rate", "connections"), [(1.0, 8), (4_096.0, 8), (20_438.0, 40)])
def test_no_connection_has_more_calls_under_way_than_the_server_takes(rate: float, connections: int) -> None:
    """While the engine stalls all wait, and what the server refuses then would be the client's own doing."""
    assert callers(rate, 1.0) == connections
    assert rate * 1.0 / callers(rate, 1.0) <= GrpcSettings().max_concurrent_streams / 2
