"""A configuration on a real server: a process of its own with a copy of the model, asked by the generator."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from server.client import Client, ClientError
from server.load.drive import Leg, closed_loop, open_loop, poisson
from server.load.http1 import Http1Wire
from server.load.limits import Limits
from server.load.payloads import Payload
from server.load.search import Found, Probe, Search, highest, judged
from server.local_triton.process import free_ports
from server.proto.triton import model_config_pb2 as pb
from server.repository.config_text import CONFIG_FILE, write_model_config
from server.tuning.certify import recertify
from server.tuning.choices import Choice, applied
from server.tuning.search import Failed, Trial

_READY_S = 60.0
_STOP_S = 15.0
_POLL_S = 0.05
_IN_FLIGHT = 32
_GUESS = 0.8
_WARM_UP = 0.25
"""Of a window, before it."""
_OVERLOAD = 0.1
"""A rate that is above what can be served by so much breaks a window, at least."""
_WINDOWS = 24
"""Of one search, at most: a machine that wanders has the last word on how well they differ, see `tune`."""
_MAX_LAG_MS = 5.0
_TRIES = 2
_SHOWN = (50.0, 99.0)


@dataclass(frozen=True)
class Bench:
    """What all trials have in common."""

    folder: Path
    """Of the model."""
    config: pb.ModelConfig
    payloads: Sequence[Payload]
    limits: Limits
    window_s: float
    served_on: Sequence[int]
    """Cores."""
    over: Callable[[], bool]
    """The time is up."""

    def attempt(self, choice: Choice, measure: Callable[[Trial], None]) -> None:
        """Raises Failed."""
        with tempfile.TemporaryDirectory(prefix="forwardpass-tune-") as scratch, self._serving(choice, scratch) as url:
            wire = Http1Wire(url)
            try:
                measure(_Trial(self, wire))
            finally:
                wire.close()

    @contextmanager
    def _serving(self, choice: Choice, scratch: str) -> Iterator[str]:
        repository = Path(scratch) / "models"
        _copy(self.folder, repository / self.folder.name)
        write_model_config(applied(self.config, choice), repository / self.folder.name / CONFIG_FILE)
        recertify(repository / self.folder.name)
        http, grpc, metrics = free_ports(3)
        command = [sys.executable, "-m", "server", "serve", "--model-repository", str(repository)]
        command += ["--http-port", f"{http}", "--grpc-port", f"{grpc}", "--metrics-port", f"{metrics}"]
        command += ["--workers", f"{choice.workers}"]
        url = f"http://127.0.0.1:{http}"
        with (Path(scratch) / "log").open("w+") as log, on_cores(self.served_on):
            process = subprocess.Popen(command, stdout=log, stderr=log)  # noqa: S603 - our own command
        try:
            _wait_ready(process, url, Path(scratch) / "log")
            yield url
        finally:
            _end(process)


@contextmanager
def on_cores(cores: Sequence[int]) -> Iterator[None]:
    """This thread, and what it starts inside, where the system can do that."""
    if not hasattr(os, "sched_setaffinity"):
        yield
        return
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, cores)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def _copy(folder: Path, to: Path) -> None:
    """A model's folder with all its files as links, so that gigabytes stay where they are."""
    for path in sorted(folder.rglob("*")):
        target = to / path.relative_to(folder)
        if path.is_dir():
            target.mkdir(parents=True, exist_ok=True)
        else:
            target.parent.mkdir(parents=True, exist_ok=True)
            _link(path.resolve(), target)
    (to / CONFIG_FILE).unlink(missing_ok=True)


def _link(path: Path, target: Path) -> None:
    """A second name where that can be had; a symbolic link could lead out of what a repository may read."""
    try:
        os.link(path, target)
    except OSError:
        shutil.copyfile(path, target)


def _wait_ready(process: subprocess.Popen[bytes], url: str, log: Path) -> None:
    """A server listens when it has loaded what it can; the rest is in its index, with the reason."""
    until = time.monotonic() + _READY_S
    with Client(url) as client:
        while time.monotonic() < until:
            if process.poll() is not None:
                break
            with suppress(ClientError):
                for entry in client.models(timeout_s=2):
                    if entry.state != "READY":
                        raise Failed(entry.reason or entry.state)
                return
            time.sleep(_POLL_S)
    raise Failed(_reason(log))


def _reason(log: Path) -> str:
    lines = [line for line in log.read_text(errors="replace").splitlines() if line.strip()]
    return lines[-1][:300] if lines else "it said nothing"


def _end(process: subprocess.Popen[bytes]) -> None:
    if process.poll() is None:
        process.send_signal(signal.SIGTERM)
    try:
        process.wait(_STOP_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


class _Trial:
    def __init__(self, bench: Bench, wire: Http1Wire) -> None:
        self._bench = bench
        self._wire = wire
        self._seed = 0
        self._window_s = max(bench.window_s, bench.limits.window_s(_OVERLOAD))

    def _probe(self, rate: float) -> Probe:
        self._seed += 1
        warm_s, end_s = _WARM_UP * self._window_s, (1 + _WARM_UP) * self._window_s
        leg = Leg(self._wire, self._bench.payloads, poisson(rate, end_s, self._seed))
        return judged(rate, open_loop([leg]).between(warm_s, end_s), self._bench.limits, _MAX_LAG_MS, _SHOWN)

    def reaches(self, rate: float) -> Probe:
        for _ in range(_TRIES):
            probe = self._probe(rate)
            if probe.held:
                break
        return probe

    def highest(self, guess: float | None) -> Found:
        if guess is None:
            samples = closed_loop(Leg(self._wire, self._bench.payloads, ()), _IN_FLIGHT, self._window_s)
            if samples.share("right") < 1:
                raise Failed(samples.fault())
            guess = _GUESS * samples.answers_per_s()
        return highest(Search(guess, windows=_WINDOWS, over=self._bench.over), self._probe)
