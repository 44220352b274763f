"""What the generator sends by: one server and one protocol, without a thread and without waiting."""

from __future__ import annotations

import select
import socket
from collections.abc import Sequence
from typing import Protocol
from urllib.parse import urlsplit

from server.client.errors import ClientError
from server.errors import Code
from server.load.payloads import Judged, Payload

Ended = tuple[int, Judged]
"""The number of a request, and what became of it."""

RECEIVE_BYTES = 1 << 18


class Wire(Protocol):
    """Its file descriptor is readable when `ready` has something to do."""

    def fileno(self) -> int: ...

    def send(self, number: int, payload: Payload) -> None:
        """Take a request. What can't be sent now is sent by `ready`; a failure comes out of `ready` too."""

    def ready(self) -> Sequence[Ended]:
        """Send and receive what can be; the requests that have ended."""

    def close(self) -> None: ...


def address(url: str, scheme: str, default_port: int) -> tuple[str, int]:
    """Host and port of a URL. Raises ClientError INVALID_ARG for one of another form."""
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
    except ValueError:
        host, port, parts = None, None, None
    if parts is None or parts.scheme != scheme or not host:
        raise ClientError(Code.INVALID_ARG, f"url: {url!r} is not of the form {scheme}://HOST:PORT")
    return host, port or default_port


def connect(where: tuple[str, int]) -> socket.socket:
    """A socket that is connecting; what is sent meanwhile is to wait until it can be written to. Raises OSError."""
    family, kind, protocol, _, target = socket.getaddrinfo(*where, type=socket.SOCK_STREAM)[0]
    made = socket.socket(family, kind, protocol)
    made.setblocking(False)
    made.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    made.connect_ex(target)
    return made


class Outgoing:
    """What waits for its socket to take it."""

    __slots__ = ("_epoll", "_rest", "_socket")

    def __init__(self, to: socket.socket, epoll: select.epoll) -> None:
        self._socket = to
        self._epoll = epoll
        self._rest = b""

    def send(self, data: bytes) -> None:
        """Raises OSError where the connection is gone."""
        if self._rest:
            self._rest += data
            return
        try:
            sent = self._socket.send(data)
        except BlockingIOError:
            sent = 0
        if sent < len(data):
            self._rest = data[sent:]
            self._epoll.modify(self._socket, select.EPOLLIN | select.EPOLLOUT)

    def flush(self) -> None:
        """The socket can be written to. Raises OSError."""
        rest, self._rest = self._rest, b""
        self._epoll.modify(self._socket, select.EPOLLIN)
        if rest:
            self.send(rest)
