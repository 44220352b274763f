"""TLS on both listeners, as an operator sets it up, and the clients that speak it."""

from __future__ import annotations

import socket
import ssl
import subprocess
from pathlib import Path

import httpx
import numpy as np
import pytest
import tritonclient.http

from tests.e2e.conftest import REPOSITORY, ServerProcess, StartServer

pytestmark = pytest.mark.e2e


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A certificate for the loopback, and its key."""
    folder = tmp_path_factory.mktemp("tls")
    certificate, key = folder / "certificate.pem", folder / "key.pem"
    subject = ["-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1", "-days", "1"]
    made = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"]
    command = [*made, "-keyout", str(key), "-out", str(certificate), *subject]
    subprocess.run(command, check=True, capture_output=True)
    return certificate, key


@pytest.mark.parametrize("workers", [1, 2])
def test_rest_over_tls(start_server: StartServer, pair: tuple[Path, Path], workers: int) -> None:
    """curl with the printed command, httpx, and Triton's client; and whoever speaks cleartext gets no answer."""
    certificate, key = pair
    flags = ["--http-tls-certificate", str(certificate), "--http-tls-key", str(key), "--workers", str(workers)]
    server = start_server(*flags)
    port = server.port("REST")
    assert f"https://127.0.0.1:{port}" in server.banner

    picture = (REPOSITORY / "digits" / "example.png").read_bytes()
    url = f"https://127.0.0.1:{port}/v2/models/digits/predict"
    trust = ssl.create_default_context(cafile=str(certificate))
    answer = httpx.post(url, content=picture, headers={"content-type": "image/png"}, verify=trust)
    assert answer.json()["predictions"][0]["label"]

    curl = ["curl", "-s", "--cacert", str(certificate), f"https://127.0.0.1:{port}/v2/models/digits"]
    assert b'"name":"digits"' in subprocess.run(curl, check=True, capture_output=True, timeout=30).stdout

    options = {"ca_certs": str(certificate)}
    with tritonclient.http.InferenceServerClient(f"localhost:{port}", ssl=True, ssl_options=options) as client:
        tensor = tritonclient.http.InferInput("image", [2, 1, 20, 20], "FP32")
        tensor.set_data_from_numpy(np.zeros((2, 1, 20, 20), np.float32))
        assert client.infer("digits", [tensor]).as_numpy("logits").shape == (2, 10)

    assert cleartext(server) == b""
    assert server.terminate() == 0


def cleartext(server: ServerProcess) -> bytes:
    """What a client without TLS is told by the REST listener."""
    with socket.create_connection(("127.0.0.1", server.port("REST")), timeout=10) as client:
        client.sendall(b"GET /v2 HTTP/1.1\r\nHost: x\r\n\r\n")
        try:
            return client.recv(1 << 16)
        except ConnectionError:
            return b""
