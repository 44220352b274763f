"""The config that clients are told: what config.pbtxt says, and what is so where it says nothing, as Triton tells it.

It means the same as the file: a client may change it and load the model with it (`config` of a load).
"""

from __future__ import annotations

from collections.abc import Iterable

from server.proto.triton import model_config_pb2 as pb
from server.repository.ensemble import is_ensemble
from server.repository.model_config import ModelConfig

_GPU = "gpu"


def completed(config: ModelConfig, devices: Iterable[str]) -> pb.ModelConfig:
    """A message of its own; what the file says is in it as it is. `devices` are those of the model's instances."""
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
        if not message.instance_group:
            message.instance_group.add()
        gpus = {int(device.removeprefix(_GPU)) for device in devices if device.startswith(_GPU)}
        for group in message.instance_group:
            _complete(group, gpus)
    return message


def _complete(group: pb.ModelInstanceGroup, gpus: set[int]) -> None:
    """One of KIND_AUTO is told as what it became: clients know CPUs and GPUs alone, and in protobuf's JSON, which
    leaves out the first value of an enum, it has no kind."""
    group.count = group.count or 1
    if group.kind == pb.ModelInstanceGroup.KIND_AUTO:
        on_gpu = gpus and gpus.issuperset(group.gpus)
        group.kind = pb.ModelInstanceGroup.KIND_GPU if on_gpu else pb.ModelInstanceGroup.KIND_CPU
        if not on_gpu:
            del group.gpus[:]
    if group.kind == pb.ModelInstanceGroup.KIND_GPU and not group.gpus:
        group.gpus.extend(sorted(gpus))
