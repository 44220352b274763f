"""The gateway over two Tritons, and what is done to those: killed and started again, both at once too, stopped for a
second and for long."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx

from loadtests.chaos.faults import (
    Fault,
    Faults,
    Unexpected,
    changes_the_certificate,
    sends_bad_frames,
    sends_bombs,
    takes_the_descriptors,
)
from loadtests.models import Network, between
from loadtests.process import unwinding
from loadtests.soak.models import PICTURES, SHIPPED, STEADY
from server.local_triton.process import LocalTriton, Ports, TritonFailed, free_ports
from server.local_triton.program import find

_ROOT = Path(__file__).parents[2]
_START_S = 60.0
_NOTICED_S = 10.0
"""In which a Triton that hangs is no longer used, and one that is back is; on a quiet machine in a part of it."""
_AROUND_S = 0.75
"""The client, this process and the gateway do not see the end of a Triton at the same time."""


@dataclass
class TritonFaults(Faults):
    """Does what is done to Tritons as well."""

    tritons: Sequence[LocalTriton] = ()


@contextmanager
def running(folder: Path) -> Iterator[tuple[Network, list[LocalTriton]]]:
    """Two of them, ready, on a repository in `folder`. Raises TritonMissing, TritonFailed."""
    program = find(folder=_ROOT / "build" / "triton")
    network = between(layers=1, channels=16, width=256)
    network.save(folder / "models", STEADY)
    (folder / "models" / PICTURES).symlink_to(SHIPPED / PICTURES)
    with (folder / "triton.log").open("ab") as output, unwinding():
        tritons = [LocalTriton(program, folder / "models", Ports(*free_ports(3)), output=output) for _ in range(2)]
        try:
            for triton in tritons:
                triton.start()
            for triton in tritons:
                triton.wait_ready(_START_S)
            yield network, tritons
        finally:
            for triton in tritons:
                triton.kill()
                triton.stop()


def addresses(tritons: Sequence[LocalTriton]) -> str:
    return ",".join(f"grpc://{_name(triton)}" for triton in tritons)


def _name(triton: LocalTriton) -> str:
    return f"127.0.0.1:{triton.ports.grpc}"


async def kills_a_triton(faults: Faults) -> str:
    """And starts it again a second later: it is used again."""
    triton = _one(faults)
    await _killed(faults, [triton])
    return f"{_name(triton)}, used again after {await _again(faults, [triton]):.1f} s"


async def kills_both_tritons(faults: Faults) -> str:
    """Nobody is left: the gateway says that it is not ready, until it is."""
    tritons = list(_of(faults).tritons)
    await _killed(faults, tritons)
    await _until(faults, lambda up: not any(up.values()), "two dead Tritons are held to be up")
    return f"ready again after {await _again(faults, tritons):.1f} s"


async def stalls_a_triton(faults: Faults) -> str:
    """For a second."""
    triton = _one(faults)
    await _stopped(faults, triton, lambda: asyncio.sleep(1))
    return f"{_name(triton)}, 1 s"


async def hangs_a_triton(faults: Faults) -> str:
    """Until it is no longer used, and two seconds more."""
    triton = _one(faults)

    async def ejected() -> None:
        await _until(faults, lambda up: not up[_name(triton)], "a Triton that hangs is held to be up")
        await asyncio.sleep(2)

    await _stopped(faults, triton, ejected)
    await _until(faults, lambda up: up[_name(triton)], "a Triton that goes on is not used again")
    return f"{_name(triton)}, ejected, and used again"


TRITON_FAULTS: tuple[Fault, ...] = (
    kills_a_triton,
    sends_bad_frames,
    stalls_a_triton,
    sends_bombs,
    hangs_a_triton,
    changes_the_certificate,
    kills_both_tritons,
    takes_the_descriptors,
)


def _of(faults: Faults) -> TritonFaults:
    assert isinstance(faults, TritonFaults)
    return faults


def _one(faults: Faults) -> LocalTriton:
    return faults.rng.choice(_of(faults).tritons)


async def _killed(faults: Faults, tritons: Sequence[LocalTriton]) -> None:
    at_s = time.monotonic()
    for triton in tritons:
        triton.kill()
    faults.lost.append((at_s - _AROUND_S, time.monotonic() + _AROUND_S))
    await asyncio.sleep(1)


async def _again(faults: Faults, tritons: Sequence[LocalTriton]) -> float:
    """Start them; returns how long it took until they were ready, and checks that they are used then."""
    began_s = time.monotonic()
    for triton in tritons:
        triton.stop()
        triton.start()
    try:
        for triton in tritons:
            await asyncio.to_thread(triton.wait_ready, _START_S)
    except TritonFailed as error:
        raise OSError(str(error)) from error  # Its own doing, not the gateway's.
    took_s = time.monotonic() - began_s
    names = {_name(triton) for triton in tritons}
    await _until(faults, lambda up: all(up[name] for name in names), "a Triton that is there again is not used")
    return took_s


async def _stopped(faults: Faults, triton: LocalTriton, until: Callable[[], Awaitable[None]]) -> None:
    """It does nothing until `until` has returned."""
    at_s = time.monotonic()
    os.kill(triton.pid, signal.SIGSTOP)
    try:
        await until()
    finally:
        os.kill(triton.pid, signal.SIGCONT)
        faults.lost.append((at_s - _AROUND_S, time.monotonic() + _AROUND_S))


async def _until(faults: Faults, true: Callable[[dict[str, bool]], bool], problem: str) -> None:
    """What the gateway says of its Tritons is so. Raises Unexpected, with the problem."""
    until_s = time.monotonic() + _NOTICED_S
    async with httpx.AsyncClient(timeout=5) as client:
        while not true(_up((await client.get(faults.server.metrics_url)).text)):
            if time.monotonic() > until_s:
                raise Unexpected(problem)
            await asyncio.sleep(0.1)


def _up(text: str) -> dict[str, bool]:
    """Of each Triton, by its address."""
    lines = [line for line in text.splitlines() if line.startswith("forwardpass_triton_up{")]
    return {line.split('"')[1]: float(line.rsplit(" ", 1)[1]) == 1 for line in lines}
