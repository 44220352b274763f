"""After so many requests of every kind, each place that tells of them tells the same, and the right, numbers."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import httpx
import numpy as np
import pytest
from google.protobuf import json_format
from tritonclient.grpc import service_pb2 as pb
from tritonclient.grpc import service_pb2_grpc

from loadtests.process import samples
from server.proto.forwardpass.v1 import prediction_pb2, prediction_pb2_grpc
from tests.e2e.conftest import REPOSITORY, ServerProcess, StartServer
from tests.support.onnx_models import linear_folder

pytestmark = pytest.mark.e2e

WINDOW = "dynamic_batching { preferred_batch_size: [8] max_queue_delay_microseconds: 60000000 }"
"""Requests wait for seven others."""
ROW = [1.0, 2.0, 3.0]
COUNTS = {
    "nv_inference_request_success": ("inference_stats", "success", "count"),
    "nv_inference_count": ("inference_count",),
    "nv_inference_exec_count": ("execution_count",),
}


class Plane:
    """A running server and the ways to ask it."""

    def __init__(self, server: ServerProcess, channel: grpc.Channel) -> None:
        self.server = server
        self.v2 = service_pb2_grpc.GRPCInferenceServiceStub(channel)
        self.predictions = prediction_pb2_grpc.PredictionServiceStub(channel)

    def rest(self, model: str, rows: int = 1, headers: dict[str, str] | None = None, **changes: Any) -> int:
        tensor = {"name": "x", "datatype": "FP32", "shape": [rows, 3], "data": ROW * rows, **changes}
        url = f"{self.server.http}/v2/models/{model}/infer"
        return httpx.post(url, json={"inputs": [tensor]}, headers=headers, timeout=60).status_code

    def binary(self, model: str) -> int:
        raw = np.array(ROW, "<f4").tobytes()
        tensor = {"name": "x", "datatype": "FP32", "shape": [1, 3], "parameters": {"binary_data_size": len(raw)}}
        text = json.dumps({"inputs": [tensor]}).encode()
        headers = {"Inference-Header-Content-Length": str(len(text))}
        return httpx.post(
            f"{self.server.http}/v2/models/{model}/infer", content=text + raw, headers=headers
        ).status_code

    def told(self, model: str) -> list[dict[str, Any]]:
        """A model's statistics from every place that has them."""
        base = f"{self.server.http}/v2/models"
        paths = ("stats", f"{model}/stats", f"{model}/versions/1/stats")
        found = [httpx.get(f"{base}/{path}").json()["model_stats"] for path in paths]
        for name in ("", model):
            message = self.v2.ModelStatistics(pb.ModelStatisticsRequest(name=name), timeout=30)
            text = json_format.MessageToDict(
                message, preserving_proto_field_name=True, always_print_fields_with_no_presence=True
            )
            found.append(_numbers(text)["model_stats"])
        return [next(one for one in models if one["name"] == model) for models in found]

    def metrics(self, model: str) -> dict[str, float]:
        return samples(httpx.get(self.server.metrics).text, model)


def _numbers(value: Any) -> Any:
    """protobuf's JSON has 64-bit numbers as text."""
    if isinstance(value, dict):
        return {name: one if name in ("name", "version") else _numbers(one) for name, one in value.items()}
    if isinstance(value, list):
        return [_numbers(one) for one in value]
    return int(value) if isinstance(value, str) and value.isdigit() else value


def message(model: str, rows: int = 1, width: int = 3) -> pb.ModelInferRequest:
    asked = pb.ModelInferRequest(model_name=model)
    asked.inputs.add(name="x", datatype="FP32", shape=[rows, width])
    asked.raw_input_contents.append(np.zeros((rows, width), "<f4").tobytes())
    return asked


@pytest.fixture(params=["http2", "grpcio"])
def plane(request: pytest.FixtureRequest, start_server: StartServer, tmp_path: Path) -> Iterator[Plane]:
    """Models `plain`, `window` and `digits`."""
    root = tmp_path / "models"
    linear_folder(root, "plain", more="dynamic_batching {}")
    linear_folder(root, "window", more=WINDOW)
    shutil.copytree(REPOSITORY / "digits", root / "digits")
    server = start_server("--grpc-transport", request.param, repository=root)
    with grpc.insecure_channel(server.grpc) as channel:
        yield Plane(server, channel)


def until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


def agree(
    plane: Plane, model: str, success: int, rows: int, failures: dict[str, int], passes: int | None = None
) -> None:
    """Every place tells these numbers; `passes` None: between one and one for each success."""
    first, *others = plane.told(model)
    assert all(other == first for other in others)
    metrics = plane.metrics(model)
    for metric, path in COUNTS.items():
        value: Any = first
        for key in path:
            value = value[key]
        assert metrics[metric] == value, metric
    stats = first["inference_stats"]
    counts = {
        name: stats[name]["count"] for name in ("success", "queue", "compute_input", "compute_infer", "compute_output")
    }
    assert set(counts.values()) == {success}
    assert stats["fail"]["count"] == sum(failures.values())
    told = {
        reason: int(metrics[f"nv_inference_request_failure reason={reason}"])
        for reason in ("REJECTED", "CANCELED", "BACKEND", "OTHER")
    }
    assert {reason: count for reason, count in told.items() if count} == failures
    assert first["inference_count"] == rows
    executed = first["execution_count"]
    assert executed == passes if passes is not None else 0 < executed <= success
    assert sum(batch["compute_infer"]["count"] for batch in first["batch_stats"]) == executed
    assert sum(batch["batch_size"] * batch["compute_infer"]["count"] for batch in first["batch_stats"]) == rows
    assert metrics["forwardpass_request_duration_seconds_count"] == success
    assert metrics["forwardpass_batch_rows_count"] == executed
    assert metrics["forwardpass_batch_rows_sum"] == rows
    assert metrics["nv_inference_pending_request_count"] == 0


def test_every_request_is_counted_once(plane: Plane) -> None:
    """infer over gRPC and REST, streams, predict, batches, deadlines, cancellations; what contradicts the protocol or
    the model is nobody's request, as with Triton."""
    for model in ("plain", "window", "digits"):
        agree(plane, model, 0, 0, {}, passes=0)

    def one(kind: int) -> None:
        match kind % 5:
            case 0:
                plane.v2.ModelInfer(message("plain"), timeout=30)
            case 1:
                assert plane.rest("plain", rows=2) == 200
            case 2:
                assert plane.binary("plain") == 200
            case 3:
                answers = list(
                    plane.v2.ModelStreamInfer(
                        iter([message("plain"), message("plain", 3), message("plain", 9)]), timeout=30
                    )
                )
                assert [bool(answer.error_message) for answer in answers] == [False, False, True]
            case _:
                assert plane.rest("plain", headers={"X-Request-Timeout": "0.0001"}) == 504

    with ThreadPoolExecutor(8) as threads:
        list(threads.map(one, range(100)))
    assert plane.rest("plain", shape=[1, 4], data=[0.0] * 4) == 400
    assert plane.rest("nobody") == 404
    with pytest.raises(grpc.RpcError):
        plane.v2.ModelInfer(message("plain", width=5), timeout=30)
    # 20 of each kind; a stream has two good requests, of one row and of three.
    agree(plane, "plain", 20 * (1 + 1 + 1 + 2), 20 * (1 + 2 + 1 + 4), {"REJECTED": 20})


def test_batches_and_cancellations(plane: Plane) -> None:
    """Those who wait and go are cancelled, the others are one pass."""

    def waiting(count: int) -> Callable[[], bool]:
        return lambda: plane.metrics("window")["nv_inference_pending_request_count"] == count

    calls = [plane.v2.ModelInfer.future(message("window"), timeout=60) for _ in range(3)]
    until(waiting(3))
    for call in calls:
        call.cancel()
    until(waiting(0))
    agree(plane, "window", 0, 0, {"CANCELED": 3}, passes=0)
    calls = [plane.v2.ModelInfer.future(message("window"), timeout=60) for _ in range(5)]
    until(waiting(5))
    with ThreadPoolExecutor(3) as threads:
        assert list(threads.map(plane.rest, ["window"] * 3)) == [200] * 3
    for call in calls:
        call.result()
    agree(plane, "window", 8, 8, {"CANCELED": 3}, passes=1)


def test_predict_counts_its_pass(plane: Plane) -> None:
    """A prediction of two pictures is one request of two rows; one of no picture is none."""
    picture = prediction_pb2.Input(
        image=prediction_pb2.Image(data=(REPOSITORY / "digits" / "example.png").read_bytes())
    )
    for _ in range(3):
        plane.predictions.Predict(prediction_pb2.PredictRequest(model_name="digits", inputs=[picture] * 2), timeout=30)
    url = f"{plane.server.http}/v2/models/digits/predict"
    assert httpx.post(url, content=picture.image.data, headers={"Content-Type": "image/png"}).status_code == 200
    assert httpx.post(url, content=b"none", headers={"Content-Type": "image/png"}).status_code == 400
    agree(plane, "digits", 4, 7, {})
