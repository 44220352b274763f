"""Servers as trees of processes: held still while another one is measured, and ended to the last process, by pid.

A tree is known by a variable in the environment of its processes, which their children inherit, whatever sessions
or process groups they make for themselves. Linux only: it reads /proc.
"""

from __future__ import annotations

import os
import secrets
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from loadtests.cores import pinned
from loadtests.process import unwinding

_MARK = "LOADTESTS_PROCESS_TREE"
_TICKS_PER_S = os.sysconf("SC_CLK_TCK")
_PAUSE_S = 0.02
_FREEZE_S = 2.0


class ProcessTree:
    """What one command started, and all that came of it."""

    def __init__(
        self, command: Sequence[str], log: Path, cores: Sequence[int], *, env: Mapping[str, str], cwd: Path
    ) -> None:
        """Start `command` on `cores`; what it prints goes to `log`. `env` is added to this process's environment."""
        self._mark = f"{_MARK}={secrets.token_hex(8)}"
        name, _, value = self._mark.partition("=")
        with log.open("wb") as out, pinned(*cores):
            self._leader = subprocess.Popen(  # noqa: S603 - our own command
                command,
                cwd=cwd,
                env={**os.environ, **env, name: value},
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT,
                # Ctrl-C is for this process, which then ends its servers in order.
                start_new_session=True,
            )
        self.log = log

    @classmethod
    @contextmanager
    def running(
        cls, command: Sequence[str], log: Path, cores: Sequence[int], *, env: Mapping[str, str], cwd: Path
    ) -> Iterator[ProcessTree]:
        """One that ends with the block, and where a signal ends this process."""
        with unwinding():
            tree = cls(command, log, cores, env=env, cwd=cwd)
            try:
                yield tree
            finally:
                tree.end()

    def alive(self) -> bool:
        """The process that was started still runs."""
        return self._leader.poll() is None

    def pids(self) -> list[int]:
        mark = self._mark.encode()
        found = []
        for process in Path("/proc").iterdir():
            if process.name.isdecimal():
                with suppress(OSError):
                    if mark in (process / "environ").read_bytes().split(b"\0"):
                        found.append(int(process.name))
        return found

    def freeze(self) -> None:
        """Stop every process: it takes no time from the core until `thaw`."""
        self._signal(signal.SIGSTOP)
        self._wait(lambda: all(_stat(pid)[0] in "TZ" for pid in self.pids()), _FREEZE_S)

    def thaw(self) -> None:
        self._signal(signal.SIGCONT)

    def cpu_s(self) -> float:
        """Processor seconds that the processes which are alive have used."""
        ticks = 0
        for pid in self.pids():
            stat = _stat(pid)
            ticks += int(stat[11]) + int(stat[12])
        return ticks / _TICKS_PER_S

    def end(self, grace_s: float = 15) -> None:
        """Ask the leader, then whatever is left, then kill. Returns when no process is left."""
        self.thaw()
        if self.alive():
            self._leader.terminate()
        self._wait(lambda: not self.alive(), grace_s)
        self._signal(signal.SIGTERM)
        self._wait(lambda: not self.pids(), 3)
        self._signal(signal.SIGKILL)
        self._leader.wait()
        self._wait(lambda: not self.pids(), 5)

    def _signal(self, number: int) -> None:
        for pid in self.pids():
            with suppress(ProcessLookupError):
                os.kill(pid, number)

    def _wait(self, over: Callable[[], bool], seconds: float) -> None:
        until = time.monotonic() + seconds
        while not over() and time.monotonic() < until:
            time.sleep(_PAUSE_S)


def _stat(pid: int) -> list[str]:
    """The fields of /proc/PID/stat from the state on; those of a dead process where there is none any more."""
    try:
        # The name of a program may hold spaces, so what follows its closing bracket is what counts.
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return ["Z", *["0"] * 12]
