"""The machine and the tools of a measurement, for those who read its figures elsewhere."""

from __future__ import annotations

import os
import platform
import re
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from loadtests.cores import cores


def describe() -> dict[str, str]:
    return {
        "processor": _processor(),
        "cores": f"{len(cores())} of {os.cpu_count()} usable",
        "kernel": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        **{name: _package(name) for name in ("onnxruntime", "grpcio", "numpy", "uvloop", "pillow")},
        "h2load": _said("h2load", "--version"),
        "wrk": _said("wrk", "-v"),
    }


def _processor() -> str:
    match = re.search(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    return match[1] if match else platform.machine()


def _package(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "not installed"


def _said(*command: str) -> str:
    """The first line of what a program says of itself. wrk ends with 1 whenever it is asked."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=10)  # noqa: S603
    except OSError:
        return "not installed"
    said = (done.stdout + done.stderr).strip()
    return said.splitlines()[0] if said else "unknown"
