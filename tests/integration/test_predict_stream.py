"""PredictStream over both gRPC transports, with grpcio as client: a text in pieces, cancelled, late, refused."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing, asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest

from server.client import AsyncClient, Client, ClientError
from server.errors import Code
from server.proto.forwardpass.v1 import prediction_pb2 as pb
from server.proto.forwardpass.v1.prediction_pb2_grpc import PredictionServiceStub
from server.settings import GrpcSettings, TlsSettings
from server.transport.grpcio import GrpcioServer
from server.transport.http2.server import Http2Server
from server.types import Written
from tests.support.writing_plane import WritingPlane, writing_plane

TRANSPORTS = ("http2", "grpcio")


@asynccontextmanager
async def serving(root: Path, transport: str) -> AsyncIterator[tuple[WritingPlane, str]]:
    async with writing_plane(root) as plane:
        make = Http2Server if transport == "http2" else GrpcioServer
        server = make(plane.dataplane, "127.0.0.1", GrpcSettings(port=0), TlsSettings())
        port = await server.start()
        try:
            yield plane, f"127.0.0.1:{port}"
        finally:
            await server.stop(1)


async def read_slowly(pieces: AsyncGenerator[Written]) -> None:
    async for _ in pieces:
        await asyncio.sleep(0.02)


@pytest.mark.parametrize("transport", TRANSPORTS)
async def test_a_text_comes_in_pieces_and_ends_with_its_cancellation_or_deadline(
    tmp_path: Path, transport: str
) -> None:
    """The same as the engine's; whoever cancels or is out of time leaves nothing behind."""
    async with serving(tmp_path, transport) as (plane, address):
        want = await plane.text("The server", max_tokens=12, ignore_eos=True)
        async with AsyncClient(f"grpc://{address}") as client:
            ask: dict[str, Any] = {"max_tokens": 12, "temperature": 0, "ignore_eos": True}
            pieces = [piece async for piece in client.predict_stream("writer", "The server", **ask)]
            assert "".join(piece.text for piece in pieces) == want
            assert len(pieces) > 3
            assert [bool(piece.finish_reason) for piece in pieces] == [False] * (len(pieces) - 1) + [True]
            assert pieces[-1].finish_reason == "length"
            assert sum(piece.num_output_tokens for piece in pieces) == 12
            assert pieces[0].num_input_tokens > 0

            long = {**ask, "max_tokens": 240}
            async with aclosing(client.predict_stream("writer", "x", **long)) as told:
                await anext(told)
                assert plane.batcher._runs
            await plane.settled()

            with pytest.raises(ClientError) as late:
                await read_slowly(client.predict_stream("writer", "x", timeout_s=0.01, **{**long, "max_tokens": 250}))
            assert late.value.code is Code.DEADLINE
            await plane.settled()


@pytest.mark.parametrize("transport", TRANSPORTS)
async def test_what_a_request_for_a_text_gets_wrong_is_named(tmp_path: Path, transport: str) -> None:
    """By its field, before anything runs; also where Predict is asked for what is not its own."""
    async with serving(tmp_path, transport) as (plane, address), grpc.aio.insecure_channel(address) as channel:
        stub = PredictionServiceStub(channel)
        text = pb.Input(text="x")
        sampled = pb.PredictRequest(model_name="writer", inputs=[text])
        sampled.sampling.update({"temprature": 1})
        wrong = {
            "temprature": sampled,
            "inputs must be 1": pb.PredictRequest(model_name="writer", inputs=[text, text]),
            "inputs[0]": pb.PredictRequest(model_name="writer", inputs=[pb.Input(image=pb.Image(data=b"x"))]),
            "top_k": pb.PredictRequest(model_name="writer", inputs=[text], top_k=3),
            "model_name": pb.PredictRequest(inputs=[text]),
        }
        for field, request in wrong.items():
            with pytest.raises(grpc.aio.AioRpcError) as refused:
                await stub.PredictStream(request).read()
            assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT
            assert field in (refused.value.details() or "").replace(":", "")
        with pytest.raises(grpc.aio.AioRpcError) as unknown:
            await stub.PredictStream(pb.PredictRequest(model_name="nobody", inputs=[text])).read()
        assert unknown.value.code() is grpc.StatusCode.NOT_FOUND
        sampled.sampling.update({"temperature": 1})
        for request, code in (
            (sampled, grpc.StatusCode.INVALID_ARGUMENT),
            (pb.PredictRequest(model_name="writer", inputs=[text]), grpc.StatusCode.UNIMPLEMENTED),
        ):
            with pytest.raises(grpc.aio.AioRpcError) as refused:
                await stub.Predict(request)
            assert refused.value.code() is code
            assert ("sampling" if code is grpc.StatusCode.INVALID_ARGUMENT else "PredictStream") in (
                refused.value.details() or ""
            )
        assert not plane.instance.busy


def test_over_rest_there_is_no_such_stream() -> None:
    """And the error says what there is."""
    with Client("http://127.0.0.1:1") as client, pytest.raises(ClientError) as refused:
        client.predict_stream("writer", "x")
    assert refused.value.code is Code.UNSUPPORTED
