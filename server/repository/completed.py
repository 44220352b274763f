"""The config that clients are told: what config.pbtxt says, and what is so where it says nothing, as Triton tells it.

It means the same as the file: a client may change it and load the model with it (`config` of a load).
"""

from __future__ import annotations

from server.proto.triton import model_config_pb2 as pb
from server.repository.ensemble import is_ensemble
from server.repository.model_config import ModelConfig


def completed(config: ModelConfig) -> pb.ModelConfig:
    """A message of its own; what the file says is in it as it is."""
    message = pb.ModelConfig()
    message.CopyFrom(config.message)
    message.name = config.name
    policy = message.version_policy
    if policy.WhichOneof("policy_choice") in (None, "latest"):
        policy.latest.num_versions = policy.latest.num_versions or 1
    if config.sequence_batching is not None:
        message.sequence_batching.max_sequence_idle_microseconds = (
            config.sequence_batching.max_sequence_idle_microseconds
        )
    if not is_ensemble(message):
        _complete_instances(message)
    return message


def _complete_instances(message: pb.ModelConfig) -> None:
    if not message.instance_group:
        message.instance_group.add()
    for group in message.instance_group:
        group.count = group.count or 1
