"""What happened to the requests of one model version: plain counters that v2 statistics and Prometheus read.

Names and meanings are those of v2's ModelStatistics and of Triton's nv_inference_* metrics. A counter of
requests (`success`, `fail`, `queue`, `compute_*`) adds, for each request, the time of the batch that it was
in; a counter of batches (`execution_count`, `batch_stats`) adds it once. Only the event loop writes.
"""

from __future__ import annotations

import time
from bisect import bisect_left
from collections.abc import Callable, Sequence
from enum import StrEnum

from server.errors import Code, ServingError
from server.types import InferRequest

DURATION_BOUNDS_NS = tuple(
    int(us * 1000)
    for us in (
        *(50, 100, 250, 500),
        *(1_000, 2_500, 5_000, 10_000, 25_000, 50_000, 100_000, 250_000, 500_000),
        *(1_000_000, 2_500_000, 5_000_000, 10_000_000),
    )
)
"""Upper bounds of the buckets of both durations: 50 us to 10 s."""
ROWS_BOUNDS = tuple(1 << power for power in range(11))
"""Upper bounds of the buckets of rows in a batch: 1 to 1024."""


class FailureReason(StrEnum):
    """Why a request failed. Source: the label `reason` of Triton's nv_inference_request_failure."""

    REJECTED = "REJECTED"
    CANCELED = "CANCELED"
    BACKEND = "BACKEND"
    OTHER = "OTHER"


_REASONS = {
    Code.EXHAUSTED: FailureReason.REJECTED,
    Code.DEADLINE: FailureReason.REJECTED,
    Code.CANCELLED: FailureReason.CANCELED,
    Code.INTERNAL: FailureReason.BACKEND,
}


class Duration:
    """How often something happened and how long it took in all. Source: v2 StatisticDuration."""

    __slots__ = ("count", "ns")

    def __init__(self) -> None:
        self.count = 0
        self.ns = 0

    def add(self, count: int, ns: int) -> None:
        self.count += count
        self.ns += ns


class Histogram:
    """`counts[i]` values are above `bounds[i - 1]` and at most `bounds[i]`; the last is above all bounds."""

    __slots__ = ("bounds", "counts", "sum")

    def __init__(self, bounds: tuple[int, ...]) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.sum = 0

    @property
    def count(self) -> int:
        return sum(self.counts)

    def observe(self, value: int, count: int = 1) -> None:
        """Count a value that occurred `count` times."""
        self.counts[bisect_left(self.bounds, value)] += count
        self.sum += value * count

    def observe_since(self, starts_ns: Sequence[int], end_ns: int) -> None:
        """Count the time from each start to `end_ns`. Neighbours that are equal, as those that arrived in one
        tick of the loop are, cost one step together."""
        same, start_ns = 0, -1
        for next_ns in starts_ns:
            if next_ns != start_ns:
                if same:
                    self.observe(end_ns - start_ns, same)
                same, start_ns = 0, next_ns
            same += 1
        if same:
            self.observe(end_ns - start_ns, same)


class BatchStatistics:
    """Of the passes of one batch size. Source: v2 InferBatchStatistics."""

    __slots__ = ("compute_infer", "compute_input", "compute_output")

    def __init__(self) -> None:
        self.compute_input = Duration()
        self.compute_infer = Duration()
        self.compute_output = Duration()


class ModelStatistics:
    """The counters of one model version. Every request that is settled is in `success` or `fail`, once."""

    def __init__(self, name: str, version: str, wall: Callable[[], float] = time.time) -> None:
        """`wall` gives seconds since the epoch."""
        self.name = name
        self.version = version
        self._wall = wall
        self.last_inference_ms = 0
        """When the last pass ended, in milliseconds since the epoch; 0: there was none."""
        self.inference_count = 0
        """Rows of the passes that succeeded."""
        self.execution_count = 0
        """Passes that succeeded."""
        self.success = Duration()
        """From a request's receipt to its settlement."""
        self.fail = Duration()
        self.failures: dict[FailureReason, int] = dict.fromkeys(FailureReason, 0)
        """`fail.count` by reason."""
        self.queue = Duration()
        self.compute_input = Duration()
        self.compute_infer = Duration()
        self.compute_output = Duration()
        self.batch_stats: dict[int, BatchStatistics] = {}
        """By rows."""
        self.pending = 0
        """Requests that wait for a pass now."""
        self.request_duration = Histogram(DURATION_BOUNDS_NS)
        """Nanoseconds, of requests that were answered."""
        self.queue_duration = Histogram(DURATION_BOUNDS_NS)
        """Nanoseconds, of requests that were answered."""
        self.batch_rows = Histogram(ROWS_BOUNDS)

    def count_pass(self, rows: int, input_ns: int, infer_ns: int, output_ns: int) -> None:
        """Count one forward pass that succeeded, whatever became of its requests."""
        self.inference_count += rows
        self.execution_count += 1
        self.last_inference_ms = int(self._wall() * 1000)
        self.batch_rows.observe(rows)
        sized = self.batch_stats.get(rows)
        if sized is None:
            sized = self.batch_stats[rows] = BatchStatistics()
        sized.compute_input.add(1, input_ns)
        sized.compute_infer.add(1, infer_ns)
        sized.compute_output.add(1, output_ns)

    def count_success(
        self,
        requests: Sequence[InferRequest],
        started_ns: int,
        settled_ns: int,
        input_ns: int,
        infer_ns: int,
        output_ns: int,
    ) -> None:
        """Count the requests of one pass that were settled with their answer at `settled_ns`."""
        count = len(requests)
        received = [request.received_ns for request in requests]
        enqueued = [request.enqueued_ns for request in requests]
        self.success.add(count, settled_ns * count - sum(received))
        self.queue.add(count, started_ns * count - sum(enqueued))
        self.compute_input.add(count, input_ns * count)
        self.compute_infer.add(count, infer_ns * count)
        self.compute_output.add(count, output_ns * count)
        self.request_duration.observe_since(received, settled_ns)
        self.queue_duration.observe_since(enqueued, started_ns)

    def count_failure(self, error: BaseException, duration_ns: int) -> None:
        """Count one request that was settled with `error`, `duration_ns` after it was received."""
        self.fail.add(1, duration_ns)
        code = error.code if isinstance(error, ServingError) else Code.INTERNAL
        self.failures[_REASONS.get(code, FailureReason.OTHER)] += 1
