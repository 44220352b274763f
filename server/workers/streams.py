"""Responses of one request that cross a link as they come: what the engine process may have on the way to its reader.

A front says of every piece when its own caller takes another (`Kind.TAKEN`), which is at once, or when a slow reader
has read. Until then it counts, and whoever writes is let go on while few do: so that a slow reader holds up its own
request there as it would here, and a front that stands still holds up all of its own.
"""

from __future__ import annotations

from collections.abc import Callable

from server.types import InferResponse

_ON_THE_WAY = 16
"""Pieces that are not said to be taken. A step of a text is one, and a link is crossed in less time than that."""


class Streamed:
    """The caller of a request in the engine process, for the one in a front."""

    __slots__ = ("_go_on", "_out", "_send", "number")

    def __init__(self, number: int, send: Callable[[int, InferResponse], None]) -> None:
        self.number = number
        self._send = send
        self._out = 0
        self._go_on: Callable[[], None] | None = None

    def take(self, response: InferResponse, go_on: Callable[[], None]) -> None:
        """As `Taker.take`."""
        self._out += 1
        self._send(self.number, response)
        self._go_on = go_on
        self._make_room()

    def taken(self) -> None:
        """Its front says that its caller takes another."""
        self._out -= 1
        self._make_room()

    def _make_room(self) -> None:
        if self._go_on is not None and self._out < _ON_THE_WAY:
            go_on, self._go_on = self._go_on, None
            go_on()
