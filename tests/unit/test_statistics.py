"""The counters of a model version."""

from __future__ import annotations

import pytest

from server.errors import (
    Cancelled,
    DeadlineExceeded,
    Draining,
    EngineFailure,
    InvalidRequest,
    ModelNotReady,
    QueueFull,
    ServingError,
)
from server.scheduler.statistics import (
    DURATION_BOUNDS_NS,
    ROWS_BOUNDS,
    FailureReason,
    Histogram,
    ModelStatistics,
)
from server.types import InferRequest


def request(received_ns: int, enqueued_ns: int) -> InferRequest:
    made = InferRequest("m", [], on_settle=lambda _, __: None, received_ns=received_ns)
    made.enqueued_ns = enqueued_ns
    return made


def test_the_bounds() -> None:
    """Durations are counted from 50 us to 10 s, rows from 1 to 1024, each bound above the one before."""
    assert (DURATION_BOUNDS_NS[0], DURATION_BOUNDS_NS[-1]) == (50_000, 10_000_000_000)
    assert sorted(set(DURATION_BOUNDS_NS)) == list(DURATION_BOUNDS_NS)
    assert ROWS_BOUNDS == (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)


@pytest.mark.parametrize(("value", "bucket"), [(0, 0), (10, 0), (11, 1), (20, 1), (21, 2), (10**9, 2)])
def test_a_bound_belongs_to_its_bucket(value: int, bucket: int) -> None:
    """A value equal to a bound is in the bucket that ends there, as Prometheus' `le` says."""
    histogram = Histogram((10, 20))
    histogram.observe(value, 3)
    assert [index for index, count in enumerate(histogram.counts) if count] == [bucket]
    assert (histogram.count, histogram.sum) == (3, 3 * value)


@pytest.mark.parametrize("starts_ns", [[], [0], [5, 5, 5], [5, 5, 7, 5], [0, 1, 1, 30]])
def test_counting_together_is_counting_each(starts_ns: list[int]) -> None:
    """Equal neighbours are counted in one step, with the result of counting one by one."""
    together, each = Histogram((10, 20, 30)), Histogram((10, 20, 30))
    together.observe_since(starts_ns, 33)
    for start_ns in starts_ns:
        each.observe(33 - start_ns)
    assert (together.counts, together.sum) == (each.counts, each.sum)


def test_a_pass_is_counted_per_batch_and_per_request() -> None:
    """A request adds its whole batch's compute times; a batch adds them once, by its rows."""
    statistics = ModelStatistics("m", "1", wall=lambda: 1_700_000_000.25)
    statistics.count_pass(5, 10, 20, 30)
    statistics.count_success([request(100, 110), request(100, 150)], 200, 300, 10, 20, 30)
    assert (statistics.inference_count, statistics.execution_count) == (5, 1)
    assert statistics.last_inference_ms == 1_700_000_000_250
    assert (statistics.success.count, statistics.success.ns) == (2, 400)
    assert (statistics.queue.count, statistics.queue.ns) == (2, 90 + 50)
    assert (statistics.compute_input.count, statistics.compute_input.ns) == (2, 20)
    assert (statistics.compute_infer.count, statistics.compute_infer.ns) == (2, 40)
    assert (statistics.compute_output.count, statistics.compute_output.ns) == (2, 60)
    sized = statistics.batch_stats[5]
    assert (sized.compute_input.ns, sized.compute_infer.ns, sized.compute_output.ns) == (10, 20, 30)
    assert sized.compute_infer.count == 1
    assert statistics.batch_rows.counts[ROWS_BOUNDS.index(8)] == 1
    assert (statistics.request_duration.count, statistics.request_duration.sum) == (2, 400)
    assert (statistics.queue_duration.count, statistics.queue_duration.sum) == (2, 140)


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (QueueFull("m", 1), "REJECTED"),
        (DeadlineExceeded("m", 1), "REJECTED"),
        (Cancelled(), "CANCELED"),
        (EngineFailure("m"), "BACKEND"),
        (RuntimeError(), "BACKEND"),
        (Draining(), "OTHER"),
        (ModelNotReady("m"), "OTHER"),
        (InvalidRequest("inputs", "none"), "OTHER"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else value,
)
def test_failures_have_tritons_reasons(error: ServingError, reason: str) -> None:
    """Every error is counted once, under the reason that Triton's metric has for it."""
    statistics = ModelStatistics("m", "1")
    statistics.count_failure(error, 7)
    assert {name: count for name, count in statistics.failures.items() if count} == {FailureReason(reason): 1}
    assert (statistics.fail.count, statistics.fail.ns) == (1, 7)
    assert statistics.success.count == 0
