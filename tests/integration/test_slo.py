"""Locust against a real server: an SLO that is held, one that is not, and what each loop sees of a stall."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
import yaml

from loadtests.cores import cores
from loadtests.process import Server, serving
from loadtests.slo.run import main
from tests.e2e.conftest import REPOSITORY

pytestmark = pytest.mark.e2e

ALL = ("rest infer breast_cancer", "rest predict digits", "grpc infer fraud", "grpc predict fraud")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with serving(REPOSITORY, tmp_path_factory.mktemp("server"), tuple(cores())) as running:
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


def test_every_kind_is_asked_and_answered_rightly(server: Server, tmp_path: Path) -> None:
    """REST and gRPC, infer and predict: each answer is that of the golden file, and all reports are written."""
    assert held(server, tmp_path, [objective(kind, min_answers_per_s=5) for kind in ALL], 5) == 0

    told = json.loads((tmp_path / "load.json").read_text())
    assert told["verdict"] == "HELD"
    assert set(told["kinds"]) == set(ALL)
    for kind in told["kinds"].values():
        assert kind["right"] == kind["asked"] > 50
    assert failures(tmp_path) == "0"
    assert (tmp_path / "load.md").read_text().rstrip().endswith("HELD: all limits")
    assert "<svg" in (tmp_path / "load.html").read_text()


def test_an_objective_that_is_not_held_fails_the_run(server: Server, tmp_path: Path) -> None:
    """Nobody answers within a microsecond."""
    broken = objective(ALL[0], latency_ms={"p50": 0.001})
    assert held(server, tmp_path, [broken], 4) == 1
    assert failures(tmp_path) == "1"


def test_kinds_are_shared_out_over_generator_processes(server: Server, tmp_path: Path) -> None:
    """A master adds up what two workers recorded: nothing is lost."""
    assert held(server, tmp_path, [objective(kind) for kind in ALL[:2]], 5, "--processes", "2") == 0
    kinds = json.loads((tmp_path / "load.json").read_text())["kinds"]
    assert set(kinds) == set(ALL[:2])
    assert all(kind["right"] == kind["asked"] > 50 for kind in kinds.values())


def test_a_server_that_stalls_is_seen_by_the_open_loop_alone(server: Server, tmp_path: Path) -> None:
    """It stands still for 0.6 s in every 3: a fifth of those who come on time wait, hardly one who waits politely."""
    p99 = {}
    for loop in ("open", "closed"):
        folder = tmp_path / loop
        folder.mkdir()
        with stalling(server.pid):
            held(server, folder, [objective("rest infer fraud", rate=100)], 9, "--loop", loop)
        kind = json.loads((folder / "load.json").read_text())["kinds"]["rest infer fraud"]
        p99[loop] = kind["p99_ms"]

    assert p99["open"] > 400
    assert p99["closed"] < p99["open"] / 2


class stalling:  # noqa: N801 - used as a statement
    """The process stands still for 0.6 s every 3 s."""

    def __init__(self, pid: int) -> None:
        self._pid = pid
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._stall)

    def _stall(self) -> None:
        while not self._over.wait(2.4):
            os.kill(self._pid, signal.SIGSTOP)
            time.sleep(0.6)
            os.kill(self._pid, signal.SIGCONT)

    def __enter__(self) -> None:
        self._thread.start()

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()


@pytest.mark.parametrize(
    ("kind", "named"), [("rest predict nobody", "nobody"), ("rest sing digits", "objectives.0.kind")]
)
def test_what_can_not_be_asked_is_said_at_once(
    server: Server, tmp_path: Path, kind: str, named: str, capfd: pytest.CaptureFixture[str]
) -> None:
    """Before anything is sent; the exit code is not that of a verdict."""
    assert held(server, tmp_path, [objective(kind)], 60) not in (0, 2)
    assert named in capfd.readouterr().err
