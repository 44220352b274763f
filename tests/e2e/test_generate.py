"""generate and generate_stream of a real server, by curl, httpx and bare sockets."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.e2e.conftest import ServerProcess, StartServer, end, start
from tests.support.onnx_models import identity_folder, text_folder
from tests.support.parts import tool

pytestmark = pytest.mark.e2e

ASK = {"text_input": "Good DAY", "repeat": 4, "id": "seven", "parameters": {"temperature": 0.5}}
TOLD = {"model_name": "text", "model_version": "1", "id": "seven", "text_output": "> Good DAY", "twice": 8}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of text, and one that gives back whatever it is given."""
    folder = tmp_path_factory.mktemp("generate") / "models"
    folder.mkdir()
    text_folder(folder, "text")
    identity_folder(folder, "both")
    return folder


@pytest.fixture(scope="module")
def text_server(models: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    running = start(tmp_path_factory.mktemp("server") / "server.log", repository=models)
    yield running
    end(running)


def url(server: ServerProcess, kind: str, model: str = "text") -> str:
    return f"{server.http}/v2/models/{model}/{kind}"


def curl(*arguments: str) -> str:
    return subprocess.run(
        [tool("curl"), "-sS", "-m", "20", *arguments], check=True, capture_output=True, text=True
    ).stdout


def data_of(lines: Iterator[str] | list[str]) -> list[Any]:
    """What the events say. Source: WHATWG HTML, "Server-sent events"."""
    return [json.loads(line.removeprefix("data: ")) for line in lines if line.startswith("data: ")]


def test_generate_by_curl(text_server: ServerProcess) -> None:
    """Text in, text out, as Triton's page shows it."""
    assert json.loads(curl("-d", json.dumps(ASK), url(text_server, "generate"))) == TOLD


def test_generate_stream_by_curl(text_server: ServerProcess) -> None:
    """Without buffering; over HTTP/1.1 in chunks, over HTTP/1.0 to the end of the connection."""
    for version, framing in (("--http1.1", "transfer-encoding: chunked"), ("--http1.0", "connection: close")):
        head, _, body = curl("-Ni", version, "-d", json.dumps(ASK), url(text_server, "generate_stream")).partition(
            "\n\n"
        )
        assert "content-type: text/event-stream; charset=utf-8" in head
        assert framing in head
        assert data_of(body.split("\n")) == [TOLD]


def test_generate_stream_by_httpx(text_server: ServerProcess) -> None:
    """A client that keeps its connection gets one answer behind the other."""
    with httpx.Client() as client:
        for _ in range(3):
            with client.stream("POST", url(text_server, "generate_stream"), json=ASK) as response:
                assert data_of(list(response.iter_lines())) == [TOLD]


def test_several_rows(text_server: ServerProcess) -> None:
    """Lists of equal length are rows of one request."""
    told = httpx.post(url(text_server, "generate"), json={"text_input": ["A", "B"], "repeat": [1, 2]}).json()
    assert (told["text_output"], told["twice"]) == (["> A", "> B"], [2, 4])


def test_a_compressed_body_is_taken(text_server: ServerProcess, tmp_path: Path) -> None:
    """As of any other route."""
    plain = tmp_path / "ask"
    plain.write_text(json.dumps(ASK))
    subprocess.run([tool("gzip"), str(plain)], check=True)
    with_gzip = ["-H", "Content-Encoding: gzip", "--data-binary", f"@{plain}.gz"]
    assert json.loads(curl(*with_gzip, url(text_server, "generate"))) == TOLD


def test_an_error_before_the_first_event_has_a_status(text_server: ServerProcess) -> None:
    """So that a client need not read events to know that there are none."""
    for kind in ("generate", "generate_stream"):
        answer = httpx.post(url(text_server, kind), json={"text_input": "a"})
        assert (answer.status_code, answer.headers["content-type"]) == (400, "application/json")
        assert "missing required input(s) ['repeat']" in answer.json()["error"]


def test_streams_are_pipelined(text_server: ServerProcess) -> None:
    """Requests behind a stream on one connection are answered behind it, in their order."""
    body = json.dumps(ASK).encode()
    host, port = "127.0.0.1", text_server.port("REST")
    stream = b"POST /v2/models/text/generate_stream HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n%s" % (
        len(body),
        body,
    )
    live = b"GET /v2/health/live HTTP/1.1\r\nHost: x\r\n\r\n"
    last = live.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n")
    with socket.create_connection((host, port), timeout=10) as connection:
        connection.sendall(stream + live + stream + last)
        received = b"".join(iter(lambda: connection.recv(65536), b""))
    order = [line for line in received.split(b"\r\n") if line.startswith((b"data: ", b"content-length: "))]
    assert [line[:4] for line in order] == [b"data", b"cont", b"data", b"cont"]


def test_a_client_that_takes_nothing_is_cut_off(models: Path, start_server: StartServer, monkeypatch: Any) -> None:
    """A stream that nobody reads does not stay in memory: the connection is closed, counted, and others are served."""
    monkeypatch.setenv("FORWARDPASS_HTTP__WRITE_TIMEOUT_S", "1")
    server = start_server(repository=models)
    body = json.dumps({"x": 1, "s": "x" * 8_000_000}).encode()
    head = b"POST /v2/models/both/generate_stream HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % len(body)
    with socket.socket() as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 16 * 1024)
        connection.connect(("127.0.0.1", server.port("REST")))
        connection.sendall(head + body)
        counted = 'forwardpass_connections_closed_total{cause="slow_reader",listener="http"} 1.0'
        until = time.monotonic() + 20
        while counted not in httpx.get(server.metrics).text:
            assert time.monotonic() < until
            time.sleep(0.1)
    assert httpx.post(url(server, "generate"), json=ASK).json() == TOLD


def test_front_processes_generate_as_well(models: Path, start_server: StartServer) -> None:
    """The models are another process's then; the answers are the same."""
    server = start_server("--workers", "2", repository=models)
    assert httpx.post(url(server, "generate"), json=ASK).json() == TOLD
    streamed = httpx.post(url(server, "generate_stream"), json=ASK)
    assert data_of(streamed.text.split("\n")) == [TOLD]
    assert httpx.post(url(server, "generate_stream"), json={"text_input": "a"}).status_code == 400


def test_sigterm_amid_a_stream(models: Path, start_server: StartServer) -> None:
    """An event that is on its way is written to its end, properly framed, before the process ends with status 0."""
    server = start_server(repository=models)
    text = "x" * 8_000_000
    with (
        httpx.Client() as client,
        client.stream("POST", url(server, "generate_stream", "both"), json={"x": 1, "s": text}) as response,
    ):
        lines = response.iter_raw()
        received = next(lines)
        server.process.send_signal(signal.SIGTERM)
        time.sleep(0.5)
        assert server.process.poll() is None
        received += b"".join(lines)
    [told] = data_of(received.decode().split("\n"))
    assert told["t"] == text
    assert server.process.wait(30) == 0
