"""What stands first on a connection that has yet to say what it speaks, HTTP/2 or HTTP/1.1.

Once that is known the connection is handed over, with the bytes that told it, and nothing of the door is left on it.

Source: RFC 9113, section 3.4 (the client's preface); RFC 7301 (ALPN).
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, Literal, cast

from server.transport.http2.frames import PREFACE

if TYPE_CHECKING:
    from server.transport.entrance import Entrance

Spoken = Literal["h2", "http/1.1"]
"""What is spoken on a connection, by the names that ALPN has for it."""


def told(seen: bytes) -> Spoken | None:
    """What the first bytes of a connection tell: HTTP/1.1 is told by the first that is not of HTTP/2's preface.

    None: more are needed, and fewer than the preface's 24 were seen.
    """
    if seen.startswith(PREFACE):
        return "h2"
    return None if PREFACE.startswith(seen) else "http/1.1"


class Door(asyncio.Protocol):
    """Made by `Entrance` for each connection that does not go to its server at once."""

    def __init__(self, entrance: Entrance) -> None:
        self._entrance = entrance
        self._transport: asyncio.Transport
        self._seen = b""
        self._deadline: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        tls: Any = transport.get_extra_info("ssl_object")
        if not self._entrance.open:
            self._transport.abort()
        elif tls is None:
            self._wait()
        else:
            self._choose(tls.selected_alpn_protocol())

    def _choose(self, agreed: str | None) -> None:
        """`agreed` by ALPN. Who asks for nothing, or for nothing that we speak, speaks HTTP/1.1 where it can be had:
        to HTTP/2 over TLS belongs that it is asked for; only where both are spoken may the preface say it instead."""
        servers = self._entrance.servers
        if agreed in servers:
            self._hand_over(cast(Spoken, agreed))
        elif len(servers) > 1:
            self._wait()
        elif "http/1.1" in servers:
            self._hand_over("http/1.1")
        else:
            self._turn_away("no_alpn")

    def _wait(self) -> None:
        if self._entrance.doors.admit(self):
            later = asyncio.get_running_loop().call_later
            self._deadline = later(self._entrance.patience_s, self._turn_away, "silent")
        else:
            self._transport.abort()

    def data_received(self, data: bytes) -> None:
        self._seen += data
        spoken = told(self._seen)
        if spoken is not None:
            self._hand_over(spoken)

    def _hand_over(self, spoken: Spoken) -> None:
        self._leave()
        transport, protocol = self._transport, self._entrance.servers[spoken].protocol()
        transport.set_protocol(protocol)
        protocol.connection_made(transport)
        if self._seen and not transport.is_closing():
            protocol.data_received(self._seen)

    def eof_received(self) -> bool:
        """Whoever leaves without a word is no fault of anybody: load balancers look so whether a port is open."""
        return False

    def connection_lost(self, _error: Exception | None) -> None:
        self._leave()

    def close(self) -> None:
        """Nobody is let in any more."""
        self._leave()
        self._transport.abort()

    def _turn_away(self, cause: str) -> None:
        self._entrance.doors.count_closed(cause)
        self.close()

    def _leave(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None
            self._entrance.doors.discard(self)
