"""What it costs a gRPC call of the tiny model that the server is looked at: metrics, scrapes, access log, spans.

    python -m loadtests.benchmarks.observing

From the bytes of a socket read to the bytes of the answers, over the real data plane and ONNX Runtime, in one
process: 32 calls a read, or so many as `--at-once` says, the next read when all are answered. Each way to look takes
turns with nothing, first and second, in short rounds on one core; told is the median of their ratios, which a slow
moment of the machine moves little. A call's cost is CPU time of the whole process, so that threads that write and send
are counted. What is counted of passes and requests is counted by all ways but by one, whose functions do nothing then:
v2's statistics and the scaling signal would need it without a metric as well.
Spans are made, batched and encoded as for a collector, and dropped there. A scrape is one that Prometheus makes, of
the server's own port, with the shipped models in service beside the tiny one.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import logging
import os
import statistics
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from math import floor, sqrt
from pathlib import Path

from opentelemetry.exporter.otlp.proto.common.trace_encoder import encode_spans
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult

from loadtests.benchmarks.http2 import IN_FLIGHT
from loadtests.benchmarks.http2 import PATH as CALL
from loadtests.client import message
from loadtests.cores import cores
from loadtests.flags import counted, positive
from loadtests.h2_calls import prepare
from loadtests.models import tiny_mlp
from loadtests.report import publish, table
from server.app import Server
from server.environment import load_settings
from server.observability.access import AccessLog
from server.observability.following import Following
from server.observability.log_control import LogControl
from server.observability.spans import Spans
from server.observability.stages import PER_S, Stages
from server.observability.tracing import Tracing
from server.scheduler.load import Load
from server.scheduler.statistics import ModelStatistics
from server.settings import GrpcSettings, LogSettings, OtlpSettings, TraceSettings
from server.transport.http2 import frames
from server.transport.http2.calls import Calls, Service
from server.transport.http2.connection import Connection
from server.transport.methods import METHODS

MODEL = "tiny_mlp"
HEADER = ("looked at by", "a call, us", "over nothing", "95 % interval of that")
_WITH_TRACEPARENT = "nothing, and callers send traceparent"
_NEVER = 1 << 62
_SCRAPE_S = 1.0
"""Prometheus' interval here; it is a minute by default, and 15 s with its operator."""
_SCRAPE = (
    b"GET /metrics HTTP/1.1\r\nHost: server\r\nAccept-Encoding: gzip\r\nConnection: close\r\n"
    b"Accept: application/openmetrics-text;version=1.0.0,text/plain;version=0.0.4;q=0.5\r\n\r\n"
)
_WARM_S = 1.2
"""After a second it is known how many requests come."""
_SHIPPED = "model_repository"
_WIDE = 2**30


class Encoded(SpanExporter):
    """Encodes what it is given, and drops it."""

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        encode_spans(spans).SerializeToString()
        return SpanExportResult.SUCCESS


class Sampled(Stages):
    """Chooses as a server does that is asked all the time: its clock stands still between its rounds."""

    __slots__ = ("left_off_ns", "paused_ns")

    def __init__(self, statistics: ModelStatistics) -> None:
        super().__init__(statistics)
        self.left_off_ns = self.paused_ns = 0

    def go_on(self) -> None:
        self.paused_ns += time.monotonic_ns() - self.left_off_ns

    def leave_off(self) -> None:
        self.left_off_ns = time.monotonic_ns()

    def _gap(self, now_ns: int) -> int:
        return super()._gap(now_ns - self.paused_ns)


class Every(Sampled):
    """Looks at all of them."""

    def _gap(self, now_ns: int) -> int:
        return 1


@dataclass
class Way:
    """To look at requests."""

    name: str
    sampled: bool = True
    """For the stages, as servers do that are told nothing."""
    every: bool = False
    """All are, in the place of some."""
    scraped: bool = False
    following: Following | None = None
    variant: str = "same"
    """Of the headers."""
    counted: bool = True
    """What became of passes and requests is."""
    over: str = "nothing"
    """What it is compared with; empty: it is there for the others."""
    stages: Sampled | None = None
    costs_us: list[float] = field(default_factory=list)
    ratios: list[float] = field(default_factory=list)


def ways() -> list[Way]:
    def spans(ratio: float) -> Following:
        return Following(Spans(OtlpSettings(endpoint="nowhere:1", ratio=ratio), Encoded()), None)

    return [
        Way("nothing", sampled=False, over=""),
        Way("nothing, and nothing is counted", sampled=False, counted=False, over=""),
        Way("metrics, as shipped"),
        Way("metrics, as shipped, and all counts", over="nothing, and nothing is counted"),
        Way("metrics, were every request looked at", every=True),
        Way("metrics, scraped each second", scraped=True),
        Way("access log, 1 %", following=Following(None, AccessLog(0.01))),
        Way("access log, all", following=Following(None, AccessLog(1.0))),
        Way("spans, 1 % and what is slow", following=spans(0.01)),
        Way("spans, all", following=spans(1.0)),
        Way(_WITH_TRACEPARENT, sampled=False, variant="literals", over=""),
        Way(
            "spans of all, as the callers' traceparent says",
            following=spans(0.01),
            variant="literals",
            over=_WITH_TRACEPARENT,
        ),
    ]


class Bench:
    """One server, and a connection of its own for each round."""

    def __init__(self, server: Server, at_once: int) -> None:
        self._server = server
        self._at_once = at_once
        data = message(MODEL, (30,))
        self.scrapes: list[tuple[float, float]] = []
        """How long each took, of the wall clock and of the process' CPU, in ms."""
        self.page_bytes = 0
        self._received = {variant: _reads(at_once, data, variant) for variant in ("same", "literals")}

    async def run(self, way: Way, seconds: float) -> float:
        """CPU microseconds of a call."""
        plane = self._server.dataplane
        plane.tracing = Tracing(TraceSettings(), way.following)
        forwards = way.following.forwards if way.following is not None else ()
        served = self._server.models.resolve(MODEL)
        if way.stages is None:
            way.stages = (Every if way.every else Sampled)(served.statistics)
            way.stages.left = 0 if way.sampled else _NEVER
        served.stages = way.stages
        way.stages.go_on()
        if not way.counted:
            _forget_counting(served.statistics)
        calls, seconds_used, scrape_at = 0, 0.0, _SCRAPE_S / 2
        while seconds_used < (_SCRAPE_S if way.scraped else seconds):
            began = time.process_time()
            calls += await self._connection(way, forwards)
            if way.scraped and seconds_used >= scrape_at:
                await self._scrape()
                scrape_at = _SCRAPE_S * 2
            seconds_used += time.process_time() - began
        way.stages.leave_off()
        if not way.counted:
            _count_again(served.statistics)
        return seconds_used / calls * 1e6

    async def _scrape(self) -> None:
        began, began_cpu = time.perf_counter(), time.process_time()
        reader, writer = await asyncio.open_connection("127.0.0.1", self._server.ports["metrics"])
        writer.write(_SCRAPE)
        page = await reader.read(-1)
        writer.close()
        assert page.startswith(b"HTTP/1.1 200"), page[:200]
        self.page_bytes = len(page)
        self.scrapes.append(((time.perf_counter() - began) * 1e3, (time.process_time() - began_cpu) * 1e3))

    async def _connection(self, way: Way, forwards: Sequence[str]) -> int:
        settings = GrpcSettings()
        methods = {m.name.encode(): m for m in METHODS}
        connection = Connection(settings, methods, Counter(), time.monotonic_ns(), forwards)
        answered = asyncio.Event()
        calls = Calls(Service(self._server.dataplane, settings, Counter()), connection, answered.set)
        start = frames.settings({frames.INITIAL_WINDOW_SIZE: _WIDE}) + frames.SETTINGS_ACK
        connection.receive(frames.PREFACE + start, time.monotonic_ns())
        received = self._received[way.variant]
        for data in received:
            calls.handle(connection.receive(data, time.monotonic_ns()))
            while connection.streams:
                answered.clear()
                await answered.wait()
            b"".join(connection.sender.out)
            connection.sender.out.clear()
            connection.sender.window = _WIDE
        return len(received) * self._at_once


def _reads(at_once: int, data: bytes, variant: str) -> list[bytes]:
    """800 calls, so many a read."""
    calls = prepare(variant, data, CALL, "127.0.0.1:8001", 25 * IN_FLIGHT).frames
    return [b"".join(calls[first : first + at_once]) for first in range(0, len(calls), at_once)]


class _NoLoad(Load):
    """Nothing arrives."""

    __slots__ = ()

    def arrive(self, work_ns: int, now_ns: int) -> None: ...


_COUNTING = ("count_pass", "count_success", "count_end")


def _forget_counting(statistics: ModelStatistics) -> None:
    for name in _COUNTING:
        setattr(statistics, name, lambda *_: None)
    statistics.load = _NoLoad()


def _count_again(statistics: ModelStatistics) -> None:
    for name in _COUNTING:
        delattr(statistics, name)
    statistics.load = Load()


async def measure(folder: Path, rounds: int, seconds: float, only: str, at_once: int) -> tuple[list[Way], str]:
    """The ways whose names have `only` in them, and those that they are compared with; and what a scrape takes."""
    tiny_mlp().save(folder, MODEL)
    ports = {"http": {"port": 0}, "grpc": {"port": 0}, "metrics": {"port": 0}}
    server = Server(load_settings({**ports, "engine": {"threads": 1}, "repository": {"path": [str(folder), _SHIPPED]}}))
    await server.start()
    bench, every = Bench(server, at_once), ways()
    asked = [way for way in every if way.over and only in way.name]
    found = [way for way in every if way in asked or any(way.name == one.over for one in asked)]
    for way in found:
        await bench.run(way, _WARM_S)
    gc.collect()
    gc.freeze()
    for number in range(rounds):
        for way in found:
            if not way.over:
                continue
            # Neighbours in time: what slows the one slows the other.
            base = next(each for each in found if each.name == way.over)
            for each in (base, way) if number % 2 else (way, base):
                each.costs_us.append(await bench.run(each, seconds))
            way.ratios.append(way.costs_us[-1] / base.costs_us[-1])
    server.dataplane.tracing = Tracing(TraceSettings())
    models = len(server.dataplane.statistics())
    await server.drain()
    scrape = ""
    if bench.scrapes:
        wall, cpu = (statistics.median(times) for times in zip(*bench.scrapes, strict=True))
        scrape = (
            f"\nA scrape of {models} models takes {wall:.1f} ms, {cpu:.1f} of them CPU time of the server and of who "
            f"asks, for {bench.page_bytes / 1024:.1f} KiB: each second, {cpu / 1e3 / _SCRAPE_S:.2%} of a core.\n"
        )
    return found, scrape


def _line(way: Way) -> tuple[str, ...]:
    told = way.name, f"{statistics.median(way.costs_us):.2f}"
    if not way.over:
        return (*told, "", "")
    low, high = median_interval(way.ratios)
    return (*told, f"{statistics.median(way.ratios):.3f}", f"{low:.3f} to {high:.3f}")


def median_interval(values: Sequence[float]) -> tuple[float, float]:
    """Of their median, 95 %, whatever they are distributed like: the number below it is a binomial one of a half."""
    ordered, middle = sorted(values), len(values) / 2
    lowest = max(0, floor(middle - 1.96 * sqrt(middle / 2)) - 1)
    return ordered[lowest], ordered[-1 - lowest]


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=counted, default=30, help="of all ways (default: 30)")
    parser.add_argument("--seconds", type=positive, default=0.2, help="of each in a round (default: 0.2)")
    parser.add_argument("--only", default="", help="ways whose names have this in them")
    parser.add_argument("--at-once", type=counted, default=IN_FLIGHT, help=f"calls a read (default: {IN_FLIGHT})")
    parser.add_argument("--out", type=Path, help="also write observing.md into this folder")
    options = parser.parse_args(arguments)
    os.sched_setaffinity(0, {cores()[0]})
    gc.set_threshold(10_000, 10, 10)
    _log_to_nowhere()
    with tempfile.TemporaryDirectory() as folder:
        found, scrape = asyncio.run(
            measure(Path(folder), options.rounds, options.seconds, options.only, options.at_once)
        )
    if not found:
        parser.error(f"--only: no way has {options.only!r} in its name")
    text = f"# The cost of being looked at, {MODEL}, {options.at_once} calls a read, one core\n\n"
    text += table(HEADER, [_line(way) for way in found])
    if looked := [way for way in found if way.every]:
        each_us = statistics.median(looked[0].costs_us) - statistics.median(found[0].costs_us)
        share = each_us * PER_S / 1e6
        text += (
            f"\nA request that is looked at costs {each_us:.0f} us more: {PER_S} a second are {share:.2%} of a core.\n"
        )
    text += scrape
    publish(text, "observing.md", options.out)
    return 0


def _log_to_nowhere() -> None:
    """As the server's logs are written, to a file that keeps nothing."""
    LogControl(LogSettings(format="json")).install()
    for handler in logging.getLogger().handlers:
        if isinstance(handler, logging.StreamHandler):
            handler.setStream(Path(os.devnull).open("w"))  # noqa: SIM115 - until the process ends


if __name__ == "__main__":
    sys.exit(main())
