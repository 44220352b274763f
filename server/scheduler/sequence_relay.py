"""The scheduler of a model version with sequences that other servers run: `Relay`'s place and manners.

The state of a sequence is with one server. So its requests go there, in their order, each when the one before it was
answered. Which server it is the sequence's name tells (rendezvous hashing): every gateway before the same servers, and
this one after a restart, finds the same one, as long as it is up. Whether a sequence has begun there is the server's to
say.

A request that is not answered is a gap: what waits behind it would meet another state than its caller believes. Its
sequence is over, and begins anew when its caller starts it again.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from hashlib import blake2b

from server.errors import (
    Cancelled,
    DeadlineExceeded,
    Draining,
    EngineFailure,
    QueueFull,
    SequenceLost,
    ServingError,
    TritonUnreached,
)
from server.observability.whose import about
from server.scheduler.flights import Flight, Flights, Server
from server.scheduler.queue import QueuePolicy, RequestQueue
from server.scheduler.settling import Settling
from server.scheduler.statistics import ModelStatistics
from server.scheduler.ticking import Ticking
from server.scheduler.window import Bounds
from server.scheduler.worker import Pass
from server.sequences import SequenceId, sequence_id
from server.types import NO_DEADLINE, InferRequest, InferResponse, Outcome

log = logging.getLogger(__name__)

_UNBOUNDED = Bounds(1 << 30, 1 << 30, 1 << 30)
"""Each sequence has one request under way at most; how many run at a time is the server's to say."""
_SWEEP_NS = 1_000_000_000
_GONE = "its server is gone"


class _Course:
    """A sequence, as far as this server has heard of it."""

    __slots__ = ("busy", "heard_ns", "name", "retried", "server", "waiting")

    def __init__(self, name: SequenceId, server: Server) -> None:
        self.name = name
        self.server = server
        self.waiting: deque[InferRequest] = deque()
        self.busy = False
        """A request of it is with the server."""
        self.retried = False
        self.heard_ns = 0


class SequenceRelay(Ticking):
    """Takes the sequences of one model version to the servers that run it. Call it on the event loop's thread only."""

    _instances: Flights

    def __init__(
        self,
        model_name: str,
        policy: QueuePolicy,
        idle_ns: int,
        statistics: ModelStatistics,
        loop: asyncio.AbstractEventLoop,
        clock: Callable[[], int] = time.monotonic_ns,
        *,
        slo_ns: int = 0,
    ) -> None:
        """`policy`: of all requests that wait. `idle_ns`: after which a server forgets a sequence."""
        super().__init__(model_name, loop, clock)
        self.statistics = statistics
        self.retries = 0
        """Requests that were sent once more."""
        self._limit = policy.max_queue_size
        self._deadlines = RequestQueue(policy, slo_ns=slo_ns)
        """Asked for deadlines alone."""
        self._idle_ns = idle_ns
        self._settling = Settling(model_name, statistics, clock, preserve_ordering=False)
        self._instances = self._flights = Flights(_UNBOUNDED, by_rows=False)
        self._courses: dict[SequenceId, _Course] = {}
        self._lined: dict[_Course, None] = {}
        """Those with requests that wait. There may be many others."""
        self._arrived: list[InferRequest] = []
        self._waiting = 0
        self._swept_ns = 0
        self._shut = False

    # --- what others call --------------------------------------------------------------------------

    def submit(self, requests: Sequence[InferRequest]) -> None:
        """Take in checked requests, of one sequence in their order. Never raises."""
        self._arrived += requests
        self._tick_soon()

    def cancel(self, request: InferRequest) -> None:
        """The caller went away: settle it as Cancelled, and what waits behind it as lost. Never raises."""
        if request.settled:
            return
        self._settling.fail(request, Cancelled(), self._clock())
        flight = self._flights.under_way.get(request)
        if flight is not None:
            flight.give_up()
        course = self._course_of(request)
        if course is not None and request in course.waiting:
            self._lose(course, "a request of it was cancelled", self._clock())
        self._tick_soon()

    def serve_by(self, servers: Iterable[Server]) -> None:
        """Who runs the model from now on. Sequences of those that are gone are over."""
        self._flights.serve_by(servers)
        self.statistics.instances = len(self._flights.servers)
        now_ns = self._clock()
        for course in [course for course in self._courses.values() if course.server not in self._flights.servers]:
            if not course.busy:  # Else when its request has ended.
                self._lose(course, _GONE, now_ns)
        self._tick_soon()

    def healthy(self) -> bool:
        """Some server has the model."""
        return bool(self._flights.servers)

    # --- the tick ----------------------------------------------------------------------------------

    def _advance(self) -> None:
        now_ns = self._clock()
        self._expire(now_ns)
        if self._arrived:
            self._take_in(now_ns)
        if now_ns >= self._drain_until_ns:
            self._end_all(Draining)
        for course in [course for course in self._lined if not course.busy]:
            self._begin(course, now_ns)
        if now_ns >= self._swept_ns + _SWEEP_NS:
            self._sweep(now_ns)
        self._tell()
        wake_ns = self._check_drained(now_ns) if self._shut else NO_DEADLINE
        deadlines = [request.deadline_ns for course in self._lined for request in course.waiting]
        self._alarm.set(min([wake_ns, *deadlines]), now_ns)

    def _expire(self, now_ns: int) -> None:
        for course in list(self._lined):
            late = [request for request in course.waiting if request.deadline_ns <= now_ns]
            for request in late:
                waited_us = (now_ns - request.enqueued_ns) // 1000
                self._settling.fail(request, DeadlineExceeded(self.model_name, waited_us), now_ns)
            if late:
                self._lose(course, "a request of it expired", now_ns)

    def _sweep(self, now_ns: int) -> None:
        """Forget sequences that their servers have forgotten."""
        self._swept_ns = now_ns
        for course in list(self._courses.values()):
            if not course.busy and not course.waiting and now_ns - course.heard_ns > self._idle_ns:
                del self._courses[course.name]

    def _take_in(self, now_ns: int) -> None:
        arrived, self._arrived = self._arrived, []
        for request in arrived:
            if request.settled:
                continue
            refusal = self._refusal(request, now_ns)
            if refusal is not None:
                self._settling.fail(request, refusal, now_ns)
                course = self._course_of(request)
                if course is not None:
                    self._lose(course, "a request of it was refused", now_ns)
                continue
            request.enqueued_ns = now_ns
            self.statistics.admitted += 1
            course = self._course(_name(request))
            course.heard_ns = now_ns
            self._line_up(course).append(request)

    def _refusal(self, request: InferRequest, now_ns: int) -> ServingError | None:
        self._deadlines.set_deadline(request, now_ns)
        if self._shut:
            return Draining()
        if not self._flights.servers:
            return TritonUnreached(self.model_name, "no server that has it is ready")
        if 0 < self._limit <= self._count():
            return QueueFull(self.model_name, self._limit)
        return DeadlineExceeded(self.model_name, 0) if request.deadline_ns <= now_ns else None

    def _line_up(self, course: _Course) -> deque[InferRequest]:
        self._lined[course] = None
        return course.waiting

    def _course_of(self, request: InferRequest) -> _Course | None:
        return self._courses.get(_name(request))

    def _course(self, name: SequenceId) -> _Course:
        course = self._courses.get(name)
        if course is None:
            course = self._courses[name] = _Course(name, self._home(name, self._flights.servers))
        return course

    def _home(self, name: SequenceId, servers: Sequence[Server]) -> Server:
        """The same for a name for as long as it is there, whoever else comes or goes."""
        return max(servers, key=lambda server: blake2b(f"{server.name}\n{name!r}".encode(), digest_size=8).digest())

    # --- a request ---------------------------------------------------------------------------------

    def _begin(self, course: _Course, now_ns: int) -> None:
        request = course.waiting.popleft()
        if not course.waiting:
            del self._lined[course]
        if request.settled:
            return
        flight = Flight(request, course.server, now_ns, 0)
        course.busy = True
        self._flights.begin(flight)
        try:
            flight.give_up = course.server.ask(request, partial(self._on_done, course, flight))
        except Exception as error:
            # As of `Relay`.
            log.exception("a request can't be sent", extra=about(request))
            self._conclude(course, flight, EngineFailure(self.model_name, repr(error)))

    def _on_done(self, course: _Course, flight: Flight, outcome: Outcome) -> None:
        self._guarded(self._conclude, course, flight, outcome)
        self._tick_soon()

    def _conclude(self, course: _Course, flight: Flight, outcome: Outcome) -> None:
        now_ns, request = self._clock(), flight.request
        self._flights.end(flight, now_ns, answered=isinstance(outcome, InferResponse))
        course.busy, course.heard_ns = False, now_ns
        took_ns = now_ns - flight.begun_ns
        self.statistics.count_end(None, took_ns)
        if isinstance(outcome, InferResponse):
            passed = Pass(request.rows, flight.begun_ns, [outcome], None, 0, took_ns, 0)
            self._settling.answer([request], passed, now_ns)
            if course.server not in self._flights.servers:
                self._lose(course, _GONE, now_ns)
            elif request.parameters.get("sequence_end") and not course.waiting:
                self._courses.pop(course.name, None)
        elif not self._again(course, request, outcome):
            error = outcome if isinstance(outcome, ServingError) else self._failure(outcome)()
            self._settling.fail(request, error, now_ns)
            self._lose(course, "a request of it was not answered", now_ns)

    def _again(self, course: _Course, request: InferRequest, outcome: Outcome) -> bool:
        """A start that was not executed has left nothing behind, and may go to another server."""
        others = [server for server in self._flights.servers if server is not course.server]
        unreached = isinstance(outcome, TritonUnreached) and request.parameters.get("sequence_start")
        if not unreached or course.retried or not others or request.settled:
            return False
        course.server, course.retried = self._home(course.name, others), True
        self._line_up(course).appendleft(request)
        self.retries += 1
        return True

    def _lose(self, course: _Course, why: str, now_ns: int) -> None:
        if self._courses.get(course.name) is course:
            del self._courses[course.name]
        self._lined.pop(course, None)
        waiting, course.waiting = course.waiting, deque()
        for request in waiting:
            self._settling.fail(request, SequenceLost(self.model_name, course.name, why), now_ns)

    # --- for `Ticking` -----------------------------------------------------------------------------

    def _arrivals(self) -> Sequence[InferRequest]:
        return self._arrived

    def _clear(self) -> Sequence[InferRequest]:
        everybody = [request for course in self._lined for request in course.waiting] + self._arrived
        self._courses.clear()
        self._lined.clear()
        self._arrived = []
        return everybody

    def _running(self) -> Sequence[InferRequest]:
        return list(self._flights.under_way)

    def _empty(self) -> bool:
        return not self._count() and not self._arrived and not self._flights.under_way

    def _count(self) -> int:
        return sum([len(course.waiting) for course in self._lined])

    def _tell(self) -> None:
        count = self._count()
        self.statistics.pending += count - self._waiting
        self._waiting = count

    def _stop_admitting(self, until_ns: int) -> None:
        super()._stop_admitting(until_ns)
        self._shut = True


def _name(request: InferRequest) -> SequenceId:
    return sequence_id(request.parameters.get("sequence_id"))
