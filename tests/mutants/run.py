"""Whether the tests notice small faults in the scheduler, the codec and the table of statuses: ``make mutants``.

    python -m tests.mutants.run --sample 100 --seed 0

First every file of unit and property tests is run without a fault, under coverage, which tells the lines that each test
goes through; that is remembered in a file. Then each mutant that the seed draws, of all modules alike, is imported in a
fork in the place of its module, and the tests run that go through its lines, the quickest files first, two minutes of
them at most, until one fails. It is killed if one fails or its process crashes; those that only did not end are counted
as killed, too, and told apart. Those that survived are told with their lines, then the table. Exits with 1 where fewer
are killed than `--least`.
"""

from __future__ import annotations

import argparse
import math
import os
import random
import sys
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.mutants.fork import End, prepare, run_tests
from tests.mutants.mutate import Mutant, mutants
from tests.mutants.targets import MODULES, ROOT
from tests.mutants.touched import Touched, touched

_TESTS_S = 120.0
"""Of tests for a mutant, as long as they took under coverage."""
_FLOOR_S = 30.0
_AT_MOST_TIMES = 5


@dataclass(frozen=True)
class Fate:
    mutant: Mutant
    end: End
    by: str = ""
    """The test that failed."""

    @property
    def killed(self) -> bool:
        return self.end in (End.FAILED, End.LATE)

    def __str__(self) -> str:
        word = "survived" if self.end is End.PASSED else self.end.value
        return f"{word:8}  {self.mutant}" + (f"  by {self.by}" if self.by else "")


def fate(mutant: Mutant, all_: Touched) -> Fate:
    tests = all_.tests(mutant, _TESTS_S)
    if not tests:
        return Fate(mutant, End.PASSED)
    limit_s = _FLOOR_S + _AT_MOST_TIMES * max(all_.seconds[test] for test in tests)
    ended = run_tests(tests, mutant, limit_s)
    return Fate(mutant, ended.end, ended.told[0] if ended.told else "")


def chosen(only: Sequence[str], sample: int, seed: int) -> tuple[list[Mutant], int]:
    """Of the modules whose name has one of `only`, and how many there are of them."""
    some = {module: path for module, path in MODULES.items() if any(part in module for part in only)}
    every = [each for module, path in some.items() for each in mutants(module, path.read_text())]
    if sample and sample < len(every):
        return random.Random(seed).sample(every, sample), len(every)
    return every, len(every)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", default=[""], help="modules whose names have one of these in them")
    parser.add_argument("--sample", type=int, default=100, help="so many mutants, by the seed; 0: all (100)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--seconds", type=float, default=math.inf, help="begin no mutant after so long")
    parser.add_argument("--least", type=float, default=0.85, help="the part that has to be killed (0.85)")
    parser.add_argument("--verbose", action="store_true", help="those that are killed, too, and by which test")
    remembered = ROOT / "build/mutants/touched.json"
    parser.add_argument("--remember", type=Path, default=remembered, help="where it keeps which tests go where")
    options = parser.parse_args(arguments)
    os.chdir(ROOT)
    prepare()
    some, of = chosen(options.only, options.sample, options.seed)
    all_ = touched(options.remember)
    _say("".join(f"without a mutant, this fails, and is left out: {test}\n" for test in all_.failed))
    fates = []
    until_s = time.monotonic() + options.seconds
    for mutant in some:
        if time.monotonic() > until_s:
            break
        one = fate(mutant, all_)
        fates.append(one)
        if options.verbose or one.end is not End.FAILED:
            _say(f"{one}\n")
    _say(_table(fates, of, options.seed))
    return 0 if sum(one.killed for one in fates) >= options.least * len(fates) else 1


def _say(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()


def _table(fates: Sequence[Fate], of: int, seed: int) -> str:
    made, killed = Counter[str](), Counter[str]()
    for one in fates:
        made[one.mutant.module] += 1
        killed[one.mutant.module] += one.killed
    lines = [f"| {module} | {made[module]} | {killed[module]} |" for module in sorted(made)]
    total = f"| all ({len(fates)} of {of}, seed {seed}) | {made.total()} | {killed.total()} |"
    late = sum(one.end is End.LATE for one in fates)
    part = f"{killed.total() / max(1, len(fates)):.3f} killed, {late} of them because the tests did not end"
    return "\n".join(["", "| module | mutants | killed |", "|---|---:|---:|", *lines, total, "", part, ""])


if __name__ == "__main__":
    sys.exit(main())
