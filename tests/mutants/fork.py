"""Tests in a fork that has all but ours imported: ours is imported there, so that all of it sees the mutant."""

from __future__ import annotations

import importlib
import json
import os
import signal
import sys
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from enum import Enum
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.util import spec_from_loader
from pathlib import Path
from types import ModuleType
from typing import Any

from tests.mutants.mutate import Mutant
from tests.mutants.targets import MODULES

_ALREADY = ("numpy", "pytest", "hypothesis", "uvloop", "orjson", "onnxruntime", "tritonclient.grpc", "onnx", "httpx")
_OPTIONS = ("-q", "--assert=plain", "-p", "no:cacheprovider", "--hypothesis-seed=0")
_EXAMPLES = 30
"""Of a property: a mutant that only the hundredth tells is counted as one that survives."""


class End(Enum):
    PASSED = "passed"
    FAILED = "failed"
    """A test failed, or could not even be imported, or the process crashed."""
    LATE = "late"
    BROKEN = "broken"
    """No tests were found, or pytest itself failed: that tells nothing of a mutant."""


@dataclass(frozen=True)
class Ended:
    end: End
    told: Any
    """What the function that ran there told, if it came to that."""


class _Mutated(MetaPathFinder, Loader):
    """Imports one module from a source that is not its file."""

    def __init__(self, mutant: Mutant) -> None:
        self._mutant = mutant

    def find_spec(self, name: str, _path: object, _target: object = None) -> ModuleSpec | None:
        return spec_from_loader(name, self) if name == self._mutant.module else None

    def exec_module(self, module: ModuleType) -> None:
        path = MODULES[self._mutant.module]
        exec(self._mutant.code(path.read_text(), str(path)), module.__dict__)  # noqa: S102 - our own source


class _Chosen:
    """Of the collected tests only those with these names; tells when one begins, and which was the first to fail."""

    def __init__(self, names: Collection[str], begins: Callable[[], None]) -> None:
        self._names = frozenset(names)
        self._begins = begins
        self.failed: list[str] = []

    def pytest_runtest_logstart(self) -> None:
        self._begins()

    def pytest_collection_modifyitems(self, config: Any, items: list[Any]) -> None:
        dropped = [item for item in items if item.nodeid not in self._names]
        items[:] = [item for item in items if item.nodeid in self._names]
        config.hook.pytest_deselected(items=dropped)

    def pytest_runtest_logreport(self, report: Any) -> None:
        if report.failed:
            self.failed.append(report.nodeid)


def prepare() -> None:
    """Once, before the first fork."""
    for name in _ALREADY:
        importlib.import_module(name)
    import hypothesis

    hypothesis.settings.register_profile(
        "mutants",
        deadline=None,
        database=None,
        max_examples=_EXAMPLES,
        suppress_health_check=list(hypothesis.HealthCheck),
    )
    hypothesis.settings.load_profile("mutants")


def run_tests(names: Sequence[str], mutant: Mutant | None, within_s: float) -> Ended:
    """Until one fails, with a mutant in the place of its module; each has `within_s`. Tells who failed."""
    files = list(dict.fromkeys(name.partition("::")[0] for name in names))

    def run(tell: Callable[[Any], None]) -> int:
        if mutant is not None:
            sys.meta_path.insert(0, _Mutated(mutant))
        chosen = _Chosen(names, lambda: tell(None))
        status = run_pytest(["-x", *files], chosen)
        tell(chosen.failed)
        return status

    return in_fork(run, within_s)


def run_pytest(arguments: Sequence[str], plugin: object) -> int:
    import pytest

    return int(pytest.main([*_OPTIONS, *arguments], plugins=[plugin]))


def in_fork(run: Callable[[Callable[[Any], None]], int], within_s: float) -> Ended:
    """What became of `run`, which gets a function to tell something with, and gives pytest's status.

    It has `within_s` after each thing that it tells. While all of it stands still, as after ``kill -STOP``, or others
    have the cores, no time goes by.
    """
    read, write = os.pipe()
    pid = os.fork()
    if not pid:
        os.close(read)
        _work(run, write)
    os.close(write)
    os.set_blocking(read, False)
    told = bytearray()
    end, left_s, looked_s, waited_s = None, within_s, time.monotonic(), 0.0
    while end is None:
        waited_before_s, waited_s = waited_s, _waited_s(pid)
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            code = os.waitstatus_to_exitcode(status)
            end = End.PASSED if code == 0 else End.FAILED if code in (1, 2) or code < 0 else End.BROKEN
        elif left_s < 0:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            end = End.LATE
        else:
            time.sleep(0.02)
        passed_s, looked_s = time.monotonic() - looked_s, time.monotonic()
        left_s -= min(1.0, max(0.0, passed_s - max(0.0, waited_s - waited_before_s)))
        if news := _available(read):
            told += news
            left_s = within_s
    os.close(read)
    return Ended(end, json.loads(told.splitlines()[-1]) if told and end is not End.LATE else None)


def _waited_s(pid: int) -> float:
    """How long it could have run, and others did, where the kernel tells that."""
    try:
        return int(Path(f"/proc/{pid}/schedstat").read_text().split()[1]) / 1e9
    except (OSError, IndexError):
        return 0.0


def _work(run: Callable[[Callable[[Any], None]], int], write: int) -> None:
    """In the fork. Never returns."""
    null = os.open(os.devnull, os.O_RDWR)
    for each in (0, 1, 2):
        os.dup2(null, each)
    status = 3

    def tell(something: Any) -> None:
        left = memoryview(json.dumps(something).encode() + b"\n")
        while left:
            left = left[os.write(write, left) :]

    try:
        status = run(tell)
    finally:
        os._exit(status)


def _available(read: int) -> bytes:
    found = bytearray()
    while True:
        try:
            some = os.read(read, 1 << 20)
        except BlockingIOError:
            return bytes(found)
        if not some:
            return bytes(found)
        found += some
