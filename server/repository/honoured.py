"""Which fields of a ModelConfig this server honours, and the walk that finds the set ones it does not."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message

_ACCELERATORS = "optimization.execution_accelerators"
_PINNED = ("input_pinned_memory", "output_pinned_memory")
"""Hints of how a copy to a GPU and back is made, which either way changes no answer, and is ONNX Runtime's choice here.
Triton has `enable: true` in every config that it tells, so a client that loads such a config anew says it."""
_FIELDS: Mapping[str, tuple[str, ...]] = {
    "": (
        "name",
        "platform",
        "backend",
        "max_batch_size",
        "default_model_filename",
        "version_policy",
        "input",
        "output",
        "instance_group",
        "dynamic_batching",
        "sequence_batching",
        "ensemble_scheduling",
        "optimization",
        "model_transaction_policy",
        "parameters",
        "response_cache",
        "model_warmup",
    ),
    "version_policy": ("latest", "all", "specific"),
    "version_policy.latest": ("num_versions",),
    "version_policy.specific": ("versions",),
    "input": ("name", "data_type", "dims", "format", "reshape", "optional"),
    "input.reshape": ("shape",),
    "output": ("name", "data_type", "dims", "label_filename", "reshape"),
    "output.reshape": ("shape",),
    "instance_group": ("name", "kind", "count", "gpus"),
    "dynamic_batching": (
        "preferred_batch_size",
        "max_queue_delay_microseconds",
        "preserve_ordering",
        "priority_levels",
        "default_priority_level",
        "default_queue_policy",
        "priority_queue_policy",
    ),
    "dynamic_batching.default_queue_policy": (
        "timeout_action",
        "default_timeout_microseconds",
        "allow_timeout_override",
        "max_queue_size",
    ),
    "sequence_batching": ("direct", "oldest", "max_sequence_idle_microseconds", "control_input", "state"),
    "sequence_batching.direct": ("max_queue_delay_microseconds", "minimum_slot_utilization"),
    "sequence_batching.oldest": (
        "max_candidate_sequences",
        "preferred_batch_size",
        "max_queue_delay_microseconds",
        "preserve_ordering",
    ),
    "sequence_batching.control_input": ("name", "control"),
    "sequence_batching.control_input.control": (
        "kind",
        "int32_false_true",
        "fp32_false_true",
        "bool_false_true",
        "data_type",
    ),
    "sequence_batching.state": (
        "input_name",
        "output_name",
        "data_type",
        "dims",
        "initial_state",
        "use_same_buffer_for_input_output",
    ),
    "sequence_batching.state.initial_state": ("data_type", "dims", "zero_data", "data_file", "name"),
    "response_cache": ("enable",),
    "model_warmup": ("name", "batch_size", "inputs", "count"),
    "model_transaction_policy": ("decoupled",),
    "ensemble_scheduling": ("step",),
    "ensemble_scheduling.step": ("model_name", "model_version", "input_map", "output_map"),
    "optimization": ("graph", "execution_accelerators", *_PINNED),
    **{f"optimization.{name}": ("enable",) for name in _PINNED},
    "optimization.graph": ("level",),
    _ACCELERATORS: ("gpu_execution_accelerator", "cpu_execution_accelerator"),
    f"{_ACCELERATORS}.gpu_execution_accelerator": ("name", "parameters"),
    f"{_ACCELERATORS}.cpu_execution_accelerator": ("name", "parameters"),
}
HONOURED = frozenset(f"{parent}.{name}".lstrip(".") for parent, names in _FIELDS.items() for name in names)
"""Paths without indices. A map is honoured as a whole: the engine refuses the keys it does not know."""

REASONS = {
    "input.allow_ragged_batch": "requests of unequal shapes are not joined end to end; length_buckets pads them",
    "input.is_shape_tensor": "shape tensors belong to TensorRT plans, which are not run here",
    "output.is_shape_tensor": "shape tensors belong to TensorRT plans, which are not run here",
    "input.is_non_linear_format_io": "non-linear formats belong to TensorRT plans, which are not run here",
    "output.is_non_linear_format_io": "non-linear formats belong to TensorRT plans, which are not run here",
    "batch_input": "inputs made of the batch serve ragged batches, which this server does not make",
    "batch_output": "outputs cut by the batch serve ragged batches, which this server does not make",
    "sequence_batching.iterative_sequence": "requests are not rescheduled here; --engine triton leaves it to Triton",
    "sequence_batching.state.use_growable_memory": "is for states in a GPU's memory; states are kept in the server's",
    "instance_group.rate_limiter": (
        "this server has no resources to count: the models' passes take turns on its cores by themselves, and "
        "instance_group.count bounds those of a model; remove it, as Triton too ignores it without --rate-limit"
    ),
    "ensemble_scheduling.step.model_namespace": "models have no namespaces here: a name means one model",
    "ensemble_scheduling.max_inflight_requests": "is not kept; the max_queue_size of a step's model bounds what waits",
}


def unhonoured(message: Message) -> Iterator[tuple[str, str]]:
    """The shown path (``input[1].reshape``) and the reason, for each set field that is not honoured.

    A message that is there and says nothing but defaults asks for nothing and passes, unless its presence
    alone is the choice (a member of a oneof, an element of a list).
    """
    yield from _walk(message, "", "")


def _walk(message: Message, pattern: str, shown: str) -> Iterator[tuple[str, str]]:
    for field, value in message.ListFields():
        path = f"{pattern}{field.name}"
        here = f"{shown}{field.name}"
        if path not in HONOURED:
            if not _says_nothing(field, value):
                yield here, REASONS.get(path, "is set, and this server does not honour it; remove it")
        elif field.message_type is not None and not field.message_type.GetOptions().map_entry:
            if field.is_repeated:
                for index, element in enumerate(value):
                    yield from _walk(element, f"{path}.", f"{here}[{index}].")
            else:
                yield from _walk(value, f"{path}.", f"{here}.")


def _says_nothing(field: FieldDescriptor, value: Any) -> bool:
    if field.message_type is None or field.is_repeated or field.containing_oneof is not None:
        return False
    return all(_says_nothing(inner, content) for inner, content in value.ListFields())
