"""The scheduler of a model version that other servers run: `Batcher`'s place and manners, without batches.

Batches are formed once, where the model runs. What is done here is what that server can't do: admit whom it can
answer in time, order by priority and deadline, and keep with it only what it can take (`Flights`), so that the rest
stays within reach of cancellations, deadlines and whoever is more urgent. Everything runs on the event loop in plain
calls, and whoever is held is settled exactly once.

A request that provably was not executed is sent once more, to another server where there is one; one that may have
been executed never is.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial
from weakref import WeakMethod

from server.errors import (
    Cancelled,
    Code,
    DeadlineExceeded,
    Draining,
    EngineFailure,
    Overloaded,
    QueueFull,
    ServingError,
    TritonUnreached,
)
from server.observability.whose import about
from server.scheduler.admission import Admission, Foreseen, Outlook
from server.scheduler.backlog import Backlog
from server.scheduler.costs import Costs
from server.scheduler.flights import Flight, Flights, Server
from server.scheduler.plan import Cost, Dispatch, Limits, plan
from server.scheduler.queue import Line, Priorities, QueuePolicy, RequestQueue
from server.scheduler.saturation import Ability
from server.scheduler.settling import Settling
from server.scheduler.statistics import ModelStatistics
from server.scheduler.tenants import FairLine
from server.scheduler.ticking import Ticking
from server.scheduler.waits import Waits
from server.scheduler.window import Bounds, Window
from server.scheduler.worker import Pass
from server.types import NO_DEADLINE, InferRequest, InferResponse, Outcome

log = logging.getLogger(__name__)

_ALONE = Limits(max_batch_size=0)
"""Every request goes by itself."""


@dataclass(frozen=True)
class AsTheyCome(Limits):
    """For admission, which thinks in passes: here each is a request, of as many rows as they have lately."""

    flights: Flights = field(kw_only=True)

    def cap(self, cost: Cost | None) -> int:
        return max(1, round(self.flights.request_rows))


class Relay(Ticking):
    """Takes the requests of one model version to the servers that run it. Call it on the event loop's thread only."""

    _instances: Flights

    def __init__(
        self,
        model_name: str,
        bounds: Bounds,
        policy: QueuePolicy,
        costs: Costs,
        statistics: ModelStatistics,
        loop: asyncio.AbstractEventLoop,
        clock: Callable[[], int] = time.monotonic_ns,
        *,
        priorities: Priorities | None = None,
        slo_ns: int = 0,
        merges: bool = True,
        foresees: bool = True,
        preserve_ordering: bool = False,
        fair_by_tenant: bool = False,
    ) -> None:
        """`bounds`: of each server's window. `costs`: of answers, from the request's sending. `merges`: the servers
        make batches of several requests. `foresees`: answers take about as long as those before them. The rest as of
        `Batcher`."""
        super().__init__(model_name, loop, clock)
        self.statistics = statistics
        self._costs = costs
        queue = RequestQueue(policy, priorities, slo_ns, FairLine if fair_by_tenant else Line)
        self._backlog = Backlog(queue, statistics)
        self._instances = self._flights = Flights(bounds, by_rows=merges)
        self._admission = Admission(queue, costs, AsTheyCome(0, flights=self._flights), statistics)
        self._settling = Settling(model_name, statistics, clock, preserve_ordering=preserve_ordering)
        self._waits = Waits(by_tenant=fair_by_tenant)
        self._refused_by: dict[InferRequest, Server] = {}
        """Requests that are sent once more, and who did not take them."""
        self._foresees = foresees
        self._slo_ns = slo_ns
        statistics.ability = WeakMethod(self.ability)
        self._shut = False
        self.retries = 0
        """Requests that were sent once more."""

    # --- what others call --------------------------------------------------------------------------

    def submit(self, requests: Sequence[InferRequest]) -> None:
        """Take in checked requests. Each is admitted, or settled with the reason why not. Never raises."""
        self._backlog.arrived += requests
        self._tick_soon()

    def cancel(self, request: InferRequest) -> None:
        """The caller went away: settle it as Cancelled; the server that has it is told. Never raises."""
        if request.settled:
            return
        self._backlog.remove(request)
        self._settling.fail(request, Cancelled(), self._clock())
        flight = self._flights.under_way.get(request)
        if flight is not None:
            flight.give_up()
        self._tick_soon()

    def foresee(self, request: InferRequest, coming: int) -> Foreseen:
        """As of `Batcher`."""
        refusal = self._refusal(request)
        if refusal is not None:
            return Foreseen(refusal)
        coming += sum([other.rows for other in self._backlog.arrived])
        return self._admission.foresee(request, self._clock(), partial(self._look_out, request), coming)

    def hopeless(self, signature: object, deadline_ns: int) -> Overloaded | None:
        """As of `Batcher`, where no server has room for more."""
        if self._flights.has_room:
            return None
        return self._admission.hopeless(self.model_name, signature, deadline_ns, self._clock())

    @property
    def queue(self) -> RequestQueue:
        """Who waits, in which order."""
        return self._backlog.queue

    def serve_by(self, servers: Iterable[Server]) -> None:
        """Who runs the model from now on; none: whoever waits is told so."""
        self._flights.serve_by(servers)
        self.statistics.instances = round(self._flights.requests)
        self._tick_soon()

    def window(self, server: Server) -> Window:
        """What is learned of a server that has the model."""
        return self._flights.window(server)

    def ability(self) -> Ability:
        """What the servers can do: as if each request that may be in flight had an instance, by Little's law."""
        return Ability(self._flights.requests, 1, self._admission.usual(self.statistics)[1], self._slo_ns)

    @property
    def pending(self) -> int:
        """Requests that wait for a server, or to be admitted."""
        return len(self._backlog) + len(self._backlog.arrived)

    def healthy(self) -> bool:
        """Some server has the model."""
        return bool(self._flights.servers)

    # --- the tick ----------------------------------------------------------------------------------

    def _advance(self) -> None:
        now_ns = self._clock()
        if self._refused_by:
            self._refused_by = {request: by for request, by in self._refused_by.items() if not request.settled}
        for request in self._backlog.expire(now_ns):
            self._admission.learn_expiry(request, now_ns)
            waited_us = (now_ns - request.enqueued_ns) // 1000
            self._settling.fail(request, DeadlineExceeded(self.model_name, waited_us), now_ns)
        if self._backlog.arrived:
            self._take_in(now_ns)
        if not self._flights.servers:
            self._settling.fail_each(self._backlog.clear(), self._nobody)
        if now_ns >= self._drain_until_ns:
            self._end_all(Draining)
        self._send(now_ns)
        self._settling.release()
        if self._waits:
            self._waits.look(now_ns, busy=True)
        wake_ns = self._check_drained(now_ns) if self._shut else NO_DEADLINE
        if self._backlog.count():
            wake_ns = min(wake_ns, self._backlog.next_expiry_ns())
        else:
            self._flights.slack()
        self._alarm.set(wake_ns, now_ns)

    def _nobody(self) -> TritonUnreached:
        return TritonUnreached(self.model_name, "no server that has it is ready")

    def _take_in(self, now_ns: int) -> None:
        arrived, self._backlog.arrived = self._backlog.arrived, []
        outlook = self._look_out(arrived[0], now_ns)
        for request in arrived:
            if request.settled:
                continue
            refusal = self._refusal(request)
            if refusal is not None and not self._shut:
                self._admission.turn_away(request, now_ns)
            refusal = refusal or self._admission.admit(request, outlook)
            if refusal is not None:
                self._settling.fail(request, refusal, now_ns)
                continue
            self._settling.admit(request)
            if request.explanation is not None:
                self._waits.watch(request)

    def _look_out(self, request: InferRequest, now_ns: int) -> Outlook:
        answer_ns = self._admission.alone_ns(request)
        return self._flights.outlook(now_ns, answer_ns, bool(self._backlog.reruns))

    def _refusal(self, request: InferRequest) -> ServingError | None:
        if self._shut:
            return Draining()
        return None if self._flights.servers else self._nobody()

    def _send(self, now_ns: int) -> None:
        backlog = self._backlog
        while backlog:
            request = backlog.reruns[0] if backlog.reruns else self._next(now_ns)
            server = self._flights.room(request, self._refused_by.get(request))
            if server is None:
                return
            backlog.take([request])
            if not request.settled:
                self._begin(request, server, now_ns)

    def _next(self, now_ns: int) -> InferRequest:
        step = plan(self._backlog.queue, now_ns, _ALONE, self._costs)
        # Without a window for company there is always somebody to go.
        assert isinstance(step, Dispatch)
        return step.requests[0]

    def _begin(self, request: InferRequest, server: Server, now_ns: int) -> None:
        if self._waits:
            self._waits.begin([request], now_ns)
        flight = Flight(request, server, now_ns, self._admission.alone_ns(request))
        self._flights.begin(flight)
        try:
            flight.give_up = server.ask(request, partial(self._on_done, flight))
        except Exception as error:
            # Its own fault, if it can't be written as a message: nobody else's outcome hangs on it.
            log.exception("a request can't be sent", extra=about(request))
            self._flights.end(flight, now_ns, answered=False)
            self._settling.fail(request, EngineFailure(self.model_name, repr(error)), now_ns)

    # --- an answer ---------------------------------------------------------------------------------

    def _on_done(self, flight: Flight, outcome: Outcome) -> None:
        self._guarded(self._finish, flight, outcome)
        self._tick_soon()

    def _finish(self, flight: Flight, outcome: Outcome) -> None:
        try:
            self._conclude(flight, outcome, self._clock())
        except BaseException as error:
            self._settling.fail_each([flight.request], self._failure(error))
            raise

    def _conclude(self, flight: Flight, outcome: Outcome, now_ns: int) -> None:
        answered, full = isinstance(outcome, InferResponse), isinstance(outcome, QueueFull)
        late = isinstance(outcome, ServingError) and outcome.code is Code.DEADLINE
        self._flights.end(flight, now_ns, answered=answered, full=full, late=late)
        self.statistics.instances = round(self._flights.requests)
        took_ns = now_ns - flight.begun_ns
        if late and took_ns > flight.expected_ns:
            # How long it would have taken is not known, but that it is longer than was expected.
            self._learn(flight.request, took_ns)
        self.statistics.count_end(flight.expected_ns or None, took_ns)
        request, avoided = flight.request, self._refused_by.pop(flight.request, None)
        if isinstance(outcome, InferResponse):
            self._answer(flight, outcome, took_ns, now_ns)
        elif request.settled:
            pass
        elif isinstance(outcome, TritonUnreached) and avoided is None and self._flights.servers:
            self._refused_by[request] = flight.server
            self.retries += 1
            self._backlog.reruns.append(request)
        else:
            error = outcome if isinstance(outcome, ServingError) else EngineFailure(self.model_name, repr(outcome))
            self._settling.fail(request, error, now_ns)

    def _answer(self, flight: Flight, response: InferResponse, took_ns: int, now_ns: int) -> None:
        request = flight.request
        self._learn(request, took_ns)
        if self._foresees:
            self._admission.learn_pass([request], took_ns, now_ns)
        passed = Pass(request.rows, flight.begun_ns, [response], None, 0, took_ns, 0)
        self._settling.answer([request], passed, now_ns)

    def _learn(self, request: InferRequest, took_ns: int) -> None:
        if self._foresees:
            self._costs.for_signature(request.signature).observe(request.rows, took_ns)

    # --- for `Ticking` -----------------------------------------------------------------------------

    def _arrivals(self) -> Sequence[InferRequest]:
        return self._backlog.arrived

    def _clear(self) -> Sequence[InferRequest]:
        return self._backlog.clear()

    def _running(self) -> Sequence[InferRequest]:
        return list(self._flights.under_way)

    def _empty(self) -> bool:
        return not self.pending and not self._flights.under_way

    def _tell(self) -> None:
        self._backlog.count()

    def _stop_admitting(self, until_ns: int) -> None:
        super()._stop_admitting(until_ns)
        self._shut = True
