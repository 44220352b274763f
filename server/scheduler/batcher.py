"""The scheduler of one model version: in which order requests are taken in, planned, run and settled.

Everything runs on the event loop in plain calls; a request costs no task and no future. What arrives in one
tick of the loop is planned together in one `call_soon`. Whoever is held here, waiting, running or to be
rerun, is settled exactly once, whatever fails around it.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from weakref import WeakMethod

from server.afterwards import afterwards, as_step, idle_since_ns
from server.buckets import Buckets
from server.engine.base import Instance
from server.errors import Cancelled, DeadlineExceeded, DeviceLost, Draining, EngineFailure, Overloaded
from server.observability.whose import about
from server.scheduler.admission import Admission, Foreseen
from server.scheduler.backlog import Backlog
from server.scheduler.costs import Costs
from server.scheduler.door import Door
from server.scheduler.instances import Instances, Run
from server.scheduler.plan import Dispatch, Limits, Wait
from server.scheduler.queue import Line, Priorities, QueuePolicy, RequestQueue
from server.scheduler.raw import CostsByKind, RawPasses
from server.scheduler.saturation import Ability
from server.scheduler.settling import Settling
from server.scheduler.share import Share
from server.scheduler.statistics import ModelStatistics
from server.scheduler.tenants import FairLine
from server.scheduler.ticking import Ticking
from server.scheduler.waits import Waits
from server.scheduler.watchdog import Watchdog
from server.scheduler.worker import Model, Pass, Runner, Worker
from server.types import NO_DEADLINE, InferRequest

log = logging.getLogger(__name__)

_LEARN_EVERY_NS = 500_000
"""Of passes on the loop, which take microseconds, one in a while is learned from: to learn from each would take as long
as the passes do."""
STALL_NS = 5_000_000_000
"""A request that waits this long beyond its window while every instance is idle: the queue does not move."""

MakeRunner = Callable[[Instance], Runner]


class Batcher(Ticking):
    """Takes the requests of one model version to its instances. Call it on the event loop's thread only."""

    _instances: Instances

    def __init__(
        self,
        model_name: str,
        model_version: str,
        instances: Sequence[Instance],
        limits: Limits,
        policy: QueuePolicy,
        costs: Costs,
        statistics: ModelStatistics,
        loop: asyncio.AbstractEventLoop,
        clock: Callable[[], int] = time.monotonic_ns,
        make_runner: MakeRunner | None = None,
        *,
        priorities: Priorities | None = None,
        slo_ns: int = 0,
        preserve_ordering: bool = False,
        share: Share | None = None,
        fair_by_tenant: bool = False,
        buckets: Buckets | None = None,
        inline: bool = True,
        hang_s: float = 0.0,
        raw: RawPasses | None = None,
    ) -> None:
        """`make_runner` makes the worker of an instance; by default one with a thread of its own.

        `slo_ns`: the model's latency objective, a deadline of every request from its receipt; 0 is none.
        `share`: of the cores that all models use; None: passes begin as if there were no other models.
        `fair_by_tenant`: tenants share the queue, see `server.scheduler.tenants`.
        `buckets`: the lengths that the requests of one signature are padded to.
        `inline`: short passes may run on the event loop itself.
        `hang_s`: a pass may take so long at least, see `server.scheduler.watchdog`; 0: any time.
        `raw`: passes can make their tensors themselves, of requests that have raw inputs and a `Raw` signature.
        """
        super().__init__(model_name, loop, clock)
        self.statistics = statistics
        self.raw = raw
        if raw is not None:
            limits, costs = raw.limits(limits), CostsByKind(costs, raw.costs)
        self._limits = limits
        queue = RequestQueue(policy, priorities, slo_ns, FairLine if fair_by_tenant else Line)
        self._backlog = Backlog(queue, statistics)
        self._admission = Admission(queue, costs, limits, statistics)
        if make_runner is None:
            model = Model(model_name, model_version, limits.max_batch_size > 0, buckets, raw)
            make_runner = partial(Worker, model=model, loop=loop, clock=clock)
        runners = {make_runner(instance): instance for instance in instances}
        self._instances = Instances(model_name, runners, costs, statistics, share, self._tick_soon, inline=inline)
        self._settling = Settling(model_name, statistics, clock, preserve_ordering=preserve_ordering)
        self._waits = Waits(by_tenant=fair_by_tenant)
        self._door = Door(
            model_name,
            model_version,
            limits,
            self._admission,
            self._backlog,
            self._instances,
            self._settling,
            self._waits,
        )
        self._slo_ns = slo_ns
        statistics.ability = WeakMethod(self.ability)
        self._watchdog = (
            Watchdog(model_name, self._instances, loop, hang_s, self._give_up, self._back) if hang_s else None
        )
        self._learns_ns = 0
        """When the next pass on the loop is learned from."""

    # --- what others call --------------------------------------------------------------------------

    def submit(self, requests: Sequence[InferRequest]) -> None:
        """Take in checked requests. Each is admitted, or settled with the reason why not, in this turn of the loop,
        together with all others that arrive in it. Never raises."""
        self._backlog.arrive(requests)
        self._tick_soon()

    def cancel(self, request: InferRequest) -> None:
        """The caller went away: settle it as Cancelled. If it waits it is never executed and its place is free
        at once; if it runs its result is thrown away. Does nothing for one that is settled. Never raises."""
        if request.settled:
            return
        self._backlog.remove(request)
        self._settling.fail(request, Cancelled(), self._clock())
        self._tick_soon()

    def foresee(self, request: InferRequest, coming: int) -> Foreseen:
        """What a request that is still made ready must expect, behind `coming` rows of such; it gets its deadline."""
        return self._door.foresee(request, self._clock(), coming)

    def hopeless(self, signature: object, deadline_ns: int) -> Overloaded | None:
        """See `Admission.hopeless`. An idle instance refuses nobody."""
        if self._instances.idle:
            return None
        return self._admission.hopeless(self.model_name, signature, deadline_ns, self._clock())

    @property
    def queue(self) -> RequestQueue:
        """Who waits, in which order."""
        return self._backlog.queue

    def rows_before(self, request: InferRequest) -> int:
        """Rows that are served before those of a request that comes now."""
        running = sum([run.rows for run in self._instances.running.values()])
        return running + sum([other.rows for other in self._backlog.arrived]) + self.queue.rows_before(request)

    @property
    def pending(self) -> int:
        """Requests that wait for a pass, or to be admitted."""
        return len(self._backlog) + len(self._backlog.arrived)

    def healthy(self) -> bool:
        """Every worker lives, and nothing has been waiting for seconds while all of them, and the cores, are idle."""
        if not self._instances.well:
            return False
        if self._instances.running or not self._backlog or self._instances.turn.waiting:
            return True
        return self._clock() - self._backlog.oldest_ns() < self._limits.max_queue_delay_ns + STALL_NS

    async def close(self) -> None:
        await super().close()
        if self._watchdog is not None:
            self._watchdog.close()

    def ability(self) -> Ability:
        """What the instances can do."""
        living, of_cores = self._instances.living()
        rows, pass_ns = self._admission.usual(self.statistics)
        return Ability(living, rows, pass_ns, self._slo_ns, of_cores)

    # --- the tick ----------------------------------------------------------------------------------

    def _on_pass(self, runner: Runner, requests: Sequence[InferRequest], result: Pass) -> None:
        """A worker's pass is over; called on the loop."""
        self._guarded(self._finish, runner, requests, result)
        if self._instances.turn.has_the_only_core(self._clock()):
            # The next pass would only take it from those who are answered now, and can join it.
            afterwards(self._tick_soon)
        else:
            self._guarded(self._advance)

    def _give_up(self, runner: Runner, run: Run) -> None:
        """A pass hangs: its callers are told so."""
        error = EngineFailure(self.model_name, "the pass took longer than it may")
        self._on_pass(runner, run.requests, Pass(run.rows, run.begun_ns, error=error, died=True))

    def _back(self, runner: Runner) -> None:
        self._instances.back(runner)
        self._tick_soon()

    def _advance(self) -> None:
        """Settle who expired, give work to the idle instances, set the alarm for what comes next."""
        now_ns = self._clock()
        if self._backlog:
            self._expire(now_ns)
        if self._backlog.arrived:
            self._take_in(now_ns)
        if self._instances.dead:
            self._settling.fail_each(self._backlog.clear(), self._door.dead)
        if now_ns >= self._drain_until_ns:
            self._end_all(Draining)
        wake_ns = self._employ(now_ns)
        self._settling.release()
        if self._waits:
            self._explain(now_ns)
        if self._door.shut:
            wake_ns = min(wake_ns, self._check_drained(now_ns))
        if self._backlog.count():
            wake_ns = min(wake_ns, self._backlog.next_expiry_ns())
        self._alarm.set(wake_ns, now_ns)

    def _take_in(self, now_ns: int) -> None:
        run = self._door.straight_on(now_ns, idle_since_ns())
        if run is None:
            self._door.admit(now_ns)
        else:
            self._begin(run, queued=False)
            if self._backlog.arrived:
                self._tick_soon()

    def _expire(self, now_ns: int) -> None:
        for request in self._backlog.expire(now_ns):
            self._admission.learn_expiry(request, now_ns)
            waited_us = (now_ns - request.enqueued_ns) // 1000
            self._settling.fail(request, DeadlineExceeded(self.model_name, waited_us), now_ns)

    def _employ(self, now_ns: int) -> int:
        """Start passes while there is an idle instance and a batch for it; returns when the next batch closes.

        After a pass on the loop itself the sockets come first: the rest goes with the next tick, together
        with what they bring.
        """
        backlog, instances = self._backlog, self._instances
        turn = instances.turn
        wake_ns = NO_DEADLINE
        while instances.idle and backlog:
            if turn.must_wait(instances.idle, now_ns):
                return turn.again_ns
            if backlog.reruns:
                requests: Sequence[InferRequest] = [backlog.reruns[0]]
                runner = instances.next_for(requests[0])
            else:
                runner, step = instances.next(backlog.queue, now_ns, self._limits)
                if not isinstance(step, Dispatch):
                    wake_ns = step.until_ns if isinstance(step, Wait) else NO_DEADLINE
                    break
                requests = step.requests
            run = instances.reserve(requests, runner, now_ns)
            if run is None:
                return turn.again_ns
            if not self._begin(run):
                self._tick_soon()
                break
        turn.withdraw(now_ns)
        return wake_ns

    def _explain(self, now_ns: int) -> None:
        kinds = len({signature for line in self._backlog.queue.lines for signature in line.signatures()})
        # After a pass on the loop itself a tick is due: whoever is left waited for that pass.
        busy = self._tick_due or not self._instances.idle
        self._waits.look(now_ns, busy=busy, others=self._instances.turn.waiting, signatures=kinds)

    # --- a pass ------------------------------------------------------------------------------------

    def _begin(self, run: Run, *, queued: bool = True) -> bool:
        """Start a pass whose turn it is. False if it ran on the loop and is over."""
        runner, requests = run.runner, run.requests
        self._instances.occupy(run)
        try:
            if queued:
                self._backlog.take(requests)
                run.requests = requests = [request for request in requests if not request.settled]
                if not requests:
                    self._instances.release(runner, run.begun_ns)
                    return True
            else:
                self._admission.admit_all(requests, run.rows, run.begun_ns)
            if self._waits:
                self._waits.begin(requests, run.begun_ns)
            if not run.inline:
                runner.start(requests, partial(as_step, self._on_pass, runner, requests))
                return True
            result = runner.run_inline(requests)
        except BaseException as error:
            self._instances.release(runner, self._clock())
            self._settling.fail_each(requests, self._failure(error))
            raise
        self._finish(runner, requests, result)
        return False

    def _finish(self, runner: Runner, requests: Sequence[InferRequest], result: Pass) -> None:
        ended_ns = self._clock()
        if isinstance(result.error, DeviceLost) and self._watchdog is not None:
            self._watchdog.lost(runner, requests, result.error)
        run = self._instances.release(runner, ended_ns)
        try:
            if result.spoiled:
                requests = self._settling.spoil(requests, result.spoiled, ended_ns)
            self._conclude(requests, result, ended_ns)
            if run is not None:
                # The answers are given: only now can the next pass begin.
                self._learn(run, result, self._clock())
        except BaseException as error:
            self._settling.fail_each(requests, self._failure(error))
            raise

    def _learn(self, run: Run, result: Pass, ended_ns: int) -> None:
        """What this pass says of the next ones, and of how well its requests' answers were foreseen."""
        whole_ns = ended_ns - run.begun_ns
        self.statistics.count_end(run.predicted_ns, whole_ns)
        if result.error is not None or not result.rows or (run.inline and ended_ns < self._learns_ns):
            return
        self._learns_ns = ended_ns + _LEARN_EVERY_NS
        self._instances.learn(run, result, ended_ns)
        self._admission.learn_pass(run.requests, whole_ns, ended_ns)

    def _conclude(self, requests: Sequence[InferRequest], result: Pass, ended_ns: int) -> None:
        error = result.error
        if not requests:
            return
        if error is None:
            self._settling.answer(requests, result, ended_ns)
        elif len(requests) == 1 or result.died:
            self._settling.fail_each(requests, lambda: error)
        else:
            told = "a pass of %d requests failed, running each alone: %r"
            log.warning(told, len(requests), error, extra=about(*requests))
            self._backlog.reruns.extend(request for request in requests if not request.settled)

    # --- for `Ticking` -----------------------------------------------------------------------------

    def _arrivals(self) -> Sequence[InferRequest]:
        return self._backlog.arrived

    def _clear(self) -> Sequence[InferRequest]:
        return self._backlog.clear()

    def _running(self) -> Sequence[InferRequest]:
        return [request for run in self._instances.running.values() for request in run.requests]

    def _empty(self) -> bool:
        return not self.pending and not self._instances.running

    def _tell(self) -> None:
        self._backlog.count()

    def _stop_admitting(self, until_ns: int) -> None:
        self._backlog.at_once = False  # None of them is left to a next turn.
        super()._stop_admitting(until_ns)
        self._door.shut = True
        # No batch waits for company any more, for nobody will come.
        self._limits = replace(self._limits, max_queue_delay_ns=0)
