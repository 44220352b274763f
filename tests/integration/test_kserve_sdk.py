"""KServe's own Python client, unmodified, against our server: health, readiness, infer, errors, over REST and gRPC.

It has no calls for metadata. `make kserve` installs it; without it these tests are skipped, and fail under CI.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.e2e.conftest import ROOT, end, start
from tests.support.onnx_models import WEIGHTS, linear_folder
from tests.support.parts import lacking

pytestmark = pytest.mark.e2e

SDK = ROOT / "build" / "kserve"
CALLS = ROOT / "tests" / "support" / "kserve_sdk" / "calls.py"
ANSWER = (np.ones((2, 3), np.float32) @ WEIGHTS).tolist()


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """What the client got, by transport and call."""
    if not (SDK / ".installed").exists():
        lacking("KServe's client is not installed (make kserve)")
    folder = tmp_path_factory.mktemp("kserve")
    linear_folder(folder / "models", "linear")
    server = start(folder / "server.log", repository=folder / "models")
    try:
        environment = os.environ | {"PYTHONPATH": str(SDK)}
        run = [sys.executable, str(CALLS), server.http, server.grpc]
        done = subprocess.run(run, env=environment, capture_output=True, text=True, timeout=250, cwd=Path(folder))
    finally:
        end(server)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.parametrize("transport", ["rest", "grpc"])
def test_health_and_readiness_are_understood(told: Any, transport: str) -> None:
    """Of the server and of a model; one that there is not is not ready, and no error."""
    calls = ("ready", "live", "model ready", "unknown model ready")

    assert [told[transport][call] for call in calls] == [True, True, True, False]


@pytest.mark.parametrize("transport", ["rest", "grpc"])
@pytest.mark.parametrize("form", ["binary", "json"])
def test_tensors_come_back_as_they_went(told: Any, transport: str, form: str) -> None:
    """Binary data, and the typed contents of JSON and of protobuf; with the request's id."""
    assert told[transport][form] == ["17", "linear", "y", "FP32", ANSWER]


@pytest.mark.parametrize(
    ("call", "rest", "grpc", "text"),
    [
        ("wrong shape", "'400 Bad Request'", "StatusCode.INVALID_ARGUMENT", "unexpected shape for input 'x'"),
        ("unknown model", "'404 Not Found'", "StatusCode.NOT_FOUND", "Request for unknown model: 'nope'"),
    ],
)
def test_errors_are_the_clients_own_with_our_text(told: Any, call: str, rest: str, grpc: str, text: str) -> None:
    """The status and the sentence reach whoever calls."""
    kind, said = told["rest"][call]
    assert (kind, rest in said, text in said) == ("HTTPStatusError", True, True)
    kind, said = told["grpc"][call]
    assert (kind, grpc in said, text in said) == ("AioRpcError", True, True)
