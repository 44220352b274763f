"""What headers that differ from call to call cost, on the tiny MLP, with ours and with Triton.

See `loadtests.h2_calls` for the variants.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from loadtests.benchmarks.peers.calls import MODEL_INFER
from loadtests.benchmarks.peers.results import NOTHING, interleaved, number, plain
from loadtests.benchmarks.peers.running import Running
from loadtests.h2_calls import BLOCKS
from loadtests.report import table

CALLS = 200_000
"""The most of one run; as many as a short one says that `--seconds` will take."""
IN_FLIGHT = 32
SERVERS = ("ours", "triton")
_ROOT = Path(__file__).parents[3]
_LONGEST_S = 300
_WARM_UP_CALLS = 2_000
_TITLES = {
    "same": "the same on each call",
    "literals": "grpc-timeout and traceparent differ, Huffman-coded literals",
    "inserted": "the same two, inserted in the dynamic table each time",
    "ids": "the request id differs",
}


def measure(
    servers: Sequence[Running], options: argparse.Namespace, tell: Callable[[str], None]
) -> list[dict[str, Any]]:
    """Every variant on every server that is ours or Triton, interleaved, as often as the other cells."""
    cells = [
        (server, line.title, variant)
        for server in servers
        if server.peer.name.startswith(SERVERS)
        for line in server.peer.lines
        for variant in BLOCKS
        if _plain_infer(server, line.title)
    ]
    found = []
    for repeat, (server, line, variant) in interleaved(cells, options.repeats, options.seed):
        server.tree.thaw()
        try:
            result = _replay(server, variant, options)
        finally:
            server.tree.freeze()
        figures = result.get("problem") or f"{result['requests_per_s']:,.0f}/s"
        tell(f"{line}, headers: {variant}: {figures}")
        found.append({"server": server.peer.name, "line": line, "variant": variant, "repeat": repeat, **result})
    return found


def _plain_infer(server: Running, title: str) -> bool:
    """A line that sends ModelInfer to the tiny MLP itself, and gets right answers."""
    line = next(line for line in server.peer.lines if line.title == title)
    call = line.call(server.setup.workloads["tiny_mlp"])
    plain = call is not None and call.grpc and call.path == MODEL_INFER and call.answer is None
    return plain and (title, "tiny_mlp") not in server.wrong


def _replay(server: Running, variant: str, options: argparse.Namespace) -> dict[str, Any]:
    """In a process of its own, which nothing else of this one disturbs."""
    workload = server.setup.workloads["tiny_mlp"]
    line = next(line for line in server.peer.lines if _plain_infer(server, line.title))
    call = line.call(workload)
    assert call is not None
    message, answer = server.setup.folder / "message.bin", server.setup.folder / "answer.bin"
    message.write_bytes(call.body)
    answer.write_bytes(np.asarray(workload.answer, np.float32).tobytes())
    command = [sys.executable, "-m", "loadtests.h2_replay", server.address(call), "--variant", variant]
    command += ["--message", str(message), "--answer", str(answer), "--in-flight", str(IN_FLIGHT)]
    warm = _run([*command, "--calls", str(_WARM_UP_CALLS)])
    if "problem" in warm:
        return warm
    enough = int(warm["requests_per_s"] * options.seconds)
    return _run([*command, "--calls", str(max(_WARM_UP_CALLS, min(options.calls, enough)))])


def _run(command: Sequence[str]) -> dict[str, Any]:
    """What the generator measured; with `problem`, where it did not or where a call failed."""
    try:
        done = subprocess.run(  # noqa: S603 - our own command
            command, cwd=_ROOT, capture_output=True, text=True, check=False, timeout=_LONGEST_S
        )
    except subprocess.TimeoutExpired:
        return {"problem": f"took over {_LONGEST_S} s"}
    if not done.stdout:
        return {"problem": (done.stderr.strip().splitlines() or ["no reason given"])[-1]}
    result: dict[str, Any] = json.loads(done.stdout)
    if result["failed"]:
        result["problem"] = f"{result['failed']} of {result['answered']} failed: {result['statuses']}"
    return result


def text(found: Sequence[dict[str, Any]]) -> str:
    """A table of servers by variant, or nothing."""
    if not found:
        return ""
    lines = sorted({run["line"] for run in found})
    rows = [
        [line, *(_figures([r for r in found if (r["line"], r["variant"]) == (line, v)]) for v in BLOCKS)]
        for line in lines
    ]
    what = f"Tiny MLP, {IN_FLIGHT} in flight on one connection: req/s (lowest to highest), p99 ms."
    head = f"## Headers that differ\n\n{what}\n\n"
    return head + table(["server", *(_TITLES[variant] for variant in BLOCKS)], rows)


def _figures(runs: Sequence[dict[str, Any]]) -> str:
    good = [run for run in runs if "problem" not in run]
    if not good:
        return plain(runs[-1]["problem"]) if runs else NOTHING
    rates = [run["requests_per_s"] for run in good]
    p99 = median(run["p99_ms"] for run in good)
    return f"{number(median(rates))} ({number(min(rates))} to {number(max(rates))}), {p99:.2f}"
