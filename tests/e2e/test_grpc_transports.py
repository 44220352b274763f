"""The server as a process, over each of its gRPC transports."""

from __future__ import annotations

import subprocess
import sys

import grpc
import httpx
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from server.proto.forwardpass.v1 import prediction_pb2, prediction_pb2_grpc
from tests.e2e.conftest import REPOSITORY, StartServer

pytestmark = pytest.mark.e2e

PICTURE = (REPOSITORY / "digits" / "example.png").read_bytes()


@pytest.mark.parametrize("transport", ["http2", "grpcio"])
def test_each_transport_serves(start_server: StartServer, transport: str) -> None:
    """Chosen by its flag, it predicts, says that it is healthy, and lets the server end with a watch still open."""
    server = start_server("--grpc-transport", transport)
    with grpc.insecure_channel(server.grpc) as channel:
        asked = prediction_pb2.PredictRequest(
            model_name="digits", inputs=[prediction_pb2.Input(image=prediction_pb2.Image(data=PICTURE))]
        )
        answer = prediction_pb2_grpc.PredictionServiceStub(channel).Predict(asked, timeout=30)
        assert answer.predictions[0].classification.label == "7"
        watch = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest(), timeout=60)
        assert next(watch).status == health_pb2.HealthCheckResponse.SERVING
        metrics = httpx.get(server.metrics).text
        assert ("forwardpass_grpc_streams 1.0" in metrics) is (transport == "http2")
        assert server.terminate() == 0
        assert next(watch).status == health_pb2.HealthCheckResponse.NOT_SERVING
        with pytest.raises(grpc.RpcError) as caught:
            next(watch)
        assert caught.value.code() is grpc.StatusCode.UNAVAILABLE


def test_grpcio_is_imported_only_when_it_serves() -> None:
    """The server's own transport does without grpc, its threads and its memory."""
    script = "import sys, server.app; sys.exit('grpc' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 0
