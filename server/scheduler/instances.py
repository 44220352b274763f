"""The instances of one model version: which are idle, what runs on which, and which takes the next pass.

A pass is reserved while its instance is idle, occupies it, and releases it once, however it ends. Which requests
run together is the planner's business, what becomes of them the batcher's. No clock.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from server.engine.base import Instance
from server.scheduler.admission import Outlook
from server.scheduler.cost import CostModel
from server.scheduler.costs import Costs
from server.scheduler.fleet import Fleet
from server.scheduler.handoff import Handoff
from server.scheduler.plan import Limits, Plan, plan
from server.scheduler.queue import RequestQueue
from server.scheduler.share import Share
from server.scheduler.statistics import ModelStatistics
from server.scheduler.turn import FREE, Turn
from server.scheduler.worker import Pass, Runner
from server.types import InferRequest


class Run:
    """A pass that may begin, or is under way."""

    __slots__ = ("begun_ns", "cost", "inline", "lease", "predicted_ns", "requests", "rows", "runner")

    def __init__(self, requests: Sequence[InferRequest], runner: Runner, begun_ns: int, cost: CostModel) -> None:
        self.runner = runner
        self.begun_ns = begun_ns
        self.cost = cost
        self.lease = FREE
        """Its tokens of the share."""
        self.inline = False
        """On the loop itself."""
        self._take(requests)

    def halve(self) -> list[InferRequest]:
        """Leave the second half of its requests, which are returned, to another pass. They wait from now on."""
        half = len(self.requests) // 2
        left = list(self.requests[half:])
        for request in left:
            request.enqueued_ns = self.begun_ns
        self._take(self.requests[:half])
        return left

    def _take(self, requests: Sequence[InferRequest]) -> None:
        self.requests = requests
        self.rows = rows = sum([request.rows for request in requests])
        self.predicted_ns = self.cost.predict_ns(rows)

    def left_ns(self, now_ns: int) -> int:
        return max(0, self.begun_ns + (self.predicted_ns or 0) - now_ns)


class Instances:
    """All that live are in `idle` or in `running`; one that died and has released its pass is in neither."""

    def __init__(
        self,
        model_name: str,
        runners: Mapping[Runner, Instance],
        costs: Costs,
        statistics: ModelStatistics,
        share: Share | None,
        call: Callable[[], None],
        *,
        inline: bool = True,
    ) -> None:
        """`share`, `inline`: see `Batcher`. `call`: a pass that waited for its turn may begin, plan again."""
        self.idle: list[Runner] = list(runners)
        self.running: dict[Runner, Run] = {}
        self.turn = Turn(
            share, model_name, {runner: instance.threads for runner, instance in runners.items()}, statistics, call
        )
        self._runners = list(runners)
        self._costs = costs
        self._fleet = Fleet({runner: instance.device for runner, instance in runners.items()}, costs)
        self._handoff = Handoff(one_core=share is not None and share.tokens == 1) if inline else None
        self._statistics = statistics
        statistics.instances = len(self.idle)

    @property
    def alike(self) -> bool:
        """All are on one device."""
        return self._fleet.alike

    @property
    def dead(self) -> bool:
        """None is left, and what ran on them is over."""
        return not self.idle and not self.running

    @property
    def well(self) -> bool:
        """Every one lives."""
        return all(runner.alive for runner in self._runners)

    # --- which one takes the next pass; ask only while one is idle -------------------------------------

    def next(self, queue: RequestQueue, now_ns: int, limits: Limits) -> tuple[Runner, Plan]:
        """An idle instance, and what it should do."""
        if self._fleet.alike:
            return self.turn.choose(self.idle), plan(queue, now_ns, limits, self._costs)
        return self._fleet.plan(self.idle, self.running, queue, now_ns, limits)

    def next_for(self, request: InferRequest) -> Runner:
        """The idle instance for a request that is run alone."""
        if self._fleet.alike:
            return self.turn.choose(self.idle)
        return self._fleet.first(self.idle, request.signature, request.rows)

    # --- a pass, from its begin to its end -------------------------------------------------------------

    def reserve(self, requests: Sequence[InferRequest], runner: Runner, now_ns: int) -> Run | None:
        """The pass of these requests, which must begin now; None: passes of other models go first."""
        run = Run(requests, runner, now_ns, self._fleet.costs(runner).for_signature(requests[0].signature))
        # A small picture, too, may have a great many pixels.
        tensors = requests[0].raw is None
        run.inline = tensors and self._handoff is not None and self._handoff.inline(run.cost, run.rows)
        if not run.inline:
            lease = self.turn.take(runner, requests, run.predicted_ns, now_ns)
            if lease is None:
                return None
            run.lease = lease
        return run

    def occupy(self, run: Run) -> None:
        """The instance is the pass's, until it is released."""
        self.idle.remove(run.runner)
        self.running[run.runner] = run

    def release(self, runner: Runner, now_ns: int) -> Run | None:
        """The pass is over, or never began; returns it. None if it was released before."""
        run = self.running.pop(runner, None)
        if runner.alive:
            self.idle.append(runner)
        else:
            self._statistics.instances = len(self.idle) + len(self.running)
        if run is not None:
            self.turn.give(run.lease, runner, run.begun_ns, now_ns)
        return run

    def back(self, runner: Runner) -> None:
        """An instance that had died can be used again."""
        self.idle.append(runner)
        self._statistics.instances = len(self.idle) + len(self.running)

    def learn(self, run: Run, result: Pass, ended_ns: int) -> None:
        """What a pass that succeeded says of the next ones."""
        compute_ns = result.compute_ns
        if run.inline and self._handoff is not None:
            self._handoff.learn(run.cost, run.rows, result.compute_infer_ns)
        run.cost.observe(result.rows, compute_ns, max(0, ended_ns - run.begun_ns - compute_ns))

    # --- what the others must know ---------------------------------------------------------------------

    def living(self) -> tuple[float, float]:
        """How many live, in instances of the fastest device, and the part of the cores that one at work has."""
        return self._fleet.speed([*self.idle, *self.running]), self.turn.of_cores()

    def outlook(self, now_ns: int, reruns_ns: int, reruns: bool) -> Outlook:
        """What admission must know. `reruns_ns`: passes that go before everybody's, where there are `reruns`."""
        fleet = self._fleet
        left_ns = sum([fleet.work_ns(runner, run.left_ns(now_ns)) for runner, run in self.running.items()])
        turn_ns, slowdown = self.turn.outlook(now_ns)
        speed = fleet.speed([*self.idle, *self.running])
        free = bool(self.idle) and not reruns
        return Outlook(now_ns, left_ns + reruns_ns, speed, free, turn_ns if self.idle else 0, slowdown)

    async def close(self, clock: Callable[[], int]) -> None:
        """Begin nothing any more; returns when the last pass has ended."""
        for runner in self._runners:
            runner.stop()
        for runner in self._runners:
            await runner.join()
        self.turn.leave(clock())
