"""The RPCs with streams, over both transports: ModelStreamInfer and gRPC's health service."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any

import grpc
import grpc.aio
import numpy as np
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from tritonclient.grpc import service_pb2 as pb
from tritonclient.grpc import service_pb2_grpc

from server.errors import QueueFull
from server.settings import GrpcSettings, TlsSettings
from server.transport.grpcio import GrpcioServer
from server.transport.http2.server import Http2Server
from tests.support.fake_dataplane import MODEL, FakeDataPlane


@pytest.fixture
def dataplane() -> FakeDataPlane:
    return FakeDataPlane()


@pytest.fixture(params=[pytest.param(Http2Server, id="http2"), pytest.param(GrpcioServer, id="grpcio")])
async def channel(request: pytest.FixtureRequest, dataplane: FakeDataPlane) -> AsyncIterator[grpc.aio.Channel]:
    server = request.param(dataplane, "127.0.0.1", GrpcSettings(port=0), TlsSettings())
    async with grpc.aio.insecure_channel(f"127.0.0.1:{await server.start()}") as opened:
        yield opened
    await server.stop(0)


@pytest.fixture
def stream(channel: grpc.aio.Channel) -> Any:
    return service_pb2_grpc.GRPCInferenceServiceStub(channel).ModelStreamInfer


@pytest.fixture
def health(channel: grpc.aio.Channel) -> Any:
    return health_pb2_grpc.HealthStub(channel)


async def until(condition: Callable[[], bool]) -> None:
    """Let the loop turn until it is so; the test's time-out bounds it."""
    while not condition():  # noqa: ASYNC110 - counts in a fake make no event
        await asyncio.sleep(0)


async def read_all(call: Any) -> list[Any]:
    answers = []
    while (answer := await call.read()) is not grpc.aio.EOF:
        answers.append(answer)
    return answers


def request(id: str, model: str = MODEL, elements: int = 4) -> Any:
    message = pb.ModelInferRequest(model_name=model, id=id)
    for name in ("a", "b"):
        message.inputs.add(name=name, datatype="FP32", shape=[1, elements])
        message.raw_input_contents.append(np.full(elements, float(len(id)), "<f4").tobytes())
    return message


async def test_answers_come_in_the_order_of_the_requests(stream: Any, dataplane: FakeDataPlane) -> None:
    """However the data plane settles, the stream's answers are in order, and each is its own request's."""
    dataplane.later = True
    answers = [answer async for answer in stream(iter([request("x" * n) for n in range(1, 200)]))]
    assert [len(answer.infer_response.id) for answer in answers] == list(range(1, 200))
    assert [np.frombuffer(a.infer_response.raw_output_contents[0], "<f4")[0] for a in answers] == [
        2.0 * n for n in range(1, 200)
    ]
    assert not any(answer.error_message for answer in answers)
    assert all(answer.infer_response.parameters["triton_final_response"].bool_param for answer in answers)


async def test_an_error_of_one_request_is_its_answer(stream: Any) -> None:
    """A request that fails is told so in its place, and the stream goes on."""
    bad = request("bad")
    del bad.raw_input_contents[1]
    answers = [answer async for answer in stream(iter([request("a"), request("b", "x"), bad, request("c")]))]
    assert [(answer.infer_response.id, bool(answer.error_message)) for answer in answers] == [
        ("a", False),
        ("b", True),
        ("bad", True),
        ("c", False),
    ]
    assert "is not found" in answers[1].error_message
    assert answers[2].error_message.startswith("raw_input_contents")


async def test_an_answer_says_that_it_is_the_last_of_its_request(stream: Any) -> None:
    """Clients of models that answer several times wait for Triton's parameter; here each request has one answer."""
    answers = [answer async for answer in stream(iter([request("a"), request("b")]))]
    said = [{name: value.bool_param for name, value in a.infer_response.parameters.items()} for a in answers]
    assert said == [{"triton_final_response": True}] * 2


async def test_an_empty_stream_is_answered_by_one(stream: Any) -> None:
    """No requests, no answers, and all is well."""
    call = stream(iter([]))
    assert [answer async for answer in call] == []
    assert await call.code() is grpc.StatusCode.OK


async def test_bytes_that_are_no_message_end_the_stream(channel: grpc.aio.Channel) -> None:
    """What was asked before is answered; then the stream ends with the client's error."""
    call = channel.stream_stream("/inference.GRPCInferenceService/ModelStreamInfer")(
        iter([request("a").SerializeToString(), b"\x0a\xff"])
    )
    assert await call.read()
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call.read()
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT


async def test_a_stream_that_is_cancelled_cancels_its_requests(stream: Any, dataplane: FakeDataPlane) -> None:
    """Every request that still waits is cancelled with its stream."""
    dataplane.held = True
    call = stream(iter([request("a"), request("b"), request("c")]))
    reading = asyncio.ensure_future(call.read())
    await until(lambda: len(dataplane.requests) == 3)
    call.cancel()
    await until(lambda: len(dataplane.cancelled) == 3)
    with pytest.raises(asyncio.CancelledError):
        await reading


async def test_no_more_are_taken_than_are_answered(stream: Any, dataplane: FakeDataPlane) -> None:
    """Requests of which none is answered are taken up to a bound; the client's further ones wait on its side."""
    dataplane.held = True
    call = stream(iter([request("x") for _ in range(500)]))
    reading = asyncio.ensure_future(call.read())
    await dataplane.arrived.wait()
    for _ in range(2000):
        await asyncio.sleep(0)
    assert 0 < len(dataplane.requests) <= 64
    dataplane.release()
    await reading
    assert len(await read_all(call)) == 499


async def test_large_answers_to_a_slow_reader(stream: Any, dataplane: FakeDataPlane) -> None:
    """Answers larger than the client's windows all arrive, and unread ones hold the requests back."""
    requests = [request("x", elements=100_000) for _ in range(40)]
    call = stream(iter(requests))
    first = await call.read()
    assert len(first.infer_response.raw_output_contents[0]) == 400_000
    assert len(await read_all(call)) == 39


async def test_health_check(health: Any, dataplane: FakeDataPlane) -> None:
    """Check says what the data plane says, for the server and for the services that it has."""
    for service in ("", "inference.GRPCInferenceService"):
        for ready, status in ((True, "SERVING"), (False, "NOT_SERVING")):
            dataplane.ready_now = ready
            answer = await health.Check(health_pb2.HealthCheckRequest(service=service))
            assert health_pb2.HealthCheckResponse.ServingStatus.Name(answer.status) == status
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await health.Check(health_pb2.HealthCheckRequest(service="x"))
    assert caught.value.code() is grpc.StatusCode.NOT_FOUND


async def test_health_watch(health: Any, dataplane: FakeDataPlane) -> None:
    """Watch tells the status at once and each change of it, and ends when the server shuts down."""
    call = health.Watch(health_pb2.HealthCheckRequest())
    assert (await call.read()).status == health_pb2.HealthCheckResponse.SERVING
    dataplane.ready_now = False
    assert (await call.read()).status == health_pb2.HealthCheckResponse.NOT_SERVING
    dataplane.draining_now = True
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call.read()
    assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
    unknown = health.Watch(health_pb2.HealthCheckRequest(service="x"))
    dataplane.draining_now = False
    assert (await unknown.read()).status == health_pb2.HealthCheckResponse.SERVICE_UNKNOWN
    unknown.cancel()


async def test_a_full_queue_in_a_stream(stream: Any, dataplane: FakeDataPlane) -> None:
    """Overload is an answer like any other: the stream goes on, and its client may ask again."""
    dataplane.outcome = QueueFull(MODEL, 4)
    [answer] = [answer async for answer in stream(iter([request("a")]))]
    assert answer.error_message == str(QueueFull(MODEL, 4))


# --- the final response ---------------------------------------------------------------------------------


async def test_every_answer_says_that_it_is_the_final_one(stream: Any) -> None:
    """Triton's `triton_final_response`: of a model that answers once it is always true, asked for or not."""
    asked = request("b")
    asked.parameters["triton_enable_empty_final_response"].bool_param = True
    answers = [answer async for answer in stream(iter([request("a"), asked]))]
    assert [answer.infer_response.parameters["triton_final_response"].bool_param for answer in answers] == [True, True]
    assert [answer.infer_response.id for answer in answers] == ["a", "b"]


async def test_an_error_says_that_it_is_the_final_answer(stream: Any) -> None:
    """Of a request; a message that never became one has no more than its id."""
    bad = request("bad")
    del bad.raw_input_contents[1]
    failed, refused = [answer.infer_response async for answer in stream(iter([request("b", "x"), bad]))]
    assert (failed.model_name, failed.id, failed.parameters["triton_final_response"].bool_param) == ("x", "b", True)
    assert (refused.model_name, refused.id, dict(refused.parameters)) == ("", "bad", {})


async def test_an_answer_outside_of_a_stream_does_not_say_so(channel: grpc.aio.Channel) -> None:
    """ModelInfer has one answer anyhow, and takes the parameter as Triton does."""
    asked = request("a")
    asked.parameters["triton_enable_empty_final_response"].bool_param = True
    answer = await service_pb2_grpc.GRPCInferenceServiceStub(channel).ModelInfer(asked)
    assert dict(answer.parameters) == {}
