"""Nobody is told what the server does. The libraries that would tell write to the home folder first: it stays empty."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from tests.e2e.conftest import REPOSITORY, ROOT

LOADS = f"""
import os
import server.engine.onnxruntime, onnxruntime
onnxruntime.InferenceSession({str(REPOSITORY / "fraud" / "1" / "model.onnx")!r})
import onnxruntime_genai
import exporter
print(os.environ["ORT_DISABLE_TELEMETRY"])
"""


def load(home: Path, **own: str) -> str:
    """What the variable says once both libraries are there."""
    environment = {name: value for name, value in os.environ.items() if name != "ORT_DISABLE_TELEMETRY"}
    environment |= {"HOME": str(home), "XDG_CACHE_HOME": str(home / "cache"), **own}
    done = subprocess.run(
        [sys.executable, "-c", LOADS], cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True, check=True
    )
    return done.stdout.strip()


def test_onnx_runtime_tells_nobody(tmp_path: Path) -> None:
    """Without the variable each of the libraries makes a database and a device id there."""
    assert load(tmp_path) == "1"
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


def test_whoever_starts_the_server_may_want_otherwise(tmp_path: Path) -> None:
    """It is not overruled."""
    assert load(tmp_path, ORT_DISABLE_TELEMETRY="0") == "0"
