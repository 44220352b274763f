"""What a server's processes hold, looked at again and again: memory, files, threads, connections, requests."""

from __future__ import annotations

import asyncio
import math
import re
from collections.abc import Callable
from dataclasses import asdict, dataclass
from urllib.request import urlopen

from loadtests.process import Server, family, open_files, rss_bytes, threads

_PATIENCE_S = 30.0
_PAUSE_S = 0.5
"""A connection that was closed is gone on both sides."""

GAUGES = {
    "grpc_connections": "forwardpass_grpc_connections",
    "grpc_streams": "forwardpass_grpc_streams",
    "grpc_held_bytes": "forwardpass_grpc_held_bytes",
    "pending_requests": "nv_inference_pending_request_count",
}


@dataclass(frozen=True)
class Sample:
    """`at_s` seconds after the begin of the run."""

    at_s: float
    resident_bytes: int
    open_files: int
    threads: int
    grpc_connections: float
    grpc_streams: float
    grpc_held_bytes: float
    pending_requests: float
    """Of all models."""

    def at_rest(self) -> bool:
        """Nobody is connected over gRPC, nothing is under way."""
        return not (self.grpc_connections or self.grpc_streams or self.grpc_held_bytes or self.pending_requests)

    def line(self) -> dict[str, float]:
        return asdict(self)


class Watcher:
    """`resident` tells the bytes of a process: a test may put others in their place."""

    def __init__(self, server: Server, clock: Callable[[], float], resident: Callable[[int], int] = rss_bytes) -> None:
        self._server = server
        self._clock = clock
        self._began = clock()
        self._resident = resident
        self.samples: list[Sample] = []

    async def look(self) -> Sample:
        pids = family(self._server.pid)
        # Before the metrics are asked for: their connection is a file as well.
        held = [sum(map(count, pids)) for count in (self._resident, open_files, threads)]
        text = await asyncio.to_thread(_fetched, self._server.metrics_url)
        gauges = {name: total(text, metric) for name, metric in GAUGES.items()}
        return Sample(self._clock() - self._began, *held, **gauges)

    async def watch(self, every_s: float) -> None:
        """Until it is cancelled."""
        while True:
            self.samples.append(await self.look())
            await asyncio.sleep(every_s)

    async def rested(self, patience_s: float, files: float = math.inf) -> Sample:
        """The first sample in which the server is at rest, with no more than `files` open; the last one that was
        made, if it never is."""
        until = self._clock() + patience_s
        while True:
            await asyncio.sleep(_PAUSE_S)
            sample = await self.look()
            if (sample.at_rest() and sample.open_files <= files) or self._clock() > until:
                return sample


def _fetched(url: str) -> str:
    """By a connection of its own, which is closed at once. Raises OSError."""
    with urlopen(url, timeout=_PATIENCE_S) as answer:  # noqa: S310 - our own server's
        text: bytes = answer.read()
    return text.decode()


def total(text: str, metric: str) -> float:
    """The sum of a metric over its labels."""
    return sum(float(value) for value in re.findall(rf"^{metric}(?:\{{[^}}]*\}})? (\S+)$", text, re.MULTILINE))
