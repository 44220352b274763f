"""SIGTERM: nothing that was accepted is lost; asked twice, the server ends at once."""

from __future__ import annotations

import json
import signal
import socket

import grpc
import httpx
import pytest

from server.proto.forwardpass.v1 import prediction_pb2
from tests.e2e.conftest import REPOSITORY, StartServer

pytestmark = pytest.mark.e2e

PICTURE = (REPOSITORY / "digits" / "example.png").read_bytes()
REQUESTS = 200


def read_answer(connection: socket.socket) -> tuple[int, bytes]:
    """One HTTP answer, read to its end."""
    connection.settimeout(30)
    data = b""
    while b"\r\n\r\n" not in data:
        chunk = connection.recv(65536)
        assert chunk, "the connection was closed without an answer"
        data += chunk
    head, _, body = data.partition(b"\r\n\r\n")
    length = int(
        next(line for line in head.lower().split(b"\r\n") if line.startswith(b"content-length")).split(b":")[1]
    )
    while len(body) < length:
        body += connection.recv(65536)
    return int(head.split(b" ")[1]), body


def test_sigterm_amid_200_rest_requests_answers_each(start_server: StartServer) -> None:
    """200 connections have sent a picture when the signal comes: all 200 get a prediction, then the server exits 0."""
    server = start_server()
    request = (
        b"POST /v2/models/digits/predict HTTP/1.1\r\nHost: x\r\nContent-Type: image/png\r\nContent-Length: "
        + str(len(PICTURE)).encode()
        + b"\r\n\r\n"
        + PICTURE
    )
    connections = [socket.create_connection(("127.0.0.1", server.port("REST"))) for _ in range(REQUESTS)]
    for connection in connections:
        connection.sendall(request)
    server.process.send_signal(signal.SIGTERM)

    answers = [read_answer(connection) for connection in connections]

    assert [status for status, _ in answers] == [200] * REQUESTS
    assert all(json.loads(body)["predictions"][0]["label"] for _, body in answers)
    assert server.process.wait(40) == 0, server.log.read_text()
    for connection in connections:
        connection.close()


def test_sigterm_amid_200_grpc_requests_answers_each(start_server: StartServer) -> None:
    """200 calls are in flight over 8 channels when the signal comes: all 200 get a prediction."""
    server = start_server()
    channels = [grpc.insecure_channel(server.grpc, options=[("grpc.use_local_subchannel_pool", 1)]) for _ in range(8)]
    calls = [
        channel.unary_unary(
            "/forwardpass.v1.PredictionService/Predict",
            request_serializer=prediction_pb2.PredictRequest.SerializeToString,
            response_deserializer=prediction_pb2.PredictResponse.FromString,
        )
        for channel in channels
    ]
    message = prediction_pb2.PredictRequest(
        model_name="digits", inputs=[prediction_pb2.Input(image=prediction_pb2.Image(data=PICTURE))]
    )
    for call in calls:
        call(message, timeout=30)  # connected, so that what follows is sent at once
    futures = [calls[index % 8].future(message, timeout=30) for index in range(REQUESTS)]
    futures[0].result()
    server.process.send_signal(signal.SIGTERM)

    answers = [future.result() for future in futures]

    assert len([answer for answer in answers if answer.predictions[0].classification.label]) == REQUESTS
    assert server.process.wait(40) == 0, server.log.read_text()
    for channel in channels:
        channel.close()


def test_a_draining_server_says_that_it_is_not_ready(start_server: StartServer) -> None:
    """Between the signal and the close, readiness fails and requests are still answered."""
    server = start_server("--drain-delay-secs", "3")
    with httpx.Client(base_url=server.http) as client:
        assert client.get("/v2/health/ready").status_code == 200
        server.process.send_signal(signal.SIGTERM)
        status = 200
        for _ in range(1000):
            status = client.get("/v2/health/ready").status_code
            if status != 200:
                break

        assert status == 503
        assert client.get("/v2/health/live").status_code == 200
        answer = client.post("/v2/models/digits/predict", content=PICTURE, headers={"Content-Type": "image/png"})
        assert answer.status_code == 200
    assert server.process.wait(40) == 0


def test_a_second_signal_ends_at_once(start_server: StartServer) -> None:
    """Whoever asks twice does not wait for the grace; the status is the shell's 128 + signal."""
    server = start_server("--drain-delay-secs", "600")
    server.process.send_signal(signal.SIGTERM)
    with httpx.Client(base_url=server.http) as client:
        for _ in range(1000):
            if client.get("/v2/health/ready").status_code == 503:
                break
    server.process.send_signal(signal.SIGTERM)

    assert server.process.wait(10) == 128 + signal.SIGTERM
