"""Two servers behind a proxy, of which one is told to end while clients go on asking: nobody is told of it."""

from __future__ import annotations

import asyncio
import signal
from collections import Counter
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import httpx
import numpy as np
import pytest
from tritonclient.grpc import service_pb2 as pb
from tritonclient.grpc import service_pb2_grpc

from tests.e2e.conftest import ServerProcess, StartServer, on_one_port
from tests.support.proxies import Upstream, envoy, nginx

pytestmark = pytest.mark.e2e

TOGETHER = 8
IMAGE = np.zeros((1, 1, 20, 20), np.float32)


class Load:
    """Clients that ask one after the other until they are told to stop; what they were told is counted."""

    def __init__(self) -> None:
        self.answers: Counter[str] = Counter()
        self.stopping = False

    async def grpc_calls(self, channel: grpc.aio.Channel) -> None:
        stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
        request = pb.ModelInferRequest(model_name="digits", raw_input_contents=[IMAGE.tobytes()])
        request.inputs.add(name="image", datatype="FP32", shape=IMAGE.shape)
        while not self.stopping:
            try:
                await stub.ModelInfer(request, timeout=30)
                self.answers["gRPC"] += 1
            except grpc.aio.AioRpcError as error:
                self.answers[f"{error.code()} {error.details()}"] += 1

    async def rest_calls(self, client: httpx.AsyncClient) -> None:
        inputs = [{"name": "image", "datatype": "FP32", "shape": IMAGE.shape, "data": IMAGE.ravel().tolist()}]
        while not self.stopping:
            try:
                answer = await client.post("/v2/models/digits/infer", json={"inputs": inputs})
                self.answers["REST" if answer.status_code == 200 else answer.text] += 1
            except httpx.TransportError as error:
                self.answers[repr(error)] += 1


def upstream(server: ServerProcess) -> Upstream:
    return Upstream(server.port("REST"), server.port("gRPC"))


@pytest.mark.parametrize(
    ("proxy", "one_port"), [(envoy, False), (nginx, False), (envoy, True)], ids=["envoy", "nginx", "envoy-one_port"]
)
async def test_a_server_that_ends_costs_no_call(
    start_server: StartServer, tmp_path: Path, proxy: Any, one_port: bool
) -> None:
    """SIGTERM amid calls over gRPC and REST: every call is answered, before, during and after, and it exits with 0."""
    servers = []
    for _ in range(2):
        flags = [*on_one_port(), "--workers", "2"] if one_port else []
        servers.append(await asyncio.to_thread(start_server, *flags, "--drain-delay-secs", "2"))
    load = Load()
    async with (
        proxy(tmp_path, list(map(upstream, servers))) as there,
        grpc.aio.insecure_channel(f"127.0.0.1:{there.grpc}") as channel,
        httpx.AsyncClient(base_url=f"http://127.0.0.1:{there.rest}", timeout=30) as client,
    ):
        calls = [load.grpc_calls(channel) for _ in range(TOGETHER)]
        running = asyncio.gather(*calls, *(load.rest_calls(client) for _ in range(TOGETHER)))
        await asyncio.sleep(1)
        servers[0].process.send_signal(signal.SIGTERM)
        status = await asyncio.to_thread(servers[0].process.wait, 60)
        await asyncio.sleep(1)
        load.stopping = True
        await running
    assert status == 0
    assert set(load.answers) == {"gRPC", "REST"}, load.answers
    assert min(load.answers.values()) > 100
