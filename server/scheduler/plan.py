"""What an idle instance should do now. Pure: no clock, no await, no I/O, and the queue is only looked at.

A batch is formed for one signature: its requests in order of arrival, as long as their rows fit into
``max_batch_size``, first those of the waiting line, then those of the delayed one. It stops at the first
request that does not fit, so that nobody overtakes within a signature. The batch is closed, and may go, when

1. the ``max_queue_delay`` of its oldest request is over: with everything in it;
2. a first part of it has exactly a preferred size: the largest such part;
3. it is full, or has passed every preferred size without meeting one: waiting brings it no nearer;
4. ``max_queue_delay`` is 0: with an idle instance nothing ever waits.

The signature of the oldest request is asked first, so none can starve: once its delay is over, nothing goes
before it. Only while that one still waits for company may another signature's closed batch use the idle
instance.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from server.scheduler.queue import RequestQueue
from server.types import InferRequest


@dataclass(frozen=True)
class Limits:
    """How batches are formed. Source: ModelConfig.max_batch_size and ModelDynamicBatching."""

    max_batch_size: int
    """Rows; 0: the model has no batch dimension, and every request is a batch of its own."""
    preferred_batch_size: tuple[int, ...] = ()
    max_queue_delay_ns: int = 0


@dataclass(frozen=True, slots=True)
class Dispatch:
    """Run these now, in one batch. They still wait in the queue: who acts on it takes them out."""

    requests: list[InferRequest]


@dataclass(frozen=True, slots=True)
class Wait:
    """Nothing may go before this time, unless a request arrives or leaves."""

    until_ns: int


@dataclass(frozen=True, slots=True)
class Idle:
    """Nobody waits."""


IDLE = Idle()
Plan = Dispatch | Wait | Idle


def plan(queue: RequestQueue, now_ns: int, limits: Limits) -> Plan:
    """What to do with an instance that is idle. Ask it only after ``queue.expire(now_ns)``.

    Costs a step per request dispatched; while the oldest request waits for company, a step per row of
    `max_batch_size` and per signature that waits.
    """
    until_ns: int | None = None
    for signature in _signatures(queue):
        step = _form(queue, signature, now_ns, limits)
        if isinstance(step, Dispatch):
            return step
        until_ns = step.until_ns if until_ns is None else min(until_ns, step.until_ns)
    return IDLE if until_ns is None else Wait(until_ns)


def _signatures(queue: RequestQueue) -> Iterator[object]:
    """Those that wait, the oldest request's first; the delayed line's only behind the waiting line's."""
    for line in (queue.waiting, queue.delayed):
        oldest = line.oldest()
        if oldest is None:
            continue
        yield oldest.signature
        for signature in line.signatures():
            if signature != oldest.signature:
                yield signature


def _form(queue: RequestQueue, signature: object, now_ns: int, limits: Limits) -> Dispatch | Wait:
    gathered = _gather(queue, signature, limits)
    delay_ns = limits.max_queue_delay_ns
    closes_ns = 0 if gathered.timed_out else gathered.requests[0].enqueued_ns + delay_ns
    if delay_ns and now_ns >= closes_ns:
        return Dispatch(gathered.requests)
    if gathered.preferred:
        return Dispatch(gathered.requests[: gathered.preferred])
    if gathered.full or not delay_ns:
        return Dispatch(gathered.requests)
    return Wait(closes_ns)


@dataclass(slots=True)
class _Gathered:
    requests: list[InferRequest]
    preferred: int = 0
    """How many of the first requests together have the largest preferred size; 0: no such part."""
    full: bool = False
    timed_out: bool = False
    """It holds a request of the delayed line, which has waited long enough for company."""


def _gather(queue: RequestQueue, signature: object, limits: Limits) -> _Gathered:
    gathered = _Gathered([])
    requests = gathered.requests
    max_rows = limits.max_batch_size
    preferred = limits.preferred_batch_size
    rows = 0
    for line in (queue.waiting, queue.delayed):
        for request in line.lane(signature):
            if rows + request.rows > max_rows and requests:
                gathered.full = True
                return gathered
            requests.append(request)
            rows += request.rows
            if rows in preferred:
                gathered.preferred = len(requests)
            gathered.timed_out = line is queue.delayed
    gathered.full = rows >= max_rows or (bool(preferred) and rows >= max(preferred))
    return gathered
