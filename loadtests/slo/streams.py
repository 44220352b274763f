"""A request to a model that streams, on both wires, and whether its answers are right: all of them, in their order."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from server.client import grpcio
from server.client.calls import Call
from server.client.inputs import tensors
from server.load.payloads import RIGHT, Judged, take
from server.repository.golden import Golden
from server.tensor import Array

_ATOL, _RTOL = 1e-4, 1e-3


class AsksStream:
    """A request whose answers come as they are made; over REST as events."""

    path: str
    body: bytes
    weight: float

    def read(self, event: bytes) -> tuple[Any, bool]:
        """What the data of an event say, and whether that is an answer, which is timed."""
        raise NotImplementedError

    def judge(self, given: Sequence[Mapping[str, Any]]) -> Judged:
        """Of all that was read."""
        raise NotImplementedError


@dataclass(frozen=True)
class StreamPayload(AsksStream):
    call: Call[Any]
    """Reads each answer of ModelStreamInfer."""
    message: bytes
    """A ModelInferRequest."""
    path: str
    body: bytes
    """Of generate_stream."""
    wanted: Sequence[Mapping[str, Array]]
    weight: float = 1.0

    def read(self, event: bytes) -> tuple[Any, bool]:
        return json.loads(event), True

    def judge(self, given: Sequence[Mapping[str, Any]]) -> Judged:
        """`given`: arrays by output, or what JSON has in their place: one element, or a flat list of them."""
        for one in given:
            if "error" in one:
                return "failed", str(one["error"])
        if len(given) != len(self.wanted):
            return "wrong", f"{len(given)} answers, and {len(self.wanted)} are right"
        for number, (wanted, one) in enumerate(zip(self.wanted, given, strict=True)):
            if not all(name in one and _same(array, one[name]) for name, array in wanted.items()):
                return "wrong", f"answer {number} is not the right one"
        return RIGHT


def streamed(model: str, inputs: Mapping[str, Array], wanted: Sequence[Mapping[str, Array]]) -> StreamPayload:
    call = grpcio.Messages().infer(model, "", tensors(inputs), ())
    fields = {name: _plain(array) for name, array in inputs.items()}
    path = f"/v2/models/{model}/generate_stream"
    return StreamPayload(call, call.request.message.SerializeToString(), path, json.dumps(fields).encode(), wanted)


def golden_streams(model: str, golden: Golden) -> list[StreamPayload]:
    """Of a model that gives one answer: a request for each golden row."""
    rows = min(len(array) for array in golden.inputs.values())
    return [streamed(model, take(golden.inputs, [row]), [take(golden.outputs, [row])]) for row in range(rows)]


def _plain(array: Array) -> Any:
    flat = [one.decode() if isinstance(one, bytes) else one for one in array.reshape(-1).tolist()]
    return flat[0] if len(flat) == 1 else flat


def _same(wanted: Array, given: Any) -> bool:
    if wanted.dtype.kind == "O":
        texts = np.array(given, dtype=object).reshape(-1).tolist()
        return [_bytes(one) for one in texts] == [_bytes(one) for one in wanted.reshape(-1).tolist()]
    flat = np.asarray(given).reshape(-1)
    if flat.size != wanted.size or flat.dtype.kind not in "biuf":
        return False
    return bool(np.allclose(flat, wanted.reshape(-1), _RTOL, _ATOL, equal_nan=True))


def _bytes(one: Any) -> Any:
    return one.encode() if isinstance(one, str) else one
