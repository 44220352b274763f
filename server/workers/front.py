"""A front: the transports, the checks and the pipelines of a server whose models are in another process."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import socket
import sys
import time
from collections import Counter
from collections.abc import Mapping
from contextlib import suppress
from functools import partial
from typing import Any

from server import process
from server.app import open_repository
from server.banner import banner
from server.engine.cores import available_cores
from server.errors import EngineLost
from server.lifecycle import State
from server.model_control import ModelControl
from server.observability.certificates import certificates
from server.observability.following import following
from server.observability.machine import Pulse
from server.security.gate import BadAuth, Gate, open_gate
from server.settings import Settings
from server.shared_memory.places import Places
from server.tasks import Tasks
from server.transport.entrance import Entrance, renew, shared_entrance
from server.transport.external_scaler import external_scaler
from server.transport.http1.server import Http1Server
from server.transport.http2.server import Http2Server
from server.transport.rest import RestServer
from server.workers.control import COUNTS, LISTENERS, Said, Word, beat, hear, say
from server.workers.counts import since, told, told_pulse
from server.workers.plane import FrontPlane, LogsOfAll, MetricsOfAll
from server.workers.remote import RemoteModels

log = logging.getLogger("server")

_LAST_ANSWERS_S = 1.0


def share_of(settings: Settings) -> Settings:
    """One front's part of what the settings allow to all of them together."""
    count = settings.workers.count
    http, grpc = settings.http, settings.grpc
    return settings.model_copy(
        update={
            "http": http.model_copy(
                update={
                    "max_connections": -(-http.max_connections // count),
                    "max_bodies_bytes": -(-http.max_bodies_bytes // count),
                }
            ),
            "grpc": grpc.model_copy(
                update={
                    "max_connections": -(-grpc.max_connections // count),
                    "max_unfinished_bytes": -(-grpc.max_unfinished_bytes // count),
                }
            ),
        }
    )


def _gate(settings: Settings) -> Gate | None:
    """Who may ask here, for this front's part. The supervisor has read the keys at the start: where they can't be read
    now, they are waited for, and the other fronts serve meanwhile."""
    while True:
        try:
            return open_gate(settings, share=1 / settings.workers.count)
        except BadAuth as error:
            log.error("keys: %s; looking again in %g s", error, settings.auth.refresh_s)
            time.sleep(settings.auth.refresh_s)


class Front:
    """One life of it: `run` returns the exit status."""

    def __init__(self, settings: Settings, supervisor: socket.socket, name: str) -> None:
        self._settings = settings
        self._supervisor = supervisor
        own = share_of(settings)
        local = ModelControl(
            open_repository(settings),
            default_max_queue_size=settings.scheduler.default_max_queue_size,
            hang_s=settings.scheduler.hang_s,
        )
        self.models = RemoteModels(local, self._answer, max_unsent_bytes=settings.workers.max_unsent_bytes)
        threads = settings.pipeline.threads or -(-available_cores() // settings.workers.count)
        self._logs = LogsOfAll(settings.log, name)
        self._logs.install()
        self._logs.spread = self._spread_logs
        self.dataplane = FrontPlane(self.models, settings.repository, threads, self._logs, following(settings))
        self.dataplane.gate = _gate(settings)
        self.rest = RestServer(self.dataplane, settings.host, own.http, settings.http_tls)
        target, token_file = settings.scaling.target_saturation, settings.metrics.token_file
        metrics = MetricsOfAll(self.models, self.dataplane, target, token_file, [certificates(settings)])
        more = external_scaler(settings.scaling, metrics.text)
        self.grpc = Http2Server(self.dataplane, settings.host, own.grpc, settings.tls, more)
        self.metrics = Http1Server(metrics, settings.metrics.host, 0, own.http)
        self._shared = shared_entrance(own, self.rest.listener, self.grpc) if settings.one_port else None
        apart = {"http": self.rest.listener.entrance, "grpc": self.grpc.entrance}
        self._entrances: Mapping[str, Entrance] = {
            **({"http": self._shared} if self._shared else apart),
            "metrics": self.metrics.entrance,
        }
        self._got = dict.fromkeys(LISTENERS, 0)
        self._taking: Counter[str] = Counter()
        self._report_due = False
        self._told_before: dict[str, Any] = {}
        """What had been counted when the link to the engine process began. One that dies takes the sums along with it,
        and counters may begin anew, but not in part: who reads them would take what is left for new. One that lives has
        kept what it was told."""
        self._pulse = Pulse(name)
        self._stop = asyncio.Event()
        self._tasks = Tasks()

    async def run(self) -> int:
        for entrance in self._entrances.values():
            entrance.start_handed()
            entrance.tell_of_changes(self._report_soon)
        asyncio.get_running_loop().add_reader(self._supervisor, self._hear)
        self._pulse.start()
        self._tasks.start(renew(self._entrances.values(), self._settings.auth.refresh_s))
        if self.dataplane.gate:
            self._tasks.start(self.dataplane.gate.watch(self._settings.auth.refresh_s))
        beginning = self._tasks.start(self._begin())
        await self._stop.wait()
        beginning.cancel()
        await self._drain()
        return 0

    async def _begin(self) -> None:
        """Serve once the engine process has told its models. It may never do so, and this process be stopped first."""
        await self.models.told.wait()
        if self.dataplane.lifecycle.state is State.STARTING:
            self.dataplane.lifecycle.advance(State.READY)
        process.settle()
        self._tasks.start(self.models.watch())
        self._tasks.start(beat(self._supervisor))
        say(self._supervisor, Word.READY)

    async def _drain(self) -> None:
        grace_s = self._settings.shutdown.grace_s
        if self._shared:
            self._shared.close()
        closing = asyncio.gather(*(each.stop(grace_s + _LAST_ANSWERS_S) for each in (self.rest, self.grpc)))
        await asyncio.wait((closing,), timeout=grace_s)
        await self.models.drain(time.monotonic_ns())
        await closing
        self._pulse.close()
        await self.metrics.stop(_LAST_ANSWERS_S)
        await self.models.close()
        await self.dataplane.tracing.close()
        self.dataplane.close()

    # --- the supervisor ---------------------------------------------------------------------------

    def _hear(self) -> None:
        try:
            for said in hear(self._supervisor):
                self._act(said)
        except EOFError:
            # Without the supervisor nobody replaces anybody any more.
            os._exit(1)

    def _act(self, said: Said) -> None:
        if said.word is Word.CONNECTION:
            self._tasks.start(self._serve(LISTENERS[said.more[0]], socket.socket(fileno=said.files[0])))
        elif said.word is Word.LINK:
            self._tasks.start(self._link(said))
        elif said.word is Word.BANNER:
            sys.stdout.write(banner(self.dataplane, self._settings, json.loads(said.more)))
            sys.stdout.flush()
        elif said.word is Word.UNREADY:
            self.dataplane.lifecycle.advance(State.DRAINING)
        elif said.word is Word.STOP:
            self._stop.set()

    async def _serve(self, listener: str, connection: socket.socket) -> None:
        self._got[listener] += 1
        self._taking[listener] += 1
        try:
            connection.setblocking(False)
            await self._entrances[listener].take(connection)
        finally:
            self._taking[listener] -= 1
            self._report_soon()

    async def _link(self, said: Said) -> None:
        stream, *memory = said.files
        places = Places(memory[0], self._settings.workers.shared_bytes) if memory else None
        for file in memory:
            os.close(file)
        link = self.models.attach(places, partial(self._tell_lost, said.more))
        self._told_before = self._counted()
        await asyncio.get_running_loop().create_unix_connection(lambda: link, sock=socket.socket(fileno=stream))
        if self._logs.changes:
            # Another engine process does not know of them.
            self._spread_logs(self._logs.changes)

    def _tell_lost(self, number: bytes) -> None:
        say(self._supervisor, Word.LOST, number)

    def _report_soon(self) -> None:
        if not self._report_due:
            self._report_due = True
            asyncio.get_running_loop().call_soon(self._report)

    def _report(self) -> None:
        self._report_due = False
        counts: list[int] = []
        for name in LISTENERS:
            entrance = self._entrances.get(name)
            inside = entrance.open_connections() if entrance else 0
            counts += (self._got[name], inside + self._taking[name])
        if not say(self._supervisor, Word.OPEN, COUNTS.pack(*counts)):
            asyncio.get_running_loop().call_later(0.01, self._report_soon)

    # --- the engine process -----------------------------------------------------------------------

    def _spread_logs(self, changes: Mapping[str, object]) -> None:
        self._tasks.start(self._ask_logs(dict(changes)))

    async def _ask_logs(self, changes: Mapping[str, object]) -> None:
        with suppress(EngineLost):
            await self.models.ask("logs", changes=changes)

    async def _answer(self, question: Mapping[str, Any]) -> Any:
        """What this front has counted; or it is told of log settings."""
        if question["what"] == "logs":
            self._logs.follow(question["changes"])
            return None
        grpc = self.grpc
        counted = since(self._counted(), self._told_before)
        return {
            "pid": os.getpid(),
            "models": list(counted["models"].values()),
            "closed": counted["closed"],
            "http_connections": len(self.rest.listener.connections),
            "pulse": told_pulse(self._pulse),
            "grpc": {
                "connections": grpc.open_connections(),
                "streams": grpc.open_streams(),
                "held_bytes": grpc.held_bytes(),
                "refused": counted["refused"],
            },
        }

    def _counted(self) -> dict[str, Any]:
        """Since this process began."""
        now_ns = time.monotonic_ns()
        closed = {"http": dict(self.rest.closed), "grpc": dict(self.grpc.connections.closed)}
        if self._shared:
            closed["shared"] = dict(self._shared.closed)
        models = {f"{each.name}/{each.version}": told(each, now_ns) for each in self.models.counted()}
        return {"models": models, "closed": closed, "refused": dict(self.grpc.refused)}
