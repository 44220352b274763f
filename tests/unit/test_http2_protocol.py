"""Connections on their sockets: who is not heard for a moment loses nothing by it, and who leaves is counted."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from typing import Any

import pytest

from server.errors import Overloaded, QueueFull, ServingError
from server.proto.forwardpass.v1 import prediction_pb2
from server.settings import GrpcSettings
from server.transport.connections import Connections
from server.transport.http2 import frames
from server.transport.http2.calls import Service
from server.transport.http2.protocol import Http2Protocol
from server.transport.http2.streams import DRAIN_PING
from server.transport.methods import METHODS
from tests.support.fake_dataplane import FakeDataPlane
from tests.support.http2_client import END_STREAM, INFER, call_fields, data, headers, message
from tests.unit.test_http2_grpc import request


class Socket(asyncio.Transport):
    """Keeps what is written, and tells when it is read from again."""

    def __init__(self) -> None:
        super().__init__()
        self.reading = True
        self.resumed = asyncio.Event()
        self.sent = b""

    def write(self, data: Any) -> None:
        self.sent += bytes(data)

    def pause_reading(self) -> None:
        self.reading = False
        self.resumed.clear()

    def resume_reading(self) -> None:
        self.reading = True
        self.resumed.set()

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        return

    def get_write_buffer_size(self) -> int:
        return 0

    def is_closing(self) -> bool:
        return False

    def can_write_eof(self) -> bool:
        return True

    def write_eof(self) -> None:
        return


class Client:
    def __init__(self, outcome: ServingError | None = None, **limits: Any) -> None:
        self.dataplane = FakeDataPlane(outcome=outcome)
        service = Service(self.dataplane, GrpcSettings(**limits), Counter())  # type: ignore[arg-type]
        methods = {method.name.encode(): method for method in METHODS}
        self.socket = Socket()
        self.connections: Connections[Http2Protocol] = Connections(1)
        self.protocol = Http2Protocol(service, methods, self.connections)
        self.protocol.connection_made(self.socket)
        self.protocol.data_received(frames.PREFACE + frames.settings({}) + frames.SETTINGS_ACK)

    def ask(self, stream_id: int, timeout: bytes) -> None:
        call = call_fields(INFER, (b"grpc-timeout", timeout))
        self.protocol.data_received(headers(stream_id, call) + data(stream_id, message(request()), END_STREAM))

    async def settle(self) -> None:
        """What is answered is written in the next turn of the loop."""
        await asyncio.sleep(0)
        await asyncio.sleep(0)


async def test_who_is_told_of_overload_is_heard_again_a_little_later() -> None:
    """The refusal itself goes out at once; what comes meanwhile is read together afterwards."""
    client = Client(Overloaded("add", 200, 90))
    before = len(client.socket.sent)
    client.ask(1, b"100m")
    await client.settle()
    assert len(client.socket.sent) > before
    assert not client.socket.reading
    async with asyncio.timeout(10):
        await client.socket.resumed.wait()
    assert client.socket.reading


async def test_who_is_told_so_of_a_prediction_is_not_heard_for_a_moment_either() -> None:
    """Raw inputs are large, and what comes meanwhile is read together too."""
    client = Client(Overloaded("add", 200, 90))
    item = prediction_pb2.Input(image=prediction_pb2.Image(data=b"x" * 20_000))
    asked = prediction_pb2.PredictRequest(model_name="add", inputs=[item]).SerializeToString()
    call = call_fields(b"/forwardpass.v1.PredictionService/Predict", (b"grpc-timeout", b"100m"))
    whole = message(asked)
    client.protocol.data_received(headers(1, call) + data(1, whole[:16_384]) + data(1, whole[16_384:], END_STREAM))
    for _ in range(5):
        await client.settle()
    assert not client.socket.reading
    async with asyncio.timeout(10):
        await client.socket.resumed.wait()
    assert client.socket.reading


async def test_what_has_waited_in_the_socket_is_as_old_as_it_may_be() -> None:
    """Its deadline counts from the moment at which the server ceased to listen."""
    client = Client(Overloaded("add", 200, 90))
    client.ask(1, b"100m")
    await client.settle()
    async with asyncio.timeout(10):
        await client.socket.resumed.wait()
    client.ask(3, b"100m")
    first, second = client.dataplane.requests
    assert second.received_ns == client.protocol._held_ns
    assert second.received_ns >= first.received_ns
    assert second.deadline_ns == second.received_ns + 100_000_000


@pytest.mark.parametrize(
    ("outcome", "left"),
    [(QueueFull("add", 1), b"100m"), (Overloaded("add", 9, 1), b"10m")],
    ids=["for another reason", "with hardly any time left"],
)
async def test_others_are_heard_all_the_time(outcome: ServingError, left: bytes) -> None:
    """A moment is a part of the request's own time: where that is short, to wait would be too dear."""
    client = Client(outcome)
    client.ask(1, left)
    await client.settle()
    assert client.socket.reading


async def test_a_slow_reader_is_not_heard_because_the_moment_is_over() -> None:
    """Two reasons not to listen: it takes the end of both."""
    client = Client(Overloaded("add", 200, 90))
    client.ask(1, b"100m")
    await client.settle()
    client.protocol.pause_writing()
    hold = client.protocol._hold
    assert hold is not None
    hold.cancel()
    client.protocol._hear()
    assert not client.socket.reading
    client.protocol.resume_writing()
    assert client.socket.reading


async def test_a_connection_that_leaves_because_it_was_idle_is_counted() -> None:
    """When it has heard that it is to, and not before."""
    client = Client(idle_timeout_s=10)
    client.protocol.tick(time.monotonic_ns() + 11 * 10**9)
    assert not client.connections.closed
    client.protocol.data_received(frames.ping(DRAIN_PING, frames.ACK))
    assert client.connections.closed == {"idle": 1}
