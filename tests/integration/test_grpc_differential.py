"""The same calls against both gRPC transports: status, text, trailing metadata and bytes agree, but where listed."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from typing import Any

import grpc
import grpc.aio
import numpy as np
import pytest
from grpc_health.v1 import health_pb2
from tritonclient.grpc import service_pb2 as pb

from server.errors import DeadlineExceeded, Draining, InvalidRequest, QueueFull, UnknownModel
from server.proto.forwardpass.v1 import prediction_pb2
from server.settings import GrpcSettings, TlsSettings
from server.tensor import Tensor
from server.transport.grpcio import GrpcioServer
from server.transport.http2.server import Http2Server
from server.transport.methods import METHODS
from tests.support.fake_dataplane import MODEL, FakeDataPlane

V2 = "/inference.GRPCInferenceService/"
INFER, PREDICT, STREAM = V2 + "ModelInfer", "/forwardpass.v1.PredictionService/Predict", V2 + "ModelStreamInfer"
LIMIT = 100_000

Script = Callable[[FakeDataPlane], None]
Outcome = tuple[grpc.StatusCode, str, dict[str, object], list[bytes]]


def infer(id: str = "x", model: str = MODEL, elements: int = 4, **parameters: bool) -> bytes:
    asked = pb.ModelInferRequest(model_name=model, id=id)
    for name in ("a", "b"):
        asked.inputs.add(name=name, datatype="FP32", shape=[1, elements])
        asked.raw_input_contents.append(np.arange(elements, dtype="<f4").tobytes())
    for name, value in parameters.items():
        asked.parameters[name].bool_param = value
    return bytes(asked.SerializeToString())


def predict(**fields: Any) -> bytes:
    inputs = [prediction_pb2.Input(text="t")]
    return prediction_pb2.PredictRequest(**{"model_name": MODEL, "inputs": inputs, **fields}).SerializeToString()


def nothing(_dataplane: FakeDataPlane) -> None:
    pass


def settles(outcome: BaseException) -> Script:
    return lambda dataplane: setattr(dataplane, "outcome", outcome)


@dataclass
class Case:
    path: str
    messages: list[bytes]
    metadata: tuple[tuple[str, str | bytes], ...] = ()
    compression: grpc.Compression | None = None
    timeout: float | None = 30
    script: Script = nothing


def good() -> dict[str, Case]:
    """One good call of each method."""
    bodies = {
        INFER: infer(),
        STREAM: infer(),
        PREDICT: predict(),
        "/grpc.health.v1.Health/Check": health_pb2.HealthCheckRequest().SerializeToString(),
    }
    named = pb.ModelReadyRequest(name=MODEL).SerializeToString()
    cases = {}
    for method in METHODS:
        name = method.name.rpartition("/")[2]
        named_too = {"ModelReady", "ModelMetadata", "ModelConfig", "ModelStatistics"}
        body = bodies.get(method.name, named if name in named_too else b"")
        if name in ("RepositoryModelLoad", "RepositoryModelUnload"):
            body = pb.RepositoryModelLoadRequest(model_name=MODEL).SerializeToString()
        if name != "Watch":
            cases[f"{name}: good"] = Case(method.name, [body])
    return cases


CASES: dict[str, Case] = {
    **good(),
    **{f"{m.name.rpartition('/')[2]}: no message of its kind": Case(m.name, [b"\x0a\xff"]) for m in METHODS},
    **{
        f"infer: {type(error).__name__}": Case(INFER, [infer()], script=settles(error))
        for error in (
            InvalidRequest("inputs[0].schön", "50% \n of it"),
            DeadlineExceeded(MODEL, 5),
            Draining(),
            QueueFull(MODEL, 4),
            QueueFull(MODEL, 4, 1500),
            UnknownModel("y", "3"),
            RuntimeError("secret"),
        )
    },
    "predict: QueueFull": Case(PREDICT, [predict()], script=settles(QueueFull(MODEL, 4, 1500))),
    "infer: unknown model": Case(INFER, [infer(model="y")]),
    "infer: no inputs": Case(INFER, [pb.ModelInferRequest(model_name=MODEL).SerializeToString()]),
    "predict: no inputs": Case(PREDICT, [predict(inputs=[])]),
    "check: unknown service": Case("/grpc.health.v1.Health/Check", [b"\x0a\x01x"]),
    "unknown method": Case(V2 + "NoSuch", [b""]),
    "unknown service": Case("/no.Such/Thing", [b""]),
    "infer: with metadata": Case(
        INFER, [infer()], metadata=(("x-other", "1"), ("x-data-bin", b"\0\1"), ("x-tenant", "t"))
    ),
    "infer: x-explain is no boolean": Case(INFER, [infer()], metadata=(("x-explain", "perhaps"),)),
    "infer: x-explain 0": Case(INFER, [infer()], metadata=(("x-explain", "0"),)),
    "metadata: x-explain is not for it": Case(V2 + "ServerLive", [b""], metadata=(("x-explain", "perhaps"),)),
    "infer: gzip": Case(INFER, [infer()], compression=grpc.Compression.Gzip),
    "infer: deflate": Case(INFER, [infer()], compression=grpc.Compression.Deflate),
    "infer: gzip, large": Case(INFER, [infer(elements=10_000)], compression=grpc.Compression.Gzip),
    "predict: gzip": Case(PREDICT, [predict()], compression=grpc.Compression.Gzip),
    "infer: large": Case(INFER, [infer(elements=12_000)]),
    "infer: too large": Case(INFER, [infer(elements=13_000)]),
    "infer: a bomb": Case(INFER, [infer(elements=1_000_000)], compression=grpc.Compression.Gzip),
    "infer: too large an answer": Case(
        INFER,
        [infer()],
        script=lambda dataplane: setattr(dataplane, "answers", [Tensor.from_numpy("sum", np.zeros(LIMIT, np.uint8))]),
    ),
    "infer: deadline passes": Case(INFER, [infer()], timeout=0.1, script=lambda d: setattr(d, "held", True)),
    "predict: deadline passes": Case(PREDICT, [predict()], timeout=0.1, script=lambda d: setattr(d, "held", True)),
    "stream: deadline passes": Case(STREAM, [infer()], timeout=0.1, script=lambda d: setattr(d, "held", True)),
    "stream: many": Case(STREAM, [infer(str(i)) for i in range(100)]),
    "stream: none": Case(STREAM, []),
    "stream: good and bad": Case(STREAM, [infer("1"), infer("2", "y"), infer("3", explain=True), infer("4")]),
    "stream: bytes that are no message": Case(STREAM, [infer("1"), b"\x0a\xff"]),
    "stream: gzip": Case(STREAM, [infer("1"), infer("2", elements=5000)], compression=grpc.Compression.Gzip),
    "stream: too large": Case(STREAM, [infer("1"), infer("2", elements=13_000)]),
    "infer: two messages": Case(INFER, [infer(), infer()]),
    "infer: no message at all": Case(INFER, [], timeout=1),
    "live: two messages": Case(V2 + "ServerLive", [b"", b""]),
    "live: no message at all": Case(V2 + "ServerLive", [], timeout=1),
}

DIFFERENT: dict[str, tuple[str, str]] = {
    "infer: too large": ("message: 104048 bytes, over the limit", "SERVER: Received message larger than max"),
    "stream: too large": ("message: 104048 bytes, over the limit", "SERVER: Received message larger than max"),
    "infer: too large an answer": ("message: 100034 bytes, over the limit", "SERVER: Sent message larger than max"),
    # grpcio inflates the bomb to its end before it looks.
    "infer: a bomb": ("message: ", "SERVER: Received message larger than max"),
    "infer: two messages": ("request: has more than one message", ""),
    "live: two messages": ("request: has more than one message", ""),
    "infer: no message at all": ("request: has no message", "Deadline Exceeded"),
    "live: no message at all": ("request: has no message", "Deadline Exceeded"),
}
"""Texts that differ, by case: how ours begin, how grpcio's do."""

CODES: dict[str, tuple[grpc.StatusCode, grpc.StatusCode]] = {
    # gRPC's status codes: "request cardinality violation" is UNIMPLEMENTED. grpcio takes the first, or waits for it.
    "infer: two messages": (grpc.StatusCode.UNIMPLEMENTED, grpc.StatusCode.OK),
    "live: two messages": (grpc.StatusCode.UNIMPLEMENTED, grpc.StatusCode.OK),
    "infer: no message at all": (grpc.StatusCode.UNIMPLEMENTED, grpc.StatusCode.DEADLINE_EXCEEDED),
    "live: no message at all": (grpc.StatusCode.UNIMPLEMENTED, grpc.StatusCode.DEADLINE_EXCEEDED),
}
"""Codes that differ, by case: ours, grpcio's. Their answers differ too."""

RACES = {"stream: too large"}
"""What grpcio answered before the error may be lost with it."""

EITHER = {"stream: deadline passes", "infer: deadline passes", "predict: deadline passes"}
"""Client and server both notice, and whoever is first has the word."""


async def outcome(transport: Any, case: Case) -> Outcome:
    dataplane = FakeDataPlane()
    case.script(dataplane)
    server = transport(dataplane, "127.0.0.1", GrpcSettings(port=0, max_message_bytes=LIMIT), TlsSettings())
    port = await server.start()
    try:
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
            return await call(channel, case)
    finally:
        await server.stop(0)


async def call(channel: grpc.aio.Channel, case: Case) -> Outcome:
    """All calls are made as streams: so a client can send none or two messages to a method that wants one."""

    async def messages() -> AsyncIterator[bytes]:
        for data in case.messages:
            yield data

    made = channel.stream_stream(case.path)(
        messages(), metadata=case.metadata, compression=case.compression, timeout=case.timeout
    )
    answers: list[bytes] = []
    try:
        async for answer in made:
            answers.append(answer)  # noqa: PERF401 - what came before an error counts too
    except grpc.aio.AioRpcError:
        pass
    trailing = {str(key): value for key, value in (await made.trailing_metadata() or ())}
    return await made.code(), await made.details() or "", trailing, answers


@pytest.mark.parametrize("name", CASES)
async def test_both_transports_answer_alike(name: str) -> None:
    """Code, text, trailing metadata and answers are the same over both, or the difference is one that is listed."""
    ours, theirs = await asyncio.gather(outcome(Http2Server, CASES[name]), outcome(GrpcioServer, CASES[name]))
    assert (ours[0], theirs[0]) == CODES.get(name, (ours[0], ours[0]))
    if name in EITHER:
        assert ours[1].lower() == theirs[1].lower() == "deadline exceeded"
    elif name in DIFFERENT:
        assert ours[1].startswith(DIFFERENT[name][0])
        assert theirs[1].startswith(DIFFERENT[name][1])
    else:
        assert ours[1] == theirs[1]
    if name not in CODES and name not in RACES:
        assert ours[2:] == theirs[2:]
