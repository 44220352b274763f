"""A server whose model follows a script: so long a pass, a stall now and then. All else is the real server.

    python -m loadtests.scripted FOLDER --pass-ms 10 --stall-ms 500 --stall-every-s 3

FOLDER gets the model `scripted` with its golden files, for the generators, and `counting`, which streams: asked with x
it gives x answers, x, x + 1, and so on, each after a pass. They are there when the banner is printed. The engine is
`server/engine/fake.py`: an answer is the sum of its row.
"""

from __future__ import annotations

import argparse
import asyncio
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import uvloop

from loadtests.process import Server, started
from server.banner import banner
from server.dataplane import DataPlane
from server.engine.fake import FakeEngine, Script
from server.lifecycle import Lifecycle, State
from server.model_control import ModelControl
from server.observability.metrics import Metrics
from server.pipeline.load import load_pipeline
from server.repository.golden import write_golden
from server.repository.repository import Repository
from server.settings import GrpcSettings, HttpSettings, MetricsSettings, RepositorySettings, Settings, TlsSettings
from server.transport.http1.server import Http1Server
from server.transport.http2.server import Http2Server
from server.transport.metrics import MetricsApp
from server.transport.rest import RestServer

MODEL = "scripted"
_CONFIG = """name: "scripted"
backend: "onnxruntime"
max_batch_size: 8
input { name: "x" data_type: TYPE_FP32 dims: [ 2 ] }
output { name: "y" data_type: TYPE_FP32 dims: [ 1 ] }
instance_group { count: 1 kind: KIND_CPU }
dynamic_batching { }
"""
STREAMING = "counting"
_STREAMING = """name: "counting"
backend: "onnxruntime"
max_batch_size: 8
input { name: "x" data_type: TYPE_FP32 dims: [ 1 ] }
output { name: "y" data_type: TYPE_FP32 dims: [ 1 ] }
instance_group { count: 4 kind: KIND_CPU }
model_transaction_policy { decoupled: true }
"""
_HOST = "127.0.0.1"


def write_models(repository: Path) -> None:
    for name, config in ((MODEL, _CONFIG), (STREAMING, _STREAMING)):
        (repository / name / "1").mkdir(parents=True, exist_ok=True)
        (repository / name / "1" / "model.onnx").write_text("the scripted engine reads no file\n")
        (repository / name / "config.pbtxt").write_text(config)
    folder = repository / MODEL
    x = np.random.default_rng(0).normal(size=(8, 2)).astype(np.float32)
    write_golden(folder, "1", {"x": x}, {"y": x.astype(np.float64).sum(axis=1, keepdims=True).astype(np.float32)})


def stalling(pass_s: float, stall_s: float, every_s: float) -> Callable[[int], float]:
    """The latency of a pass; one pass in every `every_s` is longer by `stall_s`. 0: none is."""
    next_at = time.monotonic() + every_s

    def latency_s(_rows: int) -> float:
        nonlocal next_at
        if not stall_s or time.monotonic() < next_at:
            return pass_s
        next_at = time.monotonic() + every_s
        return pass_s + stall_s

    return latency_s


@contextmanager
def scripted(
    folder: Path, core: int | tuple[int, ...], pass_ms: float, stall_ms: float = 0, stall_every_s: float = 3
) -> Iterator[tuple[Server, Path]]:
    """The server in a process of its own, and its repository."""
    repository = folder / "models"
    stall = ["--stall-ms", f"{stall_ms:g}", "--stall-every-s", f"{stall_every_s:g}"]
    asked = ["-m", "loadtests.scripted", str(repository), "--pass-ms", f"{pass_ms:g}", *stall]
    with started(asked, folder, core) as server:
        yield server, repository


async def serve(repository: Path, script: Script) -> None:
    """Until SIGTERM or SIGINT."""
    lifecycle = Lifecycle()
    source = Repository(repository, FakeEngine(script), load_pipeline=load_pipeline, warmup_s=1.0)
    models = ModelControl(source, default_max_queue_size=100_000, load_threads=1)
    dataplane = DataPlane(models, lifecycle, RepositorySettings.model_validate({"path": repository}), 1)
    await models.load_all(models.names())
    rest = RestServer(dataplane, _HOST, HttpSettings(port=0))
    grpc = Http2Server(dataplane, _HOST, GrpcSettings(port=0), TlsSettings())
    metrics = Http1Server(MetricsApp(Metrics(dataplane, {}).expose), _HOST, 0, HttpSettings(port=0))
    ports = {"http": await rest.start(), "grpc": await grpc.start(), "metrics": await metrics.start()}
    lifecycle.advance(State.READY)
    settings = Settings(host=_HOST, metrics=MetricsSettings(port=0))
    sys.stdout.write(banner(dataplane, settings, ports))
    sys.stdout.flush()
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    await stop.wait()
    await asyncio.gather(rest.stop(1), grpc.stop(1), metrics.stop(1))
    await models.close()
    dataplane.close()


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--pass-ms", type=float, default=10)
    parser.add_argument("--stall-ms", type=float, default=0)
    parser.add_argument("--stall-every-s", type=float, default=3)
    options = parser.parse_args(arguments)
    write_models(options.folder)
    script = Script(latency_s=stalling(options.pass_ms / 1e3, options.stall_ms / 1e3, options.stall_every_s))
    uvloop.run(serve(options.folder, script))
    return 0


if __name__ == "__main__":
    sys.exit(main())
