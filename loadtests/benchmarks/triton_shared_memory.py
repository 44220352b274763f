"""Inputs to a Triton on this host by size: in the message, and in shared memory (`--triton-shared-memory`).

    python -m loadtests.benchmarks.triton_shared_memory
    python -m loadtests.benchmarks.triton_shared_memory --gpu 0    # the memory of that GPU, which Triton must have too

A real Triton on the first core, with a model that takes a tensor and answers one number; this process on the second,
with the server's own way to Tritons in it (its pool, twice: once with shared memory, once without). The two ways take
turns, call by call, one call at a time; the median of each counts. What is told at the end is the size from which
shared memory is faster by a tenth or more at every size measured; the default of
`--triton-shared-memory-least-bytes` is what it said.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

import numpy as np

from loadtests.cores import cores, pinned
from loadtests.flags import counted
from loadtests.process import unwinding
from loadtests.report import publish, table
from server.engine.triton.addresses import parse
from server.engine.triton.channel import Channels
from server.engine.triton.pool import Pool
from server.engine.triton.server import TritonServer
from server.errors import InvalidRequest
from server.local_triton.process import LocalTriton, Ports, free_ports
from server.local_triton.program import Program, TritonMissing, find
from server.settings import TritonSettings
from server.tensor import Tensor
from server.types import InferRequest, InferResponse, Outcome

MODEL = "first"
SIZES_KIB = (64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384)
HEADER = ("KiB", "in the message, ms", "in shared memory, ms", "times faster", "our CPU, times less")
_MOST_BYTES = 1 << 30
_CLEARLY = 1.1
"""By so much it must be faster to count, so that noise does not decide."""
_CONFIG = """
name: "first" backend: "python"
input { name: "x" data_type: TYPE_FP32 dims: -1 }
output { name: "y" data_type: TYPE_FP32 dims: 1 }
"""
_CODE = """import sys

sys.path[:0] = [{packages!r}]

import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    def execute(self, requests):
        given = [pb_utils.get_input_tensor_by_name(request, "x").as_numpy() for request in requests]
        return [pb_utils.InferenceResponse([pb_utils.Tensor("y", x[:1])]) for x in given]
"""


def write_model(repository: Path, packages: Path | None) -> None:
    (repository / MODEL / "1").mkdir(parents=True)
    (repository / MODEL / "config.pbtxt").write_text(_CONFIG)
    (repository / MODEL / "1" / "model.py").write_text(_CODE.format(packages=str(packages)))


class NotShared(Exception):
    """This Triton reads no memory of ours."""


class Way:
    """Calls through a pool of its own."""

    def __init__(self, port: int, shared_memory: str, gpu: int = -1) -> None:
        url = f"grpc://127.0.0.1:{port}"
        settings = TritonSettings.model_validate(
            {
                "url": url,
                "shared_memory": shared_memory,
                "shared_memory_least_bytes": 1,
                "shared_memory_gpu": gpu,
            }
        )
        self._pool = Pool(parse(url, tls=False), settings, Channels(settings, _MOST_BYTES, tls=False))
        self.took_s: list[float] = []
        self.cpu_s = 0.0

    async def start(self) -> None:
        """Until the memory is shared, if it is to be. Raises NotShared, InvalidRequest if it can't be."""
        await self._pool.start()
        for _ in range(100):
            await self.call(np.zeros(1024, np.float32))
            await asyncio.sleep(0.02)
            if self.server.shares_memory or not self.server.may_share_memory:
                return
        raise NotShared("this Triton shares no memory")

    @property
    def server(self) -> TritonServer:
        return self._pool.servers[0]

    async def call(self, x: np.ndarray[tuple[int, ...], np.dtype[np.float32]]) -> None:
        """Raises RuntimeError if it is not answered rightly."""
        outcome: asyncio.Future[Outcome] = asyncio.get_running_loop().create_future()
        tensor = Tensor.from_numpy("x", x)
        began, before_s = time.perf_counter(), time.process_time()
        request = InferRequest(MODEL, [tensor], on_settle=lambda *_: None, received_ns=time.monotonic_ns())
        self.server.ask(request, "1", ["y"], outcome.set_result)
        answer = await outcome
        self.took_s.append(time.perf_counter() - began)
        self.cpu_s += time.process_time() - before_s
        if not isinstance(answer, InferResponse) or answer.outputs[0].numpy()[0] != x[0]:
            raise RuntimeError(f"not the answer: {answer}")

    def forget(self) -> None:
        self.took_s, self.cpu_s = [], 0.0

    async def close(self) -> None:
        await self._pool.close()


async def measure(port: int, sizes_kib: Sequence[int], calls: int, gpu: int) -> list[tuple[float, float, float]]:
    """For each size: the median seconds by message and by shared memory, and how many times less CPU that takes.
    `gpu`: whose memory; -1: the host's. Raises NotShared, InvalidRequest."""
    ways = (Way(port, "off"), Way(port, "auto", gpu))
    found = []
    try:
        for way in ways:
            await way.start()
        for kib in sizes_kib:
            x = np.random.default_rng(0).normal(size=kib * 256).astype(np.float32)
            for number in range(calls + 3):
                if number == 3:
                    for way in ways:
                        way.forget()
                for way in ways if number % 2 else ways[::-1]:
                    await way.call(x)
            message, memory = (statistics.median(way.took_s) for way in ways)
            found.append((message, memory, ways[0].cpu_s / ways[1].cpu_s))
    finally:
        for way in ways:
            await way.close()
    return found


def wins_from(sizes_kib: Sequence[int], found: Sequence[tuple[float, float, float]]) -> int | None:
    """The smallest size from which shared memory is clearly faster, there and at all larger ones; None: not even at the
    largest."""
    least = None
    for kib, (message, memory, _) in sorted(zip(sizes_kib, found, strict=True), reverse=True):
        if memory * _CLEARLY >= message:
            break
        least = kib
    return least


def report(sizes_kib: Sequence[int], found: Sequence[tuple[float, float, float]], calls: int) -> str:
    lines = [
        [kib, f"{message * 1e3:.2f}", f"{memory * 1e3:.2f}", f"{message / memory:.2f}", f"{cpu:.2f}"]
        for kib, (message, memory, cpu) in zip(sizes_kib, found, strict=True)
    ]
    least = wins_from(sizes_kib, found)
    said = "Shared memory does not win" if least is None else f"Shared memory wins from {least} KiB"
    load = os.getloadavg()[0]
    return (
        f"# Inputs to a Triton on this host, one call at a time, medians of {calls} calls each, in turns\n\n"
        + table(HEADER, lines)
        + f"\n{said}. Load average of the machine: {load:.1f} (quiet: about 1).\n"
    )


def program() -> Program:
    """Raises TritonMissing."""
    return find(folder=Path(__file__).parents[2] / "build" / "triton")


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--calls", type=counted, default=100, help="of each way and size (default: 100)")
    parser.add_argument("--sizes", default=",".join(map(str, SIZES_KIB)), help="KiB, with commas between them")
    parser.add_argument("--out", type=Path, help="also write triton_shared_memory.md into this folder")
    parser.add_argument(
        "--gpu", type=int, default=-1, help="share the memory of the GPU of that number, not the host's"
    )
    options = parser.parse_args(arguments)
    sizes_kib = [int(size) for size in options.sizes.split(",")]
    try:
        found_program = program()
    except TritonMissing as missing:
        sys.stderr.write(f"{missing}\n")
        return 2
    first, *others = cores()
    with unwinding(), ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        write_model(folder / "models", found_program.packages)
        output = stack.enter_context((folder / "triton.log").open("wb"))
        ports = Ports(*free_ports(3))
        triton = LocalTriton(found_program, folder / "models", ports, flags=["--log-verbose=0"], output=output)
        with pinned(first):
            stack.enter_context(triton)
        triton.wait_ready(90)
        os.sched_setaffinity(0, {others[0] if others else first})
        try:
            found = asyncio.run(measure(ports.grpc, sizes_kib, options.calls, options.gpu))
        except (NotShared, InvalidRequest) as refused:
            sys.stderr.write(f"{refused}\n")
            return 2
    publish(report(sizes_kib, found, options.calls), "triton_shared_memory.md", options.out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
