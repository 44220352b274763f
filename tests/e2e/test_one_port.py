"""The server as a process with gRPC and REST on one port: its clients, its figures, its end."""

from __future__ import annotations

import socket
import ssl
import time
from pathlib import Path

import grpc
import httpx
import pytest
from tritonclient.grpc import service_pb2, service_pb2_grpc

from server.client import Client
from server.settings import TlsSettings
from tests.e2e.conftest import REPOSITORY, StartServer, on_one_port
from tests.support.parts import self_signed

pytestmark = pytest.mark.e2e

EXAMPLE = REPOSITORY / "digits" / "example.png"
WORKERS = pytest.mark.parametrize("workers", [1, 2])


@WORKERS
def test_both_are_served_and_counted(start_server: StartServer, monkeypatch: pytest.MonkeyPatch, workers: int) -> None:
    """Predictions over both, four silent connections cut off, and each of them in the metrics."""
    monkeypatch.setenv("FORWARDPASS_GRPC__HANDSHAKE_TIMEOUT_S", "1")
    server = start_server(*on_one_port(), "--workers", str(workers))
    assert server.port("REST") == server.port("gRPC")
    assert "the same port" in server.banner
    silent = [socket.create_connection(("127.0.0.1", server.port("gRPC"))) for _ in range(4)]
    for url in (server.http, f"grpc://{server.grpc}"):
        with Client(url) as client:
            for _ in range(5):
                [prediction] = client.predict("digits", [EXAMPLE], timeout_s=30).predictions
                assert prediction.label == "7"  # type: ignore[union-attr]
    for connection in silent:
        connection.settimeout(10)
        assert connection.recv(1) == b""
        connection.close()
    counted = 'forwardpass_connections_closed_total{cause="silent",listener="shared"} 4.0'
    until = time.monotonic() + 30  # What fronts have counted is told once a second.
    while counted not in (text := httpx.get(server.metrics).text):
        assert time.monotonic() < until, text
        time.sleep(0.1)
    assert server.terminate() == 0


@WORKERS
def test_one_certificate_is_that_of_both(
    start_server: StartServer, tmp_path_factory: pytest.TempPathFactory, workers: int
) -> None:
    """Given for gRPC alone it is REST's too, in the printed address as well."""
    tls: TlsSettings = self_signed(tmp_path_factory.mktemp("tls"))
    flags = ["--grpc-tls-certificate", tls.certificate, "--grpc-tls-key", tls.key]
    server = start_server(*on_one_port(), *flags, "--workers", str(workers))
    port = server.port("REST")
    assert f"https://127.0.0.1:{port}" in server.banner
    trust = ssl.create_default_context(cafile=tls.certificate)
    assert httpx.get(f"https://localhost:{port}/v2/health/ready", verify=trust).status_code == 200
    credentials = grpc.ssl_channel_credentials(Path(tls.certificate).read_bytes())
    with grpc.secure_channel(f"localhost:{port}", credentials) as channel:
        stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
        assert stub.ServerReady(service_pb2.ServerReadyRequest(), timeout=20).ready
    assert server.terminate() == 0
