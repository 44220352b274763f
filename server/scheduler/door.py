"""What becomes of those who arrive in one tick: gone at once, admitted to the queue, or refused with the reason.

`Admission` says who can be answered in time. Here stands what needs no foresight: an end of service, workers that
have died, too many rows, and who need not queue at all. No clock.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence

from server.errors import Draining, EngineFailure, InvalidRequest, ModelNotReady, ServingError
from server.observability.whose import about
from server.scheduler.admission import Admission, Foreseen, Outlook
from server.scheduler.backlog import Backlog
from server.scheduler.instances import Instances, Run
from server.scheduler.plan import Limits, all_at_once, in_halves
from server.scheduler.settling import Settling
from server.scheduler.waits import Waits
from server.types import InferRequest

log = logging.getLogger(__name__)


class Door:
    """Of one model version."""

    def __init__(
        self,
        model_name: str,
        model_version: str,
        limits: Limits,
        admission: Admission,
        backlog: Backlog,
        instances: Instances,
        settling: Settling,
        waits: Waits,
    ) -> None:
        self.shut = False
        """Nobody is admitted any more."""
        self._model_name = model_name
        self._model_version = model_version
        self._largest = limits.max_batch_size
        self._admission = admission
        self._backlog = backlog
        self._instances = instances
        self._settling = settling
        self._waits = waits
        for_company = bool(limits.max_queue_delay_ns or limits.preferred_batch_size)
        self._plain = backlog.queue.plain and instances.alike and not (for_company or settling.preserve_ordering)
        """Whoever finds an idle instance and nobody waiting goes at once."""

    def straight_on(self, now_ns: int, idle_since_ns: int) -> Run | None:
        """The pass of all who arrived, or of the first of them, where they need not queue, as nearly always; they are
        its own from here on. `idle_since_ns`: until they came the loop had nothing to do from there on."""
        backlog, instances = self._backlog, self._instances
        arrived = backlog.arrived
        if not self._plain or self.shut or not instances.idle or backlog or not self._fit(arrived, now_ns):
            return None
        run = instances.reserve(arrived, instances.turn.choose(instances.idle), now_ns)
        if run is None:
            return None
        halves = (
            run.inline
            and backlog.at_once
            and len(arrived) > 1
            and in_halves(run.rows, arrived[0].received_ns - idle_since_ns, run.cost)
        )
        backlog.arrived = run.halve() if halves else []
        backlog.at_once = False
        return run

    def admit(self, now_ns: int) -> None:
        """Put everybody who arrived in the queue, or settle them with the reason why not."""
        outlook = self.look_out(now_ns)
        # Whoever hears of a refusal may send again at once, which makes the list longer.
        for request in self._backlog.arrived:
            if not request.settled:
                self._admit(request, outlook)
        self._backlog.arrived = []

    def look_out(self, now_ns: int) -> Outlook:
        """What they must expect."""
        reruns = self._backlog.reruns
        return self._instances.outlook(now_ns, sum([self._admission.alone_ns(rerun) for rerun in reruns]), bool(reruns))

    def foresee(self, request: InferRequest, now_ns: int, coming: int) -> Foreseen:
        """What a request must expect that is still being made ready, see `Admission.foresee`."""
        refusal = self._refusal(request)
        if refusal is not None:
            return Foreseen(refusal)
        coming += sum([other.rows for other in self._backlog.arrived])
        return self._admission.foresee(request, now_ns, self.look_out, coming)

    def dead(self) -> ModelNotReady:
        """What is told to those whom no instance will ever run."""
        return ModelNotReady(self._model_name, self._model_version, "its workers have died")

    def _fit(self, arrived: Sequence[InferRequest], now_ns: int) -> bool:
        queue = self._backlog.queue
        if queue.slo_ns:
            for request in arrived:
                queue.set_deadline(request, now_ns)
        known = self._admission.known(arrived[0].signature)
        return all_at_once(arrived, now_ns, known.cap, known.cost)

    def _admit(self, request: InferRequest, outlook: Outlook) -> None:
        try:
            refusal = self._refusal(request) or self._admission.admit(request, outlook)
        except Exception as error:
            log.exception("a request to model %s could not be admitted", self._model_name, extra=about(request))
            refusal = EngineFailure(self._model_name, repr(error))
        if refusal is not None:
            self._settling.fail(request, refusal, outlook.now_ns)
            return
        self._settling.admit(request)
        if request.explanation is not None:
            self._waits.watch(request)

    def _refusal(self, request: InferRequest) -> ServingError | None:
        if self.shut:
            return Draining()
        if self._instances.dead:
            return self.dead()
        if request.rows > self._largest > 0:
            return InvalidRequest("inputs", f"{request.rows} rows, over max_batch_size {self._largest}")
        return None
