"""What an infer request over REST costs the server: requests a second, and CPU time a request.

    python -m loadtests.benchmarks.rest

The server runs on the first core with a tiny network (30 -> 64 -> 2), the callers on the second. Each caller sends as
soon as it is answered, over a connection of its own. Bytes are made before they are needed, and answers are told apart
by their status and length only: what the callers cost must not be what is measured.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from itertools import count
from pathlib import Path

import numpy as np
import uvloop

from loadtests.cores import cores
from loadtests.flags import positive
from loadtests.models import tiny_mlp
from loadtests.process import Server, serving
from loadtests.report import publish, table

MODEL = "tiny"
HEADER = ("request", "in flight", "requests/s", "server's CPU, us a request", "of it in the kernel", "rows a pass")
_TICK_US = 1e6 / os.sysconf("SC_CLK_TCK")


def _message(body: bytes, *fields: str) -> bytes:
    lines = [f"POST /v2/models/{MODEL}/infer HTTP/1.1", "Host: localhost", f"Content-Length: {len(body)}", *fields]
    return "\r\n".join([*lines, "", ""]).encode() + body


def _binary(*fields: str, id: str = "") -> bytes:
    row = np.random.default_rng(0).normal(size=(1, 30)).astype("<f4").tobytes()
    tensor = {"name": "x", "datatype": "FP32", "shape": [1, 30], "parameters": {"binary_data_size": len(row)}}
    document = {"id": id} if id else {}
    outputs = [{"name": "y", "parameters": {"binary_data": True}}]
    text = json.dumps(document | {"inputs": [tensor], "outputs": outputs}, separators=(",", ":")).encode()
    return _message(text + row, f"Inference-Header-Content-Length: {len(text)}", *fields)


def _json() -> bytes:
    row = [round(float(value), 6) for value in np.random.default_rng(0).normal(size=30)]
    return _message(json.dumps({"inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 30], "data": row}]}).encode())


def forms() -> dict[str, Iterator[bytes]]:
    """Requests without end, by what they are."""
    same, plain = _binary(), _json()
    named, traced = _binary(id="0123456789"), _binary("traceparent: 00-0123456789abcdef-01")
    return {
        "binary, always the same": (same for _ in count()),
        "binary, an id that differs": (named.replace(b"0123456789", b"%010d" % n, 1) for n in count()),
        "binary, a header that differs": (traced.replace(b"0123456789", b"%010d" % n, 1) for n in count()),
        "JSON": (plain for _ in count()),
    }


class Caller(asyncio.Protocol):
    """Sends the next request when the answer to the last one is here, until `until_ns`."""

    def __init__(self, requests: Iterator[bytes], until_ns: int) -> None:
        self._requests = requests
        self._until_ns = until_ns
        self._size = 0
        self._received = b""
        self.answered = 0
        self.over: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport: asyncio.Transport = transport  # type: ignore[assignment]
        self._transport.write(next(self._requests))

    def data_received(self, data: bytes) -> None:
        self._received += data
        if not self._size:
            self._size = _size_of(self._received)
        if not self._size or len(self._received) < self._size:
            return
        if not self._received.startswith(b"HTTP/1.1 200 ") or len(self._received) != self._size:
            self._transport.close()
            self.over.set_exception(RuntimeError(f"not the answer that was expected: {self._received[:200]!r}"))
            return
        self._received = b""
        self.answered += 1
        if time.monotonic_ns() < self._until_ns:
            self._transport.write(next(self._requests))
        else:
            self._transport.close()
            self.over.set_result(None)


def _size_of(answer: bytes) -> int:
    """Of the whole answer, 0 if its head is not here."""
    head, end, _ = answer.partition(b"\r\n\r\n")
    if not end:
        return 0
    length = next(int(line[15:]) for line in head.split(b"\r\n") if line.startswith(b"content-length:"))
    return len(head) + len(end) + length


async def closed_loop(address: str, requests: Iterator[bytes], in_flight: int, seconds: float) -> int:
    """Answers within so many seconds."""
    host, _, port = address.rpartition(":")
    loop, until_ns = asyncio.get_running_loop(), time.monotonic_ns() + int(seconds * 1e9)
    callers = [Caller(requests, until_ns) for _ in range(in_flight)]
    for caller in callers:
        await loop.create_connection(lambda caller=caller: caller, host, int(port))  # type: ignore[misc]
    await asyncio.gather(*(caller.over for caller in callers))
    return sum(caller.answered for caller in callers)


def _cpu_ticks(pid: int) -> tuple[int, int]:
    """In user mode and in the kernel. Source: proc(5), stat."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return int(fields[11]), int(fields[12])


def measure(server: Server, form: str, requests: Iterator[bytes], in_flight: int, seconds: float) -> list[str]:
    uvloop.run(closed_loop(server.http, requests, in_flight, 0.3))
    passes, (user, kernel) = server.metrics(MODEL), _cpu_ticks(server.pid)
    answered = uvloop.run(closed_loop(server.http, requests, in_flight, seconds))
    passes_then, (user_then, kernel_then) = server.metrics(MODEL), _cpu_ticks(server.pid)
    names = ("nv_inference_count", "nv_inference_exec_count")
    rows, executed = (passes_then[name] - passes[name] for name in names)
    both = (user_then - user + kernel_then - kernel) * _TICK_US / answered
    in_kernel = (kernel_then - kernel) * _TICK_US / answered
    rate = answered / seconds
    return [form, str(in_flight), f"{rate:.0f}", f"{both:.1f}", f"{in_kernel:.1f}", f"{rows / max(executed, 1):.1f}"]


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=positive, default=3.0, help="of each line (default: 3)")
    parser.add_argument("--out", type=Path, help="also write rest.md into this folder")
    options = parser.parse_args(arguments)
    first, *others = cores()
    lines: list[list[str]] = []
    with tempfile.TemporaryDirectory() as folder:
        repository = Path(folder) / "models"
        tiny_mlp().save(repository, MODEL)
        with serving(repository, Path(folder), first) as server:
            os.sched_setaffinity(0, {others[0] if others else first})
            for form, requests in forms().items():
                lines += [measure(server, form, requests, in_flight, options.seconds) for in_flight in (1, 32)]
    text = "# infer over REST, closed loop, the server on one core\n\n" + table(HEADER, lines)
    publish(text, "rest.md", options.out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
