"""What the passing of time does to a connection and its streams. The time is told, in ns; there is no clock here."""

from __future__ import annotations

from typing import TYPE_CHECKING

from server.transport.http2.frames import ConnectionFault, ErrorCode
from server.transport.http2.states import State
from server.transport.http2.stream import Stream

if TYPE_CHECKING:
    from server.settings import GrpcSettings
    from server.transport.http2.connection import Connection

HEARING_S = 1.0
"""How long a client that is asked to leave may take to say that it has heard."""


def passed(since_ns: int, seconds: float, now_ns: int) -> bool:
    """Whether something that began `since_ns` has lasted for more than `seconds`; 0 of either: never."""
    return bool(since_ns and seconds) and now_ns - since_ns > seconds * 1e9


def check_client(connection: Connection, limits: GrpcSettings, now_ns: int) -> bool:
    """Whether the client is to be pinged. Raises ConnectionFault if it has been silent for too long."""
    if not connection.acknowledged and passed(connection.opened_ns, limits.handshake_timeout_s, now_ns):
        raise ConnectionFault(ErrorCode.SETTINGS_TIMEOUT, "handshake timeout", "handshake_timeout")
    if passed(connection.pinged_ns, limits.keepalive_timeout_s, now_ns):
        raise ConnectionFault(ErrorCode.NO_ERROR, "keepalive timeout", "keepalive_timeout")
    return not connection.pinged_ns and passed(connection.heard_ns, limits.keepalive_s, now_ns)


def check_stay(connection: Connection, limits: GrpcSettings, now_ns: int) -> None:
    """Ask a connection that is old or idle to leave. Raises ConnectionFault if it does not."""
    if connection.drained_ns:
        if now_ns > connection.drain_until_ns:
            raise ConnectionFault(ErrorCode.NO_ERROR, "grace over", "grace_over")
        if passed(connection.drained_ns, HEARING_S, now_ns):
            connection.finish_drain()
        return
    if not connection.streams and passed(connection.idle_since_ns, limits.idle_timeout_s, now_ns):
        connection.drain(now_ns, limits.max_connection_age_grace_s, "idle")
    elif passed(connection.opened_ns, limits.max_connection_age_s, now_ns):
        connection.drain(now_ns, limits.max_connection_age_grace_s, "old")


def slow_readers(connection: Connection, limits: GrpcSettings, now_ns: int) -> list[Stream]:
    """Streams whose answers the client has not let flow for too long."""
    return [s for s in connection.sender.blocked if passed(s.blocked_ns, limits.send_timeout_s, now_ns)]


def slow_writers(connection: Connection, now_ns: int) -> list[Stream]:
    """Streams whose requests should be here by now."""
    return [s for s in connection.streams.values() if s.due_ns and now_ns > s.due_ns and s.state is State.OPEN]
