"""The scheduler of a model version that batches sequences: `Batcher`'s place and manners, `Slots`' order.

As there everything runs on the event loop in plain calls, what arrives in one tick is looked at together, and whoever
is held is settled exactly once. What differs: a request runs when those before it in its sequence have, on the instance
whose slot its sequence holds, and nobody is refused by foresight, because a sequence that has begun can't go elsewhere.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Sequence
from functools import partial
from weakref import WeakMethod

from server.engine.base import Instance
from server.errors import (
    Cancelled,
    DeadlineExceeded,
    Draining,
    ModelNotReady,
    QueueFull,
    SequenceUnknown,
    ServingError,
)
from server.scheduler.batcher import STALL_NS, MakeRunner
from server.scheduler.costs import Costs
from server.scheduler.instances import Instances
from server.scheduler.queue import QueuePolicy, RequestQueue
from server.scheduler.saturation import Ability
from server.scheduler.sequence_passes import UNANSWERED, SequencePasses
from server.scheduler.sequence_rows import Rows
from server.scheduler.sequence_statistics import SequenceStatistics, Tally
from server.scheduler.sequence_waits import SequenceWaits
from server.scheduler.settling import Settling
from server.scheduler.share import Share
from server.scheduler.slots import ID, START, Slots
from server.scheduler.statistics import ModelStatistics
from server.scheduler.ticking import Ticking
from server.scheduler.worker import Model, Pass, Runner, Worker
from server.sequences import Direct, SequenceBatching, SequenceId, sequence_id
from server.types import NO_DEADLINE, InferRequest

log = logging.getLogger(__name__)

_CANCELLED = "a request of it was cancelled"


class SequenceBatcher(Ticking):
    """Takes the sequences of one model version to its instances. Call it on the event loop's thread only."""

    _instances: Instances

    def __init__(
        self,
        model_name: str,
        model_version: str,
        instances: Sequence[Instance],
        batching: SequenceBatching,
        max_batch_size: int,
        policy: QueuePolicy,
        costs: Costs,
        statistics: ModelStatistics,
        loop: asyncio.AbstractEventLoop,
        clock: Callable[[], int] = time.monotonic_ns,
        make_runner: MakeRunner | None = None,
        *,
        outputs: Sequence[str],
        slo_ns: int = 0,
        share: Share | None = None,
    ) -> None:
        """`policy`: of all requests that wait, with or without a slot. `outputs`: that clients see.

        The rest as of `Batcher`.
        """
        super().__init__(model_name, loop, clock)
        self.statistics = statistics
        self._model_version = model_version
        self._strategy = batching.strategy
        self._max_batch_size = max_batch_size
        self._idle_ns = batching.max_sequence_idle_microseconds * 1000
        self._costs = costs
        self._limit = policy.max_queue_size
        self._deadlines = RequestQueue(policy, slo_ns=slo_ns)
        """Asked for deadlines alone."""
        if make_runner is None:
            model = Model(model_name, model_version, max_batch_size > 0)
            make_runner = partial(Worker, model=model, loop=loop, clock=clock)
        runners = {make_runner(instance): instance for instance in instances}
        self._instances = Instances(model_name, runners, costs, statistics, share, self._tick_soon)
        ordered = not isinstance(batching.strategy, Direct) and batching.strategy.preserve_ordering
        self._settling = Settling(model_name, statistics, clock, preserve_ordering=ordered)
        # Answers wait for those of requests that could run before: none of these depends on an answer held back.
        self._slots = Slots(len(runners), batching.slots(max_batch_size), self._settling.admit)
        self._waits = SequenceWaits()
        self._passes = SequencePasses(
            model_name,
            list(runners),
            batching.strategy,
            max_batch_size,
            Rows(batching, batched=max_batch_size > 0, outputs=outputs),
            costs,
            self._slots,
            self._instances,
            self._settling,
            self._waits,
            statistics,
            clock,
        )
        if statistics.sequences is None:
            statistics.sequences = SequenceStatistics()
        self._tally = Tally(statistics.sequences)
        self._pending = 0
        """What the statistics were told."""
        self._arrived: list[InferRequest] = []
        self._shut = False
        self._slo_ns = slo_ns
        statistics.ability = WeakMethod(self.ability)

    # --- what others call --------------------------------------------------------------------------

    def submit(self, requests: Sequence[InferRequest]) -> None:
        """As `Batcher.submit`. A request that is settled already was refused at its check, and leaves a gap."""
        self._arrived += requests
        self._tick_soon()

    def ability(self) -> Ability:
        """What the instances can do."""
        living, of_cores = self._instances.living()
        counts = self.statistics
        passes = max(1, counts.execution_count)
        return Ability(
            living, max(1, counts.inference_count // passes), counts.busy_ns // passes, self._slo_ns, of_cores
        )

    def cancel(self, request: InferRequest) -> None:
        """The caller went away: settle it as Cancelled, and those behind it in its sequence as lost; the sequence is
        over. If it runs its result is thrown away. Does nothing for one that is settled. Never raises."""
        if not request.settled:
            self._guarded(self._cancel, request)
            self._tick_soon()

    def knows(self, id: SequenceId) -> bool:
        """Whether the sequence has begun here and may go on."""
        if self._arrived:
            self._guarded(self._take_in, self._clock())
        return self._slots.knows(id)

    def supersede(self, id: SequenceId) -> None:
        """The sequence began anew elsewhere: what has come of it is served, no more of it will."""
        self._slots.supersede(id)
        self._tick_soon()

    @property
    def pending(self) -> int:
        """Requests that wait for a pass, or to be admitted."""
        return self._held() + len(self._arrived)

    def healthy(self) -> bool:
        """Every worker lives, and nobody who may run has waited for seconds while all of them, and the cores, are
        idle."""
        if not self._instances.well:
            return False
        heads = [chain.waiting[0] for lane in self._slots.lanes for chain in lane.ready]
        if self._instances.running or self._instances.turn.waiting or not heads:
            return True
        window_ns = self._strategy.max_queue_delay_microseconds * 1000
        return self._clock() - min([head.enqueued_ns for head in heads]) < window_ns + STALL_NS

    # --- the tick ----------------------------------------------------------------------------------

    def _advance(self) -> None:
        """Settle who expired, end who is idle, give work to the idle instances, set the alarm for what comes next."""
        now_ns = self._clock()
        self._take_in(now_ns)
        self._expire(now_ns)
        if self._slots.idle_since_ns() < NO_DEADLINE:
            self._slots.end_idle(now_ns - self._idle_ns)
        if self._instances.dead:
            self._settling.fail_each(self._clear(), self._dead)
        if now_ns >= self._drain_until_ns:
            self._end_all(Draining)
        wake_ns = self._employ(now_ns)
        self._settling.release()
        if self._waits:
            idle = self._passes.idle_lanes()
            self._waits.look_at(self._slots, idle, now_ns, others=self._instances.turn.waiting)
        if self._shut:
            wake_ns = min(wake_ns, self._check_drained(now_ns))
        self._tell()
        idle_ns = self._slots.idle_since_ns()
        if idle_ns < NO_DEADLINE:
            wake_ns = min(wake_ns, idle_ns + self._idle_ns)
        self._alarm.set(min(wake_ns, self._slots.next_expiry_ns()), now_ns)

    def _tell(self) -> None:
        held = self._held()
        self.statistics.pending += held - self._pending
        self._pending = held
        self._tally.tell(self._slots)

    def _held(self) -> int:
        return self._slots.waiting + self._passes.reruns

    # --- who comes, and who leaves without a pass --------------------------------------------------------

    def _take_in(self, now_ns: int) -> None:
        while self._arrived:
            arrived, self._arrived = self._arrived, []
            for request in arrived:
                if request.settled:
                    self._slots.refuse(request)
                elif (refusal := self._refusal(request, now_ns)) is not None:
                    self._slots.refuse(request)
                    self._settling.fail(request, refusal, now_ns)
                else:
                    self._admit(request, now_ns)

    def _refusal(self, request: InferRequest, now_ns: int) -> ServingError | None:
        if self._shut and (request.parameters.get(START) or now_ns >= self._drain_until_ns):
            return Draining()
        if self._instances.dead:
            return self._dead()
        delays_ns = self._deadlines.set_deadline(request, now_ns)
        request.deadline_ns = min(request.deadline_ns, delays_ns)
        if request.deadline_ns <= now_ns:
            return DeadlineExceeded(self.model_name, 0)
        name = sequence_id(request.parameters.get(ID))
        if not request.parameters.get(START) and not self._slots.knows(name):
            return SequenceUnknown(self.model_name, name)
        self._count_arrival(request, now_ns)
        return QueueFull(self.model_name, self._limit) if 0 < self._limit <= self._slots.waiting else None

    def _count_arrival(self, request: InferRequest, now_ns: int) -> None:
        cost = self._costs.for_signature(request.signature)
        rows = max(1, cost.best_rows(self._max_batch_size))
        self.statistics.load.arrive((cost.predict_ns(rows) or 0) // rows, now_ns)

    def _admit(self, request: InferRequest, now_ns: int) -> None:
        request.enqueued_ns = now_ns
        self._slots.join(request)
        self.statistics.admitted += 1
        if request.explanation is not None:
            self._waits.watch(request)

    def _cancel(self, request: InferRequest) -> None:
        now_ns = self._clock()
        self._take_in(now_ns)
        if request.settled:
            return
        lost = self._slots.lose(request, now_ns, cancelled=True)
        self._settling.fail(request, Cancelled(), now_ns)
        self._passes.lose(lost, request, _CANCELLED, now_ns)

    def _expire(self, now_ns: int) -> None:
        for request in self._slots.expired(now_ns):
            if request in self._slots:
                lost = self._slots.lose(request, now_ns)
                self._settling.fail(request, self._passes.too_late(request, now_ns), now_ns)
                self._passes.lose(lost, request, UNANSWERED, now_ns)

    # --- passes ------------------------------------------------------------------------------------------

    def _employ(self, now_ns: int) -> int:
        """Start passes on the idle instances whose slots have somebody for them; returns when the next one may go."""
        passes, turn = self._passes, self._instances.turn
        wake_ns, waits = NO_DEADLINE, False
        for runner in list(self._instances.idle):
            chains, until_ns = passes.next(runner, now_ns)
            wake_ns = min(wake_ns, until_ns)
            if not chains:
                continue
            reserved = None if turn.must_wait((runner,), now_ns) else passes.reserve(chains, runner, now_ns)
            if reserved is None:
                waits = True
            elif not passes.begin(reserved, self._on_pass):
                # After a pass on the loop itself the sockets come first.
                self._tick_soon()
                break
        if waits:
            return min(wake_ns, turn.again_ns)
        turn.withdraw(now_ns)
        return wake_ns

    def _on_pass(self, runner: Runner, result: Pass) -> None:
        """A worker's pass is over; called on the loop."""
        self._guarded(self._passes.finish, runner, result)
        self._guarded(self._advance)

    def _dead(self) -> ModelNotReady:
        return ModelNotReady(self.model_name, self._model_version, "its workers have died")

    # --- for `Ticking` -----------------------------------------------------------------------------------

    def _arrivals(self) -> Sequence[InferRequest]:
        return self._arrived

    def _clear(self) -> Sequence[InferRequest]:
        """Every sequence is ended."""
        held = [request for request in self._arrived if not request.settled]
        self._arrived = []
        return held + self._passes.clear_reruns() + self._slots.clear()

    def _running(self) -> Sequence[InferRequest]:
        return self._passes.running()

    def _empty(self) -> bool:
        """No sequence is left: a drain serves those that have begun to their ends, or until they are idle for long."""
        return self._slots.empty() and not self._arrived and not self._instances.running

    def _stop_admitting(self, until_ns: int) -> None:
        super()._stop_admitting(until_ns)
        self._shut = True
