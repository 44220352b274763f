"""Our gRPC transport under its clients: grpcio and tritonclient, each sync and asyncio, unary and in streams; and under
tools that are not gRPC's own: h2load, nghttp, curl, and TLS by the standard library.

A tool that is missing skips its test with the reason; under CI it fails.
"""

from __future__ import annotations

import asyncio
import re
import socket
import ssl
import subprocess
from collections.abc import AsyncIterator, Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from queue import Queue
from struct import pack

import grpc
import grpc.aio
import numpy as np
import pytest
import tritonclient.grpc as triton
import tritonclient.grpc.aio as triton_aio
from tritonclient.grpc import service_pb2 as pb
from tritonclient.grpc import service_pb2_grpc

from server.settings import GrpcSettings, TlsSettings
from server.transport.grpcio import GrpcioServer
from server.transport.http2 import frames
from server.transport.http2.server import Http2Server
from server.transport.listen import ListenFailed
from tests.support.fake_dataplane import MODEL, FakeDataPlane
from tests.support.http2_client import INFER, Frame, call_fields, data, headers, message, parse
from tests.support.parts import self_signed, tool


async def run(*command: str) -> str:
    process = await asyncio.create_subprocess_exec(
        *command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL
    )
    out, _ = await asyncio.wait_for(process.communicate(), 60)
    assert process.returncode == 0, out.decode()
    return out.decode()


@pytest.fixture
async def port() -> AsyncIterator[int]:
    server = Http2Server(FakeDataPlane(), "127.0.0.1", GrpcSettings(port=0), TlsSettings())
    yield await server.start()
    await server.stop(1)
    assert not len(server.connections)


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> TlsSettings:
    return self_signed(tmp_path_factory.mktemp("tls"))


def request(id: str = "x", elements: int = 4) -> bytes:
    asked = pb.ModelInferRequest(model_name=MODEL, id=id)
    for name in ("a", "b"):
        asked.inputs.add(name=name, datatype="FP32", shape=[1, elements])
        asked.raw_input_contents.append(np.ones(elements, dtype="<f4").tobytes())
    return bytes(asked.SerializeToString())


async def test_h2load(port: int, tmp_path: Path) -> None:
    """20,000 calls over 4 connections, 32 at a time each: every one is answered."""
    body = tmp_path / "body"
    body.write_bytes(message(request()))
    wanted = ["-n", "20000", "-c", "4", "-m", "32", "-d", str(body), "-H", "content-type: application/grpc"]
    out = await run(tool("h2load"), *wanted, "-H", "te: trailers", f"http://127.0.0.1:{port}{INFER.decode()}")
    assert "20000 succeeded, 0 failed, 0 errored" in out
    assert "20000 2xx" in out


async def test_nghttp(port: int, tmp_path: Path) -> None:
    """nghttp prints the frames of a call: padded, and with its trailers."""
    body = tmp_path / "body"
    body.write_bytes(message(request()))
    wanted = [
        "-v",
        "-n",
        "--padding=16",
        "-d",
        str(body),
        "-H",
        "content-type: application/grpc",
        "-H",
        ":method: POST",
    ]
    out = await run(tool("nghttp"), *wanted, f"http://127.0.0.1:{port}{INFER.decode()}")
    assert re.search(r"grpc-status: .*0", out)
    assert ":status: " in out


async def test_curl(port: int, tmp_path: Path) -> None:
    """A GET, and a body that is not gRPC's, get HTTP's own words; a call by hand gets its answer."""
    curl = [tool("curl"), "-sS", "--http2-prior-knowledge", "-o", str(tmp_path / "out"), "-w", "%{http_code}"]
    url = f"http://127.0.0.1:{port}"
    assert await run(*curl, url + "/") == "405"
    assert "gRPC" in (tmp_path / "out").read_text()
    assert await run(*curl, "-d", "{}", "-H", "content-type: application/json", url + "/x") == "415"
    body = tmp_path / "body"
    body.write_bytes(message(request(elements=200_000)))
    grpc_body = ["--data-binary", f"@{body}", "-H", "content-type: application/grpc", "-H", "te: trailers"]
    assert await run(*curl, *grpc_body, url + INFER.decode()) == "200"
    answer = (tmp_path / "out").read_bytes()
    assert len(pb.ModelInferResponse.FromString(answer[5:]).raw_output_contents[0]) == 800_000


CALLS = 50


def grpcio_sync(address: str) -> None:
    """Calls on threads, one with compression; then a stream whose requests come from an iterator."""
    with grpc.insecure_channel(address) as channel, ThreadPoolExecutor(8) as threads:
        stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
        asked = [pb.ModelInferRequest.FromString(request(str(n))) for n in range(CALLS)]
        ids = [answer.id for answer in threads.map(lambda one: stub.ModelInfer(one, timeout=30), asked)]
        assert ids == [one.id for one in asked]
        large = pb.ModelInferRequest.FromString(request(elements=100_000))
        answer = stub.ModelInfer(large, timeout=30, compression=grpc.Compression.Gzip)
        assert len(answer.raw_output_contents[0]) == 400_000
        streamed = list(stub.ModelStreamInfer(iter(asked), timeout=30))
        assert [one.infer_response.id for one in streamed] == ids


async def grpcio_asyncio(address: str) -> None:
    """Calls at once; then a stream that is written and read by turns."""
    async with grpc.aio.insecure_channel(address) as channel:
        stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
        asked = [pb.ModelInferRequest.FromString(request(str(n))) for n in range(CALLS)]
        answers = await asyncio.gather(*(stub.ModelInfer(one, timeout=30) for one in asked))
        assert [answer.id for answer in answers] == [one.id for one in asked]
        stream = stub.ModelStreamInfer(timeout=30)
        for one in asked:
            await stream.write(one)
            assert (await stream.read()).infer_response.id == one.id
        await stream.done_writing()
        assert await stream.code() is grpc.StatusCode.OK


def tensors() -> list[triton.InferInput]:
    inputs = [triton.InferInput(name, [1, 4], "FP32") for name in ("a", "b")]
    for each in inputs:
        each.set_data_from_numpy(np.ones((1, 4), np.float32))
    return inputs


def tritonclient_sync(address: str) -> None:
    """infer, async_infer, and a stream with its callback."""
    answers: Queue[tuple[triton.InferResult | None, Exception | None]] = Queue()
    with triton.InferenceServerClient(address) as client:
        results = [client.infer(MODEL, tensors(), compression_algorithm="gzip")]
        for _ in range(CALLS):
            client.async_infer(MODEL, tensors(), lambda result, error: answers.put((result, error)))
        client.start_stream(lambda result, error: answers.put((result, error)))
        for _ in range(CALLS):
            client.async_stream_infer(MODEL, tensors())
        for _ in range(2 * CALLS):
            result, error = answers.get(timeout=30)
            assert result is not None, error
            results.append(result)
        client.stop_stream()
    assert all(result.as_numpy("sum").tolist() == [[2, 2, 2, 2]] for result in results)


async def tritonclient_asyncio(address: str) -> None:
    """infer at once, and a stream that asks from a generator."""

    async def asked() -> AsyncIterator[dict[str, object]]:
        for number in range(CALLS):
            yield {"model_name": MODEL, "inputs": tensors(), "request_id": str(number)}

    async with triton_aio.InferenceServerClient(address) as client:
        results = await asyncio.gather(*(client.infer(MODEL, tensors()) for _ in range(CALLS)))
        assert all(result.as_numpy("sum").tolist() == [[2, 2, 2, 2]] for result in results)
        got = [result.get_response().id async for result, error in client.stream_infer(asked()) if error is None]
    assert got == [str(number) for number in range(CALLS)]


@pytest.mark.parametrize("client", [grpcio_sync, grpcio_asyncio, tritonclient_sync, tritonclient_asyncio])
async def test_clients_of_grpc(port: int, client: Callable[[str], Awaitable[None] | None]) -> None:
    """Each is answered in each of the ways in which it can ask."""
    address = f"127.0.0.1:{port}"
    if asyncio.iscoroutinefunction(client):
        await client(address)
    else:
        await asyncio.to_thread(client, address)


@pytest.mark.parametrize("transport", [Http2Server, GrpcioServer])
async def test_tls(certificate: TlsSettings, transport: type[Http2Server] | type[GrpcioServer]) -> None:
    """With a certificate the listener speaks TLS: grpc's client and tritonclient trust it and are answered."""
    server = transport(FakeDataPlane(), "127.0.0.1", GrpcSettings(port=0), certificate)
    port = await server.start()
    credentials = grpc.ssl_channel_credentials(await asyncio.to_thread(Path(certificate.certificate).read_bytes))
    async with grpc.aio.secure_channel(f"localhost:{port}", credentials) as channel:
        stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
        assert (await stub.ModelInfer(pb.ModelInferRequest.FromString(request(elements=100_000)))).id == "x"

    def talk() -> None:
        options = {"ssl": True, "root_certificates": certificate.certificate}
        with triton.InferenceServerClient(f"localhost:{port}", **options) as client:
            assert client.is_server_ready()

    await asyncio.to_thread(talk)
    await server.stop(1)


async def test_tls_demands_h2(certificate: TlsSettings) -> None:
    """A TLS client that does not speak HTTP/2, or no TLS at all, is sent away; the next one is served."""
    server = Http2Server(FakeDataPlane(), "127.0.0.1", GrpcSettings(port=0), certificate)
    port = await server.start()
    context = ssl.create_default_context(cafile=certificate.certificate)
    for protocols in ([], ["http/1.1"]):
        if protocols:
            context.set_alpn_protocols(protocols)
        try:
            reader, writer = await asyncio.open_connection("localhost", port, ssl=context)
            assert await reader.read() == b""
            writer.close()
        except (ssl.SSLError, ConnectionError):
            pass  # Either side may be the one that ends it.
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(frames.PREFACE)
    assert frames.PREFACE not in await reader.read()
    writer.close()
    context.set_alpn_protocols(["h2"])
    reader, writer = await asyncio.open_connection("localhost", port, ssl=context)
    assert parse_first(await reader.readexactly(9)) == frames.SETTINGS
    writer.close()
    await server.stop(1)


def parse_first(header: bytes) -> int:
    return int(frames.read_header(header)[2])


@pytest.mark.parametrize("part", ["certificate", "key", "both"])
@pytest.mark.parametrize("transport", [Http2Server, GrpcioServer])
async def test_tls_that_can_not_be_had(
    certificate: TlsSettings, part: str, transport: type[Http2Server] | type[GrpcioServer]
) -> None:
    """A missing or unreadable file is an error at the start that names it."""
    tls = {
        "certificate": TlsSettings(certificate=certificate.certificate),
        "key": TlsSettings(key=certificate.key),
        "both": TlsSettings(certificate="/nowhere/c.pem", key=certificate.key),
    }[part]
    server = transport(FakeDataPlane(), "127.0.0.1", GrpcSettings(port=0), tls)
    with pytest.raises(ListenFailed, match="/nowhere/c.pem" if part == "both" else "not set"):
        await server.start()
    await server.stop(0)


async def test_too_many_connections() -> None:
    """One connection more than allowed is told so; when another leaves there is room again."""
    server = Http2Server(FakeDataPlane(), "127.0.0.1", GrpcSettings(port=0, max_connections=1), TlsSettings())
    port = await server.start()
    first = await asyncio.open_connection("127.0.0.1", port)
    await first[0].readexactly(9)
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    last = parse(await reader.read())[-1]
    assert (last.kind, last.code) == (frames.GOAWAY, frames.ErrorCode.ENHANCE_YOUR_CALM)
    assert server.connections.closed == {"too_many_connections": 1}
    writer.close()
    first[1].close()
    await first[1].wait_closed()
    while len(server.connections):  # noqa: ASYNC110 - the registry knows no loop
        await asyncio.sleep(0)
    again = await asyncio.open_connection("127.0.0.1", port)
    assert parse_first(await again[0].readexactly(9)) == frames.SETTINGS
    again[1].close()
    await server.stop(1)


async def test_a_client_that_does_not_read() -> None:
    """Answers that a client asks for and never reads are bounded by what the socket's buffers hold and the limit."""
    dataplane = FakeDataPlane()
    limits = GrpcSettings(port=0, send_buffer_bytes=100_000, max_send_bytes=1_000_000, send_timeout_s=0.5)
    server = Http2Server(dataplane, "127.0.0.1", limits, TlsSettings())
    port = await server.start()
    with socket.socket() as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        client.setblocking(False)
        loop = asyncio.get_running_loop()
        await loop.sock_connect(client, ("127.0.0.1", port))
        window = frames.settings({frames.INITIAL_WINDOW_SIZE: 2**31 - 1}) + frames.window_update(0, 2**31 - 65_536)
        await loop.sock_sendall(client, frames.PREFACE + window + frames.SETTINGS_ACK)
        asked = message(request(elements=50_000))
        pieces = [asked[i : i + 16_384] for i in range(0, len(asked), 16_384)]
        sending = asyncio.ensure_future(flood(client, pieces))
        while not server.connections.closed:  # noqa: ASYNC110 - the registry knows no loop
            await asyncio.sleep(0.01)
        sending.cancel()
        await asyncio.wait((sending,))
    assert server.connections.closed == {"slow_reader": 1}
    await server.stop(1)


async def flood(client: socket.socket, pieces: list[bytes]) -> None:
    loop = asyncio.get_running_loop()
    for stream_id in range(1, 2001, 2):
        body = [data(stream_id, piece) for piece in pieces] + [data(stream_id, b"", frames.END_STREAM)]
        await loop.sock_sendall(client, headers(stream_id, call_fields()) + b"".join(body))


async def test_a_fault_is_told_before_the_close(port: int) -> None:
    """A client that breaks the protocol reads GOAWAY and the end of the stream, not a reset."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(frames.PREFACE + frames.settings({}) + frames.frame(frames.DATA, 0, 0, bytes(16_000)) * 20)
    last = parse(await reader.read())[-1]
    assert (last.kind, last.code) == (frames.GOAWAY, frames.ErrorCode.PROTOCOL_ERROR)
    assert last.payload[:4] == pack(">I", 0)
    writer.close()
    await writer.wait_closed()


async def test_draining_while_a_client_is_busy() -> None:
    """Whoever is asked to leave amid its calls gets every answer, and the connection ends without a reset."""
    server = Http2Server(FakeDataPlane(), "127.0.0.1", GrpcSettings(port=0), TlsSettings())
    port = await server.start()
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(frames.PREFACE + frames.settings({}) + frames.SETTINGS_ACK)
    received = b""
    stopping: asyncio.Task[None] | None = None
    asked = 0
    for stream_id in range(1, 2001, 2):
        if stream_id == 1001:
            stopping = asyncio.create_task(server.stop(10))
        writer.write(headers(stream_id) + data(stream_id, message(request()), frames.END_STREAM))
        asked += 1
        received += await reader.read(65_536)
        if ping := next((f for f in whole(received) if f.kind == frames.PING), None):
            writer.write(frames.ping(ping.payload, frames.ACK))
            break
    received += await reader.read()
    assert stopping is not None
    writer.close()
    await stopping
    got = whole(received)
    assert len([f for f in got if f.kind == frames.DATA]) == asked
    goaways = [f for f in got if f.kind == frames.GOAWAY]
    assert [int.from_bytes(f.payload[:4]) for f in goaways] == [2**31 - 1, 2 * asked - 1]


def whole(received: bytes) -> list[Frame]:
    """The frames that are here to their ends."""
    end = 0
    while len(received) - end >= 9:
        high, low, *_ = frames.read_header(received, end)
        if end + 9 + (high << 8 | low) > len(received):
            break
        end += 9 + (high << 8 | low)
    return parse(received[:end])
