"""Calls leave nothing to the garbage collector, by whatever way they come and however they end: a whole server in this
process, the collector off, and what it would find after many calls.

What waits for the collector is memory that grows until it looks, and a pause of everybody when it does.
"""

from __future__ import annotations

import asyncio
import gc
import gzip
import json
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping
from functools import partial
from pathlib import Path

import numpy as np
import uvloop

from loadtests.soak import h2, http
from loadtests.soak.models import STEADY, save
from loadtests.soak.sockets import closed, finish, opened
from loadtests.soak.steady import Asked
from server.app import Server
from server.environment import load_settings
from server.proto.forwardpass.v1 import prediction_pb2
from server.transport.http2 import frames
from tests.e2e.conftest import REPOSITORY

COUNT = 40
INFER = f"/v2/models/{STEADY}/infer"
PREDICT = "/v2/models/digits/predict"
PICTURE = (REPOSITORY / "digits" / "example.png").read_bytes()
IMAGE = {"Content-Type": "image/png"}
JSON = json.dumps({"inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 30], "data": [0.5] * 30}]}).encode()
RAW = np.full(30, 0.5, np.float32).tobytes()
SAYS_RAW = json.dumps(
    {"inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 30], "parameters": {"binary_data_size": len(RAW)}}]}
).encode()
BINARY = {"Inference-Header-Content-Length": str(len(SAYS_RAW))}


Found = dict[str, Counter[str]]
"""What the collector found, by the call and the type; of those calls alone that left something each time."""


def in_a_server(folder: Path, calls: Callable[[Asked], Awaitable[Found]]) -> Found:
    """Make the calls to a server of a tiny model and the shipped classifier of pictures, in this process, on the loop
    that serves: asyncio's own has transports that hold themselves."""
    save(folder / "models", tiny=True)
    ports = {name: {"port": 0} for name in ("http", "grpc", "metrics")}
    settings = load_settings({**ports, "repository": {"path": [str(folder / "models")]}})
    row = np.full((1, 30), 0.5, np.float32)

    async def main() -> Found:
        server = Server(settings)
        await server.start()
        # What is there by now need not be looked through each time.
        gc.freeze()
        try:
            return await calls(Asked(*(f"127.0.0.1:{server.ports[name]}" for name in ("grpc", "http")), row, row))
        finally:
            await server.drain()

    return uvloop.run(main())


async def left_by(call: Callable[[], Awaitable[None]], count: int = COUNT) -> Counter[str]:
    """What the collector finds after so many calls, by type."""
    for _ in range(3):
        await call()
    await asyncio.sleep(0.05)
    gc.collect()
    gc.disable()
    try:
        for _ in range(count):
            await call()
        await asyncio.sleep(0.05)
        gc.set_debug(gc.DEBUG_SAVEALL)
        gc.collect()
        return Counter(type(thing).__qualname__ for thing in gc.garbage)
    finally:
        gc.set_debug(0)
        gc.garbage.clear()
        gc.enable()


async def found_after(calls: Mapping[str, Callable[[], Awaitable[None]]]) -> Found:
    """Something of the loop's own may be found, once; not something of each call."""
    left = {name: await left_by(call) for name, call in calls.items()}
    return {name: found for name, found in left.items() if found.total() >= COUNT}


REST = {
    "JSON": (http.request(INFER, JSON, {}), 200),
    "binary": (http.request(INFER, SAYS_RAW + RAW, BINARY), 200),
    "compressed": (http.request(INFER, gzip.compress(JSON), {"Content-Encoding": "gzip"}), 200),
    "with a deadline": (http.request(INFER, JSON, {"X-Request-Timeout": "60000"}), 200),
    "explained": (http.request(INFER, JSON, {"X-Explain": "1"}), 200),
    "predict": (http.request(PREDICT, PICTURE, IMAGE), 200),
    "predict, explained": (http.request(PREDICT, PICTURE, {**IMAGE, "X-Explain": "1"}), 200),
    "no picture": (http.request(PREDICT, b"x", IMAGE), 400),
    "no JSON": (http.request(INFER, b"{", {}), 400),
    "a wrong shape": (http.request(INFER, JSON.replace(b"30]", b"3]"), {}), 400),
    "an unknown model": (http.request("/v2/models/nobody/infer", JSON, {}), 404),
    "an unknown path": (http.request("/nowhere", b"", {}), 404),
    "the index": (http.request("/v2/repository/index", b"", {}), 200),
    "a load that is refused": (http.request(f"/v2/repository/models/{STEADY}/load", b"", {}), 503),
}


def test_no_call_of_rest_leaves_a_cycle(tmp_path: Path) -> None:
    """Answers, refusals and errors, one after the other on one connection."""

    async def calls(server: Asked) -> Found:
        async with await http.Connection.open(server.http) as connection:

            async def post(data: bytes, wanted: int) -> None:
                assert (await connection.post(data))[0] == wanted

            return await found_after({name: partial(post, *asked) for name, asked in REST.items()})

    assert in_a_server(tmp_path, calls) == {}


LEAVING = {
    "REST: at once": (False, b""),
    "REST: behind a request": (False, http.request(INFER, JSON, {})),
    "REST: in the middle of a body": (False, http.request(INFER, JSON, {})[:-9]),
    "REST: behind a picture": (False, http.request(PREDICT, PICTURE, IMAGE)),
    "REST: after broken HTTP": (False, b"\0\r\n\r\n"),
    "gRPC: at once": (True, h2.GREETING),
    "gRPC: behind a call": (True, h2.GREETING + h2.call(1, RAW)),
    "gRPC: behind a head": (True, h2.GREETING + h2.head(1)),
    "gRPC: in a stream": (True, h2.GREETING + h2.head(1, path=h2.STREAM) + h2.message(1, b"")),
    "gRPC: after broken frames": (True, h2.GREETING + frames.frame(frames.DATA, 0, 5, b"x")),
    "gRPC: after broken HPACK": (True, h2.GREETING + frames.frame(frames.HEADERS, 4, 1, b"\xff\xff\xff\xff\xff")),
    "gRPC: without a greeting": (True, b"GET / HTTP/1.1\r\n\r\n"),
}


def test_no_connection_leaves_a_cycle(tmp_path: Path) -> None:
    """However far the client came before it left."""

    async def calls(server: Asked) -> Found:
        async def leave(is_grpc: bool, data: bytes) -> None:
            reader, writer = await opened(server.grpc if is_grpc else server.http)
            writer.write(data)
            await finish(reader, writer)

        return await found_after({name: partial(leave, *sent) for name, sent in LEAVING.items()})

    assert in_a_server(tmp_path, calls) == {}


Part = Callable[[int], bytes]
"""The bytes of a part of a call, by its stream."""


class Channel:
    """One connection of gRPC, one call at a time."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer
        self._stream = -1
        writer.write(h2.GREETING)

    def send(self, *parts: Part) -> int:
        self._stream += 2
        self._writer.write(b"".join(part(self._stream) for part in parts))
        return self._stream

    async def call(self, *parts: Part) -> None:
        """Returns when the call has ended."""
        self.send(*parts)
        while not (await h2.frame_of(self._reader, frames.HEADERS, frames.DATA))[1] & frames.END_STREAM:
            pass

    async def cancelled(self, *parts: Part) -> None:
        """The call is taken in, then cancelled."""
        stream = self.send(*parts, lambda _stream: frames.ping(bytes(8)))
        await h2.frame_of(self._reader, frames.PING)
        self._writer.write(frames.rst_stream(stream, frames.ErrorCode.CANCEL))
        await asyncio.sleep(0.001)


def whole(data: bytes, *more: h2.Field, path: bytes = h2.INFER) -> Part:
    """A call of one message."""
    return lambda stream: h2.head(stream, *more, path=path) + h2.message(stream, data, frames.END_STREAM)


def begun(*messages: bytes) -> Part:
    """A ModelStreamInfer of which more might come."""
    return lambda stream: h2.head(stream, path=h2.STREAM) + b"".join(h2.message(stream, each) for each in messages)


def ended(stream: int) -> bytes:
    return frames.frame(frames.DATA, frames.END_STREAM, stream)


def test_no_call_of_grpc_leaves_a_cycle(tmp_path: Path) -> None:
    """Of one message or of streams, answered, refused, out of time, or cancelled."""
    asked = prediction_pb2.PredictRequest(model_name="digits")
    asked.inputs.add().image.data = PICTURE
    picture, predict = asked.SerializeToString(), b"/forwardpass.v1.PredictionService/Predict"
    method = b"/inference.GRPCInferenceService/%s"
    explain, no_time, little_time = (b"x-explain", b"1"), (b"grpc-timeout", b"1n"), (b"grpc-timeout", b"1m")

    async def calls(server: Asked) -> Found:
        good, bad = server.message(), server.message("nobody")
        reader, writer = await opened(server.grpc)
        channel = Channel(reader, writer)
        made: dict[str, Callable[[], Awaitable[None]]] = {
            "infer": partial(channel.call, whole(good)),
            "explained": partial(channel.call, whole(good, explain)),
            "an unknown model": partial(channel.call, whole(bad)),
            "no message": partial(channel.call, whole(b"\xff\xff")),
            "out of time": partial(channel.call, whole(good, no_time)),
            "cancelled": partial(channel.cancelled, whole(good)),
            "explained, cancelled": partial(channel.cancelled, whole(good, explain)),
            "predict": partial(channel.call, whole(picture, path=predict)),
            "predict, out of time": partial(channel.call, whole(picture, little_time, path=predict)),
            "predict, cancelled": partial(channel.cancelled, whole(picture, path=predict)),
            "an unknown method": partial(channel.call, whole(b"", path=b"/nobody/Asks")),
            "a stream": partial(channel.call, begun(good, bad, good), ended),
            "a stream with no message": partial(channel.call, begun(good, b"\xff\xff"), ended),
            "a stream, cancelled": partial(channel.cancelled, begun(good, good)),
            "a watch, cancelled": partial(channel.cancelled, whole(b"", path=b"/grpc.health.v1.Health/Watch")),
            "statistics": partial(channel.call, whole(b"", path=method % b"ModelStatistics")),
            "liveness": partial(channel.call, whole(b"", path=method % b"ServerLive")),
        }
        found = await found_after(made)
        await closed(writer)
        return found

    assert in_a_server(tmp_path, calls) == {}
