"""A server of HTTP/1.1: its connections, what they share, and its way out."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Collection, Sequence
from typing import Protocol

from server.settings import HttpSettings, TlsSettings
from server.transport.connections import Connections
from server.transport.entrance import Entrance
from server.transport.http1.head import Head, Heads
from server.transport.http1.protocol import Http1Protocol, Turn
from server.transport.http1.reply import Clock
from server.transport.memory import Memory

_LOOK_S = 1.0
"""Between two looks at the connections' time-outs, which are as exact as this."""
_LAST_ANSWERS_S = 5.0
"""After the grace, for those that were cut off to take their last answer."""
_IDLE_S = 0.25
"""How long a connection that nothing is under way on stays open behind the listener."""


class App(Protocol):
    """Who answers. All methods are plain calls on the event loop, and none may raise."""

    def plan(self, head: Head) -> None:
        """Called once for a new head, which is shared by all requests that begin so: set its `plan`, or its
        `refusal` if the head alone decides the answer."""

    def take(self, turns: Sequence[Turn]) -> None:
        """Requests that arrived together, none of them refused; each is answered once, now or later."""

    def abandon(self, turn: Turn) -> None:
        """Nobody waits for the answer any more, or nobody may any more: give it up. An answer still goes out to
        those who are there."""


class Http1Server:
    """One listener for `app`. A started server is stopped once, and not started again."""

    def __init__(
        self,
        app: App,
        host: str,
        port: int,
        settings: HttpSettings,
        tls: TlsSettings | None = None,
        unread: Collection[bytes] = (),
    ) -> None:
        """`unread`: names, in lower case, of header fields that `app` asks for of no head."""
        self.app = app
        self.settings = settings
        self.heads = Heads(settings, app.plan, unread)
        self.memory = Memory(settings.max_bodies_bytes)
        self.connections: Connections[Http1Protocol] = Connections(settings.max_connections)
        self.clock = Clock()
        self.draining = False
        self.entrance = Entrance(
            host,
            port,
            {"http/1.1": self},
            tls,
            limit=settings.max_connections,
            patience_s=settings.head_timeout_s,
            closed=self.connections.closed,
        )
        self._look: asyncio.TimerHandle | None = None
        self._empty = asyncio.Event()

    async def start(self) -> int:
        """Listen, and return the port. Raises ListenFailed, also where the certificate can't be used."""
        return await self.entrance.start()

    def begin(self) -> None:
        """Keep time for the connections that are about to come."""
        self._look_later()

    def protocol(self) -> Http1Protocol:
        return Http1Protocol(self)

    async def stop(self, grace_s: float) -> None:
        """Close the listener and idle connections, answer what is in flight; abandon what is not answered after
        `grace_s`.

        A proxy may be sending a request on a connection that is idle here, and would make a 502 of it. So those stay
        open for a moment: what comes is answered, with the word that it was the last one, and for the next the proxy
        finds no listener and goes elsewhere.
        """
        if self._look is None or self.draining:
            return
        self.draining = True
        self.entrance.close()
        idle_s = min(_IDLE_S, grace_s)
        await self._emptied(idle_s)
        for connection in self.connections:
            connection.drain()
        if not await self._emptied(grace_s - idle_s):
            for connection in self.connections:
                connection.cut_off()
            await self._emptied(_LAST_ANSWERS_S)
        for connection in self.connections:
            connection.abort()
        self._look.cancel()

    async def _emptied(self, timeout_s: float) -> bool:
        if self.connections:
            self._empty.clear()
            try:
                async with asyncio.timeout(timeout_s):
                    await self._empty.wait()
            except TimeoutError:
                return False
        return True

    def lost(self, connection: Http1Protocol) -> None:
        """A connection is closed."""
        self.connections.discard(connection)
        if not self.connections:
            self._empty.set()

    def look(self, now_ns: int) -> None:
        """Close the connections that have lasted too long."""
        for connection in self.connections:
            connection.check_time(now_ns)

    def _look_later(self) -> None:
        self._look = asyncio.get_running_loop().call_later(_LOOK_S, self._look_now)

    def _look_now(self) -> None:
        self._look_later()
        now_ns = time.monotonic_ns()
        self.clock.tick(now_ns)
        self.look(now_ns)
