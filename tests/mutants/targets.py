"""What is mutated, and which quick tests are to notice it: the module's own first."""

from __future__ import annotations

_BATCHER = ("unit/test_batcher.py", "unit/test_worker.py", "unit/test_turn.py", "property/test_scheduler_contracts.py")
_QUEUE = ("unit/test_queue.py", "unit/test_plan.py", "unit/test_tenants.py", *_BATCHER)
_ADMISSION = ("unit/test_admission.py", "unit/test_saturation.py", *_BATCHER)
_COST = ("unit/test_cost.py", "unit/test_costs.py", "unit/test_fleet.py", *_ADMISSION)
_RELAY = ("unit/test_relay.py", "unit/test_relay_overload.py", "unit/test_window.py")
_SEQUENCES = (
    "unit/test_sequence_batcher.py",
    "unit/test_sequence_rows.py",
    "unit/test_sequence_check.py",
    "property/test_sequence_contracts.py",
)
_MERGE = ("unit/test_merge.py", "unit/test_pad.py", "property/test_merge_identity.py", "unit/test_worker.py")
_WIRE = ("unit/test_wire.py", "property/test_wire_equals_protobuf.py", "property/test_repeated_infer.py")
_REST = ("unit/test_codec_v2_rest.py", "unit/test_rest.py", "property/test_codec_round_trip.py")
_GRPC = ("unit/test_codec_v2_grpc.py", "property/test_codec_round_trip.py", "unit/test_http2_grpc.py")
_ENSEMBLES = ("unit/test_ensembles.py", "unit/test_ensemble_config.py")
_CACHE = ("unit/test_response_cache.py", "property/test_response_cache.py")
_WRITING = ("unit/test_writing.py", "unit/test_decoupled.py")

_SCHEDULER = {
    "admission": _ADMISSION,
    "alarm": _BATCHER,
    "backlog": _QUEUE,
    "batcher": _BATCHER,
    "caching": _CACHE,
    "cost": _COST,
    "costs": _COST,
    "ensemble": _ENSEMBLES,
    "ensemble_plan": _ENSEMBLES,
    "fleet": _COST,
    "flights": _RELAY,
    "handoff": ("unit/test_handoff.py", *_BATCHER),
    "instances": _BATCHER,
    "load": ("unit/test_saturation.py", "unit/test_metrics.py"),
    "merge": _MERGE,
    "ordering": _BATCHER,
    "pad": ("unit/test_pad.py", *_MERGE),
    "plan": ("unit/test_plan.py", "property/test_all_at_once.py", *_BATCHER),
    "preparing": ("unit/test_preparing.py", "property/test_preparing.py"),
    "queue": _QUEUE,
    "relay": _RELAY,
    "response_cache": _CACHE,
    "saturation": ("unit/test_saturation.py", "unit/test_metrics.py"),
    "sequence_batcher": _SEQUENCES,
    "sequence_passes": _SEQUENCES,
    "sequence_plan": _SEQUENCES,
    "sequence_relay": ("unit/test_sequence_relay.py",),
    "sequence_rows": _SEQUENCES,
    "settling": _BATCHER,
    "share": ("unit/test_share.py", *_BATCHER),
    "slots": _SEQUENCES,
    "statistics": ("unit/test_statistics.py", "unit/test_metrics.py", *_BATCHER),
    "tenants": ("unit/test_tenants.py", "property/test_tenants.py"),
    "ticking": _BATCHER,
    "turn": ("unit/test_turn.py", *_BATCHER),
    "waits": ("unit/test_waits.py", "unit/test_explain.py"),
    "watchdog": ("unit/test_worker.py", "unit/test_faults.py"),
    "window": _RELAY,
    "worker": ("unit/test_worker.py", *_BATCHER),
    "writing": _WRITING,
    "writing_door": _WRITING,
    "writing_foresight": _WRITING,
}
_CODEC = {
    "generate": ("unit/test_codec_generate.py", "unit/test_generate.py"),
    "json_data": _REST,
    "predict_grpc": ("unit/test_codec_predict.py",),
    "predict_rest": ("unit/test_codec_predict.py", "unit/test_rest.py"),
    "recent": _WIRE,
    "repeated_infer": ("property/test_repeated_infer.py", *_WIRE),
    "shared_memory": ("unit/test_codec_shared_memory.py", "unit/test_shared_memory.py", *_REST),
    "tensors": (*_GRPC, *_REST),
    "v2_grpc": _GRPC,
    "v2_rest": ("unit/test_codec_v2_rest.py", "unit/test_shared_memory.py", *_REST),
    "varint": _WIRE,
    "wire_request": _WIRE,
    "wire_response": _WIRE,
}


def _paths(tests: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(f"tests/{test}" for test in dict.fromkeys(tests))


TARGETS: dict[str, tuple[str, ...]] = (
    {f"server.scheduler.{name}": _paths(tests) for name, tests in _SCHEDULER.items()}
    | {f"server.transport.codec.{name}": _paths(tests) for name, tests in _CODEC.items()}
    | {"server.transport.status": _paths(("unit/test_status.py", "unit/test_rest.py", "unit/test_client.py"))}
)
