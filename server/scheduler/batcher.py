"""The scheduler of one model version: admits, asks the planner, runs passes, settles. The only asyncio here.

Everything runs on the event loop in plain calls; a request costs no task and no future. What arrives in one
tick of the loop is planned together in one `call_soon`. Whoever is held here, waiting, running or to be
rerun, is settled exactly once, whatever fails around it.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from functools import partial

from server.buckets import Buckets
from server.engine.base import Instance
from server.errors import (
    Cancelled,
    DeadlineExceeded,
    Draining,
    EngineFailure,
    InvalidRequest,
    ModelNotReady,
    ServingError,
)
from server.scheduler.admission import Admission, Outlook
from server.scheduler.alarm import Alarm
from server.scheduler.cost import CostModel
from server.scheduler.costs import Costs
from server.scheduler.fleet import Fleet
from server.scheduler.handoff import Handoff
from server.scheduler.ordering import InOrder
from server.scheduler.plan import Dispatch, Limits, Plan, Wait, all_at_once, plan
from server.scheduler.queue import Line, Priorities, QueuePolicy, RequestQueue
from server.scheduler.share import Share
from server.scheduler.statistics import ModelStatistics
from server.scheduler.tenants import FairLine
from server.scheduler.turn import FREE, Turn
from server.scheduler.waits import Waits
from server.scheduler.worker import Model, Pass, Runner, Worker
from server.types import NO_DEADLINE, InferRequest, InferResponse, Outcome, Timing

log = logging.getLogger(__name__)

STALL_NS = 5_000_000_000
"""A request that waits this long beyond its window while every instance is idle: the queue does not move."""

_Answer = tuple[InferResponse, Pass]


class _Run:
    """A pass that may begin, or is under way."""

    __slots__ = ("begun_ns", "compute_ns", "cost", "inline", "lease", "predicted_ns", "requests", "runner")

    def __init__(self, requests: Sequence[InferRequest], runner: Runner, begun_ns: int, cost: CostModel) -> None:
        self.requests = requests
        self.runner = runner
        self.begun_ns = begun_ns
        self.cost = cost
        self.lease = FREE
        """Its tokens of the share."""
        self.inline = False
        """On the loop itself."""
        rows = sum([request.rows for request in requests])
        self.predicted_ns = cost.predict_ns(rows)
        self.compute_ns = cost.compute_ns(rows)
        """As predicted, without what a thread costs."""

    def left_ns(self, now_ns: int) -> int:
        return max(0, self.begun_ns + (self.predicted_ns or 0) - now_ns)


MakeRunner = Callable[[Instance], Runner]


class Batcher:
    """Takes the requests of one model version to its instances. Call it on the event loop's thread only."""

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
    ) -> None:
        """`make_runner` makes the worker of an instance; by default one with a thread of its own.

        `slo_ns`: the model's latency objective, a deadline of every request from its receipt; 0 is none.
        `share`: of the cores that all models use; None: passes begin as if there were no other models.
        `fair_by_tenant`: tenants share the queue, see `server.scheduler.tenants`.
        `buckets`: the lengths that the requests of one signature are padded to.
        """
        self.model_name = model_name
        self.model_version = model_version
        self.statistics = statistics
        self._limits = limits
        self._costs = costs
        self._handoff = Handoff()
        self._loop = loop
        self._clock = clock
        self._queue = RequestQueue(policy, priorities, slo_ns, FairLine if fair_by_tenant else Line)
        self._admission = Admission(self._queue, costs, limits, statistics)
        self._in_order: InOrder[_Answer] | None = InOrder() if preserve_ordering else None
        self._reruns: deque[InferRequest] = deque()
        """Neighbours of a pass that failed, each to be run once more, alone, before anything else."""
        if make_runner is None:
            model = Model(model_name, model_version, limits.max_batch_size > 0, buckets)
            make_runner = partial(Worker, model=model, loop=loop, clock=clock)
        self._runners = [make_runner(instance) for instance in instances]
        self._idle = list(self._runners)
        self._running: dict[Runner, _Run] = {}
        devices = {runner: instance.device for runner, instance in zip(self._runners, instances, strict=True)}
        self._fleet = Fleet(devices, costs)
        threads = {runner: instance.threads for runner, instance in zip(self._runners, instances, strict=True)}
        self._turn = Turn(share, model_name, threads, statistics, self._tick_soon)
        self.statistics.instances = len(self._idle)
        self._alarm = Alarm(loop, self._tick)
        self._waits = Waits(by_tenant=fair_by_tenant)
        self._tick_due = False
        self._pending_counted = 0
        self._arrived: list[InferRequest] = []
        """Since the last tick; not looked at yet."""
        self._plain = self._queue.plain and self._fleet.alike and not (preserve_ordering or limits.preferred_batch_size)
        self._draining = False
        self._drain_until_ns = NO_DEADLINE
        self._drained: list[asyncio.Future[None]] = []

    # --- what others call --------------------------------------------------------------------------

    def submit(self, requests: Sequence[InferRequest]) -> None:
        """Take in checked requests. Each is admitted, or settled with the reason why not, in this turn of the loop,
        together with all others that arrive in it. Never raises."""
        self._arrived += requests
        self._tick_soon()

    def cancel(self, request: InferRequest) -> None:
        """The caller went away: settle it as Cancelled. If it waits it is never executed and its place is free
        at once; if it runs its result is thrown away. Does nothing for one that is settled. Never raises."""
        if request.settled:
            return
        self._queue.remove(request)
        if request in self._reruns:
            self._reruns.remove(request)
        self._fail(request, Cancelled(), self._clock())
        self._tick_soon()

    async def drain(self, until_ns: int) -> None:
        """Admit nothing any more, answer what is held until `until_ns`, settle the rest as Draining.

        Returns when all is settled. No batch waits for company meanwhile, for nobody will come.
        """
        self._stop_admitting(until_ns)
        drained = self._loop.create_future()
        self._drained.append(drained)
        self._tick_soon()
        await drained

    async def close(self) -> None:
        """Settle whatever is held as Draining and end the workers; returns when the last pass has ended."""
        self._stop_admitting(self._clock())
        self._settle_all(Draining)
        self._release_in_order()
        self._count_pending()
        self._tick_soon()
        for runner in self._runners:
            runner.stop()
        for runner in self._runners:
            await runner.join()
        self._alarm.cancel()
        self._turn.leave(self._clock())

    @property
    def held(self) -> int:
        """Requests that were admitted and wait for a pass."""
        return len(self._queue) + len(self._reruns)

    @property
    def pending(self) -> int:
        """Requests that wait for a pass, or to be admitted."""
        return self.held + len(self._arrived)

    def healthy(self) -> bool:
        """Every worker lives, and nothing has been waiting for seconds while all of them, and the cores, are idle."""
        if not all(runner.alive for runner in self._runners):
            return False
        if self._running or not self.held or self._turn.waiting:
            return True
        oldest_ns = min(request.enqueued_ns for request in self._held_back())
        return self._clock() - oldest_ns < self._limits.max_queue_delay_ns + STALL_NS

    # --- admission ---------------------------------------------------------------------------------

    def _take_in(self, now_ns: int) -> None:
        """Admit who arrived; those that need not queue, as nearly always, begin their pass at once."""
        arrived = self._arrived
        if self._may_go(arrived, now_ns):
            run = self._turn_of(arrived, self._turn.choose(self._idle), now_ns)
            if run is not None:
                self._arrived = []
                self._begin(run, queued=False)
                return
        outlook = self._look_out(now_ns)
        # Whoever hears of a refusal may send again at once, which makes the list longer.
        for request in arrived:
            if not request.settled:
                self._admit(request, outlook)
        self._arrived = []

    def _may_go(self, arrived: Sequence[InferRequest], now_ns: int) -> bool:
        if not self._plain or not self._idle or self._draining or self._limits.max_queue_delay_ns or self.held:
            return False
        if self._queue.slo_ns:
            for request in arrived:
                self._queue.set_deadline(request, now_ns)
        known = self._admission.known(arrived[0].signature)
        return all_at_once(arrived, now_ns, known.cap, known.cost)

    def _admit(self, request: InferRequest, outlook: Outlook) -> None:
        try:
            refusal = self._refusal(request) or self._admission.admit(request, outlook)
        except Exception as error:
            log.exception("a request to model %s could not be admitted", self.model_name)
            refusal = EngineFailure(self.model_name, repr(error))
        if refusal is not None:
            self._fail(request, refusal, outlook.now_ns)
            return
        if self._in_order is not None:
            self._in_order.admit(request)
        if request.explanation is not None:
            self._waits.watch(request)

    def _refusal(self, request: InferRequest) -> ServingError | None:
        if self._draining:
            return Draining()
        if not self._idle and not self._running:
            return self._dead()
        if request.rows > self._limits.max_batch_size > 0:
            problem = f"{request.rows} rows, over max_batch_size {self._limits.max_batch_size}"
            return InvalidRequest("inputs", problem)
        return None

    def _look_out(self, now_ns: int) -> Outlook:
        fleet = self._fleet
        left_ns = sum([fleet.work_ns(runner, run.left_ns(now_ns)) for runner, run in self._running.items()])
        if self._reruns:
            left_ns += sum([self._predict_ns(request) for request in self._reruns])
        turn_ns, slowdown = self._turn.outlook(now_ns)
        free = bool(self._idle) and not self._reruns
        speed = fleet.speed([*self._idle, *self._running])
        return Outlook(now_ns, left_ns, speed, free, turn_ns if self._idle else 0, slowdown)

    def _predict_ns(self, request: InferRequest) -> int:
        """A pass for the request alone; 0: not known."""
        return self._costs.for_signature(request.signature).predict_ns(request.rows) or 0

    def _dead(self) -> ModelNotReady:
        return ModelNotReady(self.model_name, self.model_version, "its workers have died")

    # --- the tick ----------------------------------------------------------------------------------

    def _tick_soon(self) -> None:
        if not self._tick_due:
            self._tick_due = True
            self._loop.call_soon(self._tick)

    def _tick(self) -> None:
        self._tick_due = False
        self._guarded(self._advance)

    def _on_pass(self, runner: Runner, requests: Sequence[InferRequest], result: Pass) -> None:
        """A worker's pass is over; called on the loop."""
        self._guarded(self._finish, runner, requests, result)
        self._guarded(self._advance)

    def _guarded(self, step: Callable[..., None], *arguments: object) -> None:
        """Run a step. If it raises there is a bug; nobody who is held here may wait for ever because of it.

        What still runs on a worker's thread is left to it: its end comes here like any other.
        """
        try:
            step(*arguments)
        except BaseException as error:
            log.exception("the scheduler of model %s failed and settles what waits", self.model_name)
            self._settle_waiting(partial(EngineFailure, self.model_name, repr(error)))
            self._tick_soon()
            if not isinstance(error, Exception):
                raise

    def _advance(self) -> None:
        """Settle who expired, give work to the idle instances, set the alarm for what comes next."""
        now_ns = self._clock()
        self._expire(now_ns)
        if self._arrived:
            self._take_in(now_ns)
        if not self._idle and not self._running:
            self._settle_waiting(self._dead)
        if now_ns >= self._drain_until_ns:
            self._settle_all(Draining)
        wake_ns = self._employ(now_ns)
        self._release_in_order()
        if self._waits:
            # After a pass on the loop itself a tick is due: whoever is left waited for that pass.
            kinds = len({signature for line in self._queue.lines for signature in line.signatures()})
            busy = self._tick_due or not self._idle
            self._waits.look(now_ns, busy=busy, others=self._turn.waiting, signatures=kinds)
        if self._draining:
            wake_ns = min(wake_ns, self._check_drained(now_ns))
        if self.held:
            wake_ns = min(wake_ns, self._queue.next_expiry_ns(), *(request.deadline_ns for request in self._reruns))
        self._alarm.set(wake_ns, now_ns)
        self._count_pending()

    def _expire(self, now_ns: int) -> None:
        expired = self._queue.expire(now_ns)
        if self._reruns:
            expired += [request for request in self._reruns if request.deadline_ns <= now_ns]
            self._reruns = deque(request for request in self._reruns if request.deadline_ns > now_ns)
        for request in expired:
            if request.predicted_ns:
                # It was admitted and not answered: the margin was too small.
                self._admission.margin.learn(now_ns - request.predicted_ns, self._predict_ns(request))
            waited_us = (now_ns - request.enqueued_ns) // 1000
            self._fail(request, DeadlineExceeded(self.model_name, waited_us), now_ns)

    def _employ(self, now_ns: int) -> int:
        """Start passes while there is an idle instance and a batch for it; returns when the next batch closes.

        After a pass on the loop itself the sockets come first: the rest goes with the next tick, together
        with what they bring.
        """
        wake_ns = NO_DEADLINE
        while self._idle:
            if self._turn.waiting and self.held and self._turn.must_wait(self._idle, now_ns):
                return self._turn.again_ns
            if self._reruns:
                requests: Sequence[InferRequest] = [self._reruns[0]]
                runner = self._first(requests[0])
            else:
                runner, step = self._plan(now_ns)
                if not isinstance(step, Dispatch):
                    wake_ns = step.until_ns if isinstance(step, Wait) else NO_DEADLINE
                    break
                requests = step.requests
            run = self._turn_of(requests, runner, now_ns)
            if run is None:
                return self._turn.again_ns
            if not self._begin(run):
                self._tick_soon()
                break
        self._turn.withdraw(now_ns)
        return wake_ns

    def _plan(self, now_ns: int) -> tuple[Runner, Plan]:
        """An idle instance, and what it should do."""
        if self._fleet.alike:
            return self._turn.choose(self._idle), plan(self._queue, now_ns, self._limits, self._costs)
        return self._fleet.plan(self._idle, self._running, self._queue, now_ns, self._limits)

    def _first(self, request: InferRequest) -> Runner:
        """The idle instance for a request that goes alone."""
        if self._fleet.alike:
            return self._turn.choose(self._idle)
        return self._fleet.first(self._idle, request.signature, request.rows)

    def _turn_of(self, requests: Sequence[InferRequest], runner: Runner, now_ns: int) -> _Run | None:
        """The pass of these requests, which must begin now; None: passes of other models go first."""
        run = _Run(requests, runner, now_ns, self._fleet.costs(runner).for_signature(requests[0].signature))
        run.inline = self._handoff.inline(run.compute_ns)
        if not run.inline:
            lease = self._turn.take(run.runner, requests, run.predicted_ns, now_ns)
            if lease is None:
                return None
            run.lease = lease
        return run

    def _begin(self, run: _Run, *, queued: bool = True) -> bool:
        """Start a pass whose turn it is. False if it ran on the loop and is over."""
        runner, requests = run.runner, run.requests
        self._idle.remove(runner)
        self._running[runner] = run
        try:
            if not queued:
                self._admission.admit_all(requests, run.begun_ns)
            elif self._reruns:
                self._reruns.popleft()
            else:
                self._queue.take(requests)
            run.requests = requests = [request for request in requests if not request.settled]
            if not requests:
                self._release(runner, run.begun_ns)
                return True
            if self._waits:
                self._waits.begin(requests, run.begun_ns)
            if not run.inline:
                runner.start(requests, partial(self._on_pass, runner, requests))
                return True
            result = runner.run_inline(requests)
            if result.error is None:
                self._handoff.learn(run.compute_ns or 0, result.compute_ns)
        except BaseException as error:
            self._release(runner, self._clock())
            self._fail_each(requests, EngineFailure(self.model_name, repr(error)))
            raise
        self._finish(runner, requests, result)
        return False

    def _release(self, runner: Runner, now_ns: int) -> _Run | None:
        if runner.alive:
            self._idle.append(runner)
        run = self._running.pop(runner, None)
        if run is not None:
            self._turn.give(run.lease, runner, run.begun_ns, now_ns)
        self.statistics.instances = len(self._idle) + len(self._running)
        return run

    # --- the end of a pass -------------------------------------------------------------------------

    def _finish(self, runner: Runner, requests: Sequence[InferRequest], result: Pass) -> None:
        ended_ns = self._clock()
        run = self._release(runner, ended_ns)
        try:
            if run is not None:
                self._learn(run, result, ended_ns)
            self._conclude(requests, result, ended_ns)
        except BaseException as error:
            self._fail_each(requests, EngineFailure(self.model_name, repr(error)))
            raise

    def _learn(self, run: _Run, result: Pass, ended_ns: int) -> None:
        """What this pass says of the next ones, and of how well its requests' answers were foreseen."""
        whole_ns = ended_ns - run.begun_ns
        self.statistics.count_end(run.predicted_ns, whole_ns)
        if result.error is not None:
            return
        compute_ns = result.compute_ns
        run.cost.observe(result.rows, compute_ns, max(0, whole_ns - compute_ns))
        self._admission.learn_cost()
        foreseen_ns = min([request.predicted_ns for request in run.requests if request.predicted_ns], default=0)
        if foreseen_ns:
            self._admission.margin.learn(ended_ns - foreseen_ns, whole_ns)

    def _conclude(self, requests: Sequence[InferRequest], result: Pass, ended_ns: int) -> None:
        if result.error is None:
            self._answer(requests, result, ended_ns)
        elif len(requests) == 1 or result.died:
            self._fail_each(requests, result.error)
        else:
            log.warning("a pass of %d requests failed, running each alone: %r", len(requests), result.error)
            self._reruns.extend(request for request in requests if not request.settled)

    def _answer(self, requests: Sequence[InferRequest], result: Pass, ended_ns: int) -> None:
        durations = (result.compute_input_ns, result.compute_infer_ns, result.compute_output_ns)
        self.statistics.count_pass(result.rows, *durations)
        if result.input_elements:
            self.statistics.count_padding(result.input_elements, result.padding_elements)
        answered: list[InferRequest] = []
        enqueued_ns: int | None = None
        timing: Timing | None = None
        in_order = self._in_order
        for request, response in zip(requests, result.responses, strict=True):
            if request.enqueued_ns != enqueued_ns:
                enqueued_ns = request.enqueued_ns
                timing = Timing(result.started_ns - enqueued_ns, *durations, result.rows, result.padding)
            response.timing = timing
            if in_order is not None:
                in_order.ready(request, (response, result))
            elif self._settle(request, response):
                answered.append(request)
        self.statistics.count_success(answered, result.started_ns, ended_ns, *durations)

    def _release_in_order(self) -> None:
        """Let go the answers that waited for those before them."""
        if self._in_order is None:
            return
        now_ns = self._clock()
        for request, (response, result) in self._in_order.release():
            if self._settle(request, response):
                durations = (result.compute_input_ns, result.compute_infer_ns, result.compute_output_ns)
                self.statistics.count_success([request], result.started_ns, now_ns, *durations)

    def _count_pending(self) -> None:
        """Add what changed: a version that is loaded anew counts on where its predecessor still drains."""
        pending = self.held
        self.statistics.pending += pending - self._pending_counted
        self._pending_counted = pending

    # --- settling ----------------------------------------------------------------------------------

    def _settle(self, request: InferRequest, outcome: Outcome) -> bool:
        """Whether this was the request's settlement. A callback that raises is its own caller's trouble."""
        try:
            return request.settle(outcome)
        except Exception:
            log.exception("the caller of a request to model %s failed to take its outcome", self.model_name)
            return True

    def _fail(self, request: InferRequest, error: ServingError, now_ns: int) -> None:
        if self._settle(request, error):
            self.statistics.count_failure(error, now_ns - request.received_ns)

    def _fail_each(self, requests: Iterable[InferRequest], error: ServingError) -> None:
        now_ns = self._clock()
        for request in requests:
            self._fail(request, error, now_ns)

    def _held_back(self) -> list[InferRequest]:
        return [*self._queue, *self._reruns]

    def _settle_waiting(self, make_error: Callable[[], ServingError]) -> None:
        now_ns = self._clock()
        waiting = [*self._reruns, *self._queue.clear(), *self._arrived]
        self._reruns.clear()
        self._arrived = []
        for request in waiting:
            self._fail(request, make_error(), now_ns)

    def _settle_all(self, make_error: Callable[[], ServingError]) -> None:
        """Also what runs; its results will be thrown away."""
        self._settle_waiting(make_error)
        now_ns = self._clock()
        for run in list(self._running.values()):
            for request in run.requests:
                self._fail(request, make_error(), now_ns)

    # --- the end -----------------------------------------------------------------------------------

    def _stop_admitting(self, until_ns: int) -> None:
        if self._arrived:
            # They came before the end, and would have been admitted in this very turn of the loop.
            self._guarded(self._take_in, self._clock())
        self._draining = True
        self._drain_until_ns = min(until_ns, self._drain_until_ns)
        self._limits = replace(self._limits, max_queue_delay_ns=0)

    def _check_drained(self, now_ns: int) -> int:
        """Tell who waits for the drain if it is over; else return when it is over at the latest."""
        if (self.pending or self._running) and now_ns < self._drain_until_ns:
            return self._drain_until_ns
        for drained in self._drained:
            if not drained.done():
                drained.set_result(None)
        self._drained.clear()
        return NO_DEADLINE
