"""Locust against a real server: an SLO that is held, one that is not, streams, and its page over two workers."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import httpx
import pytest
import yaml

from loadtests import capacity
from loadtests.cores import cores
from loadtests.process import Server, family, serving
from loadtests.scripted import scripted
from loadtests.slo import run
from loadtests.slo.run import main
from loadtests.slo.verdict import MISUSED
from server.local_triton.process import free_ports
from server.repository.golden import write_golden
from tests.e2e.conftest import REPOSITORY
from tests.support.writing import alone, elements, loaded, said
from tests.support.writing_plane import write_model

pytestmark = pytest.mark.e2e

ROOT = Path(__file__).parents[2]
ALL = ("rest infer breast_cancer", "rest predict digits", "grpc infer fraud", "grpc predict fraud")


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Those that are asked, and one that writes text."""
    root = tmp_path_factory.mktemp("models")
    for name in {kind.split()[-1] for kind in ALL}:
        shutil.copytree(REPOSITORY / name, root / name)
    write_model(root)
    asked = said("The server", stream=False)
    del asked["stream"]
    with loaded() as instance:
        told = alone(instance, asked)
    write_golden(root / "writer", "1", asked, {"text_output": elements(told.encode())})
    return root


@pytest.fixture(scope="module")
def server(models: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with serving(models, tmp_path_factory.mktemp("server"), tuple(cores())) as running:
        yield running


def held(server: Server, folder: Path, objectives: list[dict[str, Any]], seconds: float, *flags: str) -> int:
    """The exit code of a run; its reports are in `folder`."""
    slo = folder / "slo.yaml"
    slo.write_text(yaml.safe_dump({"warm_up_s": 2, "window_s": 1, "max_lag_ms": 2000, "objectives": objectives}))
    urls = ["--rest", f"http://{server.http}", "--grpc", f"grpc://{server.grpc}"]
    return main(["--seconds", f"{seconds}", "--slo", str(slo), "--out", str(folder), *urls, *flags])


def failures(folder: Path) -> str | None:
    return ElementTree.parse(folder / "junit.xml").getroot().get("failures")  # noqa: S314 - our own file


def objective(kind: str, rate: float = 20, **limits: Any) -> dict[str, Any]:
    return {"kind": kind, "rate": rate, "latency_ms": {"p50": 10_000}, **limits}


def test_every_kind_is_asked_and_answered_rightly(
    server: Server, models: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """REST and gRPC, infer and predict: each answer is that of the golden file, and all reports are written. A chat has
    the same text every time, and is held to its first token and to the time between tokens."""
    kinds = [objective(kind, min_answers_per_s=5) for kind in ALL]
    limits = {"first_answer_ms": {"p50": 5_000}, "between_answers_ms": {"p50": 2_500}}
    kinds.append(objective("rest chat writer", 5, **limits, optional=True))
    kinds.append(objective("rest chat nobody", 5, **limits, optional=True))
    assert held(server, tmp_path, kinds, 5, "--model-repository", str(models)) == 0

    shown = capfd.readouterr()
    assert shown.out.endswith("HELD: all limits\n")
    assert "Aggregated" not in shown.out + shown.err, "Locust's own summary would stand below the verdict"
    told = json.loads((tmp_path / "load.json").read_text())
    assert told["verdict"] == "HELD"
    assert set(told["kinds"]) == {*ALL, "rest chat writer"}
    for name, kind in told["kinds"].items():
        assert kind["right"] == kind["asked"] > (50 if name in ALL else 5)
    chat = told["kinds"]["rest chat writer"]
    assert chat["first_p50_ms"] > chat["between_p50_ms"] > 0
    assert failures(tmp_path) == "0"
    assert (tmp_path / "load.md").read_text().rstrip().endswith("HELD: all limits")
    assert "<svg" in (tmp_path / "load.html").read_text()


def test_an_objective_that_is_not_held_fails_the_run(server: Server, tmp_path: Path) -> None:
    """Nobody answers within a microsecond, not even to callers who wait."""
    broken = objective(ALL[0], latency_ms={"p50": 0.001})
    assert held(server, tmp_path, [broken], 3, "--loop", "closed") == 1
    assert failures(tmp_path) == "1"
    assert json.loads((tmp_path / "load.json").read_text())["loop"] == "closed"


def test_the_other_generator_asks_the_same(server: Server, tmp_path: Path) -> None:
    """server/load in Locust's place: the same file, the same reports."""
    kinds = [objective(kind, min_answers_per_s=5, rows={1: 0.5, 3: 0.5}) for kind in ALL]
    flags = ["--generator", "wire", "--metrics", server.metrics_url, "--price-per-hour", "0.36"]
    assert held(server, tmp_path, kinds, 3, *flags) == 0
    told = json.loads((tmp_path / "load.json").read_text())
    assert set(told["kinds"]) == set(ALL)
    assert told["served"]["fraud"]["success"] == sum(told["kinds"][kind]["right"] for kind in ALL if "fraud" in kind)
    assert "money" in " ".join(told["for_1000"])


def test_streams_a_mix_of_sizes_and_a_trace_are_asked_together(tmp_path: Path) -> None:
    """Each answer of a stream is checked, and timed: the first one and those between. The trace is sent as it is."""
    with scripted(tmp_path, tuple(cores()), 5) as (running, repository):
        stream = json.dumps({"inputs": {"x": [[3]]}, "responses": [{"y": [[number]]} for number in (3, 4, 5)]})
        (tmp_path / "stream.jsonl").write_text(stream)
        trace = [json.dumps({"at_s": at / 20, "golden": [at % 8]}) for at in range(100)]
        (tmp_path / "trace.jsonl").write_text("\n".join(trace))
        limits = {"rate": 5, "replay": "stream.jsonl", "first_answer_ms": {"p50": 5_000}}
        kinds = [
            {"kind": "grpc stream counting", **limits, "between_answers_ms": {"p50": 2_500}},
            {"kind": "rest stream counting", **limits, "between_answers_ms": {"p50": 2_500}},
            objective("rest infer scripted", rows={1: 0.5, 4: 0.5}),
            {"kind": "grpc infer scripted", "arrivals": "trace", "replay": "trace.jsonl"},
        ]
        flags = ["--model-repository", str(repository), "--metrics", running.metrics_url]
        assert held(running, tmp_path, kinds, 4, *flags) == 0

    told = json.loads((tmp_path / "load.json").read_text())
    for kind in ("grpc stream counting", "rest stream counting"):
        one = told["kinds"][kind]
        assert one["right"] == one["asked"] > 5
        assert one["first_p50_ms"] >= 4
        assert one["between_p50_ms"] >= 4
    assert told["kinds"]["grpc infer scripted"]["asked"] == 80
    assert "scripted" in told["served"]
    assert told["stages"]["rest infer scripted"]["calls"] >= 1
    page = (tmp_path / "load.html").read_text()
    for words in ("first answer p50", "Stages in the server", "own counts beside"):
        assert words in page


def test_the_web_page_drives_two_workers_and_nothing_is_lost_on_the_way(server: Server, tmp_path: Path) -> None:
    """A master with Locust's page, and two workers: kinds are shared out, and what they recorded is added up."""
    slo = tmp_path / "slo.yaml"
    slo.write_text(
        yaml.safe_dump(
            {"warm_up_s": 1, "window_s": 1, "max_lag_ms": 2000, "objectives": [objective(kind) for kind in ALL[:2]]}
        )
    )
    port, bind = free_ports(2)
    environment = {
        **os.environ,
        "SLO": str(slo),
        "REST": f"http://{server.http}",
        "SECONDS": "3",
        "REPORTS": str(tmp_path),
        "PYTHONWARNINGS": "ignore",
    }
    command = [sys.executable, "-m", "locust", "-f", "loadtests/locustfile.py", "--processes", "2"]
    command += ["--web-host", "127.0.0.1", "--web-port", str(port), "--master-bind-port", str(bind)]
    command += ["--master-port", str(bind)]
    with (tmp_path / "log").open("w") as log:
        locust = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=log, stderr=log)
    try:
        page = f"http://127.0.0.1:{port}"
        wait(lambda: httpx.get(f"{page}/stats/requests").json()["workers"][1]["state"] == "ready")
        assert httpx.get(page).text.lower().startswith("<!doctype html")
        httpx.post(f"{page}/swarm", data={"user_count": 2, "spawn_rate": 2}).raise_for_status()
        # Each user sends what is due in three seconds, and has ended then.
        wait(lambda: httpx.get(f"{page}/stats/requests").json()["user_count"] == 2)
        wait(lambda: httpx.get(f"{page}/stats/requests").json()["user_count"] == 0)
        seen = httpx.get(f"{page}/stats/requests").json()["stats"]
        httpx.get(f"{page}/stop")
    finally:
        locust.send_signal(signal.SIGTERM)
        locust.wait(30)
    kinds = json.loads((tmp_path / "load.json").read_text())["kinds"]
    assert set(kinds) == set(ALL[:2])
    assert all(kind["right"] == kind["asked"] > 20 for kind in kinds.values())
    total = next(one for one in seen if one["name"] == "Aggregated")
    assert total["num_failures"] == 0
    assert total["num_requests"] == sum(kind["asked"] for kind in kinds.values())
    assert locust.returncode in (0, 1)


LATE = """
import time, gevent
gevent.get_hub().loop
began = time.monotonic()
from loadtests.locustfile import events
while time.monotonic() < began + 0.5:
    pass
events.init.fire(environment=None, runner=None, web_ui=None)
began = time.monotonic()
gevent.spawn_later(0.4, lambda: None).join()
print(time.monotonic() - began)
"""


def test_what_locust_waits_for_begins_once_all_is_imported() -> None:
    """Its --run-time would be over by as much earlier as that took: gevent counts from the last turn of its loop."""
    environment = {**os.environ, "PYTHONWARNINGS": "ignore"}
    told = subprocess.run(
        [sys.executable, "-c", LATE], cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True, check=True
    )
    assert float(told.stdout) >= 0.39


def wait(condition: Callable[[], bool], seconds: float = 30) -> None:
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        with suppress(httpx.HTTPError, LookupError):
            if condition():
                return
        time.sleep(0.2)
    raise AssertionError("it did not come to that in time")


@pytest.mark.parametrize(
    ("kind", "flags", "named"),
    [("rest predict nobody", (), "nobody"), ("grpc infer fraud", ("--grpc", ""), "url: '' is not of the form grpc://")],
    ids=["no model", "no address, and none is guessed where another is given"],
)
def test_what_can_not_be_asked_is_said_at_once(
    server: Server, tmp_path: Path, kind: str, flags: Sequence[str], named: str, capfd: pytest.CaptureFixture[str]
) -> None:
    """Before anything is sent; the exit code is not that of a verdict."""
    assert held(server, tmp_path, [objective(kind)], 60, *flags) == MISUSED
    assert named in capfd.readouterr().err


@pytest.mark.parametrize(
    ("command", "flags", "refusal"),
    [
        (run.main, ["--generator", "wire", "--loop", "closed"], "the open loop alone"),
        (run.main, ["--generator", "wire", "--processes", "2"], "it is one process"),
        (run.main, ["--metrics", "http://127.0.0.1:1/metrics"], "neither is given"),
        (capacity.main, ["--metrics", "http://127.0.0.1:1/metrics"], "neither is given"),
        (capacity.main, ["--cores", "4096"], "--cores: there are"),
    ],
)
def test_flags_that_do_not_go_together_are_refused(
    command: Callable[[Sequence[str]], int], flags: list[str], refusal: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Before a server is started: what they ask for would not be done."""
    with pytest.raises(SystemExit):
        command(flags)
    assert refusal in capsys.readouterr().err


@pytest.mark.parametrize(("module", "processes"), [("loadtests.slo.run", 2), ("loadtests.capacity", 1)])
def test_a_signal_that_ends_a_run_ends_what_it_has_started(module: str, processes: int, tmp_path: Path) -> None:
    """The server that it asks, and Locust."""
    repository = tmp_path / "models"
    shutil.copytree(REPOSITORY / "fraud", repository / "fraud")
    slo = tmp_path / "slo.yaml"
    slo.write_text(yaml.safe_dump({"objectives": [objective("grpc infer fraud")]}))
    command = [sys.executable, "-m", module, "--slo", str(slo), "--model-repository", str(repository)]
    with (tmp_path / "log").open("w") as log:
        run = subprocess.Popen(command, cwd=ROOT, stdout=log, stderr=log)
        try:
            wait(lambda: len(family(run.pid)) > processes, 60)
            started = family(run.pid)[1:]
            run.terminate()
            assert run.wait(60) == 128 + signal.SIGTERM
        finally:
            run.kill()
    assert [pid for pid in started if Path(f"/proc/{pid}").exists()] == []
