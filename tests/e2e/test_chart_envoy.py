"""Three servers behind a real Envoy with the configuration that the chart renders."""

from __future__ import annotations

import asyncio
import re
import shutil
import signal
import socket
import ssl
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import httpx
import numpy as np
import pytest
from tritonclient.grpc import service_pb2 as pb
from tritonclient.grpc import service_pb2_grpc

from loadtests.cores import cores
from loadtests.scripted import scripted
from tests.e2e.conftest import ServerProcess, StartServer
from tests.support.certificates import Authority
from tests.support.chart import one, render
from tests.support.onnx_models import linear_folder
from tests.support.proxies import envoy_of_the_chart

pytestmark = pytest.mark.e2e

NAME = "r-forwardpass-envoy"
NONE_HEALTHY = "upstream_cx_none_healthy"
EACH = 700
TOGETHER = 8


def config(**values: Any) -> dict[str, str]:
    """What is mounted at /etc/envoy."""
    rendered = render({"grpcBalancing": {"kind": "envoy", "envoy": values.pop("envoy", {})}, **values})
    found: dict[str, str] = one(rendered, "ConfigMap", NAME)["data"]
    return found


def request(model: str = "linear", size: int = 3) -> pb.ModelInferRequest:
    asked = pb.ModelInferRequest(model_name=model, raw_input_contents=[np.ones((1, size), np.float32).tobytes()])
    asked.inputs.add(name="x", datatype="FP32", shape=[1, size])
    return asked


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port: int = free.getsockname()[1]
        return port


def answered(server: ServerProcess) -> int:
    text = httpx.get(server.metrics).text
    found = re.search(r'^nv_inference_request_success\{model="linear",version="1"\} (\S+)', text, re.MULTILINE)
    assert found
    return int(float(found[1]))


async def counted(admin: httpx.AsyncClient, name: str) -> int:
    text = (await admin.get("/stats/prometheus")).text
    found = re.search(rf'^envoy_cluster_{name}{{envoy_cluster_name="forwardpass"}} (\d+)', text, re.MULTILINE)
    assert found, name
    return int(found[1])


def mounted(folder: Path, files: Mapping[str, Path]) -> None:
    """A Secret's files in `folder` as the kubelet puts them there, all of them in the place of others in one step."""
    folder.mkdir(exist_ok=True)
    there = folder / f"..{len(list(folder.iterdir()))}"
    there.mkdir()
    for name, file in files.items():
        shutil.copy(file, there / name)
        if not (folder / name).is_symlink():
            (folder / name).symlink_to(Path("..data") / name)
    (folder / "..next").symlink_to(there.name)
    (folder / "..next").rename(folder / "..data")


def presented(port: int) -> bytes:
    """The certificate of whoever listens there."""
    return ssl.PEM_cert_to_DER_cert(ssl.get_server_certificate(("127.0.0.1", port)))


class Load:
    """Callers over one connection, which count what they are told."""

    def __init__(self, channel: grpc.aio.Channel, asked: pb.ModelInferRequest | None = None) -> None:
        self.told: Counter[str] = Counter()
        self._asked = asked or request()
        self.stopping = False
        self._stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)

    async def ask(self) -> None:
        try:
            await self._stub.ModelInfer(self._asked, timeout=20)
            self.told["OK"] += 1
        except grpc.aio.AioRpcError as error:
            self.told[f"{error.code().name}: {error.details()}"] += 1

    async def go_on(self) -> None:
        while not self.stopping:
            await self.ask()
            await asyncio.sleep(0.02)


async def test_a_rolling_restart_loses_no_call_and_each_server_gets_its_part(
    start_server: StartServer, tmp_path: Path
) -> None:
    """One after the other ends and comes again under load; before, each of the three has a third of the calls within
    10 %, all of one connection. Without a server Envoy counts the calls that find none, which is what KEDA asks for."""
    models = linear_folder(tmp_path / "models", "linear").parent
    ports = [free_port() for _ in range(3)]

    async def begin(port: int) -> ServerProcess:
        flags = ("--grpc-port", str(port), "--drain-delay-secs", "2")
        return await asyncio.to_thread(start_server, *flags, repository=models)

    servers = [await begin(port) for port in ports]
    async with (
        envoy_of_the_chart(tmp_path, config(), ports) as there,
        grpc.aio.insecure_channel(f"127.0.0.1:{there.grpc}") as channel,
        httpx.AsyncClient(base_url=f"http://127.0.0.1:{there.admin}") as admin,
        asyncio.timeout(180),
    ):
        load = Load(channel)
        while not all(map(answered, servers)):  # Each was found healthy.
            await load.ask()
        before = [answered(server) for server in servers]
        for _ in range(3 * EACH // TOGETHER):
            await asyncio.gather(*(load.ask() for _ in range(TOGETHER)))
        grown = [answered(server) - began for server, began in zip(servers, before, strict=True)]
        assert grown == [pytest.approx(EACH, rel=0.1)] * 3

        running = asyncio.gather(*(load.go_on() for _ in range(TOGETHER)))
        for index, port in enumerate(ports):
            servers[index].process.send_signal(signal.SIGTERM)
            assert await asyncio.to_thread(servers[index].process.wait, 30) == 0
            if index == len(ports) - 1:
                break  # The others are new, and are all that is left.
            servers[index] = await begin(port)
            while not answered(servers[index]):  # noqa: ASYNC110 - of another process
                await asyncio.sleep(0.1)  # As a cluster does before it ends the next one.
        load.stopping = True
        await running
        assert set(load.told) == {"OK"}

        for server in servers:
            server.process.send_signal(signal.SIGKILL)
        await asyncio.gather(*(asyncio.to_thread(server.process.wait, 10) for server in servers))
        while not await counted(admin, NONE_HEALTHY):
            await load.ask()
            await asyncio.sleep(0.05)


async def test_an_envoy_that_ends_loses_no_call(tmp_path: Path) -> None:
    """By the pod's own hook: callers are asked to come anew, then it is told to end; calls take long enough to be
    under way then. To others it shows its metrics, and whether it is ready, and no more."""
    with scripted(tmp_path, tuple(cores()), pass_ms=150) as (server, _):
        await an_envoy_ends(server.grpc, tmp_path)


async def an_envoy_ends(server: str, folder: Path) -> None:
    rendered = render({"grpcBalancing": {"kind": "envoy", "envoy": {"drainSeconds": 2}}})
    (container,) = one(rendered, "Deployment", NAME)["spec"]["template"]["spec"]["containers"]
    *bash, script = container["lifecycle"]["preStop"]["exec"]["command"]
    chart = config(envoy={"drainSeconds": 2})
    there: dict[str, Any] = {"ports": [int(server.rpartition(":")[2])], "flags": container["args"][2:]}
    round_robin = [("grpc.service_config", '{"loadBalancingConfig": [{"round_robin": {}}]}')]
    async with envoy_of_the_chart(folder, chart, **there) as stays, asyncio.timeout(180):
        async with envoy_of_the_chart(folder, chart, **there) as ends, httpx.AsyncClient() as others:
            shown = f"http://127.0.0.1:{ends.stats}"
            assert (await others.get(f"{shown}/ready")).status_code == 200
            assert "envoy_cluster_upstream" in (await others.get(f"{shown}/stats/prometheus")).text
            assert (await others.post(f"{shown}/quitquitquit")).status_code == 404

            both = f"ipv4:127.0.0.1:{ends.grpc},127.0.0.1:{stays.grpc}"
            channel = grpc.aio.insecure_channel(both, round_robin)
            load = Load(channel, request("scripted", 2))
            running = asyncio.gather(*(load.go_on() for _ in range(TOGETHER)))
            while load.told["OK"] < 2 * TOGETHER:  # noqa: ASYNC110 - of another process
                await asyncio.sleep(0.05)
            hook = await asyncio.create_subprocess_exec(*bash, script.replace("9901", str(ends.admin)))
            assert await hook.wait() == 0
            with pytest.raises(ConnectionRefusedError):
                await asyncio.open_connection("127.0.0.1", ends.grpc)
        before = load.told["OK"]
        while load.told["OK"] < before + 2 * TOGETHER:  # noqa: ASYNC110 - of another process
            await asyncio.sleep(0.05)
        load.stopping = True
        await running
        await channel.close()
    assert set(load.told) == {"OK"}


@pytest.mark.parametrize("mutual", [False, True], ids=["TLS", "mutual TLS"])
async def test_tls_from_the_caller_to_the_server(start_server: StartServer, tmp_path: Path, mutual: bool) -> None:
    """Both ways by the Secret's certificate. With mutual TLS a caller without one of its authority is not let in by
    Envoy, nor would Envoy be by the server. A new certificate in the Secret is shown without a restart."""
    authority = Authority(tmp_path)
    certificate, key = authority.issue("server", "localhost", "r-forwardpass-headless.ns.svc")
    secret = tmp_path / "secret"
    mounted(secret, {"tls.crt": certificate, "tls.key": key, "ca.crt": tmp_path / "ca.crt"})
    client, client_key = authority.issue("client")
    models = linear_folder(tmp_path / "models", "linear").parent
    flags = ["--grpc-tls-certificate", str(secret / "tls.crt"), "--grpc-tls-key", str(secret / "tls.key")]
    if mutual:
        flags += ["--grpc-tls-client-ca", str(secret / "ca.crt")]
    server = await asyncio.to_thread(start_server, *flags, repository=models)
    root = (tmp_path / "ca.crt").read_bytes()
    known = grpc.ssl_channel_credentials(root, client_key.read_bytes(), client.read_bytes())
    stranger = grpc.ssl_channel_credentials(root)
    values = {"envoy": {"requireClientCertificates": mutual}, "tls": {"secretName": "certificate"}}
    async with envoy_of_the_chart(tmp_path, config(**values), [server.port("gRPC")], secret) as there:
        for credentials, told in ((known, "OK"), (stranger, "UNAVAILABLE" if mutual else "OK")):
            async with grpc.aio.secure_channel(f"localhost:{there.grpc}", credentials) as channel:
                load = Load(channel)
                await load.ask()
                assert [said.partition(":")[0] for said in load.told] == [told]
        newer, newer_key = authority.issue("newer", "localhost", "r-forwardpass-headless.ns.svc")
        mounted(secret, {"tls.crt": newer, "tls.key": newer_key, "ca.crt": tmp_path / "ca.crt"})
        wanted = ssl.PEM_cert_to_DER_cert(newer.read_text())
        async with asyncio.timeout(20):
            while await asyncio.to_thread(presented, there.grpc) != wanted:  # noqa: ASYNC110 - of another process
                await asyncio.sleep(0.05)
        async with grpc.aio.secure_channel(f"localhost:{there.grpc}", known) as channel:
            load = Load(channel)
            await load.ask()
            assert load.told == {"OK": 1}
