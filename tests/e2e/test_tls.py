"""TLS on both listeners, as an operator sets it up, and the clients that speak it."""

from __future__ import annotations

import socket
import ssl
import subprocess

import httpx
import numpy as np
import pytest
import tritonclient.http

from server.settings import TlsSettings
from tests.e2e.conftest import REPOSITORY, ServerProcess, StartServer
from tests.support.parts import self_signed, tool

pytestmark = pytest.mark.e2e


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> TlsSettings:
    return self_signed(tmp_path_factory.mktemp("tls"))


@pytest.mark.parametrize("workers", [1, 2])
def test_rest_over_tls(start_server: StartServer, pair: TlsSettings, workers: int) -> None:
    """curl with the printed command, httpx, and Triton's client; and whoever speaks cleartext gets no answer."""
    flags = ["--http-tls-certificate", pair.certificate, "--http-tls-key", pair.key, "--workers", str(workers)]
    server = start_server(*flags)
    port = server.port("REST")
    assert f"https://127.0.0.1:{port}" in server.banner

    picture = (REPOSITORY / "digits" / "example.png").read_bytes()
    url = f"https://127.0.0.1:{port}/v2/models/digits/predict"
    trust = ssl.create_default_context(cafile=pair.certificate)
    answer = httpx.post(url, content=picture, headers={"content-type": "image/png"}, verify=trust)
    assert answer.json()["predictions"][0]["label"]

    curl = [tool("curl"), "-s", "--cacert", pair.certificate, f"https://127.0.0.1:{port}/v2/models/digits"]
    assert b'"name":"digits"' in subprocess.run(curl, check=True, capture_output=True, timeout=30).stdout

    options = {"ca_certs": pair.certificate}
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
