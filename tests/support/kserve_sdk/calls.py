"""What KServe's own client gets of a server: run in an environment that has it, with the addresses of REST and gRPC.

Prints one JSON object: by transport and call its result, or the type and the text of its error.
"""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Awaitable
from typing import Any

import numpy as np
from kserve import InferenceGRPCClient, InferenceRESTClient, InferInput, InferRequest
from kserve.inference_client import RESTConfig

MODEL = "linear"


def request(name: str, x: np.ndarray, *, binary: bool) -> InferRequest:
    tensor = InferInput("x", list(x.shape), "FP32")
    tensor.set_data_from_numpy(x, binary_data=binary)
    return InferRequest(name, [tensor], request_id="17")


def plain(answer: Any) -> Any:
    if isinstance(answer, bool):
        return answer
    output = answer.outputs[0]
    return [answer.id, answer.model_name, output.name, output.datatype, output.as_numpy().tolist()]


async def outcome(call: Awaitable[Any]) -> Any:
    try:
        return plain(await call)
    except Exception as error:  # noqa: BLE001 - it is what is told
        return [type(error).__name__, str(error)]


async def main(base: str, target: str) -> None:
    good, bad = np.ones((2, 3), np.float32), np.ones((2, 4), np.float32)
    told: dict[str, dict[str, Any]] = {"rest": {}, "grpc": {}}
    async with InferenceRESTClient(RESTConfig(protocol="v2", timeout=60)) as rest:
        calls = {
            "ready": rest.is_server_ready(base),
            "live": rest.is_server_live(base),
            "model ready": rest.is_model_ready(base, MODEL),
            "unknown model ready": rest.is_model_ready(base, "nope"),
            "binary": rest.infer(base, request(MODEL, good, binary=True), model_name=MODEL),
            "json": rest.infer(base, request(MODEL, good, binary=False), model_name=MODEL),
            "wrong shape": rest.infer(base, request(MODEL, bad, binary=True), model_name=MODEL),
            "unknown model": rest.infer(base, request("nope", good, binary=True), model_name="nope"),
        }
        told["rest"] = {name: await outcome(call) for name, call in calls.items()}
    async with InferenceGRPCClient(target, timeout=60) as grpc:
        calls = {
            "ready": grpc.is_server_ready(),
            "live": grpc.is_server_live(),
            "model ready": grpc.is_model_ready(MODEL),
            "unknown model ready": grpc.is_model_ready("nope"),
            "binary": grpc.infer(request(MODEL, good, binary=True)),
            "json": grpc.infer(request(MODEL, good, binary=False)),
            "wrong shape": grpc.infer(request(MODEL, bad, binary=True)),
            "unknown model": grpc.infer(request("nope", good, binary=True)),
        }
        told["grpc"] = {name: await outcome(call) for name, call in calls.items()}
    print(json.dumps(told))  # noqa: T201


asyncio.run(main(*sys.argv[1:]))
