"""What one turn of the loop takes: from a read with one ModelInfer, or with several, to the write of the answers.

    python -m loadtests.benchmarks.turn

The whole server in this process but for its sockets: bytes go to a connection's protocol, from there through data
plane and scheduler to ONNX Runtime (one thread), and back to a transport that drops them. The model is tiny, so that a
turn is what serving costs beside the pass. Microseconds of a turn, the tenth percentile of a round and the best of some
rounds; and how many calls it makes, of Python's functions and of those in C, in a turn whose pass the scheduler learns
from. After the pass of a larger model each of them meets caches that have forgotten it.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median, quantiles
from types import FrameType
from typing import Any, cast

import uvloop

from loadtests.benchmarks.peers import workloads
from loadtests.benchmarks.peers.calls import v2_grpc
from loadtests.h2_calls import prepare
from loadtests.h2_replay import PATH
from loadtests.report import table
from server import process
from server.app import Server
from server.environment import load_settings
from server.transport.http2 import frames
from server.transport.http2.protocol import Http2Protocol
from server.transport.http2.server import Http2Server

HEADER = ("requests", "a turn, us", "calls")
MODEL = "tiny_mlp"
REQUESTS = (1, 8, 32)
_COUNTED = 20
"""Turns whose calls are counted; the median tells."""
_WIDE = 2**30


class Sink(asyncio.Transport):
    """Drops what is written, and tells when nobody waits for an answer any more."""

    def __init__(self, protocol: Http2Protocol) -> None:
        super().__init__()
        self._waiting = protocol.connection.streams
        self.written: asyncio.Future[int] = asyncio.get_running_loop().create_future()

    def write(self, data: Any) -> None:
        if not self._waiting and not self.written.done():
            self.written.set_result(time.perf_counter_ns())

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None: ...

    def is_closing(self) -> bool:
        return False


class Connection:
    """To a running server, without a socket."""

    def __init__(self, server: Http2Server) -> None:
        self._protocol: Http2Protocol = server.protocol()
        self._sink = Sink(self._protocol)
        self._protocol.connection_made(self._sink)
        wide = frames.settings({frames.INITIAL_WINDOW_SIZE: _WIDE})
        self._protocol.data_received(frames.PREFACE + wide + frames.SETTINGS_ACK)

    async def turn(self, read: bytes) -> int:
        """Nanoseconds from the read to the write of the last answer."""
        self._protocol.connection.sender.window = _WIDE
        written = self._sink.written = asyncio.get_running_loop().create_future()
        begun_ns = time.perf_counter_ns()
        self._protocol.data_received(read)
        return await written - begun_ns

    def close(self) -> None:
        self._protocol.connection_lost(None)

    async def calls(self, read: bytes) -> int:
        """How many calls that takes."""
        count = 0

        def look(_frame: FrameType, event: str, _argument: object) -> None:
            nonlocal count
            count += event in ("call", "c_call")

        sys.setprofile(look)
        await self.turn(read)
        sys.setprofile(None)
        return count


async def measure(folder: Path, turns: int, rounds: int) -> list[tuple[object, ...]]:
    """A line of the table for each number of requests. `folder`: for the models."""
    call = v2_grpc(workloads.write(folder)[MODEL])
    ports = {name: {"port": 0} for name in ("http", "grpc", "metrics")}
    models = {"path": str(folder / "models")}
    server = Server(
        load_settings({"repository": models, "engine": {"threads": 1}, "shutdown": {"delay_s": 0}, **ports})
    )
    await server.start()
    process.settle()
    rows: list[tuple[object, ...]] = []
    for requests in REQUESTS:
        sent = prepare("same", call.body, PATH, "127.0.0.1:8001", requests * (turns + _COUNTED)).frames
        reads = [b"".join(sent[first : first + requests]) for first in range(0, len(sent), requests)]
        best_us = min([await _round(server, reads[:turns]) for _ in range(rounds)])
        connection = Connection(cast(Http2Server, server.grpc))
        counts = [await connection.calls(read) for read in reads[:_COUNTED]]
        connection.close()
        rows.append((requests, f"{best_us:.1f}", int(median(counts))))
    await server.drain()
    return rows


async def _round(server: Server, reads: Sequence[bytes]) -> float:
    connection = Connection(cast(Http2Server, server.grpc))
    times_ns = [await connection.turn(read) for read in reads]
    connection.close()
    return quantiles(times_ns, n=10)[0] / 1000


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--turns", type=int, default=2000, help="a round (default: 2000)")
    parser.add_argument("--rounds", type=int, default=5, help="of which the best counts (default: 5)")
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as folder:
        rows = uvloop.run(measure(Path(folder), options.turns, options.rounds))
    sys.stdout.write(table(HEADER, rows))
    return 0


if __name__ == "__main__":
    sys.exit(main())
