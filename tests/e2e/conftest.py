"""A real server process on free ports of the loopback, as `make serve` starts it."""

from __future__ import annotations

import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
REPOSITORY = ROOT / "model_repository"


@dataclass
class ServerProcess:
    """A running server; `banner` is what it printed when it was ready."""

    process: subprocess.Popen[bytes]
    banner: str
    log: Path

    def port(self, listener: str) -> int:
        match = re.search(rf"{listener}\s+\S*?:(\d+)", self.banner)
        assert match, self.banner
        return int(match[1])

    @property
    def http(self) -> str:
        return f"http://127.0.0.1:{self.port('REST')}"

    @property
    def grpc(self) -> str:
        return f"127.0.0.1:{self.port('gRPC')}"

    @property
    def metrics(self) -> str:
        return f"http://127.0.0.1:{self.port('metrics')}/metrics"

    def terminate(self) -> int:
        """SIGTERM; the exit status."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(60)


StartServer = Callable[..., ServerProcess]


def on_one_port() -> list[str]:
    """The flags of REST and gRPC on one port, which is free now."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = str(free.getsockname()[1])
    return ["--http-port", port, "--grpc-port", port]


def start(log: Path, *flags: str, repository: Path | str = REPOSITORY, deadline_s: float = 60) -> ServerProcess:
    ports = ["--http-port", "0", "--grpc-port", "0", "--metrics-port", "0"]
    command = [sys.executable, "-m", "server", "serve", "--model-repository", str(repository), *ports, *flags]
    began = time.monotonic()
    out = log.with_suffix(".out")
    with log.open("w") as stderr, out.open("w") as stdout:
        process = subprocess.Popen(command, cwd=ROOT, stdout=stdout, stderr=stderr)
    # The banner is written at once, behind everything that can fail, and ends with an empty line.
    while not (banner := out.read_text()).endswith("\n\n"):
        if process.poll() is not None or time.monotonic() > began + deadline_s:
            process.kill()
            process.wait()
            pytest.fail(f"the server did not start:\n{log.read_text()}")
        time.sleep(0.01)
    return ServerProcess(process, banner, log)


@pytest.fixture
def start_server(tmp_path: Path) -> Iterator[StartServer]:
    """Start a server with these flags; what still runs at the end of the test is ended."""
    running: list[ServerProcess] = []

    def factory(*flags: str, repository: Path | str = REPOSITORY) -> ServerProcess:
        running.append(start(tmp_path / f"server{len(running)}.log", *flags, repository=repository))
        return running[-1]

    yield factory
    for server in running:
        end(server)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    """One server of the committed models for a whole module; it must be alive at the end."""
    running = start(tmp_path_factory.mktemp("server") / "server.log")
    yield running
    alive = running.process.poll() is None
    end(running)
    assert alive, running.log.read_text()


def end(server: ServerProcess) -> None:
    if server.process.poll() is None:
        server.process.kill()
        server.process.wait(10)


@contextmanager
def by_transport(root: Path) -> Iterator[Callable[[str], ServerProcess]]:
    """Gives the server of `root`/models by a gRPC transport, started when it is first asked for; each must be alive at
    the end."""
    running: dict[str, ServerProcess] = {}

    def of(transport: str) -> ServerProcess:
        if transport not in running:
            flags = ("--grpc-transport", transport)
            running[transport] = start(root / f"{transport}.log", *flags, repository=root / "models")
        return running[transport]

    try:
        yield of
        alive = [server.process.poll() is None for server in running.values()]
    finally:
        for server in running.values():
            end(server)
    assert all(alive)


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """A copy of the committed models that a test may change."""
    return Path(shutil.copytree(REPOSITORY, tmp_path / "models"))
