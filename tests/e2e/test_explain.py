"""Explained latency, from a real server to its typed client."""

from __future__ import annotations

import time

import httpx
import numpy as np
import pytest

from server.client import Client, Explained
from tests.e2e.conftest import REPOSITORY, ServerProcess

PASS = {"queue", "compute_input", "compute", "compute_output"}
PICTURE = REPOSITORY / "digits" / "example.png"


@pytest.mark.parametrize("wire", ["REST", "gRPC"])
def test_the_parts_of_a_call_sum_to_its_total(server: ServerProcess, wire: str) -> None:
    """predict and infer say over both wires where their time went: every part, within what the client waited."""
    told: list[Explained] = []
    with Client(server.http if wire == "REST" else f"grpc://{server.grpc}") as client:
        began = time.monotonic()
        client.predict("digits", [PICTURE, PICTURE], explain=told.append)
        client.infer("breast_cancer", {"features": np.zeros((3, 30), "f4")}, explain=told.append)
        waited_ms = (time.monotonic() - began) * 1000
    predicted, inferred = told

    for explained, rows in ((predicted, 2), (inferred, 3)):
        assert {"decode", "encode", *PASS} <= explained.parts_ms.keys()
        assert min(explained.parts_ms.values()) >= 0
        assert sum(explained.parts_ms.values()) == pytest.approx(explained.total_ms, rel=1e-6)
        assert (explained.waited, explained.batch_rows) == ("none", rows)
    assert predicted.parts_ms["preprocess"] > 0
    assert predicted.total_ms + inferred.total_ms < waited_ms


def test_nobody_is_told_unasked(server: ServerProcess) -> None:
    """Without the header there is no Server-Timing."""
    url = f"{server.http}/v2/models/digits/predict"
    headers = {"Content-Type": "image/png"}
    asked = httpx.post(url, content=PICTURE.read_bytes(), headers={**headers, "X-Explain": "1"})
    unasked = httpx.post(url, content=PICTURE.read_bytes(), headers=headers)
    assert (asked.status_code, unasked.status_code) == (200, 200)
    assert "server-timing" in asked.headers
    assert "server-timing" not in unasked.headers
