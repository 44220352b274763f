"""The config of a model that another server runs.

Every field is that server's to honour. What is read here is what this server does before: requests are checked,
counted in rows, and queued.
"""

from __future__ import annotations

from functools import partial
from typing import NoReturn

from server.errors import ModelLoadFailed
from server.proto.triton import model_config_pb2 as pb
from server.repository.batching import read_dynamic_batching
from server.repository.model_config import ModelConfig, read_fair_by_tenant, read_slo_ms
from server.repository.refuse import Refuse
from server.repository.rollout import read_rollout
from server.repository.sequence_batching import DEFAULT_IDLE_US, read_controls
from server.repository.tensor_specs import read_tensors
from server.sequences import SequenceBatching


def read_foreign(message: pb.ModelConfig) -> ModelConfig:
    """What concerns this server of the config that a Triton tells of.

    Raises:
        ModelLoadFailed: this server can't stand in front of such a model; `where` is the field.
    """
    refuse = partial(_refuse, message.name)
    if any(one.is_shape_tensor for one in (*message.input, *message.output)):
        refuse("is_shape_tensor", "shape tensors are not passed through; ask Triton itself")
    return ModelConfig(
        name=message.name,
        platform=message.platform or message.backend,
        backend=message.backend,
        max_batch_size=message.max_batch_size,
        inputs=read_tensors("input", message.input, refuse),
        outputs=read_tensors("output", message.output, refuse),
        message=message,
        dynamic_batching=read_dynamic_batching(message, refuse),
        sequence_batching=_sequences(message, refuse),
        decoupled=message.model_transaction_policy.decoupled,
        slo_ms=read_slo_ms(message, refuse),
        fair_by_tenant=read_fair_by_tenant(message, refuse),
        rollout=read_rollout(message, refuse),
    )


def _sequences(message: pb.ModelConfig, refuse: Refuse) -> SequenceBatching | None:
    """As far as a request must say of which sequence it is. States are between Triton and the model.

    An iterative model has Triton schedule one request again and again: to callers it has no sequences.
    """
    batching = message.sequence_batching
    if not message.HasField("sequence_batching") or batching.iterative_sequence:
        return None
    idle_us = batching.max_sequence_idle_microseconds or DEFAULT_IDLE_US
    return SequenceBatching(max_sequence_idle_microseconds=idle_us, controls=read_controls(batching, refuse))


def least_in_flight(message: pb.ModelConfig) -> int:
    """Requests that keep every instance busy: one pass runs, the next one is there."""
    instances: int = sum(max(1, group.count) * max(1, len(group.gpus)) for group in message.instance_group)
    return 2 * max(1, instances)


def _refuse(model_name: str, path: str, problem: str) -> NoReturn:
    raise ModelLoadFailed(model_name, f"Triton's config: {path}", problem)
