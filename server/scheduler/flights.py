"""The requests of one model version that are with other servers: who has which, and who takes the next one.

Each server has a window of its own (`server.scheduler.window`). Of those with room in it the one with the least work
goes first: the time that all requests under way there are expected to take, of all models. No clock.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from typing import Protocol

from server.scheduler.admission import Outlook
from server.scheduler.window import Bounds, Window
from server.types import InferRequest, Outcome

Done = Callable[[Outcome], None]

_WEIGHT = 32
"""A request moves the mean of its rows by a weight-th."""


class Server(Protocol):
    """One of the servers that run a model. Hashed by identity."""

    @property
    def name(self) -> str:
        """The same for the same server, whoever asks."""

    work_ns: int
    """What all requests that it has, of all models, are expected to take together; kept by who sends them."""

    def ask(self, request: InferRequest, done: Done) -> Callable[[], None]:
        """Send a request; `done` is called once, on the event loop, later. What is returned gives the call up: `done`
        is called then too."""


class Flight:
    """A request that a server has."""

    __slots__ = ("begun_ns", "expected_ns", "give_up", "request", "server")

    def __init__(self, request: InferRequest, server: Server, begun_ns: int, expected_ns: int) -> None:
        self.request = request
        self.server = server
        self.begun_ns = begun_ns
        self.expected_ns = expected_ns
        self.give_up: Callable[[], None] = lambda: None


class Flights:
    """Of one model version."""

    def __init__(self, bounds: Bounds, *, by_rows: bool) -> None:
        """`by_rows`: the servers merge requests, so that rows are what they have to do; else a request is, however
        many rows it has."""
        self._bounds = bounds
        self._by_rows = by_rows
        self.request_rows = 1.0
        """Of a request, lately."""
        self._windows: dict[Server, Window] = {}
        """Of the servers that have the model now, and of those that still have requests of it."""
        self.servers: list[Server] = []
        """Those that have the model now."""
        self.under_way: dict[InferRequest, Flight] = {}
        self._landed: asyncio.Event | None = None

    def serve_by(self, servers: Iterable[Server]) -> None:
        """Who has the model from now on. What others have of it goes on."""
        self.servers = list(servers)
        for server in self.servers:
            self._windows.setdefault(server, Window(self._bounds))
        self._forget()

    def _forget(self) -> None:
        for server in [server for server, window in self._windows.items() if not window.in_flight]:
            if server not in self.servers:
                del self._windows[server]

    @property
    def requests(self) -> float:
        """That may be in flight on all servers together, each of as many rows as they have lately."""
        size = sum([self._windows[server].size for server in self.servers])
        return size / self.request_rows if self._by_rows else size

    def window(self, server: Server) -> Window:
        """Of a server that has the model."""
        return self._windows[server]

    def _weight(self, request: InferRequest) -> int:
        return request.rows if self._by_rows else 1

    def room(self, request: InferRequest, but: Server | None = None) -> Server | None:
        """The server for a request, not `but` where there is another one; None: no window has room."""
        servers = [server for server in self.servers if server is not but] or self.servers
        weight = self._weight(request)
        free = [server for server in servers if self._windows[server].fits(weight)]
        return min(free, key=lambda server: (server.work_ns, self._windows[server].in_flight), default=None)

    def begin(self, flight: Flight) -> None:
        self.under_way[flight.request] = flight
        self._windows[flight.server].begin(self._weight(flight.request))
        self.request_rows += (flight.request.rows - self.request_rows) / _WEIGHT
        flight.server.work_ns += flight.expected_ns

    def end(self, flight: Flight, now_ns: int, *, answered: bool, full: bool = False, late: bool = False) -> None:
        """`full`: the server refused it because its own queue was. `late`: its time ended while the server had it."""
        del self.under_way[flight.request]
        flight.server.work_ns -= flight.expected_ns
        window = self._windows[flight.server]
        window.end(self._weight(flight.request), now_ns, answered=answered, late=late)
        if full:
            window.cut()
        if not window.in_flight:
            self._forget()
        if self._landed is not None and not self.under_way:
            self._landed.set()

    def slack(self) -> None:
        """Nobody waits for a place."""
        for window in self._windows.values():
            if window.fits(1):
                window.slack()

    def outlook(self, now_ns: int, answer_ns: int, reruns: bool) -> Outlook:
        """What admission must know: as if each request that may be in flight had an instance, by Little's law.

        `answer_ns`: what an answer takes.
        """
        room = self.has_room
        return Outlook(now_ns, 0 if room else answer_ns, self.requests, room and not reruns)

    @property
    def has_room(self) -> bool:
        """Some server takes one more."""
        return any(self._windows[server].fits(1) for server in self.servers)

    async def close(self, _clock: Callable[[], int]) -> None:
        """Give up what is under way; returns when it has ended."""
        if not self.under_way:
            return
        self._landed = asyncio.Event()
        for flight in list(self.under_way.values()):
            flight.give_up()
        await self._landed.wait()
