"""A large tensor in and out: in the message, and in shared memory, over gRPC and REST.

    python -m loadtests.benchmarks.shared_memory

One call at a time by Triton's client, the server on the first core and the client on the second; the two ways take
turns, and the median of each counts. The model gives its input back. The client fills the region and looks at the
answer there before and after each call, outside of what is timed: it would do the same with any array of its own.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import tritonclient.grpc
import tritonclient.http
import tritonclient.utils.shared_memory as shm
from onnx import helper

from loadtests.cores import cores
from loadtests.flags import counted
from loadtests.models import Network
from loadtests.process import Server, serving
from loadtests.report import publish, table

MODEL = "same"
SIZES_MIB = (1, 4, 16)
HEADER = (
    "way",
    "MiB each way",
    "in the message, ms",
    "in shared memory, ms",
    "times faster",
    "server's CPU, times less",
)
_TICK_S = 1 / os.sysconf("SC_CLK_TCK")


class Ways:
    """One client, and the two ways to call the model with a tensor of so many bytes."""

    def __init__(self, api: ModuleType, url: str, size: int) -> None:
        self._api = api
        self._client = api.InferenceServerClient(url, **({"network_timeout": 60} if api is tritonclient.http else {}))
        self.x = np.random.default_rng(0).normal(size=(1, size // 4)).astype(np.float32)
        self._key = f"forwardpass_bench_{uuid.uuid4().hex}"
        self._region = shm.create_shared_memory_region("r", self._key, 2 * size)
        self._client.register_system_shared_memory("r", self._key, 2 * size)

    def close(self) -> None:
        self._client.unregister_system_shared_memory("r")
        shm.destroy_shared_memory_region(self._region)
        self._client.close()

    def message(self) -> float:
        """Seconds of one call with the tensors in the messages."""
        tensor = self._api.InferInput("x", list(self.x.shape), "FP32")
        began = time.perf_counter()
        tensor.set_data_from_numpy(self.x)
        y = self._client.infer(MODEL, [tensor]).as_numpy("y")
        took = time.perf_counter() - began
        self._same(y)
        return took

    def memory(self) -> float:
        """Seconds of one call with the tensors in shared memory."""
        size = self.x.nbytes
        shm.set_shared_memory_region(self._region, [self.x])
        tensor = self._api.InferInput("x", list(self.x.shape), "FP32")
        output = self._api.InferRequestedOutput("y")
        began = time.perf_counter()
        tensor.set_shared_memory("r", size)
        output.set_shared_memory("r", size, size)
        self._client.infer(MODEL, [tensor], outputs=[output])
        y = shm.get_contents_as_numpy(self._region, np.float32, self.x.shape, size)
        took = time.perf_counter() - began
        self._same(y)
        return took

    def _same(self, y: Any) -> None:
        if not np.array_equal(y, self.x):
            raise RuntimeError("the answer is not the input")


def _cpu_s(pid: int) -> float:
    """Source: proc(5), stat."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) * _TICK_S


def measure(server: Server, api: ModuleType, size: int, calls: int) -> tuple[float, float, float]:
    """The median seconds of a call either way, and how many times more CPU time the server needs for the message."""
    ways = Ways(api, server.grpc if api is tritonclient.grpc else server.http, size)
    both: tuple[Callable[[], float], ...] = (ways.message, ways.memory)
    took: tuple[list[float], list[float]] = ([], [])
    cpu_s = [0.0, 0.0]
    try:
        for way in both:
            way()
        for _ in range(max(1, calls // 10)):
            for index, way in enumerate(both):
                began = _cpu_s(server.pid)
                took[index].extend(way() for _ in range(10))
                cpu_s[index] += _cpu_s(server.pid) - began
    finally:
        ways.close()
    return statistics.median(took[0]), statistics.median(took[1]), cpu_s[0] / max(cpu_s[1], _TICK_S)


def same(elements: int) -> Network:
    """Its output is its input, `elements` numbers."""
    return Network((elements,), elements, [helper.make_node("Identity", ["x"], ["y"])], [])


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--calls", type=counted, default=50, help="of each way and size (default: 50)")
    parser.add_argument("--sizes", default=",".join(map(str, SIZES_MIB)), help="MiB, with commas between them")
    parser.add_argument("--out", type=Path, help="also write shared_memory.md into this folder")
    options = parser.parse_args(arguments)
    first, *others = cores()
    lines = []
    for mib in map(int, options.sizes.split(",")):
        with tempfile.TemporaryDirectory() as folder:
            repository, size = Path(folder) / "models", mib * 2**20
            same(size // 4).save(repository, MODEL, max_batch_size=1)
            with serving(repository, Path(folder), first) as server:
                os.sched_setaffinity(0, {others[0] if others else first})
                for name, api in (("gRPC", tritonclient.grpc), ("REST", tritonclient.http)):
                    message_s, memory_s, cpu = measure(server, api, size, options.calls)
                    ratio = message_s / memory_s
                    shown = (f"{message_s * 1e3:.1f}", f"{memory_s * 1e3:.1f}", f"{ratio:.1f}", f"{cpu:.1f}")
                    lines.append([name, str(mib), *shown])
    text = "# A large tensor in and out, one call at a time, the server on one core\n\n" + table(HEADER, lines)
    publish(text, "shared_memory.md", options.out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
