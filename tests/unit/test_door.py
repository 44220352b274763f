"""The door of a connection: what its first bytes tell, who gets it, and who is turned away."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from server.settings import HttpSettings
from server.transport.connections import TOO_MANY, Connections
from server.transport.door import Door, Spoken, told
from server.transport.entrance import Entrance
from server.transport.http1.protocol import Http1Protocol
from server.transport.http1.server import Http1Server
from server.transport.http2.frames import PREFACE
from tests.support.http1 import Echo, MemoryTransport, parse_answers

GET = b"GET /x HTTP/1.1\r\nHost: h\r\n\r\n"
LONG_S = 60.0


class Listening(asyncio.Protocol):
    """Stands in for a server's protocol, and keeps what it is given."""

    def __init__(self) -> None:
        self.transport: asyncio.BaseTransport | None = None
        self.received: list[bytes] = []

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        self.received.append(data)


class Server:
    def __init__(self) -> None:
        self.connections: Connections[Any] = Connections(1)
        self.made: list[Listening] = []

    def begin(self) -> None: ...

    def protocol(self) -> Listening:
        self.made.append(Listening())
        return self.made[-1]


class Port:
    """A shared entrance without a socket."""

    def __init__(self, limit: int = 10, patience_s: float = LONG_S) -> None:
        self.grpc, self.rest = Server(), Server()
        servers: dict[Spoken, Server] = {"h2": self.grpc, "http/1.1": self.rest}
        self.entrance = Entrance("127.0.0.1", 0, servers, None, limit=limit, patience_s=patience_s)
        self.doors = self.entrance.doors

    def connect(self) -> tuple[Door, MemoryTransport]:
        door, transport = Door(self.entrance), MemoryTransport()
        transport.protocol = door
        door.connection_made(transport)
        return door, transport


@pytest.mark.parametrize("cut", range(len(PREFACE)))
def test_a_part_of_the_preface_tells_nothing(cut: int) -> None:
    """As long as all bytes are the preface's, either protocol may be meant."""
    assert told(PREFACE[:cut]) is None


@pytest.mark.parametrize("place", range(len(PREFACE)))
def test_the_first_other_byte_tells_http_1(place: int) -> None:
    """It is not waited for more than the first byte that differs, wherever it stands."""
    assert told(PREFACE[:place] + b"\x00") == "http/1.1"


@pytest.mark.parametrize("more", [b"", b"\0\0\0\4\0\0\0\0\0"])
def test_the_whole_preface_tells_http_2(more: bytes) -> None:
    """With or without frames behind it."""
    assert told(PREFACE + more) == "h2"


async def test_nothing_is_lost_of_what_comes_byte_by_byte() -> None:
    """The server of what is spoken gets all bytes, those that told it in one piece; the other server gets none."""
    port = Port()
    for sent, server, first in ((PREFACE + b"frames", port.grpc, PREFACE), (b"PUT /x", port.rest, b"PU")):
        _, transport = port.connect()
        for byte in sent:
            assert transport.protocol is not None
            transport.protocol.data_received(bytes((byte,)))  # type: ignore[attr-defined]
        [listening] = server.made
        assert (b"".join(listening.received), listening.received[0]) == (sent, first)
        assert listening.transport is transport
    assert len(port.doors) == 0


async def test_what_is_handed_over_has_no_deadline_any_more() -> None:
    """Silence behind the first bytes is the server's business."""
    port = Port(patience_s=0.01)
    door, transport = port.connect()
    door.data_received(GET)
    await asyncio.sleep(0.03)

    assert not transport.is_closing()
    assert not port.doors.closed


@pytest.mark.parametrize("sent", [b"", b"PRI * HTTP/2.0\r\n"])
async def test_silence_ends_a_connection(sent: bytes) -> None:
    """Whoever has not said in time what he speaks is cut off and counted, also amid the preface."""
    port = Port(patience_s=0.01)
    door, transport = port.connect()
    door.data_received(sent)
    async with asyncio.timeout(5):
        while not transport.aborted:  # noqa: ASYNC110 - a transport in memory tells nobody
            await asyncio.sleep(0.001)

    assert port.doors.closed == {"silent": 1}
    assert len(port.doors) == 0


async def test_who_leaves_without_a_word_is_not_counted() -> None:
    """A look whether the port is open is nobody's fault, and frees its place."""
    port = Port()
    door, _ = port.connect()
    assert door.eof_received() is False
    door.connection_lost(None)

    assert not port.doors.closed
    assert len(port.doors) == 0


async def test_there_are_no_more_doors_than_the_limit() -> None:
    """One more is closed and counted; a place is free when another has said what it speaks."""
    port = Port(limit=1)
    first, _ = port.connect()
    _, second = port.connect()
    assert second.aborted
    assert port.doors.closed == {TOO_MANY: 1}
    first.data_received(GET)
    _, third = port.connect()

    assert not third.closed


async def test_closing_ends_those_who_have_said_nothing() -> None:
    """At a shutdown they are closed at once, and who comes late; what was handed over is left to its server."""
    port = Port()
    _, silent = port.connect()
    door, served = port.connect()
    door.data_received(GET)
    port.entrance.close()
    _, late = port.connect()

    assert (silent.aborted, late.aborted, served.is_closing()) == (True, True, False)
    assert not port.doors.closed


async def test_a_server_that_is_full_says_so_itself() -> None:
    """The limits of REST and of gRPC hold on a shared port: who is over one is told in its own protocol."""
    rest = Http1Server(Echo(), "127.0.0.1", 0, HttpSettings(max_connections=1))
    entrance = Entrance("127.0.0.1", 0, {"h2": Server(), "http/1.1": rest}, None, limit=10, patience_s=LONG_S)
    transports = [MemoryTransport() for _ in range(2)]
    for transport in transports:
        door = transport.protocol = Door(entrance)
        door.connection_made(transport)
        door.data_received(GET)

    statuses = [parse_answers(transport.sent)[0].status for transport in transports]
    assert statuses == [200, 503]
    assert rest.connections.closed == {TOO_MANY: 1}
    assert isinstance(transports[0].protocol, Http1Protocol)
