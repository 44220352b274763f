"""Trace and log settings of a running server, by Triton's own clients, over every transport."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import httpx
import numpy as np
import pytest
import tritonclient.grpc
import tritonclient.http
from tritonclient.utils import InferenceServerException

from tests.e2e.conftest import ServerProcess, StartServer

pytestmark = pytest.mark.e2e

VIA = {
    "grpc": ("http2", tritonclient.grpc),
    "grpc by grpcio": ("grpcio", tritonclient.grpc),
    "rest": ("http2", tritonclient.http),
}
MODEL = "breast_cancer"


class Asking:
    """A client, the server it asks, and the answers as plain values."""

    def __init__(self, server: ServerProcess, api: ModuleType) -> None:
        url = server.grpc if api is tritonclient.grpc else server.http.removeprefix("http://")
        self.server = server
        self.api = api
        self.client = api.InferenceServerClient(url)

    def trace(self, settings: dict[str, Any] | None = None, model: str | None = None) -> dict[str, list[str]]:
        if settings is None:
            answer = self.client.get_trace_settings(model)
        else:
            answer = self.client.update_trace_settings(model, settings)
        if isinstance(answer, dict):
            assert isinstance(answer["trace_level"], list)
            assert all(isinstance(value, str) for name, value in answer.items() if name != "trace_level")
            return {name: value if isinstance(value, list) else [value] for name, value in answer.items()}
        return {name: list(setting.value) for name, setting in answer.settings.items()}

    def logs(self, settings: dict[str, Any] | None = None) -> dict[str, Any]:
        answer = self.client.get_log_settings() if settings is None else self.client.update_log_settings(settings)
        if isinstance(answer, dict):
            return answer
        return {name: getattr(s, s.WhichOneof("parameter_choice")) for name, s in answer.settings.items()}

    def infer(self) -> None:
        tensor = self.api.InferInput("features", [1, 30], "FP32")
        self.client.infer(MODEL, [tensor.set_data_from_numpy(np.zeros((1, 30), np.float32))])


@pytest.fixture(params=VIA.values(), ids=VIA.keys())
def asking(request: pytest.FixtureRequest, start_server: StartServer, tmp_path: Path) -> Iterator[Asking]:
    transport, api = request.param
    server = start_server("--grpc-transport", transport, "--trace-file", str(tmp_path / "trace.json"))
    made = Asking(server, api)
    yield made
    made.client.close()


def test_traces_are_switched_on_and_written(asking: Asking, tmp_path: Path) -> None:
    """For one model, by a client, with infer and predict; each file has as many traces as was asked for."""
    assert asking.trace() == {
        "trace_level": ["OFF"],
        "trace_rate": ["1000"],
        "trace_count": ["-1"],
        "log_frequency": ["0"],
        "trace_file": [str(tmp_path / "trace.json")],
        "trace_mode": ["triton"],
    }
    asking.infer()
    asked = {"trace_level": ["TIMESTAMPS"], "trace_rate": "1", "log_frequency": "2"}
    assert asking.trace(asked, MODEL)["trace_rate"] == ["1"]
    assert asking.trace()["trace_level"] == ["OFF"]
    for _ in range(3):
        asking.infer()
    row = {"inputs": [[0.0] * 30]}
    assert httpx.post(f"{asking.server.http}/v2/models/{MODEL}/predict", json=row).status_code == 200
    cleared = asking.trace({"trace_level": None, "trace_rate": None, "log_frequency": None}, MODEL)
    assert cleared == asking.trace()
    asking.infer()
    assert asking.server.terminate() == 0
    files = sorted(path.name for path in tmp_path.glob("trace.json*"))
    assert files == ["trace.json.0", "trace.json.1"]
    for name in files:
        entries = json.loads((tmp_path / name).read_text())
        assert [entry["model_name"] for entry in entries if "model_name" in entry] == [MODEL, MODEL]
        times = [stamp["ns"] for entry in entries for stamp in entry.get("timestamps", ()) if entry["id"] % 2]
        assert times == sorted(times)
        assert len(times) == 8


def test_logs_are_changed(asking: Asking) -> None:
    """What a client is told is a detail: written while the verbose level is above 0."""
    assert asking.logs() == {
        "log_file": "",
        "log_info": True,
        "log_warning": True,
        "log_error": True,
        "log_verbose_level": 0,
        "log_format": "default",
    }

    def fail(name: str) -> None:
        with pytest.raises(InferenceServerException):
            asking.client.get_model_metadata(name)

    fail("before")
    assert asking.logs({"log_verbose_level": 1, "log_format": "ISO8601"})["log_verbose_level"] == 1
    fail("between")
    asking.logs({"log_verbose_level": 0})
    fail("after")
    log = asking.server.log.read_text()
    assert [name in log for name in ("'before'", "'between'", "'after'")] == [False, True, False]
    [line] = [line for line in log.splitlines() if "'between'" in line]
    assert line[10] == "T"


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda a: a.trace({"trace_file": "x"}), "trace file location can not be updated through network protocol"),
        (lambda a: a.trace({"trace_rate": "abc"}), "Unable to parse 'trace_rate'"),
        (lambda a: a.trace({"bogus": "1"}), "there is no trace setting 'bogus'"),
        (lambda a: a.trace({}, "nobody"), "Request for unknown model: 'nobody' is not found"),
        (lambda a: a.logs({"log_file": "x"}), "log file location can not be updated through network protocol"),
        (lambda a: a.logs({"log_format": "x"}), "invalid argument for log_format"),
        (lambda a: a.logs({"bogus": True}), "there is no log setting 'bogus'"),
    ],
)
def test_clients_see_tritons_words(asking_all: list[Asking], call: Any, words: str) -> None:
    """Over every transport the same error."""
    for asking in asking_all:
        with pytest.raises(InferenceServerException) as caught:
            call(asking)
        assert words in str(caught.value.message())


@pytest.fixture(scope="module")
def asking_all(server: ServerProcess) -> list[Asking]:
    return [Asking(server, api) for api in (tritonclient.grpc, tritonclient.http)]
