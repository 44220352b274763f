"""Explanations: parts without a gap, told as Server-Timing, asked for over REST and gRPC, and not otherwise."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Iterator
from typing import Any

import grpc.aio
import pytest
from tritonclient.grpc import service_pb2 as pb
from tritonclient.grpc import service_pb2_grpc

from server.call import answer, settle_into
from server.errors import InvalidRequest, QueueFull
from server.explain import (
    PARTS,
    Explained,
    Explanation,
    WaitReason,
    asked_by,
    decoded,
    parse_server_timing,
)
from server.proto.forwardpass.v1 import prediction_pb2, prediction_pb2_grpc
from server.settings import GrpcSettings, TlsSettings
from server.transport.grpcio import GrpcioServer
from server.transport.http2.server import Http2Server
from server.transport.rest import RestApp
from server.types import InferRequest, InferResponse, Timing
from tests.support.fake_dataplane import MODEL, FakeDataPlane
from tests.support.http1 import Peer

INFER = f"/v2/models/{MODEL}/infer"
PREDICT = f"/v2/models/{MODEL}/predict"
ROW = {"name": "a", "datatype": "FP32", "shape": [1, 4], "data": [1, 2, 3, 4]}
ASK = {"parameters": {"explain": True}}


class Reads:
    """A clock whose every reading is later than the one before, by steps that no other step is a multiple of."""

    def __init__(self) -> None:
        self.now_ns = 1_000
        self.reads: list[int] = []

    def __call__(self) -> int:
        self.now_ns += 1_000_003 * (len(self.reads) + 1)
        self.reads.append(self.now_ns)
        return self.now_ns


def whole_way(clock: Reads) -> Explanation:
    """A prediction's way from its receipt to its answer."""
    explanation = Explanation(clock(), clock)
    explanation.mark("receive")
    explanation.mark("decode")
    explanation.mark("loop")
    explanation.mark("preprocess")
    explanation.mark("loop")
    explanation.mark("cache")
    explanation.waited = WaitReason.INSTANCE_BUSY
    enqueued_ns = clock()
    clock.now_ns += 70_000_001 + 66
    explanation.mark_pass(enqueued_ns, Timing(70_000_001, 11, 22, 33, 8))
    explanation.mark("postprocess")
    explanation.mark("encode")
    return explanation


# --- the parts ------------------------------------------------------------------------------------


def test_the_parts_sum_to_the_total_exactly() -> None:
    """Every nanosecond from receipt to the last mark is in one part, and none is in two."""
    clock = Reads()
    explanation = whole_way(clock)
    parts = explanation.parts_ns()
    total = parts.pop("total")
    assert total == clock.reads[-1] - clock.reads[0]
    assert sum(parts.values()) == total
    assert min(parts.values()) > 0
    assert list(parts) == list(PARTS)


def test_a_part_lasts_from_the_mark_before_it() -> None:
    """A part is the time since the last mark; what comes again is added to."""
    stamps: Iterator[int] = iter([130, 150, 155])
    explanation = Explanation(100, lambda: next(stamps))
    explanation.mark("decode")
    explanation.mark("loop")
    explanation.mark("loop")
    assert explanation.parts_ns() == {"decode": 30, "loop": 25, "total": 55}


def test_the_pass_is_told_by_the_workers_stamps() -> None:
    """The queue ends when the pass started, the compute parts are the pass's own, and the rest is the loop's."""
    explanation = Explanation(100, lambda: 1_000)
    explanation.mark("decode", 120)
    explanation.mark_pass(115, Timing(50, 10, 200, 30, 4))
    assert explanation.parts_ns() == {
        "decode": 20,
        "queue": 45,
        "compute_input": 10,
        "compute": 200,
        "compute_output": 30,
        "loop": 595,
        "total": 900,
    }


def test_server_timing_is_in_milliseconds_with_the_reason_and_the_rows() -> None:
    """Durations keep every nanosecond; the queue says why, the batch how many rows."""
    explanation = Explanation(0, lambda: 4_000_007)
    explanation.mark("decode", 120_000)
    explanation.waited = WaitReason.WINDOW
    explanation.mark_pass(120_000, Timing(1_400_000, 1, 2_000_000, 0, 32))
    assert explanation.server_timing() == (
        'decode;dur=0.12, queue;dur=1.4;desc="window", compute_input;dur=0.000001, compute;dur=2, '
        'compute_output;dur=0, loop;dur=0.480006, batch_rows;desc="32", total;dur=4.000007'
    )


def test_the_share_of_padding_is_told_where_there_is_some() -> None:
    """A number from 0 to 1 beside the rows, and read again; without padding nothing is said."""
    explanation = Explanation(0, lambda: 10)
    explanation.mark_pass(0, Timing(1, 1, 1, 1, 32, 0.25))
    assert explanation.server_timing().endswith('batch_rows;desc="32", padding;desc="0.25", total;dur=0.00001')
    assert parse_server_timing(explanation.server_timing()).padding == 0.25


def test_what_is_written_is_read_again() -> None:
    """Parsing gives the parts, the total, the reason and the rows that were told."""
    explanation = whole_way(Reads())
    explained = parse_server_timing(explanation.server_timing())
    parts = explanation.parts_ns()
    total = parts.pop("total")
    assert explained == Explained({part: ns / 1e6 for part, ns in parts.items()}, total / 1e6, "instance_busy", 8)
    assert sum(explained.parts_ms.values()) == pytest.approx(explained.total_ms, rel=1e-9)


@pytest.mark.parametrize("text", ["", "decode;dur=1", "total;dur=x", "total;dur=1, queue desc", 'total;desc="1'])
def test_other_texts_are_refused(text: str) -> None:
    """What is no explanation of ours is a ValueError."""
    with pytest.raises(ValueError, match="server-timing"):
        parse_server_timing(text)


# --- who asks -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "asked"), [("", False), ("0", False), ("false", False), ("1", True), ("true", True), ("True", True)]
)
def test_the_header_asks(text: str, asked: bool) -> None:
    """1 and true ask; 0, false and nothing do not."""
    assert asked_by(text) is asked


def test_another_header_is_refused() -> None:
    """A value that is neither is named, not dropped."""
    with pytest.raises(InvalidRequest, match="X-Explain"):
        asked_by("yes")


def test_the_parameter_asks_from_the_receipt_on() -> None:
    """An explanation begun by a parameter counts from the receipt; without one there is none."""
    asked = decoded(None, {"explain": True}, time.monotonic_ns() - 10**12)
    assert asked is not None
    assert asked.parts_ns()["decode"] >= 10**12
    assert decoded(None, {"explain": False}, 0) is None
    assert decoded(None, {"other": True}, 0) is None
    assert decoded(None, None, 0) is None


def test_the_header_is_not_unasked_by_the_parameter() -> None:
    """Who asks by either is told."""
    explanation = Explanation(0)
    assert decoded(explanation, {"explain": False}, 0) is explanation


@pytest.mark.parametrize("value", [1, "true", 0.0])
def test_the_parameter_must_be_a_boolean(value: Any) -> None:
    """Any other value is refused by name."""
    with pytest.raises(InvalidRequest, match=r"parameters\.explain"):
        decoded(None, {"explain": value}, 0)


async def test_infer_tells_of_its_pass() -> None:
    """The coroutine of both transports marks the pass once it has the answer."""
    dataplane = FakeDataPlane(outcome=InferResponse(MODEL, "1", [], timing=Timing(1, 2, 3, 4, 5)))
    settled = asyncio.get_running_loop().create_future()
    explanation = Explanation(0)
    request = InferRequest(MODEL, [], on_settle=settle_into(settled), received_ns=0, explanation=explanation)
    dataplane.submit((request,))
    await answer(request, settled, dataplane.cancel)
    parts = explanation.parts_ns()
    assert {**parts, "loop": 0, "total": 0} == {
        "queue": 1,
        "compute_input": 2,
        "compute": 3,
        "compute_output": 4,
        "loop": 0,
        "total": 0,
    }
    assert explanation.batch_rows == 5


# --- over REST ------------------------------------------------------------------------------------


async def rest(
    dataplane: FakeDataPlane, path: str, body: dict[str, Any], *headers: tuple[bytes, bytes]
) -> tuple[int, dict[bytes, bytes]]:
    """The status and the headers of an answer."""
    peer = Peer(RestApp(dataplane, max_body_bytes=10_000))  # type: ignore[arg-type]
    text = json.dumps(body).encode()
    fields = b"".join(b"%s: %s\r\n" % header for header in headers)
    peer.send(
        b"POST %s HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n%s\r\n" % (path.encode(), len(text), fields) + text
    )
    await peer.transport.written.wait()
    [answer] = peer.answers()
    return answer.status, {name.encode(): value.encode() for name, value in answer.headers.items()}


@pytest.mark.parametrize(("path", "inputs"), [(INFER, [ROW]), (PREDICT, [[1]])], ids=["infer", "predict"])
@pytest.mark.parametrize("by", ["header", "parameter"])
async def test_rest_explains_when_asked(path: str, inputs: list[Any], by: str) -> None:
    """The answer of a call that asks has a Server-Timing whose parts sum to its total."""
    asked = {**ASK} if by == "parameter" else {}
    headers = [(b"x-explain", b"1")] if by == "header" else []
    status, answer = await rest(FakeDataPlane(), path, {"inputs": inputs, **asked}, *headers)
    assert status == 200
    explained = parse_server_timing(answer[b"server-timing"].decode())
    assert {"decode", "encode"} <= set(explained.parts_ms)
    assert ("receive" in explained.parts_ms) == (by == "header")
    assert sum(explained.parts_ms.values()) == pytest.approx(explained.total_ms, rel=1e-9)


@pytest.mark.parametrize(("path", "inputs"), [(INFER, [ROW]), (PREDICT, [[1]])], ids=["infer", "predict"])
async def test_rest_does_not_explain_unasked(path: str, inputs: list[Any]) -> None:
    """Without header and parameter there is no Server-Timing, and no request carries an explanation."""
    dataplane = FakeDataPlane()
    status, answer = await rest(dataplane, path, {"inputs": inputs}, (b"x-explain", b"0"))
    assert (status, b"server-timing" in answer) == (200, False)
    assert [request.explanation for request in [*dataplane.requests, *dataplane.predicts]] == [None]


async def test_rest_refuses_what_does_not_say_whether_it_asks() -> None:
    """A wrong header or parameter is 400."""
    assert (await rest(FakeDataPlane(), INFER, {"inputs": [ROW]}, (b"x-explain", b"please")))[0] == 400
    assert (await rest(FakeDataPlane(), INFER, {"inputs": [ROW], "parameters": {"explain": 1}}))[0] == 400


async def test_rest_does_not_explain_errors() -> None:
    """An error has no Server-Timing."""
    dataplane = FakeDataPlane(outcome=QueueFull(MODEL, 1, 0))
    status, answer = await rest(dataplane, INFER, {"inputs": [ROW], **ASK})
    assert (status, b"server-timing" in answer) == (429, False)


# --- over gRPC ------------------------------------------------------------------------------------


@pytest.fixture(params=[Http2Server, GrpcioServer])
async def channel(request: pytest.FixtureRequest) -> AsyncIterator[grpc.aio.Channel]:
    server = request.param(FakeDataPlane(), "127.0.0.1", GrpcSettings(port=0), TlsSettings())
    port = await server.start()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as opened:
        yield opened
    await server.stop(0)


def infer_message(**parameters: bool) -> Any:
    message = pb.ModelInferRequest(model_name=MODEL, raw_input_contents=[b"\0" * 16])
    message.inputs.add(name="a", datatype="FP32", shape=[1, 4])
    for name, value in parameters.items():
        message.parameters[name].bool_param = value
    return message


async def trailer(call: Any) -> str:
    await call
    return str(dict(await call.trailing_metadata()).get("server-timing", ""))


async def test_grpc_explains_when_asked(channel: grpc.aio.Channel) -> None:
    """By metadata or parameter, the trailing metadata hold what Server-Timing holds in REST."""
    infer = service_pb2_grpc.GRPCInferenceServiceStub(channel).ModelInfer
    predict = prediction_pb2_grpc.PredictionServiceStub(channel).Predict
    row = prediction_pb2.PredictRequest(model_name=MODEL, inputs=[prediction_pb2.Input(text="t")])
    metadata = (("x-explain", "1"),)
    for call in (
        infer(infer_message(), metadata=metadata),
        infer(infer_message(explain=True)),
        predict(row, metadata=metadata),
    ):
        explained = parse_server_timing(await trailer(call))
        assert {"decode", "encode"} <= set(explained.parts_ms)
        assert sum(explained.parts_ms.values()) == pytest.approx(explained.total_ms, rel=1e-9)


async def test_grpc_does_not_explain_unasked(channel: grpc.aio.Channel) -> None:
    """Nor does it for a call that has nothing to explain."""
    stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
    assert await trailer(stub.ModelInfer(infer_message())) == ""
    assert await trailer(stub.ModelInfer(infer_message(), metadata=(("x-explain", "0"),))) == ""
    assert await trailer(stub.ServerLive(pb.ServerLiveRequest(), metadata=(("x-explain", "1"),))) == ""


async def test_grpc_refuses_what_does_not_say_whether_it_asks(channel: grpc.aio.Channel) -> None:
    """A wrong value of the metadata is INVALID_ARGUMENT."""
    stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await stub.ModelInfer(infer_message(), metadata=(("x-explain", "please"),))
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
