"""TLS on both listeners, as an operator sets it up, and the clients that speak it."""

from __future__ import annotations

import re
import socket
import ssl
import subprocess
import time
from pathlib import Path

import httpx
import numpy as np
import pytest
import tritonclient.http

from server.security.probe import probe
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
    told = re.findall(r'_not_after_timestamp_seconds{listener="(.*)"} (.*)', httpx.get(server.metrics).text)
    until = ssl.cert_time_to_seconds(trust.get_ca_certs()[0]["notAfter"])  # type: ignore[arg-type,index]
    assert [(listener, float(value)) for listener, value in told] == [("http", until)]
    assert server.terminate() == 0


def cleartext(server: ServerProcess) -> bytes:
    """What a client without TLS is told by the REST listener."""
    with socket.create_connection(("127.0.0.1", server.port("REST")), timeout=10) as client:
        client.sendall(b"GET /v2 HTTP/1.1\r\nHost: x\r\n\r\n")
        try:
            return client.recv(1 << 16)
        except ConnectionError:
            return b""


# --- clients' certificates, and certificates that change -------------------------------------------------------------


class Authority:
    """Issues certificates for the loopback, of servers and of clients."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.trust = folder / "ca.pem"
        self._run("req", "-x509", "-subj", "/CN=authority", "-keyout", "ca.key", "-out", "ca.pem", "-days", "1", *EC)

    def issue(self, name: str, serial: int) -> tuple[Path, Path]:
        """A certificate with its key; issued again under the same name it is another."""
        self._run("req", "-subj", f"/CN={name}", "-keyout", f"{name}.key.new", "-out", f"{name}.csr", *EC)
        (self.folder / "san").write_text("subjectAltName=DNS:localhost,IP:127.0.0.1")
        signing = ["-CA", "ca.pem", "-CAkey", "ca.key", "-set_serial", str(serial), "-days", "1", "-extfile", "san"]
        self._run("x509", "-req", "-in", f"{name}.csr", *signing, "-out", f"{name}.pem.new")
        for kind in ("key", "pem"):
            (self.folder / f"{name}.{kind}.new").replace(self.folder / f"{name}.{kind}")
        return self.folder / f"{name}.pem", self.folder / f"{name}.key"

    def _run(self, *arguments: str) -> None:
        subprocess.run([tool("openssl"), *arguments], cwd=self.folder, check=True, capture_output=True)


EC = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes")


def serial_at(port: int, context: ssl.SSLContext) -> int:
    with (
        socket.create_connection(("127.0.0.1", port), timeout=10) as raw,
        context.wrap_socket(raw, server_hostname="localhost") as connection,
    ):
        certificate = connection.getpeercert()
        assert certificate
        return int(str(certificate["serialNumber"]), 16)


@pytest.mark.parametrize("flags", [[], ["--workers", "2"], ["--grpc-transport", "grpcio"]], ids=" ".join)
def test_certificates_are_followed_and_clients_show_theirs(
    start_server: StartServer, tmp_path: Path, flags: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A new certificate is served some moments after it is on disk; a connection from before goes on; a half-written
    one changes nothing; who has no certificate gets in nowhere; nothing below TLS 1.2, and no weak cipher."""
    monkeypatch.setenv("FORWARDPASS_AUTH__REFRESH_S", "0.05")
    authority = Authority(tmp_path)
    certificate, key = authority.issue("server", 17)
    own = tuple(map(str, authority.issue("client", 18)))
    for kind in ("http", "grpc"):
        flags = [*flags, f"--{kind}-tls-certificate", str(certificate), f"--{kind}-tls-key", str(key)]
        flags += [f"--{kind}-tls-client-ca", str(authority.trust)]
    server = start_server(*flags)
    rest, rpc = server.port("REST"), server.port("gRPC")
    context = ssl.create_default_context(cafile=str(authority.trust))
    context.load_cert_chain(*own)

    client = ("-cert", own[0], "-key", own[1])
    outcomes = probe(f"127.0.0.1:{rest}", ("http/1.1",), client, str(authority.trust))
    outcomes += probe(f"127.0.0.1:{rpc}", ("h2",), (*client, "-alpn", "h2"), str(authority.trust))
    assert len(outcomes) == 2 * (2 + 2 + 7 + 1 + 2)
    assert [outcome for outcome in outcomes if not outcome.good] == []

    with httpx.Client(verify=context, base_url=f"https://127.0.0.1:{rest}") as held:
        before = held.get("/v2/health/ready")
        assert (before.status_code, serial_at(rest, context)) == (200, 17)
        key.write_text("half a key")
        until = time.monotonic() + 30
        while "what was read before stays" not in server.log.read_text():
            assert time.monotonic() < until
            time.sleep(0.05)
        assert (serial_at(rest, context), serial_at(rpc, context)) == (17, 17)
        authority.issue("server", 19)
        until = time.monotonic() + 30
        while {serial_at(rest, context), serial_at(rpc, context)} != {19} and time.monotonic() < until:
            time.sleep(0.05)
        assert (serial_at(rest, context), serial_at(rpc, context)) == (19, 19)
        after = held.get("/v2/health/ready")
        assert after.status_code == 200
        streams = [answer.extensions["network_stream"].get_extra_info("socket") for answer in (before, after)]
        assert streams[0] is streams[1]
