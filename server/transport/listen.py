"""Addresses to listen on, and the one error for those that can't be had."""

from __future__ import annotations

import socket

_BACKLOG = 2048


class ListenFailed(Exception):
    """`address` can't be listened on; `reason` is the system's."""

    def __init__(self, address: str, reason: str) -> None:
        super().__init__(f"can't listen on {address}: {reason}")
        self.address = address
        self.reason = reason


def format_address(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def listen(host: str, port: int) -> socket.socket:
    """A listening TCP socket; port 0 takes a free one. The port is this process's alone (no SO_REUSEPORT).

    Raises:
        ListenFailed: the port is taken, or the host is not an address of this machine.
    """
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0][0]
        return socket.create_server((host, port), family=family, backlog=_BACKLOG)
    except OSError as error:
        raise ListenFailed(format_address(host, port), error.strerror or str(error)) from error
