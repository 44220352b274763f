"""Preprocessing, in front of a version's batcher: work with a cost and a queue, as forward passes are.

A request whose tensors are still to be made (a picture to be decoded) is admitted before anything is spent on it, by
what is foreseen of its whole way:

    door ── refused: as the batcher behind it would, of which it is asked with all who come before this one;
     │              or because the threads have too much to do
     ▼
    waiting (the earliest deadline first) ── expired, cancelled: never prepared
     ▼
    prepared, on a thread ──► the batcher behind

It is a `Batcher` of its own, whose passes are preprocessing, on as many threads as there are. With one thread a pass
may be of several requests, one behind the other, as many as are worth it, and more of brief ones: each hand-over takes
time of the core that it shares with the loop, whose caches pictures have emptied. With more threads a pass is of one
request.

Costs are learned by the bytes of an input; passes take their tokens of the share with the model's others. What a
request needs behind the threads is taken off its deadline here, so that nobody is prepared who would be late for its
own pass.

Two kinds of requests go to the batcher behind at once. What takes less than to hand it over, a few rows of a table, is
prepared here, on the loop. And where threads and engine have one core between them, what takes no long time is prepared
by its pass: see `server.scheduler.raw`. What does take long stays in front, where it holds up no pass.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol, cast, runtime_checkable

from server.errors import Cancelled, DeadlineExceeded, Overloaded, ServingError
from server.offload import Offload
from server.scheduler.admission import Foreseen
from server.scheduler.batcher import Batcher
from server.scheduler.costs import CostsByLength
from server.scheduler.plan import Limits
from server.scheduler.queue import Priorities, QueuePolicy, RequestQueue
from server.scheduler.raw import (
    BRIEF_TIMES,
    LONG_NS,
    TOGETHER,
    FewTogether,
    Prepare,
    Raw,
    class_of,
    size_class,
    tensors_of,
)
from server.scheduler.settling import CALLERS
from server.scheduler.share import Share
from server.scheduler.statistics import ModelStatistics
from server.scheduler.worker import Done, Model, Pass
from server.tensor import Array, Tensor
from server.types import NO_DEADLINE, Batch, InferRequest, InferResponse, Outcome, RawInput

_BRIEF = "brief"
"""In the place of a size."""
_MOST_BEHIND = 0.5
"""The part of a request's time that may be kept for its own pass: what is learned too high is to be found out."""


@runtime_checkable
class Foresees(Protocol):
    """A batcher that can say beforehand whom it would admit."""

    def foresee(self, request: InferRequest, coming: int) -> Foreseen: ...
    def hopeless(self, signature: object, deadline_ns: int) -> Overloaded | None: ...
    @property
    def queue(self) -> RequestQueue: ...


class Work(InferRequest):
    """The preprocessing of a request."""

    __slots__ = ("given", "of")

    def __init__(
        self,
        of: InferRequest,
        given: Sequence[RawInput],
        on_settle: Callable[[InferRequest, Outcome], None],
        deadline_ns: int,
    ) -> None:
        super().__init__(
            of.model_name,
            (),
            on_settle=on_settle,
            received_ns=of.received_ns,
            # Its queue timeout is in its deadline by now.
            parameters={"priority": of.parameters["priority"]} if "priority" in of.parameters else None,
            deadline_ns=deadline_ns,
            tenant=of.tenant,
        )
        self.of = of
        self.given = given
        self.rows = len(given)
        self.signature = size_class(given)


class Spoiled(InferResponse):
    """What becomes of one request of a pass whose preprocessing failed: the others are prepared."""

    __slots__ = ("error",)

    def __init__(self, model: Model, error: ServingError) -> None:
        super().__init__(model.name, model.version, ())
        self.error = error


class Thread:
    """One of the threads, as an instance of the batcher. What it runs is the runner's to know."""

    threads = 1
    device = "cpu"

    def __init__(self, name: str) -> None:
        self.name = name

    def run(self, batch: Batch) -> Mapping[str, Array]:
        raise NotImplementedError


class OnThread:
    """Runs one pass of preprocessing at a time, on whichever of the threads is free. As `Runner`."""

    alive = True

    def __init__(self, model: Model, prepare: Prepare, threads: Offload, clock: Callable[[], int]) -> None:
        self._model = model
        self._prepare = prepare
        self._threads = threads
        self._clock = clock

    def start(self, requests: Sequence[InferRequest], done: Done) -> None:
        self._threads.post(self.run_inline, requests, done)

    def run_inline(self, requests: Sequence[InferRequest]) -> Pass:
        began_ns = self._clock()
        rows = sum([work.rows for work in requests])
        responses = [self._one(cast("Work", work)) for work in requests]
        if len(responses) == 1 and isinstance(responses[0], Spoiled):
            return Pass(rows, began_ns, error=responses[0].error)
        return Pass(rows, began_ns, responses, compute_infer_ns=self._clock() - began_ns)

    def _one(self, work: Work) -> InferResponse:
        request, began_ns = work.of, self._clock()
        explanation = request.explanation
        if explanation is not None:
            explanation.mark("queue", began_ns)
        if request.settled or request.deadline_ns <= began_ns:
            # While others of its pass were prepared.
            return Spoiled(self._model, DeadlineExceeded(request.model_name, (began_ns - work.enqueued_ns) // 1000))
        tensors = tensors_of(self._model.name, self._prepare, work.given)
        if isinstance(tensors, ServingError):
            return Spoiled(self._model, tensors)
        if explanation is not None:
            explanation.mark("preprocess")
        return InferResponse(self._model.name, self._model.version, tensors)

    def stop(self) -> None:
        """The threads are everybody's."""

    async def join(self) -> None:
        """What still runs goes on, and its result is nobody's."""


class _Statistics(ModelStatistics):
    """Of passes that are preprocessing; who waits or fails there does so as a request of the model."""

    def __init__(self, of: ModelStatistics) -> None:
        self._of, pending = of, of.pending
        super().__init__(of.name, of.version)
        of.pending = pending

    @property
    def pending(self) -> int:
        return self._of.pending

    @pending.setter
    def pending(self, pending: int) -> None:
        self._of.pending = pending

    def count_pass(self, rows: int, input_ns: int, infer_ns: int, output_ns: int) -> None:
        """By these a pass's usual cost is told. The rest is nobody's to read."""
        self.inference_count += rows
        self.execution_count += 1

    def count_success(
        self,
        requests: Sequence[InferRequest],
        started_ns: int,
        settled_ns: int,
        input_ns: int,
        infer_ns: int,
        output_ns: int,
    ) -> None:
        """Each is counted when it was answered."""

    def count_failure(self, error: BaseException, duration_ns: int) -> None:
        if not isinstance(error, ServingError) or error.code not in CALLERS:
            self._of.count_failure(error, duration_ns)


class Preparing:
    """Of one model version. Call it on the event loop's thread only."""

    def __init__(
        self,
        model: Model,
        prepare: Prepare,
        threads: Offload,
        statistics: ModelStatistics,
        submit: Callable[[InferRequest], None],
        behind: Foresees | None,
        loop: asyncio.AbstractEventLoop,
        clock: Callable[[], int] = time.monotonic_ns,
        *,
        most_rows: int = 1,
        together: int | None = None,
        brief: int = 0,
        share: Share | None = None,
        passes: Batcher | None = None,
        make_runner: Callable[[Any], Any] | None = None,
    ) -> None:
        """`submit` takes the requests that are ready, to `behind`; None: to one who can foresee nothing.

        `statistics`: of the model. `most_rows`: of one request. `together`: requests of a pass; None: by the number of
        threads. `brief`: so many inputs at most are prepared in less time than it takes to hand them over; see
        `server.pipeline.base.Brief`. `passes`: `behind`, where its passes can prepare: see `server.scheduler.raw`.
        `share`, `make_runner`: see `Batcher`.
        """
        self._model = model
        self._prepare = prepare
        self._brief = brief
        self._submit = submit
        self._behind = behind
        self._model_statistics = statistics
        self._clock = clock
        self._under_way: dict[InferRequest, Work] = {}
        self._signatures: dict[object, object] = {}
        """What the tensors made of inputs of one size had for a signature, the last time."""
        self._own_ns = 0
        """What the last request's own pass was foreseen to take."""
        own = statistics.preparing = _Statistics(statistics)
        if together is None:
            together = TOGETHER if threads.most == 1 else 1
        self._passes = passes if threads.most == 1 else None
        self._costs = CostsByLength({})
        self._batcher = Batcher(
            model.name,
            model.version,
            [Thread(f"pipeline_{number}") for number in range(threads.most)],
            FewTogether(max(most_rows, BRIEF_TIMES * together), few=together)
            if together > 1
            else Limits(max_batch_size=0),
            QueuePolicy(behind.queue.levels[-1].policy.max_queue_size if behind else 0),
            self._costs,
            own,
            loop,
            clock,
            make_runner or (lambda _: OnThread(model, prepare, threads, clock)),
            priorities=_without_policies(behind.queue.priorities) if behind else None,
            share=share,
            fair_by_tenant=behind.queue.fair if behind else False,
            inline=False,
        )

    def submit(self, request: InferRequest, raw: Sequence[RawInput]) -> None:
        """Make a request, whose rows are set, ready, and submit it; or settle it with the reason why not."""
        if len(raw) <= self._brief:
            self._at_once(request, raw)
            return
        size = size_class(raw)
        passes = self._passes_for(size, len(raw))
        if passes is not None:
            request.raw, request.signature, request.holder = raw, size, passes
            passes.submit((request,))
            return
        work = Work(request, raw, self._settled, request.deadline_ns)
        request.holder = self
        request.signature = self._signatures.get(work.signature)
        if self._behind is not None:
            refusal, own_ns = self._behind.foresee(request, self._batcher.rows_before(work))
            now_ns = self._clock()
            if refusal is not None:
                self._refuse(request, refusal, now_ns)
                return
            self._own_ns = own_ns
            work.deadline_ns = request.deadline_ns
            if work.deadline_ns < NO_DEADLINE:
                work.deadline_ns -= self._kept_ns(work.deadline_ns - now_ns)
        self._under_way[request] = work
        self._batcher.submit((work,))

    def _at_once(self, request: InferRequest, raw: Sequence[RawInput]) -> None:
        """Nothing is foreseen: that takes as long as the work, and the batcher behind does it."""
        refusal = None
        if self._behind is not None and request.deadline_ns < NO_DEADLINE:
            refusal = self._behind.hopeless(self._signatures.get(_BRIEF), request.deadline_ns)
        if refusal is not None:
            self._refuse(request, refusal, self._clock())
            return
        tensors = tensors_of(self._model.name, self._prepare, raw)
        if isinstance(tensors, ServingError):
            self._spoil(request, tensors)
            return
        if request.explanation is not None:
            request.explanation.mark("preprocess")
        self._hand_on(request, tensors, _BRIEF)

    def _refuse(self, request: InferRequest, refusal: ServingError, now_ns: int) -> None:
        if request.settle(refusal):
            self._model_statistics.count_failure(refusal, now_ns - request.received_ns)

    def _kept_ns(self, left_ns: int) -> int:
        """Of the time that a request has left: what its own pass needs."""
        return int(min(self._own_ns, left_ns * _MOST_BEHIND))

    def hopeless(self, size: int, received_ns: int, deadline_ns: int) -> Overloaded | None:
        """The refusal of a request of one input of `size` bytes, where the last one like it tells that there is no time
        for it. None: submit it. It costs next to nothing, so that many can be refused."""
        behind = self._behind
        if behind is None:
            return None
        signature = class_of(size)
        if self._passes_for(signature, 1) is not None:
            refusal = behind.hopeless(signature, deadline_ns)
        else:
            refusal = self._batcher.hopeless(signature, deadline_ns - self._kept_ns(deadline_ns - received_ns))
            if refusal is None:
                refusal = behind.hopeless(self._signatures.get(signature), deadline_ns)
        if refusal is not None:
            self._model_statistics.count_failure(refusal, self._clock() - received_ns)
        return refusal

    def _passes_for(self, size: Raw, rows: int) -> Batcher | None:
        """Whose passes prepare such inputs: where they can, and what either way has learned is no long time."""
        passes = self._passes
        if passes is not None and passes.raw is not None:
            for costs in (passes.raw.costs, self._costs):
                together_ns = costs.for_signature(size).predict_ns(TOGETHER)
                if together_ns is not None and together_ns * rows <= LONG_NS * TOGETHER:
                    return passes
        return None

    def cancel(self, request: InferRequest) -> None:
        """The caller went away: its place is free at once; if it is being prepared that comes to nothing."""
        work = self._under_way.get(request)
        if work is not None:
            self._batcher.cancel(work)
        else:
            request.settle(Cancelled())

    def _settled(self, work: InferRequest, outcome: Outcome) -> None:
        assert isinstance(work, Work)
        request = work.of
        self._under_way.pop(request, None)
        if request.settled:
            return
        if isinstance(outcome, Spoiled):
            self._spoil(request, outcome.error)
        elif isinstance(outcome, InferResponse):
            if request.explanation is not None:
                request.explanation.mark("loop")
            self._hand_on(request, outcome.outputs, work.signature)
        else:
            request.settle(outcome)

    def _spoil(self, request: InferRequest, error: ServingError) -> None:
        if error.code not in CALLERS:
            self._model_statistics.count_failure(error, self._clock() - request.received_ns)
        request.settle(error)

    def _hand_on(self, request: InferRequest, tensors: Sequence[Tensor], size: object) -> None:
        request.inputs = tensors
        self._submit(request)
        self._signatures[size] = request.signature

    async def close(self) -> None:
        """Settle whoever is here as Draining, and admit nobody any more."""
        await self._batcher.close()


def _without_policies(priorities: Priorities) -> Priorities:
    """Their order alone: queue timeouts are in the deadlines by now."""
    return Priorities(priorities.levels, priorities.default_level)
