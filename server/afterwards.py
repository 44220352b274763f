"""What a step on the event loop leaves to be done behind it, in the same turn of the loop: answers that are written.

A `call_soon` from within would be done in the next turn, and between two turns the loop looks at its sockets: a system
call, and some microseconds more for everybody who waits for an answer.
"""

from __future__ import annotations

import asyncio
import logging
import sys
import threading
import time
from collections.abc import Callable

log = logging.getLogger(__name__)


class _Here(threading.local):
    """Of the loop that runs on this thread."""

    due: list[Callable[[], None]] | None = None
    """What the step under way has left so far; None: none is under way."""
    since_ns = sys.maxsize
    """When the last step was over, with what it had left; before the first one nothing is idle."""


_here = _Here()


def afterwards(callback: Callable[[], None]) -> None:
    """Call it once the step under way is over, behind what else that has left; where none is, in the next turn."""
    due = _here.due
    if due is None:
        asyncio.get_running_loop().call_soon(callback)
    else:
        due.append(callback)


def idle_since_ns() -> int:
    """When the last step on this loop was over, with what it had left; by `time.monotonic_ns`."""
    return _here.since_ns


def as_step(take: Callable[..., None], *arguments: object) -> None:
    """Take a step, and do what it leaves, whether it raises or not. One within another is a part of that."""
    if _here.due is not None:
        take(*arguments)
        return
    due: list[Callable[[], None]] = []
    _here.due = due
    try:
        take(*arguments)
    finally:
        _here.due = None
        for callback in due:
            try:
                callback()
            except Exception:
                log.exception("what a step has left to be done failed")
        _here.since_ns = time.monotonic_ns()
