"""Where connections come in: an address, or another process that accepts them, and who serves what is spoken there."""

from __future__ import annotations

import asyncio
import logging
import socket
import ssl
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, Protocol

from server.security.watched import Watched
from server.settings import Settings, TlsSettings
from server.transport.accept import Acceptor
from server.transport.connections import Connections
from server.transport.door import Door, Spoken
from server.transport.listen import BACKLOG, ListenFailed, listen, tls_context

log = logging.getLogger(__name__)


class Serves(Protocol):
    """A server of one protocol."""

    @property
    def connections(self) -> Connections[Any]: ...

    def begin(self) -> None:
        """Connections are about to come."""

    def protocol(self) -> asyncio.Protocol:
        """What is to stand on a new connection."""


class Entrance:
    """One for a server, or for two on one port. It is started once.

    Connections with TLS are accepted here and not by the loop, which tells nobody of a handshake that has failed.
    """

    def __init__(
        self,
        host: str,
        port: int,
        servers: Mapping[Spoken, Serves],
        tls: TlsSettings | None,
        *,
        limit: int,
        patience_s: float,
        closed: Counter[str] | None = None,
    ) -> None:
        """`limit`: connections amid their TLS handshakes, and as many that have yet to say what they speak.
        `patience_s`: for either. `closed` counts those that were turned away; None: apart."""
        self.servers = servers
        self.patience_s = patience_s
        self.closed = Counter() if closed is None else closed
        self.open = True
        """False: nobody is let in any more, nor who was accepted before and comes late."""
        self.doors: Connections[Door] = Connections(limit, self.closed)
        self._handshakes: Connections[asyncio.Task[None]] = Connections(limit, self.closed)
        self._host = host
        self._port = port
        self._tls = tls
        self._files: Watched[ssl.SSLContext | None] | None = None
        self._listener: asyncio.Server | Acceptor | None = None

    async def start(self) -> int:
        """Listen, and return the port. Raises ListenFailed, also where the certificate can't be used."""
        self._make_context()
        listener = listen(self._host, self._port)
        port: int = listener.getsockname()[1]
        if self._context is None:
            serving = asyncio.get_running_loop().create_server(self._protocol, sock=listener, backlog=BACKLOG)
            self._listener = await serving
        else:
            self._listener = Acceptor(listener, self._take_soon)
        self._begin()
        return port

    def start_handed(self) -> None:
        """Serve connections that another process accepts: `take` each. Raises ListenFailed: as `start`."""
        self._make_context()
        self._begin()

    async def take(self, connection: socket.socket) -> None:
        """Serve an accepted connection, which does not block; returns when its TLS handshake is over."""
        if self._context is None:
            await self._connect(connection)
            return
        task: asyncio.Task[None] = asyncio.current_task()  # type: ignore[assignment]  # a coroutine runs in one
        if not self._handshakes.admit(task):
            connection.close()
            return
        try:
            await self._connect(connection, ssl=self._context, ssl_handshake_timeout=self.patience_s)
        finally:
            self._handshakes.discard(task)

    def close(self) -> None:
        """Take no new connections, and end those of which it is not told yet who serves them."""
        self.open = False
        if self._listener is not None:
            self._listener.close()
            self._listener = None
        for task in self._handshakes:
            task.cancel()
        for door in self.doors:
            door.close()

    def open_connections(self) -> int:
        """But for those that are being taken."""
        return sum(map(len, self._all()))

    def tell_of_changes(self, changed: Callable[[], None]) -> None:
        """Call `changed` when a connection has come, was turned away or is gone."""
        for connections in self._all():
            connections.changed = changed

    def _all(self) -> list[Connections[Any]]:
        return [self.doors, *(server.connections for server in self.servers.values())]

    def renew(self) -> None:
        """Read the certificates anew if they have changed, for connections to come; what can't be read changes
        nothing."""
        try:
            if self._files is not None and self._files.refresh():
                log.info("TLS: %s was read anew", self._tls.certificate if self._tls else "")
        except (OSError, ListenFailed) as error:
            log.error("TLS: what was read before stays: %s", error)

    @property
    def _context(self) -> ssl.SSLContext | None:
        return None if self._files is None else self._files.value

    def _make_context(self) -> None:
        tls = self._tls
        if tls is None or not tls.given:
            return
        tls_context(tls, *self.servers)  # It says which file is missing.
        files = [Path(file) for file in tls.files if file]
        self._files = Watched(lambda: files, lambda: tls_context(tls, *self.servers))

    def _begin(self) -> None:
        for server in self.servers.values():
            server.begin()

    def _take_soon(self, connection: socket.socket) -> None:
        # Not lost meanwhile: it is admitted before it first waits.
        asyncio.get_running_loop().create_task(self.take(connection))

    async def _connect(self, connection: socket.socket, **tls: Any) -> None:
        try:
            await asyncio.get_running_loop().connect_accepted_socket(self._protocol, connection, **tls)
        except OSError as error:
            # A client that spoke no TLS that we know, or refused our certificate; or took too long. Others only left.
            if isinstance(error, ssl.SSLError | ConnectionAbortedError):
                self.closed["tls"] += 1
            log.debug("a connection was lost before it served: %s", error)
            connection.close()

    def _protocol(self) -> asyncio.Protocol:
        if self._context is None and len(self.servers) == 1:
            [server] = self.servers.values()
            return server.protocol()
        return Door(self)


async def renew(entrances: Iterable[Entrance], every_s: float) -> None:
    """Follow the certificates of `entrances` on disk, for ever."""
    entrances = list(entrances)
    while True:
        await asyncio.sleep(every_s)
        for entrance in entrances:
            entrance.renew()


def shared_entrance(settings: Settings, rest: Serves, grpc: Serves) -> Entrance:
    """The one of both servers, whose ports are equal."""
    return Entrance(
        settings.host,
        settings.http.port,
        {"h2": grpc, "http/1.1": rest},
        settings.rest_tls,
        limit=max(settings.http.max_connections, settings.grpc.max_connections),
        patience_s=settings.grpc.handshake_timeout_s,
    )
