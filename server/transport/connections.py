"""The open connections of one listener: how many there may be, and why some were turned away or closed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from typing import Generic, TypeVar

C = TypeVar("C")

TOO_MANY = "too_many_connections"
"""The cause of a refusal here; all other causes are the transports' own words."""


class Connections(Generic[C]):
    """At most `limit` connections at a time. `closed` counts those that the server ended for a fault, by cause."""

    def __init__(self, limit: int, closed: Counter[str] | None = None) -> None:
        """`closed`: where to count, if that is another's; None: apart."""
        self._limit = limit
        self._open: dict[C, None] = {}  # A set that keeps the order of arrival.
        self.closed: Counter[str] = Counter() if closed is None else closed
        self.changed: Callable[[], None] | None = None
        """Called when one was taken in, turned away or is gone: for whoever hands connections to this process."""

    def admit(self, connection: C) -> bool:
        """Take it in; False, and counted as `TOO_MANY`, if there are as many as may be."""
        if len(self._open) >= self._limit:
            self.closed[TOO_MANY] += 1
            self._tell()
            return False
        self._open[connection] = None
        self._tell()
        return True

    def discard(self, connection: C) -> None:
        """It is gone. One that was never admitted is no error."""
        self._open.pop(connection, None)
        self._tell()

    def _tell(self) -> None:
        if self.changed is not None:
            self.changed()

    def count_closed(self, cause: str) -> None:
        self.closed[cause] += 1

    def __len__(self) -> int:
        return len(self._open)

    def __contains__(self, connection: object) -> bool:
        return connection in self._open

    def __iter__(self) -> Iterator[C]:
        """Those open now, oldest first; they may be discarded while this runs."""
        return iter(list(self._open))
