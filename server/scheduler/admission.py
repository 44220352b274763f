"""Whether a request can be answered in time, by what is ahead of it. No clock, no I/O.

The time until its answer is foreseen as: what is left of the passes under way, and the passes of everybody who
goes before it (levels above its own, in its own level deadlines not later than its own), at their mean and
spread over the living instances; then its own pass at the high quantile. On top comes a margin: how much later
than foreseen the answers of late were, at a high quantile of that error. Foresight is wrong where requests of
several rows do not fill their batches, more urgent ones come later, or the loop is late; the margin learns it.
"""

from __future__ import annotations

from server.scheduler.plan import Cost
from server.scheduler.queue import Line, RequestQueue, rows_until
from server.types import InferRequest

_QUANTILE = 0.98
_STEP = 16
"""The margin moves by a part of a pass: this many errors above it in a row make it longer by a pass."""


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
    queue: RequestQueue, request: InferRequest, cost: Cost, cap: int, left_ns: int, instances: int
) -> int | None:
    """Nanoseconds from now to the answer of a request that joins the queue; None where no cost is known.

    `left_ns`: what is left of all passes under way together.
    """
    ahead_ns, own_rows = 0, 0
    level = queue.level(request)
    for above in queue.levels:
        if above is level:
            break
        ahead_ns += drain_ns(above.waiting, cost, cap) + drain_ns(above.delayed, cost, cap)
    for signature, lane in level.waiting.lanes.items():
        rows = rows_until(level.waiting, lane, request.deadline_ns)
        if signature == request.signature:
            own_rows = rows
        else:
            ahead_ns += passes_ns(rows, cost, cap)
    full, rest = divmod(own_rows + request.rows - 1, max(1, cap))
    if full:
        ahead_ns += full * (cost.predict_ns(cap or 1) or 0)
    # Behind a full batch the own one will be full as well: others come until it starts.
    own_ns = cost.high_ns(max(cap if full else rest + 1, request.rows))
    return None if own_ns is None else (left_ns + ahead_ns) // max(1, instances) + own_ns


def drain_ns(line: Line, cost: Cost, cap: int) -> int:
    """The time of one instance for everybody in a line, as if their signatures were one."""
    return passes_ns(line.rows, cost, cap) if line.size else 0


def passes_ns(rows: int, cost: Cost, cap: int) -> int:
    """The time of one instance for so many rows in batches of the cap."""
    full, rest = divmod(rows, max(1, cap))
    total = full * (cost.predict_ns(max(1, cap)) or 0) if full else 0
    return total + (cost.predict_ns(rest) or 0 if rest else 0)
