"""What one process of the server tells of itself and of its machine: memory, time, its loop, energy, GPUs."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from server.observability.catalog import Rows
from server.observability.energy import EnergyMeter, Passes, Powercap
from server.observability.gpu import Gpus
from server.scheduler.histogram import DURATION_BOUNDS_NS, Histogram

if TYPE_CHECKING:
    from server.settings import MetricsSettings

_BEAT_S = 0.25
_STATM = Path("/proc/self/statm")


class Pulse:
    """How late the loop is, and what the process holds. `start` on the loop, then `close`."""

    def __init__(self, process: str) -> None:
        """`process`: which of the server's it is."""
        self.process = process
        self.lag = Histogram(DURATION_BOUNDS_NS)
        self._due = 0.0
        self._timer: asyncio.TimerHandle | None = None

    def start(self) -> None:
        self._again(asyncio.get_running_loop())

    def close(self) -> None:
        if self._timer is not None:
            self._timer.cancel()

    def _again(self, loop: asyncio.AbstractEventLoop) -> None:
        self._due = time.monotonic() + _BEAT_S
        self._timer = loop.call_later(_BEAT_S, self._beat, loop)

    def _beat(self, loop: asyncio.AbstractEventLoop) -> None:
        self.lag.observe(max(0, int((time.monotonic() - self._due) * 1e9)))
        self._again(loop)

    def rows(self) -> Rows:
        rows = {"forwardpass_cpu_seconds_total": [([self.process], time.process_time())]}
        pages = _STATM.read_text().split()[1] if _STATM.exists() else None
        if pages is not None:
            resident = int(pages) * os.sysconf("SC_PAGE_SIZE")
            rows["forwardpass_resident_memory_bytes"] = [([self.process], float(resident))]
        return rows


class Machine:
    """Its energy and its GPUs: of the one process of a server that has the models."""

    def __init__(self, settings: MetricsSettings) -> None:
        self._gpus = Gpus()
        self._meter = EnergyMeter(Powercap(settings.powercap_folder), self._gpus)

    def start(self) -> None:
        self._gpus.start()

    def close(self) -> None:
        self._gpus.close()

    def rows(self, passes: Iterable[Passes]) -> Rows:
        return {**self._gpus.rows(), **self._meter.rows(passes)}
