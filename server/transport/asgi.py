"""A listener for an ASGI app: uvicorn with httptools, without its signal handlers, logs and extra headers."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Awaitable, Callable, Iterator, MutableMapping
from typing import Any

import uvicorn

from server.transport.listen import listen

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
AsgiApp = Callable[[Scope, Receive, Send], Awaitable[None]]

_CANCELLED_S = 5.0
"""Seconds that calls get to write their last answer, once the grace is over and they were cancelled."""


class AsgiServer:
    """One listener for `app`. A started server is stopped once, and not started again."""

    def __init__(self, app: AsgiApp, host: str, port: int, *, keep_alive_s: int) -> None:
        self._host = host
        self._port = port
        self._config = uvicorn.Config(
            app,
            http="httptools",
            ws="none",
            interface="asgi3",
            lifespan="off",
            log_config=None,
            # It warns of every line of bad HTTP: a client must not be able to fill the disk.
            log_level="error",
            access_log=False,
            server_header=False,
            proxy_headers=False,
            timeout_keep_alive=keep_alive_s,
        )
        self._server = _Server(self._config)
        self._serving: asyncio.Task[None] | None = None

    async def start(self) -> int:
        """Listen, and return the port. Raises ListenFailed."""
        listener = listen(self._host, self._port)
        port: int = listener.getsockname()[1]
        self._serving = asyncio.create_task(self._server.serve([listener]), name=f"http:{port}")
        up = asyncio.create_task(self._server.up.wait())
        await asyncio.wait((self._serving, up), return_when=asyncio.FIRST_COMPLETED)
        up.cancel()
        if self._serving.done():
            await self._serving
        return port

    async def stop(self, grace_s: float) -> None:
        """Close the listener and idle connections, answer what is in flight.

        What is not answered after `grace_s` is cancelled, which the app may still turn into an answer.
        """
        if self._serving is None:
            return
        self._server.config.timeout_graceful_shutdown = grace_s  # type: ignore[assignment]  # any float will do
        self._server.should_exit = True
        await self._serving
        state = self._server.server_state
        if state.tasks:
            await asyncio.wait(list(state.tasks), timeout=_CANCELLED_S)
        for connection in list(state.connections):
            connection.transport.close()


class _Server(uvicorn.Server):
    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.up = asyncio.Event()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        # Signals are the composition root's: it has an order in which to drain.
        yield

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets=sockets)
        self.up.set()
