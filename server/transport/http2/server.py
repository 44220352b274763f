"""The server of our own gRPC transport: keeps time for its connections, and drains them."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from typing import TYPE_CHECKING

from server.settings import GrpcSettings, TlsSettings
from server.transport.connections import Connections
from server.transport.entrance import Entrance
from server.transport.http2.calls import Service
from server.transport.http2.protocol import Http2Protocol
from server.transport.methods import METHODS, Method

if TYPE_CHECKING:
    from collections.abc import Sequence

    from server.dataplane import DataPlane

_TICK_S = 0.25
_LAST_ANSWERS_S = 0.25


class Http2Server:
    """One listener. A started server is stopped once, and not started again."""

    def __init__(
        self, dataplane: DataPlane, host: str, settings: GrpcSettings, tls: TlsSettings, more: Sequence[Method] = ()
    ) -> None:
        """`more`: methods beside those of the table."""
        self.refused: Counter[str] = Counter()
        """Streams that were not served, by cause."""
        self.connections: Connections[Http2Protocol] = Connections(settings.max_connections)
        self._service = Service(dataplane, settings, self.refused)
        self._methods = {method.name.encode(): method for method in (*METHODS, *more)}
        self.entrance = Entrance(
            host,
            settings.port,
            {"h2": self},
            tls,
            limit=settings.max_connections,
            patience_s=settings.handshake_timeout_s,
            closed=self.connections.closed,
        )
        self._ticking: asyncio.Task[None] | None = None

    def open_connections(self) -> int:
        return len(self.connections)

    def open_streams(self) -> int:
        """Calls under way on all connections."""
        return sum(len(protocol.connection.streams) for protocol in self.connections)

    def held_bytes(self) -> int:
        """Bytes of requests that are not whole yet, and of answers that wait for their clients."""
        return sum(protocol.held_bytes() for protocol in self.connections)

    async def start(self) -> int:
        """Listen, and return the port. Raises ListenFailed, also where the certificate can't be used."""
        return await self.entrance.start()

    def begin(self) -> None:
        """Keep time for the connections that are about to come."""
        self._ticking = asyncio.get_running_loop().create_task(self._tick(), name="grpc")

    def protocol(self) -> Http2Protocol:
        return Http2Protocol(self._service, self._methods, self.connections)

    async def stop(self, grace_s: float) -> None:
        """Take no new connections, ask those that are open to leave, and answer what is in flight.

        What is still there after `grace_s` is answered as UNAVAILABLE, and cancelled.
        """
        if self._ticking is None:
            return
        self.entrance.close()
        for connection in self.connections:
            connection.drain(grace_s)
        await self._until_empty(grace_s)
        for connection in self.connections:
            connection.shut()
        await self._until_empty(_LAST_ANSWERS_S)
        for connection in self.connections:
            connection.abort()
        self._ticking.cancel()
        await asyncio.wait((self._ticking,))

    async def _until_empty(self, seconds: float) -> None:
        until = time.monotonic() + seconds
        while len(self.connections) and (left := until - time.monotonic()) > 0:  # noqa: ASYNC110 - of a registry
            await asyncio.sleep(min(left, 0.01))

    async def _tick(self) -> None:
        while True:
            await asyncio.sleep(_TICK_S)
            now_ns = time.monotonic_ns()
            for connection in self.connections:
                connection.tick(now_ns)
