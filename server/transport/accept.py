"""Accepts connections of a listening socket for whoever wants each as a socket: asyncio's own servers give none."""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Callable

log = logging.getLogger(__name__)

_AT_ONCE = 64
"""Connections that are accepted before anything else on the loop has its turn."""
_RETRY_S = 1.0
"""Between two tries, where the process or the system has no more descriptors to give."""


class Acceptor:
    """Accepts until it is closed; `take` is called with each connection, which does not block."""

    def __init__(self, listener: socket.socket, take: Callable[[socket.socket], None]) -> None:
        """`listener` is this one's to close."""
        listener.setblocking(False)
        self._listener = listener
        self._take = take
        self._loop = asyncio.get_running_loop()
        self._retry: asyncio.TimerHandle | None = None
        self._resume()

    def close(self) -> None:
        if self._retry is not None:
            self._retry.cancel()
        self._loop.remove_reader(self._listener)
        self._listener.close()

    def _resume(self) -> None:
        self._loop.add_reader(self._listener, self._accept)

    def _accept(self) -> None:
        for _ in range(_AT_ONCE):
            try:
                connection, _ = self._listener.accept()
            except (BlockingIOError, InterruptedError, ConnectionError):
                return
            except OSError as error:
                log.error("can't accept connections: %s; trying again in %g s", error.strerror or error, _RETRY_S)
                self._loop.remove_reader(self._listener)
                self._retry = self._loop.call_later(_RETRY_S, self._resume)
                return
            connection.setblocking(False)
            self._take(connection)
