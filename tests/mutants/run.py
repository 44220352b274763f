"""Whether the tests notice small faults in the scheduler, the codec and the table of statuses: ``make mutants``.

    python -m tests.mutants.run --sample 200 --seed 0

Each mutant runs the quick tests of its module, in a fork that has all else imported; it is killed if one fails, or if
they do not end. The table says how many were; those that survived follow, with their lines. Exits with 1 where fewer
are killed than `--least`, and with 2 where the tests fail without any mutant.
"""

from __future__ import annotations

import argparse
import importlib
import math
import os
import random
import signal
import sys
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.util import spec_from_loader
from pathlib import Path
from types import ModuleType

from tests.mutants.mutate import Mutant, mutants
from tests.mutants.targets import TARGETS

_ROOT = Path(__file__).parents[2]
_ALREADY = ("numpy", "pytest", "hypothesis", "uvloop", "orjson", "onnxruntime", "tritonclient.grpc", "onnx", "httpx")
"""What is imported before the fork: nothing of ours, for all of it may import the mutant."""
_FLOOR_S = 20.0
_AT_MOST_TIMES = 5


@dataclass(frozen=True)
class Fate:
    mutant: Mutant
    killed: bool
    by_time: bool = False


class _Mutated(MetaPathFinder, Loader):
    """Imports one module from a source that is not its file."""

    def __init__(self, mutant: Mutant) -> None:
        self._mutant = mutant

    def find_spec(self, name: str, _path: object, _target: object = None) -> ModuleSpec | None:
        return spec_from_loader(name, self) if name == self._mutant.module else None

    def exec_module(self, module: ModuleType) -> None:
        code = compile(self._mutant.code, f"<mutant of {self._mutant.module}>", "exec")
        exec(code, module.__dict__)  # noqa: S102 - our own source


def _passes(tests: Sequence[str], mutant: Mutant | None, within_s: float) -> bool | None:
    """Whether the tests pass; None: they did not end in time."""
    pid = os.fork()
    if not pid:
        os.setsid()
        _run(tests, mutant)
    until_s = time.monotonic() + within_s
    while True:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status) == 0
        if time.monotonic() > until_s:
            os.killpg(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            return None
        time.sleep(0.02)


def _run(tests: Sequence[str], mutant: Mutant | None) -> None:
    """In the fork. Never returns."""
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 1)
    os.dup2(null, 2)
    if mutant is not None:
        sys.meta_path.insert(0, _Mutated(mutant))
    import pytest

    status = 3
    try:
        options = ["-x", "-q", "--assert=plain", "-p", "no:cacheprovider", "--hypothesis-seed=0"]
        status = int(pytest.main([*options, *tests]))
    finally:
        os._exit(status)


def _source(module: str) -> str:
    return (_ROOT / (module.replace(".", "/") + ".py")).read_text()


def chosen(only: str, sample: int, seed: int) -> tuple[list[Mutant], int]:
    """Of the targets whose name has `only`, and how many there are of them."""
    every = [each for module in TARGETS if only in module for each in mutants(module, _source(module))]
    if sample and sample < len(every):
        return random.Random(seed).sample(every, sample), len(every)
    return every, len(every)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="modules whose names have this in them")
    parser.add_argument("--sample", type=int, default=200, help="so many mutants, by the seed; 0: all (200)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--seconds", type=float, default=math.inf, help="begin no mutant after so long")
    parser.add_argument("--least", type=float, default=0.85, help="the part that has to be killed (0.85)")
    options = parser.parse_args(arguments)
    os.chdir(_ROOT)
    for name in _ALREADY:
        importlib.import_module(name)
    some, of = chosen(options.only, options.sample, options.seed)
    limits: dict[tuple[str, ...], float] = {}
    fates = []
    until_s = time.monotonic() + options.seconds
    for mutant in some:
        if time.monotonic() > until_s:
            break
        tests = TARGETS[mutant.module]
        if tests not in limits:
            began_s = time.monotonic()
            if not _passes(tests, None, 600):
                sys.stderr.write(f"without a mutant, these fail: {' '.join(tests)}\n")
                return 2
            limits[tests] = _FLOOR_S + _AT_MOST_TIMES * (time.monotonic() - began_s)
        passed = _passes(tests, mutant, limits[tests])
        fates.append(Fate(mutant, not passed, passed is None))
        if passed:
            sys.stdout.write(f"survived  {mutant}\n")
            sys.stdout.flush()
    sys.stdout.write(_table(fates, of, options.seed))
    return 0 if sum(fate.killed for fate in fates) >= options.least * len(fates) else 1


def _table(fates: Sequence[Fate], of: int, seed: int) -> str:
    made, killed = Counter[str](), Counter[str]()
    for fate in fates:
        made[fate.mutant.module] += 1
        killed[fate.mutant.module] += fate.killed
    lines = [f"| {module} | {made[module]} | {killed[module]} |" for module in sorted(made)]
    total = f"| all ({len(fates)} of {of}, seed {seed}) | {made.total()} | {killed.total()} |"
    timed = sum(fate.by_time for fate in fates)
    part = f"{killed.total() / max(1, len(fates)):.3f} killed, {timed} of them because the tests did not end"
    return "\n".join(["", "| module | mutants | killed |", "|---|---:|---:|", *lines, total, "", part, ""])


if __name__ == "__main__":
    sys.exit(main())
