"""Several responses to one request, over sockets: ModelStreamInfer by both transports, generate and generate_stream.

The model is the scripted engine's: asked with x it gives x responses; everything else is the server's own.
"""

from __future__ import annotations

import asyncio
import json
import queue
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import httpx
import numpy as np
import pytest
import tritonclient.grpc as triton_grpc
from tritonclient.grpc import service_pb2 as pb
from tritonclient.grpc import service_pb2_grpc

from server.engine.base import EngineSpec
from server.engine.fake import Script, counted
from server.settings import GrpcSettings, HttpSettings, TlsSettings
from server.tensor import Array
from server.transport.grpcio import GrpcioServer
from server.transport.http2.server import Http2Server
from server.transport.rest import RestServer
from server.types import Batch
from tests.unit.test_dataplane import CONFIG as ONE_ANSWER
from tests.unit.test_dataplane import Plane
from tests.unit.test_decoupled import CONFIG

ENDLESS = 10_000_000
LARGE = np.ones((1, 10_000), np.float32)
"""An output of 40 kB."""


@pytest.fixture
async def plane(tmp_path: Path) -> AsyncIterator[Plane]:
    """Model m gives x responses, n one as any model."""
    plane = Plane(tmp_path, Script())
    plane.write("m", "1", config=CONFIG)
    plane.write("n", "1", config=ONE_ANSWER.replace("dims: [ 2 ]", "dims: [ 1 ]"))
    await plane.start()
    plane.engine.batches.clear()
    yield plane
    plane.script.release.set()
    await plane.models.close()
    plane.dataplane.close()


@pytest.fixture(params=[pytest.param(Http2Server, id="http2"), pytest.param(GrpcioServer, id="grpcio")])
async def address(request: pytest.FixtureRequest, plane: Plane) -> AsyncIterator[str]:
    server = request.param(plane.dataplane, "127.0.0.1", GrpcSettings(port=0), TlsSettings())
    yield f"127.0.0.1:{await server.start()}"
    await server.stop(0)


@pytest.fixture
async def rest(plane: Plane) -> AsyncIterator[RestServer]:
    server = RestServer(plane.dataplane, "127.0.0.1", HttpSettings(port=0, write_timeout_s=1, min_bytes_per_s=2**30))
    yield server
    await server.stop(0)


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(20):
        while not condition():  # noqa: ASYNC110 - counts make no event
            await asyncio.sleep(0.01)


def large(_spec: EngineSpec, _batch: Batch) -> Iterator[dict[str, Array]]:
    """Responses without end, more of them than any buffer on the way takes."""
    while True:
        yield {"y": LARGE}


# --- ModelStreamInfer -----------------------------------------------------------------------------------


def asking(x: int, id: str = "r", model: str = "m", **parameters: bool) -> Any:
    message = pb.ModelInferRequest(model_name=model, id=id)
    message.inputs.add(name="x", datatype="FP32", shape=[1, 1])
    message.raw_input_contents.append(np.float32(x).tobytes())
    for name, value in parameters.items():
        message.parameters[name].bool_param = value
    return message


def told(answer: Any) -> tuple[str, float | None, bool]:
    """The id, the value, None without one, and whether it is the final response."""
    response = answer.infer_response
    raw = response.raw_output_contents
    value = float(np.frombuffer(raw[0], "<f4")[0]) if raw else None
    return response.id, value, response.parameters["triton_final_response"].bool_param


async def stream(address: str, *messages: Any) -> list[Any]:
    async with grpc.aio.insecure_channel(address) as channel:
        call = service_pb2_grpc.GRPCInferenceServiceStub(channel).ModelStreamInfer
        return [answer async for answer in call(iter(messages))]


async def test_responses_are_told_as_they_come_and_their_end_on_demand(address: str) -> None:
    """As Triton: no response of the model is final; one without outputs is, for those who asked for it."""
    assert [told(one) for one in await stream(address, asking(2))] == [("r", 2, False), ("r", 3, False)]
    assert await stream(address, asking(0)) == []
    answers = await stream(address, asking(2, triton_enable_empty_final_response=True))
    assert [told(one) for one in answers] == [("r", 2, False), ("r", 3, False), ("r", None, True)]
    end = answers[-1].infer_response
    assert (end.model_name, end.model_version, list(end.outputs)) == ("m", "", [])


def by_tritonclient(address: str, responses: int) -> list[tuple[float | None, bool]]:
    """Of each response the value, None without one, and whether it is the final one."""
    told: queue.Queue[Any] = queue.Queue()
    x = triton_grpc.InferInput("x", [1, 1], "FP32").set_data_from_numpy(np.full((1, 1), responses, np.float32))
    with triton_grpc.InferenceServerClient(address) as client:
        client.start_stream(lambda result, error: told.put((result, error)))
        client.async_stream_infer("m", [x], request_id="r", enable_empty_final_response=True)
        found: list[tuple[float | None, bool]] = []
        while not found or not found[-1][1]:
            result, error = told.get(timeout=10)
            assert error is None
            y = result.as_numpy("y")
            final = result.get_response().parameters["triton_final_response"].bool_param
            found.append((None if y is None else float(y.item()), final))
    return found


async def test_tritonclient_gets_them(address: str) -> None:
    """Triton's own client, with its own way to ask for the end."""
    found = await asyncio.to_thread(by_tritonclient, address, 3)
    assert found == [(3, False), (4, False), (5, False), (None, True)]


async def test_an_error_ends_its_request_and_no_other(plane: Plane, address: str) -> None:
    """It comes behind the responses before it, says that it is the final one, and the stream goes on."""
    plane.engine.play(["answer", "fail"])
    answers = await stream(address, asking(3, "a"))
    assert told(answers[0]) == ("a", 3, False)
    assert answers[1].error_message
    assert told(answers[1]) == ("a", None, True)
    assert len(answers) == 2
    assert len(await stream(address, asking(3))) == 3


async def test_a_long_answer_holds_nobody_up(plane: Plane, address: str) -> None:
    """Answers of other requests in the stream come while the responses of one are not over."""
    plane.script.latency_s = lambda _: 0.05
    answers = [told(one)[0] for one in await stream(address, asking(6, "long"), asking(1, "one", model="n"))]
    assert answers.count("long") == 6
    assert answers.index("one") < 5


async def test_a_unary_call_is_refused(address: str) -> None:
    """As Triton: ModelInfer has no place for several responses."""
    async with grpc.aio.insecure_channel(address) as channel:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await service_pb2_grpc.GRPCInferenceServiceStub(channel).ModelInfer(asking(1))
    assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED
    assert "decoupled" in (caught.value.details() or "")


async def test_a_stream_that_is_cancelled_ends_its_passes(plane: Plane, address: str) -> None:
    """The engine makes no more responses, and its instance is free."""
    async with grpc.aio.insecure_channel(address) as channel:
        call = service_pb2_grpc.GRPCInferenceServiceStub(channel).ModelStreamInfer(iter([asking(ENDLESS)]))
        assert await call.read()
        call.cancel()
        await until(lambda: plane.engine.given_up == 1)
    assert len(await stream(address, asking(1))) == 1


async def test_a_client_that_does_not_read_holds_its_pass_up(plane: Plane, address: str) -> None:
    """What is made ahead is bounded by the windows of the connection, not by the model."""
    plane.script.answers = large
    async with grpc.aio.insecure_channel(address) as channel:
        call = service_pb2_grpc.GRPCInferenceServiceStub(channel).ModelStreamInfer(iter([asking(1)]))
        assert await call.read()
        before = -1
        while before != len(plane.engine.batches):
            before = len(plane.engine.batches)
            await asyncio.sleep(0.2)
        assert before < 1000
        call.cancel()


# --- generate -------------------------------------------------------------------------------------------


def url(port: int, kind: str, model: str = "m") -> str:
    return f"http://127.0.0.1:{port}/v2/models/{model}/{kind}"


async def events(response: httpx.Response) -> AsyncIterator[Any]:
    async for line in response.aiter_lines():
        if line:
            yield json.loads(line.removeprefix("data: "))


async def test_generate_stream_tells_each_response(rest: RestServer) -> None:
    """One event each, none for the end; no response is no event."""
    port = await rest.start()
    async with httpx.AsyncClient() as client:
        for number in (0, 1, 3):
            async with client.stream("POST", url(port, "generate_stream"), json={"x": number, "id": "r"}) as response:
                assert response.status_code == 200
                assert [one["y"] async for one in events(response)] == [number + n for n in range(number)]


async def test_events_are_written_as_they_come(plane: Plane, rest: RestServer) -> None:
    """The first is here while the second is not made yet."""
    plane.engine.play(["answer", "hang"])
    port = await rest.start()
    async with (
        httpx.AsyncClient() as client,
        client.stream("POST", url(port, "generate_stream"), json={"x": 2}) as response,
    ):
        told = events(response)
        assert (await anext(told))["y"] == 2
        plane.script.release.set()
        assert [one["y"] async for one in told] == [3]


async def test_an_error_behind_the_first_event_is_an_event(plane: Plane, rest: RestServer) -> None:
    """The status has been told by then; before the first event it tells of the error."""
    port = await rest.start()
    async with httpx.AsyncClient() as client:
        plane.engine.play(["answer", "fail"])
        async with client.stream("POST", url(port, "generate_stream"), json={"x": 3}) as response:
            assert response.status_code == 200
            first, last = [one async for one in events(response)]
        assert first["y"] == 3
        assert last.keys() == {"error"}
        plane.engine.play(["fail"])
        answer = await client.post(url(port, "generate_stream"), json={"x": 3})
        assert (answer.status_code, answer.json().keys()) == (500, {"error"})


async def test_a_response_that_json_can_t_carry_ends_the_stream(plane: Plane, rest: RestServer) -> None:
    """NaN is a status, or behind the first event an event, and the engine makes no more."""
    port = await rest.start()
    async with httpx.AsyncClient() as client:
        for number, (acts, status) in enumerate(((["nan"], 501), (["answer", "nan"], 200)), start=1):
            plane.engine.play(acts)
            answer = await client.post(url(port, "generate_stream"), json={"x": ENDLESS})
            assert answer.status_code == status
            assert "holds NaN" in json.loads(answer.text.split("data: ")[-1])["error"]
            await until(lambda closed=number: plane.engine.given_up == closed)  # type: ignore[misc]


async def test_generate_takes_exactly_one_response(plane: Plane, rest: RestServer) -> None:
    """None, or several, are an error; of several no more than two are made."""
    port = await rest.start()
    async with httpx.AsyncClient() as client:
        assert (await client.post(url(port, "generate"), json={"x": 1})).json()["y"] == 1
        for number in (0, 2, ENDLESS):
            answer = await client.post(url(port, "generate"), json={"x": number})
            assert answer.status_code == 400
            assert "use generate_stream" in answer.json()["error"]
        assert len(plane.engine.batches) < 1000
        body = {"inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 1], "data": [1]}]}
        assert (await client.post(url(port, "infer"), json=body)).status_code == 501


async def test_a_client_that_leaves_a_stream_ends_its_pass(plane: Plane, rest: RestServer) -> None:
    """The engine makes no more, and the next request has the instance."""
    port = await rest.start()
    async with httpx.AsyncClient() as client:
        async with client.stream("POST", url(port, "generate_stream"), json={"x": ENDLESS}) as response:
            await anext(events(response))
        await until(lambda: plane.engine.given_up == 1)
        assert (await client.post(url(port, "generate"), json={"x": 1})).status_code == 200


async def test_a_reader_that_takes_nothing_is_cut_off(plane: Plane, rest: RestServer) -> None:
    """It holds the pass up, not memory; then it is counted, and the instance is free."""
    plane.script.answers = large
    port = await rest.start()
    reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=1024)
    body = b'{"x": 1}'
    head = f"POST /v2/models/m/generate_stream HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n".encode()
    writer.write(head + body)
    await reader.readexactly(100)
    await until(lambda: rest.closed["slow_reader"] == 1)
    await until(lambda: plane.engine.given_up == 1)
    assert len(plane.engine.batches) < 1000
    writer.close()
    plane.script.answers = counted
    async with httpx.AsyncClient() as client:
        assert (await client.post(url(port, "generate"), json={"x": 1})).status_code == 200


async def test_a_stream_is_finished_before_the_listener_stops(plane: Plane, rest: RestServer) -> None:
    """A drain waits for it; after the grace its last event says why it ends."""
    plane.script.latency_s = lambda _: 0.02
    port = await rest.start()
    async with httpx.AsyncClient() as client:
        async with client.stream("POST", url(port, "generate_stream"), json={"x": 10}) as response:
            told = events(response)
            assert (await anext(told))["y"] == 10
            stopping = asyncio.ensure_future(rest.stop(20))
            assert len([one async for one in told]) == 9
        await stopping


async def test_the_end_of_the_grace_is_an_event(plane: Plane, rest: RestServer) -> None:
    """What was not finished ends with an error, properly framed, and its pass ends as well."""
    plane.script.latency_s = lambda _: 0.02
    port = await rest.start()
    async with (
        httpx.AsyncClient() as client,
        client.stream("POST", url(port, "generate_stream"), json={"x": ENDLESS}) as response,
    ):
        told = events(response)
        await anext(told)
        stopping = asyncio.ensure_future(rest.stop(0.1))
        last = [one async for one in told][-1]
        assert last == {"error": "the server is shutting down"}
        await stopping
    await until(lambda: plane.engine.given_up == 1)
