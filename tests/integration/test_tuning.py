"""`forwardpass tune` on a real model: servers are started, asked, ended; the files are written."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest
from typer.testing import CliRunner

from loadtests.cores import cores
from server.app import check
from server.cli import create_app
from server.environment import load_settings
from server.load.limits import Limits
from server.repository.config_text import parse_text
from server.tuning import run
from server.tuning.choices import Choice
from server.tuning.search import Trial, Tried
from server.tuning.trial import Bench
from tests.e2e.conftest import REPOSITORY

pytestmark = pytest.mark.e2e


def tuned(*arguments: str) -> tuple[int, str]:
    done = CliRunner().invoke(create_app(), ["tune", *arguments])
    return done.exit_code, done.output


def test_a_model_is_tuned_within_its_time(tmp_path: Path) -> None:
    """The config that is there is measured, and what there is time for; the table says so. The objective is one that a
    machine with other work holds too."""
    shutil.copytree(REPOSITORY / "breast_cancer", tmp_path / "breast_cancer")
    before = (tmp_path / "breast_cancer" / "config.pbtxt").read_text()
    flags = ["--model-repository", str(tmp_path), "--slo", "p50=500ms,refused=1", "--budget", "1", "--window", "0.1"]
    code, said = tuned("breast_cancer", "--call", "infer", *flags)
    assert code == 0, said
    table = (tmp_path / "breast_cancer" / "tuning.md").read_text()
    assert "breast_cancer: infer within p50 <= 500 ms" in table
    assert "workers 1, instances 1, threads auto" in table
    assert "requests/s" in said
    assert (tmp_path / "breast_cancer" / "config.pbtxt").read_text() == before


def test_a_search_that_is_ended_leaves_the_config_and_no_server(tmp_path: Path) -> None:
    """In the middle of the second configuration: what was tried is in the table, and nothing is applied."""
    folder, scratch = tmp_path / "models" / "breast_cancer", tmp_path / "scratch"
    shutil.copytree(REPOSITORY / "breast_cancer", folder)
    scratch.mkdir()
    before = {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}
    flags = ["--model-repository", str(folder.parent), "--slo", "p50=1us", "--window", "0.1", "--apply"]
    command = [sys.executable, "-m", "server", "tune", "breast_cancer", "--call", "infer", *flags]
    environment = {**os.environ, "TMPDIR": str(scratch)}
    with subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True) as tuning:
        assert tuning.stderr is not None
        first = tuning.stderr.readline()
        # The log of the next one's server says where it listens.
        while not any("REST" in log.read_text() for log in scratch.glob("*/log")):
            assert tuning.poll() is None
            time.sleep(0.02)
        tuning.terminate()
        tuning.stderr.read()
    assert first.startswith("workers 1, instances 1, threads auto")
    assert tuning.returncode == 130
    assert list(scratch.glob("forwardpass-tune-*")) == []
    assert [one for one in commands() if str(scratch) in one] == []
    table = (folder / "tuning.md").read_text()
    assert "workers 1, instances 1, threads auto" in table
    assert {name: (folder / name).read_bytes() for name in before} == before


def commands() -> list[str]:
    """Of all processes."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with suppress(OSError):  # It has ended meanwhile.
            found.append(path.read_bytes().decode(errors="replace"))
    return found


def test_a_certified_model_is_served_with_what_was_tuned(tmp_path: Path) -> None:
    """Its trials are, by copies whose originals stay; and the model itself once the best is applied."""
    shutil.copytree(REPOSITORY / "fraud", tmp_path / "fraud")
    folder = tmp_path / "fraud"
    manifest = (folder / "manifest.json").read_text()
    config = parse_text((folder / "config.pbtxt").read_text(), "fraud")
    bench = Bench(folder, config, [], Limits({99.0: 20.0}), 0.1, cores(), lambda: False)
    served: list[Trial] = []
    bench.attempt(Choice(1, 2, 1, 64, 500), served.append)
    assert len(served) == 1
    assert (folder / "manifest.json").read_text() == manifest

    asked = run.Asked(folder, bench.limits, 1.0, "infer", 0.1, cores(), cores(), apply=True)
    (folder / run.TUNED_FILE).write_text("what lies beside is no part of the model")
    first = Choice(1, 1, 0, 256, -1)
    found = [Tried(first, 1.0, None, "", True), Tried(replace(first, instances=2), 2.0, None, "", True)]
    run.write(asked, "infer", config, found)
    assert "count: 2" in (folder / "config.pbtxt").read_text()
    (entry,) = check(load_settings({"repository": {"path": [str(tmp_path)]}}))
    assert (entry.state, entry.reason) == ("READY", "")


@pytest.mark.parametrize(
    ("arguments", "code", "named"),
    [
        (["digits", "--slo", "quick"], 2, "--slo: 'quick' is none of"),
        (["digits", "--call", "sing"], 2, "--call"),
        (["nobody"], 1, "nobody"),
    ],
)
def test_what_is_asked_wrongly_is_said(arguments: list[str], code: int, named: str) -> None:
    """Before anything is started."""
    status, said = tuned(*arguments, "--model-repository", str(REPOSITORY))
    assert status == code
    assert named in said


def test_a_config_that_can_not_be_served_is_no_traceback(tmp_path: Path) -> None:
    """The server's own reason is told."""
    shutil.copytree(REPOSITORY / "fraud", tmp_path / "fraud")
    (tmp_path / "fraud" / "1" / "model.onnx").write_bytes(b"no model")
    code, said = tuned("fraud", "--model-repository", str(tmp_path))
    assert code == 1
    assert "fraud" in said
    assert "model.onnx" in said
