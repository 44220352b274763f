"""Triton's perf_analyzer, a client in C++, unmodified: every way in which it asks, each of a model of its own.

`make perf-analyzer` installs it; without it these tests are skipped, and fail under CI.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from pathlib import Path
from threading import Lock

import httpx
import pytest

from tests.e2e.conftest import ROOT, end, start
from tests.support import perf_analyzer
from tests.support.onnx_models import accumulator_folder, identity_folder, linear_folder
from tests.support.parts import lacking

pytestmark = pytest.mark.e2e

PROGRAM = ROOT / "build" / "perf_analyzer"
REQUESTS = 20
WAYS: dict[str, tuple[str, ...]] = {
    "grpc": ("-i", "grpc"),
    "grpc, calls at once": ("-i", "grpc", "-a", "--concurrency-range", "4"),
    "grpc, a stream": ("-i", "grpc", "--streaming"),
    "grpc, eight rows": ("-i", "grpc", "-b", "8"),
    "grpc, compressed": ("-i", "grpc", "--grpc-compression-algorithm", "gzip"),
    "grpc, in shared memory": ("-i", "grpc", "--shared-memory", "system", "--output-shared-memory-size", "64"),
    "http": ("-i", "http"),
    "http, calls at once": ("-i", "http", "-a", "--concurrency-range", "4"),
    "http, JSON": ("-i", "http", "--input-tensor-format", "json", "--output-tensor-format", "json"),
    "http, in shared memory": ("-i", "http", "--shared-memory", "system", "--output-shared-memory-size", "64"),
    "http, texts": ("-i", "http", "--shape", "x:2", "--shape", "s:3", "--string-length", "5"),
    "grpc, sequences in a stream": ("-i", "grpc", "--streaming", "--sequence-length", "5"),
    "http, sequences": ("-i", "http", "--sequence-length", "5"),
    "grpc, an ensemble": (
        "-i",
        "grpc",
    ),
}
ENSEMBLE = """
platform: "ensemble" max_batch_size: 8
input { name: "x" data_type: TYPE_FP32 dims: 3 } output { name: "y" data_type: TYPE_FP32 dims: 2 }
ensemble_scheduling { step {
  model_name: "step" model_version: -1 input_map { key: "x" value: "x" } output_map { key: "y" value: "y" }
} }
"""


def model(way: str) -> str:
    return f"model{list(WAYS).index(way)}"


def write(repository: Path, way: str) -> None:
    if "texts" in way:
        identity_folder(repository, model(way))
    elif "sequences" in way:
        accumulator_folder(repository, model(way), strategy="oldest {}" if "stream" in way else "direct {}")
    elif "ensemble" in way:
        linear_folder(repository, "step")
        (repository / model(way)).mkdir()
        (repository / model(way) / "config.pbtxt").write_text(ENSEMBLE)
    else:
        linear_folder(repository, model(way), more="dynamic_batching {}")


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, tuple[int, str, dict[str, int]]]]:
    """By the way: its status, what it said, and what the server counted. All at once: each is a second of waiting."""
    if not (PROGRAM / ".installed").exists():
        lacking("perf_analyzer is not installed (make perf-analyzer)")
    folder = tmp_path_factory.mktemp("perf_analyzer")
    repository = folder / "models"
    repository.mkdir()
    for way in WAYS:
        write(repository, way)
    server = start(folder / "server.log", repository=repository)
    addresses = {"grpc": server.grpc, "http": server.http.removeprefix("http://")}

    regions = Lock()  # Each run calls its regions alike, and forgets all that are there.

    def asked(way: str) -> tuple[int, str, dict[str, int]]:
        flags = ("-m", model(way), "-u", addresses[way[:4]], "--request-count", str(REQUESTS))
        with regions if "shared memory" in way else nullcontext():
            status, said = perf_analyzer.run(PROGRAM, *WAYS[way], *flags)
        [stats] = httpx.get(f"{server.http}/v2/models/{model(way)}/stats").json()["model_stats"]
        counts = {name: one["count"] for name, one in stats["inference_stats"].items()}
        return status, said, counts | {"rows": stats["inference_count"]}

    try:
        with ThreadPoolExecutor(len(WAYS)) as threads:
            yield dict(zip(WAYS, threads.map(asked, WAYS), strict=True))
        assert server.process.poll() is None, server.log.read_text()
    finally:
        end(server)


@pytest.mark.parametrize("way", WAYS)
def test_every_request_is_answered_and_counted(told: dict[str, tuple[int, str, dict[str, int]]], way: str) -> None:
    """As many as it sent, by its own count and by the server's. What it reads of the server's meanwhile may lack those
    that were answered before it looked for the first time."""
    status, said, counts = told[way]
    assert status == 0, said
    [sent] = re.findall(r"Request count: (\d+)", said)
    [seen, *_] = re.findall(r"Successful request count: (\d+)", said)
    assert int(sent) >= REQUESTS
    assert 0 < int(seen) <= int(sent), said
    assert (counts["success"], counts["fail"]) == (int(sent), 0), said
    assert counts["rows"] == int(sent) * (8 if "eight rows" in way else 1)
