"""What is done to the server, one after the other, by a seed."""

from __future__ import annotations

import asyncio
import base64
import json
import os
import resource
import signal
import ssl
import subprocess
import time
import zlib
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from random import Random

import httpx

from loadtests.process import Server, by_name, family
from loadtests.soak.broken import BROKEN_FRAMES
from loadtests.soak.models import PICTURES, STEADY

Fault = Callable[["Faults"], Awaitable[str]]
"""Returns what came of it. Raises Unexpected, or what a client meets."""
_REPLACED_S = 5.0
"""After which a process that was killed has a successor."""


@dataclass
class Event:
    name: str
    begun_s: float
    ended_s: float
    told: str


@dataclass
class Faults:
    """Does them, and remembers when."""

    server: Server
    folder: Path
    rng: Random
    kinds: tuple[Fault, ...]
    """What is done."""
    bomb: bytes = field(default_factory=lambda: _bomb(), repr=False)
    events: list[Event] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)
    """What the server did not do as it must."""
    lost: list[tuple[float, float]] = field(default_factory=list)
    """Between which times a server behind this one was harmed: what it had then may have been executed, and is told
    UNAVAILABLE by a gateway that is ready."""

    @property
    def rest(self) -> str:
        return f"https://{self.server.http}"

    def trust(self) -> ssl.SSLContext:
        return ssl.create_default_context(cafile=str(self.folder / "server.pem"))

    def children(self) -> list[int]:
        """The engine process and the fronts, those that were never replaced first."""
        return family(self.server.pid)[1:]


def _bomb() -> bytes:
    """Made before the run: it takes this process longer than it takes the server to refuse it."""
    packer = zlib.compressobj(9, zlib.DEFLATED, 31)
    return b"".join([packer.compress(bytes(1 << 20)) for _ in range(256)]) + packer.flush()


def _lives(pid: int) -> bool:
    return Path(f"/proc/{pid}").exists()


class Unexpected(Exception):
    """The server did not do what it has to."""


async def _engine(faults: Faults) -> int:
    """By the name that it has in `ps`; the next one may be about to get it."""
    until = time.monotonic() + _REPLACED_S
    while time.monotonic() < until:
        pid = by_name(faults.server.pid).get("engine")
        if pid is not None:
            return pid
        await asyncio.sleep(0.05)
    raise Unexpected("the server has no engine process")


async def kills_the_engine(faults: Faults) -> str:
    pid = await _engine(faults)
    os.kill(pid, signal.SIGKILL)
    return f"process {pid}"


async def kills_a_front(faults: Faults) -> str:
    engine = await _engine(faults)
    pid = faults.rng.choice([pid for pid in faults.children() if pid != engine])
    os.kill(pid, signal.SIGKILL)
    return f"process {pid}"


async def stalls_the_engine(faults: Faults) -> str:
    """For a second, as a machine that swaps would."""
    pid = await _engine(faults)
    os.kill(pid, signal.SIGSTOP)
    await asyncio.sleep(1)
    os.kill(pid, signal.SIGCONT)
    return f"process {pid}, 1 s"


async def hangs_the_engine(faults: Faults) -> str:
    """For ever: it is killed by the supervisor."""
    pid = await _engine(faults)
    os.kill(pid, signal.SIGSTOP)
    until_s = time.monotonic() + 15
    while _lives(pid):
        if time.monotonic() > until_s:
            os.kill(pid, signal.SIGCONT)
            raise Unexpected(f"process {pid} hung, and nobody killed it")
        await asyncio.sleep(0.05)
    return f"process {pid}, killed"


async def sends_bad_frames(faults: Faults) -> str:
    host, _, port = faults.server.grpc.partition(":")
    for data in BROKEN_FRAMES.values():
        _, writer = await asyncio.open_connection(host, int(port))
        writer.write(data)
        await asyncio.sleep(0.01)
        writer.close()
    return f"{len(BROKEN_FRAMES)} kinds"


async def sends_bombs(faults: Faults) -> str:
    """A quarter of a megabyte that becomes 256, four times at once."""
    headers = {"content-encoding": "gzip", "content-type": "image/png"}
    url = f"{faults.rest}/v2/models/{PICTURES}/predict"
    async with httpx.AsyncClient(verify=faults.trust(), timeout=20) as client:
        sent = await asyncio.gather(*(client.post(url, content=faults.bomb, headers=headers) for _ in range(4)))
    statuses = {answer.status_code for answer in sent}
    if not statuses <= {413, 503, 429}:
        raise Unexpected(f"a bomb was answered {statuses}")
    return f"answered {sorted(statuses)}"


async def reloads(faults: Faults) -> str:
    async with httpx.AsyncClient(verify=faults.trust(), timeout=30) as client:
        answer = await client.post(f"{faults.rest}/v2/repository/models/{STEADY}/load", json={})
    if answer.status_code not in (200, 503):
        raise Unexpected(f"a reload was answered {answer.status_code}: {answer.text}")
    return f"answered {answer.status_code}"


async def fills_the_disk(faults: Faults) -> str:
    """No process of the server may write more to any file, while a client brings a model that has to be written."""
    limits = {}
    for pid in family(faults.server.pid):
        limits[pid] = resource.prlimit(pid, resource.RLIMIT_FSIZE)
        resource.prlimit(pid, resource.RLIMIT_FSIZE, (0, limits[pid][1]))
    try:
        parameters = {"config": "{}", "file:1/model.onnx": base64.b64encode(bytes(100_000)).decode()}
        async with httpx.AsyncClient(verify=faults.trust(), timeout=20) as client:
            answer = await client.post(
                f"{faults.rest}/v2/repository/models/brought/load", content=json.dumps({"parameters": parameters})
            )
        await asyncio.sleep(1)
    finally:
        for pid, before in limits.items():
            if _lives(pid):
                resource.prlimit(pid, resource.RLIMIT_FSIZE, before)
    if answer.status_code < 400:
        raise Unexpected("a model was loaded without a place to write it")
    return f"a load was answered {answer.status_code}"


async def takes_the_descriptors(faults: Faults) -> str:
    """The supervisor has none left for a second: nobody new gets in, and all others go on."""
    pid = faults.server.pid
    before = resource.prlimit(pid, resource.RLIMIT_NOFILE)
    resource.prlimit(pid, resource.RLIMIT_NOFILE, (len(os.listdir(f"/proc/{pid}/fd")), before[1]))  # noqa: PTH208
    try:
        await asyncio.sleep(1)
    finally:
        resource.prlimit(pid, resource.RLIMIT_NOFILE, before)
    return "1 s"


async def changes_the_certificate(faults: Faults) -> str:
    """And waits until the new one is served."""
    old = await _served(faults)
    certificate(faults.folder)
    until_s = time.monotonic() + 10
    while await _served(faults) == old:
        if time.monotonic() > until_s:
            raise Unexpected("a new certificate is not served")
        await asyncio.sleep(0.1)
    return "a new one is served"


async def _served(faults: Faults) -> bytes:
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    host, _, port = faults.server.http.partition(":")
    until_s = time.monotonic() + 10
    while True:
        try:
            async with asyncio.timeout(2):
                _, writer = await asyncio.open_connection(host, int(port), ssl=context)
            found: bytes = writer.get_extra_info("ssl_object").getpeercert(True)
            writer.close()
            return found
        except (OSError, TimeoutError):
            if time.monotonic() > until_s:
                raise
            await asyncio.sleep(0.1)


def certificate(folder: Path) -> None:
    """One for the loopback and its key, each put in its place as a whole."""
    subject = ["-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1", "-days", "2"]
    made = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", *subject]
    command = [*made, "-keyout", str(folder / "new.key"), "-out", str(folder / "new.pem")]
    subprocess.run(command, check=True, capture_output=True)  # noqa: S603 - our own command
    (folder / "new.key").replace(folder / "server.key")
    (folder / "new.pem").replace(folder / "server.pem")


FAULTS: tuple[Fault, ...] = (
    kills_the_engine,
    sends_bad_frames,
    kills_a_front,
    sends_bombs,
    stalls_the_engine,
    reloads,
    fills_the_disk,
    changes_the_certificate,
    takes_the_descriptors,
    hangs_the_engine,
)
"""All that can be done to a server and its workers."""


def named(fault: Fault) -> str:
    """In words."""
    return fault.__name__.replace("_", " ")


async def harm(faults: Faults, every_s: float, until_s: float) -> None:
    """All of them in an order of chance, again and again, with a pause that is `every_s` in the mean."""
    left: list[Fault] = []
    while True:
        await asyncio.sleep(every_s * faults.rng.uniform(0.5, 1.5))
        if time.monotonic() > until_s:
            return
        if not left:
            left = list(faults.kinds)
            faults.rng.shuffle(left)
        fault = left.pop()
        begun_s = time.monotonic()
        name = named(fault)
        try:
            told = await fault(faults)
        except Unexpected as error:
            told = f"WRONG: {error}"
            faults.wrong.append(f"{name}: {error}")
        except (OSError, httpx.HTTPError, EOFError, TimeoutError) as error:
            told = f"not done: {error!r}"  # The fault before was still felt.
        faults.events.append(Event(name, begun_s, time.monotonic(), told))
