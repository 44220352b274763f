"""Who is admitted: whether a request can be answered in time, by the predicted wait. No clock, no I/O.

The time until a request's answer is foreseen as: what is left of the passes under way, and the passes of everybody
who goes before it (levels above its own, in its own level deadlines not later than its own), at their mean and
spread over the living instances; then its own pass at the high quantile. On top comes a margin: how much later
than foreseen the answers of late were, at a high quantile of that error. Foresight is wrong where requests of
several rows do not fill their batches, more urgent ones come later, or the loop is late; the margin learns it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from server.errors import DeadlineExceeded, Overloaded, QueueFull, ServingError
from server.scheduler.cost import CostModel
from server.scheduler.costs import Costs
from server.scheduler.plan import Cost, Limits
from server.scheduler.queue import Line, RequestQueue
from server.scheduler.statistics import ModelStatistics
from server.types import NO_DEADLINE, InferRequest

_QUANTILE = 0.98
_STEP = 16
"""The margin moves by a part of a pass: this many errors above it in a row make it longer by a pass."""
_LARGEST_MARGIN = 0.25
"""The part of a request's time that the margin of its admission may take."""


class Foreseen(NamedTuple):
    """Of a request that is still being made ready."""

    refusal: ServingError | None
    """Why it would not be admitted; None: it would."""
    own_ns: int = 0
    """What its own pass takes at the high quantile; 0: not known."""


class Known(NamedTuple):
    """Of requests of one signature."""

    cost: Cost
    cap: int
    """Rows of the largest batch that is worth forming; 0: there is no batch dimension."""
    row_ns: int
    """What a row takes of an instance's time in such a batch; 0: not known."""


class Edge(NamedTuple):
    """What the last request that was asked tells of the next one like it."""

    signature: object
    deadline_ns: int
    predicted_ns: int
    """When the next one would be answered, behind the last if that was admitted."""
    until_ns: int
    """The same with the margin: whoever has an earlier deadline is late."""
    step_ns: int
    """How much later each is than the one before."""


@dataclass(slots=True)
class Outlook:
    """What the batcher says of itself to those who arrive together."""

    now_ns: int
    left_ns: int
    """What is left of all passes under way together, and of those that go before everybody."""
    instances: float
    """That live; one on a slower device counts for as much as it does of what one on the fastest does."""
    free: bool
    """An instance is idle and nobody waits: whoever comes first is not kept by others."""
    turn_ns: int = 0
    """How long an idle instance waits for other models' passes to leave it a core."""
    slowdown: float = 1.0
    """How many times as long the work of several passes takes because of other models' passes between them."""


class Admission:
    """The door of one model version's queue."""

    __slots__ = ("_costs", "_edge", "_known", "_limits", "_queue", "_statistics", "_tells", "_uniform", "margin")

    def __init__(self, queue: RequestQueue, costs: Costs, limits: Limits, statistics: ModelStatistics) -> None:
        self._queue = queue
        self._costs = costs
        self._limits = limits
        self._statistics = statistics
        self.margin = Margin()
        self._uniform = isinstance(costs, CostModel)
        """All signatures cost the same."""
        self._known: dict[object, Known] = {}
        """By signature, until the next pass has taught something."""
        self._edge: Edge | None = None
        self._tells = False
        """Somebody wants to know the edge."""

    def learn_pass(self, requests: Sequence[InferRequest], pass_ns: int, ended_ns: int) -> None:
        """A pass succeeded and was learned by its cost model: what is known is known anew, and how well foreseen."""
        self._known.clear()
        foreseen_ns = min([request.predicted_ns for request in requests if request.predicted_ns], default=0)
        if foreseen_ns:
            self.margin.learn(ended_ns - foreseen_ns, pass_ns)

    def learn_expiry(self, request: InferRequest, now_ns: int) -> None:
        """Somebody who was admitted will not be answered: the margin was too small."""
        if request.predicted_ns:
            self.margin.learn(now_ns - request.predicted_ns, self.alone_ns(request))

    def alone_ns(self, request: InferRequest) -> int:
        """A pass for the request alone; 0: not known."""
        return self._costs.for_signature(request.signature).predict_ns(request.rows) or 0

    def known(self, signature: object) -> Known:
        """What is known of requests of one signature, since the last pass."""
        key = None if self._uniform else signature
        known = self._known.get(key)
        if known is None:
            cost = self._costs.for_signature(key)
            cap = self._limits.for_signature(key).cap(cost)
            known = self._known[key] = Known(cost, cap, (cost.predict_ns(cap or 1) or 0) // (cap or 1))
        return known

    def usual(self, statistics: ModelStatistics) -> tuple[int, int]:
        """Rows and nanoseconds of a pass as they are when there is enough to do; 0: not known. Where they differ by
        signature, the mean of all passes."""
        if self._uniform:
            known = self.known(None)
            return max(1, known.cap), known.row_ns * max(1, known.cap)
        passes = statistics.execution_count
        return max(1, statistics.inference_count // max(1, passes)), statistics.busy_ns // max(1, passes)

    def admit(self, request: InferRequest, outlook: Outlook) -> ServingError | None:
        """Put a request in the queue, or say why not."""
        queue, now_ns = self._queue, outlook.now_ns
        delays_ns = queue.set_deadline(request, now_ns)
        if request.deadline_ns > now_ns:
            self._count_arrival(request, now_ns)
        refusal = self._refusal(request, outlook, 0)
        if refusal is None:
            queue.add(request, now_ns, delays_ns)
            self._statistics.admitted += 1
        return refusal

    def foresee(self, request: InferRequest, now_ns: int, look_out: Callable[[int], Outlook], coming: int) -> Foreseen:
        """What `admit` would say of a request that is still being made ready, behind `coming` rows of such.

        It has its deadline from here on. One that is refused arrived, and is not seen again.
        """
        self._queue.set_deadline(request, now_ns)
        if request.deadline_ns >= NO_DEADLINE and not self._queue.is_full(request):
            return Foreseen(None)
        refusal = self._refusal(request, look_out(now_ns), coming)
        if refusal is not None:
            if request.deadline_ns > now_ns:
                self._count_arrival(request, now_ns)
            return Foreseen(refusal)
        return Foreseen(None, self.known(request.signature).cost.high_ns(request.rows) or 0)

    def hopeless(self, model_name: str, signature: object, deadline_ns: int, now_ns: int) -> Overloaded | None:
        """The refusal of a request of one row, where the last one like it tells that it would be late; it counts as
        arrived then. None: it has to be asked. Ask it only while no instance is idle."""
        edge, self._tells = self._edge, True
        if edge is None or edge.signature != signature or deadline_ns < edge.deadline_ns:
            return None
        if deadline_ns >= edge.until_ns:
            # It will be asked in a moment, and tell better; until then others may come.
            predicted_ns, until_ns = edge.predicted_ns + edge.step_ns, edge.until_ns + edge.step_ns
            self._edge = Edge(signature, deadline_ns, predicted_ns, until_ns, edge.step_ns)
            return None
        row_ns = self.known(signature).row_ns
        if row_ns:
            self._statistics.load.arrive(row_ns, now_ns)
        wait_ms = max(1, -((now_ns - edge.predicted_ns) // 1_000_000))
        return Overloaded(model_name, wait_ms, wait_ms)

    def _tell(self, request: InferRequest, outlook: Outlook, in_time: bool) -> None:
        """Of the next request, after this one. Not where others may go before it than those with earlier deadlines."""
        queue, self._edge = self._queue, None
        if request.rows != 1 or not queue.plain or queue.slo_ns or queue.fair:
            return
        step_ns = int(self.known(request.signature).row_ns * outlook.slowdown / (outlook.instances or 1))
        predicted_ns = request.predicted_ns + (step_ns if in_time else 0)
        until_ns = int(predicted_ns + self._margin_ns(request, outlook.now_ns))
        self._edge = Edge(request.signature, request.deadline_ns, predicted_ns, until_ns, step_ns)

    def _count_arrival(self, request: InferRequest, now_ns: int) -> None:
        row_ns = self.known(request.signature).row_ns
        if row_ns:
            self._statistics.load.arrive(row_ns * request.rows, now_ns)

    def _refusal(self, request: InferRequest, outlook: Outlook, coming: int) -> ServingError | None:
        queue, now_ns = self._queue, outlook.now_ns
        if request.deadline_ns <= now_ns:
            return DeadlineExceeded(request.model_name, 0)
        if queue.is_full(request):
            limit = queue.level(request).policy.max_queue_size
            held = queue.held(request) if queue.fair else 0
            return QueueFull(request.model_name, limit, self.retry_after_ms(outlook), held)
        if request.deadline_ns < NO_DEADLINE:
            wait_ns = foresee_ns(queue, request, self.known, outlook, coming)
            if wait_ns is None:
                return None
            in_time = self._in_time(request, wait_ns, outlook, coming)
            if self._tells:
                self._tell(request, outlook, in_time)
            if not in_time:
                coming_ns = coming * self.known(request.signature).row_ns
                return Overloaded(request.model_name, -(-wait_ns // 1_000_000), self.retry_after_ms(outlook, coming_ns))
        return None

    def turn_away(self, request: InferRequest, now_ns: int) -> None:
        """Count the work of one that nobody is there to do. Of an unknown cost it still says that somebody asks."""
        self._statistics.load.arrive(max(1, self.known(request.signature).row_ns * request.rows), now_ns)

    def admit_all(self, requests: Sequence[InferRequest], rows: int, now_ns: int) -> None:
        """Count in requests of one signature, of so many rows together, that go at once, without queueing; or behind
        the half with which they came (`Run.halve`), for which they have waited."""
        for request in requests:
            request.enqueued_ns = request.enqueued_ns or now_ns
        self._statistics.admitted += len(requests)
        row_ns = self.known(requests[0].signature).row_ns
        if row_ns:
            self._statistics.load.arrive(row_ns * rows, now_ns)

    def _in_time(self, request: InferRequest, wait_ns: int, outlook: Outlook, coming: int) -> bool:
        now_ns = outlook.now_ns
        request.predicted_ns = now_ns + wait_ns
        if request.predicted_ns + self._margin_ns(request, now_ns) <= request.deadline_ns:
            return True
        # Others are not to blame for what is late by itself: an idle instance refuses nobody.
        return outlook.free and not len(self._queue) and not coming

    def _margin_ns(self, request: InferRequest, now_ns: int) -> float:
        """Bounded, or one bad second could teach a margin that refuses everybody, and nothing would unteach it."""
        return min(self.margin.ns, (request.deadline_ns - now_ns) * _LARGEST_MARGIN)

    def retry_after_ms(self, outlook: Outlook, coming_ns: int = 0) -> int:
        """How long what was admitted, and what is coming, will take, spread over the living instances; 0: unknown."""
        work_ns = outlook.left_ns + coming_ns + sum([drain_ns(line, self.known) for line in self._queue.lines])
        return max(1, int(work_ns * outlook.slowdown / (outlook.instances or 1) / 1_000_000)) if work_ns else 0


class Margin:
    """The high quantile of how much later than foreseen answers are; never negative."""

    __slots__ = ("ns",)

    def __init__(self) -> None:
        self.ns = 0.0

    def learn(self, error_ns: int, pass_ns: int) -> None:
        """`error_ns`: the answer's time less the time foreseen. A step has one size, however large the error."""
        step_ns = pass_ns / _STEP
        if error_ns > self.ns:
            self.ns += min(step_ns * _QUANTILE, error_ns - self.ns)
        else:
            self.ns = max(0.0, self.ns - step_ns * (1 - _QUANTILE))


def foresee_ns(
    queue: RequestQueue, request: InferRequest, known: Callable[[object], Known], outlook: Outlook, coming: int = 0
) -> int | None:
    """Nanoseconds from now to the answer of a request that joins the queue; None where no cost is known.

    `known`: by signature. `coming`: rows like its own that are not in the queue yet and go before it.
    """
    cost, cap, _ = known(request.signature)
    ahead_ns, own_rows = 0, coming
    level = queue.level(request)
    for above in queue.levels:
        if above is level:
            break
        ahead_ns += drain_ns(above.waiting, known) + drain_ns(above.delayed, known)
    for signature, rows in level.waiting.rows_before(request):
        if signature == request.signature:
            own_rows += rows
        else:
            other = known(signature)
            ahead_ns += passes_ns(rows, other.cost, other.cap)
    full, rest = divmod(own_rows + request.rows - 1, max(1, cap))
    if full:
        ahead_ns += full * (cost.predict_ns(cap or 1) or 0)
    # Behind a full batch the own one will be full as well: others come until it starts.
    own_ns = cost.high_ns(max(cap if full else rest + 1, request.rows))
    if own_ns is None:
        return None
    before_ns = (outlook.left_ns + ahead_ns) / (outlook.instances or 1)
    return int(before_ns * outlook.slowdown) + outlook.turn_ns + own_ns


def drain_ns(line: Line, known: Callable[[object], Known]) -> int:
    """The time of one instance for everybody in a line."""
    total_ns = 0
    for signature, rows in line.rows_by_signature():
        cost, cap, _ = known(signature)
        total_ns += passes_ns(rows, cost, cap)
    return total_ns


def passes_ns(rows: int, cost: Cost, cap: int) -> int:
    """The time of one instance for so many rows in batches of the cap."""
    full, rest = divmod(rows, max(1, cap))
    total = full * (cost.predict_ns(max(1, cap)) or 0) if full else 0
    return total + (cost.predict_ns(rest) or 0 if rest else 0)
