"""What an idle instance should do now. Pure: no clock, no await, no I/O; queue and cost are only looked at.

A batch is formed for one signature: level by level from the most urgent, within a level the earliest deadline
first and of equal ones who came first, the delayed line behind the waiting one. It ends at the first request
that would bring its rows over the cap, so that nobody overtakes. The cap is the least of

* ``max_batch_size``;
* where no ``preferred_batch_size`` is set, the size beyond which a row does not become cheaper
  (`CostModel.best_rows`);
* the largest batch that, by the high quantile of its cost, still meets the earliest deadline in it.

Who can't be answered in time any more, by the mean cost of a pass for it alone, is left out while there is
anybody else: it would make the next one late too. An instance that has nobody else takes it all the same.

The batch is closed, and may go, when

1. the ``max_queue_delay`` of its oldest request is over, or waiting on would miss its earliest deadline: with
   everything in it;
2. a first part of it has exactly a preferred size: the largest such part;
3. it is full, or has passed every preferred size without meeting one: waiting brings it no nearer;
4. ``max_queue_delay`` is 0: with an idle instance nothing ever waits.

The signature of the most urgent request is asked first. Only while that one still waits for company, or is
late anyway, may another signature's batch use the idle instance.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

from server.scheduler.queue import RequestQueue
from server.types import NO_DEADLINE, InferRequest


@dataclass(frozen=True)
class Limits:
    """How batches are formed. Source: ModelConfig.max_batch_size and ModelDynamicBatching."""

    max_batch_size: int
    """Rows; 0: the model has no batch dimension, and every request is a batch of its own."""
    preferred_batch_size: tuple[int, ...] = ()
    max_queue_delay_ns: int = 0

    def for_signature(self, signature: object) -> Limits:
        """Those of requests of one signature."""
        return self

    def cap(self, cost: Cost | None) -> int:
        """Rows of the largest batch that is worth forming; 0 as in `max_batch_size`."""
        if cost is None or self.preferred_batch_size:
            return self.max_batch_size
        return cost.best_rows(self.max_batch_size)


_HALVED = 8
"""Fewer rows are not worth a thought."""
_WORTH = 2


class Cost(Protocol):
    """What is asked of a `CostModel`."""

    def predict_ns(self, rows: int) -> int | None: ...

    def high_ns(self, rows: int) -> int | None: ...

    def best_rows(self, largest: int) -> int: ...


class Costs(Protocol):
    """What is asked of a `costs.Costs`."""

    def for_signature(self, signature: object) -> Cost: ...


@dataclass(frozen=True, slots=True)
class Dispatch:
    """Run these now, in one batch. They still wait in the queue: who acts on it takes them out."""

    requests: list[InferRequest]
    late: bool = False
    """None of them can be answered in time."""


@dataclass(frozen=True, slots=True)
class Wait:
    """Nothing may go before this time, unless a request arrives or leaves."""

    until_ns: int


@dataclass(frozen=True, slots=True)
class Idle:
    """Nobody waits."""


IDLE = Idle()
Plan = Dispatch | Wait | Idle


def plan(queue: RequestQueue, now_ns: int, limits: Limits, costs: Costs | None = None) -> Plan:
    """What to do with an instance that is idle. Ask it only after ``queue.expire(now_ns)``.

    Costs a step per request dispatched; while the most urgent request waits for company, a step per row of
    `max_batch_size` and per signature that waits. Without `costs` nothing is known of what passes take.
    """
    until_ns: int | None = None
    too_late: Dispatch | None = None
    for signature in _signatures(queue):
        cost = costs.for_signature(signature) if costs is not None else None
        own = limits.for_signature(signature)
        batch = _gather(queue, signature, now_ns, own.cap(cost), own, cost)
        if batch.late:
            too_late = too_late or Dispatch(batch.requests, late=True)
            continue
        step = _close(batch, now_ns, own)
        if isinstance(step, Dispatch):
            return step
        until_ns = step.until_ns if until_ns is None else min(until_ns, step.until_ns)
    if too_late is not None:
        return too_late
    return IDLE if until_ns is None else Wait(until_ns)


def all_at_once(arrived: Sequence[InferRequest], now_ns: int, cap: int, cost: Cost | None) -> bool:
    """Whether those who arrive together at an empty queue may all go in one batch now: what `plan` would say of
    them once they had queued, where there is no window, no preferred size, no priority and no queue timeout.

    False wherever that takes more than a look, as with a deadline that is near or a parameter that may matter.
    """
    head = arrived[0]
    signature, rows, earliest_ns = head.signature, 0, NO_DEADLINE
    for request in arrived:
        if (
            request.settled
            or request.parameters
            or (request.explanation is not None and request.explanation.asked)
            or request.signature != signature
        ):
            return False
        rows += request.rows
        if request.deadline_ns < earliest_ns:
            earliest_ns = request.deadline_ns
    if earliest_ns < NO_DEADLINE and earliest_ns <= now_ns + ((cost.high_ns(max(1, cap)) or 0) if cost else 0):
        return False
    return rows <= cap or (not cap and len(arrived) == 1)


def in_halves(rows: int, idle_ns: int, cost: Cost) -> bool:
    """Whether so many rows, which one read of a socket has brought, go in two passes on the loop instead of one.

    With one, their client waits for the loop, and then the loop for the client: it had nothing to do for `idle_ns`
    before they came. With two the client goes on with the first answers while the loop makes the others, and so on
    from there. A second pass costs something, though: that must be well below what the loop has waited.
    """
    if rows < _HALVED:
        return False
    whole_ns, half_ns = cost.predict_ns(rows), cost.predict_ns(rows // 2)
    if whole_ns is None or half_ns is None:
        return False
    return idle_ns > _WORTH * (2 * half_ns - whole_ns)


def _signatures(queue: RequestQueue) -> Iterator[object]:
    """Those that wait, the most urgent request's first."""
    asked: set[object] = set()
    for line in queue.lines:
        if not line.size:
            continue
        for signature in line.signatures():
            if signature not in asked:
                asked.add(signature)
                yield signature


@dataclass(slots=True)
class _Batch:
    requests: list[InferRequest]
    preferred: int = 0
    """How many of the first requests together have the largest preferred size; 0: no such part."""
    full: bool = False
    timed_out: bool = False
    """It holds a request of a delayed line, which has waited long enough for company."""
    start_by_ns: int = NO_DEADLINE
    """When it must start to meet its earliest deadline."""
    late: bool = False
    """Nobody in it can be answered in time."""


def _close(batch: _Batch, now_ns: int, limits: Limits) -> Dispatch | Wait:
    delay_ns = limits.max_queue_delay_ns
    if delay_ns:
        oldest_ns = min([request.enqueued_ns for request in batch.requests])
        closes_ns = 0 if batch.timed_out else min(oldest_ns + delay_ns, batch.start_by_ns)
        if now_ns >= closes_ns:
            return Dispatch(batch.requests)
    if batch.preferred:
        return Dispatch(batch.requests[: batch.preferred])
    if batch.full or not delay_ns:
        return Dispatch(batch.requests)
    return Wait(closes_ns)


def _gather(queue: RequestQueue, signature: object, now_ns: int, cap: int, limits: Limits, cost: Cost | None) -> _Batch:
    batch = _Batch([])
    late: list[InferRequest] = []
    rows, earliest_ns = 0, NO_DEADLINE
    # From this time on a deadline is met by any batch: nearly always all are, and nothing more is asked.
    safe_ns = now_ns + (cost.high_ns(max(1, cap)) or 0) if cost else 0
    for request, delayed in _in_order(queue, signature):
        deadline_ns = request.deadline_ns
        if cost and deadline_ns < safe_ns and deadline_ns < now_ns + (cost.predict_ns(request.rows) or 0):
            late.append(request)
            continue
        earliest_ns = min(earliest_ns, deadline_ns)
        if batch.requests and not _fits(rows + request.rows, cap, earliest_ns, safe_ns, now_ns, cost):
            batch.full = True
            break
        batch.requests.append(request)
        batch.timed_out = batch.timed_out or delayed
        rows += request.rows
        if rows in limits.preferred_batch_size:
            batch.preferred = len(batch.requests)
    if not batch.requests:
        return _Batch(_first_rows(late, cap), late=True)
    batch.full = batch.full or rows >= cap or rows >= max(limits.preferred_batch_size, default=rows + 1)
    if cost and earliest_ns < NO_DEADLINE:
        batch.start_by_ns = earliest_ns - (cost.high_ns(rows) or 0)
    return batch


def _in_order(queue: RequestQueue, signature: object) -> Iterator[tuple[InferRequest, bool]]:
    """The requests of a signature, most urgent first, and whether each comes from a delayed line."""
    for level in queue.levels:
        for _, _, request in level.waiting.lane(signature):
            yield request, False
        for _, _, request in level.delayed.lane(signature):
            yield request, True


def _fits(rows: int, cap: int, earliest_ns: int, safe_ns: int, now_ns: int, cost: Cost | None) -> bool:
    """Whether a batch may have so many rows."""
    if rows > cap:
        return False
    return cost is None or earliest_ns >= safe_ns or now_ns + (cost.high_ns(rows) or 0) <= earliest_ns


def _first_rows(requests: list[InferRequest], cap: int) -> list[InferRequest]:
    """As many of the first requests as the cap allows, one at least."""
    rows, chosen = 0, 0
    for request in requests:
        rows += request.rows
        if chosen and rows > cap:
            break
        chosen += 1
    return requests[:chosen]
