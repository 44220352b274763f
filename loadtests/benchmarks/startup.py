"""How long a server takes to be ready, what the time goes into, and the memory that it then holds.

    python -m loadtests.benchmarks.startup

Starts the real server on the shipped models in fresh processes, with a warm file cache and compiled bytecode (a first
start is not counted). Ready is the first 200 of ``/v2/health/ready``, asked for in a loop; the parts are
those of processes that stop earlier, measured in turn, and the server's own log. CPU time is that of all threads of
the process: on a machine with neighbours it is the steadier number.
"""

from __future__ import annotations

import argparse
import http.client
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from loadtests.flags import counted
from loadtests.process import unwinding
from loadtests.report import publish, table

_ROOT = Path(__file__).parents[2]
_START_S = 30.0
_READY = re.compile(r"ready in ([\d.]+) s")

_COMMAND_LINE = (
    "import typer, server.cli\ntyper.main.get_command(server.cli.create_app(['serve'])); server.cli.load_settings()"
)
PARTS = {
    "interpreter": "pass",
    "command line, settings": _COMMAND_LINE,
    "imports": f"{_COMMAND_LINE}\nfrom server import process; process.prepare()\nimport server.app, onnxruntime",
}
"""What a process does that stops there; each does the one before it as well."""


@dataclass(frozen=True)
class Start:
    """One start; times in seconds, memory in bytes."""

    ready_s: float
    cpu_s: float
    models_s: float
    """By the server's own log: loading, verifying and warming up the models, and opening the listeners."""
    rss_bytes: int


def start(repository: Path, port: int, log: Path) -> Start:
    """Start a server, wait until it is ready, look at it, end it. Raises RuntimeError if it does not get ready."""
    ports = ["--http-port", f"{port}", "--grpc-port", "0", "--metrics-port", "0"]
    command = [sys.executable, "-m", "server", "serve", "--model-repository", f"{repository}", *ports]
    with log.open("w") as stderr:
        began = time.perf_counter()
        process = subprocess.Popen(  # noqa: S603 - our own command
            command, cwd=_ROOT, env=_environment(), stdout=subprocess.DEVNULL, stderr=stderr
        )
    try:
        while not _is_ready(port):
            if process.poll() is not None or time.perf_counter() - began > _START_S:
                raise RuntimeError(f"the server did not start:\n{log.read_text()}")
            time.sleep(0.002)
        ready_s = time.perf_counter() - began
        # Its log line follows the answer by some microseconds.
        while not (line := _READY.search(log.read_text())):
            time.sleep(0.002)
        cpu_s, rss_bytes = _used(process.pid)
    finally:
        process.terminate()
        process.wait()
    return Start(ready_s, cpu_s, float(line[1]), rss_bytes)


def _is_ready(port: int) -> bool:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=1)
    try:
        connection.request("GET", "/v2/health/ready")
        return connection.getresponse().status == 200
    except OSError:
        return False
    finally:
        connection.close()


def _used(pid: int) -> tuple[float, int]:
    """Seconds of CPU time so far, and resident bytes."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    ticks = int(fields[11]) + int(fields[12])
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return ticks / os.sysconf("SC_CLK_TCK"), pages * os.sysconf("SC_PAGE_SIZE")


def _environment() -> dict[str, str]:
    """Bytecode is kept, as where people run it; a server without it compiles itself anew at each start."""
    return {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}


def _run(code: str) -> tuple[float, float]:
    """Seconds that a process with `code` takes, by the clock and of CPU time."""
    before, began = os.times(), time.perf_counter()
    subprocess.run([sys.executable, "-c", code], cwd=_ROOT, env=_environment(), check=True)  # noqa: S603 - our own code
    after = os.times()
    cpu_s = after.children_user + after.children_system - before.children_user - before.children_system
    return time.perf_counter() - began, cpu_s


def measure(repository: Path, starts: int, port: int) -> str:
    with tempfile.TemporaryDirectory() as folder, unwinding():
        log = Path(folder) / "log"
        start(repository, port, log)
        found, parts = [], {name: [] for name in PARTS}
        for _ in range(starts):
            for name, code in PARTS.items():
                parts[name].append(_run(code))
            found.append(start(repository, port, log))
    lines, before_s, before_cpu_s = [], 0.0, 0.0
    for name, runs in parts.items():
        seconds, cpu_s = median(run[0] for run in runs), median(run[1] for run in runs)
        lines.append((name, f"{seconds - before_s:.3f}", f"{cpu_s - before_cpu_s:.3f}"))
        before_s, before_cpu_s = seconds, cpu_s
    cpu_s = median(each.cpu_s for each in found)
    lines.append(("models, listeners", f"{median(s.models_s for s in found):.3f}", f"{cpu_s - before_cpu_s:.3f}"))
    lines.append(("**ready**", f"**{median(s.ready_s for s in found):.3f}**", f"**{cpu_s:.3f}**"))
    lines.append(("slowest", f"{max(s.ready_s for s in found):.3f}", f"{max(s.cpu_s for s in found):.3f}"))
    rss = f"\nResident when ready: {median(each.rss_bytes for each in found) / 1e6:.1f} MB.\n"
    return table(("part", "seconds", "CPU seconds"), lines) + rss


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--starts", type=counted, default=7, help="of which the medians are taken (default: 7)")
    parser.add_argument("--repository", type=Path, default=Path("model_repository"), help="the models to serve")
    parser.add_argument("--port", type=int, default=18311, help="for REST, on the loopback (default: 18311)")
    parser.add_argument("--out", type=Path, help="also write startup.md into this folder")
    options = parser.parse_args(arguments)
    report = measure(options.repository, options.starts, options.port)
    text = f"# From the start of a process to READY, medians of {options.starts} starts\n\n{report}"
    publish(text, "startup.md", options.out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
