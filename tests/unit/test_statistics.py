"""The counters of a model version."""

from __future__ import annotations

import random
from collections import Counter

import pytest

from server.errors import (
    Cancelled,
    DeadlineExceeded,
    Draining,
    EngineFailure,
    InvalidRequest,
    ModelNotReady,
    Overloaded,
    QueueFull,
    ServingError,
)
from server.explain import WaitReason
from server.scheduler.histogram import DURATION_BOUNDS_NS, ROWS_BOUNDS, Histogram
from server.scheduler.saturation import Ability, Demand
from server.scheduler.statistics import STAGES, FailureReason, ModelStatistics, Refusal
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


@pytest.mark.parametrize("read_each", [True, False])
def test_what_is_noted_comes_out_as_if_it_were_counted_one_by_one(read_each: bool) -> None:
    """Of a thousand passes, read after each or at their end: of requests that came together and of those that did not,
    some late, with durations on the bounds of buckets."""
    draw, settled_ns = random.Random(1), 10**12
    statistics, whole, queued = ModelStatistics("m", "1"), Histogram(DURATION_BOUNDS_NS), Histogram(DURATION_BOUNDS_NS)
    sizes: Counter[int] = Counter()
    late = 0
    for _ in range(1000):
        came = [(draw.choice((*DURATION_BOUNDS_NS, 7, 10**11)), draw.choice((0, 1, 50_000))) for _ in range(3)]
        asked = []
        for whole_ns, queue_ns in draw.choice((came[:1], came[:1] * 5, came, came * 2)):
            asked.append(request(settled_ns - whole_ns, settled_ns - 7 - queue_ns))
            asked[-1].deadline_ns = settled_ns + draw.choice((-1, 0, 1))
            late += asked[-1].deadline_ns < settled_ns
            whole.observe(whole_ns)
            queued.observe(queue_ns)
        statistics.count_pass(len(asked), 10, 20, 30)
        statistics.count_success(asked, settled_ns - 7, settled_ns, 10, 20, 30)
        sizes[len(asked)] += 1
        if read_each:
            assert statistics.success.count == whole.count
    assert (statistics.request_duration.counts, statistics.request_duration.sum) == (whole.counts, whole.sum)
    assert (statistics.queue_duration.counts, statistics.queue_duration.sum) == (queued.counts, queued.sum)
    assert (statistics.success.count, statistics.success.ns, statistics.queue.ns) == (
        whole.count,
        whole.sum,
        queued.sum,
    )
    assert (statistics.compute_infer.count, statistics.compute_output.ns) == (whole.count, 30 * whole.count)
    assert {size: found.compute_infer.count for size, found in statistics.batch_stats.items()} == sizes
    assert {size: found.compute_infer.ns // 20 for size, found in statistics.batch_stats.items()} == sizes
    assert statistics.batch_rows.sum == statistics.inference_count == whole.count
    assert statistics.settled_late == late


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


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (QueueFull("m", 1), (1, 0, 0, 0)),
        (Overloaded("m", 1), (0, 1, 0, 0)),
        (DeadlineExceeded("m", 1), (0, 0, 1, 0)),
        (Cancelled(), (0, 0, 0, 1)),
        (Draining(), (0, 0, 0, 0)),
    ],
    ids=["full", "overloaded", "expired", "cancelled", "draining"],
)
def test_who_is_not_answered_for_want_of_room_or_time_is_counted_by_why(
    error: ServingError, told: tuple[int, ...]
) -> None:
    """Each in one place."""
    counts = ModelStatistics("m", "1")
    for _ in range(2):
        counts.count_failure(error, 7)
    refused = counts.refused[Refusal.QUEUE_FULL], counts.refused[Refusal.OVERLOAD]
    assert (*refused, counts.expired, counts.cancelled) == tuple(2 * count for count in told)


@pytest.mark.parametrize(("deadline_ns", "late"), [(299, 1), (300, 0), (301, 0)])
def test_an_answer_after_its_deadline_is_late(deadline_ns: int, late: int) -> None:
    """One at the very nanosecond is not; each of a pass is looked at for itself."""
    counts = ModelStatistics("m", "1")
    early, other = request(0, 0), request(0, 0)
    early.deadline_ns = deadline_ns
    counts.count_success([other, early], 200, 300, 1, 1, 1)
    assert counts.settled_late == late
    early.deadline_ns = other.deadline_ns = 299
    counts.count_success([other, early], 200, 300, 1, 1, 1)
    assert counts.settled_late == late + 2
    counts.count_success([], 200, 300, 1, 1, 1)
    assert (counts.settled_late, counts.success.count) == (late + 2, 4)


def test_passes_are_busy_time_and_those_foreseen_are_held_against_what_they_took() -> None:
    """Those whose cost was not known would tell nothing."""
    counts = ModelStatistics("m", "1")
    counts.count_end(None, 100)
    counts.count_end(30, 40)
    counts.count_end(0, 5)
    assert (counts.busy_ns, counts.predicted_ns, counts.actual_ns) == (145, 30, 45)


def test_passes_of_one_size_add_up() -> None:
    """In its batch's statistics, and in all."""
    counts = ModelStatistics("m", "1")
    counts.count_pass(2, 1, 2, 3)
    counts.count_pass(2, 10, 20, 30)
    counts.count_padding(8, 3)
    counts.count_padding(8, 1)
    sized = counts.batch_stats[2]
    assert (sized.compute_input.ns, sized.compute_infer.ns, sized.compute_output.ns) == (11, 22, 33)
    assert (sized.compute_input.count, sized.compute_output.count, counts.execution_count) == (2, 2, 2)
    assert (counts.inference_count, counts.input_elements, counts.padding_elements) == (4, 16, 4)


def test_a_stage_is_the_sum_of_its_parts_for_as_many_as_the_one_stands_for() -> None:
    """A stage of which no part was measured is not counted; the wait is counted by its reason."""
    counts = ModelStatistics("m", "1")
    stage, parts = next((stage, parts) for stage, parts in STAGES.items() if len(parts) > 1)
    counts.count_stages(dict.fromkeys(parts, 1000) | {"queue": 70}, WaitReason.WINDOW, 3)
    assert (counts.stages[stage].count, counts.stages[stage].sum) == (3, 3000 * len(parts))
    assert counts.waits[WaitReason.WINDOW] == 210
    assert sum(counts.waits.values()) == 210
    untouched = [name for name, parts_ in STAGES.items() if not {*parts_} & {*parts, "queue"}]
    assert untouched
    assert not any(counts.stages[name].count for name in untouched)
    counts.count_stages({}, WaitReason.WINDOW, 1)
    assert counts.waits[WaitReason.WINDOW] == 210


def test_a_kept_answer_is_a_success_that_did_not_wait() -> None:
    """With the time of looking it up."""
    counts = ModelStatistics("m", "1")
    counts.count_cache_hit(request(100, 0), 400, 20)
    assert (counts.success.count, counts.success.ns, counts.queue.count, counts.queue.ns) == (1, 300, 1, 0)
    assert (counts.cache_hit.count, counts.cache_hit.ns) == (1, 20)
    assert (counts.request_duration.count, counts.request_duration.sum) == (1, 300)
    assert (counts.queue_duration.count, counts.queue_duration.sum) == (1, 0)


def test_a_bucket_keeps_the_trace_of_its_latest_value() -> None:
    """With when that was, in seconds since the epoch."""
    histogram = Histogram((10, 20))
    for value, trace in ((10, "a"), (11, "b"), (20, "c"), (21, "d")):
        histogram.exemplify(value, trace)
    kept = {bucket: (exemplar.trace_id, exemplar.value) for bucket, exemplar in histogram.exemplars.items()}
    assert kept == {0: ("a", 10), 1: ("c", 20), 2: ("d", 21)}
    assert histogram.exemplars[0].at_s > 1.7e9


def test_what_is_asked_of_a_version_is_its_passes_or_what_prepares_them() -> None:
    """Whichever is the fuller; without somebody who knows the instances, as many as live."""
    counts = ModelStatistics("m", "1")
    counts.instances = 2
    now_ns = 250_000_000
    counts.load.arrive(125_000_000, now_ns)
    assert counts.demand(now_ns) == Demand(0.5, 2, 0)
    assert counts.saturation(now_ns) == 0.25
    ability = Ability(4, of_cores=0.5)
    counts.ability = lambda: lambda: ability
    assert counts.demand(now_ns) == Demand(0.5, 4, 0.25)
    counts.preparing = ModelStatistics("m", "1")
    counts.preparing.instances = 1
    counts.preparing.load.arrive(75_000_000, now_ns)
    assert counts.demand(now_ns) == Demand(0.3, 1, 0.25)


def test_what_is_noted_and_not_read_stays_small() -> None:
    """Of passes, and of requests that share them; nothing of it is lost."""
    counts = ModelStatistics("m", "1")
    for _ in range(600):
        counts.count_pass(2, 1, 1, 1)
        assert len(counts._noted_passes) <= 1024
    counts = ModelStatistics("m", "1")
    for number in range(700):
        counts.count_success([request(0, 0), request(number + 1, 0)], 1, 3000, 1, 1, 1)
        assert len(counts._noted_requests) <= 6 * 1024
    counts = ModelStatistics("m", "1")
    for number in range(3000):
        counts.count_pass(2, 1, 1, 1)
        counts.count_success([request(0, 0), request(number, 0)], 1, 3000, 1, 1, 1)
        assert len(counts._noted_passes) + len(counts._noted_requests) < 8192
    assert (counts.success.count, counts.execution_count, counts.inference_count) == (6000, 3000, 6000)
    assert counts.success.ns == 6000 * 3000 - sum(range(3000))
    assert counts.request_duration.count == 6000
