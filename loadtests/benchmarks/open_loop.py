"""Overload for real: the server on one core, Poisson arrivals from another, a deadline of 100 ms.

    python -m loadtests.benchmarks.open_loop --seconds 10

Writes a CNN that takes 3 to 5 ms a row into a temporary repository, starts the server with its defaults,
finds the capacity (the best closed-loop rate), then offers 0.8, 1.2, 2 and 3 times that. Latency counts from
the time that a request was due, so a generator that stumbles can't hide what its callers would have waited.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import json
import os
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import grpc
import uvloop

from loadtests.arrivals import poisson
from loadtests.client import OpenLoop, closed_loop, infer, message, open_loop, quantile
from loadtests.cores import cores
from loadtests.fitting import fitting_cnn
from loadtests.flags import positive
from loadtests.models import Network
from loadtests.process import Server, grown, serving
from loadtests.report import table

MODEL = "cnn"
LOADS = (0.8, 1.2, 2.0, 3.0)
IN_FLIGHT = (1, 2, 4, 8, 16, 32)
DEADLINE_NS = 100_000_000
MOST_REQUESTS = 100_000
"""Of one load; a capacity that needs more is not that of a model of 3 to 5 ms."""
HEADER = (
    "load",
    "valid",
    "offered/s",
    "goodput/s",
    "goodput/capacity",
    "in time",
    "p50 ms",
    "p99 ms",
    "refusal p50 ms",
    "statuses",
    "passes",
    "rows",
    "rows not in time",
    "rows begun expired",
    "capacity nearby/s",
    "goodput/nearby",
)


def judge(load: float, rate: float, capacity: float, result: OpenLoop, counted: dict[str, float]) -> dict[str, Any]:
    """One line of the table. `counted` is what the server's metrics grew by."""
    sent = len(result.lags_ns)
    in_time = result.in_time(DEADLINE_NS)
    goodput = in_time / sent * rate if sent else 0.0
    rows = int(counted["nv_inference_count"])
    waits = "forwardpass_queue_duration_seconds"
    begun_expired = counted[f"{waits}_count"] - counted[f"{waits}_bucket le={DEADLINE_NS / 1e9:g}"]
    return {
        "load": load,
        "valid": result.valid(),
        "offered_per_s": round(rate, 1),
        "goodput_per_s": round(goodput, 1),
        "goodput_over_capacity": round(goodput / capacity, 3),
        "share_in_time": round(in_time / sent, 4),
        "p50_ms": round(quantile(result.answered_ns, 0.5) / 1e6, 1),
        "p99_ms": round(quantile(result.answered_ns, 0.99) / 1e6, 1),
        "refusal_p50_ms": round(quantile(result.refused_ns, 0.5) / 1e6, 2),
        "statuses": dict(sorted(result.statuses.items())),
        "passes": int(counted["nv_inference_exec_count"]),
        "rows": rows,
        "rows_not_in_time": rows - in_time,
        "rows_begun_expired": int(begun_expired),
        "lag_p99_ms": round(quantile(result.lags_ns, 0.99) / 1e6, 2),
        "counted": {name: value for name, value in sorted(counted.items()) if value and "bucket" not in name},
    }


def line(judged: dict[str, Any]) -> list[object]:
    statuses = ", ".join(f"{name} {count}" for name, count in judged["statuses"].items())
    values = [value for name, value in judged.items() if name not in ("lag_p99_ms", "counted")]
    return [statuses if isinstance(value, dict) else value for value in values]


async def offer(server: Server, call: Any, data: bytes, capacity: float, load: float, options: Any) -> dict[str, Any]:
    due_ns = poisson(load * capacity, options.seconds, options.seed)[:MOST_REQUESTS]
    before = server.metrics(MODEL)
    result = await open_loop(call, data, due_ns, DEADLINE_NS)
    await asyncio.sleep(0.5)
    return judge(load, len(due_ns) / options.seconds, capacity, result, grown(before, server.metrics(MODEL)))


async def measure(server: Server, network: Network, options: Any) -> dict[str, Any]:
    data = message(MODEL, network.dims)
    async with grpc.aio.insecure_channel(server.grpc) as channel:
        call = infer(channel)
        await closed_loop(call, data, 4, 0.5)
        closed = {n: await closed_loop(call, data, n, options.closed_seconds) for n in IN_FLIGHT}
        capacity = max(closed.values())
        best = max(closed, key=lambda n: closed[n])
        loads = []
        around = [await closed_loop(call, data, best, options.closed_seconds)]
        for load in LOADS:
            loads.append(await offer(server, call, data, capacity, load, options))
            around.append(await closed_loop(call, data, best, options.closed_seconds))
    for index, judged in enumerate(loads):
        nearby = (around[index] + around[index + 1]) / 2
        judged["capacity_nearby_per_s"] = round(nearby, 1)
        judged["goodput_over_nearby"] = round(judged["goodput_per_s"] / nearby, 3)
    return {
        "closed_loop_per_s": {str(n): round(rate, 1) for n, rate in closed.items()},
        "capacity_per_s": round(capacity, 1),
        "capacity_afterwards_per_s": round(around[-1], 1),
        "loads": loads,
    }


def report(result: dict[str, Any], options: Any) -> str:
    closed = ", ".join(f"{n}: {rate}" for n, rate in result["closed_loop_per_s"].items())
    return (
        f"# Open loop: {result['row_ms']:.2f} ms a row, deadline 100 ms, {options.seconds:g} s a load, "
        f"seed {options.seed}\n\n"
        f"Capacity {result['capacity_per_s']}/s (afterwards {result['capacity_afterwards_per_s']}/s); "
        f"closed loop by requests in flight: {closed}\n\n" + table(HEADER, [line(load) for load in result["loads"]])
    )


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=positive, default=10, help="of each load (default: 10)")
    parser.add_argument("--closed-seconds", type=positive, default=2, help="of each closed loop (default: 2)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="also write open_loop.md and open_loop.json into this folder")
    options = parser.parse_args(arguments)
    available = cores()
    if len(available) < 2:
        sys.stderr.write("two cores are needed: one for the server, one for the generator\n")
        return 2
    served_on, sent_from = available[:2]
    fitted = fitting_cnn(served_on)
    network = fitted.network
    os.sched_setaffinity(0, {sent_from})
    gc.disable()
    with tempfile.TemporaryDirectory() as name:
        network.save(Path(name) / "models", MODEL)
        with serving(Path(name) / "models", Path(name), served_on) as server:
            result = {"row_ms": fitted.row_ms, **uvloop.run(measure(server, network, options))}
    text = report(result, options)
    sys.stdout.write(text)
    if options.out:
        options.out.mkdir(parents=True, exist_ok=True)
        (options.out / "open_loop.md").write_text(text)
        (options.out / "open_loop.json").write_text(json.dumps(result, indent=1) + "\n")
    return 0 if all(load["valid"] for load in result["loads"]) else 1


if __name__ == "__main__":
    sys.exit(main())
