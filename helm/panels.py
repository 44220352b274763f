"""What the dashboards show. A panel is an entry here: what it is called, how it is drawn, in which unit, what it asks
Prometheus, each of the jobs and models that are chosen above it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

OURS = 'job=~"$job",model=~"$model"'
JOB = 'job=~"$job"'
TRITONS = 'job=~"$triton"'
RATE = "[$__rate_interval]"


class Ask(NamedTuple):
    expr: str
    legend: str = ""


class Panel(NamedTuple):
    title: str
    unit: str
    """As Grafana has it: reqps, s, percentunit ..."""
    asks: Sequence[Ask]
    says: str
    kind: str = "lines"
    """lines, stacked, heatmap, number, table."""
    needs: str = ""
    """What a machine or its models must have for the panel to show anything."""


class Board(NamedTuple):
    uid: str
    title: str
    panels: Sequence[Panel]


def quantile(q: float, metric: str, by: str = "", labels: str = OURS) -> str:
    kept = f"le, {by}" if by else "le"
    return f"histogram_quantile({q}, sum by ({kept}) (rate({metric}_bucket{{{labels}}}{RATE})))"


def rate(metric: str, by: str = "", labels: str = OURS) -> str:
    grouped = f"sum by ({by})" if by else "sum"
    return f"{grouped} (rate({metric}{{{labels}}}{RATE}))"


SUCCESS, FAILURE = "nv_inference_request_success", "nv_inference_request_failure"
NOT_LEFT = f'{OURS},reason!="CANCELED"'
TRITONS_REQUESTS = rate(SUCCESS, labels=TRITONS)
FAILED = rate(FAILURE, "model", NOT_LEFT)
LATE, ROWS, MEMORY = "forwardpass_requests_late_total", "forwardpass_batch_rows", "forwardpass_resident_memory_bytes"
HITS, MISSES = "nv_cache_num_hits_per_model", "nv_cache_num_misses_per_model"
DURATION, STAGE = "forwardpass_request_duration_seconds", "forwardpass_stage_duration_seconds"
FIRST, BETWEEN = "forwardpass_text_first_token_seconds", "forwardpass_text_between_tokens_seconds"
# What has an objective: of a text its first token, of all others the answer.
IN_TIME = " or ".join(f'rate({metric}_bucket{{{OURS},le="$objective"}}{RATE})' for metric in (FIRST, DURATION))
ANSWERED = " or ".join(f"rate({metric}_count{{{OURS}}}{RATE})" for metric in (FIRST, DURATION))


def burn(window: str) -> tuple[str, str]:
    """How many times the pace that uses up the budget just in time: of failures, and of late answers."""
    failed = f"sum(rate({FAILURE}{{{NOT_LEFT}}}[{window}]))"
    good = f"sum(rate({SUCCESS}{{{OURS}}}[{window}]))"
    in_time, answered = f"sum({IN_TIME})".replace(RATE, f"[{window}]"), f"sum({ANSWERED})".replace(RATE, f"[{window}]")
    return f"{failed} / ({failed} + {good}) / (1 - 0.999)", f"(1 - {in_time} / {answered}) / (1 - 0.99)"


(FAILED_SHORT, LATE_SHORT), (FAILED_LONG, LATE_LONG) = burn("5m"), burn("1h")

SLO = Board(
    "forwardpass-slo",
    "Forwardpass: SLO",
    (
        Panel(
            "Goodput",
            "reqps",
            (
                Ask(f"{rate(SUCCESS, 'model')} - {rate(LATE, 'model')}", "{{model}} in time"),
                Ask(rate(SUCCESS), "answered"),
            ),
            "Answers within their deadlines, a second; above them all answers.",
        ),
        Panel(
            "Availability",
            "percentunit",
            (Ask(f"1 - {FAILED} / ({FAILED} + {rate(SUCCESS, 'model')})", "{{model}}"),),
            "Requests that were answered, of those whose callers stayed.",
        ),
        Panel(
            "Latency",
            "s",
            (
                *(Ask(quantile(q, DURATION), f"p{q * 100:g}") for q in (0.5, 0.95, 0.99)),
                Ask("vector($objective)", "objective"),
            ),
            "From a request's arrival to its answer.",
        ),
        Panel(
            "Within the objective",
            "percentunit",
            (Ask(f"sum by (model) ({IN_TIME}) / sum by (model) ({ANSWERED})", "{{model}}"),),
            "Answers, of texts their first tokens, that came within the objective, a bound of the histogram's buckets.",
        ),
        Panel(
            "Error budget, pace of use",
            "none",
            (
                Ask(FAILED_SHORT, "failures, 5 min"),
                Ask(FAILED_LONG, "failures, 1 h"),
                Ask(LATE_SHORT, "late, 5 min"),
                Ask(LATE_LONG, "late, 1 h"),
            ),
            "1 uses up the budget of 30 days in 30 days; at 14.4 over an hour somebody is woken.",
        ),
        Panel(
            "Not answered, by cause",
            "reqps",
            (
                Ask(rate("forwardpass_requests_refused_total", "cause"), "refused: {{cause}}"),
                Ask(rate("forwardpass_requests_expired_total"), "expired"),
                Ask(rate("forwardpass_requests_cancelled_total"), "cancelled"),
                Ask(rate(FAILURE, "reason", f'{OURS},reason=~"BACKEND|OTHER"'), "failed: {{reason}}"),
            ),
            "Refused: not taken in because of other work. Expired: the deadline passed before a pass began.",
            "stacked",
        ),
    ),
)

TIME = Board(
    "forwardpass-time",
    "Forwardpass: where the time goes",
    (
        Panel(
            "A request's time by stage",
            "s",
            (
                Ask(
                    f"{rate(f'{STAGE}_sum', 'stage')} / on () group_left () "
                    + rate(f"{STAGE}_count", labels=f'{OURS},stage="encode"'),
                    "{{stage}}",
                ),
            ),
            "The mean of all requests, of a sample; the stages sum to the whole.",
            "stacked",
        ),
        Panel(
            "Stages, 99th percentile",
            "s",
            (Ask(quantile(0.99, STAGE, "stage"), "{{stage}}"),),
            "Each stage by itself: these do not sum.",
        ),
        Panel(
            "Time in the queue",
            "s",
            (Ask(f"sum by (le) (increase(forwardpass_queue_duration_seconds_bucket{{{OURS}}}{RATE}))", "{{le}}"),),
            "How many requests waited for how long.",
            "heatmap",
        ),
        Panel(
            "What requests wait for",
            "percentunit",
            (Ask(rate("forwardpass_queue_wait_seconds_total", "reason"), "{{reason}}"),),
            "Requests that wait at a time, by what keeps them most.",
            "stacked",
        ),
        Panel(
            "Rows of a batch",
            "none",
            (
                Ask(f"{rate(f'{ROWS}_sum', 'model')} / {rate(f'{ROWS}_count', 'model')}", "{{model}}"),
                Ask(quantile(0.95, ROWS, "model"), "{{model}} p95"),
            ),
            "The mean of the passes, and the larger ones.",
        ),
        Panel(
            "Padding",
            "percentunit",
            (
                Ask(
                    f"{rate('forwardpass_padding_elements_total', 'model')} / "
                    f"({rate('forwardpass_input_elements_total', 'model')} > 0)",
                    "{{model}}",
                ),
            ),
            "The part of what is computed that is padding, of models with length buckets.",
            needs="a model with length_buckets",
        ),
        Panel(
            "Passes, actual over predicted",
            "none",
            (
                Ask(
                    f"{rate('forwardpass_pass_actual_seconds_total', 'model')} / "
                    f"{rate('forwardpass_pass_predicted_seconds_total', 'model')}",
                    "{{model}}",
                ),
            ),
            "Above 1 passes take longer than foreseen: something else is on their cores.",
        ),
        Panel(
            "Ready, and other models' turn",
            "percentunit",
            (Ask(rate("forwardpass_turn_wait_seconds_total", "model"), "{{model}}"),),
            "Time in which a batch and an instance were ready, and other models' passes had the cores.",
        ),
        Panel(
            "Triton: a request's time",
            "s",
            tuple(
                Ask(
                    f"{rate(f'nv_inference_{part}_duration_us', labels=TRITONS)} / 1e6 / {TRITONS_REQUESTS}",
                    legend,
                )
                for part, legend in (
                    ("queue", "queue"),
                    ("compute_input", "input"),
                    ("compute_infer", "infer"),
                    ("compute_output", "output"),
                )
            ),
            "Of the Tritons that run the models, by their own count.",
            "stacked",
            "a Triton",
        ),
        Panel(
            "Triton: requests and passes",
            "reqps",
            (
                Ask(rate(SUCCESS, "model", TRITONS), "{{model}} requests"),
                Ask(rate("nv_inference_exec_count", "model", TRITONS), "{{model}} passes"),
            ),
            "Fewer passes than requests: Triton merges them.",
            needs="a Triton",
        ),
    ),
)

CAPACITY = Board(
    "forwardpass-capacity",
    "Forwardpass: capacity and scaling",
    (
        Panel(
            "Saturation",
            "percentunit",
            (Ask(f"max by (model) (forwardpass_saturation{{{OURS}}})", "{{model}}"),),
            "Work that arrived lately, refused work too, over what the instances of the fullest replica can do.",
        ),
        Panel(
            "Replicas",
            "none",
            (
                Ask(f"sum(forwardpass_desired_replicas{{{JOB}}})", "wanted"),
                Ask(f"sum(forwardpass_ready{{{JOB}}})", "ready"),
                Ask(f"count(forwardpass_ready{{{JOB}}})", "there"),
            ),
            "What the work asks for, and what is there.",
        ),
        Panel(
            "Engine use",
            "percentunit",
            (
                Ask(
                    f"{rate('forwardpass_engine_busy_seconds_total', 'model')} / "
                    f"sum by (model) (forwardpass_engine_instances{{{OURS}}})",
                    "{{model}}",
                ),
            ),
            "The part of their time in which instances have a pass under way.",
        ),
        Panel(
            "Waiting requests",
            "none",
            (Ask(f"sum by (model) (nv_inference_pending_request_count{{{OURS}}})", "{{model}}"),),
            "In the queues of all replicas.",
        ),
        Panel(
            "Cold start by phase",
            "s",
            (Ask(f"max by (model, phase) (forwardpass_model_load_seconds{{{OURS}}})", "{{model}} {{phase}}"),),
            "How long the last load of each model took: files and hashes, the engine, golden outputs, warm-up.",
            "stacked",
        ),
        Panel(
            "Connections and calls",
            "none",
            (
                Ask(f"sum(forwardpass_grpc_connections{{{JOB}}})", "gRPC connections"),
                Ask(f"sum(forwardpass_grpc_streams{{{JOB}}})", "gRPC calls under way"),
                Ask(f"sum(forwardpass_http_connections{{{JOB}}})", "REST connections"),
            ),
            "Open now.",
        ),
        Panel(
            "Turned away",
            "cps",
            (
                Ask(rate("forwardpass_connections_closed_total", "listener, cause", JOB), "{{listener}}: {{cause}}"),
                Ask(rate("forwardpass_grpc_streams_refused_total", "cause", JOB), "calls: {{cause}}"),
            ),
            "Connections and calls that were not served as they were asked, by cause; nothing where there were none.",
            needs="a client that misbehaves",
        ),
        Panel(
            "Tritons: rows in flight",
            "none",
            (
                Ask(f"sum by (triton) (forwardpass_triton_in_flight{{{OURS}}})", "{{triton}} in flight"),
                Ask(f"sum by (triton) (forwardpass_triton_window{{{OURS}}})", "{{triton}} window"),
                Ask(f"sum(forwardpass_triton_up{{{JOB}}})", "Tritons up"),
            ),
            "How much each Triton is given at a time, and how much it may be.",
            needs="a Triton",
        ),
    ),
)

RESOURCES = Board(
    "forwardpass-resources",
    "Forwardpass: resources and energy",
    (
        Panel(
            "Memory",
            "bytes",
            (Ask(f"sum by (instance, process) ({MEMORY}{{{JOB}}})", "{{instance}} {{process}}"),),
            "What the processes of the servers hold.",
        ),
        Panel(
            "Processor time",
            "percentunit",
            (Ask(rate("forwardpass_cpu_seconds_total", "instance, process", JOB), "{{instance}} {{process}}"),),
            "1 is one core.",
        ),
        Panel(
            "Event loop, lateness",
            "s",
            tuple(
                Ask(quantile(q, "forwardpass_event_loop_lag_seconds", "process", JOB), f"{{{{process}}}} p{q * 100:g}")
                for q in (0.5, 0.99)
            ),
            "How late a loop came to a timer: what blocks it blocks every request.",
        ),
        Panel(
            "Power of the processors",
            "watt",
            (Ask(rate("forwardpass_energy_joules_total", "instance, zone", JOB), "{{instance}} {{zone}}"),),
            "By RAPL; nothing where the machine does not tell it.",
            needs="RAPL",
        ),
        Panel(
            "Energy of a request",
            "joule",
            (
                Ask(
                    f"{rate('forwardpass_request_energy_joules_total', 'model')} / ({rate(SUCCESS, 'model')} > 0)",
                    "{{model}}",
                ),
            ),
            "The machine's energy shared out by the time of passes, over the requests answered.",
            needs="RAPL",
        ),
        Panel(
            "GPU use",
            "percentunit",
            (Ask("avg by (gpu_uuid) (nv_gpu_utilization)", "{{gpu_uuid}}"),),
            "Of ours and of Tritons' GPUs.",
            needs="a GPU",
        ),
        Panel(
            "GPU memory",
            "bytes",
            (
                Ask("max by (gpu_uuid) (nv_gpu_memory_used_bytes)", "{{gpu_uuid}} used"),
                Ask("max by (gpu_uuid) (nv_gpu_memory_total_bytes)", "{{gpu_uuid}} all"),
            ),
            "In use, and there.",
            needs="a GPU",
        ),
        Panel(
            "GPU power",
            "watt",
            (
                Ask("max by (gpu_uuid) (nv_gpu_power_usage)", "{{gpu_uuid}}"),
                Ask("max by (gpu_uuid) (nv_gpu_power_limit)", "{{gpu_uuid}} limit"),
            ),
            "What they draw.",
            needs="a GPU",
        ),
    ),
)

MODELS = Board(
    "forwardpass-models",
    "Forwardpass: models",
    (
        Panel(
            "In service",
            "none",
            (Ask(f"max by (model, version) (forwardpass_engine_instances{{{OURS}}})"),),
            "Versions, with their instances.",
            "table",
        ),
        Panel(
            "Certificate",
            "none",
            (Ask(f"min by (model, version) (forwardpass_model_parity{{{OURS}}})", "{{model}}/{{version}}"),),
            "1: it gave its golden outputs when it was loaded, here. 0: its last load failed for it did not.",
            "number",
        ),
        Panel(
            "Requests by version",
            "reqps",
            (Ask(rate(SUCCESS, "model, version"), "{{model}}/{{version}}"),),
            "Answered.",
            "stacked",
        ),
        Panel(
            "Failures by reason",
            "reqps",
            (Ask(rate(FAILURE, "model, reason"), "{{model}}: {{reason}}"),),
            "REJECTED: full, or too late. BACKEND: the engine. CANCELED: the caller left.",
        ),
        Panel(
            "Latency by version, 99th percentile",
            "s",
            (Ask(quantile(0.99, DURATION, "model, version"), "{{model}}/{{version}}"),),
            "A new version beside the one before it.",
        ),
        Panel(
            "Rows executed",
            "rps",
            (Ask(rate("nv_inference_count", "model"), "{{model}}"),),
            "Rows, not requests.",
        ),
        Panel(
            "Load time",
            "s",
            (Ask(f"sum by (model, version) (forwardpass_model_load_seconds{{{OURS}}})", "{{model}}/{{version}}"),),
            "Of the last load, all phases.",
        ),
        Panel(
            "Loads and swaps",
            "none",
            (
                Ask(f"sum by (model, outcome) (forwardpass_model_loads_total{{{OURS}}})", "{{model}} {{outcome}}"),
                Ask(f"sum by (model) (forwardpass_model_swaps_total{{{OURS}}})", "{{model}} swaps"),
            ),
            "Since the servers started.",
        ),
        Panel(
            "Response cache",
            "percentunit",
            (
                Ask(f"max(nv_cache_util{{{JOB}}})", "full"),
                Ask(
                    f"{rate(HITS, 'model')} / ({rate(HITS, 'model')} + {rate(MISSES, 'model')} > 0)",
                    "{{model}} found",
                ),
            ),
            "How full it is, and the part of the requests that it answers.",
            needs="a model with response_cache",
        ),
        Panel(
            "Sequences",
            "none",
            (
                Ask(f"sum by (model) (forwardpass_sequences_active{{{OURS}}})", "{{model}} active"),
                Ask(f"sum by (model) (forwardpass_sequences_backlog{{{OURS}}})", "{{model}} waiting"),
            ),
            "Of models with sequence_batching.",
            needs="a model with sequence_batching",
        ),
    ),
)

RUNNING = "forwardpass_text_running"
OF_TEXTS = f"and on (job, instance, model, version) {RUNNING}"

TEXTS = Board(
    "forwardpass-texts",
    "Forwardpass: text generation",
    (
        Panel(
            "Time to the first token",
            "s",
            tuple(Ask(quantile(q, FIRST, "model"), f"{{{{model}}}} p{q * 100:g}") for q in (0.5, 0.95, 0.99)),
            "From a request's arrival: its wait for a row and room in the cache, and its prompt.",
        ),
        Panel(
            "Time between tokens",
            "s",
            tuple(Ask(quantile(q, BETWEEN, "model"), f"{{{{model}}}} p{q * 100:g}") for q in (0.5, 0.99)),
            "What a reader sees as the pace of the text.",
        ),
        Panel(
            "Tokens",
            "cps",
            (
                Ask(rate("forwardpass_text_prompt_tokens_total", "model"), "{{model}} of prompts"),
                Ask(rate("forwardpass_text_tokens_total", "model"), "{{model}} written"),
            ),
            "Taken in and written, a second, by all replicas.",
        ),
        Panel(
            "Texts under way",
            "none",
            (
                Ask(f"sum by (model) ({RUNNING}{{{OURS}}})", "{{model}} running"),
                Ask(
                    f"sum by (model) (nv_inference_pending_request_count{{{OURS}}} {OF_TEXTS})",
                    "{{model}} waiting",
                ),
                Ask(f"sum by (model) (forwardpass_text_held{{{OURS}}})", "{{model}} held by their readers"),
            ),
            "Who waits is in the queue for a row or for room in the cache; who is held is among the running.",
        ),
        Panel(
            "KV cache, reserved",
            "percentunit",
            (Ask(f"max by (model) (forwardpass_text_kv_reserved_ratio{{{OURS}}})", "{{model}}"),),
            "What the running texts may come to, of the fullest replica's budget. At 1 others wait.",
        ),
        Panel(
            "Texts that ended, by reason",
            "cps",
            (Ask(rate("forwardpass_text_finished_total", "reason"), "{{reason}}"),),
            "stop: the model's own end. length: the most tokens that it may have. Others had no end.",
            "stacked",
        ),
        Panel(
            "Tokens of a text",
            "none",
            (
                Ask(
                    f"{rate('forwardpass_text_tokens_total', 'model')} / "
                    f"({rate('forwardpass_text_finished_total', 'model')} > 0)",
                    "{{model}}",
                ),
            ),
            "Written for each text that ended, in the mean.",
        ),
        Panel(
            "Prompts not taken in, by cause",
            "reqps",
            (
                Ask(
                    f"sum by (cause) (rate(forwardpass_requests_refused_total{{{OURS}}}{RATE}) {OF_TEXTS})",
                    "refused: {{cause}}",
                ),
                Ask(
                    f"sum(rate(forwardpass_requests_expired_total{{{OURS}}}{RATE}) {OF_TEXTS})",
                    "expired in the queue",
                ),
            ),
            "Refused at the door: full, or the first token would come too late.",
            "stacked",
        ),
    ),
)

BOARDS = (SLO, TIME, CAPACITY, RESOURCES, MODELS, TEXTS)
