"""SIGKILL in the middle of training, for real: resumed, the run ends where an unbroken one ends."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
EPOCHS = 12

pytestmark = pytest.mark.training


def command(run: Path, *flags: str) -> list[str]:
    recipe = ["train", "tabular-classification", "--data", "breast_cancer", "--name", "killed"]
    options = ["--run-dir", str(run), "--no-publish", "--epochs", str(EPOCHS), "--patience", str(EPOCHS)]
    return [sys.executable, "-m", "exporter", *recipe, *options, *flags]


def train(run: Path, *flags: str) -> None:
    result = subprocess.run(command(run, *flags), cwd=ROOT, capture_output=True, text=True, timeout=200)
    assert result.returncode == 0, result.stderr


def test_a_killed_run_resumes_to_the_same_model(tmp_path: Path) -> None:
    """Same test metrics and the same bytes of ONNX as a run that nobody killed."""
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    train(whole)

    process = subprocess.Popen(command(broken), cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    until = time.monotonic() + 120
    while not (broken / "checkpoint.pt").exists():
        assert process.poll() is None, "the run ended before it could be killed"
        assert time.monotonic() < until
        time.sleep(0.005)
    process.kill()
    process.wait(10)
    assert not (broken / "evaluation.json").exists()
    train(broken, "--resume")

    assert json.loads((broken / "evaluation.json").read_text()) == json.loads((whole / "evaluation.json").read_text())
    assert (broken / "model.onnx").read_bytes() == (whole / "model.onnx").read_bytes()
