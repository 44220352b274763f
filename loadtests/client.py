"""Callers of ModelInfer: a closed loop, and an open one that sends at given times whatever comes back.

Both send the same bytes again and again: a caller that builds its request each time would be what is measured.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import grpc
import numpy as np
from tritonclient.grpc import service_pb2 as pb

_METHOD = "/inference.GRPCInferenceService/ModelInfer"
_LEAD_NS = 200_000_000
"""The first request is due so long after the sender started."""
_LAG_NS = 5_000_000
_LAGGING = 0.01
"""A run counts only if at most this share of requests was sent more than `_LAG_NS` after its time."""


def message(model: str, dims: Sequence[int]) -> bytes:
    """A ModelInfer request of one row of random floats."""
    row = np.random.default_rng(0).normal(size=(1, *dims)).astype(np.float32)
    tensor = pb.ModelInferRequest.InferInputTensor(name="x", datatype="FP32", shape=row.shape)
    request = pb.ModelInferRequest(model_name=model, inputs=[tensor], raw_input_contents=[row.tobytes()])
    data: bytes = request.SerializeToString()
    return data


def infer(channel: grpc.aio.Channel) -> Any:
    """The call, from bytes to bytes."""
    return channel.unary_unary(_METHOD, request_serializer=None, response_deserializer=None)


@dataclass
class OpenLoop:
    """What came of one open-loop run. Times are nanoseconds since the time that the request was due."""

    statuses: Counter[str] = field(default_factory=Counter)
    answered_ns: list[int] = field(default_factory=list)
    refused_ns: list[int] = field(default_factory=list)
    """Of RESOURCE_EXHAUSTED."""
    lags_ns: list[int] = field(default_factory=list)
    """How late each request was sent."""

    def valid(self) -> bool:
        """The generator kept its times."""
        lagging = sum(lag > _LAG_NS for lag in self.lags_ns)
        return bool(self.lags_ns) and lagging <= _LAGGING * len(self.lags_ns)

    def in_time(self, deadline_ns: int) -> int:
        return sum(latency <= deadline_ns for latency in self.answered_ns)


def quantile(values: Sequence[int], q: float) -> float:
    """The q-quantile, nearest rank; NaN of nothing."""
    return float(sorted(values)[max(0, math.ceil(q * len(values)) - 1)]) if values else math.nan


async def open_loop(call: Any, data: bytes, due_ns: Sequence[int], deadline_ns: int) -> OpenLoop:
    """Send a request at each time, counted from now; each has a gRPC deadline `deadline_ns` after it was due."""
    result = OpenLoop()
    start_ns = time.monotonic_ns() + _LEAD_NS
    tasks: set[asyncio.Task[None]] = set()
    for offset_ns in due_ns:
        at_ns = start_ns + offset_ns
        left_ns = at_ns - time.monotonic_ns()
        if left_ns > 0:
            await asyncio.sleep(left_ns / 1e9)
        task = asyncio.create_task(_one(call, data, at_ns, deadline_ns, result))
        tasks.add(task)
        task.add_done_callback(tasks.discard)
    if tasks:
        await asyncio.wait(tasks)
    return result


async def _one(call: Any, data: bytes, at_ns: int, deadline_ns: int, result: OpenLoop) -> None:
    sent_ns = time.monotonic_ns()
    result.lags_ns.append(sent_ns - at_ns)
    try:
        await call(data, timeout=max(0.001, (at_ns + deadline_ns - sent_ns) / 1e9))
    except grpc.aio.AioRpcError as error:
        status = error.code().name
    else:
        status = "OK"
    took_ns = time.monotonic_ns() - at_ns
    result.statuses[status] += 1
    if status == "OK":
        result.answered_ns.append(took_ns)
    elif status == "RESOURCE_EXHAUSTED":
        result.refused_ns.append(took_ns)


async def closed_loop(call: Any, data: bytes, in_flight: int, seconds: float) -> float:
    """Answers a second with always `in_flight` requests under way. A request that fails ends the run."""
    start_ns = time.monotonic_ns()
    until_ns = start_ns + int(seconds * 1e9)
    answered = 0

    async def caller() -> None:
        nonlocal answered
        while time.monotonic_ns() < until_ns:
            await call(data, timeout=60)
            answered += 1

    await asyncio.gather(*(caller() for _ in range(in_flight)))
    return answered / (time.monotonic_ns() - start_ns) * 1e9
