"""Our server behind Envoy and nginx, as `server/transport/proxies.md` configures them.

A proxy that is missing skips its tests with the reason; under CI they fail.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import re
import struct
import time
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import grpc
import grpc.aio
import httpx
import numpy as np
import pytest
import tritonclient.grpc as triton
from grpc_health.v1 import health_pb2, health_pb2_grpc
from tritonclient.grpc import service_pb2 as pb
from tritonclient.grpc import service_pb2_grpc

from server.errors import QueueFull
from server.settings import GrpcSettings, HttpSettings, Settings, TlsSettings
from server.tensor import Tensor
from server.transport.entrance import shared_entrance
from server.transport.http2.server import Http2Server
from server.transport.rest import RestServer
from server.types import NO_DEADLINE, InferRequest, InferResponse
from tests.support.fake_dataplane import MODEL, FakeDataPlane
from tests.support.parts import self_signed
from tests.support.proxies import Proxy, Upstream, envoy, nginx

Run = Callable[..., contextlib.AbstractAsyncContextManager[Proxy]]
PROXIES = {"envoy": envoy, "nginx": nginx}
LARGE = 2_000_000
"""Elements of 4 bytes, in each of two inputs and in the output."""
STATUS = grpc.StatusCode


class Way(NamedTuple):
    """From a client to a server, through a proxy."""

    dataplane: FakeDataPlane
    proxy: Proxy
    server: Http2Server


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> TlsSettings:
    return self_signed(tmp_path_factory.mktemp("tls"))


@contextlib.asynccontextmanager
async def serving(
    dataplane: FakeDataPlane, tls: TlsSettings | None = None, *, one_port: bool = False, **grpc_settings: Any
) -> AsyncIterator[tuple[Upstream, Http2Server]]:
    """REST and gRPC, on a port each or on one."""
    tls = tls or TlsSettings()
    port = int(one_port)
    settings = Settings(http=HttpSettings(port=port), grpc=GrpcSettings(port=port, **grpc_settings), tls=tls)
    rest = RestServer(dataplane, "127.0.0.1", settings.http, tls)  # type: ignore[arg-type]
    ours = Http2Server(dataplane, "127.0.0.1", settings.grpc, tls)  # type: ignore[arg-type]
    entrance = shared_entrance(settings, rest.listener, ours)
    entrance._port = 0
    if one_port:
        port = await entrance.start()
        upstream = Upstream(port, port)
    else:
        upstream = Upstream(await rest.start(), await ours.start())
    try:
        yield upstream, ours
    finally:
        entrance.close()
        await asyncio.gather(rest.stop(1), ours.stop(1))


UPSTREAMS = {
    "two_ports": {"tls": False, "one_port": False},
    "one_port": {"tls": False, "one_port": True},
    "two_ports_tls": {"tls": True, "one_port": False},
    "one_port_tls": {"tls": True, "one_port": True},
}


@pytest.fixture(params=[f"{proxy}-{upstream}" for proxy in PROXIES for upstream in UPSTREAMS])
async def way(request: pytest.FixtureRequest, tmp_path: Path, certificate: TlsSettings) -> AsyncIterator[Way]:
    proxy_name, _, upstream_name = request.param.partition("-")
    async with through(proxy_name, tmp_path, certificate, **UPSTREAMS[upstream_name]) as there:
        yield there


@pytest.fixture(params=list(PROXIES))
async def plain(request: pytest.FixtureRequest, tmp_path: Path, certificate: TlsSettings) -> AsyncIterator[Way]:
    async with through(request.param, tmp_path, certificate) as there:
        yield there


@contextlib.asynccontextmanager
async def through(
    proxy: str,
    folder: Path,
    certificate: TlsSettings,
    *,
    dataplane: FakeDataPlane | None = None,
    tls: bool = False,
    one_port: bool = False,
    **settings: Any,
) -> AsyncIterator[Way]:
    dataplane = dataplane or FakeDataPlane()
    async with serving(dataplane, certificate if tls else None, one_port=one_port, **settings) as (upstream, server):
        run: Run = PROXIES[proxy]
        async with run(folder, [upstream], certificate.certificate if tls else "") as running:
            yield Way(dataplane, running, server)


def channel(proxy: Proxy) -> grpc.aio.Channel:
    options = [("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)]
    return grpc.aio.insecure_channel(f"127.0.0.1:{proxy.grpc}", options)


def asked(id: str = "x", elements: int = 4, model: str = MODEL) -> pb.ModelInferRequest:
    request = pb.ModelInferRequest(model_name=model, id=id)
    for name in ("a", "b"):
        request.inputs.add(name=name, datatype="FP32", shape=[1, elements])
        request.raw_input_contents.append(np.ones(elements, dtype="<f4").tobytes())
    return request


async def test_unary_calls(way: Way) -> None:
    """300 at once, one of 16 MB that is answered with 8, and the synchronous client of Triton."""
    async with channel(way.proxy) as open_channel:
        stub = service_pb2_grpc.GRPCInferenceServiceStub(open_channel)
        answers = await asyncio.gather(*(stub.ModelInfer(asked(str(n)), timeout=60) for n in range(300)))
        assert [answer.id for answer in answers] == [str(n) for n in range(300)]
        large = await stub.ModelInfer(asked("large", LARGE), timeout=60)
        assert large.raw_output_contents[0] == np.full(LARGE, 2, dtype="<f4").tobytes()

    def talk() -> None:
        with triton.InferenceServerClient(f"127.0.0.1:{way.proxy.grpc}") as client:
            assert client.is_server_ready()
            inputs = [triton.InferInput(name, [1, 4], "FP32") for name in ("a", "b")]
            for each in inputs:
                each.set_data_from_numpy(np.ones((1, 4), np.float32))
            assert client.infer(MODEL, inputs).as_numpy("sum").tolist() == [[2, 2, 2, 2]]

    await asyncio.to_thread(talk)
    if way.proxy.admin:
        assert "failed_active_hc" not in await envoys_word(way.proxy, "clusters")


async def test_streams(way: Way) -> None:
    """Both ways: each answer comes before the next request is sent. From the server: a change, when it happens."""
    async with channel(way.proxy) as open_channel:
        stream = service_pb2_grpc.GRPCInferenceServiceStub(open_channel).ModelStreamInfer(timeout=60)
        for n in range(50):
            await stream.write(asked(str(n)))
            answer = await stream.read()
            assert (answer.infer_response.id, answer.error_message) == (str(n), "")
        await stream.write(asked("unknown", model="nobody"))
        assert "nobody" in (await stream.read()).error_message
        for _ in range(5):  # Of a stream as a whole there is no limit: this is 80 MB.
            await stream.write(asked("large", LARGE))
            assert len((await stream.read()).infer_response.raw_output_contents[0]) == 4 * LARGE
        await stream.done_writing()
        assert await stream.read() is grpc.aio.EOF
        assert await stream.code() is STATUS.OK

        watch = health_pb2_grpc.HealthStub(open_channel).Watch(health_pb2.HealthCheckRequest(), timeout=60)
        assert (await watch.read()).status == health_pb2.HealthCheckResponse.SERVING
        # Whoever balances sees it as well, but a call that is under way is not touched.
        way.dataplane.ready_now = False
        assert (await watch.read()).status == health_pb2.HealthCheckResponse.NOT_SERVING
        watch.cancel()


async def test_errors_arrive_as_they_are(way: Way) -> None:
    """Answers without a body: their codes, texts and details; and trailers behind an answer."""
    async with channel(way.proxy) as open_channel:
        stub = service_pb2_grpc.GRPCInferenceServiceStub(open_channel)
        with pytest.raises(grpc.aio.AioRpcError) as unknown:
            await stub.ModelInfer(asked(model="nobody"), timeout=60)
        assert (unknown.value.code(), "nobody" in (unknown.value.details() or "")) == (STATUS.NOT_FOUND, True)

        absent = open_channel.unary_unary("/inference.GRPCInferenceService/Nothing")
        with pytest.raises(grpc.aio.AioRpcError) as unimplemented:
            await absent(b"", timeout=60)
        assert unimplemented.value.code() is STATUS.UNIMPLEMENTED

        way.dataplane.outcome = QueueFull(MODEL, 5, 250)
        with pytest.raises(grpc.aio.AioRpcError) as full:
            await stub.ModelInfer(asked(), timeout=60)
        assert full.value.code() is STATUS.RESOURCE_EXHAUSTED
        trailers = dict(full.value.trailing_metadata())
        assert b"google.rpc.RetryInfo" in trailers["grpc-status-details-bin"]
        way.dataplane.outcome = None

        call = stub.ModelInfer(asked(), metadata=[("x-explain", "1")], timeout=60)
        await call
        assert "total;dur=" in dict(await call.trailing_metadata())["server-timing"]


async def test_a_deadline_crosses(way: Way) -> None:
    """The server knows it and gives the request up; the client is told in time."""
    way.dataplane.held = True
    async with channel(way.proxy) as open_channel:
        stub = service_pb2_grpc.GRPCInferenceServiceStub(open_channel)
        began_ns = time.monotonic_ns()
        with pytest.raises(grpc.aio.AioRpcError) as late:
            await stub.ModelInfer(asked(), timeout=1)
        assert late.value.code() is STATUS.DEADLINE_EXCEEDED
        async with asyncio.timeout(20):
            await way.dataplane.gone.wait()
    [request] = way.dataplane.requests
    assert request.deadline_ns != NO_DEADLINE
    assert 0 < request.deadline_ns - began_ns < 2_000_000_000


async def test_a_cancellation_crosses(way: Way) -> None:
    """Of a call under way, and of a stream amid which the client goes away."""
    way.dataplane.held = True
    async with channel(way.proxy) as open_channel:
        stub = service_pb2_grpc.GRPCInferenceServiceStub(open_channel)
        call = stub.ModelInfer(asked())
        async with asyncio.timeout(20):
            await way.dataplane.arrived.wait()
            call.cancel()
            await way.dataplane.gone.wait()
    assert [request.id for request in way.dataplane.cancelled] == ["x"]

    way.dataplane.gone.clear()
    way.dataplane.arrived.clear()
    async with channel(way.proxy) as open_channel:
        stream = service_pb2_grpc.GRPCInferenceServiceStub(open_channel).ModelStreamInfer()
        await stream.write(asked("streamed"))
        async with asyncio.timeout(20):
            await way.dataplane.arrived.wait()
    async with asyncio.timeout(20):
        await way.dataplane.gone.wait()
    assert [request.id for request in way.dataplane.cancelled] == ["x", "streamed"]


async def test_rest(way: Way) -> None:
    """Beside gRPC: health, a large binary infer request, an error in REST's words."""
    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{way.proxy.rest}", timeout=60) as client:
        assert (await client.get("/v2/health/ready")).status_code == 200
        inputs = [
            {"name": name, "datatype": "FP32", "shape": [1, LARGE], "parameters": {"binary_data_size": 4 * LARGE}}
            for name in ("a", "b")
        ]
        outputs = [{"name": "sum", "parameters": {"binary_data": True}}]
        head = httpx.Request("POST", "http://x", json={"inputs": inputs, "outputs": outputs}).content
        size = {"Inference-Header-Content-Length": str(len(head))}
        body = head + np.ones(2 * LARGE, dtype="<f4").tobytes()
        answer = await client.post(f"/v2/models/{MODEL}/infer", content=body, headers=size)
        assert answer.status_code == 200
        assert answer.content[-4 * LARGE :] == np.full(LARGE, 2, dtype="<f4").tobytes()
        refused = await client.get("/v2/models/nobody")
        assert refused.status_code == 404
        assert "nobody" in refused.json()["error"]


class Talking(FakeDataPlane):
    """Its model gives several responses to a request, each when it is told to."""

    def stream(self, requests: Sequence[InferRequest]) -> None:
        self.held = True
        self.submit(requests)

    def say(self, value: int, *, last: bool = False) -> None:
        [request] = self.requests
        outputs = [Tensor.from_numpy("sum", np.full((1, 4), value, np.float32))]
        response = InferResponse(MODEL, "1", outputs, request.id)
        if last:
            request.settle(response)
        else:
            request.send(response, lambda: None)


@pytest.mark.parametrize("proxy", PROXIES)
async def test_events_arrive_as_they_are_sent(proxy: str, tmp_path: Path, certificate: TlsSettings) -> None:
    """Of generate_stream each is at the client before the next is made; when it goes away, the model is told."""
    dataplane = Talking()
    async with through(proxy, tmp_path, certificate, dataplane=dataplane) as way:
        url = f"http://127.0.0.1:{way.proxy.rest}/v2/models/{MODEL}/generate_stream"
        async with httpx.AsyncClient(timeout=60) as client:
            for stays in (True, False):
                dataplane.requests.clear()
                dataplane.arrived.clear()
                saying = asyncio.create_task(first_word(dataplane))
                async with client.stream("POST", url, json={"a": [1, 2, 3, 4], "b": [1, 2, 3, 4]}) as answer:
                    lines = answer.aiter_lines()
                    for value in range(5):
                        assert json.loads((await anext(lines)).removeprefix("data: "))["sum"] == [value] * 4
                        assert await anext(lines) == ""
                        dataplane.say(value + 1)
                    if stays:
                        dataplane.say(6, last=True)
                        assert len([line async for line in lines]) == 4
                await saying
        async with asyncio.timeout(20):
            await dataplane.gone.wait()
    assert len(dataplane.cancelled) == 1


async def first_word(dataplane: Talking) -> None:
    await dataplane.arrived.wait()
    dataplane.say(0)


# --- connections that end, and servers that are not there ---------------------------------------------


LEAVE = {
    "old": {"max_connection_age_s": 0.3},
    "idle": {"idle_timeout_s": 0.1},
    "pinged": {"keepalive_s": 0.1, "keepalive_timeout_s": 2.0},
}


@pytest.mark.parametrize("proxy", PROXIES)
@pytest.mark.parametrize("which", LEAVE)
async def test_connections_that_the_server_ends_cost_no_call(
    proxy: str, tmp_path: Path, certificate: TlsSettings, which: str
) -> None:
    """The server asks the proxy's connections to leave for their age, or idle ones, or pings them: no call fails."""
    async with through(proxy, tmp_path, certificate, **LEAVE[which]) as way, channel(way.proxy) as open_channel:
        stub = service_pb2_grpc.GRPCInferenceServiceStub(open_channel)
        connections = way.server.connections
        seen: set[Any] = set()
        connections.changed = lambda: seen.update(connections)
        calls = 0
        while calls <= 200 or (len(seen) < 3 and (proxy, which) != ("envoy", "pinged")):
            for number in range(20):
                await stub.ModelInfer(asked(str(number)), timeout=60)
            await asyncio.gather(*(stub.ModelInfer(asked(str(number)), timeout=60) for number in range(20)))
            calls += 40
            # Into the moment in which the server looks at the times of its connections, and out of it.
            await asyncio.sleep(0.05 * (calls // 40 % 8))
    assert len(way.dataplane.requests) == calls
    # Of a connection that left, and not one that was closed.
    assert way.server.connections.closed.keys() <= {which}
    # Envoy, which has two, one of them to ask for health, answers pings. nginx leaves a connection that says something.
    assert (len(seen) <= 2) is ((proxy, which) == ("envoy", "pinged"))


async def test_envoys_pings_are_answered(tmp_path: Path, certificate: TlsSettings) -> None:
    """One that were not would end its connection: after 20 pings it is still the first."""
    dataplane = FakeDataPlane()
    async with serving(dataplane) as (upstream, _), envoy(tmp_path, [upstream], ping_s=0.1) as proxy:
        async with channel(proxy) as open_channel:
            stub = service_pb2_grpc.GRPCInferenceServiceStub(open_channel)
            await stub.ModelInfer(asked(), timeout=60)
            await asyncio.sleep(2)
            await stub.ModelInfer(asked(), timeout=60)
        stats = await envoys_word(proxy, "stats?filter=cluster.grpc.(http2.keepalive_timeout|upstream_cx_total)")
    assert stats.split() == ["cluster.grpc.http2.keepalive_timeout:", "0", "cluster.grpc.upstream_cx_total:", "1"]


async def envoys_word(proxy: Proxy, page: str) -> str:
    async with httpx.AsyncClient() as client:
        return (await client.get(f"http://127.0.0.1:{proxy.admin}/{page}")).text


async def test_who_gives_up_behind_envoy_harms_nobody_else(tmp_path: Path, certificate: TlsSettings) -> None:
    """One client cancels ten times as often as a client may, and its calls share a connection with all others': no call
    of theirs fails."""
    async with through("envoy", tmp_path, certificate, max_resets_per_s=10) as way:
        async with channel(way.proxy) as patient, channel(way.proxy) as impatient:
            stub = service_pb2_grpc.GRPCInferenceServiceStub(patient)
            health = health_pb2_grpc.HealthStub(impatient)
            for _ in range(200):
                watch = health.Watch(health_pb2.HealthCheckRequest(), timeout=60)
                await watch.read()
                watch.cancel()
                for _ in range(2):
                    await stub.ModelInfer(asked(), timeout=60)
        assert not way.server.connections.closed


async def test_what_a_proxy_says_by_itself_is_grpc(plain: Way) -> None:
    """Of a server that is gone a client is told UNAVAILABLE, not the status of some page."""
    async with channel(plain.proxy) as open_channel:
        stub = service_pb2_grpc.GRPCInferenceServiceStub(open_channel)
        await stub.ModelInfer(asked(), timeout=60)
        await plain.server.stop(1)
        with pytest.raises(grpc.aio.AioRpcError) as gone:
            await stub.ModelInfer(asked(), timeout=60)
    assert gone.value.code() is STATUS.UNAVAILABLE


async def test_the_limit_of_a_message_is_the_servers(plain: Way) -> None:
    """A message over it is RESOURCE_EXHAUSTED, and the next call is served."""
    async with channel(plain.proxy) as open_channel:
        stub = service_pb2_grpc.GRPCInferenceServiceStub(open_channel)
        with pytest.raises(grpc.aio.AioRpcError) as too_large:
            await stub.ModelInfer(asked(elements=9_000_000), timeout=60)
        assert too_large.value.code() is STATUS.RESOURCE_EXHAUSTED
        await stub.ModelInfer(asked(), timeout=60)


# --- two servers ----------------------------------------------------------------------------------------


@contextlib.asynccontextmanager
async def two_servers(folder: Path) -> AsyncIterator[tuple[Proxy, FakeDataPlane, FakeDataPlane]]:
    first, second = FakeDataPlane(), FakeDataPlane()
    async with serving(first) as (one, _), serving(second) as (other, _), envoy(folder, [one, other]) as proxy:
        yield proxy, first, second


async def test_envoy_balances_calls_and_asks_who_is_healthy(tmp_path: Path) -> None:
    """Of one client's connection each call goes to either server; to one that says it is not ready goes none."""
    async with two_servers(tmp_path) as (proxy, first, second), channel(proxy) as open_channel:
        stub = service_pb2_grpc.GRPCInferenceServiceStub(open_channel)
        for number in range(100):
            await stub.ModelInfer(asked(str(number)), timeout=60)
        assert min(len(first.requests), len(second.requests)) > 20
        first.ready_now = False
        async with asyncio.timeout(20):
            while not unhealthy(await envoys_word(proxy, "clusters")):  # noqa: ASYNC110 - a page tells nobody
                await asyncio.sleep(0.05)
        counted = len(first.requests)
        for number in range(50):
            await stub.ModelInfer(asked(str(number)), timeout=60)
        assert len(first.requests) == counted
        first.ready_now = True
        async with asyncio.timeout(20):
            while len(first.requests) == counted:
                await stub.ModelInfer(asked(), timeout=60)


def unhealthy(clusters: str) -> bool:
    """Whether Envoy's page says so of a server of gRPC."""
    return re.search(r"^grpc::127.0.0.1:\d+::health_flags::/failed_active_hc", clusters, re.MULTILINE) is not None


# --- gRPC-web through Envoy -----------------------------------------------------------------------------


class Web(NamedTuple):
    """What a gRPC-web client got: its messages, and what stood in the headers or in the frame of trailers."""

    messages: list[bytes]
    trailers: dict[str, str]


async def web(way: Way, method: str, message: Any, *, text: bool = False) -> Web:
    """A call by HTTP/1.1. Source: gRPC's PROTOCOL-WEB.md."""
    kind = "application/grpc-web-text+proto" if text else "application/grpc-web+proto"
    body = framed(message.SerializeToString())
    headers = {"content-type": kind, "accept": kind, "x-grpc-web": "1"}
    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{way.proxy.grpc}", timeout=60) as client:
        answer = await client.post(method, content=base64.b64encode(body) if text else body, headers=headers)
    assert (answer.status_code, answer.headers["content-type"]) == (200, kind)
    return unframed(unarmoured(answer.content) if text else answer.content, dict(answer.headers))


def framed(message: bytes) -> bytes:
    return struct.pack(">BI", 0, len(message)) + message


def unarmoured(text: bytes) -> bytes:
    """Each piece that was sent has base64 of its own, padded where it ends."""
    return b"".join(base64.b64decode(piece, validate=True) for piece in re.findall(rb"[^=]+=*", text))


def unframed(data: bytes, headers: dict[str, str]) -> Web:
    messages: list[bytes] = []
    trailers = {name: value for name, value in headers.items() if name.startswith("grpc-")}
    while data:
        kind, length = struct.unpack(">BI", data[:5])
        part, data = data[5 : 5 + length], data[5 + length :]
        assert len(part) == length
        if kind == 0x80:
            assert not data, "something behind the trailers"
            lines = part.decode().split("\r\n")[:-1]
            trailers |= {line.partition(":")[0]: line.partition(":")[2].strip() for line in lines}
        else:
            assert kind == 0
            messages.append(part)
    return Web(messages, trailers)


@pytest.mark.parametrize("text", [False, True], ids=["binary", "text"])
@pytest.mark.parametrize("one_port", [False, True], ids=["two_ports", "one_port"])
async def test_grpc_web(tmp_path: Path, certificate: TlsSettings, text: bool, one_port: bool) -> None:
    """A browser's calls, by Envoy's filter: an answer with its trailers, a large one, an error, and a stream."""
    async with through("envoy", tmp_path, certificate, one_port=one_port) as way:
        infer = "/inference.GRPCInferenceService/ModelInfer"
        for elements in (4, 100_000):
            [answer], trailers = await web(way, infer, asked("w", elements), text=text)
            answered = pb.ModelInferResponse.FromString(answer)
            assert (answered.id, trailers["grpc-status"]) == ("w", "0")
            assert answered.raw_output_contents[0] == np.full(elements, 2, dtype="<f4").tobytes()

        messages, trailers = await web(way, infer, asked(model="nobody"), text=text)
        assert (messages, trailers["grpc-status"]) == ([], "5")
        assert "nobody" in trailers["grpc-message"]

        way.dataplane.draining_now = True
        [status], trailers = await web(way, "/grpc.health.v1.Health/Watch", health_pb2.HealthCheckRequest(), text=text)
        assert health_pb2.HealthCheckResponse.FromString(status).status == health_pb2.HealthCheckResponse.SERVING
        assert trailers["grpc-status"] == "14", "the server leaves: the stream's trailers come behind its message"
