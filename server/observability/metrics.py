"""Every metric of the server, defined in one place, made from the scheduler's own counts at each scrape.

Nothing is counted twice: v2's ModelStatistics and these read the same numbers. Names and labels are
Triton's where they mean the same (``nv_inference_*``); ours are ``forwardpass_*``.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import accumulate
from typing import TYPE_CHECKING, Protocol

from prometheus_client import CollectorRegistry, PlatformCollector, ProcessCollector, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from server.observability.cache_metrics import CacheMetrics
from server.observability.sequence_metrics import sequence_metrics

if TYPE_CHECKING:
    from server.scheduler.response_cache import CacheCounts
    from server.scheduler.statistics import Histogram, ModelStatistics

_LABELS = ("model", "version")


def _predicted_s(statistics: ModelStatistics) -> float:
    return statistics.predicted_ns / 1e9


def _turn_wait_s(statistics: ModelStatistics) -> float:
    return statistics.turn_wait_ns / 1e9


def _actual_s(statistics: ModelStatistics) -> float:
    return statistics.actual_ns / 1e9


_COUNTERS: tuple[tuple[str, str, Callable[[ModelStatistics], float]], ...] = (
    ("nv_inference_request_success", "Requests answered", lambda s: s.success.count),
    ("nv_inference_count", "Rows executed", lambda s: s.inference_count),
    ("nv_inference_exec_count", "Batches executed", lambda s: s.execution_count),
    ("nv_inference_request_duration_us", "Microseconds from arrival to answer", lambda s: s.success.ns // 1000),
    ("nv_inference_queue_duration_us", "Microseconds spent waiting", lambda s: s.queue.ns // 1000),
    ("nv_inference_compute_input_duration_us", "Microseconds of merging", lambda s: s.compute_input.ns // 1000),
    ("nv_inference_compute_infer_duration_us", "Microseconds in the engine", lambda s: s.compute_infer.ns // 1000),
    ("nv_inference_compute_output_duration_us", "Microseconds of splitting", lambda s: s.compute_output.ns // 1000),
    ("nv_cache_num_hits_per_model", "Requests answered from the cache", lambda s: s.cache_hit.count),
    ("nv_cache_num_misses_per_model", "Requests looked up and executed", lambda s: s.cache_miss.count),
    ("nv_cache_hit_duration_per_model", "Microseconds of looking up hits", lambda s: s.cache_hit.ns // 1000),
    ("nv_cache_miss_duration_per_model", "Microseconds of misses and of keeping", lambda s: s.cache_miss.ns // 1000),
)
"""Triton's counters: name, help, value. Source: Triton, docs/user_guide/metrics.md."""

_OURS: tuple[tuple[str, str, Callable[[ModelStatistics], float]], ...] = (
    ("forwardpass_requests_admitted_total", "Requests taken into the queue", lambda s: s.admitted),
    ("forwardpass_requests_expired_total", "Requests whose deadline passed before their pass", lambda s: s.expired),
    ("forwardpass_requests_cancelled_total", "Requests whose caller went away", lambda s: s.cancelled),
    ("forwardpass_requests_late_total", "Requests answered after their deadline", lambda s: s.settled_late),
    ("forwardpass_turn_wait_seconds_total", "Seconds that ready batches waited for other models", _turn_wait_s),
    ("forwardpass_pass_predicted_seconds_total", "Seconds that passes were expected to take", _predicted_s),
    ("forwardpass_pass_actual_seconds_total", "Seconds that the same passes took", _actual_s),
    ("forwardpass_input_elements_total", "Elements of padded inputs, with their padding", lambda s: s.input_elements),
    ("forwardpass_padding_elements_total", "Elements that were padding", lambda s: s.padding_elements),
)
"""The scheduler's own counters: name, help, value."""

_HISTOGRAMS: tuple[tuple[str, str, float, Callable[[ModelStatistics], Histogram]], ...] = (
    ("forwardpass_request_duration_seconds", "Seconds from arrival to answer", 1e-9, lambda s: s.request_duration),
    ("forwardpass_queue_duration_seconds", "Seconds that a request waited", 1e-9, lambda s: s.queue_duration),
    ("forwardpass_batch_rows", "Rows of the batches executed", 1, lambda s: s.batch_rows),
)
"""Name, help, what one unit of the counts is in the metric's own, the counts."""


class Counted(Protocol):
    """What is told of the models: a data plane, or the sum of several."""

    def statistics(self) -> list[ModelStatistics]: ...
    def ready(self) -> bool: ...


class _Models(Collector):
    def __init__(self, dataplane: Counted) -> None:
        self._dataplane = dataplane

    def collect(self) -> Iterator[Metric]:
        models = self._dataplane.statistics()
        for name, text, value in _COUNTERS:
            yield _counter(name, text, _LABELS, (((s.name, s.version), value(s)) for s in models))
        yield _counter(
            "nv_inference_request_failure",
            "Requests not answered, by reason",
            (*_LABELS, "reason"),
            (((s.name, s.version, reason.value), n) for s in models for reason, n in s.failures.items()),
        )
        yield from _own_counters(models)
        pending = GaugeMetricFamily("nv_inference_pending_request_count", "Requests that wait", labels=_LABELS)
        for s in models:
            pending.add_metric((s.name, s.version), s.pending)
        yield pending
        yield from sequence_metrics(models)
        saturation = GaugeMetricFamily(
            "forwardpass_saturation", "Work that arrived lately over the work that can be done", labels=_LABELS
        )
        for s in models:
            saturation.add_metric((s.name, s.version), s.saturation(time.monotonic_ns()))
        yield saturation
        for name, text, unit, histogram in _HISTOGRAMS:
            family = HistogramMetricFamily(name, text, labels=_LABELS)
            for s in models:
                counts = histogram(s)
                family.add_metric((s.name, s.version), _buckets(counts, unit), counts.sum * unit)
            yield family
        yield GaugeMetricFamily("forwardpass_ready", "1 when the server is ready", value=float(self._dataplane.ready()))


def _own_counters(models: Iterable[ModelStatistics]) -> Iterator[Metric]:
    for name, text, value in _OURS:
        family = CounterMetricFamily(name, text, labels=_LABELS)
        for s in models:
            family.add_metric((s.name, s.version), value(s))
        yield family
    refused = CounterMetricFamily(
        "forwardpass_requests_refused_total", "Requests not taken into the queue, by cause", labels=(*_LABELS, "cause")
    )
    for s in models:
        for cause, count in s.refused.items():
            refused.add_metric((s.name, s.version, cause.value), count)
    yield refused


def _buckets(histogram: Histogram, unit: float) -> list[tuple[str, float]]:
    """Prometheus' buckets are cumulative, with their upper bounds as text."""
    bounds = [*(f"{bound * unit:g}" for bound in histogram.bounds), "+Inf"]
    return list(zip(bounds, accumulate(histogram.counts), strict=True))


def _counter(name: str, text: str, labels: tuple[str, ...], values: Iterable[tuple[tuple[str, ...], float]]) -> Metric:
    # CounterMetricFamily would append _total to the names, and Triton's have none.
    metric = Metric(name, text, "counter")
    for labelvalues, value in values:
        metric.add_sample(name, dict(zip(labels, labelvalues, strict=True)), value)
    return metric


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
        for name, text, value in (
            ("forwardpass_grpc_connections", "Open gRPC connections", load.open_connections()),
            ("forwardpass_grpc_streams", "Calls under way on them", load.open_streams()),
            ("forwardpass_grpc_held_bytes", "Bytes of unfinished requests and of answers that wait", load.held_bytes()),
        ):
            yield GaugeMetricFamily(name, text, value=value)
        refused = CounterMetricFamily(
            "forwardpass_grpc_streams_refused_total", "Calls not served as they were asked, by cause", labels=("cause",)
        )
        for cause, count in list(load.refused.items()):
            refused.add_metric((cause,), count)
        yield refused


class _Listeners(Collector):
    def __init__(self, closed: Mapping[str, Mapping[str, int]]) -> None:
        self._closed = closed

    def collect(self) -> Iterator[Metric]:
        family = CounterMetricFamily(
            "forwardpass_connections_closed_total",
            "Connections turned away, or ended for a fault of their peer, by cause",
            labels=("listener", "cause"),
        )
        for listener, causes in self._closed.items():
            for cause, count in list(causes.items()):
                family.add_metric((listener, cause), count)
        yield family


class Metrics:
    """The registry of one server; `expose` is what a scrape gets."""

    def __init__(
        self,
        dataplane: Counted,
        closed: Mapping[str, Mapping[str, int]],
        grpc: GrpcLoad | None = None,
        cache: Callable[[], CacheCounts | None] = lambda: None,
        more: Sequence[Collector] = (),
    ) -> None:
        """`closed` counts, by listener and cause, the connections that a listener ended for a fault of their peer;
        `grpc` is our own transport, None where another serves gRPC; `cache` tells of the response cache, if there is
        one; `more`: of who runs the models."""
        self._registry = CollectorRegistry()
        self._registry.register(_Models(dataplane))
        self._registry.register(_Listeners(closed))
        self._registry.register(CacheMetrics(cache))
        if grpc is not None:
            self._registry.register(_Grpc(grpc))
        for collector in more:
            self._registry.register(collector)
        ProcessCollector(registry=self._registry)
        PlatformCollector(registry=self._registry)

    def expose(self) -> bytes:
        """The text format 0.0.4. The library writes TYPE and HELP of a counter with _total behind its name,
        whatever its samples are called, so these lines are set right for Triton's names."""
        text = generate_latest(self._registry)
        for name in (*(name for name, _, _ in _COUNTERS), "nv_inference_request_failure"):
            text = text.replace(f" {name}_total ".encode(), f" {name} ".encode())
        return text
