"""The SLO file, what a run recorded, and the verdict on it."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from loadtests.arrivals import PROCESSES
from loadtests.slo import run
from loadtests.slo.around import Around, Meter, Served
from loadtests.slo.asked import asked
from loadtests.slo.chats import golden_chats
from loadtests.slo.objectives import Kind, Objective, Slo, SloFault, read_slo
from loadtests.slo.page import page
from loadtests.slo.record import Record
from loadtests.slo.replay import read_replay
from loadtests.slo.report import costs, junit, plain, tables
from loadtests.slo.streams import streamed
from loadtests.slo.verdict import BROKEN, Verdict, judge, percentile_ms
from server.load.payloads import NoPayload, Outcome
from server.repository.golden import Golden

KIND = "rest predict digits"
REPOSITORY = Path(__file__).parents[2] / "model_repository"
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
        """Four kinds: REST and gRPC, infer and predict; and a chat where there is a model for it."""
        shipped = Path(__file__).parents[2] / "loadtests" / "slo.yaml"
        four = {(transport, call) for transport in ("rest", "grpc") for call in ("infer", "predict")}
        asked = [(one.kind.transport, one.kind.call) for one in read_slo(shipped).objectives]
        assert set(asked) == four | {("rest", "chat")}
        there = read_slo(shipped, shipped.parents[1] / "model_repository").objectives
        assert {(one.kind.transport, one.kind.call) for one in there} == four

    @pytest.mark.parametrize(
        ("changes", "named"),
        [
            ({"kind": "predict digits"}, "objectives.0.kind"),
            ({"kind": "ftp predict digits"}, "objectives.0.kind"),
            ({"rate": 0}, "rate: must be above 0"),
            ({"latency_ms": {"99": 5}}, "objectives.0.latency_ms"),
            ({"latency_ms": {"p99": -5}}, "objectives.0.latency_ms.p99"),
            ({"arrivals": "now and then"}, "poisson"),
            ({"max_error_rate": 2}, "objectives.0.max_error_rate"),
            ({"p99": 5}, "objectives.0.p99"),
            ({"arrivals": "trace"}, "needs a replay file"),
            ({"arrivals": "trace", "replay": "a.jsonl"}, "no rate"),
            ({"first_answer_ms": {"p50": 1}}, "are of streams"),
            ({"rows": {0: 1}}, "objectives.0.rows"),
            ({"rows": {2: 1}, "replay": "a.jsonl"}, "rows"),
            ({"rate": math.inf}, "objectives.0.rate: .* finite"),
            ({"rate": 1e7}, "objectives.0.rate: .* 1000000"),
            ({"latency_ms": {"p99": 120_001}}, "objectives.0.latency_ms.p99: .* 120000"),
            ({"min_answers_per_s": math.inf}, "objectives.0.min_answers_per_s: .* finite"),
            ({"rows": {10**9: 1}}, "objectives.0.rows"),
        ],
    )
    def test_a_fault_is_named_by_its_field(self, tmp_path: Path, changes: dict[str, Any], named: str) -> None:
        """Unknown fields too."""
        path = tmp_path / "slo.yaml"
        path.write_text(yaml.safe_dump({"objectives": [OBJECTIVE | changes]}))
        with pytest.raises(SloFault, match=named) as caught:
            read_slo(path)
        assert str(caught.value).count(";") == 0, "and nothing else is"

    @pytest.mark.parametrize(
        ("text", "named"),
        [
            ("objectives: []", "objectives: .*one or more"),
            (
                "objectives: [{kind: rest infer a, rate: 1}, {kind: rest infer a, rate: 2}]",
                "rest infer a is there twice",
            ),
            ("objectives: [{kind: rest infer a, rate: 1, rate: 2}]", "'rate' stands twice"),
            ("window_s: 0.01\nobjectives: [{kind: rest infer a, rate: 1}]", "window_s: .*0.1"),
            ("warm_up_s: .inf\nobjectives: [{kind: rest infer a, rate: 1}]", "warm_up_s: .*finite"),
            ("", "slo.yaml: Input should be a valid dictionary"),
            ("\0", "slo.yaml"),
        ],
    )
    def test_a_fault_of_the_whole_is_named(self, tmp_path: Path, text: str, named: str) -> None:
        """What is recorded by kind must be there once; what would never end, or not be read, is refused."""
        path = tmp_path / "slo.yaml"
        path.write_text(text)
        with pytest.raises(SloFault, match=named):
            read_slo(path)

    def test_a_file_that_is_no_text_is_said(self, tmp_path: Path) -> None:
        """By its path."""
        (tmp_path / "slo.yaml").write_bytes(b"\xff\xfe")
        with pytest.raises(SloFault, match=r"slo\.yaml"):
            read_slo(tmp_path / "slo.yaml")

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

    @pytest.mark.parametrize(
        "missing", [0, -100, 100], ids=["all are there", "some were sent twice", "some were not sent"]
    )
    def test_what_was_due_and_is_not_known_of_makes_a_run_invalid(self, missing: int) -> None:
        """A generator that ended too soon, users that are too few or too many: the server is not to blame, nor praised.
        What is due on the border of two windows is in the second, though a clock was added to it and taken away."""
        clock_s = 123_456.789
        record = Record(1.0)
        due = [number * 10_000_000 for number in range(500)]
        for at_ns in due[: 500 - max(0, missing)] + due[300 : 300 - min(0, missing)]:
            record.count(KIND, (clock_s + at_ns / 1e9) - clock_s, "right", 5_000, 0)
        verdict = judge(slo(), record, 5, {KIND: [(at_ns, 0) for at_ns in due]})
        assert verdict.exit_code == (2 if missing else 0)
        assert verdict.invalid == (
            f"{KIND}: {400 - missing} requests are known of, and 400 were due" if missing else ""
        )

    def test_a_kind_of_which_nothing_was_sent_makes_a_run_invalid(self) -> None:
        """Whatever the others did."""
        both = Slo.model_validate(
            slo().model_dump() | {"objectives": [OBJECTIVE, OBJECTIVE | {"kind": "grpc infer fraud"}]}
        )
        verdict = judge(both, recorded(), 5)
        assert (verdict.exit_code, verdict.invalid) == (2, "grpc infer fraud: nothing was sent after the warm-up")

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
        assert (suite.get("failures"), suite.get("errors")) == ("0", "4")
        assert len(list(suite.iter("error"))) == 4

    def test_what_was_not_measured_is_nothing(self) -> None:
        """For people and in CI; and no number."""
        verdict = judge(slo(), record := recorded(outcome="refused"), 5)
        said = [failure.get("message") for failure in junit(verdict, 5).iter("failure")]
        assert said[:2] == ["nothing, and 10 at most is allowed", "nothing, and 50 at most is allowed"]
        (limits,) = [rows for title, _, rows in tables(verdict, record, Around("open", 5)) if title == "Limits"]
        assert limits[0] == (KIND, "p50 ms", "<= 10", "nothing", "", "NO")

    def test_json_has_no_nan(self) -> None:
        """What was not measured is null."""
        record = recorded(outcome="refused")
        found = plain(judge(slo(), record, 5), record, Around("open", 5))
        assert found["checks"][0]["measured"] is None  # type: ignore[index]

    def test_the_page_draws_a_run_of_one_window(self) -> None:
        """And an empty one."""
        for record in (recorded(seconds=1), Record(1.0)):
            verdict = judge(slo(), record, 5)
            assert "<svg" in page("", "", verdict.exit_code, tables(verdict, record, Around("open", 5)), record, 5)

    def test_errors_are_told_by_their_causes(self) -> None:
        """Of all windows together, the most frequent first."""
        record = Record(1.0)
        for at, words in enumerate(["no such model", "late", "late"]):
            record.count(KIND, at, "failed", 0, 0, words)
        (found,) = [
            rows for title, _, rows in tables(judge(slo(), record, 5), record, Around("open", 5)) if "cause" in title
        ]
        assert found == [(KIND, 2, "late"), (KIND, 1, "no such model")]

    def test_a_stream_is_held_to_its_first_answer_and_to_those_between(self) -> None:
        """The first after 20 ms, the others 5 ms apart; what two generators saw is added."""
        one, other = Record(1.0), Record(1.0)
        for index in range(200):
            record = one if index % 2 else other
            record.count(KIND, 1 + index / 100, "right", 30_000, 0, answered_us=(20_000, 25_000, 30_000))
        one.add(other.encoded())
        objective = {"kind": "rest stream digits", "rate": 1, "latency_ms": {}, "first_answer_ms": {"p99": 15}}
        held = Slo.model_validate(
            {"warm_up_s": 1, "window_s": 1, "objectives": [objective | {"between_answers_ms": {"p99": 6}}]}
        )
        one.windows["rest stream digits"] = one.windows.pop(KIND)
        verdict = judge(held, one, 3)
        assert broken(verdict) == ["first answer p99 ms"]
        assert verdict.checks[1].measured == pytest.approx(5, rel=2e-3)

    def test_a_stream_of_one_answer_has_no_time_between_two(self) -> None:
        """Its cells are empty, and a limit on it is not held."""
        record = Record(1.0)
        for index in range(200):
            record.count(KIND, 1 + index / 100, "right", 30_000, 0, answered_us=(20_000,))
        limits = {"latency_ms": {}, "between_answers_ms": {"p99": 6}}
        objective = {"kind": KIND.replace(" predict ", " stream ").replace(" infer ", " stream "), "rate": 1, **limits}
        asked_for = Slo.model_validate({"warm_up_s": 1, "window_s": 1, "objectives": [objective]})
        kind = str(asked_for.objectives[0].kind)
        record.windows[kind] = record.windows.pop(KIND)
        verdict = judge(asked_for, record, 3)
        assert broken(verdict) == ["between answers p99 ms"]
        (rows,) = [rows for title, _, rows in tables(verdict, record, Around("open", 3)) if title == "Streams"]
        assert [row[0] for row in rows] == [kind]
        assert list(rows[0][3:]) == ["", ""]
        assert float(rows[0][1]) == pytest.approx(20, rel=2e-3)

    def test_the_server_s_counts_stand_beside_the_client_s(self) -> None:
        """Counts with a reason are added up; a model of several kinds is one line."""
        record = recorded(5)
        around = Around("open", 5, served={"digits": Served(500, 1, 500, 250, 2_004_000, 501_000, 1_002_000)})
        (row,) = next(
            rows for title, _, rows in tables(judge(slo(), record, 5), record, around) if "own counts" in title
        )
        assert (*row[:5], *row[6:]) == ("digits", 500, "500", "1", "2.00", "4.000", "1.000", "2.000")
        assert float(str(row[5])) == pytest.approx(5, rel=1e-3)

    def test_energy_and_money_are_for_a_thousand(self, tmp_path: Path) -> None:
        """500 right answers in 5 s; RAPL's count begins anew in between; where nothing is known nothing is told."""
        zone = tmp_path / "intel-rapl:0"
        zone.mkdir()
        (zone / "name").write_text("package-0\n")
        (zone / "max_energy_range_uj").write_text("100000000\n")
        (zone / "energy_uj").write_text("90000000\n")
        meter = Meter(powercap=str(tmp_path))
        (zone / "energy_uj").write_text("40000000\n")
        around = Around("open", 5, joules=meter.joules(), price_per_hour=0.36)
        assert costs(recorded(), around) == [
            ("joules (the machine with the generator, 10.0 W)", "100"),
            ("money (at 0.36 an hour)", "0.001"),
        ]
        assert Meter(powercap=str(tmp_path / "none")).joules() is None
        assert Meter(powercap=str(tmp_path)).joules() is None, "a counter that stands still tells nothing, and not 0"
        assert costs(recorded(), Around("open", 5)) == []


class TestWhatIsAsked:
    """Mixes of sizes, replay files, streams."""

    def test_sizes_come_as_often_as_the_file_says(self) -> None:
        """Four of five have one row, the others eight; the same for a seed."""
        made = asked(slo(kind="rest infer digits", rows={1: 0.8, 8: 0.2}).objectives[0], REPOSITORY)
        schedule = made.schedule(50, 3)
        sizes = [len(made.payloads[place].call.request.content) for _, place in schedule]
        large = np.array(sizes) > 2 * min(sizes)
        assert large.mean() == pytest.approx(0.2, abs=0.03)
        assert schedule == made.schedule(50, 3)
        assert schedule != made.schedule(50, 4)

    def test_a_trace_is_sent_when_and_in_the_order_it_says(self, tmp_path: Path) -> None:
        """And again from its beginning, a mean distance after its end."""
        path = tmp_path / "trace.jsonl"
        path.write_text("\n".join(f'{{"at_s": {at}, "golden": {row}}}' for at, row in ((0, 4), (0.5, 2), (1, 3))))
        made = asked(slo(kind="grpc infer fraud", rate=0, arrivals="trace", replay=str(path)).objectives[0], REPOSITORY)
        assert made.schedule(3, 0) == [
            (0, 0), (500_000_000, 1), (1_000_000_000, 2), (1_500_000_000, 0), (2_000_000_000, 1), (2_500_000_000, 2)
        ]  # fmt: skip

    def test_a_replay_file_has_tensors_inputs_and_their_answers(self, tmp_path: Path) -> None:
        """What is right is what the file says."""
        path = tmp_path / "replay.jsonl"
        features, categories = [0.0] * 10, [0] * 3
        row = json.dumps({"features": [features], "categories": [categories]})
        path.write_text(f'{{"inputs": {row}, "outputs": {{"logits": [[1, 2]]}}}}\n')
        (payload,) = read_replay(Kind.parse("rest infer fraud"), path, REPOSITORY).payloads
        assert payload.right({"logits": np.array([[1, 2]], np.float32)})  # type: ignore[union-attr]
        assert not payload.right({"logits": np.array([[1, 3]], np.float32)})  # type: ignore[union-attr]

    @pytest.mark.parametrize(
        ("line", "said"),
        [
            ("{", "line 1"),
            ('{"inputs": {"nobody": [1]}, "outputs": {}}', "nobody"),
            ('{"golden": 4000}', "line 1"),
            ("", "no request"),
            ('{"golden": 1, "at_s": 2}\n{"golden": 1, "at_s": 1}', "ascending"),
            ('{"golden": 1, "at_s": 2}\n{"golden": 1}', "every line or on none"),
        ],
    )
    def test_what_is_wrong_in_a_replay_file_is_named(self, tmp_path: Path, line: str, said: str) -> None:
        """By its line."""
        path = tmp_path / "replay.jsonl"
        path.write_text(line)
        with pytest.raises(NoPayload, match=said):
            read_replay(Kind.parse("rest infer fraud"), path, REPOSITORY)

    def test_a_stream_is_right_if_all_its_answers_are(self) -> None:
        """In their order, as arrays or as JSON has them."""
        wanted = [{"y": np.array([[3.0]], np.float32)}, {"y": np.array([[4.0]], np.float32)}]
        payload = streamed("counting", {"x": np.array([[2.0]], np.float32)}, wanted)
        assert json.loads(payload.body) == {"x": 2.0}
        assert payload.judge(wanted) == ("right", "")
        assert payload.judge([{"y": 3.0}, {"y": 4.0, "model_name": "counting"}]) == ("right", "")
        assert payload.judge([{"y": 4.0}, {"y": 3.0}]) == ("wrong", "answer 0 is not the right one")
        assert payload.judge([{"y": 3.0}]) == ("wrong", "1 answers, and 2 are right")
        assert payload.judge([{"error": "gone"}]) == ("failed", "gone")
        texts = [{"y": np.array([[b"a", b"b"]], object)}]
        told = streamed("m", {"x": np.array([[b"q"]], object)}, texts)
        assert told.judge([{"y": ["a", "b"]}]) == ("right", "")
        assert told.judge([{"y": ["a", "c"]}])[0] == "wrong"


@pytest.mark.parametrize(("tries", "again"), [(1, []), (3, ["2 left", "1 left"])])
def test_a_run_that_broke_is_made_again_as_often_as_is_asked_for(
    tries: int, again: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Nobody listens there; the exit code is that of the last."""
    path = tmp_path / "slo.yaml"
    objective = {"kind": "rest infer fraud", "rate": 20, "arrivals": "constant"}
    path.write_text(yaml.safe_dump({"warm_up_s": 0, "window_s": 0.2, "max_lag_ms": 1e5, "objectives": [objective]}))
    flags = ["--rest", "http://127.0.0.1:1", "--generator", "wire", "--seconds", "0.2", "--tries", str(tries)]
    assert run.main(["--slo", str(path), *flags]) == BROKEN
    said = capsys.readouterr().out
    assert re.findall(r"Once more; (\d left)", said) == again
    assert said.count("BROKEN: 1 of 2 limits: rest infer fraud error rate") == tries


@given(st.lists(st.floats(1, 1e7), min_size=1, max_size=200), st.floats(1, 99.9))
def test_percentiles_agree_with_an_exact_computation(latencies: list[float], q: float) -> None:
    """Within 0.1 % and half of a microsecond, to which latencies are rounded; in one window or over several."""
    record = Record(1.0)
    for index, us in enumerate(latencies):
        record.count(KIND, index % 3, "right", us, 0)
    measured = percentile_ms(record.whole(KIND, range(3)).latency_us, q) * 1e3
    places = sorted(latencies)
    rank = q / 100 * len(latencies)
    # The nearest rank; one that is a whole number may be missed by its last digit.
    allowed = {places[min(len(places), max(1, math.ceil(rank + off))) - 1] for off in (-1e-6, 1e-6)}
    assert any(abs(measured - exact) <= 1e-3 * exact + 0.5 for exact in allowed)


@pytest.mark.parametrize("process", PROCESSES)
def test_arrivals_come_at_their_mean_rate_and_the_same_for_a_seed(process: str) -> None:
    """Over a long run; ascending, and within it."""
    times = PROCESSES[process](200, 400, 1)
    assert len(times) == pytest.approx(200 * 400, rel=0.05)
    assert times == sorted(times)
    assert 0 <= times[0] <= times[-1] < 400e9
    assert [at for seed in range(9) for at in PROCESSES[process](0.2, 2, seed) if at >= 2e9] == []
    assert times == PROCESSES[process](200, 400, 1)


@pytest.mark.parametrize(
    ("process", "first", "second"), [("ramp", 0.25, 0.75), ("step", 0.25, 0.75), ("diurnal", 0.5, 0.5)]
)
def test_a_rate_that_varies_does_so(process: str, first: float, second: float) -> None:
    """The parts of the requests that come in the first and the second half."""
    times = np.array(PROCESSES[process](200, 400, 1))
    assert (times < 200e9).mean() == pytest.approx(first, abs=0.02)
    assert (times >= 200e9).mean() == pytest.approx(second, abs=0.02)


def test_a_chat_is_whole_and_what_it_was_before_or_wrong() -> None:
    """Its pieces are its answers; what opens, closes or counts it is none."""

    def events(*pieces: str, finish: str = "stop", done: bool = True) -> list[bytes]:
        deltas = [{"role": "assistant"}, *({"content": piece} for piece in pieces)]
        made = [{"choices": [{"delta": delta, "finish_reason": None}]} for delta in deltas]
        if finish:
            made.append({"choices": [{"delta": {}, "finish_reason": finish}]})
        return [json.dumps(one).encode() for one in made] + [b"[DONE]"] * done

    golden = Golden("1", {"text_input": np.array([b"Hello"], object)}, {"text_output": np.array([b"x"], object)})
    [chat] = golden_chats("tales", golden)
    assert json.loads(chat.body)["messages"] == [{"role": "user", "content": "Hello"}]

    def judged(made: Sequence[bytes]) -> tuple[str, int]:
        read = [chat.read(one) for one in made]
        return chat.judge([one for one, _ in read])[0], sum(answers for _, answers in read)

    assert judged(events("a", "b")) == ("right", 2)
    assert judged(events("ab", finish="length")) == ("right", 1)
    assert judged(events("a", "c")) == ("wrong", 2)
    assert judged(events("a", "b", done=False)) == ("wrong", 2)
    assert judged(events("a", "b", finish="")) == ("wrong", 2)
    assert judged([json.dumps({"error": {"message": "late"}}).encode()]) == ("failed", 0)
    for kind in ("grpc chat tales", "json chat tales"):
        with pytest.raises(ValidationError, match="over rest"):
            Objective.model_validate({"kind": kind, "rate": 1})
