"""What a process that serves sets for itself: threads of libraries, and Python's garbage collector.

The collector walks every object that lives, and what a server has imported and loaded lives until the end: 80 ms for
each full collection, in which nobody is answered. So it is off while the process starts; what is there then is taken
out of its sight for good; and the rest, in which only errors make cycles, is looked through less often.
"""

from __future__ import annotations

import gc
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

_THRESHOLD = 10_000
"""More objects made than freed before a look through the young ones. At Python's own 700 there are 200 looks a
second under load, 4 % of the time (`make bench-collector`)."""


@contextmanager
def importing() -> Iterator[None]:
    """Nothing of what is imported is garbage, and the collector would walk it again and again: 10 ms for the command
    line alone, of which nobody knows yet whether it will serve."""
    gc.disable()
    yield
    gc.freeze()
    gc.enable()


def prepare() -> None:
    """To be called before numpy and the rest of the server are imported."""
    # NumPy's BLAS would start a thread for each core. Nothing here multiplies matrices with it that are worth one, and
    # threads that spin for work would take the cores of the engines.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    gc.disable()


def be_called(name: str) -> None:
    """For `ps` and `top`, to which processes that were forked look alike: 12 characters behind "fp-". Linux only.
    Source: proc_pid_comm(5)."""
    with suppress(OSError):
        Path("/proc/self/comm").write_text(f"fp-{name}")


def settle() -> None:
    """To be called when the server is ready."""
    # No collection before: some hundred objects of garbage are kept, and 30 ms of every start are not spent.
    gc.freeze()
    gc.set_threshold(_THRESHOLD, 10, 10)
    gc.enable()


def reclaim() -> None:
    """To be called when a model was closed: what is left of it are cycles, which nobody would look for a long time."""
    gc.collect()


def end_output() -> None:
    """To be called last. What could not be written, as the disk is full, Python would try once more when it ends, and
    make of that the exit status 120."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except OSError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
