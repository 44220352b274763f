"""A running tritonserver: started, waited for, stopped."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import IO

import httpx

from server.local_triton.program import Program
from server.local_triton.repository import translate

_POLL_S = 0.05
_PROBE_S = 2.0


class TritonFailed(Exception):
    """It ended, or did not become ready in time."""


@dataclass(frozen=True, slots=True)
class Ports:
    http: int
    grpc: int
    metrics: int


def free_ports(count: int) -> list[int]:
    """Ports of the loopback that nobody listens on now."""
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports


@dataclass
class LocalTriton:
    """A tritonserver for one repository, a context manager: it is stopped, and its temporary repository removed, at
    the end."""

    program: Program
    repository: Path
    ports: Ports
    host: str = "127.0.0.1"
    flags: Sequence[str] = ()
    """More of tritonserver's own."""
    output: IO[bytes] | None = None
    """Where it writes its log; None: to ours."""
    translated: list[str] = field(default_factory=list)
    """The models that its Python backend runs, because it has no ONNX Runtime backend."""

    _process: subprocess.Popen[bytes] | None = None
    _temporary: Path | None = None

    def start(self) -> None:
        """Start it; it is not ready yet.

        Raises:
            OSError: the repository can't be read, or the program not be run.
            ModelLoadFailed: a config.pbtxt is not one.
        """
        repository = self.repository
        if self.program.packages is not None:
            self._temporary = Path(tempfile.mkdtemp(prefix="forwardpass-triton-"))
            self.translated = translate(repository, self._temporary, self.program.packages)
            repository = self._temporary
        addresses = {"http": self.ports.http, "grpc": self.ports.grpc, "metrics": self.ports.metrics}
        command = [str(self.program.path), "--model-repository", str(repository)]
        command += ["--backend-directory", str(self.program.backends), "--disable-auto-complete-config"]
        for kind, port in addresses.items():
            command += [f"--{kind}-address", self.host, f"--{kind}-port", str(port)]
        self._process = subprocess.Popen(  # noqa: S603 - our own command
            [*command, *self.flags], stdout=self.output, stderr=self.output
        )

    def wait_ready(self, timeout_s: float) -> None:
        """Return when it says that it is ready.

        Raises:
            TritonFailed: it ended before, or took longer than `timeout_s`.
        """
        until = time.monotonic() + timeout_s
        while time.monotonic() < until:
            if self._process is None or self._process.poll() is not None:
                status = None if self._process is None else self._process.returncode
                raise TritonFailed(f"tritonserver ended with status {status} before it was ready")
            with contextlib.suppress(httpx.HTTPError):
                url = f"http://{self.host}:{self.ports.http}/v2/health/ready"
                if httpx.get(url, timeout=_PROBE_S).is_success:
                    return
            time.sleep(_POLL_S)
        raise TritonFailed(f"tritonserver was not ready within {timeout_s:.0f} s")

    def foreground(self) -> int:
        """Wait for its end and return its exit status. SIGTERM and SIGINT are handed on to it meanwhile."""
        process = self._running()
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda got, _frame: process.send_signal(got))
        return process.wait()

    def _running(self) -> subprocess.Popen[bytes]:
        if self._process is None:
            raise ValueError("it was not started")
        return self._process

    @property
    def pid(self) -> int:
        """Raises ValueError if it was not started."""
        return self._running().pid

    def stop(self, grace_s: float = 10.0) -> None:
        """End it, by force after the grace, and remove its temporary repository. May be called again."""
        if self._process is not None and self._process.poll() is None:
            self._process.send_signal(signal.SIGTERM)
            try:
                self._process.wait(grace_s)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
        if self._temporary is not None:
            shutil.rmtree(self._temporary, ignore_errors=True)
            self._temporary = None

    def kill(self) -> None:
        """End it at once, and the processes of its models, which it can't end any more. `stop` cleans up then."""
        if self._process is None or self._process.poll() is not None:
            return
        pid = self._process.pid
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        for each in (pid, *map(int, children)):
            with contextlib.suppress(ProcessLookupError):
                os.kill(each, signal.SIGKILL)

    def __enter__(self) -> LocalTriton:
        try:
            self.start()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()
