"""More than one core: one process with engine threads against fronts before an engine process, on the same two cores.

    python -m loadtests.benchmarks.workers

With two cores the generator (h2load) is on both as well: that is a machine of two cores with its callers on it, and
what the generator takes is not the server's. Beside the rates: how the kernel would have spread the connections, what
large inputs cost by socket and by shared memory, and how long the engine process is missed when it is killed.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import signal
import socket
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import grpc
import httpx
import numpy as np
import uvloop

from loadtests.cores import cores
from loadtests.flags import counted
from loadtests.generators import Load, Measured, h2load
from loadtests.models import Network, cnn, tiny_mlp
from loadtests.process import Server, serving
from loadtests.report import publish, table
from server.proto.triton import service_pb2 as pb
from server.shared_memory.places import Places, view_of
from server.tensor import Tensor
from server.types import InferRequest
from server.workers.link import Link
from server.workers.messages import NOWHERE, Shapes, read_infer, write_infer

CONNECTIONS = 4
METHOD = "/inference.GRPCInferenceService/ModelInfer"
WORKLOADS = {"tiny_mlp": (tiny_mlp(), 8), "cnn": (cnn(8), 16)}
"""The network, and requests in flight on each connection."""
HEADER = ("model", "server", "req/s", "p50 ms", "p99 ms", "p99/p50", "of one core")


class Way(NamedTuple):
    title: str
    cores: int
    flags: tuple[str, ...] = ()


WAYS = (
    Way("one process, one core", 1),
    Way("one process, two cores", 2),
    Way("--workers 2, two cores", 2, ("--workers", "2")),
)


def message(name: str, network: Network) -> bytes:
    row = np.random.default_rng(0).normal(size=(1, *network.dims)).astype("<f4")
    request = pb.ModelInferRequest(model_name=name, raw_input_contents=[row.tobytes()])
    tensor = request.inputs.add(name="x", datatype="FP32")
    tensor.shape.extend(row.shape)
    return bytes(request.SerializeToString())


def answer_bytes(server: Server, sent: bytes) -> int:
    with grpc.insecure_channel(server.grpc) as channel:
        return len(channel.unary_unary(METHOD)(sent, timeout=30))


def rates(repeats: int, seconds: int) -> list[list[str]]:
    """The lines of the table: medians over `repeats`."""
    found: dict[tuple[str, str], list[Measured]] = {}
    for _ in range(repeats):
        for way in WAYS:
            with tempfile.TemporaryDirectory() as name:
                folder = Path(name)
                group = f"instance_group {{ kind: KIND_CPU count: {way.cores} }}"
                for model, (network, _) in WORKLOADS.items():
                    network.save(folder / "models", model, more=group)
                with serving(folder / "models", folder, tuple(cores()[: way.cores]), *way.flags) as server:
                    for model, measured in _measure(server, way, seconds):
                        found.setdefault((model, way.title), []).append(measured)
    return [_line(model, way, found) for model in WORKLOADS for way in WAYS]


def _measure(server: Server, way: Way, seconds: int) -> Iterator[tuple[str, Measured]]:
    generator = cores() if way.cores == 2 else cores()[1:]
    for model, (network, streams) in WORKLOADS.items():
        sent = message(model, network)
        expected = answer_bytes(server, sent)
        h2load(f"http://{server.grpc}{METHOD}", sent, expected, Load(CONNECTIONS, streams, 1, generator))
        measured = h2load(
            f"http://{server.grpc}{METHOD}", sent, expected, Load(CONNECTIONS, streams, seconds, generator)
        )
        if measured.failed:
            raise RuntimeError(f"{way.title}: {measured.failed} wrong answers of {model}")
        yield model, measured


def _line(model: str, way: Way, found: dict[tuple[str, str], list[Measured]]) -> list[str]:
    rate, p50, p99 = (
        statistics.median(getattr(one, name) for one in found[model, way.title])
        for name in ("requests_per_s", "p50_ms", "p99_ms")
    )
    one_core = statistics.median(one.requests_per_s for one in found[model, WAYS[0].title])
    return [model, way.title, f"{rate:,.0f}", f"{p50:.2f}", f"{p99:.2f}", f"{p99 / p50:.2f}", f"{rate / one_core:.2f}"]


def spread(times: int) -> dict[int, int]:
    """How often the fuller of two SO_REUSEPORT listeners had so many of `CONNECTIONS`: what the kernel does."""
    first, second = (socket.socket() for _ in range(2))
    counts: dict[int, int] = {}
    for place, listener in enumerate((first, second)):
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        listener.bind(("127.0.0.1", first.getsockname()[1] if place else 0))
        listener.listen(64)
        listener.setblocking(False)
    for _ in range(times):
        clients = [socket.create_connection(first.getsockname()) for _ in range(CONNECTIONS)]
        taken = [_accepted(listener) for listener in (first, second)]
        counts[max(taken)] = counts.get(max(taken), 0) + 1
        for client in clients:
            client.close()
    for listener in (first, second):
        listener.close()
    return counts


def _accepted(listener: socket.socket) -> int:
    count = 0
    while True:
        try:
            listener.accept()[0].close()
        except BlockingIOError:
            return count
        count += 1


async def hop_us(size: int, times: int, *, shared: bool) -> float:
    """CPU time of both sides, for a request of so many bytes: written, sent, read."""
    ours, theirs = socket.socketpair()
    file = os.memfd_create("bench")
    os.truncate(file, 1 << 24)
    places, seen = Places(file, 1 << 24), view_of(file, 1 << 24)
    arrived = asyncio.Event()
    reader, writer = Shapes(), Shapes()

    def take(_kind: int, body: memoryview) -> None:
        read_infer(reader, body, seen).inputs[0].numpy().sum()
        arrived.set()

    async def nothing(_question: object) -> None: ...

    sending, receiving = Link("b", lambda kind, body: None, nothing), Link("a", take, nothing)
    loop = asyncio.get_running_loop()
    await loop.create_unix_connection(lambda: sending, sock=ours)
    await loop.create_unix_connection(lambda: receiving, sock=theirs)
    data = bytes(size)
    request = InferRequest("m", [Tensor("x", "FP32", (1, size // 4), data)], on_settle=lambda *_: None, received_ns=0)
    began = time.process_time()
    for number in range(times):
        arrived.clear()
        place = places.put([data]) if shared else None
        sending.send(*write_infer(writer, number, 1, request, NOWHERE if place is None else place))
        await arrived.wait()
        if place is not None:
            places.give_back(place)
    spent = time.process_time() - began
    sending.close()
    receiving.close()
    return spent / times * 1e6


def missed_s() -> float:
    """From the SIGKILL of the engine process until the server is ready again, with the shipped models."""
    repository = Path(__file__).parents[2] / "model_repository"
    with (
        tempfile.TemporaryDirectory() as name,
        serving(repository, Path(name), tuple(cores()), "--workers", "2") as server,
        httpx.Client() as client,
    ):
        url = f"http://{server.http}/v2/health/ready"
        began = time.monotonic()
        os.kill(_engine(server.pid), signal.SIGKILL)
        while client.get(url).status_code == 200:
            pass
        while client.get(url).status_code != 200:
            time.sleep(0.002)
        return time.monotonic() - began


def _engine(supervisor: int) -> int:
    """It is forked before the fronts."""
    pids = Path(f"/proc/{supervisor}/task/{supervisor}/children").read_text().split()
    return min(map(int, pids))


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=counted, default=3, help="of each server; medians are told (default: 3)")
    parser.add_argument("--seconds", type=counted, default=4, help="of a load (default: 4)")
    parser.add_argument("--out", type=Path, help="also write workers.md into this folder")
    options = parser.parse_args(arguments)
    text = f"# One process and several, {CONNECTIONS} connections\n\n"
    text += table(HEADER, rates(options.repeats, options.seconds))
    counts = spread(400)
    text += f"\n{CONNECTIONS} connections to two listeners of one port, spread by the kernel, 400 times: "
    text += ", ".join(f"{most} on one in {count / 4:.0f} %" for most, count in sorted(counts.items())) + "\n\n"
    lines = []
    for size in (4, 16, 64, 256, 1024):
        by = [uvloop.run(hop_us(size * 1024, 400, shared=shared)) for shared in (False, True)]
        lines.append([f"{size} KiB", *(f"{us:.0f}" for us in by)])
    text += table(("input", "by socket, us", "by shared memory, us"), lines)
    missed = sorted(missed_s() for _ in range(5))
    text += f"\nThe engine process was missed for {statistics.median(missed):.2f} s (longest {missed[-1]:.2f} s).\n"
    publish(text, "workers.md", options.out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
