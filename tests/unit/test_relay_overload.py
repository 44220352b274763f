"""A relay before simulated servers that merge what waits into batches, asked for more and for less than they can do."""

from __future__ import annotations

import heapq
import random
from collections import Counter
from collections.abc import Callable
from functools import partial

import pytest

from server.errors import CallExpired, Cancelled
from server.scheduler.cost import CostModel
from server.scheduler.flights import Done
from server.scheduler.queue import QueuePolicy
from server.scheduler.relay import Relay
from server.scheduler.statistics import ModelStatistics
from server.scheduler.window import Bounds
from server.types import InferRequest, InferResponse, Outcome
from tests.support.scheduler import MS, Caller, ManualClock, ManualLoop

NET_MS = 0.5


class Simulation:
    """Open-loop callers, each with a deadline; the server answers in the order of arrival, late or not."""

    def __init__(self, cost_ms: Callable[[int], float], largest: int, deadline_ms: float) -> None:
        self._cost_ms, self._largest, self._deadline_ms = cost_ms, largest, deadline_ms
        self._random = random.Random(1)
        self.clock = ManualClock()
        self._loop = ManualLoop(self.clock)
        self._caller = Caller(self.clock)
        self._events: list[tuple[int, float, Callable[[], None]]] = []
        self.name, self.work_ns = "simulated", 0
        self._queued: list[InferRequest] = []
        self._done: dict[InferRequest, Done] = {}
        self._idle = True
        self.outcomes: Counter[str] = Counter()
        self.relay = Relay(
            "doubler",
            Bounds(2, min(64, 2 * largest), 1024),
            QueuePolicy(max_queue_size=8192),
            CostModel(),
            ModelStatistics("doubler", "1"),
            self._loop,  # type: ignore[arg-type]
            self.clock,
        )
        self.relay.serve_by([self])

    def run(self, rate: float, seconds: float) -> float:
        """Answers in time, by the second."""
        end_ns = self.clock.now_ns + int(seconds * 1e9)
        self._call(rate, end_ns)
        while self._events:
            timer_ns = self._loop.next_timer_ns()
            next_ns = self._events[0][0] if timer_ns is None else min(timer_ns, self._events[0][0])
            self.clock.now_ns = max(self.clock.now_ns, next_ns)
            while self._events and self._events[0][0] <= self.clock.now_ns:
                heapq.heappop(self._events)[2]()
            self._loop.run()
        return self.outcomes["in time"] / seconds

    def _later(self, ms: float, what: Callable[[], None]) -> None:
        heapq.heappush(self._events, (self.clock.now_ns + int(ms * MS), self._random.random(), what))

    def _call(self, rate: float, end_ns: int) -> None:
        deadline_ns = self.clock.now_ns + int(self._deadline_ms * MS)
        self.relay.submit([self._caller.request(deadline_ns=deadline_ns, on_settle=self._settled)])
        if self.clock.now_ns < end_ns:
            self._later(self._random.expovariate(rate) * 1000, lambda: self._call(rate, end_ns))

    def _settled(self, request: InferRequest, outcome: Outcome) -> None:
        in_time = isinstance(outcome, InferResponse) and self.clock.now_ns <= request.deadline_ns
        self.outcomes["in time" if in_time else type(outcome).__name__] += 1

    # --- the server --------------------------------------------------------------------------------

    def ask(self, request: InferRequest, done: Done) -> Callable[[], None]:
        self._done[request] = done
        self._later(NET_MS * self._random.random(), lambda: self._arrive(request))
        self._later(max(0, request.deadline_ns - self.clock.now_ns) / MS, lambda: self._end(request, CallExpired()))
        return lambda: self._end(request, Cancelled())

    def _arrive(self, request: InferRequest) -> None:
        self._queued.append(request)
        self._start()

    def _start(self) -> None:
        if not self._queued or not self._idle:
            return
        batch, self._queued = self._queued[: self._largest], self._queued[self._largest :]
        self._idle = False
        self._later(self._cost_ms(len(batch)) * (1 + 0.05 * self._random.random()), lambda: self._passed(batch))

    def _passed(self, batch: list[InferRequest]) -> None:
        self._idle = True
        self._start()
        for request in batch:
            answer = InferResponse("doubler", "1", [])
            self._later(NET_MS * self._random.random(), partial(self._end, request, answer))

    def _end(self, request: InferRequest, outcome: Outcome) -> None:
        done = self._done.pop(request, None)
        if done is not None:
            done(outcome)


SERVERS: dict[str, tuple[Callable[[int], float], int, float]] = {
    "a batch costs what a row does": (lambda rows: 40.0, 4, 300),
    "batches gain much": (lambda rows: 40 + 0.6 * rows, 32, 500),
    "batches gain nothing": (lambda rows: 4.0 * rows, 32, 100),
}
"""What a batch costs in ms, the largest one, and the callers' deadline in ms."""


def best(server: str) -> float:
    cost_ms, largest, _ = SERVERS[server]
    return max(1000 * rows / cost_ms(rows) for rows in range(1, largest + 1))


@pytest.mark.parametrize("times", [1.5, 3.0])
@pytest.mark.parametrize("server", SERVERS)
def test_overload_costs_those_who_can_not_be_answered_in_time_and_nobody_else(server: str, times: float) -> None:
    """Most of what the server can do is answered in time, and nearly all others are refused at the door."""
    simulation = Simulation(*SERVERS[server])

    in_time = simulation.run(times * best(server), 20)

    assert in_time > 0.8 * best(server), simulation.outcomes
    hopeless = sum(simulation.outcomes.values()) - simulation.outcomes["in time"]
    assert simulation.outcomes["Overloaded"] > 0.8 * hopeless, simulation.outcomes


@pytest.mark.parametrize("server", SERVERS)
def test_what_the_server_can_do_it_does(server: str) -> None:
    """At a good half of it, hardly anybody is refused or late."""
    simulation = Simulation(*SERVERS[server])

    simulation.run(0.6 * best(server), 20)

    assert simulation.outcomes["in time"] > 0.98 * sum(simulation.outcomes.values()), simulation.outcomes
