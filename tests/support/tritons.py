"""Real tritonservers on free ports, and a server in front of them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from server.local_triton.process import LocalTriton, Ports, free_ports
from server.local_triton.program import Program, TritonMissing, find
from tests.e2e.conftest import REPOSITORY, ROOT, ServerProcess, end, start
from tests.support.parts import lacking


def program() -> Program:
    """The test is skipped where there is none."""
    try:
        return find(folder=ROOT / "build" / "triton")
    except TritonMissing as missing:
        lacking(str(missing))


def triton(stack: ExitStack, folder: Path, repository: Path = REPOSITORY, flags: Sequence[str] = ()) -> LocalTriton:
    """A running one, ready; `stack` stops it. Its log is in `folder`. The test is skipped where there is none."""
    found = program()
    ports = Ports(*free_ports(3))
    output = stack.enter_context((folder / f"triton{ports.grpc}.log").open("ab"))
    server = LocalTriton(found, repository, ports, flags=["--log-verbose=0", *flags], output=output)
    stack.enter_context(server)
    server.wait_ready(90)
    return server


def url(*servers: LocalTriton) -> str:
    return ",".join(f"grpc://127.0.0.1:{server.ports.grpc}" for server in servers)


@contextmanager
def in_front_of(
    folder: Path, *servers: LocalTriton, flags: Sequence[str] = (), repository: Path = REPOSITORY
) -> Iterator[ServerProcess]:
    """Our server over these, ended at the end."""
    with ExitStack() as stack:
        log = folder / "gateway.log"
        server = start(log, "--engine", "triton", "--triton-url", url(*servers), *flags, repository=repository)
        stack.callback(end, server)
        yield server
