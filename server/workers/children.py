"""The processes that the supervisor forks, and which front gets the next connection."""

from __future__ import annotations

import logging
import os
import signal
import socket
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass, field

import uvloop

from server import process
from server.observability.logging import configure_logging
from server.settings import Settings
from server.workers.control import COUNTS, LISTENERS, channel

log = logging.getLogger(__name__)

Main = Callable[[Settings, socket.socket, str], Awaitable[int]]
"""Runs in the child, with its end of the channel and its name; the exit status."""


@dataclass(eq=False)
class Child:
    name: str
    pid: int
    end: socket.socket
    """Ours, of the channel to it."""
    ready: bool = False
    heard_s: float = 0.0
    """When it said something last, by `time.monotonic`."""
    links: int = 0
    """Links that it was given to the engine process: the number of the last."""
    sent: list[int] = field(default_factory=lambda: [0] * len(LISTENERS))
    """Connections that were handed to it, by listener."""
    got: list[int] = field(default_factory=lambda: [0] * len(LISTENERS))
    open: list[int] = field(default_factory=lambda: [0] * len(LISTENERS))
    """As it told last: connections that it got, and those that are open."""

    def told(self, counts: bytes) -> None:
        numbers = COUNTS.unpack(counts)
        self.got, self.open = list(numbers[::2]), list(numbers[1::2])

    def load(self, listener: int) -> tuple[int, int]:
        """Its connections of one listener, then of all; those on the way to it are counted."""
        each = [opened + sent - got for opened, sent, got in zip(self.open, self.sent, self.got, strict=True)]
        return each[listener], sum(each)


def emptiest(fronts: Iterable[Child], listener: int) -> list[Child]:
    """The fronts that serve, those with the fewest connections of the listener first: of few connections, each gets
    as many, whatever else is open."""
    return sorted((front for front in fronts if front.ready), key=lambda front: front.load(listener))


def fork(name: str, main: Main, settings: Settings, leave: Callable[[], None]) -> Child:
    """Start a child that runs `main` and ends. `leave` closes there what is the supervisor's alone.

    What was imported is there at once, and its memory is shared until it is written to. No thread and no event loop
    may have been started before, for they would not be whole in the child.

    Raises:
        OSError: there are no descriptors, processes or memory for it.
    """
    ours, theirs = channel()
    try:
        pid = os.fork()
    except OSError:
        ours.close()
        theirs.close()
        raise
    if pid:
        theirs.close()
        return Child(name, pid, ours)
    status = 1
    try:
        ours.close()
        leave()
        # To end it is the supervisor's business: a terminal's Ctrl-C goes to all of its processes.
        signal.set_wakeup_fd(-1)
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, signal.SIG_IGN)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        process.be_called(name)
        configure_logging(settings.log, name)
        status = uvloop.run(_life(main, settings, theirs, name))
    except BaseException:
        log.critical("%s failed", name, exc_info=True)
    finally:
        # Never back into the supervisor's code.
        process.end_output()
        os._exit(status)


async def _life(main: Main, settings: Settings, end: socket.socket, name: str) -> int:
    return await main(settings, end, name)
