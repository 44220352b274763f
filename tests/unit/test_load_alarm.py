"""The timer of Locust's greenlets."""

from __future__ import annotations

import time
from pathlib import Path

import gevent

from loadtests.slo.alarm import Alarm

FILES = Path("/proc/self/fd")


def test_it_waits_until_the_time_and_lets_others_have_their_turn() -> None:
    """Never less; and for a time that has passed not at all."""
    alarm, order = Alarm(), []
    gevent.spawn(order.append, "another")
    due_s = time.monotonic() + 0.0105
    alarm.wait(due_s)
    assert time.monotonic() >= due_s
    assert order == ["another"]
    for past_s in (due_s, 0.0, -1.0):
        alarm.wait(past_s)
    alarm.close()


def test_it_gives_its_descriptor_back() -> None:
    """As many files are open as before."""
    before = len(list(FILES.iterdir()))
    for _ in range(3):
        alarm = Alarm()
        alarm.wait(time.monotonic() + 1e-4)
        alarm.close()
    assert len(list(FILES.iterdir())) == before
