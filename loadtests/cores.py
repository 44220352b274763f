"""Keeping this process, and what it starts, on some cores."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager


def cores() -> list[int]:
    """Those that this process may use, lowest first."""
    return sorted(os.sched_getaffinity(0))


@contextmanager
def pinned(*only: int) -> Iterator[None]:
    """This thread, and every thread and process that it starts inside, on the cores `only`."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, only)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)
