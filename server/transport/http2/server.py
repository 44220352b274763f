"""The listener of our own gRPC transport: accepts, keeps time for its connections, and drains them."""

from __future__ import annotations

import asyncio
import socket
import ssl
import time
from collections import Counter
from typing import TYPE_CHECKING

from server.settings import GrpcSettings, TlsSettings
from server.transport.connections import Connections
from server.transport.http2.calls import Service
from server.transport.http2.protocol import Http2Protocol
from server.transport.listen import listen, tls_context
from server.transport.methods import METHODS

if TYPE_CHECKING:
    from server.dataplane import DataPlane

_TICK_S = 0.25
_LAST_ANSWERS_S = 0.25


class Http2Server:
    """One listener. A started server is stopped once, and not started again."""

    def __init__(self, dataplane: DataPlane, host: str, settings: GrpcSettings, tls: TlsSettings) -> None:
        self._host = host
        self._settings = settings
        self._tls = tls
        self.refused: Counter[str] = Counter()
        """Streams that were not served, by cause."""
        self.connections: Connections[Http2Protocol] = Connections(settings.max_connections)
        self._service = Service(dataplane, settings, self.refused)
        self._methods = {method.name.encode(): method for method in METHODS}
        self._context: ssl.SSLContext | None = None
        self._server: asyncio.Server | None = None
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
        self._context = context = tls_context(self._tls, "h2")
        listener = listen(self._host, self._settings.port)
        port: int = listener.getsockname()[1]
        loop = asyncio.get_running_loop()
        self._server = await loop.create_server(
            self._protocol,
            sock=listener,
            ssl=context,
            ssl_handshake_timeout=self._settings.handshake_timeout_s if context else None,
        )
        self._ticking = loop.create_task(self._tick(), name=f"grpc:{port}")
        return port

    def start_handed(self) -> None:
        """Serve connections that another process accepts: `take` each. Raises ListenFailed: as `start`."""
        self._context = tls_context(self._tls, "h2")
        self._ticking = asyncio.get_running_loop().create_task(self._tick(), name="grpc")

    async def take(self, connection: socket.socket) -> None:
        """Serve an accepted connection. Raises OSError: it is gone, or its TLS handshake failed."""
        context = self._context
        handshake_s = self._settings.handshake_timeout_s if context else None
        await asyncio.get_running_loop().connect_accepted_socket(
            self._protocol, connection, ssl=context, ssl_handshake_timeout=handshake_s
        )

    def _protocol(self) -> Http2Protocol:
        return Http2Protocol(self._service, self._methods, self.connections)

    async def stop(self, grace_s: float) -> None:
        """Take no new connections, ask those that are open to leave, and answer what is in flight.

        What is still there after `grace_s` is answered as UNAVAILABLE, and cancelled.
        """
        if self._ticking is None:
            return
        if self._server is not None:
            self._server.close()
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
