"""Servers on a simulated clock: the real `Batcher` with a scripted instance, and what it is compared with.

Every server gets the same arrivals, one row each, with the same deadline, and one instance whose passes take
the same scripted time. Simulated time is exact and everything is seeded, so a run can be repeated to the bit.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from random import Random

from server.errors import Code, ServingError
from server.scheduler.batcher import Batcher
from server.scheduler.cost import CostModel
from server.scheduler.plan import Limits
from server.scheduler.queue import QueuePolicy
from server.scheduler.statistics import ModelStatistics
from server.scheduler.worker import Done, Pass
from server.tensor import Array
from server.types import Batch, InferRequest, InferResponse, Outcome
from tests.support.scheduler import ManualClock, ManualLoop

_MODEL, _VERSION = "simulated", "1"


@dataclass(frozen=True)
class Engine:
    """What a forward pass costs: ``base_ns + rows * row_ns``, times a seeded lognormal factor of mean 1."""

    base_ns: int = 100_000
    row_ns: int = 4_000_000
    noise: float = 0.05
    """Standard deviation of the factor's logarithm."""
    max_batch_size: int = 32

    def mean_ns(self, rows: int) -> int:
        return self.base_ns + rows * self.row_ns

    def capacity_per_s(self) -> float:
        """Rows a second at the best batch size: what a closed loop of enough callers gets."""
        return max(rows / self.mean_ns(rows) for rows in range(1, self.max_batch_size + 1)) * 1e9

    def passes(self, seed: int) -> Callable[[int], int]:
        """The time of each pass, one after the other, by its rows."""
        rng = Random(seed)
        return lambda rows: int(self.mean_ns(rows) * math.exp(rng.gauss(-(self.noise**2) / 2, self.noise)))


@dataclass
class Tally:
    """What became of the requests of one run."""

    offered: int = 0
    in_time: int = 0
    late: int = 0
    """Answered after the deadline."""
    refused: int = 0
    """Told at once that there is no room."""
    expired: int = 0
    """Told at the deadline that it is over."""
    failed: int = 0
    executed_expired: int = 0
    """Requests whose pass began after their deadline."""
    passes: int = 0
    latencies_ns: list[int] = field(default_factory=list)
    """Of all answers, late ones too."""

    def answer(self, latency_ns: int, deadline_ns: int) -> None:
        self.latencies_ns.append(latency_ns)
        if latency_ns <= deadline_ns:
            self.in_time += 1
        else:
            self.late += 1

    def p99_ms(self) -> float:
        """NaN if nothing was answered."""
        if not self.latencies_ns:
            return math.nan
        ordered = sorted(self.latencies_ns)
        return ordered[math.ceil(0.99 * len(ordered)) - 1] / 1e6


class ScriptedInstance:
    """What a scripted runner runs, were it asked to."""

    name = "simulated_0"
    device = "cpu"

    def __init__(self, threads: int = 1) -> None:
        self.threads = threads

    def run(self, batch: Batch) -> Mapping[str, Array]:
        raise NotImplementedError


class ScriptedRunner:
    """A worker whose passes take simulated time and answer without computing anything."""

    alive = True

    def __init__(self, loop: ManualLoop, clock: ManualClock, cost_ns: Callable[[int], int], tally: Tally) -> None:
        self._loop = loop
        self._clock = clock
        self._cost_ns = cost_ns
        self._tally = tally

    def start(self, requests: Sequence[InferRequest], done: Done) -> None:
        result = self._pass(requests)
        self._loop.call_later(result.compute_infer_ns / 1e9, lambda: done(result))

    def run_inline(self, requests: Sequence[InferRequest]) -> Pass:
        result = self._pass(requests)
        self._clock.now_ns += result.compute_infer_ns
        return result

    def _pass(self, requests: Sequence[InferRequest]) -> Pass:
        now_ns = self._clock()
        rows = sum(request.rows for request in requests)
        self._tally.passes += 1
        self._tally.executed_expired += sum(request.deadline_ns <= now_ns for request in requests)
        responses = [InferResponse(_MODEL, _VERSION, ()) for _ in requests]
        return Pass(rows, now_ns, responses, compute_infer_ns=self._cost_ns(rows))

    def stop(self) -> None:
        return

    async def join(self) -> None:
        return


def ours(arrivals_ns: Sequence[int], engine: Engine, deadline_ns: int, seed: int) -> Tally:
    """The real `Batcher` as the server makes it for a config with an empty ``dynamic_batching {}``."""
    clock = ManualClock()
    loop = ManualLoop(clock)
    tally = Tally(offered=len(arrivals_ns))
    batcher = make_batcher(engine, loop, clock, ScriptedRunner(loop, clock, engine.passes(seed), tally))

    def settled(request: InferRequest, outcome: Outcome) -> None:
        if isinstance(outcome, InferResponse):
            tally.answer(clock() - request.received_ns, deadline_ns)
        elif isinstance(outcome, ServingError) and outcome.code is Code.EXHAUSTED:
            tally.refused += 1
        elif isinstance(outcome, ServingError) and outcome.code is Code.DEADLINE:
            tally.expired += 1
        else:
            tally.failed += 1

    start_ns = clock()
    for arrival_ns in arrivals_ns:
        run_until(loop, clock, start_ns + arrival_ns)
        now_ns = clock()
        request = InferRequest(_MODEL, (), on_settle=settled, received_ns=now_ns, deadline_ns=now_ns + deadline_ns)
        batcher.submit((request,))
    run_until(loop, clock, None)
    return tally


def make_batcher(engine: Engine, loop: ManualLoop, clock: ManualClock, runner: ScriptedRunner) -> Batcher:
    """Its cost model knows what a warm-up sweep would have measured."""
    sweep = {rows: engine.mean_ns(rows) for rows in range(1, engine.max_batch_size + 1)}
    return Batcher(
        _MODEL,
        _VERSION,
        [ScriptedInstance()],
        Limits(engine.max_batch_size),
        QueuePolicy(max_queue_size=8192),
        CostModel(sweep),
        ModelStatistics(_MODEL, _VERSION, wall=lambda: 0.0),
        loop,  # type: ignore[arg-type]
        clock,
        lambda _: runner,
    )


def run_until(loop: ManualLoop, clock: ManualClock, until_ns: int | None) -> None:
    """Let everything happen that is due before `until_ns`, each at its time; None: until nothing is left."""
    while True:
        loop.run()
        next_ns = loop.next_timer_ns()
        if next_ns is None or (until_ns is not None and next_ns > until_ns):
            break
        clock.now_ns = max(clock.now_ns, next_ns)
    if until_ns is not None:
        clock.now_ns = max(clock.now_ns, until_ns)


@dataclass(frozen=True)
class Fifo:
    """How servers of the field batch: first in, first out, a fixed window, and nobody looks at a deadline."""

    max_batch_size: int
    window_ns: int
    max_queue_size: float = math.inf

    def __call__(self, arrivals_ns: Sequence[int], engine: Engine, deadline_ns: int, seed: int) -> Tally:
        tally = Tally(offered=len(arrivals_ns))
        cost_ns = engine.passes(seed)
        waiting: deque[int] = deque()
        coming = deque(arrivals_ns)
        free_ns = 0
        while waiting or coming:
            if not waiting:
                waiting.append(coming.popleft())
            while coming and coming[0] <= self._starts_ns(waiting, free_ns):
                arrival_ns = coming.popleft()
                if len(waiting) < self.max_queue_size:
                    waiting.append(arrival_ns)
                else:
                    tally.refused += 1
            starts_ns = self._starts_ns(waiting, free_ns)
            batch = [waiting.popleft() for _ in range(min(self.max_batch_size, len(waiting)))]
            free_ns = starts_ns + cost_ns(len(batch))
            tally.passes += 1
            for arrival_ns in batch:
                tally.executed_expired += arrival_ns + deadline_ns <= starts_ns
                tally.answer(free_ns - arrival_ns, deadline_ns)
        return tally

    def _starts_ns(self, waiting: Sequence[int], free_ns: int) -> int:
        """When the next batch begins if nobody else arrives."""
        if len(waiting) >= self.max_batch_size:
            return max(free_ns, waiting[self.max_batch_size - 1])
        return max(free_ns, waiting[0] + self.window_ns)


def clairvoyant(arrivals_ns: Sequence[int], engine: Engine, deadline_ns: int, seed: int) -> Tally:
    """A bound: each row at the best batch size's cost a row, alone, and only those that will be in time.

    With equal costs and equal deadlines nothing answers more of them in time than this: in order of arrival,
    leaving out whoever would be late. It is above what can be reached where a batch is dearer than a row.
    """
    row_ns = int(1e9 / engine.capacity_per_s())
    tally = Tally(offered=len(arrivals_ns))
    free_ns = 0
    for arrival_ns in arrivals_ns:
        ends_ns = max(free_ns, arrival_ns) + row_ns
        if ends_ns > arrival_ns + deadline_ns:
            tally.refused += 1
            continue
        free_ns = ends_ns
        tally.passes += 1
        tally.answer(ends_ns - arrival_ns, deadline_ns)
    return tally
