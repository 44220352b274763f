"""What happened to the requests of one model version: plain counters that v2 statistics and Prometheus read.

Names and meanings are those of v2's ModelStatistics and of Triton's nv_inference_* metrics. A counter of
requests (`success`, `fail`, `queue`, `compute_*`) adds, for each request, the time of the batch that it was
in; a counter of batches (`execution_count`, `batch_stats`) adds it once. Only the event loop writes.

Passes that succeed are noted as numbers, and counted when somebody reads, or some hundreds have come: one by one it was
a tenth of a small model's call.
"""

from __future__ import annotations

import time
from array import array
from collections.abc import Callable, Mapping, Sequence
from enum import StrEnum
from itertools import groupby
from typing import TYPE_CHECKING, Generic, TypeVar, cast

import numpy as np

from server.errors import Cancelled, Code, DeadlineExceeded, Overloaded, QueueFull, ServingError
from server.explain import WaitReason
from server.scheduler.histogram import DURATION_BOUNDS_NS, ROWS_BOUNDS, Histogram
from server.scheduler.load import Load
from server.scheduler.saturation import Ability, Demand
from server.scheduler.sequence_statistics import SequenceStatistics
from server.types import InferRequest

if TYPE_CHECKING:
    from server.scheduler.writing_statistics import WritingStatistics

_COMPUTE = ("compute_input", "compute_infer", "compute_output")
_PASSES, _RUNS = 256, 1024
"""So many that are noted are counted at once."""
_T = TypeVar("_T")
STAGES: Mapping[str, tuple[str, ...]] = {
    "decode": ("receive", "decode"),
    "preprocess": ("preprocess",),
    "queue": ("cache", "queue"),
    "compute": ("compute_input", "compute", "compute_output"),
    "postprocess": ("postprocess",),
    "encode": ("encode",),
    "loop": ("loop",),
}
"""The parts of an explanation (`server.explain.PARTS`) by the stages that metrics tell of."""


class FailureReason(StrEnum):
    """Why a request failed. Source: the label `reason` of Triton's nv_inference_request_failure."""

    REJECTED = "REJECTED"
    CANCELED = "CANCELED"
    BACKEND = "BACKEND"
    OTHER = "OTHER"


class Refusal(StrEnum):
    """Which other work kept a request from being admitted."""

    QUEUE_FULL = "queue_full"
    OVERLOAD = "overload"


_REASONS = {
    Code.EXHAUSTED: FailureReason.REJECTED,
    Code.DEADLINE: FailureReason.REJECTED,
    Code.CANCELLED: FailureReason.CANCELED,
    Code.INTERNAL: FailureReason.BACKEND,
}


def _unknown() -> None:
    """Nobody knows."""


class Duration:
    """How often something happened and how long it took in all. Source: v2 StatisticDuration."""

    __slots__ = ("count", "ns")

    def __init__(self) -> None:
        self.count = 0
        self.ns = 0

    def add(self, count: int, ns: int) -> None:
        self.count += count
        self.ns += ns


class BatchStatistics:
    """Of the passes of one batch size. Source: v2 InferBatchStatistics."""

    __slots__ = ("compute_infer", "compute_input", "compute_output")

    def __init__(self) -> None:
        self.compute_input = Duration()
        self.compute_infer = Duration()
        self.compute_output = Duration()


class _Due(Generic[_T]):
    """A count that has in it, whenever it is read, what was noted before."""

    def __set_name__(self, owner: type, name: str) -> None:
        self._name = name

    def __get__(self, statistics: ModelStatistics, owner: type) -> _T:
        statistics.count_noted()
        return cast("_T", vars(statistics)[self._name])

    def __set__(self, statistics: ModelStatistics, value: _T) -> None:
        vars(statistics)[self._name] = value


class ModelStatistics:
    """The counters of one model version. Every request that is settled is in `success` or `fail`, once."""

    success = _Due[Duration]()
    queue = _Due[Duration]()
    compute_input = _Due[Duration]()
    compute_infer = _Due[Duration]()
    compute_output = _Due[Duration]()
    batch_stats = _Due[dict[int, BatchStatistics]]()
    request_duration = _Due[Histogram]()
    queue_duration = _Due[Histogram]()
    batch_rows = _Due[Histogram]()
    last_inference_ms = _Due[int]()

    def __init__(self, name: str, version: str, wall: Callable[[], float] = time.time) -> None:
        """`wall` gives seconds since the epoch."""
        self.name = name
        self.version = version
        self._wall = wall
        self._noted_passes, self._noted_requests = array("q"), array("q")
        self._last_s = 0.0
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
        self.cache_hit = Duration()
        """Requests that were answered from the response cache, and the time of looking them up. They are in `success`
        and `queue`, and in nothing that tells of passes."""
        self.cache_miss = Duration()
        """Requests that were looked up, executed and answered; the time of looking up, and of keeping the answers."""
        self.batch_stats = {}
        """By rows."""
        self.pending = 0
        """Requests that wait for a pass now."""
        self.request_duration = Histogram(DURATION_BOUNDS_NS)
        """Nanoseconds, of requests that were answered."""
        self.queue_duration = Histogram(DURATION_BOUNDS_NS)
        """Nanoseconds, of requests that were answered."""
        self.stages = {stage: Histogram(DURATION_BOUNDS_NS) for stage in STAGES}
        """Nanoseconds, of requests that were looked at for all of those that were answered."""
        self.waits: dict[WaitReason, int] = dict.fromkeys(WaitReason, 0)
        """Nanoseconds in the queue, of the same, by what each waited for most of its time."""
        self.batch_rows = Histogram(ROWS_BOUNDS)
        self.admitted = 0
        self.refused: dict[Refusal, int] = dict.fromkeys(Refusal, 0)
        """Requests that were not admitted because of other work."""
        self.expired = 0
        """Requests whose deadline passed before a pass was begun for them, at the door or waiting."""
        self.cancelled = 0
        self.settled_late = 0
        """Requests that were answered after their deadline."""
        self.predicted_ns = 0
        """Of passes whose cost was known beforehand: what they were expected to take, from start to end."""
        self.actual_ns = 0
        """Of the same passes: what they took."""
        self.input_elements = 0
        """Of passes of models with length buckets: elements of the inputs that have a length."""
        self.padding_elements = 0
        """How many of these were padding."""
        self.busy_ns = 0
        """Time of instances that had a pass under way; of all instances together."""
        self.turn_wait_ns = 0
        """Time in which a batch and an instance were ready, and other models' passes had the cores."""
        self.instances = 0
        """Instances that live."""
        self.load = Load()
        self.ability: Callable[[], Callable[[], Ability] | None] = _unknown
        """A weak reference to who knows what the instances can do, asked when somebody wants to know."""
        self.preparing: ModelStatistics | None = None
        """Of the preprocessing in front of it, where there is any: its passes, not its requests."""
        self.sequences: SequenceStatistics | None = None
        """Of a model that batches sequences."""
        self.writing: WritingStatistics | None = None
        """Of a model that writes text."""

    def demand(self, now_ns: int) -> Demand:
        """The work that arrived lately, refused work too, and that the instances can do; of the passes, or of the
        preprocessing in front of them, whichever is the fuller. `now_ns`: monotonic."""
        tell = self.ability()
        ability = tell() if tell is not None else Ability(self.instances)
        work = self.load.work(now_ns)
        own = Demand(work, ability.within(), work * ability.of_cores)
        return own if self.preparing is None else own.behind(self.preparing.demand(now_ns))

    def saturation(self, now_ns: int) -> float:
        """Of this version by itself: see `Demand`."""
        return self.demand(now_ns).saturation()

    def count_end(self, predicted_ns: int | None, actual_ns: int) -> None:
        """Count the end of a pass, failed or not, `actual_ns` after it was begun."""
        self.busy_ns += actual_ns
        if predicted_ns is not None:
            self.predicted_ns += predicted_ns
            self.actual_ns += actual_ns

    def count_pass(self, rows: int, input_ns: int, infer_ns: int, output_ns: int) -> None:
        """Count one forward pass that succeeded, whatever became of its requests."""
        self.inference_count += rows
        self.execution_count += 1
        self._last_s = self._wall()
        self._noted_passes.extend((rows, input_ns, infer_ns, output_ns))
        if len(self._noted_passes) >= _PASSES * 4:
            self.count_noted()

    def count_padding(self, input_elements: int, padding_elements: int) -> None:
        """Count the elements of one pass that succeeded."""
        self.input_elements += input_elements
        self.padding_elements += padding_elements

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
        count, noted = len(requests), self._noted_requests
        if count == 1:
            request = requests[0]
            if settled_ns > request.deadline_ns:
                self.settled_late += 1
            times = settled_ns - request.received_ns, started_ns - request.enqueued_ns
            noted.extend((1, *times, input_ns, infer_ns, output_ns))
            return
        if not count:
            return
        deadlines = [request.deadline_ns for request in requests]
        if settled_ns > deadlines[0] or deadlines.count(deadlines[0]) != count:
            self.settled_late += sum([settled_ns > deadline_ns for deadline_ns in deadlines])
        received = [request.received_ns for request in requests]
        enqueued = [request.enqueued_ns for request in requests]
        # Those that arrived in one tick of the loop are alike, and noted together.
        if received.count(received[0]) == count and enqueued.count(enqueued[0]) == count:
            runs = [(received[0], enqueued[0], count)]
        else:
            runs = [(*times, len(list(same))) for times, same in groupby(zip(received, enqueued, strict=True))]
        for received_ns, enqueued_ns, alike in runs:
            noted.extend((alike, settled_ns - received_ns, started_ns - enqueued_ns, input_ns, infer_ns, output_ns))
        if len(noted) >= _RUNS * 6:
            self.count_noted()

    def count_noted(self) -> None:
        """Bring the counts of passes that succeeded, and of their requests, up to now."""
        passes, requests, own = self._noted_passes, self._noted_requests, vars(self)
        if passes:
            self._noted_passes = array("q")
            own["last_inference_ms"] = int(self._last_s * 1000)
            rows, *durations = np.frombuffer(passes, np.int64).reshape(-1, 4).T
            sizes, passes_of = np.unique(rows, return_counts=True)
            own["batch_rows"].observe_all(sizes, passes_of)
            for size, count in zip(sizes.tolist(), passes_of.tolist(), strict=True):
                sized = own["batch_stats"].setdefault(size, BatchStatistics())
                for name, ns in zip(_COMPUTE, durations, strict=True):
                    getattr(sized, name).add(count, int(ns[rows == size].sum()))
        if requests:
            self._noted_requests = array("q")
            counts, whole_ns, queue_ns, *durations = np.frombuffer(requests, np.int64).reshape(-1, 6).T
            count = int(counts.sum())
            own["request_duration"].observe_all(whole_ns, counts)
            own["queue_duration"].observe_all(queue_ns, counts)
            for name, ns in (("success", whole_ns), ("queue", queue_ns), *zip(_COMPUTE, durations, strict=True)):
                own[name].add(count, int(ns @ counts))

    def count_stages(self, parts_ns: Mapping[str, int], waited: WaitReason, weight: int) -> None:
        """Count where the time of one request went, for `weight` of them."""
        for stage, parts in STAGES.items():
            found = [parts_ns[part] for part in parts if part in parts_ns]
            if found:
                self.stages[stage].observe(sum(found), weight)
        self.waits[waited] += parts_ns.get("queue", 0) * weight

    def count_cache_hit(self, request: InferRequest, settled_ns: int, lookup_ns: int) -> None:
        """Count one request that was settled at `settled_ns` with an answer that was kept: it did not wait."""
        duration_ns = settled_ns - request.received_ns
        own = vars(self)  # What is noted may wait: sums come out the same.
        own["success"].add(1, duration_ns)
        own["queue"].add(1, 0)
        self.cache_hit.add(1, lookup_ns)
        own["request_duration"].observe(duration_ns)
        own["queue_duration"].observe(0)

    def count_failure(self, error: BaseException, duration_ns: int) -> None:
        """Count one request that was settled with `error`, `duration_ns` after it was received."""
        self.fail.add(1, duration_ns)
        if isinstance(error, QueueFull):
            self.refused[Refusal.QUEUE_FULL] += 1
        elif isinstance(error, Overloaded):
            self.refused[Refusal.OVERLOAD] += 1
        elif isinstance(error, DeadlineExceeded):
            self.expired += 1
        elif isinstance(error, Cancelled):
            self.cancelled += 1
        code = error.code if isinstance(error, ServingError) else Code.INTERNAL
        self.failures[_REASONS.get(code, FailureReason.OTHER)] += 1
