"""Every metric by its name: type, unit, labels, meaning. What is exposed and the page METRICS.md are made of it.

Names and labels are Triton's where they mean the same (``nv_*``); ours are ``forwardpass_*``. A label's values are
bounded by what the server is told to serve or by a list of ours, never by what clients send.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from typing import TYPE_CHECKING, Literal, NamedTuple

from prometheus_client.core import Metric

if TYPE_CHECKING:
    from server.scheduler.statistics import Histogram

Kind = Literal["counter", "gauge", "histogram"]

MODEL = ("model", "version")


class Definition(NamedTuple):
    name: str
    kind: Kind
    unit: str
    """What one is of: a unit, or the word for what is counted; `ratio` is 0 to 1 of a whole, `state` 1 or 0."""
    labels: tuple[str, ...]
    help: str

    @property
    def base(self) -> str:
        """The name of its family, which has no _total."""
        return self.name.removesuffix("_total")

    @property
    def told_unit(self) -> str:
        """As OpenMetrics has it: a unit that the name ends with, else none."""
        return self.unit if self.base.endswith(f"_{self.unit}") else ""


_TRITONS = (
    Definition("nv_inference_request_success", "counter", "requests", MODEL, "Requests answered"),
    Definition(
        "nv_inference_request_failure",
        "counter",
        "requests",
        (*MODEL, "reason"),
        "Requests not answered, by reason: REJECTED (queue full, deadline), CANCELED, BACKEND, OTHER",
    ),
    Definition("nv_inference_count", "counter", "rows", MODEL, "Rows executed"),
    Definition("nv_inference_exec_count", "counter", "passes", MODEL, "Batches executed"),
    Definition(
        "nv_inference_request_duration_us", "counter", "microseconds", MODEL, "Time from arrival to answer, in all"
    ),
    Definition("nv_inference_queue_duration_us", "counter", "microseconds", MODEL, "Time spent waiting, in all"),
    Definition(
        "nv_inference_compute_input_duration_us",
        "counter",
        "microseconds",
        MODEL,
        "Time of merging requests into batches, in all",
    ),
    Definition(
        "nv_inference_compute_infer_duration_us", "counter", "microseconds", MODEL, "Time in the engine, in all"
    ),
    Definition(
        "nv_inference_compute_output_duration_us",
        "counter",
        "microseconds",
        MODEL,
        "Time of splitting batches into answers, in all",
    ),
    Definition("nv_inference_pending_request_count", "gauge", "requests", MODEL, "Requests that wait"),
    Definition(
        "nv_cache_num_hits_per_model",
        "counter",
        "requests",
        MODEL,
        "Requests answered from the response cache; they are in nv_inference_request_success, and in neither count of "
        "what was executed",
    ),
    Definition(
        "nv_cache_num_misses_per_model",
        "counter",
        "requests",
        MODEL,
        "Requests that were looked up there, executed and answered",
    ),
    Definition(
        "nv_cache_hit_duration_per_model", "counter", "microseconds", MODEL, "Time of looking up those that were found"
    ),
    Definition(
        "nv_cache_miss_duration_per_model",
        "counter",
        "microseconds",
        MODEL,
        "Time of looking up the others, and of keeping their answers",
    ),
    Definition(
        "nv_cache_util",
        "gauge",
        "ratio",
        (),
        "Bytes of the response cache in use over --cache-size-bytes; without a cache no sample, as of the next seven",
    ),
    Definition("nv_cache_num_entries", "gauge", "answers", (), "Answers in the response cache"),
    Definition("nv_cache_num_lookups", "gauge", "requests", (), "Requests that were looked up, of all models"),
    Definition("nv_cache_num_hits", "gauge", "requests", (), "Those that were found"),
    Definition("nv_cache_num_misses", "gauge", "requests", (), "Those that were not found"),
    Definition("nv_cache_num_evictions", "gauge", "answers", (), "Answers that made room for others"),
    Definition("nv_cache_lookup_duration", "gauge", "microseconds", (), "Time of looking up, in all"),
    Definition("nv_cache_insertion_duration", "gauge", "microseconds", (), "Time of keeping answers, in all"),
)
"""Source: Triton, docs/user_guide/metrics.md; of the cache, what a Triton 2.51 with --cache-config local exposes."""

_REQUESTS = (
    Definition("forwardpass_requests_admitted_total", "counter", "requests", MODEL, "Requests taken into the queue"),
    Definition(
        "forwardpass_requests_refused_total",
        "counter",
        "requests",
        (*MODEL, "cause"),
        "Requests not taken into the queue because of other work, by cause: queue_full, overload (the answer would "
        "come after the deadline)",
    ),
    Definition(
        "forwardpass_requests_expired_total",
        "counter",
        "requests",
        MODEL,
        "Requests whose deadline passed before a pass was begun for them; none is executed",
    ),
    Definition("forwardpass_requests_cancelled_total", "counter", "requests", MODEL, "Requests whose caller went away"),
    Definition(
        "forwardpass_requests_late_total", "counter", "requests", MODEL, "Requests answered after their deadline"
    ),
    Definition("forwardpass_request_duration_seconds", "histogram", "seconds", MODEL, "Time from arrival to answer"),
    Definition("forwardpass_queue_duration_seconds", "histogram", "seconds", MODEL, "Time that a request waited"),
    Definition(
        "forwardpass_turn_wait_seconds_total",
        "counter",
        "seconds",
        MODEL,
        "Time in which a batch and an instance were ready, and other models' passes had the cores",
    ),
)

_PASSES = (
    Definition("forwardpass_batch_rows", "histogram", "rows", MODEL, "Rows of the batches executed"),
    Definition(
        "forwardpass_pass_predicted_seconds_total",
        "counter",
        "seconds",
        MODEL,
        "Time that passes were expected to take, of those whose cost was known",
    ),
    Definition(
        "forwardpass_pass_actual_seconds_total",
        "counter",
        "seconds",
        MODEL,
        "Time that the same passes took, from begin to end",
    ),
    Definition(
        "forwardpass_input_elements_total",
        "counter",
        "elements",
        MODEL,
        "Elements of the inputs that have a length, padding included (models with length_buckets)",
    ),
    Definition(
        "forwardpass_padding_elements_total",
        "counter",
        "elements",
        MODEL,
        "How many of these were padding; over the one above it is the share of padding",
    ),
    Definition(
        "forwardpass_saturation",
        "gauge",
        "ratio",
        MODEL,
        "Work that arrived in the last five seconds, refused work too, over the work that can be done within the "
        "objective; 1: just as much (server/scheduler/README.md)",
    ),
    Definition(
        "forwardpass_desired_replicas",
        "gauge",
        "replicas",
        (),
        "Replicas like this one that the work which arrives here takes, not rounded, at scaling.target_saturation",
    ),
)

_SEQUENCES = (
    Definition(
        "forwardpass_sequences_active",
        "gauge",
        "sequences",
        MODEL,
        "Sequences that hold a slot (models with sequence_batching, as the next three)",
    ),
    Definition("forwardpass_sequences_backlog", "gauge", "sequences", MODEL, "Sequences that wait for a slot"),
    Definition(
        "forwardpass_sequences_started_total", "counter", "sequences", MODEL, "Sequences that were given a slot"
    ),
    Definition(
        "forwardpass_sequences_aborted_total",
        "counter",
        "sequences",
        (*MODEL, "cause"),
        "Sequences that were over before their ends, by cause: idle, cancelled, lost (a request of it was not "
        "answered), superseded (it began anew in a newer version)",
    ),
)

_LISTENERS = (
    Definition(
        "forwardpass_grpc_connections",
        "gauge",
        "connections",
        (),
        "Open gRPC connections (of our own transport, as the next three)",
    ),
    Definition("forwardpass_grpc_streams", "gauge", "calls", (), "Calls under way on them"),
    Definition(
        "forwardpass_grpc_held_bytes",
        "gauge",
        "bytes",
        (),
        "Bytes of requests that are not whole yet, and of answers that wait for their clients",
    ),
    Definition(
        "forwardpass_grpc_streams_refused_total",
        "counter",
        "calls",
        ("cause",),
        "Calls that were not served as they were asked, by cause (server/transport/http2/README.md)",
    ),
    Definition(
        "forwardpass_connections_closed_total",
        "counter",
        "connections",
        ("listener", "cause"),
        "Connections turned away, or ended for a fault of their peer, by cause (server/transport/README.md)",
    ),
    Definition("forwardpass_ready", "gauge", "state", (), "1 when the server is ready"),
)

_BEHIND = (
    Definition(
        "forwardpass_triton_up",
        "gauge",
        "state",
        ("triton",),
        "1 when requests are sent to that Triton (with --engine triton, by its address, as the next four)",
    ),
    Definition("forwardpass_triton_ejections_total", "counter", "times", ("triton",), "Times that it was ejected"),
    Definition(
        "forwardpass_triton_window",
        "gauge",
        "rows",
        (*MODEL, "triton"),
        "Most rows of a version in flight at it; requests where Triton does not merge them",
    ),
    Definition("forwardpass_triton_in_flight", "gauge", "rows", (*MODEL, "triton"), "Rows in flight at it"),
    Definition(
        "forwardpass_triton_retries_total",
        "counter",
        "requests",
        MODEL,
        "Requests of a version that were sent once more, because they had not been executed",
    ),
)

CATALOG = {
    definition.name: definition for definition in (*_TRITONS, *_REQUESTS, *_PASSES, *_SEQUENCES, *_LISTENERS, *_BEHIND)
}
"""By name, in the order in which the page tells them."""


class Family:
    """One metric of the catalog with its samples, to be handed to a registry as `metric`."""

    def __init__(self, name: str) -> None:
        """Raises KeyError for a name that is not in the catalog."""
        self._definition = definition = CATALOG[name]
        self.metric = Metric(definition.base, definition.help, definition.kind, definition.told_unit)

    def add(self, labels: Sequence[str], value: float) -> None:
        """One sample, with the values of the labels in the catalog's order."""
        self.metric.add_sample(self._definition.name, self._labels(labels), value)

    def add_histogram(self, labels: Sequence[str], histogram: Histogram, unit: float) -> None:
        """`unit`: what one of the histogram's is in the metric's own."""
        name, told = self._definition.name, self._labels(labels)
        bounds = [*(f"{bound * unit:g}" for bound in histogram.bounds), "+Inf"]
        # Prometheus' buckets are cumulative, with their upper bounds as text.
        total = 0
        for bound, total in zip(bounds, accumulate(histogram.counts), strict=True):
            self.metric.add_sample(f"{name}_bucket", {**told, "le": bound}, total)
        self.metric.add_sample(f"{name}_count", told, total)
        self.metric.add_sample(f"{name}_sum", told, histogram.sum * unit)

    def _labels(self, values: Sequence[str]) -> dict[str, str]:
        return dict(zip(self._definition.labels, values, strict=True))


def gauge(name: str, value: float | None) -> Metric:
    """A gauge without labels; None: it has no sample."""
    family = Family(name)
    if value is not None:
        family.add((), value)
    return family.metric
