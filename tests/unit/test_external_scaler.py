"""KEDA's external scaler: what all replicas are asked, to a real gRPC client over both transports."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import grpc
import grpc.aio
import pytest

from server.errors import ReplicasUnreached
from server.proto.keda import externalscaler_pb2 as pb
from server.proto.keda.externalscaler_pb2_grpc import ExternalScalerStub
from server.scaling import Asked, Replicas, Told, one_each, read
from server.settings import GrpcSettings, HttpSettings, ScalingSettings, TlsSettings
from server.transport.external_scaler import METRIC, external_scaler
from server.transport.grpcio import GrpcioServer
from server.transport.http1.server import Http1Server
from server.transport.http2.server import Http2Server
from server.transport.metrics import MetricsApp
from tests.support.fake_dataplane import FakeDataPlane


def metrics(hot: float, cold: float = 0.1, tritons: int = 0) -> bytes:
    up = "".join(f'forwardpass_triton_up{{triton="t{n}"}} 1.0\n' for n in range(tritons))
    return (
        "# HELP forwardpass_saturation x\n# TYPE forwardpass_saturation gauge\n"
        f'forwardpass_saturation{{model="hot",version="1"}} {hot}\n'
        f'forwardpass_saturation{{model="co\\"ld",version="2"}} {cold}\n{up}'
        'nv_inference_count{model="hot",version="1"} 5.0\n'
    ).encode()


Own = Callable[[], bytes]


@asynccontextmanager
async def scaler(
    own: Own, transport: type[Http2Server | GrpcioServer] = Http2Server, **settings: Any
) -> AsyncIterator[tuple[Any, FakeDataPlane]]:
    dataplane = FakeDataPlane()

    async def text() -> bytes:
        return own()

    scaling = ScalingSettings(external_scaler=True, poll_s=0.01, **settings)
    server = transport(dataplane, "127.0.0.1", GrpcSettings(port=0), TlsSettings(), external_scaler(scaling, text))  # type: ignore[arg-type]
    port = await server.start()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        yield ExternalScalerStub(channel), dataplane  # type: ignore[no-untyped-call]
    await server.stop(0)


def ref(**metadata: str) -> Any:
    return pb.ScaledObjectRef(name="predict", namespace="ns", scalerMetadata={"scalerAddress": "x:8001", **metadata})


@pytest.mark.parametrize("transport", [Http2Server, GrpcioServer])
async def test_keda_is_told_the_work_and_what_a_replica_is_to_have(
    transport: type[Http2Server | GrpcioServer],
) -> None:
    """In percent, of the hottest model or of one; the trigger's metadata may say otherwise."""
    async with scaler(lambda: metrics(1.43), transport) as (stub, _):
        (spec,) = (await stub.GetMetricSpec(ref())).metricSpecs
        assert (spec.metricName, spec.targetSize, spec.targetSizeFloat) == (METRIC, 70, pytest.approx(70))
        (spec,) = (await stub.GetMetricSpec(ref(targetSaturation="0.5"))).metricSpecs
        assert spec.targetSizeFloat == 50

        (value,) = (await stub.GetMetrics(pb.GetMetricsRequest(scaledObjectRef=ref(), metricName=METRIC))).metricValues
        assert (value.metricValue, value.metricValueFloat) == (143, pytest.approx(143))
        asked = pb.GetMetricsRequest(scaledObjectRef=ref(model='co"ld'), metricName=METRIC)
        assert (await stub.GetMetrics(asked)).metricValues[0].metricValueFloat == pytest.approx(10)

        assert (await stub.IsActive(ref())).result is True
        assert (await stub.IsActive(ref(activationSaturation="2"))).result is False


@pytest.mark.parametrize("transport", [Http2Server, GrpcioServer])
async def test_the_stream_of_specs_begins_with_what_is_told_when_asked(
    transport: type[Http2Server | GrpcioServer],
) -> None:
    """At once; it stays open, says nothing more, and ends with the server, or with whoever asked."""
    async with scaler(lambda: metrics(1), transport) as (stub, dataplane), asyncio.timeout(20):
        with pytest.raises(grpc.aio.AioRpcError, match=r"scalerMetadata\.targetSaturation"):
            await stub.StreamMetricSpec(ref(targetSaturation="0")).read()
        given_up = stub.StreamMetricSpec(ref())
        assert await given_up.read() == await stub.GetMetricSpec(ref())
        given_up.cancel()
        stream = stub.StreamMetricSpec(ref(targetSaturation="0.5"))
        assert await stream.read() == await stub.GetMetricSpec(ref(targetSaturation="0.5"))
        rest = asyncio.ensure_future(stream.read())
        await asyncio.sleep(0.1)
        assert not rest.done()
        dataplane.draining_now = True
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await rest
        assert caught.value.code() is grpc.StatusCode.UNAVAILABLE


@pytest.mark.parametrize(
    ("metadata", "named"),
    [
        ({"targetSaturation": "0"}, "targetSaturation"),
        ({"targetSaturation": "much"}, "targetSaturation"),
        ({"targetSaturation": "nan"}, "targetSaturation"),
        ({"scales": "nodes"}, "scales"),
    ],
)
async def test_metadata_that_is_wrong_is_named(metadata: dict[str, str], named: str) -> None:
    """INVALID_ARGUMENT, with the key."""
    async with scaler(lambda: metrics(1)) as (stub, _):
        with pytest.raises(grpc.aio.AioRpcError, match=f"scalerMetadata.{named}") as caught:
            await stub.GetMetricSpec(ref(**metadata))
        assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT


async def test_an_unknown_metric_is_refused_and_so_is_all_of_it_where_it_is_off() -> None:
    """INVALID_ARGUMENT; without the setting UNIMPLEMENTED."""
    async with scaler(lambda: metrics(1)) as (stub, _):
        with pytest.raises(grpc.aio.AioRpcError, match="metricName"):
            await stub.GetMetrics(pb.GetMetricsRequest(scaledObjectRef=ref(), metricName="cpu"))
    assert external_scaler(ScalingSettings(), nobody) == ()


def test_all_of_kedas_proto_is_served() -> None:
    """Each call by its name, its messages, and whether it streams."""
    service = pb.DESCRIPTOR.services_by_name["ExternalScaler"]
    rows = external_scaler(ScalingSettings(external_scaler=True), nobody)
    served = {row.name: (row.request.DESCRIPTOR, row.response.DESCRIPTOR, row.streams) for row in rows}
    assert served == {
        f"/{service.full_name}/{each.name}": (each.input_type, each.output_type, each.server_streaming)
        for each in service.methods
    }
    assert len(served) == 5


async def nobody() -> bytes:
    raise AssertionError("it is asked")


async def test_a_stream_tells_of_every_change_and_ends_with_the_server() -> None:
    """Active, idle, active again; UNAVAILABLE when it shuts down, so that KEDA asks another replica."""
    now = [1.0]
    async with scaler(lambda: metrics(now[0], 0.0)) as (stub, dataplane), asyncio.timeout(5):
        stream = stub.StreamIsActive(ref())
        assert (await stream.read()).result is True
        now[0] = 0.0
        assert (await stream.read()).result is False
        now[0] = 0.5
        assert (await stream.read()).result is True
        dataplane.draining_now = True
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await stream.read()
        assert caught.value.code() is grpc.StatusCode.UNAVAILABLE


async def test_all_replicas_are_asked_and_one_that_hangs_is_taken_to_be_like_the_others() -> None:
    """The sum over those that answer by HTTP, on real sockets; nobody: UNAVAILABLE, and KEDA falls back."""
    http = HttpSettings()
    peer = Http1Server(MetricsApp(lambda _: (metrics(0.9, tritons=2), "text/plain")), "127.0.0.1", 0, http)
    port = await peer.start()
    try:
        settings = ScalingSettings(external_scaler=True, peers=f"127.0.0.1:{port}")
        asked = await Replicas(settings, nobody).asked()
        assert asked.of_replicas() == pytest.approx(0.9)
        assert asked.of_tritons() == pytest.approx(1.8)
    finally:
        await peer.stop(0)
    with pytest.raises(ReplicasUnreached, match="none of the 1"):
        await Replicas(settings, nobody).asked()
    async with scaler(lambda: b"", peers=f"127.0.0.1:{port}") as (stub, _):
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await stub.IsActive(ref())
        assert caught.value.code() is grpc.StatusCode.UNAVAILABLE


def test_a_replica_with_an_address_of_each_family_is_asked_once() -> None:
    """As the headless Service of a dual-stack cluster has them: twice would be twice the work."""
    four = [(socket.AF_INET, 1, 6, "", (address, 8002)) for address in ("10.0.0.2", "10.0.0.1", "10.0.0.1")]
    six = [(socket.AF_INET6, 1, 6, "", (address, 8002, 0, 0)) for address in ("fd00::2", "fd00::1")]
    assert one_each([*six, *four]) == ["10.0.0.1", "10.0.0.2"]
    assert one_each(six) == ["fd00::1", "fd00::2"]
    assert one_each([]) == []


async def test_replicas_of_one_family_are_reached_by_it() -> None:
    """In a cluster of IPv6 alone."""
    peer = Http1Server(MetricsApp(lambda _: (metrics(0.9), "text/plain")), "::1", 0, HttpSettings())
    port = await peer.start()
    try:
        asked = await Replicas(ScalingSettings(external_scaler=True, peers=f"[::1]:{port}"), nobody).asked()
        assert asked.of_replicas() == pytest.approx(0.9)
    finally:
        await peer.stop(0)


def test_what_replicas_ask_together_is_the_hottest_models_sum() -> None:
    """Not the sum of each replica's hottest: models that are hot on different replicas need no more of them."""
    one, other = Told({("a", "1"): 0.9, ("b", "1"): 0.1}, 2), Told({("a", "1"): 0.1, ("b", "1"): 0.8}, 3)
    both = Asked([one, other], 2)
    assert both.of_replicas() == pytest.approx(1.0)
    assert both.of_replicas("b") == pytest.approx(0.9)
    assert both.of_tritons() == pytest.approx(0.5 * 3)
    assert Asked([one, other], 4).of_replicas() == pytest.approx(2.0)
    assert Asked([Told({("a", "1"): 0.2}, 0)], 1).of_tritons() == pytest.approx(0.2)


async def test_who_asks_often_asks_the_replicas_once_in_a_while() -> None:
    """The answer holds for `poll_s`, and those who ask at once share it."""
    times, clock = [0], [0.0]

    async def own() -> bytes:
        times[0] += 1
        return metrics(1)

    replicas = Replicas(ScalingSettings(external_scaler=True, poll_s=2), own, lambda: clock[0])
    await asyncio.gather(*(replicas.asked() for _ in range(5)))
    assert times == [1]
    clock[0] = 2.5
    await replicas.asked()
    assert times == [2]


def test_metrics_that_are_none_say_nothing() -> None:
    """A line that can't be read is no work."""
    assert read(b"forwardpass_saturation{model= 3\n\xff") == Told({}, 0)


@pytest.mark.parametrize("peers", ["replicas", ":8002", "host:", "host:0", "host:99999"])
def test_peers_are_an_address(peers: str) -> None:
    """HOST:PORT, and only with the scaler."""
    with pytest.raises(ValueError, match="HOST:PORT"):
        ScalingSettings(external_scaler=True, peers=peers)
    with pytest.raises(ValueError, match="external-scaler"):
        ScalingSettings(peers="host:1")
