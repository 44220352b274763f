"""The registry of one server, made from the scheduler's own counts at each scrape.

Nothing is counted twice: v2's ModelStatistics and these read the same numbers. What a metric is called and means stands
in `catalog.py`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING, NamedTuple, Protocol

from prometheus_client import CollectorRegistry, PlatformCollector, ProcessCollector
from prometheus_client.core import Metric
from prometheus_client.registry import Collector

from server.observability.cache_metrics import CacheMetrics
from server.observability.catalog import Family, Rows, gauge
from server.observability.exposition import OPENMETRICS, TEXT, written
from server.observability.sequence_metrics import sequence_metrics
from server.observability.writing_metrics import writing_metrics
from server.scheduler.saturation import replicas, saturations

if TYPE_CHECKING:
    from server.scheduler.histogram import Histogram
    from server.scheduler.response_cache import CacheCounts
    from server.scheduler.statistics import ModelStatistics

_NUMBERS: Mapping[str, Callable[[ModelStatistics], float]] = {
    "nv_inference_request_success": lambda s: s.success.count,
    "nv_inference_count": lambda s: s.inference_count,
    "nv_inference_exec_count": lambda s: s.execution_count,
    "nv_inference_request_duration_us": lambda s: s.success.ns // 1000,
    "nv_inference_queue_duration_us": lambda s: s.queue.ns // 1000,
    "nv_inference_compute_input_duration_us": lambda s: s.compute_input.ns // 1000,
    "nv_inference_compute_infer_duration_us": lambda s: s.compute_infer.ns // 1000,
    "nv_inference_compute_output_duration_us": lambda s: s.compute_output.ns // 1000,
    "nv_inference_pending_request_count": lambda s: s.pending,
    "nv_cache_num_hits_per_model": lambda s: s.cache_hit.count,
    "nv_cache_num_misses_per_model": lambda s: s.cache_miss.count,
    "nv_cache_hit_duration_per_model": lambda s: s.cache_hit.ns // 1000,
    "nv_cache_miss_duration_per_model": lambda s: s.cache_miss.ns // 1000,
    "forwardpass_requests_admitted_total": lambda s: s.admitted,
    "forwardpass_requests_expired_total": lambda s: s.expired,
    "forwardpass_requests_cancelled_total": lambda s: s.cancelled,
    "forwardpass_requests_late_total": lambda s: s.settled_late,
    "forwardpass_turn_wait_seconds_total": lambda s: s.turn_wait_ns / 1e9,
    "forwardpass_pass_predicted_seconds_total": lambda s: s.predicted_ns / 1e9,
    "forwardpass_pass_actual_seconds_total": lambda s: s.actual_ns / 1e9,
    "forwardpass_input_elements_total": lambda s: s.input_elements,
    "forwardpass_padding_elements_total": lambda s: s.padding_elements,
    "forwardpass_engine_instances": lambda s: s.instances,
    "forwardpass_engine_busy_seconds_total": lambda s: s.busy_ns / 1e9,
}
"""One number of each model version."""

_BY_LABEL: Mapping[str, Callable[[ModelStatistics], Iterable[tuple[str, float]]]] = {
    "nv_inference_request_failure": lambda s: [(reason.value, n) for reason, n in s.failures.items()],
    "forwardpass_requests_refused_total": lambda s: [(cause.value, n) for cause, n in s.refused.items()],
    "forwardpass_queue_wait_seconds_total": lambda s: [(reason.value, ns / 1e9) for reason, ns in s.waits.items()],
}
"""Several numbers of each model version, by the value of one label more."""

_HISTOGRAMS: Mapping[str, tuple[float, Callable[[ModelStatistics], Histogram]]] = {
    "forwardpass_request_duration_seconds": (1e-9, lambda s: s.request_duration),
    "forwardpass_queue_duration_seconds": (1e-9, lambda s: s.queue_duration),
    "forwardpass_batch_rows": (1, lambda s: s.batch_rows),
}
"""What one unit of the counts is in the metric's own, and the counts."""


class Counted(Protocol):
    """What is told of the models: a data plane, or the sum of several."""

    def statistics(self) -> list[ModelStatistics]: ...
    def ready(self) -> bool: ...


class _Models(Collector):
    def __init__(self, dataplane: Counted, target: float) -> None:
        self._dataplane = dataplane
        self._target = target

    def collect(self) -> Iterator[Metric]:
        models = self._dataplane.statistics()
        for name, number in _NUMBERS.items():
            family = Family(name)
            for s in models:
                family.add((s.name, s.version), number(s))
            yield family.metric
        for name, numbers in _BY_LABEL.items():
            family = Family(name)
            for s in models:
                for label, value in numbers(s):
                    family.add((s.name, s.version, label), value)
            yield family.metric
        for name, (unit, histogram) in _HISTOGRAMS.items():
            family = Family(name)
            for s in models:
                family.add_histogram((s.name, s.version), histogram(s), unit)
            yield family.metric
        yield _stages(models)
        yield from sequence_metrics(models)
        yield from writing_metrics(models)
        yield from _scaling(models, self._target)
        yield gauge("forwardpass_ready", float(self._dataplane.ready()))


def _stages(models: Sequence[ModelStatistics]) -> Metric:
    family = Family("forwardpass_stage_duration_seconds")
    for s in models:
        for stage, counts in s.stages.items():
            if counts.sum:  # Most requests have no preprocessing; twenty lines each would be of nothing.
                family.add_histogram((s.name, s.version, stage), counts, 1e-9)
    return family.metric


def _scaling(models: Sequence[ModelStatistics], target: float) -> Iterator[Metric]:
    now_ns = time.monotonic_ns()
    told = saturations([s.demand(now_ns) for s in models])
    family = Family("forwardpass_saturation")
    for s, saturation in zip(models, told, strict=True):
        family.add((s.name, s.version), saturation)
    yield family.metric
    yield gauge("forwardpass_desired_replicas", replicas(max(told, default=0.0), target))


class GrpcLoad(Protocol):
    """What our own gRPC transport knows of its clients."""

    @property
    def refused(self) -> Mapping[str, int]:
        """Streams that were not served as they were asked, by cause."""

    def open_connections(self) -> int: ...
    def open_streams(self) -> int: ...
    def held_bytes(self) -> int: ...


class _Grpc(Collector):
    def __init__(self, load: GrpcLoad) -> None:
        self._load = load

    def collect(self) -> Iterator[Metric]:
        load = self._load
        yield gauge("forwardpass_grpc_connections", load.open_connections())
        yield gauge("forwardpass_grpc_streams", load.open_streams())
        yield gauge("forwardpass_grpc_held_bytes", load.held_bytes())
        refused = Family("forwardpass_grpc_streams_refused_total")
        for cause, count in list(load.refused.items()):
            refused.add((cause,), count)
        yield refused.metric


class _Listeners(Collector):
    def __init__(self, closed: Mapping[str, Mapping[str, int]]) -> None:
        self._closed = closed

    def collect(self) -> Iterator[Metric]:
        family = Family("forwardpass_connections_closed_total")
        for listener, causes in self._closed.items():
            for cause, count in list(causes.items()):
                family.add((listener, cause), count)
        yield family.metric


class Told(NamedTuple):
    """What is told as samples, or by process."""

    rows: Sequence[Rows] = ()
    lags: Mapping[str, Histogram] = MappingProxyType({})
    """How late event loops are, in nanoseconds, by process."""


_TOLD = (
    "forwardpass_model_load_seconds",
    "forwardpass_model_parity",
    "forwardpass_model_loads_total",
    "forwardpass_model_swaps_total",
    "forwardpass_http_connections",
    "forwardpass_rollout_asked",
    "forwardpass_rollout_requests_total",
    "forwardpass_rollout_rolled_back",
    "forwardpass_resident_memory_bytes",
    "forwardpass_cpu_seconds_total",
    "forwardpass_energy_joules_total",
    "forwardpass_request_energy_joules_total",
    "nv_gpu_utilization",
    "nv_gpu_memory_total_bytes",
    "nv_gpu_memory_used_bytes",
    "nv_gpu_power_usage",
    "nv_gpu_power_limit",
    "nv_energy_consumption",
)


class _Rows(Collector):
    def __init__(self, told: Callable[[], Told]) -> None:
        self._told = told

    def collect(self) -> Iterator[Metric]:
        told = self._told()
        for name in _TOLD:
            family = Family(name)
            for rows in told.rows:
                family.add_rows(rows)
            yield family.metric
        lag = Family("forwardpass_event_loop_lag_seconds")
        for process, histogram in told.lags.items():
            lag.add_histogram((process,), histogram, 1e-9)
        yield lag.metric


class Metrics:
    """The registry of one server; `expose` is what a scrape gets."""

    def __init__(
        self,
        dataplane: Counted,
        closed: Mapping[str, Mapping[str, int]],
        grpc: GrpcLoad | None = None,
        cache: Callable[[], CacheCounts | None] = lambda: None,
        more: Sequence[Collector] = (),
        target_saturation: float = 0.7,
        told: Callable[[], Told] = Told,
        process: Callable[[], int | str] = lambda: "self",
    ) -> None:
        """`closed` counts, by listener and cause, the connections that a listener ended for a fault of their peer;
        `grpc` is our own transport, None where another serves gRPC; `cache` tells of the response cache, if there is
        one; `more`: of who runs the models; `target_saturation`: at which `forwardpass_desired_replicas` are enough;
        `told`: of processes, their machine, and loads; `process`: whose `process_*` is told, of several always the same
        one's, or who scrapes would see another begin each time."""
        self._registry = CollectorRegistry()
        self._registry.register(_Models(dataplane, target_saturation))
        self._registry.register(_Listeners(closed))
        self._registry.register(CacheMetrics(cache))
        self._registry.register(_Rows(told))
        if grpc is not None:
            self._registry.register(_Grpc(grpc))
        for collector in more:
            self._registry.register(collector)
        ProcessCollector(pid=process, registry=self._registry)
        PlatformCollector(registry=self._registry)

    def expose(self, accept: str = "") -> tuple[bytes, str]:
        """What a scrape gets, and its content type: OpenMetrics if `accept` (the header) asks for it."""
        openmetrics = any(
            each.split(";")[0].strip() == "application/openmetrics-text" for each in accept.lower().split(",")
        )
        return written(self._registry.collect(), openmetrics=openmetrics), OPENMETRICS if openmetrics else TEXT
