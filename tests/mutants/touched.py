"""Which tests go through which lines: each file of tests is run once under coverage, in a fork of its own, and what it
told is kept in a file until it changes, or a module that it goes through."""

from __future__ import annotations

import hashlib
import json
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.mutants.fork import End, in_fork, run_pytest
from tests.mutants.mutate import Mutant
from tests.mutants.targets import MODULES, ROOT, test_files

_FILE_S = 240.0


@dataclass
class Touched:
    seconds: dict[str, float] = field(default_factory=dict)
    """How long each test takes that passes without a mutant."""
    lines: dict[str, dict[int, list[str]]] = field(default_factory=dict)
    """The tests, by module and line."""
    failed: list[str] = field(default_factory=list)
    """Tests that fail without a mutant, and files of tests that do not end: no mutant is run by them."""

    def tests(self, mutant: Mutant, most_s: float) -> list[str]:
        """Those that go through a mutant's lines, file by file, the quickest file first, `most_s` together; of a line
        that runs at import, those that go anywhere through the module."""
        lines = self.lines.get(mutant.module, {})
        found = {test for line in mutant.lines for test in lines.get(line, ())}
        if not found:
            found = {test for tests in lines.values() for test in tests}
        by_file: dict[str, list[str]] = {}
        for test in sorted(found, key=lambda test: (self.seconds[test], test)):
            by_file.setdefault(test.partition("::")[0], []).append(test)
        chosen: list[str] = []
        left_s = most_s
        for tests in sorted(by_file.values(), key=lambda tests: sum(self.seconds[test] for test in tests)):
            for test in tests:
                left_s -= self.seconds[test]
                if left_s > 0 or not chosen:
                    chosen.append(test)
        return chosen


def touched(remembered: Path) -> Touched:
    """From the file, as far as it still holds; the rest is traced, and written there."""
    before: dict[str, Any] = json.loads(remembered.read_text()) if remembered.exists() else {}
    modules = {module: _digest(path) for module, path in MODULES.items()}
    now = {}
    for name in test_files():
        known, digest = before.get(name), _digest(ROOT / name)
        if known is None or known["digest"] != digest or not known["modules"].items() <= modules.items():
            told = _traced(name)
            known = {"digest": digest, "modules": {module: modules[module] for module in told["lines"]}, **told}
            before[name] = known
            remembered.parent.mkdir(parents=True, exist_ok=True)
            half = remembered.with_suffix(".half")
            half.write_text(json.dumps(before))
            half.replace(remembered)
        now[name] = known
    return _together(now)


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _together(files: dict[str, Any]) -> Touched:
    all_ = Touched()
    for told in files.values():
        all_.seconds |= told["seconds"]
        all_.failed += told["failed"]
        for module, lines in told["lines"].items():
            mine = all_.lines.setdefault(module, {})
            for line, tests in lines.items():
                mine.setdefault(int(line), []).extend(test for test in tests if test in told["seconds"])
    return all_


def _traced(name: str) -> dict[str, Any]:
    began_s = time.monotonic()
    ended = in_fork(lambda tell: _trace(name, tell), _FILE_S)
    sys.stderr.write(f"traced {name}: {ended.end.value}, {time.monotonic() - began_s:.1f} s\n")
    if ended.told is None or ended.end is End.BROKEN:
        return {"seconds": {}, "lines": {}, "failed": [name]}
    return dict(ended.told)


def _trace(name: str, tell: Callable[[Any], None]) -> int:
    import coverage

    paths = {str(path): module for module, path in MODULES.items()}
    trace = coverage.Coverage(data_file=None, config_file=False, include=list(paths))
    noted = _Noted(trace)
    trace.start()
    run_pytest([name], noted)
    trace.stop()
    data = trace.get_data()
    lines: dict[str, dict[int, list[str]]] = {}
    for path, module in paths.items():
        by_line = {line: [test for test in tests if test] for line, tests in data.contexts_by_lineno(path).items()}
        if found := {line: tests for line, tests in by_line.items() if tests}:
            lines[module] = found
    tell({"seconds": noted.seconds, "lines": lines, "failed": sorted(noted.failed)})
    return 0


class _Noted:
    """Has coverage know which test runs, and keeps how long each took and whether it passed."""

    def __init__(self, trace: Any) -> None:
        self._trace = trace
        self.seconds: dict[str, float] = {}
        self.failed: set[str] = set()

    def pytest_runtest_logstart(self, nodeid: str) -> None:
        self._trace.switch_context(nodeid)

    def pytest_runtest_logreport(self, report: Any) -> None:
        if report.failed:
            self.failed.add(report.nodeid)
            self.seconds.pop(report.nodeid, None)
        elif report.nodeid not in self.failed and not report.skipped:
            self.seconds[report.nodeid] = self.seconds.get(report.nodeid, 0) + report.duration
