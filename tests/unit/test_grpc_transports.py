"""Both gRPC transports: every RPC, errors, deadlines, cancellation and leaving, over a real socket by grpc's client."""

from __future__ import annotations

import asyncio
import re
import socket
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import numpy as np
import pytest
import tritonclient.grpc as triton
import tritonclient.grpc.aio as triton_aio
from tritonclient.grpc import service_pb2 as pb
from tritonclient.grpc import service_pb2_grpc

import server.transport.methods as methods_module
from server.errors import DeadlineExceeded, Draining, InvalidRequest, QueueFull
from server.proto.forwardpass.v1 import prediction_pb2, prediction_pb2_grpc
from server.settings import GrpcSettings, TlsSettings
from server.tensor import Tensor
from server.transport.grpcio import GrpcioServer
from server.transport.http2.server import Http2Server
from server.transport.listen import ListenFailed
from server.transport.methods import METHODS
from server.transport.status import STATUS_DETAILS_KEY
from server.types import NO_DEADLINE, RowInput
from tests.support.fake_dataplane import MODEL, FakeDataPlane

LIMIT = 100_000
README = Path(methods_module.__file__).with_name("README.md")


@pytest.fixture
def dataplane() -> FakeDataPlane:
    return FakeDataPlane()


Server = Http2Server | GrpcioServer
TRANSPORTS = [pytest.param(Http2Server, id="http2"), pytest.param(GrpcioServer, id="grpcio")]


@pytest.fixture(params=TRANSPORTS)
async def served(request: pytest.FixtureRequest, dataplane: FakeDataPlane) -> AsyncIterator[tuple[Server, int]]:
    server = request.param(dataplane, "127.0.0.1", GrpcSettings(port=0, max_message_bytes=LIMIT), TlsSettings())
    port = await server.start()
    yield server, port
    await server.stop(0)


@pytest.fixture
async def channel(served: tuple[Server, int]) -> AsyncIterator[grpc.aio.Channel]:
    async with grpc.aio.insecure_channel(f"127.0.0.1:{served[1]}") as opened:
        yield opened


@pytest.fixture
def stub(channel: grpc.aio.Channel) -> Any:
    return service_pb2_grpc.GRPCInferenceServiceStub(channel)


@pytest.fixture
def predict(channel: grpc.aio.Channel) -> Any:
    return prediction_pb2_grpc.PredictionServiceStub(channel).Predict


def request(elements: int = 4, model: str = MODEL) -> Any:
    message = pb.ModelInferRequest(model_name=model, id="x")
    for name in ("a", "b"):
        message.inputs.add(name=name, datatype="FP32", shape=[1, elements])
        message.raw_input_contents.append(np.arange(elements, dtype="<f4").tobytes())
    return message


PREDICT = prediction_pb2.PredictRequest(model_name=MODEL, inputs=[prediction_pb2.Input(text="t")])


@pytest.mark.parametrize("later", [False, True], ids=["settled inside of submit", "settled later"])
async def test_infer(stub: Any, dataplane: FakeDataPlane, later: bool) -> None:
    """A request is answered with its tensors, whenever the data plane settles it."""
    dataplane.later = later
    answer = await stub.ModelInfer(request())
    assert (answer.id, answer.model_version, answer.outputs[0].name) == ("x", "1", "sum")
    assert np.frombuffer(answer.raw_output_contents[0], "<f4").tolist() == [0, 2, 4, 6]


async def test_predict(predict: Any, dataplane: FakeDataPlane) -> None:
    """Raw inputs give predictions, one for each."""
    message = prediction_pb2.PredictRequest(model_name=MODEL, id="i", top_k=1)
    message.inputs.add().row.update({"x": 1})
    message.inputs.add(text="t")
    answer = await predict(message)
    assert (answer.id, len(answer.predictions)) == ("i", 2)
    assert [s.label for s in answer.predictions[0].classification.top_k] == ["yes"]
    assert dataplane.predicts[0].inputs[0] == RowInput({"x": 1})


async def test_health_can_fail(stub: Any, dataplane: FakeDataPlane) -> None:
    """Health is what the data plane says, both ways."""
    for ready in (True, False):
        dataplane.ready_now = ready
        assert (await stub.ServerLive(pb.ServerLiveRequest())).live is ready
        assert (await stub.ServerReady(pb.ServerReadyRequest())).ready is ready
        assert (await stub.ModelReady(pb.ModelReadyRequest(name=MODEL))).ready is ready


async def test_metadata_config_and_statistics(stub: Any) -> None:
    """What the server says of itself and its models, in v2's messages."""
    assert (await stub.ServerMetadata(pb.ServerMetadataRequest())).name == "forwardpass"
    metadata = await stub.ModelMetadata(pb.ModelMetadataRequest(name=MODEL, version="1"))
    assert [(i.name, i.datatype, list(i.shape)) for i in metadata.inputs] == [
        ("a", "FP32", [-1, 4]),
        ("b", "FP32", [-1, 4]),
    ]
    assert [(o.name, o.datatype, list(o.shape)) for o in metadata.outputs] == [("sum", "FP32", [-1, 4])]
    assert (list(metadata.versions), metadata.platform) == (["1"], "onnxruntime_onnx")
    assert (await stub.ModelConfig(pb.ModelConfigRequest(name=MODEL))).config.max_batch_size == 8
    await stub.ModelInfer(request())
    [model] = (await stub.ModelStatistics(pb.ModelStatisticsRequest(name=MODEL))).model_stats
    assert (model.name, model.inference_count, model.batch_stats[0].batch_size) == (MODEL, 3, 3)
    assert model.inference_stats.success.count == 1
    assert model.inference_stats.compute_output.ns == 30


async def test_model_control(stub: Any, dataplane: FakeDataPlane) -> None:
    """The index, load and unload reach the data plane; `ready` filters the index."""
    index = await stub.RepositoryIndex(pb.RepositoryIndexRequest())
    assert [(m.name, m.state, m.reason) for m in index.models] == [
        (MODEL, "READY", ""),
        ("broken", "UNAVAILABLE", "no model file"),
    ]
    assert len((await stub.RepositoryIndex(pb.RepositoryIndexRequest(ready=True))).models) == 1
    await stub.RepositoryModelLoad(pb.RepositoryModelLoadRequest(model_name=MODEL))
    unload = pb.RepositoryModelUnloadRequest(model_name=MODEL)
    unload.parameters["unload_dependents"].bool_param = False
    await stub.RepositoryModelUnload(unload)
    assert dataplane.control == [("load", MODEL), ("unload", MODEL)]


async def test_control_parameters(stub: Any, dataplane: FakeDataPlane) -> None:
    """Files arrive as the bytes they are, unknown repositories are NOT_FOUND, unknown parameters refused."""
    load = pb.RepositoryModelLoadRequest(model_name=MODEL)
    load.parameters["config"].string_param = "{}"
    load.parameters["file:1/model.onnx"].bytes_param = b"\0\1"
    await stub.RepositoryModelLoad(load)
    assert dataplane.parameters == {"config": "{}", "file:1/model.onnx": b"\0\1"}
    unload = pb.RepositoryModelUnloadRequest(model_name=MODEL)
    unload.parameters["unload_dependents"].bool_param = True
    await stub.RepositoryModelUnload(unload)
    assert dataplane.parameters == {"unload_dependents": True}
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await stub.RepositoryIndex(pb.RepositoryIndexRequest(repository_name="r"))
    assert caught.value.code() is grpc.StatusCode.NOT_FOUND
    unload.parameters["force"].bool_param = True
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await stub.RepositoryModelUnload(unload)
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert len(dataplane.control) == 2


@pytest.mark.parametrize(
    ("method", "message"),
    [
        ("ModelInfer", request(model="x")),
        ("ModelMetadata", pb.ModelMetadataRequest(name=MODEL, version="9")),
        ("ModelConfig", pb.ModelConfigRequest(name="x")),
        ("ModelStatistics", pb.ModelStatisticsRequest(name="x")),
        ("RepositoryModelLoad", pb.RepositoryModelLoadRequest(model_name="x")),
        ("RepositoryModelUnload", pb.RepositoryModelUnloadRequest(model_name="x")),
    ],
)
async def test_an_unknown_model_is_not_found(stub: Any, method: str, message: Any) -> None:
    """Every RPC that names a model, but ModelReady, answers NOT_FOUND for one that is not there."""
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await getattr(stub, method)(message)
    assert caught.value.code() is grpc.StatusCode.NOT_FOUND
    assert "is not found" in caught.value.details()


async def test_an_unknown_model_is_not_ready(stub: Any) -> None:
    """Clients that wait for a model that has yet to come ask, and are told no."""
    for name, version in (("x", ""), (MODEL, "9")):
        assert not (await stub.ModelReady(pb.ModelReadyRequest(name=name, version=version))).ready


async def test_other_methods_are_unimplemented(channel: grpc.aio.Channel) -> None:
    """What is not in the table is UNIMPLEMENTED: made-up services, made-up names."""
    for path in ("/no.Such/Method", "/inference.GRPCInferenceService/NoSuch"):
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await channel.unary_unary(path, request_serializer=bytes)(b"")
        assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED


def test_every_method_is_in_the_readme() -> None:
    """The README's table of RPCs is the one in the code, row by row."""
    rows = re.findall(r"^\| `(/[\w./]+)` \| (yes|no) \|$", README.read_text(), re.MULTILINE)
    assert rows == [(method.name, "yes" if method.waits else "no") for method in METHODS]


@pytest.mark.parametrize(
    ("outcome", "code"),
    [
        (InvalidRequest("inputs", "bad"), grpc.StatusCode.INVALID_ARGUMENT),
        (DeadlineExceeded(MODEL, 5), grpc.StatusCode.DEADLINE_EXCEEDED),
        (Draining(), grpc.StatusCode.UNAVAILABLE),
        (QueueFull(MODEL, 4), grpc.StatusCode.RESOURCE_EXHAUSTED),
    ],
    ids=["invalid", "deadline", "draining", "queue full"],
)
async def test_outcomes_become_statuses(
    stub: Any, predict: Any, dataplane: FakeDataPlane, outcome: Exception, code: grpc.StatusCode
) -> None:
    """However a request is settled, its caller gets the status of the table and the public message."""
    dataplane.outcome = outcome
    for call, message in ((stub.ModelInfer, request()), (predict, PREDICT)):
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await call(message)
        assert (caught.value.code(), caught.value.details()) == (code, str(outcome))
        assert STATUS_DETAILS_KEY not in dict(caught.value.trailing_metadata())


async def test_a_full_queue_says_when_to_come_back(stub: Any, dataplane: FakeDataPlane) -> None:
    """The retry hint travels in the trailing metadata."""
    dataplane.outcome = QueueFull(MODEL, 4, 1200)
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await stub.ModelInfer(request())
    details = dict(caught.value.trailing_metadata())[STATUS_DETAILS_KEY]
    assert b"type.googleapis.com/google.rpc.RetryInfo" in details


async def test_our_own_fault_is_withheld(stub: Any, dataplane: FakeDataPlane, caplog: pytest.LogCaptureFixture) -> None:
    """An exception that is none of ours is INTERNAL, its text is in the log and not in the answer."""
    dataplane.outcome = RuntimeError("secret")
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await stub.ModelInfer(request())
    assert (caught.value.code(), caught.value.details()) == (grpc.StatusCode.INTERNAL, "internal error")
    assert "secret" in caplog.text


@pytest.mark.parametrize("method", [method.name for method in METHODS])
async def test_bytes_that_are_no_message(channel: grpc.aio.Channel, method: str) -> None:
    """Bytes that do not parse are the client's error, on every method."""
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await channel.unary_unary(method, request_serializer=bytes)(b"\x0a\xff")
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert caught.value.details().startswith("message:")


async def test_a_message_over_the_limit(stub: Any, dataplane: FakeDataPlane) -> None:
    """A message over the limit is RESOURCE_EXHAUSTED, in either direction, and the server goes on."""
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await stub.ModelInfer(request(LIMIT // 4))
    assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert not dataplane.requests
    dataplane.answers = [Tensor.from_numpy("sum", np.zeros(LIMIT, np.uint8))]
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await stub.ModelInfer(request())
    assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    dataplane.answers = None
    assert (await stub.ModelInfer(request())).id == "x"


async def test_the_deadline_is_absolute(stub: Any, predict: Any, dataplane: FakeDataPlane) -> None:
    """grpc-timeout becomes an absolute time; without one there is no deadline."""
    before = time.monotonic_ns()
    await stub.ModelInfer(request(), timeout=60)
    await predict(PREDICT, timeout=60)
    after = time.monotonic_ns()
    for deadline_ns in (dataplane.requests[0].deadline_ns, dataplane.predicts[0].deadline_ns):
        # grpc rounds a time-out on the wire, so the bounds are wide.
        assert before + 55e9 <= deadline_ns <= after + 65e9
    await stub.ModelInfer(request())
    assert dataplane.requests[1].deadline_ns == NO_DEADLINE


async def test_a_client_that_cancels(stub: Any, predict: Any, dataplane: FakeDataPlane) -> None:
    """Cancelling a call cancels its request, for infer and predict."""
    dataplane.held = True
    for call, message in ((stub.ModelInfer, request()), (predict, PREDICT)):
        running = call(message)
        await dataplane.arrived.wait()
        running.cancel()
        await dataplane.gone.wait()
        dataplane.arrived.clear()
        dataplane.gone.clear()
    assert dataplane.cancelled == dataplane.requests != []
    assert dataplane.cancelled_predicts == 1


async def test_a_deadline_that_passes_cancels(stub: Any, dataplane: FakeDataPlane) -> None:
    """A caller whose deadline passes is gone: its request is cancelled."""
    dataplane.held = True
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await stub.ModelInfer(request(), timeout=0.2)
    assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    await dataplane.gone.wait()
    assert dataplane.cancelled == dataplane.requests


async def call_until_refused(stub: Any) -> None:
    """grpcio's server leaves a call that crosses its GOAWAY without an answer for 15 s; the next one is refused."""
    while True:
        try:
            await stub.ServerLive(pb.ServerLiveRequest(), timeout=1)
        except grpc.aio.AioRpcError as error:
            if error.code() is not grpc.StatusCode.DEADLINE_EXCEEDED:
                raise


async def test_stop_answers_what_is_in_flight(served: tuple[Server, int], stub: Any, dataplane: FakeDataPlane) -> None:
    """Stopping waits for the answers and refuses new calls."""
    dataplane.held = True
    waiting = asyncio.ensure_future(stub.ModelInfer(request()))
    await dataplane.arrived.wait()
    stopping = asyncio.create_task(served[0].stop(30))
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call_until_refused(stub)
    # CANCELLED is grpc's word for a call that crosses its GOAWAY.
    assert caught.value.code() in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED)
    assert not stopping.done()
    dataplane.release()
    assert (await waiting).id == "x"
    await stopping


async def test_stop_ends_with_the_grace(served: tuple[Server, int], stub: Any, dataplane: FakeDataPlane) -> None:
    """What is not answered when the grace is over is cancelled, and its caller told so."""
    dataplane.held = True
    waiting = asyncio.ensure_future(stub.ModelInfer(request()))
    await dataplane.arrived.wait()
    await served[0].stop(0.01)
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await waiting
    assert caught.value.code() in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED)
    await dataplane.gone.wait()
    assert dataplane.cancelled == dataplane.requests


@pytest.mark.parametrize("transport", TRANSPORTS)
async def test_a_port_that_is_taken(dataplane: FakeDataPlane, transport: Any) -> None:
    """A port that can't be had is an error that names it."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        server = transport(dataplane, "127.0.0.1", GrpcSettings(port=port, max_message_bytes=LIMIT), TlsSettings())
        with pytest.raises(ListenFailed, match=f"127.0.0.1:{port}: .*in use"):
            await server.start()
        await server.stop(0)


async def test_tritonclient(served: tuple[Server, int]) -> None:
    """tritonclient.grpc works unmodified, blocking and asyncio."""
    values = np.array([[1.5, 2, 3, 4]], np.float32)
    inputs = [triton.InferInput(name, [1, 4], "FP32") for name in ("a", "b")]
    for tensor in inputs:
        tensor.set_data_from_numpy(values)
    outputs = [triton.InferRequestedOutput("sum")]
    url = f"127.0.0.1:{served[1]}"

    def talk() -> None:
        with triton.InferenceServerClient(url) as client:
            assert client.is_server_ready()
            assert client.is_model_ready(MODEL)
            result = client.infer(MODEL, inputs, outputs=outputs, request_id="r", client_timeout=30, timeout=1000)
            assert result.as_numpy("sum").tolist() == (values * 2).tolist()
            with pytest.raises(triton.InferenceServerException, match="NOT_FOUND"):
                client.get_model_config("x")

    await asyncio.to_thread(talk)
    async with triton_aio.InferenceServerClient(url) as client:
        results = await asyncio.gather(*(client.infer(MODEL, inputs, request_id=str(i)) for i in range(20)))
    assert [r.get_response().id for r in results] == [str(i) for i in range(20)]
    assert all(r.as_numpy("sum").tolist() == (values * 2).tolist() for r in results)
