"""Which server has which request, which takes the next one, and what is told of all of them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest

from server.scheduler.admission import Outlook
from server.scheduler.flights import Flight, Flights
from server.scheduler.window import Bounds
from server.types import InferRequest
from tests.support.relaying import ManualServer
from tests.support.scheduler import MS, Caller, ManualClock, ManualLoop


class Fleet:
    """Servers with windows of four rows."""

    def __init__(self, servers: int = 2, *, by_rows: bool = True) -> None:
        self.clock = ManualClock()
        self.caller = Caller(self.clock)
        loop = ManualLoop(self.clock)
        self.servers = [ManualServer(f"server{index}", loop) for index in range(servers)]
        self.flights = Flights(Bounds(1, 4, 64), by_rows=by_rows)
        self.flights.serve_by(self.servers)

    def begin(self, server: int = 0, rows: int = 1, expected_ns: int = MS) -> Flight:
        flight = Flight(self.caller.request([1] * rows), self.servers[server], self.clock.now_ns, expected_ns)
        self.flights.begin(flight)
        return flight

    def end(self, flight: Flight, *, answered: bool = True, full: bool = False, late: bool = False) -> None:
        self.flights.end(flight, self.clock.now_ns, answered=answered, full=full, late=late)

    def room(self, rows: int = 1, but: int | None = None) -> int | None:
        """The number of the server that would have it."""
        avoided = None if but is None else self.servers[but]
        server = self.flights.room(self.caller.request([1] * rows), avoided)
        return None if server is None else self.servers.index(server)  # type: ignore[arg-type]

    @property
    def known(self) -> list[int]:
        return [self.servers.index(server) for server in self.flights._windows]  # type: ignore[arg-type]


def test_a_flight_is_work_of_its_server_until_it_ends() -> None:
    """And holds its rows of the window."""
    fleet = Fleet()
    first, second = fleet.begin(0, 3, 10 * MS), fleet.begin(0, 1, 5 * MS)
    window = fleet.flights.window(fleet.servers[0])
    assert (fleet.servers[0].work_ns, window.in_flight) == (15 * MS, 4)
    assert list(fleet.flights.under_way) == [first.request, second.request]
    fleet.end(first)
    assert (fleet.servers[0].work_ns, window.in_flight) == (5 * MS, 1)
    assert list(fleet.flights.under_way.values()) == [second]
    assert fleet.servers[1].work_ns == 0


def test_the_one_with_the_least_work_takes_the_next_and_of_equal_ones_the_one_with_the_fewest_rows() -> None:
    """Of those with room."""
    fleet = Fleet(3)
    fleet.servers[0].work_ns = 5
    fleet.begin(1, 2, 0)
    assert fleet.room() == 2
    fleet.begin(2, 4, 0)
    assert fleet.room(2) == 1
    assert fleet.room(3) == 0
    fleet.begin(0, 4, 0)
    assert (fleet.room(2), fleet.room(3)) == (1, None)


def test_who_refused_it_does_not_get_it_again_where_there_is_another() -> None:
    """A server that is the only one does."""
    assert Fleet(2).room(but=0) == 1
    assert Fleet(1).room(but=0) == 0
    full = Fleet(2)
    full.begin(1, 4)
    assert full.room(but=0) is None, "it waits for the other"


def test_rows_count_only_where_the_servers_merge() -> None:
    """Else a request is a pass, however many rows it has."""
    fleet = Fleet(1, by_rows=False)
    for _ in range(4):
        assert fleet.room(100) == 0
        fleet.begin(0, 100)
    assert fleet.room() is None
    assert fleet.flights.requests == 4


def test_how_many_requests_fit_follows_the_rows_of_late() -> None:
    """Two windows of four rows are eight requests of one row; each one moves the mean by a thirty-second."""
    fleet = Fleet()
    assert fleet.flights.requests == 8
    fleet.end(fleet.begin(0, 33))
    assert fleet.flights.request_rows == 2
    assert fleet.flights.requests == 4
    for _ in range(300):
        fleet.end(fleet.begin())
    assert fleet.flights.requests == pytest.approx(8, rel=0.01)


def test_a_window_is_kept_as_long_as_somebody_has_need_of_it() -> None:
    """While its server has the model, or requests of it; what was learned of it stays until then."""
    fleet = Fleet(3)
    flight, window = fleet.begin(1), fleet.flights.window(fleet.servers[1])
    fleet.flights.serve_by(fleet.servers[:1])
    assert fleet.known == [0, 1]
    fleet.flights.serve_by(fleet.servers[:2])
    assert fleet.flights.window(fleet.servers[1]) is window
    fleet.flights.serve_by(fleet.servers[:1])
    fleet.end(flight)
    assert fleet.known == [0]
    fleet.end(fleet.begin(0))
    assert fleet.known == [0], "it still has the model"


def test_a_server_that_says_that_it_is_full_has_a_smaller_window() -> None:
    """And one that ends half a window of rows for want of time; others do not."""
    for said, size in (({"full": True}, 2), ({"late": True}, 2), ({}, 4)):
        fleet = Fleet()
        fleet.end(fleet.begin(0, 2), answered=False, **said)
        assert fleet.flights.window(fleet.servers[0]).size == size
        assert fleet.flights.window(fleet.servers[1]).size == 4


def test_where_nobody_waits_only_full_windows_go_on_learning() -> None:
    """One with room says nothing of what its server can do."""
    fleet = Fleet()
    for server in (0, 1):
        fleet.end(fleet.begin(server))
    fleet.begin(0, 4)
    fleet.flights.slack()
    full, free = (fleet.flights.window(server) for server in fleet.servers)
    assert (full._since_ns, free._since_ns) == (fleet.clock.now_ns, -1)


def test_admission_is_told_whether_there_is_room_and_how_many_go_at_once() -> None:
    """Without room an answer has to come first; those that are sent once more go before who comes."""
    fleet = Fleet()
    assert fleet.flights.has_room
    assert fleet.flights.outlook(7, 30, False) == Outlook(7, 0, 8, True)
    assert fleet.flights.outlook(7, 30, True) == Outlook(7, 0, 8, False)
    fleet.begin(0, 4)
    assert fleet.flights.has_room
    fleet.begin(1, 4)
    assert not fleet.flights.has_room
    told = fleet.flights.outlook(7, 30, False)
    assert (told.left_ns, told.free) == (30, False)
    assert (told.turn_ns, told.slowdown) == (0, 1.0), "their cores are not ours"


def test_a_close_gives_up_all_and_returns_when_the_last_has_ended() -> None:
    """Without any it returns at once."""

    async def close() -> list[InferRequest]:
        fleet = Fleet()
        await fleet.flights.close(fleet.clock)
        flights = [fleet.begin(0), fleet.begin(1)]
        given_up: list[InferRequest] = []

        def give_up(flight: Flight) -> Callable[[], None]:
            return lambda: given_up.append(flight.request)

        for flight in flights:
            flight.give_up = give_up(flight)
        closing = asyncio.ensure_future(fleet.flights.close(fleet.clock))
        await asyncio.sleep(0)
        assert given_up == [flight.request for flight in flights]
        fleet.end(flights[0], answered=False)
        for _ in range(3):
            await asyncio.sleep(0)
        assert not closing.done()
        fleet.end(flights[1], answered=False)
        await closing
        return given_up

    assert len(asyncio.run(close())) == 2


def test_a_flight_that_was_not_sent_has_nothing_to_give_up() -> None:
    """Nor fails for it."""
    fleet = Fleet()
    fleet.begin().give_up()
