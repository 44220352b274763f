"""gRPC and REST on one port, and the TLS of all ports, under real clients and on both event loops."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import socket
import ssl
import struct
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import httpx
import pytest
import uvloop
from tritonclient.grpc import service_pb2 as pb
from tritonclient.grpc import service_pb2_grpc

from server.settings import GrpcSettings, HttpSettings, Settings, TlsSettings
from server.transport.accept import Acceptor
from server.transport.entrance import Entrance, shared_entrance
from server.transport.http2 import frames
from server.transport.http2.server import Http2Server
from server.transport.rest import RestServer
from tests.support.fake_dataplane import FakeDataPlane
from tests.support.parts import self_signed, tool

Run = Callable[[Callable[[], Awaitable[None]]], None]
GET = b"GET /v2/health/live HTTP/1.1\r\nHost: x\r\n\r\n"
CALLS = 2000


@pytest.fixture(params=["asyncio", "uvloop"])
def run(request: pytest.FixtureRequest) -> Run:
    """Runs a coroutine on the loop of the standard library, or on the one that serves."""

    def on_loop(main: Callable[[], Awaitable[None]]) -> None:
        factory = uvloop.new_event_loop if request.param == "uvloop" else None
        with asyncio.Runner(loop_factory=factory) as runner:
            runner.run(asyncio.wait_for(main(), 60))

    return on_loop


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> TlsSettings:
    return self_signed(tmp_path_factory.mktemp("tls"))


@contextlib.asynccontextmanager
async def serving(tls: TlsSettings | None = None, patience_s: float = 10.0) -> AsyncIterator[tuple[int, Entrance]]:
    """Both servers on one port, which is the system's choice here."""
    dataplane = FakeDataPlane()
    settings = Settings(
        http=HttpSettings(port=1),
        grpc=GrpcSettings(port=1, handshake_timeout_s=patience_s),
        tls=tls or TlsSettings(),
    )
    rest = RestServer(dataplane, "127.0.0.1", settings.http)  # type: ignore[arg-type]
    grpc_server = Http2Server(dataplane, "127.0.0.1", settings.grpc, TlsSettings())  # type: ignore[arg-type]
    entrance = shared_entrance(settings, rest.listener, grpc_server)
    entrance._port = 0
    try:
        yield await entrance.start(), entrance
    finally:
        entrance.close()
        await asyncio.gather(rest.stop(1), grpc_server.stop(1))
        await asyncio.sleep(0)
        assert entrance.open_connections() == 0


async def output(*command: str) -> str:
    process = await asyncio.create_subprocess_exec(
        *command, stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT
    )
    out, _ = await asyncio.wait_for(process.communicate(), 50)
    assert process.returncode == 0, out.decode()
    return out.decode()


async def live(channel: grpc.aio.Channel) -> bool:
    asked = service_pb2_grpc.GRPCInferenceServiceStub(channel).ServerLive(pb.ServerLiveRequest(), timeout=20)
    return bool((await asked).live)


async def closed(entrance: Entrance, causes: dict[str, int]) -> None:
    """Wait until so many were turned away, and no others."""
    async with asyncio.timeout(10):
        while sum(entrance.closed.values()) < sum(causes.values()):  # noqa: ASYNC110 - a count tells nobody
            await asyncio.sleep(0.01)
    assert entrance.closed == causes


def test_each_client_gets_what_it_speaks(run: Run) -> None:
    """grpcio, httpx, curl by HTTP/1.1, and curl by HTTP/2, beside each other on one port."""

    async def main() -> None:
        async with serving() as (port, entrance), httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}") as rest:
            async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
                assert await live(channel)
                assert (await rest.get("/v2/health/live")).status_code == 200
                assert await live(channel)
            url = f"http://127.0.0.1:{port}/v2/health/live"
            curl = [tool("curl"), "-sS", "-o", "/dev/null", "-w", "%{http_version} %{http_code}", url]
            assert await output(*curl) == "1.1 200"
            # gRPC's server answers what is no call in HTTP's words.
            assert await output(*curl, "--http2-prior-knowledge") == "2 405"
            assert not entrance.closed

    run(main)


def test_an_upgrade_to_h2c_is_ignored(run: Run) -> None:
    """RFC 9113 has no Upgrade any more: who asks for it is answered in HTTP/1.1."""

    async def main() -> None:
        async with serving() as (port, _):
            url = f"http://127.0.0.1:{port}/v2/health/live"
            curl = [tool("curl"), "-sS", "--http2", "-o", "/dev/null", "-w", "%{http_version} %{http_code}", url]
            assert await output(*curl) == "1.1 200"

    run(main)


def test_many_connections_of_both_kinds(run: Run, tmp_path: Path) -> None:
    """h2load by HTTP/1.1 and by HTTP/2 at once, over 20 connections each: every request is answered."""

    async def main() -> None:
        body = tmp_path / "body"
        body.write_bytes(struct.pack(">BI", 0, 0))
        many = [tool("h2load"), "-n", str(CALLS), "-c", "20"]
        call = ["-d", str(body), "-H", "content-type: application/grpc", "-H", "te: trailers"]
        async with serving() as (port, entrance):
            url = f"http://127.0.0.1:{port}"
            outs = await asyncio.gather(
                output(*many, "--h1", f"{url}/v2/health/live"),
                output(*many, "-m", "8", *call, f"{url}/inference.GRPCInferenceService/ServerLive"),
            )
            for out in outs:
                assert f"{CALLS} succeeded, 0 failed, 0 errored" in out
                assert f"{CALLS} 2xx" in out
            assert not entrance.closed

    run(main)


def test_tls_tells_by_alpn_and_else_by_the_preface(run: Run, certificate: TlsSettings) -> None:
    """curl offers h2 or http/1.1; a client without ALPN is served as what it sends."""
    trust = ssl.create_default_context(cafile=certificate.certificate)
    root = Path(certificate.certificate).read_bytes()

    async def main() -> None:
        async with serving(certificate) as (port, entrance):
            credentials = grpc.ssl_channel_credentials(root)
            async with grpc.aio.secure_channel(f"localhost:{port}", credentials) as channel:
                assert await live(channel)
            url = f"https://localhost:{port}/v2/health/live"
            curl = [tool("curl"), "-sS", "--cacert", certificate.certificate, "-o", "/dev/null"]
            curl += ["-w", "%{http_version} %{http_code}", url]
            assert await output(*curl, "--http1.1") == "1.1 200"
            assert await output(*curl, "--http2") == "2 405"
            assert await output(*curl, "--no-alpn", "--http1.1") == "1.1 200"
            reader, writer = await asyncio.open_connection("localhost", port, ssl=trust)
            writer.write(frames.PREFACE + frames.settings({}))
            assert frames.read_header(await reader.readexactly(9))[2] == frames.SETTINGS
            writer.close()
            assert not entrance.closed

    run(main)


def test_bytes_behind_the_handshake_are_not_lost(run: Run, certificate: TlsSettings) -> None:
    """A client that sends its request with the last bytes of the handshake is answered, many times over."""
    trust = ssl.create_default_context(cafile=certificate.certificate)

    async def main() -> None:
        async with serving(certificate) as (port, _):
            for _ in range(20):
                reader, writer = await asyncio.open_connection("127.0.0.1", port)
                incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
                client = trust.wrap_bio(incoming, outgoing, server_hostname="localhost")
                while True:
                    try:
                        client.do_handshake()
                        break
                    except ssl.SSLWantReadError:
                        writer.write(outgoing.read())
                        incoming.write(await reader.read(65_536))
                client.write(GET)
                writer.write(outgoing.read())
                answer = b""
                while b"\r\n\r\n" not in answer:
                    incoming.write(await reader.read(65_536))
                    with contextlib.suppress(ssl.SSLWantReadError):
                        answer += client.read(65_536)
                assert answer.startswith(b"HTTP/1.1 200")
                writer.close()

    run(main)


Start = Callable[[TlsSettings], Awaitable[tuple[Entrance, int, Callable[[], Awaitable[None]]]]]


async def start_rest(tls: TlsSettings) -> tuple[Entrance, int, Callable[[], Awaitable[None]]]:
    settings = HttpSettings(port=0, head_timeout_s=0.5)
    server = RestServer(FakeDataPlane(), "127.0.0.1", settings, tls)  # type: ignore[arg-type]
    return server.listener.entrance, await server.start(), lambda: server.stop(1)


async def start_grpc(tls: TlsSettings) -> tuple[Entrance, int, Callable[[], Awaitable[None]]]:
    settings = GrpcSettings(port=0, handshake_timeout_s=0.5)
    server = Http2Server(FakeDataPlane(), "127.0.0.1", settings, tls)  # type: ignore[arg-type]
    return server.entrance, await server.start(), lambda: server.stop(1)


async def start_shared(tls: TlsSettings) -> tuple[Entrance, int, Callable[[], Awaitable[None]]]:
    stack = contextlib.AsyncExitStack()
    port, entrance = await stack.enter_async_context(serving(tls, 0.5))
    return entrance, port, stack.aclose


@pytest.mark.parametrize("start", [start_rest, start_grpc, start_shared])
def test_handshakes_that_fail_are_counted(run: Run, certificate: TlsSettings, start: Start) -> None:
    """Cleartext, a client that does not trust us, and one that says nothing; but not one that only looks by."""

    async def main() -> None:
        entrance, port, stop = await start(certificate)
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(GET)
        with contextlib.suppress(ConnectionError):
            assert b"HTTP" not in await reader.read()
        writer.close()
        await closed(entrance, {"tls": 1})
        with pytest.raises(AssertionError, match="self-signed certificate"):
            await output(tool("curl"), "-sS", f"https://localhost:{port}/")
        await closed(entrance, {"tls": 2})
        _, passing = await asyncio.open_connection("127.0.0.1", port)
        passing.close()
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        with contextlib.suppress(ConnectionError):
            assert await reader.read() == b""
        writer.close()
        await closed(entrance, {"tls": 3})
        assert len(entrance.doors) == 0
        await stop()

    run(main)


def test_a_shutdown_amid_a_handshake(run: Run, certificate: TlsSettings) -> None:
    """Who is amid its handshake, or has said nothing behind it, is let go at once, and is nobody's fault."""
    trust = ssl.create_default_context(cafile=certificate.certificate)

    async def main() -> None:
        async with serving(certificate) as (port, entrance):
            shaking, first = await asyncio.open_connection("127.0.0.1", port)
            silent, second = await asyncio.open_connection("localhost", port, ssl=trust)
            async with asyncio.timeout(10):
                while not (len(entrance.doors) and len(entrance._handshakes)):  # noqa: ASYNC110 - nor a registry
                    await asyncio.sleep(0.01)
            entrance.close()
            for reader, writer in ((shaking, first), (silent, second)):
                with contextlib.suppress(ConnectionError, ssl.SSLError):
                    assert await reader.read() == b""
                writer.close()
            assert not entrance.closed

    run(main)


class Exhausted(socket.socket):
    """A listening socket of a process that has no descriptor left for its first connection."""

    tries = 0

    def accept(self) -> tuple[socket.socket, Any]:
        self.tries += 1
        if self.tries == 1:
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
        return super().accept()


def test_descriptors_that_run_out_stop_nobody_for_good(run: Run, caplog: pytest.LogCaptureFixture) -> None:
    """It is told in the log, not tried again at once, and who waits is served when there are some again."""

    async def main() -> None:
        taken: asyncio.Queue[socket.socket] = asyncio.Queue()
        listener = Exhausted()
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        acceptor = Acceptor(listener, taken.put_nowait)
        reader, writer = await asyncio.open_connection(*listener.getsockname())
        began_s = time.monotonic()
        with await taken.get() as connection:
            assert time.monotonic() - began_s > 0.5
            assert not connection.getblocking()
        assert (listener.tries, await reader.read()) == (3, b"")
        writer.close()
        acceptor.close()

    run(main)
    assert "can't accept connections: Too many open files" in caplog.text


@pytest.mark.parametrize("start", [start_rest, start_grpc, start_shared])
@pytest.mark.parametrize("tls", [False, True], ids=["cleartext", "tls"])
def test_who_comes_while_the_loop_is_busy_waits(run: Run, certificate: TlsSettings, start: Start, tls: bool) -> None:
    """500 connect before the server accepts one: none is refused, or left to try again."""

    async def main() -> None:
        _, port, stop = await start(certificate if tls else TlsSettings())
        # Nothing here awaits: the system alone takes them in.
        clients = [socket.create_connection(("127.0.0.1", port), timeout=0.5) for _ in range(500)]
        for client in clients:
            client.close()
        await stop()

    run(main)
