"""The wires of server/load among Locust's greenlets: one greenlet sends what is due, another takes the answers.

A greenlet for each request, with grpcio or an HTTP client in it, costs several times the processor time, which is what
a generator is late by.
"""

from __future__ import annotations

import select
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

import gevent
from gevent import monkey
from gevent.socket import wait_read

from loadtests.slo.alarm import Alarm
from server.load.payloads import Judged, Payload
from server.load.wire import Wire

# Locust patches it away, for most who use it would block all greenlets; a wire only ever polls.
select.epoll = monkey.get_original("select", "epoll")  # type: ignore[misc]

Ended = Callable[[float, float, Judged], None]
"""Hears when a request was due, on the monotonic clock, how late it was sent, in seconds, and what became of it."""

UNANSWERED: Judged = ("failed", "no answer in time")
_AT_ONCE = 32
"""Requests that are sent before other greenlets have their turn."""
_LOOK_S = 0.05
"""Between two looks at what could not be sent, which no socket tells of."""


class _Silence(Exception):
    """Nothing came."""


def send_all(
    wire: Wire,
    payloads: Sequence[Payload],
    schedule: Sequence[tuple[int, int]],
    began_s: float,
    ended: Ended,
    timeout_s: float,
) -> None:
    """Return when all is answered, or `timeout_s` after the last one was due. What is not answered then has failed,
    and so it has where this is killed before."""
    under_way: dict[int, tuple[float, float]] = {}

    def take(answers: Sequence[tuple[int, Judged]]) -> None:
        for number, judged in answers:
            ended(*under_way.pop(number), judged)

    def receive() -> None:
        while True:
            with suppress(_Silence):
                wait_read(wire.fileno(), timeout=_LOOK_S, timeout_exc=_Silence())
            take(wire.ready())

    receiving: Any = gevent.spawn(receive)
    alarm = Alarm()
    try:
        for number, (offset_ns, place) in enumerate(schedule):
            due_s = began_s + offset_ns / 1e9
            if due_s > time.monotonic() or number % _AT_ONCE == 0:
                alarm.wait(due_s)
            under_way[number] = (due_s, time.monotonic() - due_s)
            wire.send(number, payloads[place])
        until_s = time.monotonic() + timeout_s
        while under_way and time.monotonic() < until_s and not receiving.ready():
            gevent.sleep(_LOOK_S)
    finally:
        receiving.kill()
        alarm.close()
        wire.close()
        for due_s, lag_s in under_way.values():
            ended(due_s, lag_s, UNANSWERED)
