"""Several processes train one model: they start whatever was computed before, and what fails is told and ended."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from exporter import run
from exporter.config import make_config
from exporter.errors import RunError, UsageError
from exporter.recipes.base import Hyperparameters
from tests.support.models import PointsTask

ROOT = Path(__file__).parents[2]
WHAT_TO_DO = "; go on with: train --resume, or train with --devices 1"

pytestmark = pytest.mark.training


def test_two_processes_train_or_say_why_not(tmp_path: Path) -> None:
    """Forked after the first has computed with threads, which once made the others wait for ever; one that fails or
    stands still ends all of them, with an error that says which, why, and what to do."""
    # With this variable Lightning leaves the number of threads as it is.
    environment = os.environ | {"OMP_NUM_THREADS": "2"}
    command = [sys.executable, "-m", "tests.support.training_together", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=180)
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["finite"]
    assert [epoch["epoch"] for epoch in found["history"]] == [0, 1]
    # Whose end is seen first on a busy machine: that of the one that failed, or of the one that it left alone.
    failed = r"process 1 .*: OSError: the disk is gone|process 0 .*: RuntimeError: .*"
    assert re.fullmatch(f"({failed}){WHAT_TO_DO}", found["failed"]), found["failed"]
    assert re.fullmatch(f"process [01] of those that train together failed: .*{WHAT_TO_DO}", found["still"])


def test_what_can_not_be_shared_is_refused(tmp_path: Path) -> None:
    """A batch too small to be spread; several threads in each of several processes."""
    small = Hyperparameters(epochs=1, batch_size=4, devices=3)
    with pytest.raises(RunError, match="less than 2 rows for each of 3 devices: see --batch-size"):
        run.train(PointsTask(), small, 3, tmp_path)
    changes = {"recipe": "image-classification", "data": "digits", "name": "m", "threads": 2}
    with pytest.raises(UsageError, match="--threads: goes with one device"):
        make_config(changes, {"devices": 2})
