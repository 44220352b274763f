"""The SLO file, what a run recorded, and the verdict on it."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from loadtests.arrivals import PROCESSES
from loadtests.slo.objectives import Slo, SloFault, read_slo
from loadtests.slo.record import Record
from loadtests.slo.report import junit, page, plain
from loadtests.slo.verdict import Verdict, judge, percentile_ms
from server.load.payloads import Outcome

KIND = "rest predict digits"
OBJECTIVE: dict[str, Any] = {"kind": KIND, "rate": 100, "latency_ms": {"p50": 10, "p99": 50}}


def slo(**changes: Any) -> Slo:
    return Slo.model_validate({"warm_up_s": 1, "window_s": 1, "objectives": [OBJECTIVE | changes]})


def recorded(latency_ms: float = 5.0, seconds: int = 5, outcome: Outcome = "right", lag_ms: float = 0.1) -> Record:
    """A hundred requests a second, all alike."""
    record = Record(1.0)
    for index in range(seconds * 100):
        record.count(KIND, index / 100, outcome, latency_ms * 1e3, lag_ms * 1e3)
    return record


def broken(verdict: Verdict) -> list[str]:
    return [check.what for check in verdict.checks if not check.held]


class TestTheFile:
    """What is wrong with it is named."""

    def test_the_shipped_one_is_sound(self) -> None:
        """Four kinds: REST and gRPC, infer and predict."""
        read = read_slo(Path(__file__).parents[2] / "loadtests" / "slo.yaml")
        assert {(one.kind.transport, one.kind.call) for one in read.objectives} == {
            (transport, call) for transport in ("rest", "grpc") for call in ("infer", "predict")
        }

    @pytest.mark.parametrize(
        ("changes", "named"),
        [
            ({"kind": "predict digits"}, "objectives.0.kind"),
            ({"kind": "ftp predict digits"}, "objectives.0.kind"),
            ({"rate": 0}, "objectives.0.rate"),
            ({"latency_ms": {"99": 5}}, "objectives.0.latency_ms"),
            ({"latency_ms": {"p99": -5}}, "objectives.0.latency_ms.p99"),
            ({"arrivals": "now and then"}, "poisson"),
            ({"max_error_rate": 2}, "objectives.0.max_error_rate"),
            ({"p99": 5}, "objectives.0.p99"),
        ],
    )
    def test_a_fault_is_named_by_its_field(self, tmp_path: Path, changes: dict[str, Any], named: str) -> None:
        """Unknown fields too."""
        path = tmp_path / "slo.yaml"
        path.write_text(yaml.safe_dump({"objectives": [OBJECTIVE | changes]}))
        with pytest.raises(SloFault, match=named):
            read_slo(path)

    def test_a_file_that_is_not_there_is_said(self, tmp_path: Path) -> None:
        """By its path."""
        with pytest.raises(SloFault, match="nowhere"):
            read_slo(tmp_path / "nowhere.yaml")


class TestTheRecord:
    """Histograms of each window, which can be added."""

    @pytest.mark.parametrize("q", [50, 90, 95, 99, 99.9])
    def test_percentiles_are_exact_to_a_thousandth(self, q: float) -> None:
        """Of 20,000 latencies from 100 us to seconds."""
        latencies = np.random.default_rng(0).lognormal(8, 1.5, 20_000)
        record = Record(1.0)
        for index, us in enumerate(latencies):
            record.count(KIND, index / 4000, "right", us, 0)

        measured = percentile_ms(record.whole(KIND, range(5)).latency_us, q) * 1e3

        exact = np.sort(latencies)[math.ceil(round(q / 100 * latencies.size, 6)) - 1]
        assert measured == pytest.approx(exact, rel=1e-3)

    def test_what_two_generators_recorded_is_added(self) -> None:
        """Window by window, and nothing is lost on the way between processes."""
        one, other = recorded(5), recorded(500, outcome="right")
        one.add(other.encoded())

        window = one.windows[KIND][2]
        assert window.outcomes["right"] == 200
        assert window.latency_us.get_total_count() == 200
        assert percentile_ms(window.latency_us, 25) == pytest.approx(5, rel=2e-3)
        assert percentile_ms(window.latency_us, 75) == pytest.approx(500, rel=2e-3)

    def test_only_right_answers_have_a_latency(self) -> None:
        """A refusal is quick, and no answer."""
        assert recorded(outcome="refused").windows[KIND][0].latency_us.get_total_count() == 0


class TestTheVerdict:
    """Held, broken, or nothing to be told."""

    def test_objectives_that_are_held(self) -> None:
        """0, and every limit with what was measured."""
        verdict = judge(slo(), recorded(), 5)
        assert verdict.exit_code == 0
        assert [check.what for check in verdict.checks] == ["p50 ms", "p99 ms", "error rate", "refused rate"]

    @pytest.mark.parametrize(
        ("record", "changes", "limits"),
        [
            (recorded(20), {}, ["p50 ms"]),
            (recorded(60), {}, ["p50 ms", "p99 ms"]),
            (recorded(outcome="wrong"), {"latency_ms": {}}, ["error rate"]),
            (recorded(outcome="failed"), {"latency_ms": {}}, ["error rate"]),
            (recorded(outcome="refused"), {"latency_ms": {}}, ["refused rate"]),
            (recorded(), {"min_answers_per_s": 101}, ["answers/s"]),
        ],
        ids=["the median", "both percentiles", "wrong answers", "failures", "refusals", "too few answers"],
    )
    def test_a_limit_that_is_broken_is_named(self, record: Record, changes: dict[str, Any], limits: list[str]) -> None:
        """1, whatever else is held."""
        verdict = judge(slo(**changes), record, 5)
        assert verdict.exit_code == 1
        assert broken(verdict) == limits

    def test_without_an_answer_no_latency_is_held(self) -> None:
        """A server that refuses everything is not quick."""
        assert broken(judge(slo(max_refused_rate=1), recorded(outcome="refused"), 5)) == ["p50 ms", "p99 ms"]

    def test_the_warm_up_does_not_count(self) -> None:
        """Nor do requests beyond the end."""
        record = recorded(5)
        for at in (0.5, 7.0):
            for _ in range(1000):
                record.count(KIND, at, "failed", 0, 0)
        assert judge(slo(), record, 5).exit_code == 0

    @pytest.mark.parametrize(
        ("record", "seconds", "why"),
        [
            (recorded(lag_ms=20), 5, "late itself"),
            (Record(1.0), 5, "nothing was sent"),
            (recorded(), 1, "shorter than"),
        ],
    )
    def test_a_run_that_tells_nothing_is_invalid(self, record: Record, seconds: float, why: str) -> None:
        """2, and why: whatever the server did."""
        verdict = judge(slo(), record, seconds)
        assert verdict.exit_code == 2
        assert why in verdict.invalid

    def test_a_confidence_interval_is_of_the_windows(self) -> None:
        """Four windows of 4, 5, 6 and 5 ms: Student's t of three degrees of freedom."""
        record = Record(1.0)
        for second, latency_ms in enumerate((9, 4, 5, 6, 5)):
            for _ in range(100):
                record.count(KIND, second + 0.5, "right", latency_ms * 1e3, 0)
        check = judge(slo(), record, 5).checks[0]
        assert check.interval == pytest.approx(3.18 * np.std([4, 5, 6, 5], ddof=1) / 2, rel=2e-3)


class TestTheReport:
    """For CI and for people."""

    def test_junit_has_a_failure_for_each_broken_limit(self) -> None:
        """With what was measured and what is allowed."""
        suite = junit(judge(slo(), recorded(20), 5), 5)
        assert (suite.get("tests"), suite.get("failures"), suite.get("errors")) == ("4", "1", "0")
        (failure,) = suite.iter("failure")
        assert re.fullmatch(r"20(\.\d+)?, and 10 at most is allowed", failure.get("message") or "")

    def test_an_invalid_run_is_an_error_of_no_limit(self) -> None:
        """CI shows why."""
        suite = junit(judge(slo(), recorded(lag_ms=20), 5), 5)
        assert (suite.get("failures"), suite.get("errors")) == ("0", "1")
        assert len(list(suite.iter("error"))) == 4

    def test_json_has_no_nan(self) -> None:
        """What was not measured is null."""
        record = recorded(outcome="refused")
        found = plain(judge(slo(), record, 5), record, "open", 5)
        assert found["checks"][0]["measured"] is None  # type: ignore[index]

    def test_the_page_draws_a_run_of_one_window(self) -> None:
        """And an empty one."""
        assert "<svg" in page("", recorded(seconds=1))
        assert "<svg" in page("", Record(1.0))


@pytest.mark.parametrize("process", PROCESSES)
def test_arrivals_come_at_their_mean_rate_and_the_same_for_a_seed(process: str) -> None:
    """Over a long run; ascending, and within it."""
    times = PROCESSES[process](200, 400, 1)
    assert len(times) == pytest.approx(200 * 400, rel=0.05)
    assert times == sorted(times)
    assert 0 <= times[0] <= times[-1] <= 400e9
    assert times == PROCESSES[process](200, 400, 1)


@pytest.mark.parametrize(
    ("process", "first", "second"), [("ramp", 0.25, 0.75), ("step", 0.25, 0.75), ("diurnal", 0.5, 0.5)]
)
def test_a_rate_that_varies_does_so(process: str, first: float, second: float) -> None:
    """The parts of the requests that come in the first and the second half."""
    times = np.array(PROCESSES[process](200, 400, 1))
    assert (times < 200e9).mean() == pytest.approx(first, abs=0.02)
    assert (times >= 200e9).mean() == pytest.approx(second, abs=0.02)
