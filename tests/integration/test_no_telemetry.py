"""Nobody is told what the server does. The libraries that would tell write to the home folder first: it stays empty."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.e2e.conftest import REPOSITORY, ROOT

LOADS = f"""
import os
import server.engine.onnxruntime, onnxruntime
onnxruntime.InferenceSession({str(REPOSITORY / "fraud" / "1" / "model.onnx")!r})
import onnxruntime_genai
import exporter
print(os.environ["ORT_DISABLE_TELEMETRY"])
"""


@pytest.mark.parametrize("own", ["", "0"])
def test_onnx_runtime_tells_nobody(tmp_path: Path, own: str) -> None:
    """But where whoever starts the server says so."""
    environment = {name: value for name, value in os.environ.items() if name != "ORT_DISABLE_TELEMETRY"}
    environment |= {"HOME": str(tmp_path), "XDG_CACHE_HOME": str(tmp_path / "cache")}
    environment |= {"ORT_DISABLE_TELEMETRY": own} if own else {}

    told = subprocess.run([sys.executable, "-c", LOADS], cwd=ROOT, env=environment, stdout=subprocess.PIPE, check=True)

    assert told.stdout.decode().strip() == (own or "1")
    written = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert (written == []) is (own == ""), written
