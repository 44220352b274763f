"""Callers who ask as they should, at a pace: gRPC, streams, REST; each leaves after some calls and comes anew.

A caller has one call under way. One that was kept waiting does not catch up, so that a machine which stumbles is not
asked for more than the pace afterwards.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import grpc
import numpy as np
from tritonclient.grpc import service_pb2 as pb

from loadtests.client import infer
from loadtests.soak.http import Connection, request
from loadtests.soak.models import PICTURES, SHIPPED, STEADY

_LIFE = 100
"""Calls of one connection."""
_STREAM = "/inference.GRPCInferenceService/ModelStreamInfer"
_TOLERANCE = 1e-4
_MOST_FAULTS = 20
_PAUSE_S = 0.1
"""After a fault: a server that is gone is not asked as fast as it can be."""

Call = Callable[[], Awaitable[bool]]
"""One call; whether its answer was right."""
Way = Callable[["Asked"], AbstractAsyncContextManager[Call]]
"""A connection of its own, and how to call on it."""


@dataclass
class Asked:
    """What is asked, and what came of it."""

    grpc: str
    http: str
    row: np.ndarray[Any, Any]
    expected: np.ndarray[Any, Any]
    calls: Counter[str] = field(default_factory=Counter)
    """Sent, by way."""
    right: Counter[str] = field(default_factory=Counter)
    faults: list[str] = field(default_factory=list)
    """The first answers that were none, or wrong."""
    failed: int = 0
    connections: int = 0

    def fault(self, text: str) -> None:
        self.failed += 1
        if len(self.faults) < _MOST_FAULTS:
            self.faults.append(text)

    def message(self, model: str = STEADY) -> bytes:
        """A ModelInfer request of the row."""
        tensor = pb.ModelInferRequest.InferInputTensor(name="x", datatype="FP32", shape=self.row.shape)
        asked = pb.ModelInferRequest(model_name=model, inputs=[tensor], raw_input_contents=[self.row.tobytes()])
        data: bytes = asked.SerializeToString()
        return data

    def is_right(self, values: np.ndarray[Any, Any]) -> bool:
        expected = self.expected
        return values.size == expected.size and np.allclose(values.ravel(), expected.ravel(), atol=_TOLERANCE)


def _tensor(response: Any) -> np.ndarray[Any, Any]:
    return np.frombuffer(response.raw_output_contents[0], np.float32)


@asynccontextmanager
async def _grpc_unary(asked: Asked) -> AsyncIterator[Call]:
    message = asked.message()
    async with grpc.aio.insecure_channel(asked.grpc, options=[("grpc.use_local_subchannel_pool", 1)]) as channel:
        call = infer(channel)

        async def one() -> bool:
            return asked.is_right(_tensor(pb.ModelInferResponse.FromString(await call(message, timeout=60))))

        yield one


@asynccontextmanager
async def _grpc_stream(asked: Asked) -> AsyncIterator[Call]:
    message = asked.message()
    async with grpc.aio.insecure_channel(asked.grpc, options=[("grpc.use_local_subchannel_pool", 1)]) as channel:
        stream = channel.stream_stream(_STREAM, request_serializer=None, response_deserializer=None)()

        async def one() -> bool:
            await stream.write(message)
            response = pb.ModelStreamInferResponse.FromString(await stream.read())
            return not response.error_message and asked.is_right(_tensor(response.infer_response))

        yield one
        await stream.done_writing()
        if await stream.read() is not grpc.aio.EOF or await stream.code() is not grpc.StatusCode.OK:
            asked.fault(f"a stream ended with {await stream.code()}")


@asynccontextmanager
async def _posting(asked: Asked, data: bytes, right: Callable[[bytes], bool]) -> AsyncIterator[Call]:
    async with await Connection.open(asked.http) as connection:

        async def one() -> bool:
            status, body = await connection.post(data)
            return status == 200 and right(body)

        yield one


def _rest_json(asked: Asked) -> AbstractAsyncContextManager[Call]:
    row = {"name": "x", "datatype": "FP32", "shape": asked.row.shape, "data": asked.row.ravel().tolist()}
    data = request(f"/v2/models/{STEADY}/infer", json.dumps({"inputs": [row]}).encode(), {})
    return _posting(asked, data, lambda body: asked.is_right(np.array(json.loads(body)["outputs"][0]["data"])))


def _rest_binary(asked: Asked) -> AbstractAsyncContextManager[Call]:
    raw = asked.row.tobytes()
    size = {"binary_data_size": len(raw)}
    row = {"name": "x", "datatype": "FP32", "shape": asked.row.shape, "parameters": size}
    head = json.dumps({"inputs": [row], "parameters": {"binary_data_output": True}}).encode()
    headers = {"Inference-Header-Content-Length": str(len(head))}
    data = request(f"/v2/models/{STEADY}/infer", head + raw, headers)
    wanted = asked.expected.nbytes
    return _posting(asked, data, lambda body: asked.is_right(np.frombuffer(body[-wanted:], np.float32)))


def _rest_predict(asked: Asked) -> AbstractAsyncContextManager[Call]:
    picture = (SHIPPED / PICTURES / "example.png").read_bytes()
    data = request(f"/v2/models/{PICTURES}/predict", picture, {"Content-Type": "image/png"})
    return _posting(asked, data, lambda body: json.loads(body)["predictions"][0]["label"] == "7")


WAYS: dict[str, tuple[Way, str]] = {
    "gRPC": (_grpc_unary, STEADY),
    "gRPC stream": (_grpc_stream, STEADY),
    "REST, binary": (_rest_binary, STEADY),
    "REST, JSON": (_rest_json, STEADY),
    "REST, predict": (_rest_predict, PICTURES),
}
"""How it is asked, and which model."""


async def ask(asked: Asked, seconds: float, per_s: float, callers: int = 2) -> float:
    """Calls for so long, `per_s` a second in all (`math.inf`: as fast as they are answered), by so many callers on
    each way. The calls a second that there were."""
    began = time.monotonic()
    names = [name for name in WAYS for _ in range(callers)]
    before = asked.calls.total()
    gap = len(names) / per_s
    tasks = [_caller(asked, name, gap * index / len(names), gap, began + seconds) for index, name in enumerate(names)]
    await asyncio.gather(*tasks)
    return (asked.calls.total() - before) / (time.monotonic() - began)


async def _caller(asked: Asked, name: str, first: float, gap: float, until: float) -> None:
    """Calls every `gap` seconds, the first after `first`, until a time of the monotonic clock."""
    due = time.monotonic() + (first if gap else 0)
    while (now := time.monotonic()) < until:
        asked.connections += 1
        try:
            async with WAYS[name][0](asked) as call:
                for _ in range(_LIFE):
                    now = time.monotonic()
                    if max(now, due) >= until:
                        return
                    if due > now:
                        await asyncio.sleep(due - now)
                    due = max(due, now) + gap
                    await _one(asked, name, call)
        except (OSError, grpc.aio.AioRpcError) as error:
            asked.fault(f"{name}: {error!r}")
            await asyncio.sleep(_PAUSE_S)


async def _one(asked: Asked, name: str, call: Call) -> None:
    asked.calls[name] += 1
    try:
        if await call():
            asked.right[name] += 1
        else:
            asked.fault(f"{name}: a wrong answer")
    except (asyncio.IncompleteReadError, KeyError, ValueError) as error:
        asked.fault(f"{name}: {error!r}")
        raise ConnectionError from error
