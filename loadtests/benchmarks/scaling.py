"""The closed loop for real: replicas as processes, a real Prometheus, the HPA's own rule, a step of load to four times.

    python -m loadtests.benchmarks.scaling --out DIR

Two signals, one after the other: the server's saturation, and what CPU would tell. The replicas' model sleeps, so that
many of them fit on two cores; what stands for their CPU is the part of the time in which an instance is at work,
which is what a model on the CPU would use. Requests come by chance and go to the replicas that are ready in turn,
each with a deadline. Time goes SPEED times as fast as in a cluster: so often does the autoscaler look, and Prometheus
scrape, and so much shorter are the behaviour's windows. A replica takes the time that its process takes.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import math
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import grpc
import httpx
import uvloop

from loadtests import replica
from loadtests.arrivals import poisson
from loadtests.client import infer, message
from loadtests.hpa import SYNC_S, Autoscaler
from loadtests.process import read_ports, unwinding
from loadtests.report import publish, table

PASS_MS, INSTANCES, SLO_MS = 80.0, 4, 400.0
BASE_PER_S, STEP = 40.0, 4.0
BEFORE_S, DURING_S, AFTER_S = 15.0, 35.0, 45.0
SPEED = 7.5
LOOK_S = SYNC_S / SPEED
SCRAPE_S = 2
LEAST, MOST = 2, 8
SIGNALS = {
    "saturation": ("max by (instance) (forwardpass_saturation)", 0.7),
    "CPU": (f"max by (instance) (rate(forwardpass_pass_actual_seconds_total[{3 * SCRAPE_S}s])) / {INSTANCES}", 0.7),
}
HEADER = (
    "signal",
    "held again after s",
    "pod start s",
    "in time, 10 s after the step",
    "in time, all",
    "most replicas",
    "back at",
    "changes",
    "flaps",
)
_HELD = 0.99
_FIRST_S = 30.0


@dataclass
class Replica:
    process: asyncio.subprocess.Process
    began_s: float
    call: Any = None
    """Once it is ready."""
    channel: Any = None
    metrics: str = ""
    start_s: float = 0.0
    leaving: bool = False


@dataclass
class Run:
    signal: str
    sent: list[tuple[float, bool]] = field(default_factory=list)
    """When each request was due, since the begin, and whether it was answered in time."""
    counts: list[tuple[float, int]] = field(default_factory=list)
    """Every change of the number of replicas."""
    starts_s: list[float] = field(default_factory=list)
    most: int = 0

    def in_time(self, since_s: float, until_s: float) -> float:
        found = [good for at_s, good in self.sent if since_s <= at_s < until_s]
        return sum(found) / len(found) if found else math.nan

    def held_after_s(self) -> float:
        """Seconds from the step until 99 % of the requests of every second after were answered in time."""
        for second in range(int(DURING_S) - 3):
            rest = [self.in_time(BEFORE_S + at, BEFORE_S + at + 3) for at in range(second, int(DURING_S) - 3)]
            if min(rest) >= _HELD:
                return float(second)
        return math.inf

    def row(self) -> tuple[object, ...]:
        signs = [after - before for (_, before), (_, after) in pairwise(self.counts)]
        flaps = sum(a * b < 0 for a, b in pairwise(signs))
        return (
            self.signal,
            f"{self.held_after_s():g}",
            f"{max(self.starts_s, default=math.nan):.1f}",
            f"{self.in_time(BEFORE_S + 10, BEFORE_S + DURING_S):.2%}",
            f"{self.in_time(0, BEFORE_S + DURING_S + AFTER_S):.2%}",
            self.most,
            self.counts[-1][1],
            len(signs),
            # Up for the step and down after it is one.
            max(0, flaps - 1),
        )


class Cluster:
    """The replicas, and what Prometheus is told of them."""

    def __init__(self, folder: Path, run: Run) -> None:
        self._folder = folder
        self._run = run
        self.replicas: list[Replica] = []
        self.leavers: list[asyncio.Task[None]] = []
        self._turn = 0
        self.targets = folder / "targets.json"
        self.targets.write_text("[]")

    def ready(self) -> list[Replica]:
        return [each for each in self.replicas if each.call is not None]

    async def scale(self, count: int) -> None:
        """The newest leave first."""
        while len(self.replicas) < count:
            await self._start()
        while len(self.replicas) > count:
            leaver = self.replicas.pop()
            self.leavers.append(asyncio.create_task(self._end(leaver)))
        self._tell()

    async def _start(self) -> None:
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "loadtests.replica",
            str(self._folder / "models"),
            str(PASS_MS),
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )
        each = Replica(process, time.monotonic())
        self.replicas.append(each)
        self.leavers.append(asyncio.create_task(self._await_ready(each)))

    async def _await_ready(self, each: Replica) -> None:
        banner = b""
        assert each.process.stdout is not None
        while not banner.endswith(b"\n\n"):
            line = await each.process.stdout.readline()
            if not line:
                return  # It was ended while it started.
            banner += line
        ports = read_ports(banner.decode())
        each.channel = grpc.aio.insecure_channel(f"127.0.0.1:{ports['gRPC']}")
        await each.channel.channel_ready()
        each.metrics = f"127.0.0.1:{ports['metrics']}"
        each.start_s = time.monotonic() - each.began_s
        each.call = infer(each.channel)
        self._run.starts_s.append(each.start_s)
        self._tell()

    async def _end(self, each: Replica) -> None:
        each.call = None
        each.process.send_signal(signal.SIGTERM)
        await each.process.wait()
        if each.channel is not None:
            await each.channel.close()

    def _tell(self) -> None:
        """As Kubernetes' service discovery does: who is ready is scraped."""
        targets = [{"targets": [each.metrics]} for each in self.ready()]
        new = self.targets.with_suffix(".new")
        new.write_text(json.dumps(targets))
        new.replace(self.targets)

    def next(self) -> Any:
        ready = self.ready()
        self._turn += 1
        return ready[self._turn % len(ready)].call

    async def close(self) -> None:
        await self.scale(0)
        await asyncio.wait(self.leavers)


async def _prometheus(folder: Path, cluster: Cluster) -> tuple[asyncio.subprocess.Process, str]:
    program = shutil.which("prometheus")
    if program is None:
        raise RuntimeError("prometheus is missing: apt install prometheus")
    found = [{"files": [str(cluster.targets)], "refresh_interval": "1s"}]
    jobs = [{"job_name": "replicas", "file_sd_configs": found}]
    settings = {"global": {"scrape_interval": f"{SCRAPE_S}s"}, "scrape_configs": jobs}
    (folder / "prometheus.yml").write_text(json.dumps(settings))
    port = _free_port()
    process = await asyncio.create_subprocess_exec(
        program,
        f"--config.file={folder / 'prometheus.yml'}",
        f"--storage.tsdb.path={folder / 'tsdb'}",
        f"--web.listen-address=127.0.0.1:{port}",
        "--log.level=error",
        stderr=subprocess.DEVNULL,
    )
    return process, f"http://127.0.0.1:{port}"


def _free_port() -> int:
    import socket

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


async def _autoscale(cluster: Cluster, run: Run, url: str, began_s: float) -> None:
    query, target = SIGNALS[run.signal]
    autoscaler = Autoscaler(target, LEAST, MOST, speed=SPEED)
    async with httpx.AsyncClient() as client:
        while True:
            await asyncio.sleep(LOOK_S)
            answer = await client.get(f"{url}/api/v1/query", params={"query": query})
            told = {one["metric"]["instance"]: float(one["value"][1]) for one in answer.json()["data"]["result"]}
            metrics = [told.get(each.metrics) if each.call else None for each in cluster.replicas]
            count = autoscaler.replicas(time.monotonic(), metrics, len(cluster.replicas))
            if count != len(cluster.replicas):
                run.counts.append((time.monotonic() - began_s, count))
                run.most = max(run.most, count)
                await cluster.scale(count)


async def _load(cluster: Cluster, run: Run, began_s: float, seed: int) -> None:
    data = message(replica.MODEL, replica.DIMS)
    due: list[float] = []
    offset_s = 0.0
    for rate, seconds in ((BASE_PER_S, BEFORE_S), (STEP * BASE_PER_S, DURING_S), (BASE_PER_S, AFTER_S)):
        due += [offset_s + at_ns / 1e9 for at_ns in poisson(rate, seconds, seed)]
        offset_s += seconds
    tasks: set[asyncio.Task[None]] = set()

    async def one(at_s: float) -> None:
        left_s = began_s + at_s + SLO_MS / 1e3 - time.monotonic()
        try:
            await cluster.next()(data, timeout=max(0.001, left_s))
            good = time.monotonic() - began_s - at_s <= SLO_MS / 1e3
        except grpc.aio.AioRpcError:
            good = False
        run.sent.append((at_s, good))

    for at_s in due:
        await asyncio.sleep(max(0.0, began_s + at_s - time.monotonic()))
        task = asyncio.create_task(one(at_s))
        tasks.add(task)
        task.add_done_callback(tasks.discard)
    if tasks:
        await asyncio.wait(tasks)


async def measure(name: str, folder: Path, seed: int) -> Run:
    run = Run(name)
    replica.write_model(folder / "models", INSTANCES, SLO_MS)
    cluster = Cluster(folder, run)
    prometheus, url = await _prometheus(folder, cluster)
    try:
        await cluster.scale(LEAST)
        async with asyncio.timeout(_FIRST_S):
            while len(cluster.ready()) < LEAST:  # noqa: ASYNC110 - of processes
                await asyncio.sleep(0.1)
        run.starts_s.clear()
        run.counts.append((0.0, LEAST))
        run.most = LEAST
        began_s = time.monotonic() + 1
        looking = asyncio.create_task(_autoscale(cluster, run, url, began_s))
        await _load(cluster, run, began_s, seed)
        looking.cancel()
    finally:
        await cluster.close()
        prometheus.terminate()
        await prometheus.wait()
    return run


def report(runs: Sequence[Run]) -> str:
    lines = [table(HEADER, [run.row() for run in runs])]
    for run in runs:
        changes = ", ".join(f"{count} at {at_s:.0f} s" for at_s, count in run.counts)
        seconds = range(0, int(BEFORE_S + DURING_S + AFTER_S), 5)
        goods = " ".join(f"{run.in_time(at, at + 5):.2f}" for at in seconds)
        lines.append(f"\n{run.signal}: replicas {changes}; the step comes at {BEFORE_S:g} s and goes at ")
        lines.append(f"{BEFORE_S + DURING_S:g} s. In time, by five seconds: {goods}\n")
    return (
        f"# The closed loop: {BASE_PER_S:g}/s, {STEP:g} times that for {DURING_S:g} s\n\n"
        f"A replica does {INSTANCES * 1e3 / PASS_MS:g}/s ({INSTANCES} instances, passes of {PASS_MS:g} ms), objective "
        f"{SLO_MS:g} ms. The autoscaler looks every {LOOK_S:g} s, Prometheus scrapes every {SCRAPE_S} s, the chart's "
        f"behaviour goes {SPEED:g} times as fast.\n\n" + "".join(lines)
    )


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--signals", default=",".join(SIGNALS), help="those to measure, by comma")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="also write scaling.md into this folder")
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as name, unwinding():
        runs = [uvloop.run(measure(one, Path(name) / one, options.seed)) for one in options.signals.split(",")]
    publish(report(runs), "scaling.md", options.out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
