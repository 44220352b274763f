"""The generator: requests sent at the times at which they are due, whatever became of those before them.

One thread and one loop: it sends what is due, then sleeps in select(2), which is exact to microseconds, until the next
one is due or an answer comes.
"""

from __future__ import annotations

import gc
import select
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import count

import numpy as np

from server.load.payloads import OUTCOMES, Payload
from server.load.samples import Samples
from server.load.wire import Wire

_LEAD_NS = 20_000_000
_AT_ONCE = 64
"""Requests that are sent before answers are looked at again."""
_TURNS = 4096
"""Choices among the payloads that a closed loop goes through, again and again."""
_LONGEST_S = 0.05
"""Between two looks: a request that could not be sent wakes nobody."""
_bases = count(0, 1 << 40)
"""Requests have numbers that no other run has."""
_INDEX = {outcome: index for index, outcome in enumerate(OUTCOMES)}


@dataclass(frozen=True)
class Leg:
    """One kind of request: where it goes, what it is, when it is due."""

    wire: Wire
    payloads: Sequence[Payload]
    due_ns: Sequence[int]
    """From the start, ascending."""
    seed: int = 0
    """Of the choice among the payloads, by their weights."""
    chosen: Sequence[int] = ()
    """Which payload each request has; empty: they are chosen."""


def poisson(rate: float, seconds: float, seed: int) -> list[int]:
    """When requests of independent callers are due, in nanoseconds: as many as `rate` a second says, each at any time.

    A Poisson process given its number, for by its luck a window of 1,000 requests would be of another rate by 3 %. With
    the same seed and a higher rate the same times are there, and more.
    """
    times = np.sort(np.random.default_rng(seed).random(round(rate * seconds))) * seconds * 1e9
    due: list[int] = times.astype(np.int64).tolist()
    return due


def open_loop(legs: Sequence[Leg], grace_s: float = 10.0) -> Samples:
    """Send everything; return when all is answered, or `grace_s` after the last one was due: what is not answered then
    has failed."""
    order = sorted((due, number) for number, leg in enumerate(legs) for due in leg.due_ns)
    run = _Run(legs, [due for due, _ in order], [number for _, number in order])
    with _uncollected():
        run.send_when_due(grace_s)
    return run.samples()


def closed_loop(leg: Leg, in_flight: int, seconds: float) -> Samples:
    """Always `in_flight` requests under way for `seconds`, each due when it is sent, whatever `leg.due_ns` says."""
    run = _Run([leg], [], [])
    with _uncollected():
        run.keep_asking(in_flight, seconds)
    return run.samples()


class _uncollected:  # noqa: N801 - used as a statement
    """A look of the garbage collector through everything would be lag."""

    def __enter__(self) -> None:
        gc.collect()
        gc.disable()

    def __exit__(self, *_: object) -> None:
        gc.enable()


@dataclass
class _Run:
    legs: Sequence[Leg]
    due: list[int]
    leg_of: list[int]
    faults: Counter[tuple[int, str]] = field(default_factory=Counter)

    def __post_init__(self) -> None:
        self.sent: list[int] = [0] * len(self.due)
        self.ended: list[int] = [-1] * len(self.due)
        self.outcomes = bytearray(len(self.due))
        self._chosen = [leg.chosen or self._choices(leg, len(leg.due_ns) or _TURNS) for leg in self.legs]
        self._next = [0] * len(self.legs)
        self._base = next(_bases)
        self._began_ns = 0
        self._unanswered = 0
        self._wires = list({id(leg.wire): leg.wire for leg in self.legs}.values())

    @staticmethod
    def _choices(leg: Leg, number: int) -> list[int]:
        weights = np.array([payload.weight for payload in leg.payloads], dtype=np.float64)
        chosen: list[int] = (
            np.random.default_rng(leg.seed).choice(len(weights), number, p=weights / weights.sum()).tolist()
        )
        return chosen

    def _now(self) -> int:
        return time.monotonic_ns() - self._began_ns

    def _send(self, index: int) -> None:
        number = self.leg_of[index]
        leg, turn = self.legs[number], self._next[number]
        chosen = self._chosen[number]
        self._next[number] = (turn + 1) % len(chosen)
        self._unanswered += 1
        leg.wire.send(self._base + index, leg.payloads[chosen[turn]])

    def _receive(self) -> int:
        ended = 0
        for wire in self._wires:
            for number, (outcome, words) in wire.ready():
                index = number - self._base
                if index < 0:
                    continue  # Of a run before, which did not wait for it.
                self.ended[index] = self._now()
                self.outcomes[index] = _INDEX[outcome]
                if words:
                    self.faults[self.leg_of[index], words] += 1
                ended += 1
        self._unanswered -= ended
        return ended

    def send_when_due(self, grace_s: float) -> None:
        due, sent, total = self.due, self.sent, len(self.due)
        self._began_ns = time.monotonic_ns() + _LEAD_NS
        index = 0
        until = (due[-1] if due else 0) + int(grace_s * 1e9)
        while index < total or self._unanswered:
            now = self._now()
            burst = min(total, index + _AT_ONCE)
            while index < burst and due[index] <= now:
                sent[index] = now
                self._send(index)
                index += 1
                now = self._now()
            if index == total and now > until:
                break
            wait_ns = (due[index] if index < total else until) - now
            select.select(self._wires, (), (), min(_LONGEST_S, max(0.0, wait_ns / 1e9)))
            self._receive()

    def keep_asking(self, in_flight: int, seconds: float) -> None:
        self._began_ns = time.monotonic_ns()
        until = int(seconds * 1e9)
        free = in_flight
        while True:
            now = self._now()
            if now < until:
                for _ in range(free):
                    self.due.append(now)
                    self.sent.append(now)
                    self.ended.append(-1)
                    self.outcomes.append(0)
                    self.leg_of.append(0)
                    self._send(len(self.due) - 1)
                free = 0
            elif not self._unanswered or now > until + 10**10:
                return
            select.select(self._wires, (), (), _LONGEST_S)
            free += self._receive()

    def samples(self) -> Samples:
        """What has not ended has failed now."""
        now = self._now()
        for index, ended in enumerate(self.ended):
            if ended < 0:
                self.ended[index], self.outcomes[index] = now, _INDEX["failed"]
                self.faults[self.leg_of[index], "no answer in time"] += 1
        return Samples(
            np.array(self.due, np.int64),
            np.array(self.sent, np.int64),
            np.array(self.ended, np.int64),
            np.frombuffer(bytes(self.outcomes), np.uint8),
            np.array(self.leg_of, np.int16),
            self.faults,
        )
