"""A real Triton and our server beside each other, on one repository."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from server.local_triton.process import LocalTriton, Ports, free_ports
from server.local_triton.program import TritonMissing, find
from tests.e2e.conftest import ROOT, end, start
from tests.support.parts import lacking


@dataclass(frozen=True)
class Sides:
    """The ports of both servers."""

    triton: Ports
    ours: Ports


@contextmanager
def both_servers(folder: Path, repository: Path) -> Iterator[Sides]:
    """Both, ready; their logs are in `folder`. Where there is no Triton the test ends, skipped or, under CI, failed."""
    try:
        program = find(folder=ROOT / "build" / "triton")
    except TritonMissing as missing:
        lacking(str(missing))
    log = folder / "triton.log"
    with ExitStack() as stack:
        output = stack.enter_context(log.open("wb"))
        theirs = LocalTriton(program, repository, Ports(*free_ports(3)), flags=["--log-verbose=0"], output=output)
        stack.enter_context(theirs)
        ours = start(folder / "server.log", repository=repository)
        stack.callback(end, ours)
        try:
            theirs.wait_ready(60)
        except Exception as error:
            error.add_note(log.read_text())
            raise
        yield Sides(theirs.ports, Ports(ours.port("REST"), ours.port("gRPC"), ours.port("metrics")))
