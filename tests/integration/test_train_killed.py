"""SIGKILL in the middle of training, for real: resumed, the run ends where an unbroken one ends."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from exporter.cli import commands
from tests.support.tables import write_csv

ROOT = Path(__file__).parents[2]
EPOCHS = 8
KILLED = """
import os, signal, sys
from exporter.cli import commands

written = []

def kill(event, args):
    if event == "os.rename" and os.fspath(args[1]).endswith("checkpoint.pt"):
        written.append(args)
        if len(written) == 4:
            os.kill(os.getpid(), signal.SIGKILL)

sys.addaudithook(kill)
commands()
"""
"""The command, killed as it is about to put its fourth checkpoint in the place of the third."""

pytestmark = [
    pytest.mark.training,
    # Lightning 2.6 trips over a deprecation in PyTorch 2.13; the exporter silences it for people, not for pytest.
    pytest.mark.filterwarnings("ignore:.*LeafSpec.*:FutureWarning"),
]


def arguments(run: Path, data: Path) -> list[str]:
    recipe = ["train", "tabular-classification", "--data", str(data), "--target", "label", "--name", "killed"]
    return [*recipe, "--run-dir", str(run), "--no-publish", "--epochs", str(EPOCHS), "--patience", str(EPOCHS)]


def train(run: Path, data: Path, *flags: str) -> None:
    result = CliRunner().invoke(commands, [*arguments(run, data), *flags])
    assert result.exit_code == 0, result.output


def test_a_killed_run_resumes_to_the_same_model(tmp_path: Path) -> None:
    """Same test metrics and the same bytes of ONNX as a run that nobody killed."""
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    data = write_csv(tmp_path / "data.csv", 300, rare=False)
    command = [sys.executable, "-c", KILLED, *arguments(broken, data)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == -signal.SIGKILL, done.stderr[-3000:]
    assert {path.name for path in broken.glob("*checkpoint*")} == {"checkpoint.pt", ".checkpoint.pt.partial"}
    assert not (broken / "evaluation.json").exists()

    train(broken, data, "--resume")
    train(whole, data)
    assert json.loads((broken / "evaluation.json").read_text()) == json.loads((whole / "evaluation.json").read_text())
    assert (broken / "model.onnx").read_bytes() == (whole / "model.onnx").read_bytes()
