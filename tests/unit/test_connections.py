"""The registry of a listener's connections: its limit, its counts."""

from __future__ import annotations

from server.transport.connections import TOO_MANY, Connections


def test_no_more_than_the_limit_are_admitted() -> None:
    """One more than the limit is refused and counted; a place that is freed is given anew."""
    connections: Connections[str] = Connections(2)

    assert [connections.admit(name) for name in "abc"] == [True, True, False]
    assert connections.closed == {TOO_MANY: 1}
    connections.discard("a")
    assert connections.admit("c")
    assert list(connections) == ["b", "c"]


def test_discarding_is_harmless() -> None:
    """One that was never admitted may be discarded, and all may be while they are looked at."""
    connections: Connections[str] = Connections(2)
    connections.admit("a")
    connections.discard("never there")
    for connection in connections:
        connections.discard(connection)

    assert (len(connections), "a" in connections) == (0, False)


def test_causes_are_counted_apart() -> None:
    """Each cause for which the server ends a connection has its own count."""
    connections: Connections[str] = Connections(1)
    for cause in ("idle", "idle", "rapid_reset"):
        connections.count_closed(cause)

    assert connections.closed == {"idle": 2, "rapid_reset": 1}
