"""The composition root: what is started in which order, and how it is drained.

    settings -> repository -> engine -> data plane -> models load -> listeners -> READY
    SIGTERM  -> unready -> a pause for load balancers -> sequences end -> listeners close, what is in flight is answered
             -> what is left after the grace is settled as UNAVAILABLE -> engines close

The only module that knows them all; nothing imports it but the command line.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import uvloop

from server import process
from server.banner import banner
from server.dataplane import DataPlane
from server.engine.cores import available_cores
from server.errors import InvalidRequest, ModelLoadFailed, ModelNotReady, UnknownModel
from server.lifecycle import Lifecycle, State
from server.model_control import ModelControl
from server.observability.catalog import Rows
from server.observability.certificates import certificates
from server.observability.following import following
from server.observability.log_control import LogControl
from server.observability.machine import Machine, Pulse
from server.observability.metrics import Metrics, Told
from server.observability.rollout_metrics import rollout_rows
from server.observability.tracing import Tracing
from server.pipeline.load import load_pipeline
from server.repository.certificate import Vouch
from server.repository.composition import in_order
from server.repository.model_config import TEXT_BACKEND, ModelConfig
from server.repository.opening import open_sources
from server.repository.repository import Repository
from server.scheduler.share import Share
from server.security.addresses import is_loopback
from server.security.gate import BadAuth, open_gate
from server.security.signing import BadKey, Trusted
from server.settings import RepositorySettings, Settings
from server.shared_memory.requests import SharedMemory
from server.tasks import Tasks
from server.transport.entrance import Entrance, renew, shared_entrance
from server.transport.external_scaler import external_scaler
from server.transport.http1.server import Http1Server
from server.transport.http2.server import Http2Server
from server.transport.listen import ListenFailed
from server.transport.metrics import MetricsApp
from server.transport.rest import RestServer
from server.types import IndexEntry

if TYPE_CHECKING:
    from collections.abc import Sequence

    from prometheus_client.registry import Collector

    from server.engine.base import Engine
    from server.over_triton.models import TritonModels
    from server.transport.grpcio import GrpcioServer
    from server.transport.methods import Method

log = logging.getLogger("server")

_LAST_ANSWERS_S = 1.0
"""After the grace, what was settled as UNAVAILABLE still has to be written to its connections."""


class Server:
    """One server in one event loop: `start`, then `drain`."""

    def __init__(self, settings: Settings, logs: LogControl | None = None) -> None:
        """`logs`: of the process, which clients may change; None: what they change is nobody's."""
        self.settings = settings
        self.lifecycle = Lifecycle()
        self.models, self.dataplane = _over_triton(settings, self.lifecycle, logs) or _embedded(
            settings, self.lifecycle, logs
        )
        self.dataplane.gate = open_gate(settings)
        host, http = settings.host, settings.http
        self.rest = RestServer(self.dataplane, host, http, settings.http_tls)
        self.grpc = _grpc_server(self.dataplane, settings, external_scaler(settings.scaling, self.own_metrics))
        ours = self.grpc if isinstance(self.grpc, Http2Server) else None
        self.shared = shared_entrance(settings, self.rest.listener, ours) if ours and settings.one_port else None
        closed = {"http": self.rest.closed}
        if ours:
            closed["grpc"] = ours.connections.closed
        if self.shared:
            closed["shared"] = self.shared.closed
        self._pulse, self._machine = Pulse("server"), Machine(settings.metrics)
        metrics = Metrics(
            self.dataplane,
            closed,
            ours,
            self.models.cache_counts,
            [*_metrics_of(self.models), certificates(settings)],
            settings.scaling.target_saturation,
            self._told,
        )
        self._expose = metrics.expose
        self.metrics = Http1Server(
            MetricsApp(metrics.expose, settings.metrics.token_file), settings.metrics.host, settings.metrics.port, http
        )
        self.ports: dict[str, int] = {}
        self._poll: asyncio.Task[None] | None = None
        self._tasks = Tasks()

    async def own_metrics(self) -> bytes:
        return self._expose()[0]

    def _told(self) -> Told:
        machine = self._machine.rows((s.name, s.version, s.busy_ns) for s in self.dataplane.statistics())
        http: Rows = {"forwardpass_http_connections": [((), len(self.rest.listener.connections))]}
        models = self.models
        rows = [self._pulse.rows(), machine, models.load_rows(), rollout_rows(models.rollouts()), http]
        return Told(rows, {"server": self._pulse.lag})

    async def start(self) -> None:
        """Load the models, warmed up and verified, then open the listeners, then be ready.

        Raises:
            OSError: see `load_first`. A model that can't be loaded is no error here: it is in the index, with its
                reason.
            ListenFailed: a port is taken.
            InvalidRequest: a setting that only its use shows to be wrong.
        """
        repository = self.settings.repository
        self._pulse.start()
        self._machine.start()
        await load_first(self.models, repository)
        self.ports["metrics"] = await self.metrics.start()
        if self.shared:
            self.ports["http"] = self.ports["grpc"] = await self.shared.start()
        else:
            self.ports["grpc"] = await self.grpc.start()
            self.ports["http"] = await self.rest.start()
        if self.dataplane.gate:
            self._tasks.start(self.dataplane.gate.watch(self.settings.auth.refresh_s))
        self._tasks.start(renew(self._entrances(), self.settings.auth.refresh_s))
        if repository.control_mode == "poll" and isinstance(self.models, ModelControl):
            self._poll = asyncio.create_task(self.models.poll(repository.poll_s))
        self.lifecycle.advance(State.READY)

    def _entrances(self) -> list[Entrance]:
        grpc = [self.grpc.entrance] if isinstance(self.grpc, Http2Server) else []
        return [self.shared] if self.shared else [self.rest.listener.entrance, *grpc]

    async def drain(self) -> None:
        """Answer everything that was admitted, within the grace, and close."""
        shutdown = self.settings.shutdown
        self.lifecycle.advance(State.DRAINING)
        if self._poll:
            self._poll.cancel()
        await asyncio.sleep(shutdown.delay_s)
        until_ns = time.monotonic_ns() + int(shutdown.grace_s * 1e9)
        # Before the listeners close: what is still to come of a sequence may come by another connection.
        await self.models.finish_sequences(until_ns)
        grace_s = max(0.0, (until_ns - time.monotonic_ns()) / 1e9)
        closing = asyncio.create_task(self.stop_listening(grace_s + _LAST_ANSWERS_S))
        await asyncio.wait((closing,), timeout=grace_s)
        await self.models.drain(time.monotonic_ns())
        await closing
        await self.close()

    async def stop_listening(self, grace_s: float) -> None:
        """Take no new requests; returns when those in flight are answered, at most `grace_s` later."""
        if self.shared:
            self.shared.close()
        await asyncio.gather(self.rest.stop(grace_s), self.grpc.stop(grace_s))

    async def close(self) -> None:
        """Free what is left: engines, threads, the metrics listener."""
        self._pulse.close()
        self._machine.close()
        await self.models.close()
        await self.dataplane.tracing.close()
        self.dataplane.close()
        self._tasks.cancel()
        await self.metrics.stop(_LAST_ANSWERS_S)
        self.lifecycle.advance(State.STOPPED)


Composed = tuple["ModelControl | TritonModels", DataPlane]


def _embedded(settings: Settings, lifecycle: Lifecycle, logs: LogControl | None) -> Composed:
    share = Share(available_cores())
    models = ModelControl(
        open_repository(settings),
        default_max_queue_size=settings.scheduler.default_max_queue_size,
        share=share,
        cache_size_bytes=settings.cache.size_bytes,
        load_threads=settings.repository.load_threads,
        max_override_bytes=settings.repository.max_override_bytes,
        hang_s=settings.scheduler.hang_s,
    )
    return models, DataPlane(models, lifecycle, *_beside(settings), logs, share)


def _over_triton(settings: Settings, lifecycle: Lifecycle, logs: LogControl | None) -> Composed | None:
    """None: the models run here."""
    if settings.engine.kind != "triton":
        return None
    # Imported where it is wanted only: it brings grpcio, which starts threads of its own.
    from server.over_triton.compose import open_models
    from server.over_triton.plane import TritonPlane

    models = open_models(settings)
    return models, TritonPlane(models, lifecycle, *_beside(settings), logs, settings.triton.forwards)


def _metrics_of(models: ModelControl | TritonModels) -> list[Collector]:
    """Beside those that every server has."""
    if isinstance(models, ModelControl):
        return []
    from server.over_triton.metrics import TritonMetrics

    return [TritonMetrics(models)]


def _beside(settings: Settings) -> tuple[RepositorySettings, int, SharedMemory, Tracing]:
    """What a data plane has beside its models, whoever runs them."""
    return (
        settings.repository,
        settings.pipeline.threads or available_cores(),
        SharedMemory(settings.shared_memory, enabled=allows_shared_memory(settings)),
        Tracing(settings.trace, following(settings)),
    )


def allows_shared_memory(settings: Settings) -> bool:
    """Whether clients may pass tensors in shared memory; where that is left open, for those on this machine alone."""
    if settings.shared_memory.allow != "auto":
        return settings.shared_memory.allow == "true"
    return is_loopback(settings.host)


def _grpc_server(dataplane: DataPlane, settings: Settings, more: Sequence[Method]) -> Http2Server | GrpcioServer:
    if settings.grpc.transport == "http2":
        return Http2Server(dataplane, settings.host, settings.grpc, settings.tls, more)
    # Imported where it is wanted only: it starts threads of its own.
    from server.transport.grpcio import GrpcioServer

    return GrpcioServer(dataplane, settings.host, settings.grpc, settings.tls, more)


def open_repository(settings: Settings) -> Repository:
    """The repositories of `settings` over the embedded engine."""
    # Imported where it is wanted only: in front of Tritons nobody needs ONNX Runtime.
    from server.engine.by_backend import ByBackend
    from server.engine.onnxruntime import OnnxRuntimeEngine

    threads = settings.engine.threads
    return Repository(
        open_sources(settings.repository.path, settings.remote),
        ByBackend(OnnxRuntimeEngine(threads), {TEXT_BACKEND: lambda: _text_engine(settings)}),
        load_pipeline=lambda folder: load_pipeline(folder, settings.pipeline.max_pixels, settings.pipeline.custom_code),
        warmup_s=settings.repository.warmup_s,
        vouch=trusted(settings.repository),
    )


def trusted(settings: RepositorySettings) -> Vouch | None:
    """Who vouches for models; None: nobody has to. Raises BadAuth: the keys can't be read."""
    if not settings.require_signed:
        return None
    try:
        return Trusted(Path(settings.trusted_keys)).vouch
    except (BadKey, OSError) as error:
        raise BadAuth(f"repository.trusted_keys: {error}") from error


def _text_engine(settings: Settings) -> Engine:
    """Of models that write text. Raises ImportError: why there is none here."""
    from server.engine.genai.engine import GenaiEngine

    return GenaiEngine(settings.engine.threads)


async def load_first(models: ModelControl | TritonModels, settings: RepositorySettings) -> None:
    """Load what is to be there at the start.

    Raises:
        OSError: a repository can't be read, and must be: it is a folder; or readiness is strict; or it is remote, there
            is no other one with models, and it will not be looked at again.
    """
    names, unreachable = await models.look()
    if unreachable and (settings.strict_readiness or (settings.control_mode == "none" and not names)):
        raise OSError(f"a repository can't be read: {'; '.join(unreachable)}")
    explicit = settings.control_mode == "explicit" and "*" not in settings.load_models
    await models.load_all(list(settings.load_models) if explicit else names)


def check(settings: Settings) -> list[IndexEntry]:
    """Load every model as `serve` would, golden inputs and all; the state of each version, with its reason.

    In front of Tritons: what they have, and whether it is served here.

    Raises:
        OSError: a repository can't be read.
        BadAuth: keys or tokens can't be checked.
        InvalidRequest, TritonUnreached: there are no Tritons to be asked, or what is to be a repository is none.
    """
    open_gate(settings)
    if settings.engine.kind == "triton":
        from server.over_triton.compose import check as check_over

        return asyncio.run(check_over(settings))
    repository = open_repository(settings)
    names = repository.names()
    if repository.unreachable():
        raise OSError(f"a repository can't be read: {'; '.join(repository.unreachable())}")
    loaded: dict[tuple[str, str], ModelConfig] = {}

    def in_service(name: str, version: str) -> ModelConfig:
        if (name, version) not in loaded:
            raise ModelNotReady(name, version)
        return loaded[name, version]

    for name in in_order(names, repository.composed_of):
        try:
            models = repository.load(name, in_service=in_service)
        except (ModelLoadFailed, UnknownModel):
            continue  # The index has the reason.
        for model in models:
            loaded[name, model.version] = loaded[name, ""] = model.config
            model.engine_model.close()
    repository.close()
    return repository.index()


def run(settings: Settings) -> int:
    """Serve until SIGTERM or SIGINT; the exit status. A second signal ends the process at once."""
    try:
        if settings.workers.count > 1:
            # It is composed of more than is here, and imported where it is wanted only.
            from server.workers import supervisor

            return supervisor.run(settings)
        logs = LogControl(settings.log)
        logs.install()
        return uvloop.run(_serve(settings, logs))
    finally:
        process.end_output()


async def _serve(settings: Settings, logs: LogControl) -> int:
    log.info("settings: %s", settings.model_dump_json())
    stop = asyncio.Event()
    _on_signals(stop)
    began_ns = time.monotonic_ns()
    try:
        server = Server(settings, logs)
    except (InvalidRequest, BadAuth) as error:
        log.error("can't start: %s", error)
        return 1
    try:
        await server.start()
    except (InvalidRequest, OSError, ListenFailed) as error:
        log.error("can't start: %s", error)
        await server.stop_listening(0)
        await server.close()
        return 1
    process.settle()
    log.info("ready in %.2f s", (time.monotonic_ns() - began_ns) / 1e9)
    sys.stdout.write(banner(server.dataplane, settings, server.ports))
    sys.stdout.flush()
    await stop.wait()
    log.info("stopping: answering what was admitted, at most %.0f s", settings.shutdown.grace_s)
    await server.drain()
    log.info("stopped")
    return 0


def _on_signals(stop: asyncio.Event) -> None:
    def handle(number: int) -> None:
        if stop.is_set():
            # Asked twice: whoever asks does not want to wait. 128 + signal is the shell's convention.
            os._exit(128 + number)
        stop.set()

    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, handle, number)
