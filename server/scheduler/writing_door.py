"""Who comes to a model that writes text is let into its queue, or told why not; who runs, as the door sees them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from server.engine.base import Job
from server.errors import DeadlineExceeded, Overloaded, QueueFull, ServingError
from server.scheduler.admission import Margin
from server.scheduler.queue import RequestQueue
from server.scheduler.statistics import ModelStatistics
from server.scheduler.writing_foresight import Part, Room, WritingCosts, done_ns, first_token_ns
from server.scheduler.writing_worker import Written
from server.types import NO_DEADLINE, InferRequest

_LARGEST_MARGIN = 0.25
"""As of `Admission`."""


@dataclass(slots=True, eq=False)
class Run:
    """A text that runs."""

    request: InferRequest
    job: Job
    deadline_ns: int
    """The caller's own, for the whole text."""
    begun_ns: int
    last_ns: int = 0
    """When it had its last token; 0: it has none yet."""
    held: bool = False

    @property
    def reserved(self) -> int:
        return reserved(self.job)


def reserved(job: Job) -> int:
    """Of the budget of tokens: all that it may come to."""
    return job.prompt_tokens + job.max_tokens


class WritingDoor:
    """Of one model version. No clock."""

    def __init__(
        self,
        model_name: str,
        queue: RequestQueue,
        runs: Mapping[Job, Run],
        waiting: Mapping[InferRequest, tuple[Job, int]],
        room: Room,
        statistics: ModelStatistics,
    ) -> None:
        """`runs`, `waiting` are its caller's, who changes them."""
        self._model_name = model_name
        self._queue = queue
        self._runs = runs
        self._waiting = waiting
        self._room = room
        self._statistics = statistics
        self.costs = WritingCosts()
        self.margin = Margin()

    def admit(self, request: InferRequest, now_ns: int) -> ServingError | None:
        """Put it in the queue, or say why not."""
        queue = self._queue
        delays_ns = queue.set_deadline(request, now_ns)
        if request.deadline_ns <= now_ns:
            return DeadlineExceeded(self._model_name, 0)
        job = self._waiting[request][0]
        self._statistics.load.arrive(self._work_ns(job), now_ns)
        if queue.is_full(request):
            limit = queue.level(request).policy.max_queue_size
            held = queue.held(request) if queue.fair else 0
            return QueueFull(self._model_name, limit, self._retry_after_ms(), held)
        if request.deadline_ns < NO_DEADLINE and (late := self._late(request, job, now_ns)) is not None:
            return late
        queue.add(request, now_ns, delays_ns)
        self._statistics.admitted += 1
        return None

    def fits(self, job: Job) -> bool:
        """It could begin now, were it its turn."""
        taken = sum([run.reserved for run in self._runs.values()])
        return len(self._runs) < self._room.rows and taken + reserved(job) <= self._room.tokens

    def learn_first(self, run: Run, now_ns: int, written: Written) -> None:
        """Its first token is told now."""
        alone = len(self._runs) == 1 and written.began_ns > run.begun_ns and written.since_ns == written.began_ns
        self.costs.learn_around(now_ns - written.ended_ns, written.began_ns - run.begun_ns if alone else None)
        if run.request.predicted_ns:
            self.margin.learn(now_ns - run.request.predicted_ns, written.ended_ns - written.began_ns)

    def _late(self, request: InferRequest, job: Job, now_ns: int) -> Overloaded | None:
        """The refusal of a request whose first token would come after its deadline."""
        running, ahead = self._running(), self._ahead(self._before(request))
        own = Part(job.prompt_tokens, job.max_tokens, reserved(job))
        foreseen_ns = first_token_ns(running, ahead, own, self._room, self.costs)
        if foreseen_ns is None:
            return None
        request.predicted_ns = now_ns + foreseen_ns
        margin_ns = min(self.margin.ns, (request.deadline_ns - now_ns) * _LARGEST_MARGIN)
        if request.predicted_ns + margin_ns <= request.deadline_ns:
            return None
        # Others are not to blame for what is late by itself.
        if not len(self._queue) and self.fits(job):
            return None
        return Overloaded(self._model_name, -(-foreseen_ns // 1_000_000), self._retry_after_ms())

    def _before(self, request: InferRequest) -> Iterator[InferRequest]:
        """Those who wait and go first."""
        level = self._queue.level(request)
        for above in self._queue.levels:
            if above is level:
                break
            yield from (*above.waiting, *above.delayed)
        yield from (one for one in level.waiting if one.deadline_ns <= request.deadline_ns)

    def _running(self) -> list[Part]:
        expected = self.costs.expected
        return [
            Part(
                0 if run.last_ns else max(0, run.job.prompt_tokens - run.job.length),
                expected(run.job.made, run.job.max_tokens, number),
                run.reserved,
            )
            for number, run in enumerate(self._runs.values())
        ]

    def _ahead(self, requests: Iterable[InferRequest]) -> list[Part]:
        """Of those who wait."""
        jobs, expected = [self._waiting[one][0] for one in requests], self.costs.expected
        first = len(self._runs)
        return [
            Part(job.prompt_tokens, expected(0, job.max_tokens, first + number), reserved(job))
            for number, job in enumerate(jobs)
        ]

    def _retry_after_ms(self) -> int:
        work_ns = done_ns(self._running(), self._ahead(self._queue), self._room, self.costs)
        return max(1, work_ns // 1_000_000) if work_ns else 0

    def _work_ns(self, job: Job) -> int:
        """The engine's time for it: of full steps, its part."""
        rows = self._room.rows
        steps_ns = self.costs.expected(0, job.max_tokens, 0) * self.costs.step_ns(rows) / rows
        return int(job.prompt_tokens * self.costs.prefill_ns + steps_ns)
