"""How requests of a model wait: its config's queue policies, as the scheduler takes them."""

from __future__ import annotations

from server.repository.model_config import ModelConfig, QueuePolicyConfig
from server.scheduler.queue import Priorities, QueuePolicy


def queue_policy(config: ModelConfig, default_max_queue_size: int) -> QueuePolicy:
    """That of requests without a policy of their priority's own."""
    batching = config.dynamic_batching
    if batching is None:
        return QueuePolicy(max_queue_size=default_max_queue_size)
    return _policy(batching.default_queue_policy, default_max_queue_size)


def priorities(config: ModelConfig, default_max_queue_size: int) -> Priorities:
    """The model's levels; none where it does not batch."""
    batching = config.dynamic_batching
    if batching is None:
        return Priorities()
    policies = {
        level: _policy(policy, default_max_queue_size) for level, policy in batching.priority_queue_policy.items()
    }
    return Priorities(batching.priority_levels, batching.default_priority_level, policies)


def _policy(policy: QueuePolicyConfig, default_max_queue_size: int) -> QueuePolicy:
    return QueuePolicy(
        max_queue_size=policy.max_queue_size or default_max_queue_size,
        default_timeout_ns=policy.default_timeout_microseconds * 1000,
        timeout_action=policy.timeout_action,
        allow_timeout_override=policy.allow_timeout_override,
    )
