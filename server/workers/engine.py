"""The engine process: the models, their queues and sessions, without a listener; fronts bring the requests."""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import time

from server import process
from server.app import load_first, open_repository
from server.dataplane import DataPlane
from server.engine.cores import available_cores
from server.lifecycle import Lifecycle, State
from server.model_control import ModelControl
from server.observability.log_control import LogControl
from server.observability.machine import Machine, Pulse
from server.scheduler.share import Share
from server.settings import Settings
from server.shared_memory.places import view_of
from server.tasks import Tasks
from server.workers.control import Said, Word, beat, hear, say
from server.workers.host import Host

log = logging.getLogger("server")


class EngineProcess:
    """One life of it: `run` returns the exit status."""

    def __init__(self, settings: Settings, supervisor: socket.socket, name: str) -> None:
        self._settings = settings
        self._supervisor = supervisor
        self._lifecycle = Lifecycle()
        self._models = ModelControl(
            open_repository(settings),
            default_max_queue_size=settings.scheduler.default_max_queue_size,
            share=Share(available_cores()),
            cache_size_bytes=settings.cache.size_bytes,
            load_threads=settings.repository.load_threads,
            max_override_bytes=settings.repository.max_override_bytes,
            hang_s=settings.scheduler.hang_s,
        )
        logs = LogControl(settings.log, name)
        logs.install()
        dataplane = DataPlane(self._models, self._lifecycle, settings.repository, 1, logs=logs)
        self._pulse, self._machine = Pulse("engine"), Machine(settings.metrics)
        self._host = Host(self._models, dataplane, self._pulse, self._machine)
        self._waiting: list[Said] = []
        """Links that came before the models were loaded."""
        self._tasks = Tasks()
        self._stop = asyncio.Event()

    async def run(self) -> int:
        loop = asyncio.get_running_loop()
        loop.add_reader(self._supervisor, self._hear)
        began_ns = time.monotonic_ns()
        repository = self._settings.repository
        self._pulse.start()
        self._machine.start()
        try:
            await load_first(self._models, repository)
        except OSError as error:
            log.error("can't start: %s", error)
            return 1
        self._lifecycle.advance(State.READY)
        for said in self._waiting:
            self._tasks.start(self._link(said))
        self._tasks.start(self._host.beat())
        self._tasks.start(self._host.watch())
        if repository.control_mode == "poll":
            self._tasks.start(self._models.poll(repository.poll_s))
        self._tasks.start(beat(self._supervisor))
        say(self._supervisor, Word.READY)
        process.settle()
        log.info("the engine process is ready in %.2f s", (time.monotonic_ns() - began_ns) / 1e9)
        await self._stop.wait()
        self._lifecycle.advance(State.DRAINING)
        self._tasks.cancel()
        await self._models.drain(time.monotonic_ns() + int(self._settings.shutdown.grace_s * 1e9))
        self._host.close()
        self._pulse.close()
        self._machine.close()
        await self._models.close()
        return 0

    def _hear(self) -> None:
        try:
            for said in hear(self._supervisor):
                if said.word is Word.STOP:
                    self._stop.set()
                elif said.word is Word.FINISH:
                    self._tasks.start(self._finish())
                elif self._lifecycle.state is State.STARTING:
                    self._waiting.append(said)
                else:
                    self._tasks.start(self._link(said))
        except EOFError:
            # Without the supervisor nobody replaces anybody any more.
            os._exit(1)

    async def _finish(self) -> None:
        until_ns = time.monotonic_ns() + int(self._settings.shutdown.grace_s * 1e9)
        await self._models.finish_sequences(until_ns)
        say(self._supervisor, Word.FINISHED)

    async def _link(self, said: Said) -> None:
        stream, *memory = said.files
        shared = view_of(memory[0], os.fstat(memory[0]).st_size) if memory else None
        for file in memory:
            os.close(file)
        link = self._host.add(said.more.decode(), shared)
        await asyncio.get_running_loop().create_unix_connection(lambda: link, sock=socket.socket(fileno=stream))
