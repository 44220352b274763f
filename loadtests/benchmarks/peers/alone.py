"""The two limits of every figure: ONNX Runtime without a server, and the generators without a model."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import grpc
import httpx
import numpy as np

from loadtests.benchmarks.peers.calls import MODEL_INFER, Call
from loadtests.benchmarks.peers.running import ask, generate
from loadtests.benchmarks.peers.workloads import Workload
from loadtests.cores import pinned
from loadtests.generators import Load
from loadtests.process_tree import ProcessTree
from server.local_triton.process import free_ports

_ROOT = Path(__file__).parents[3]
_START_S = 20
_ANSWER = b"\0" * 64
_LOADS = ((1, 1), (1, 32))

Run = dict[str, Any]
"""Figures by name, as they stand in the JSON."""


def limits(workloads: Mapping[str, Workload], folder: Path, options: argparse.Namespace) -> dict[str, list[Run]]:
    """For each workload: one row a pass, and the best batch, on the server's core; of the repeats that in the middle.
    Of pictures also those two where they are reduced while they are decoded."""
    found: dict[str, list[Run]] = {}
    for name, workload in workloads.items():
        given = folder / (f"{name}.npy" if workload.picture is None else f"{name}.jpg")
        if workload.picture is None:
            np.save(given, workload.row)
        else:
            given.write_bytes(workload.picture)
        flag = "--row" if workload.picture is None else "--picture"
        command = [sys.executable, "-m", "loadtests.benchmarks.peers.bare", str(workload.onnx), flag, str(given)]
        command += ["--seconds", str(options.seconds)]
        ways = [[]] if workload.picture is None else [[], ["--draft"]]
        found[name] = [_repeated([*command, *way], batch, options) for way in ways for batch in (1, 0)]
    return found


def _repeated(command: Sequence[str], batch: int, options: argparse.Namespace) -> Run:
    runs = []
    for _ in range(options.repeats):
        with pinned(*options.server_cores):
            done = subprocess.run(  # noqa: S603 - our own command
                [*command, "--batch", str(batch)], cwd=_ROOT, capture_output=True, text=True, check=True
            )
        runs.append(json.loads(done.stdout))
    return {**middle(runs), "draft": "--draft" in command}


def middle(runs: Sequence[Run]) -> Run:
    """That with the median rate, whole: each may have had another batch size. Of two it is the quicker one."""
    by_rate = sorted(runs, key=lambda run: run["rows_per_s"])
    lowest, highest = by_rate[0]["rows_per_s"], by_rate[-1]["rows_per_s"]
    return {**by_rate[len(runs) // 2], "lowest": lowest, "highest": highest}


def limit_text(limit: Sequence[Run]) -> str:
    parts = [
        f"{'reduced while decoded, ' if run['draft'] else ''}"
        f"{run['batch']} a pass {run['rows_per_s']:,.0f} rows/s ({run['lowest']:,.0f} to {run['highest']:,.0f}), "
        f"p50 / p99 of a pass {run['p50_ms']:.3f} / {run['p99_ms']:.3f} ms"
        for run in limit
    ]
    return f"ONNX Runtime alone, in a process on the server's core: {'; '.join(parts)}."


def generators(folder: Path, options: argparse.Namespace) -> list[Run]:
    """How fast each generator is against a server that does nothing (`loadtests.echo`)."""
    found: list[Run] = []
    answer = folder / "echo.bin"
    answer.write_bytes(_ANSWER)
    for kind, name in (("grpc", "h2load"), ("http", "wrk")):
        (port,) = free_ports(1)
        command = [sys.executable, "-m", "loadtests.echo", kind, str(port), "--answer", str(answer)]
        call = Call(kind == "grpc", MODEL_INFER, b"\0" * 160, lambda _: "")
        log = folder / f"echo-{kind}.log"
        with ProcessTree.running(command, log, options.server_cores, env={}, cwd=_ROOT):
            _await(call, f"127.0.0.1:{port}")
            for connections, streams in _LOADS:
                load = Load(connections, streams, options.seconds, options.generator_cores)
                run = generate(call, f"127.0.0.1:{port}", len(_ANSWER), load)
                found.append({"generator": name, "in_flight": streams, **vars(run)})
    return found


def _await(call: Call, address: str) -> None:
    until = time.monotonic() + _START_S
    while time.monotonic() < until:
        with suppress(grpc.RpcError, httpx.HTTPError):
            ask(call, address)
            return
        time.sleep(0.1)
    raise RuntimeError("the echo server does not answer")


def generators_text(found: Sequence[Run]) -> str:
    parts = [
        f"{run['generator']} with {run['in_flight']} in flight {run['requests_per_s']:,.0f}/s "
        f"(its core {run['generator_busy']:.2f} busy)"
        for run in found
    ]
    return f"## The generators alone\n\nAgainst a server that does nothing: {'; '.join(parts)}.\n"
