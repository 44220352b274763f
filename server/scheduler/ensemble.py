"""Runs the requests of an ensemble: each step as a request of its model, one behind or beside the other.

Plain calls on the event loop, as everywhere: no task and no future for a request or a step. A request is settled
once: with the tensors of its steps, or with the first error of one, upon which the steps beside it are cancelled.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial

from server.ensembles import Ensemble
from server.errors import (
    Cancelled,
    DeadlineExceeded,
    Draining,
    EngineFailure,
    InvalidRequest,
    ModelNotReady,
    QueueFull,
    ServingError,
)
from server.explain import WaitReason
from server.observability.whose import about
from server.scheduler.ensemble_plan import Plans
from server.scheduler.ensemble_run import Run, Shape
from server.scheduler.ensemble_turns import Turns
from server.scheduler.lineup import Lineup, Member
from server.scheduler.settling import CALLER_FAILED
from server.scheduler.statistics import ModelStatistics
from server.types import InferRequest, InferResponse, Outcome, Timing

log = logging.getLogger(__name__)


class EnsembleBatcher:
    """What stands in a batcher's place for one version of an ensemble. Call it on the event loop's thread only."""

    def __init__(
        self,
        model_name: str,
        model_version: str,
        ensemble: Ensemble,
        outputs: Mapping[str, tuple[int, ...]],
        statistics: ModelStatistics,
        clock: Callable[[], int] = time.monotonic_ns,
        *,
        batched: bool,
        max_queue_size: int,
        slo_ns: int = 0,
    ) -> None:
        """`outputs`: their dims, without the batch dimension, which there is if `batched`.

        `max_queue_size`: requests of one sequence that may wait for those before them.
        `slo_ns`: a deadline for every request, from its receipt; 0 is none.
        """
        self.model_name = model_name
        self.model_version = model_version
        self.statistics = statistics
        self._shape = Shape(ensemble, outputs, batched)
        self._plans = Plans(ensemble, list(outputs))
        self._clock = clock
        self._max_queue_size = max_queue_size
        self._slo_ns = slo_ns
        self._on_step = [partial(self._step_ended, step) for step in range(len(ensemble.steps))]
        self._lineup: Lineup | None = None
        self._why_not = ""
        self._runs: dict[InferRequest, Run] = {}
        self._turns = Turns()
        self._leaving: deque[InferRequest] = deque()
        self._shut = False
        self._idle = asyncio.Event()
        self._idle.set()

    # --- what others call --------------------------------------------------------------------------

    def use(self, lineup: Lineup | None, why_not: str = "") -> None:
        """Requests that begin from now on run on `lineup`; on none, they are refused, and told `why_not`."""
        old, self._lineup, self._why_not = self._lineup, lineup, why_not
        if old is not None:
            old.drop()

    @property
    def keeps_sequences(self) -> bool:
        """A model of one of its steps does."""
        return self._lineup is not None and self._lineup.keeps_sequences

    def submit(self, requests: Sequence[InferRequest]) -> None:
        """Take in checked requests; the first steps of all of them go together. Never raises.

        One that is settled already was refused at its check: where its sequence is kept it will be missing.
        """
        first: dict[int, list[InferRequest]] = {}
        lineup = self._lineup
        for request in requests:
            try:
                run = self._admit(request)
                if run is not None:
                    for step in run.plan.first:
                        first.setdefault(step, []).append(run.ask(step, self._on_step[step], request.enqueued_ns))
            except Exception as error:  # noqa: BLE001 - it is logged, and nobody may wait because of it
                self._fault(request, error)
        if lineup is not None:
            for step, inner in first.items():
                _submit(lineup.members[step], inner)

    def cancel(self, request: InferRequest) -> None:
        """The caller went away: settle it as Cancelled, and its steps. Does nothing for one that is settled."""
        if not request.settled:
            self._end(request, Cancelled())

    def healthy(self) -> bool:
        """Every model of a step is."""
        return self._lineup is None or all(member.model.healthy() for member in self._lineup.members)

    async def drain(self, until_ns: int) -> None:
        """Admit nothing new any more, answer what is under way until `until_ns`, settle the rest as Draining."""
        self._shut = True
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(max(0, until_ns - self._clock()) / 1e9):
                await self._idle.wait()
        await self.close()

    async def close(self) -> None:
        """Settle whatever is under way as Draining, and let go of the steps' models."""
        self._shut = True
        for request in (*self._turns.waiting(), *self._runs):
            self._end(request, Draining())
        self.use(None)

    # --- the beginning -----------------------------------------------------------------------------

    def _admit(self, request: InferRequest) -> Run | None:
        """The request under way; None if it was refused, or waits for others of its sequence."""
        if self._slo_ns:
            request.deadline_ns = min(request.deadline_ns, request.received_ns + self._slo_ns)
        request.enqueued_ns = self._clock()
        before = self._turns.enter(request, self._max_queue_size) if request.parameters else 0
        if request.settled:
            self._end_of_turn(request)
            return None
        if self._shut:
            self._end(request, Draining())
            return None
        if before > self._max_queue_size:
            self._end(request, QueueFull(self.model_name, self._max_queue_size))
            return None
        self.statistics.admitted += 1
        if not before:
            return self._begin(request, request.enqueued_ns)
        if request.explanation is not None:
            request.explanation.waited = WaitReason.SEQUENCE
        return None

    def _begin(self, request: InferRequest, now_ns: int) -> Run | None:
        lineup = self._lineup
        if lineup is None:
            refusal: ServingError = ModelNotReady(self.model_name, self.model_version, self._why_not)
        elif now_ns >= request.deadline_ns:
            refusal = self._too_late(request, now_ns)
        else:
            run = self._runs[request] = Run(self._shape, request, self._plans.plan(request.outputs), lineup, now_ns)
            lineup.join()
            self._idle.clear()
            return run
        self._end(request, refusal)
        return None

    def _too_late(self, request: InferRequest, now_ns: int) -> DeadlineExceeded:
        return DeadlineExceeded(self.model_name, (now_ns - request.enqueued_ns) // 1000)

    # --- steps -------------------------------------------------------------------------------------

    def _step_ended(self, step: int, inner: InferRequest, outcome: Outcome) -> None:
        run = inner.caller
        assert isinstance(run, Run)
        if run.request.settled:
            return
        try:
            if not isinstance(outcome, InferResponse):
                del run.under_way[step]
                self._end(run.request, self._told(step, outcome))
                return
            ready = run.take(step, outcome)
            if run.progress.over:
                self._answer(run)
            elif ready:
                self._go_on(run, ready)
        except Exception as error:  # noqa: BLE001 - as above
            self._fault(run.request, error)

    def _go_on(self, run: Run, ready: Sequence[int]) -> None:
        now_ns = self._clock()
        inner = [run.ask(step, self._on_step[step], now_ns) for step in ready]
        if now_ns >= run.request.deadline_ns:
            self._end(run.request, self._too_late(run.request, now_ns))
            return
        for step, request in zip(ready, inner, strict=True):
            _submit(run.lineup.members[step], (request,))

    def _told(self, step: int, error: BaseException) -> BaseException:
        """A step's error for the caller of the ensemble, who did not make the step's request."""
        if type(error) is InvalidRequest:
            return InvalidRequest(f"ensemble '{self.model_name}', step[{step}], {error.field}", error.problem)
        return error

    # --- the end -----------------------------------------------------------------------------------

    def _answer(self, run: Run) -> None:
        request = run.request
        response = InferResponse(self.model_name, self.model_version, run.outputs(), request.id)
        now_ns = self._clock()
        began_ns = run.began_ns
        response.timing = Timing(began_ns - request.enqueued_ns, 0, now_ns - began_ns, 0, request.rows)
        self.statistics.count_pass(request.rows, *run.durations_ns)
        self.statistics.count_success([request], began_ns, now_ns, *run.durations_ns)
        self._end(request, response)

    def _fault(self, request: InferRequest, error: Exception) -> None:
        log.exception("the ensemble %s failed and settles a request", self.model_name, extra=about(request))
        if not request.settled:
            self._end(request, EngineFailure(self.model_name, repr(error)))

    def _end(self, request: InferRequest, outcome: Outcome) -> None:
        """Settle a request with its outcome, and what is left of its steps."""
        run = self._runs.pop(request, None)
        if not isinstance(outcome, InferResponse):
            self.statistics.count_failure(outcome, self._clock() - request.received_ns)
        try:
            request.settle(outcome)
        except Exception:
            log.exception(CALLER_FAILED, self.model_name, extra=about(request))
        if run is not None:
            under_way, run.under_way = run.under_way, {}
            for step, inner in under_way.items():
                _cancel(run.lineup.members[step], inner)
            if request.parameters:
                _lose(run.lineup, run.progress.waiting(), request)
            run.lineup.leave()
        if request.parameters:
            self._end_of_turn(request, ran=run is not None)
        if not self._runs:
            self._idle.set()

    # --- sequences ---------------------------------------------------------------------------------

    def _end_of_turn(self, request: InferRequest, *, ran: bool = False) -> None:
        """It is the turn of those behind it in its sequence. What ends at once in here is seen to by the first call."""
        if not ran and self._turns.is_first(request):
            self._lose(request)
        self._leaving.append(request)
        if len(self._leaving) > 1:
            return
        while self._leaving:
            for behind in self._turns.leave(self._leaving[0]):
                if behind.settled:
                    self._lose(behind)
                else:
                    self._start(behind)
            self._leaving.popleft()

    def _lose(self, request: InferRequest) -> None:
        if self._lineup is not None:
            _lose(self._lineup, range(len(self._lineup.members)), request)

    def _start(self, request: InferRequest) -> None:
        run = self._begin(request, self._clock())
        if run is not None:
            self._go_on(run, run.plan.first)


def _submit(member: Member, inner: Sequence[InferRequest]) -> None:
    """A step whose request is over by now, because one beside it was refused, does not run."""
    live = [request for request in inner if not request.settled]
    if live:
        member.model.submit(live)


def _cancel(member: Member, inner: InferRequest) -> None:
    if inner.holder is not None:
        inner.holder.cancel(inner)
    else:
        inner.settle(Cancelled())
        member.model.lost(inner)


def _lose(lineup: Lineup, steps: Iterable[int], request: InferRequest) -> None:
    """Tell of a request to those models of steps that may keep its sequence, and will not see it."""
    if lineup.keeps_sequences:
        for step in steps:
            lineup.members[step].model.lost(request)
