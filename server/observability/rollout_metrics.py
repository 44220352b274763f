"""Of canaries and shadows: whether they are asked, what came of it, and why they were rolled back."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from server.observability.catalog import Rows
    from server.rollout import RolloutServed

_OUTCOMES = ("answered", "failed", "agreed", "differed", "skipped")


def rollout_rows(rollouts: Iterable[RolloutServed]) -> Rows:
    """Of the models that have a candidate."""
    told = [(tuple(rollout.labels.values()), rollout) for rollout in rollouts]
    return {
        "forwardpass_rollout_asked": [(labels, float(each.cause is None)) for labels, each in told],
        "forwardpass_rollout_requests_total": [
            ((*labels, outcome), each.counts[outcome]) for labels, each in told for outcome in _OUTCOMES
        ],
        "forwardpass_rollout_rolled_back": [
            ((*labels, each.cause.value), 1.0) for labels, each in told if each.cause is not None
        ],
    }
