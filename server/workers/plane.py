"""The data plane of a front, and the metrics of all processes: what is asked of others before it is told."""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from prometheus_client.registry import Collector

from server.dataplane import DataPlane
from server.errors import ServingError, Unsupported
from server.lifecycle import Lifecycle
from server.observability.audit import audited
from server.observability.following import Following
from server.observability.log_control import LogControl
from server.observability.metrics import Metrics, Told
from server.observability.trace_settings import Change
from server.observability.tracing import Tracing
from server.scheduler.response_cache import CacheCounts
from server.scheduler.statistics import ModelStatistics
from server.settings import LogSettings, RepositorySettings, TraceSettings
from server.transport.http1.reply import Reply
from server.transport.metrics import MetricsApp
from server.types import IndexEntry
from server.workers.counts import counters, lags, summed
from server.workers.remote import RemoteModels

if TYPE_CHECKING:
    from server.transport.http1.protocol import Turn

log = logging.getLogger(__name__)


class FrontPlane(DataPlane):
    """Every request's way is the base's; what the server says of itself is the engine process's to say."""

    def __init__(
        self,
        models: RemoteModels,
        settings: RepositorySettings,
        pipeline_threads: int,
        logs: LogControl,
        following: Following | None = None,
    ) -> None:
        """`logs`: what changes them here changes them in all processes. `following`: as of `Tracing`."""
        self.lifecycle = Lifecycle()
        tracing = Tracing(TraceSettings(), following)
        super().__init__(models, self.lifecycle, settings, pipeline_threads, tracing=tracing, logs=logs)
        self._remote = models

    def ready(self) -> bool:
        """As ever, and the engine process is there."""
        return self._remote.available and super().ready()

    def model_ready(self, name: str, version: str = "") -> bool:
        return self._remote.available and super().model_ready(name, version)

    async def total_statistics(self, name: str = "", version: str = "") -> list[ModelStatistics]:
        if name:
            self.statistics(name, version)  # Raises if there is no such model.
        totals = summed((await self._remote.ask("counts"))["models"])
        wanted = [total for (model, _), total in sorted(totals.items()) if name in ("", model)]
        return [total for total in wanted if version in ("", total.version)]

    async def current_index(self, ready: bool = False, repository_name: str = "") -> list[IndexEntry]:
        told = await self._remote.ask("index", repository_name=repository_name)
        return [entry for entry in (IndexEntry(**one) for one in told) if not ready or entry.state == "READY"]

    async def unload_model(self, name: str, *, unload_dependents: bool = False, repository_name: str = "") -> None:
        with audited("model.unload", model=name, repository=repository_name, unload_dependents=unload_dependents):
            self._demand_explicit()
            await self._remote.unload(name, with_composing=unload_dependents, repository_name=repository_name)

    def trace_settings(self, model_name: str, changes: Mapping[str, Change]) -> dict[str, list[str]]:
        """Raises Unsupported for a change: the file of traces is one process's."""
        if changes:
            raise Unsupported("trace settings", "can't be changed with --workers above 1")
        return super().trace_settings(model_name, changes)


class LogsOfAll(LogControl):
    """The log settings of one front; a change by a client is told to all processes."""

    def __init__(self, settings: LogSettings, process: str) -> None:
        super().__init__(settings, process)
        self.spread: Callable[[Mapping[str, object]], None] = lambda _: None
        self.changes: dict[str, object] = {}
        """All that clients have changed, at whichever front."""

    def update(self, changes: Mapping[str, object]) -> None:
        super().update(changes)
        if changes:
            self.spread(changes)

    def follow(self, changes: Mapping[str, object]) -> None:
        super().follow(changes)
        self.changes |= changes


class _Grpc:
    """The sums of all fronts. As `GrpcLoad`."""

    def __init__(self, fronts: Sequence[Mapping[str, Any]]) -> None:
        self._fronts = [front["grpc"] for front in fronts]
        self.refused = counters(front["refused"] for front in self._fronts)

    def open_connections(self) -> int:
        return sum(front["connections"] for front in self._fronts)

    def open_streams(self) -> int:
        return sum(front["streams"] for front in self._fronts)

    def held_bytes(self) -> int:
        return sum(front["held_bytes"] for front in self._fronts)


class _Counted:
    """What the metrics read, as it was counted once."""

    def __init__(self, models: list[ModelStatistics], ready: bool) -> None:
        self._models = models
        self._ready = ready

    def statistics(self) -> list[ModelStatistics]:
        return self._models

    def ready(self) -> bool:
        return self._ready


class MetricsOfAll(MetricsApp):
    """Answers each scrape with the sums of all processes; 503 while the engine process is replaced."""

    def __init__(
        self,
        models: RemoteModels,
        dataplane: FrontPlane,
        target_saturation: float,
        token_file: str = "",
        more: Sequence[Collector] = (),
    ) -> None:
        """`more`: what every front tells alike."""
        super().__init__(lambda _: (b"", ""), token_file)
        self._models = models
        self._dataplane = dataplane
        self._target_saturation = target_saturation
        self._more = more
        self._tasks: set[asyncio.Task[None]] = set()

    def take(self, turns: Sequence[Turn]) -> None:
        task = asyncio.get_running_loop().create_task(self._tell(turns))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _tell(self, turns: Sequence[Turn]) -> None:
        try:
            metrics = self._metrics(await self._models.ask("counts"))
        except ServingError as error:
            for turn in turns:
                turn.reply(Reply(503, f"{error.public_message}\n".encode(), [(b"content-type", b"text/plain")]))
        else:
            for turn in turns:
                self.tell(turn, metrics.expose)

    async def text(self) -> bytes:
        """What a scrape gets. Raises EngineLost."""
        return self._metrics(await self._models.ask("counts")).expose()[0]

    def _metrics(self, counts: Mapping[str, Any]) -> Metrics:
        fronts = counts["fronts"]
        models: list[ModelStatistics] = [total for _, total in sorted(summed(counts["models"]).items())]
        listeners = {listener: None for front in fronts for listener in front["closed"]}
        closed = {listener: counters(front["closed"].get(listener, {}) for front in fronts) for listener in listeners}
        cache = CacheCounts(*counts["cache"]) if counts["cache"] is not None else None
        http = {"forwardpass_http_connections": [((), sum(front["http_connections"] for front in fronts))]}
        told = Told([counts["rows"], http, *(pulse["rows"] for pulse in counts["pulses"])], lags(counts["pulses"]))
        counted = _Counted(models, self._dataplane.ready())
        return Metrics(
            counted,
            closed,
            _Grpc(fronts),
            lambda: cache,
            self._more,
            target_saturation=self._target_saturation,
            told=lambda: told,
            process=os.getppid,
        )
