"""Every metric by its name: type, unit, labels, meaning. What is exposed and the page METRICS.md are made of it.

Names and labels are Triton's where they mean the same (``nv_*``); ours are ``forwardpass_*``. A label's values are
bounded by what the server is told to serve or by a list of ours, never by what clients send.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

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
        "forwardpass_stage_duration_seconds",
        "histogram",
        "seconds",
        (*MODEL, "stage"),
        "Time of an answered request by stage: decode, preprocess, queue, compute, postprocess, encode, loop (a "
        "hand-off between threads, or the event loop at something else); of a sample, about 50 requests a second that "
        "stand for all, without those of streams",
    ),
    Definition(
        "forwardpass_queue_wait_seconds_total",
        "counter",
        "seconds",
        (*MODEL, "reason"),
        "Time spent waiting, of the same sample, by what a request waited for most of its time (server/explain.py); "
        "none: for the first pass that could be planned, or for a thread that preprocesses",
    ),
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

_MODELS = (
    Definition("forwardpass_engine_instances", "gauge", "instances", MODEL, "Instances of a version that live"),
    Definition(
        "forwardpass_engine_busy_seconds_total",
        "counter",
        "seconds",
        MODEL,
        "Time in which instances had a pass under way, of all together; its rate over the instances is their use",
    ),
    Definition(
        "forwardpass_model_load_seconds",
        "gauge",
        "seconds",
        (*MODEL, "phase"),
        "Time that the load of a version in service took, by phase: files, engine, golden, warmup",
    ),
    Definition(
        "forwardpass_model_parity",
        "gauge",
        "state",
        MODEL,
        "1: a version gave its golden outputs when it was loaded; 0: its last load failed, for it did not. Without "
        "golden files no sample",
    ),
    Definition(
        "forwardpass_model_loads_total",
        "counter",
        "loads",
        ("model", "outcome"),
        "Loads by outcome: loaded, failed; not of names that no repository has",
    ),
    Definition(
        "forwardpass_model_swaps_total",
        "counter",
        "loads",
        ("model",),
        "Loads that took the place of what served, which was drained",
    ),
)

_MACHINE = (
    Definition(
        "forwardpass_resident_memory_bytes",
        "gauge",
        "bytes",
        ("process",),
        "Memory that a process of the server holds: server, or with --workers engine, front-0, front-1 and so on",
    ),
    Definition("forwardpass_cpu_seconds_total", "counter", "seconds", ("process",), "Time that its threads ran"),
    Definition(
        "forwardpass_event_loop_lag_seconds",
        "histogram",
        "seconds",
        ("process",),
        "How late its event loop came to a timer, four times a second",
    ),
    Definition(
        "forwardpass_energy_joules_total",
        "counter",
        "joules",
        ("zone",),
        "Energy that the machine used since the server started, by zone of RAPL: package-0, package-0/dram; no sample "
        "where it is not told",
    ),
    Definition(
        "forwardpass_request_energy_joules_total",
        "counter",
        "joules",
        MODEL,
        "The machine's energy (RAPL, GPUs) shared out by the time of passes; over the requests it is a request's "
        "energy, with what else the machine did meanwhile; no sample where it is not told",
    ),
    Definition("nv_gpu_utilization", "gauge", "ratio", ("gpu_uuid",), "Part of the time in which a GPU was at work"),
    Definition("nv_gpu_memory_total_bytes", "gauge", "bytes", ("gpu_uuid",), "Memory of a GPU"),
    Definition("nv_gpu_memory_used_bytes", "gauge", "bytes", ("gpu_uuid",), "How much of it is in use"),
    Definition("nv_gpu_power_usage", "gauge", "watts", ("gpu_uuid",), "Power that a GPU draws"),
    Definition("nv_gpu_power_limit", "gauge", "watts", ("gpu_uuid",), "Power that it may draw"),
    Definition(
        "nv_energy_consumption", "counter", "joules", ("gpu_uuid",), "Energy that it used since its driver started"
    ),
)
"""The names of GPUs' metrics are Triton's."""

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

_TEXTS = (
    Definition(
        "forwardpass_text_first_token_seconds",
        "histogram",
        "seconds",
        MODEL,
        "Time from arrival to the first token (models that write text, as the next seven)",
    ),
    Definition(
        "forwardpass_text_between_tokens_seconds",
        "histogram",
        "seconds",
        MODEL,
        "Time from a token of a text to its next",
    ),
    Definition("forwardpass_text_prompt_tokens_total", "counter", "tokens", MODEL, "Tokens of prompts taken in"),
    Definition("forwardpass_text_tokens_total", "counter", "tokens", MODEL, "Tokens written"),
    Definition(
        "forwardpass_text_running",
        "gauge",
        "texts",
        MODEL,
        "Texts that are being written; who waits is in nv_inference_pending_request_count",
    ),
    Definition("forwardpass_text_held", "gauge", "texts", MODEL, "Of these, which wait for their readers"),
    Definition(
        "forwardpass_text_kv_reserved_ratio",
        "gauge",
        "ratio",
        MODEL,
        "Tokens that those may come to, over the kv_cache_tokens of the model's config",
    ),
    Definition(
        "forwardpass_text_finished_total",
        "counter",
        "texts",
        (*MODEL, "reason"),
        "Texts that are over, by reason: stop, length, cancelled, expired, failed",
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
    Definition("forwardpass_http_connections", "gauge", "connections", (), "Open REST connections"),
    Definition(
        "forwardpass_connections_closed_total",
        "counter",
        "connections",
        ("listener", "cause"),
        "Connections turned away, or ended for what their peer did or did not, by cause (server/transport/README.md)",
    ),
    Definition(
        "forwardpass_tls_certificate_not_after_timestamp_seconds",
        "gauge",
        "seconds",
        ("listener",),
        "Until when the listener's certificate and its chain are valid, in seconds since 1970, where it speaks TLS",
    ),
    Definition("forwardpass_ready", "gauge", "state", (), "1 when the server is ready"),
)

_CANDIDATE = (*MODEL, "kind")
_ROLLOUTS = (
    Definition(
        "forwardpass_rollout_asked",
        "gauge",
        "state",
        _CANDIDATE,
        "1 while a candidate gets requests, 0 once it was rolled back, by kind: canary, shadow (server/rollout.md)",
    ),
    Definition(
        "forwardpass_rollout_requests_total",
        "counter",
        "requests",
        (*_CANDIDATE, "outcome"),
        "Requests of a candidate since its model was loaded, by outcome: answered, failed; of a shadow also agreed, "
        "differed, skipped (it had enough)",
    ),
    Definition(
        "forwardpass_rollout_rolled_back",
        "gauge",
        "state",
        (*_CANDIDATE, "cause"),
        "1 for a candidate that was rolled back, by cause: errors, latency, disagreement",
    ),
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
    definition.name: definition
    for definition in (
        *(*_TRITONS, *_REQUESTS, *_PASSES, *_MODELS, *_SEQUENCES, *_TEXTS),
        *(*_LISTENERS, *_MACHINE, *_ROLLOUTS, *_BEHIND),
    )
}
"""By name, in the order in which the page tells them."""
