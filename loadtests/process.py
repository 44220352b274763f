"""A real server in a process of its own, on free ports of the loopback."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import NoReturn

import httpx

from loadtests.cores import pinned

_ROOT = Path(__file__).parents[1]
_START_S = 60.0
_SAMPLE = re.compile(r"^(\w+)(?:\{([^}]*)\})? (\S+)$", re.MULTILINE)


@dataclass(frozen=True)
class Server:
    pid: int
    http: str
    """host:port"""
    grpc: str
    """host:port"""
    metrics_url: str

    def metrics(self, model: str) -> dict[str, float]:
        """The samples of one model, by name; with a `reason` or a bucket's `le` behind it where there is one."""
        return samples(httpx.get(self.metrics_url).raise_for_status().text, model)


def family(pid: int) -> list[int]:
    """A process and its children."""
    return [pid, *map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split())]


def by_name(pid: int) -> dict[str, int]:
    """The processes of a server with workers, as `ps` calls them: engine, front-0 and so on."""
    found = {}
    for child in family(pid)[1:]:
        with suppress(OSError):
            found[Path(f"/proc/{child}/comm").read_text().strip().removeprefix("fp-")] = child
    return found


def rss_bytes(pid: int) -> int:
    """The resident memory of a process."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def threads(pid: int) -> int:
    return len(list(Path(f"/proc/{pid}/task").iterdir()))


def open_files(pid: int) -> int:
    """Descriptors: files, sockets and what else there is."""
    return len(list(Path(f"/proc/{pid}/fd").iterdir()))


def samples(text: str, model: str) -> dict[str, float]:
    found: dict[str, float] = {}
    for name, labels, value in _SAMPLE.findall(text):
        pairs = dict(re.findall(r'(\w+)="([^"]*)"', labels))
        if pairs.pop("model", None) == model:
            pairs.pop("version", None)
            found[" ".join([name, *(f"{key}={pairs[key]}" for key in sorted(pairs))])] = float(value)
    return found


def grown(before: Mapping[str, float], after: Mapping[str, float]) -> dict[str, float]:
    """What was counted between two scrapes."""
    return {name: value - before.get(name, 0.0) for name, value in after.items()}


@contextmanager
def unwinding() -> Iterator[None]:
    """Signals that would end this process at once, and leave the processes that it has started, end the block by
    SystemExit instead, with a shell's exit code of 128 and the signal's number. Who handles one himself still does."""

    def end(number: int, _frame: FrameType | None) -> NoReturn:
        raise SystemExit(128 + number)

    # Python sets handlers on the main thread only.
    on_main = threading.current_thread() is threading.main_thread()
    ours = [one for one in (signal.SIGTERM, signal.SIGHUP) if on_main and signal.getsignal(one) is signal.SIG_DFL]
    for one in ours:
        signal.signal(one, end)
    try:
        yield
    finally:
        for one in ours:
            signal.signal(one, signal.SIG_DFL)


@contextmanager
def serving(
    repository: Path, folder: Path, core: int | tuple[int, ...], *flags: str, checkout: Path = _ROOT
) -> Iterator[Server]:
    """A server of the shipped defaults, but for `flags`, on `core`, or several; its logs go to `folder`; ended on the
    way out. `checkout`: the folder whose code it runs."""
    ports = ["--http-port", "0", "--grpc-port", "0", "--metrics-port", "0"]
    serve = ["-m", "server", "serve", "--model-repository", str(repository.resolve()), *ports, *flags]
    with started(serve, folder, core, checkout) as server:
        yield server


@contextmanager
def started(
    arguments: Sequence[str], folder: Path, core: int | tuple[int, ...], checkout: Path = _ROOT
) -> Iterator[Server]:
    """What Python makes of `arguments`: a process that prints the banner of a server when it is ready. It ends with the
    block, and where a signal ends this process."""
    out, log = folder / "server.out", folder / "server.log"
    environment = {**os.environ, "PYTHONPATH": str(checkout)}
    with unwinding():
        with out.open("w") as stdout, log.open("w") as stderr, pinned(*((core,) if isinstance(core, int) else core)):
            process = subprocess.Popen(  # noqa: S603 - our own command
                [sys.executable, *arguments], cwd=checkout, env=environment, stdout=stdout, stderr=stderr
            )
        try:
            banner = _banner(process, out, log)
            http, grpc, metrics = (f"127.0.0.1:{_port(banner, name)}" for name in ("REST", "gRPC", "metrics"))
            yield Server(process.pid, http, grpc, f"http://{metrics}/metrics")
        finally:
            end(process, 20)


def end(process: subprocess.Popen[bytes], within_s: float) -> None:
    """By SIGTERM, or by SIGKILL where it has not ended in that time."""
    process.terminate()
    try:
        process.wait(within_s)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _banner(process: subprocess.Popen[bytes], out: Path, log: Path) -> str:
    """What the server prints once it is ready: it ends with an empty line."""
    until = time.monotonic() + _START_S
    while not (banner := out.read_text()).endswith("\n\n"):
        if process.poll() is not None or time.monotonic() > until:
            raise RuntimeError(f"the server did not start:\n{log.read_text()}")
        time.sleep(0.01)
    return banner


def read_ports(banner: str) -> dict[str, int]:
    """Of the three listeners, as the banner names them."""
    return {listener: _port(banner, listener) for listener in ("REST", "gRPC", "metrics")}


def _port(banner: str, listener: str) -> int:
    match = re.search(rf"{listener}\s+\S*?:(\d+)", banner)
    if match is None:
        raise RuntimeError(f"no {listener} listener in:\n{banner}")
    return int(match[1])
