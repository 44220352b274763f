"""What every client library of Prometheus tells of its process, and of the language that it is written in.

The names, the words and the numbers are those of `prometheus_client`, which a test holds. The package itself brings two
HTTP servers, a client and a mail parser into a process: 25 ms of every start, and 3 MB.
"""

from __future__ import annotations

import math
import os
import platform
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

from server.observability.catalog import Line, Metric, labelled
from server.observability.definitions import Definition

_PROC = Path("/proc")

_VIRTUAL = Definition("process_virtual_memory_bytes", "gauge", "", (), "Virtual memory size in bytes.")
_RESIDENT = Definition("process_resident_memory_bytes", "gauge", "", (), "Resident memory size in bytes.")
_STARTED = Definition(
    "process_start_time_seconds", "gauge", "", (), "Start time of the process since unix epoch in seconds."
)
_CPU = Definition("process_cpu_seconds_total", "counter", "", (), "Total user and system CPU time spent in seconds.")
_OPEN = Definition("process_open_fds", "gauge", "", (), "Number of open file descriptors.")
_MOST_OPEN = Definition("process_max_fds", "gauge", "", (), "Maximum number of open file descriptors.")
_PYTHON = Definition("python_info", "gauge", "", (), "Python platform information")


class ProcessMetrics:
    """Of one process; nothing where there is no /proc, or where it has ended."""

    def __init__(self, pid: Callable[[], int | str]) -> None:
        self._pid = pid

    def collect(self) -> Iterator[Metric]:
        folder, ticks_a_s = _PROC / str(self._pid()), os.sysconf("SC_CLK_TCK")
        try:
            # Source: proc_pid_stat(5); the fields behind the name of the program, which may hold anything.
            fields = (folder / "stat").read_bytes().rpartition(b")")[2].split()
            yield _metric(_VIRTUAL, float(fields[20]))
            yield _metric(_RESIDENT, float(fields[21]) * os.sysconf("SC_PAGE_SIZE"))
            yield _metric(_STARTED, float(fields[19]) / ticks_a_s + _boot_time_s())
            yield _metric(_CPU, float(fields[11]) / ticks_a_s + float(fields[12]) / ticks_a_s)
            yield _metric(_OPEN, float(sum(1 for _ in (folder / "fd").iterdir())))
            yield _metric(_MOST_OPEN, _number(folder / "limits", b"Max open files"))
        except OSError:
            return


def python_info() -> Metric:
    version = platform.python_version()
    parts = zip(("major", "minor", "patchlevel"), platform.python_version_tuple(), strict=True)
    info = (("version", version), ("implementation", platform.python_implementation()), *parts)
    return _metric(_PYTHON, 1.0, labelled(info))


def _metric(definition: Definition, value: float, labels: str = "") -> Metric:
    metric = Metric(definition)
    metric.lines.append(Line(definition.name, labels, value))
    return metric


@cache
def _boot_time_s() -> float:
    return _number(_PROC / "stat", b"btime")


def _number(file: Path, name: bytes) -> float:
    """What stands behind `name` in its line."""
    found = file.read_bytes().partition(b"\n" + name + b" ")[2].split(maxsplit=1)[0]
    return math.inf if found == b"unlimited" else float(found)
