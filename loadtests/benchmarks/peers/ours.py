"""Forwardpass: gRPC by each of its transports, and REST."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from functools import cache, partial
from pathlib import Path

import httpx

from loadtests.benchmarks.peers.calls import Call, v2_grpc, v2_rest, v2_rest_binary
from loadtests.benchmarks.peers.environments import Unavailable
from loadtests.benchmarks.peers.peer import Command, Line, Peer, Setup
from loadtests.benchmarks.peers.workloads import DRAFT, Answer, Workload
from loadtests.process import samples
from server.proto.forwardpass.v1 import prediction_pb2 as pb

_ROOT = Path(__file__).parents[3]
_PREDICT = "/forwardpass.v1.PredictionService/Predict"
_FLAG = "--grpc-transport"


@cache
def _knows_transports() -> bool:
    command = [sys.executable, "-m", "server", "serve", "--help"]
    done = subprocess.run(command, cwd=_ROOT, capture_output=True, text=True, check=False)  # noqa: S603 - our own command
    return _FLAG in done.stdout


def command(transport: str, setup: Setup) -> Command:
    """Before there was a choice of transports, gRPC was grpcio's."""
    argv = [sys.executable, "-m", "server", "serve", "--model-repository", str(setup.repository)]
    argv += ["--http-port", str(setup.http_port), "--grpc-port", str(setup.grpc_port)]
    argv += ["--metrics-port", str(setup.other_port), "--engine-threads", "1", "--drain-delay-secs", "0"]
    if _knows_transports():
        argv += [_FLAG, transport]
    elif transport != "grpcio":
        raise Unavailable(f"this server has no {_FLAG}")
    return Command(argv, _ROOT)


def grpc(workload: Workload) -> Call:
    """infer for tensors, predict for pictures."""
    if workload.picture is None:
        return v2_grpc(workload)
    image = pb.Image(data=workload.picture, content_type="image/jpeg")
    request = pb.PredictRequest(model_name=workload.name, inputs=[pb.Input(image=image)])
    return Call(True, _PREDICT, request.SerializeToString(), _read_grpc)


def drafted(workload: Workload) -> Call | None:
    """The same of pictures that are reduced while they are decoded."""
    if workload.picture is None:
        return None
    return replace(grpc(replace(workload, name=DRAFT)), model=DRAFT)


def _read_grpc(message: bytes) -> Answer:
    label: str = pb.PredictResponse.FromString(message).predictions[0].classification.label
    return label


def rest(workload: Workload) -> Call:
    if workload.picture is None:
        return v2_rest(workload)
    path = f"/v2/models/{workload.name}/predict"
    return Call(False, path, workload.picture, _read_rest, {"Content-Type": "image/jpeg"})


def binary(workload: Workload) -> Call | None:
    """A picture goes as it is anyhow."""
    return v2_rest_binary(workload) if workload.picture is None else None


def _read_rest(body: bytes) -> Answer:
    return str(json.loads(body)["predictions"][0]["label"])


def succeeded(setup: Setup, model: str) -> float:
    text = httpx.get(f"http://127.0.0.1:{setup.other_port}/metrics").raise_for_status().text
    return samples(text, model).get("nv_inference_request_success", 0.0)


_BATCHING = "dynamic_batching {}"
PEERS = (
    Peer(
        "ours-http2",
        _BATCHING,
        partial(command, "http2"),
        [
            Line("Forwardpass, gRPC v2 (http2)", grpc),
            Line("Forwardpass, gRPC v2 (http2), reduced while decoded", drafted),
        ],
        succeeded,
    ),
    Peer(
        "ours-grpcio",
        _BATCHING,
        partial(command, "grpcio"),
        [
            Line("Forwardpass, gRPC v2 (grpcio)", grpc),
            Line("Forwardpass, REST v2", rest),
            Line("Forwardpass, REST v2, binary", binary),
        ],
        succeeded,
    ),
)
