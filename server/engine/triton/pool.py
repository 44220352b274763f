"""The Tritons behind this server: those at all addresses that the URL stands for now, each watched."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterable, Sequence

from server.engine.triton.addresses import Endpoint, Target, resolve
from server.engine.triton.channel import Channels
from server.engine.triton.gpu_memory import GpuMemory
from server.engine.triton.host_memory import HostMemory
from server.engine.triton.memory import Memory
from server.engine.triton.server import TritonServer
from server.errors import InvalidRequest
from server.settings import TritonSettings

log = logging.getLogger(__name__)

_FINISHING_S = 30.0
"""How long a server that is no address of the name any more may take to answer what it has."""

Resolve = Callable[[Target], Awaitable[Sequence[Endpoint]]]


class Pool:
    """`start`, then `servers` is who is there; `changed` tells of every change of one of them, and of them all."""

    def __init__(
        self,
        targets: Sequence[Target],
        settings: TritonSettings,
        channels: Channels,
        look_up: Resolve = resolve,
    ) -> None:
        self._targets = targets
        self._settings = settings
        self._channels = channels
        self._look_up = look_up
        self._servers: dict[Endpoint, TritonServer] = {}
        self._found: dict[Target, Sequence[Endpoint]] = {}
        self._following: asyncio.Task[None] | None = None
        self._closing: set[asyncio.Task[None]] = set()
        self._memory = _memory_of(settings)
        self.changed: Callable[[], None] = lambda: None

    @property
    def servers(self) -> list[TritonServer]:
        """All of them, up or not."""
        return list(self._servers.values())

    @property
    def up(self) -> list[TritonServer]:
        return [server for server in self._servers.values() if server.up]

    async def start(self) -> None:
        """Find them and probe each once; from now on they are watched. What is not there is no error.

        Raises:
            InvalidRequest: there is no such GPU as they are to read from, or no room on it.
        """
        if self._memory is not None and self._settings.shared_memory_gpu >= 0:
            try:
                await asyncio.to_thread(self._memory.open)
            except OSError as error:
                raise InvalidRequest("--triton-shared-memory-gpu", str(error)) from error
        await self._follow()
        if self._settings.shared_memory_gpu >= 0 and not any(server.may_share_memory for server in self.servers):
            log.warning("--triton-shared-memory-gpu: no Triton is at a loopback address, so none reads that memory")
        self._following = asyncio.get_running_loop().create_task(self._follow_on())

    async def _follow_on(self) -> None:
        while True:
            await asyncio.sleep(self._settings.resolve_s)
            await self._renew()
            await self._follow()

    async def _renew(self) -> None:
        try:
            changed = await asyncio.to_thread(self._channels.refresh)
        except OSError as error:
            log.error("TLS to Tritons: what was read before stays: %s: %s", error.filename, error.strerror)
            return
        if changed:
            log.info("TLS to Tritons: certificates were read anew")
            for server in self.servers:
                server.reconnect()

    async def _follow(self) -> None:
        for target in self._targets:
            try:
                self._found[target] = await self._look_up(target)
            except OSError as error:
                # Whoever was found before is likely still there.
                log.warning("%s can't be looked up: %s", target.host, error)
        wanted = dict.fromkeys(endpoint for found in self._found.values() for endpoint in found)
        new = [endpoint for endpoint in wanted if endpoint not in self._servers]
        gone = [endpoint for endpoint in self._servers if endpoint not in wanted]
        await self._add(new)
        for endpoint in gone:
            self._remove(endpoint)
        if new or gone:
            self.changed()

    async def _add(self, endpoints: Iterable[Endpoint]) -> None:
        servers = [self._server(at) for at in endpoints]
        self._servers.update({server.endpoint: server for server in servers})
        await asyncio.gather(*(server.probe() for server in servers))
        for server in servers:
            if not server.up:
                log.warning("Triton %s is not up: %s", server.name, server.problem)
            server.watch()

    def _server(self, at: Endpoint) -> TritonServer:
        memory = self._memory if at.on_this_host else None
        return TritonServer(at, self._settings, self._channels, lambda _: self.changed(), memory)

    def _remove(self, endpoint: Endpoint) -> None:
        server = self._servers.pop(endpoint)
        log.info("Triton %s is no address of %s any more", server.name, endpoint.target.host)
        task = asyncio.get_running_loop().create_task(server.close(_FINISHING_S))
        self._closing.add(task)
        task.add_done_callback(self._closing.discard)

    async def close(self) -> None:
        """Let go of them all."""
        if self._following is not None:
            self._following.cancel()
        await asyncio.gather(*self._closing, *(server.close(0.0) for server in self._servers.values()))
        self._servers.clear()
        if self._memory is not None:
            self._memory.close()


def _memory_of(settings: TritonSettings) -> Memory | None:
    if settings.shared_memory == "off":
        return None
    size_bytes, device_id = settings.shared_memory_bytes, settings.shared_memory_gpu
    backing = HostMemory(size_bytes) if device_id < 0 else GpuMemory(device_id, size_bytes)
    return Memory(backing, settings.shared_memory_least_bytes)
