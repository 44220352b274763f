"""`dynamic_batching` of config.pbtxt: what may wait for company, how long, and in which order."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from server.proto.triton import model_config_pb2 as pb
from server.repository.refuse import Refuse

_MOST_LEVELS = 256
"""Every level has its own queue, which planning looks into."""


@dataclass(frozen=True, slots=True)
class QueuePolicyConfig:
    """Source: ModelQueuePolicy. Zeros mean no time-out and no limit."""

    timeout_action: Literal["REJECT", "DELAY"] = "REJECT"
    default_timeout_microseconds: int = 0
    allow_timeout_override: bool = False
    max_queue_size: int = 0


@dataclass(frozen=True, slots=True)
class DynamicBatching:
    """Source: ModelDynamicBatching."""

    preferred_batch_size: tuple[int, ...] = ()
    max_queue_delay_microseconds: int = 0
    default_queue_policy: QueuePolicyConfig = QueuePolicyConfig()
    priority_levels: int = 0
    """1 is the most urgent level; 0: none."""
    default_priority_level: int = 0
    priority_queue_policy: Mapping[int, QueuePolicyConfig] = field(default_factory=dict)
    preserve_ordering: bool = False


def read_dynamic_batching(message: pb.ModelConfig, refuse: Refuse) -> DynamicBatching | None:
    if not message.HasField("dynamic_batching"):
        return None
    batching = message.dynamic_batching
    for index, size in enumerate(batching.preferred_batch_size):
        if not 1 <= size <= message.max_batch_size:
            refuse(
                f"dynamic_batching.preferred_batch_size[{index}]",
                f"is {size}, it must be 1 to max_batch_size, which is {message.max_batch_size}",
            )
    _check_priorities(batching, refuse)
    return DynamicBatching(
        preferred_batch_size=tuple(batching.preferred_batch_size),
        max_queue_delay_microseconds=batching.max_queue_delay_microseconds,
        default_queue_policy=_queue_policy(
            "dynamic_batching.default_queue_policy", batching.default_queue_policy, refuse
        ),
        priority_levels=batching.priority_levels,
        default_priority_level=batching.default_priority_level,
        priority_queue_policy={
            level: _queue_policy(f"dynamic_batching.priority_queue_policy[{level}]", policy, refuse)
            for level, policy in batching.priority_queue_policy.items()
        },
        preserve_ordering=batching.preserve_ordering,
    )


def _queue_policy(path: str, policy: Any, refuse: Refuse) -> QueuePolicyConfig:
    if policy.timeout_action not in pb.ModelQueuePolicy.TimeoutAction.values():
        refuse(f"{path}.timeout_action", "must be REJECT or DELAY")
    return QueuePolicyConfig(
        timeout_action="DELAY" if policy.timeout_action == pb.ModelQueuePolicy.DELAY else "REJECT",
        default_timeout_microseconds=policy.default_timeout_microseconds,
        allow_timeout_override=policy.allow_timeout_override,
        max_queue_size=policy.max_queue_size,
    )


def _check_priorities(batching: Any, refuse: Refuse) -> None:
    levels, default = batching.priority_levels, batching.default_priority_level
    if levels > _MOST_LEVELS:
        refuse("dynamic_batching.priority_levels", f"is {levels}, the most are {_MOST_LEVELS}")
    if levels and not 1 <= default <= levels:
        refuse("dynamic_batching.default_priority_level", f"is {default}, it must be 1 to priority_levels ({levels})")
    if default and not levels:
        refuse("dynamic_batching.default_priority_level", "is set, and priority_levels is not")
    for level in batching.priority_queue_policy:
        if not 1 <= level <= levels:
            refuse(f"dynamic_batching.priority_queue_policy[{level}]", f"is no level: priority_levels is {levels}")
    if batching.preserve_ordering and levels > 1:
        refuse("dynamic_batching.preserve_ordering", "contradicts priority_levels, which exist to change the order")
