"""Traces: which requests, what is written of them, and the settings by which clients change it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from server.errors import InvalidRequest, QueueFull, ServingError, Unsupported
from server.observability.trace_settings import LONGEST_LOG
from server.observability.tracing import Tracing
from server.settings import TraceSettings
from server.types import InferRequest, InferResponse, Outcome, Timing

OFF = {
    "trace_level": ["OFF"],
    "trace_rate": ["1000"],
    "trace_count": ["-1"],
    "log_frequency": ["0"],
    "trace_mode": ["triton"],
}


@pytest.fixture
def traced(tmp_path: Path) -> Callable[..., Tracing]:
    """Tracing of every request into the test's folder, with these settings."""

    def make(**settings: Any) -> Tracing:
        return Tracing(
            TraceSettings(**{"file": str(tmp_path / "t.json"), "level": "TIMESTAMPS", "rate": 1, **settings})
        )

    return make


def run(
    tracing: Tracing, count: int = 1, model: str = "m", outcome: Outcome | None = None, id: str = ""
) -> list[Outcome]:
    """Requests through the tracing, and their outcomes."""
    outcomes: list[Outcome] = []
    for _ in range(count):
        request = InferRequest(
            model, [], on_settle=lambda _, outcome: outcomes.append(outcome), received_ns=100, model_version="3", id=id
        )
        tracing.watch((request,), model, "3")
        request.enqueued_ns = 200
        request.settle(outcome or InferResponse(model, "3", [], timing=Timing(10, 20, 30, 40, 1)))
    return outcomes


def traces(*paths: Path) -> list[dict[str, Any]]:
    """By their ids: what each entry adds, and its times by name."""
    found: dict[int, dict[str, Any]] = {}
    for path in paths:
        for entry in json.loads(path.read_text()):
            trace = found.setdefault(entry["id"], {"times": {}})
            trace["times"] |= {stamp["name"]: stamp["ns"] for stamp in entry.pop("timestamps", [])}
            trace |= entry
    return list(found.values())


async def test_a_trace_has_tritons_events(traced: Callable[..., Tracing], tmp_path: Path) -> None:
    """Times of one clock, each behind the one before; the file is one JSON array once all is over."""
    tracing = traced()
    [answer] = run(tracing, id="a b")
    assert isinstance(answer, InferResponse)
    await tracing.close()
    [trace] = traces(tmp_path / "t.json")
    assert (trace["id"], trace["model_name"], trace["model_version"], trace["request_id"]) == (1, "m", 3, "a b")
    times = trace["times"]
    assert list(times) == [
        "REQUEST_START",
        "QUEUE_START",
        "COMPUTE_START",
        "COMPUTE_INPUT_END",
        "COMPUTE_OUTPUT_START",
        "COMPUTE_END",
        "INFER_RESPONSE_COMPLETE",
        "REQUEST_END",
    ]
    assert list(times.values())[:6] == [100, 200, 210, 230, 260, 300]
    assert times["INFER_RESPONSE_COMPLETE"] <= times["REQUEST_END"]


async def test_a_failed_request_has_a_trace(traced: Callable[..., Tracing], tmp_path: Path) -> None:
    """It ends early, and says why in public words alone."""
    tracing = traced()
    run(tracing, outcome=QueueFull("m", 5))
    run(tracing, outcome=ValueError("a secret"))
    await tracing.close()
    full, broken = traces(tmp_path / "t.json")
    assert list(full["times"]) == ["REQUEST_START", "QUEUE_START", "REQUEST_END"]
    assert "max_queue_size is 5" in full["error"]
    assert broken["error"] == "internal error"


@pytest.mark.parametrize(
    ("settings", "asked", "written"),
    [({"rate": 3}, 10, 3), ({"rate": 1, "count": 4}, 10, 4), ({"rate": 2, "count": 2}, 10, 2), ({"count": 0}, 5, 0)],
)
async def test_rate_and_count(
    traced: Callable[..., Tracing], tmp_path: Path, settings: dict[str, int], asked: int, written: int
) -> None:
    """Every so many-th request, and no more than so many; all are answered."""
    tracing = traced(**settings)
    assert len(run(tracing, asked)) == asked
    await tracing.close()
    path = tmp_path / "t.json"
    assert len(traces(path) if path.exists() else []) == written


async def test_a_log_frequency_makes_whole_files(traced: Callable[..., Tracing], tmp_path: Path) -> None:
    """So many traces each; what is left is written at the end, or when the settings change."""
    tracing = traced(log_frequency=2)
    run(tracing, 5)
    tracing.update({"log_frequency": ["3"]})
    run(tracing, 4)
    await tracing.close()
    counts = [len(traces(tmp_path / f"t.json.{index}")) for index in range(5)]
    assert (counts, (tmp_path / "t.json").exists()) == ([2, 2, 1, 3, 1], False)
    ids = [trace["id"] for trace in traces(*(tmp_path / f"t.json.{index}" for index in range(5)))]
    assert ids == list(range(1, 10))


async def test_what_ends_behind_a_change_is_written(traced: Callable[..., Tracing], tmp_path: Path) -> None:
    """A request that was chosen before tracing was switched off still has its trace."""
    tracing = traced(log_frequency=10)
    request = InferRequest("m", [], on_settle=lambda *_: None, received_ns=1)
    tracing.watch((request,), "m", "1")
    tracing.update({"trace_level": ["OFF"]})
    assert not tracing.active
    request.settle(InferResponse("m", "1", []))
    await tracing.close()
    assert len(traces(tmp_path / "t.json.0")) == 1


async def test_a_model_has_its_own_settings_until_they_are_cleared(traced: Callable[..., Tracing]) -> None:
    """What is set for a model stays when the others' changes, all else follows; None gives it back."""
    tracing = traced(level="OFF", rate=1000)
    assert not tracing.active
    tracing.update({"trace_rate": ["5"]}, "m")
    tracing.update({"trace_rate": ["9"], "trace_count": ["100"]})
    assert (tracing.told("m")["trace_rate"], tracing.told("m")["trace_count"]) == (["5"], ["100"])
    tracing.update({"trace_level": ["TIMESTAMPS"]}, "m")
    assert (tracing.told()["trace_level"], tracing.active) == (["OFF"], True)
    tracing.update({"trace_rate": None}, "m")
    assert tracing.told("m")["trace_rate"] == ["9"]
    tracing.update({"trace_level": None}, "m")
    assert (tracing.told("m"), tracing.active) == (tracing.told(), False)
    tracing.update({"trace_rate": None, "trace_count": None})
    assert {name: value for name, value in tracing.told().items() if name != "trace_file"} == OFF
    await tracing.close()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"trace_file": ["x"]}, "trace file location can not be updated through network protocol"),
        ({"trace_mode": ["opentelemetry"]}, "trace_mode"),
        ({"trace_level": ["TENSORS"]}, "TENSORS is not supported"),
        ({"trace_level": ["FOO"]}, "must be OFF or TIMESTAMPS"),
        ({"trace_level": ["OFF", "TIMESTAMPS"]}, "Expect only one trace level 'OFF' is specified"),
        ({"trace_rate": ["abc"]}, "Unable to parse 'trace_rate'"),
        ({"trace_rate": ["9" * 5000]}, "value is out of range [ 0, 4294967295 ]"),
        ({"trace_rate": ["1", "2"]}, "expect only 1 value for 'trace_rate'"),
        ({"trace_rate": ["0"]}, "sample rate must be non-zero"),
        ({"trace_count": ["-2"]}, "Unable to parse 'trace_count'"),
        ({"log_frequency": [str(LONGEST_LOG + 1)]}, "Unable to parse 'log_frequency'"),
        ({"trace_rate": ["7"], "bogus": ["1"]}, "there is no trace setting 'bogus'"),
    ],
)
async def test_what_can_not_be_set_is_refused_by_name(
    traced: Callable[..., Tracing], changes: dict[str, list[str]], words: str
) -> None:
    """Nothing is accepted in silence, and nothing of a request with a mistake is done."""
    tracing = traced()
    before = tracing.told()
    for model in ("", "m"):
        with pytest.raises(ServingError) as caught:
            tracing.update(changes, model)
        assert words in caught.value.public_message
        assert isinstance(caught.value, InvalidRequest | Unsupported)
    assert (tracing.told(), tracing.told("m")) == (before, before)
    await tracing.close()


async def test_without_a_file_nothing_is_traced() -> None:
    """The file is chosen by whoever starts the server; without one the level can't be set."""
    tracing = Tracing(TraceSettings())
    with pytest.raises(InvalidRequest, match="--trace-file"):
        tracing.update({"trace_level": ["TIMESTAMPS"]})
    tracing.update({"trace_rate": ["0"]})
    await tracing.close()
    with pytest.raises(InvalidRequest, match="--trace-file"):
        Tracing(TraceSettings(level="TIMESTAMPS"))


async def test_a_file_that_can_not_be_written_costs_no_answer(caplog: pytest.LogCaptureFixture, tmp_path: Path) -> None:
    """It is logged, and requests are answered as ever."""
    tracing = Tracing(TraceSettings(file=str(tmp_path / "no" / "folder"), level="TIMESTAMPS", rate=1, log_frequency=1))
    assert len(run(tracing, 3)) == 3
    await tracing.close()
    assert "traces can't be written" in caplog.text
