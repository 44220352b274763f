"""The scheduler of a model that writes text: who may begin, who runs, who must go.

A request waits for a row and for its part of the cache's budget: all that its prompt and its text may come to, so that
who has begun never has to stop for want of memory. It is refused at the door where its first token is foreseen after
its deadline, or after the model's own objective for it. While it runs it may be cancelled, expire at the caller's
deadline, or be held because its reader is slow; whoever goes gives back its memory before the next step.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Sequence

from server.engine.base import Job, WritingInstance
from server.errors import Cancelled, DeadlineExceeded, Draining, EngineFailure, ModelNotReady, ServingError
from server.observability.whose import about
from server.offload import Offload
from server.scheduler.backlog import Backlog
from server.scheduler.queue import Line, Priorities, QueuePolicy, RequestQueue
from server.scheduler.settling import Settling
from server.scheduler.statistics import ModelStatistics
from server.scheduler.tenants import FairLine
from server.scheduler.ticking import Ticking
from server.scheduler.worker import Pass
from server.scheduler.writing_door import Run, WritingDoor
from server.scheduler.writing_foresight import Room
from server.scheduler.writing_statistics import Finish, WritingStatistics
from server.scheduler.writing_worker import WritingWorker, Written
from server.types import InferRequest, InferResponse

log = logging.getLogger(__name__)

_ON_LOOP_BYTES = 1024
"""A prompt of up to so many is made into tokens on the loop: a thread would take longer."""
_STALL_NS = 60_000_000_000
"""Texts that run have a token more by then, or the engine hangs."""


class WritingBatcher(Ticking):
    """Of one model version. Call it on the event loop's thread only."""

    _instances: WritingWorker

    def __init__(
        self,
        model_name: str,
        model_version: str,
        instance: WritingInstance,
        policy: QueuePolicy,
        statistics: ModelStatistics,
        loop: asyncio.AbstractEventLoop,
        clock: Callable[[], int] = time.monotonic_ns,
        *,
        priorities: Priorities | None = None,
        slo_ns: int = 0,
        fair_by_tenant: bool = False,
    ) -> None:
        """`slo_ns`: the model's objective for the first token, from a request's receipt; 0 is none."""
        super().__init__(model_name, loop, clock)
        self.statistics = statistics
        self.writing = statistics.writing = statistics.writing or WritingStatistics()
        self.writing.kv_tokens = instance.kv_tokens
        statistics.instances = 1
        self._model_version = model_version
        self._instance = instance
        self._queue = RequestQueue(policy, priorities, slo_ns, FairLine if fair_by_tenant else Line)
        self._backlog = Backlog(self._queue, statistics)
        self._settling = Settling(model_name, statistics, clock, preserve_ordering=False)
        self._jobs: dict[InferRequest, tuple[Job, int]] = {}
        """Of those who wait, with the caller's own deadline."""
        self._runs: dict[Job, Run] = {}
        self._tokenizing = Offload(1, f"tokens of {model_name}")
        self._preparing: set[InferRequest] = set()
        room = Room(instance.rows, instance.kv_tokens, instance.takes_in)
        self._door = WritingDoor(model_name, self._queue, self._runs, self._jobs, room, statistics)
        self._shut = False
        self._spared: set[InferRequest] = set()
        """Who came before the end, and is not made into tokens yet."""
        self._moved_ns = clock()
        self._instances = WritingWorker(instance, model_name, loop, self._on_step, clock)

    # --- what others call --------------------------------------------------------------------------

    def submit(self, requests: Sequence[InferRequest]) -> None:
        """Take in checked requests. Each is admitted, or settled with the reason why not. Never raises."""
        for request in requests:
            request.signature = None
            if sum(len(tensor.data) for tensor in request.inputs) <= _ON_LOOP_BYTES:
                try:
                    self._arrive(request, self._prepare(request))
                except Exception as error:  # noqa: BLE001 - settled with it
                    request.settle(error)
                continue
            self._preparing.add(request)
            self._tokenizing.run(self._prepare, request).add_done_callback(self._prepared(request))

    def _prepare(self, request: InferRequest) -> Job:
        inputs = {tensor.name: tensor.numpy() for tensor in request.inputs}
        return self._instance.prepare(inputs, request.parameters, request.outputs)

    def _prepared(self, request: InferRequest) -> Callable[[asyncio.Future[Job]], None]:
        def done(future: asyncio.Future[Job]) -> None:
            self._preparing.discard(request)
            self._tick_soon()
            error = Draining() if future.cancelled() else future.exception()
            if error is None:
                self._arrive(request, future.result())
            else:
                request.settle(error)

        return done

    def _arrive(self, request: InferRequest, job: Job) -> None:
        if not request.settled:
            self._jobs[request] = job, request.deadline_ns
            self._backlog.arrived.append(request)
            self._tick_soon()

    def cancel(self, request: InferRequest) -> None:
        """The caller went away. Does nothing for a request that is settled. Never raises."""
        if request.settled:
            return
        self._backlog.remove(request)
        self._settling.fail(request, Cancelled(), self._clock())
        # At once: what it has of the cache is free before the next step.
        self._sweep()
        self._tick_soon()

    def healthy(self) -> bool:
        """The thread lives, and who runs and is not held has had a token lately."""
        if not self._instances.alive:
            return False
        moving = any(not run.held for run in self._runs.values())
        return not moving or self._clock() - self._moved_ns < _STALL_NS

    # --- the tick ----------------------------------------------------------------------------------

    def _advance(self) -> None:
        now_ns = self._clock()
        for request in self._queue.expire(now_ns):
            waited_us = (now_ns - request.enqueued_ns) // 1000
            self._settling.fail(request, DeadlineExceeded(self.model_name, waited_us), now_ns)
        for run in self._runs.values():
            if run.deadline_ns <= now_ns:
                waited_us = (now_ns - run.request.enqueued_ns) // 1000
                error = DeadlineExceeded(self.model_name, waited_us, run.job.made)
                self._settling.fail(run.request, error, now_ns)
        self._sweep()
        if self._backlog.arrived:
            self._take_in(now_ns)
        if not self._instances.alive:
            self._end_all(self._dead)
        if now_ns >= self._drain_until_ns:
            self._end_all(Draining)
        self._sweep()
        self._begin(now_ns)
        wake_ns = min([self._queue.next_expiry_ns(), *(run.deadline_ns for run in self._runs.values())])
        if self._shut:
            wake_ns = min(wake_ns, self._check_drained(now_ns))
        self._tell()
        self._alarm.set(wake_ns, now_ns)

    def _take_in(self, now_ns: int) -> None:
        arrived, self._backlog.arrived = self._backlog.arrived, []
        for request in arrived:
            refusal = None if request.settled else self._refusal(request, now_ns)
            if refusal is not None:
                self._settling.fail(request, refusal, now_ns)
            if request.settled:
                self._jobs.pop(request, None)

    def _refusal(self, request: InferRequest, now_ns: int) -> ServingError | None:
        """Why it is not in the queue now; None: it is."""
        if self._shut and request not in self._spared:
            return Draining()
        return self._door.admit(request, now_ns) if self._instances.alive else self._dead()

    def _begin(self, now_ns: int) -> None:
        """Let those who wait begin, in their order, as long as there is room for the next one."""
        if not self._runs:
            self._moved_ns = now_ns
        for line in self._queue.lines:
            while line.size:
                request = next(iter(line.lane(None)))[2]
                job, deadline_ns = self._jobs[request]
                if not self._door.fits(job):
                    return
                self._queue.take((request,))
                del self._jobs[request]
                run = self._runs[job] = Run(request, job, deadline_ns, now_ns)
                # Until here it had the model's objective for its first token, too.
                request.deadline_ns = deadline_ns
                self.writing.reserved_tokens += run.reserved
                self.writing.running += 1
                self._instances.join(job)

    def _sweep(self) -> None:
        """Whoever is settled leaves."""
        if self._jobs:
            for request in [request for request in self._jobs if request.settled]:
                del self._jobs[request]
        for run in [run for run in self._runs.values() if run.request.settled]:
            self._drop(run)
            self._instances.leave(run.job)
            self.writing.finished[self._why_gone(run)] += 1

    def _why_gone(self, run: Run) -> Finish:
        now_ns = self._clock()
        if now_ns >= run.deadline_ns:
            return Finish.EXPIRED
        return Finish.FAILED if now_ns >= self._drain_until_ns else Finish.CANCELLED

    def _drop(self, run: Run) -> None:
        del self._runs[run.job]
        self.writing.reserved_tokens -= run.reserved
        self.writing.running -= 1
        self.writing.held -= run.held

    def _dead(self) -> ModelNotReady:
        return ModelNotReady(self.model_name, self._model_version, "its thread has died")

    # --- a step ------------------------------------------------------------------------------------

    def _on_step(self, written: Written) -> None:
        self._guarded(self._hand_out, written)
        self._guarded(self._advance)

    def _hand_out(self, written: Written) -> None:
        self._moved_ns = written.ended_ns
        self.statistics.count_end(None, written.ended_ns - written.began_ns)
        step = written.step
        if step is None:
            error, cut = written.error, [run.request for run in self._runs.values()]
            cause = error and (error.__cause__ or error)
            log.error("a step of %s failed", self._instance.name, exc_info=cause, extra=about(*cut))
            for run in list(self._runs.values()):
                self._fail(run, error or EngineFailure(self.model_name, "a step failed"))
            return
        self._count(written)
        for job in step.failed:
            if (failed := self._runs.get(job)) is not None:
                self._fail(failed, EngineFailure(self.model_name, "the model's logits are no numbers"))
        for job, tensors, finish in written.responses:
            if (told := self._runs.get(job)) is None:
                continue
            response = InferResponse(self.model_name, self._model_version, tensors, told.request.id)
            if finish:
                self._finish(told, response, finish, written.ended_ns)
            else:
                self._send(told, response)

    def _count(self, written: Written) -> None:
        step, now_ns, writing = written.step, written.ended_ns, self.writing
        assert step is not None
        ran: list[int] = []
        for job in step.wrote:
            run = self._runs.get(job)
            if run is None:
                continue
            if run.last_ns:
                ran.append(run.last_ns)
            else:
                writing.first_token.observe(now_ns - run.request.received_ns)
                self._door.learn_first(run, self._clock(), written)
            run.last_ns = now_ns
        writing.between_tokens.observe_since(ran, now_ns)
        writing.prompt_tokens += step.prefilled
        writing.tokens += len(step.wrote)
        self._door.costs.learn_step(
            now_ns - written.since_ns, ran=len(ran), prefilled=step.prefilled, prefill_ns=step.prefill_ns
        )

    def _send(self, run: Run, response: InferResponse) -> None:
        """A reader that takes no more for now holds up its own text alone."""
        full = True

        def go_on() -> None:
            nonlocal full
            full = False
            if run.held and run.job in self._runs:
                self._hold(run, held=False)

        try:
            run.request.send(response, go_on)
        except Exception as error:  # noqa: BLE001 - its caller's own trouble
            self._fail(run, EngineFailure(self.model_name, repr(error)))
            return
        if full and not run.held and run.job in self._runs:
            self._hold(run, held=True)

    def _hold(self, run: Run, *, held: bool) -> None:
        run.held = held
        self.writing.held += 1 if held else -1
        (self._instances.hold if held else self._instances.go_on)(run.job)

    def _finish(self, run: Run, response: InferResponse, finish: str, now_ns: int) -> None:
        self._drop(run)
        self._door.costs.lengths.learn(run.job.made, by_itself=finish == Finish.STOP)
        self.writing.finished[Finish(finish)] += 1
        whole = Pass(1, run.begun_ns, [response], compute_infer_ns=now_ns - run.begun_ns)
        self._settling.answer([run.request], whole, now_ns)

    def _fail(self, run: Run, error: ServingError) -> None:
        self._drop(run)
        self._instances.leave(run.job)
        self.writing.finished[Finish.FAILED] += 1
        self._settling.fail(run.request, error, self._clock())

    # --- for `Ticking` -----------------------------------------------------------------------------

    def _arrivals(self) -> Sequence[InferRequest]:
        return self._backlog.arrived

    def _clear(self) -> Sequence[InferRequest]:
        return [*self._backlog.clear(), *self._preparing]

    def _running(self) -> Sequence[InferRequest]:
        return [run.request for run in self._runs.values()]

    def _empty(self) -> bool:
        return not (self._backlog or self._backlog.arrived or self._preparing or self._runs)

    def _tell(self) -> None:
        self._backlog.count()

    def _stop_admitting(self, until_ns: int) -> None:
        super()._stop_admitting(until_ns)
        self._shut = True
        self._spared |= self._preparing

    async def close(self) -> None:
        self._tokenizing.close()
        await super().close()
