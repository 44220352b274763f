"""Locust's greenlets, killed before all is answered: what was sent and is not answered has failed, and is told."""

from __future__ import annotations

import os
import time

import gevent
import pytest

from loadtests.slo import greenlets
from server.load.payloads import Judged, Payload


class Silent:
    """A wire to a server that takes everything and answers nothing."""

    def __init__(self) -> None:
        self.sent = 0
        self._reads, self._writes = os.pipe()

    def fileno(self) -> int:
        return self._reads

    def send(self, number: int, payload: Payload) -> None:
        self.sent += 1

    def ready(self) -> list[tuple[int, Judged]]:
        return []

    def close(self) -> None:
        os.close(self._reads)
        os.close(self._writes)


@pytest.mark.parametrize("killed", [True, False], ids=["the test is ended", "the time for answers is over"])
def test_what_a_server_never_answers_has_failed(killed: bool) -> None:
    """Three that were due; the fourth is due in an hour, and was not sent, or there is none."""
    wire = Silent()
    heard: list[tuple[float, float, Judged]] = []
    schedule = [(number, 0) for number in range(3)] + [(3_600 * 10**9, 0)] * killed
    payloads: list[Payload] = [None]  # type: ignore[list-item]
    sending = gevent.spawn(
        greenlets.send_all, wire, payloads, schedule, time.monotonic(), lambda *one: heard.append(one), 0.1
    )
    while wire.sent < 3:
        gevent.sleep(0.01)
    if killed:
        sending.kill()
    sending.join()
    assert sending.successful()
    assert [judged for _, _, judged in heard] == [greenlets.UNANSWERED] * 3
