"""Several models, or tenants, on simulated cores: the real batchers and the real share between them.

The cores are shared out as an operating system does: every running thread gets the same part of them, so that a pass
takes its own time while there are cores enough, and longer as soon as there are not. Exact and seeded.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from loadtests.simulation import Engine, ScriptedInstance, Tally, run_until
from server.errors import Code, ServingError
from server.scheduler.batcher import Batcher
from server.scheduler.cost import CostModel
from server.scheduler.plan import Limits
from server.scheduler.queue import QueuePolicy
from server.scheduler.share import Share
from server.scheduler.statistics import ModelStatistics
from server.scheduler.worker import Done, Pass
from server.types import InferRequest, InferResponse, Outcome
from tests.support.scheduler import ManualClock, ManualLoop, ManualTimer


@dataclass
class _Running:
    threads: int
    left_ns: float
    """Of its own time, were it alone."""
    end: Callable[[], None]


class Cores:
    """Processor sharing: each of the running threads gets ``count / threads`` of a core, one core at most."""

    def __init__(self, count: int, loop: ManualLoop, clock: ManualClock) -> None:
        self.count = count
        self.done_ns = 0.0
        """Work done by all cores together."""
        self._loop = loop
        self._clock = clock
        self._running: list[_Running] = []
        self._since_ns = clock()
        self._timer: ManualTimer | None = None

    def run(self, threads: int, ns: int, end: Callable[[], None]) -> None:
        """Begin a pass that takes `ns` where it has a core for each thread; then `end` is called."""
        self._progress()
        self._running.append(_Running(threads, float(ns), end))
        self._set_timer()

    def _speed(self) -> float:
        return min(1.0, self.count / max(1, sum(running.threads for running in self._running)))

    def _progress(self) -> None:
        now_ns = self._clock()
        step_ns = (now_ns - self._since_ns) * self._speed()
        for running in self._running:
            self.done_ns += min(step_ns, running.left_ns) * running.threads
            running.left_ns -= step_ns
        self._since_ns = now_ns

    def _set_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        if self._running:
            first_ns = min(running.left_ns for running in self._running)
            self._timer = self._loop.call_later(max(0.0, first_ns / self._speed()) / 1e9 + 1e-9, self._ring)

    def _ring(self) -> None:
        self._timer = None
        self._progress()
        over = [running for running in self._running if running.left_ns <= 0]
        self._running = [running for running in self._running if running.left_ns > 0]
        self._set_timer()
        for running in over:
            running.end()


@dataclass(frozen=True)
class Workload:
    """One model and who asks it. Workloads of one model ask the same batcher; what it is says the first of them."""

    name: str
    engine: Engine
    arrivals_ns: Sequence[int]
    deadline_ns: int
    instances: int = 1
    threads: int = 1
    """Of each instance."""
    tenant: str = ""
    fair_by_tenant: bool = False
    max_queue_size: int = 8192


class _Runner:
    """A worker whose passes take what the cores give them."""

    alive = True

    def __init__(self, workload: Workload, cores: Cores, clock: ManualClock, pass_ns: Callable[[int], int]) -> None:
        self._workload = workload
        self._cores = cores
        self._clock = clock
        self._pass_ns = pass_ns

    def start(self, requests: Sequence[InferRequest], done: Done) -> None:
        result = self._pass(requests)

        def end() -> None:
            result.compute_infer_ns = self._clock() - result.started_ns
            done(result)

        self._cores.run(self._workload.threads, self._pass_ns(result.rows), end)

    def run_inline(self, requests: Sequence[InferRequest]) -> Pass:
        raise NotImplementedError("passes on the loop are not simulated here")

    def _pass(self, requests: Sequence[InferRequest]) -> Pass:
        rows = sum(request.rows for request in requests)
        responses = [InferResponse(self._workload.name, "1", ()) for _ in requests]
        return Pass(rows, self._clock(), responses)

    def stop(self) -> None:
        return

    async def join(self) -> None:
        return


@dataclass(frozen=True)
class Contention:
    """What became of all workloads, in their order, and how much of the cores was used."""

    tallies: Sequence[Tally]
    busy: float
    """Of the cores, while requests came."""


def contend(workloads: Sequence[Workload], cores: int, seconds: float, seed: int, *, shared: bool) -> Contention:
    """Run all workloads on the same cores; `shared`: with the share between them, else as the system likes."""
    clock = ManualClock()
    loop = ManualLoop(clock)
    machine = Cores(cores, loop, clock)
    share = Share(cores) if shared else None
    batchers: dict[str, Batcher] = {}
    for place, workload in enumerate(workloads):
        if workload.name not in batchers:
            batchers[workload.name] = _batcher(workload, machine, loop, clock, share, seed + place)
    tallies = [Tally(offered=len(workload.arrivals_ns)) for workload in workloads]
    start_ns = clock()
    arrivals = heapq.merge(*([(at_ns, place) for at_ns in w.arrivals_ns] for place, w in enumerate(workloads)))
    for arrival_ns, place in arrivals:
        run_until(loop, clock, start_ns + arrival_ns)
        batchers[workloads[place].name].submit([_request(workloads[place], tallies[place], clock)])
    run_until(loop, clock, start_ns + int(seconds * 1e9))
    machine._progress()
    busy = machine.done_ns / (cores * seconds * 1e9)
    run_until(loop, clock, None)
    return Contention(tallies, busy)


def _request(workload: Workload, tally: Tally, clock: ManualClock) -> InferRequest:
    now_ns = clock()

    def settled(request: InferRequest, outcome: Outcome) -> None:
        if isinstance(outcome, InferResponse):
            tally.answer(clock() - request.received_ns, workload.deadline_ns)
        elif isinstance(outcome, ServingError) and outcome.code is Code.EXHAUSTED:
            tally.refused += 1
        elif isinstance(outcome, ServingError) and outcome.code is Code.DEADLINE:
            tally.expired += 1
        else:
            tally.failed += 1

    return InferRequest(
        workload.name,
        (),
        on_settle=settled,
        received_ns=now_ns,
        deadline_ns=now_ns + workload.deadline_ns,
        tenant=workload.tenant,
    )


def _batcher(
    workload: Workload, cores: Cores, loop: ManualLoop, clock: ManualClock, share: Share | None, seed: int
) -> Batcher:
    engine = workload.engine
    instances = [ScriptedInstance(workload.threads) for _ in range(workload.instances)]
    runner_seeds = iter(range(seed * 1000, seed * 1000 + workload.instances))
    return Batcher(
        workload.name,
        "1",
        instances,
        Limits(engine.max_batch_size),
        QueuePolicy(max_queue_size=workload.max_queue_size),
        CostModel({rows: engine.mean_ns(rows) for rows in range(1, engine.max_batch_size + 1)}),
        ModelStatistics(workload.name, "1", wall=lambda: 0.0),
        loop,  # type: ignore[arg-type]
        clock,
        lambda _: _Runner(workload, cores, clock, engine.passes(next(runner_seeds))),
        share=share,
        fair_by_tenant=workload.fair_by_tenant,
    )
