"""``parameters`` of config.pbtxt that part a model's requests between two of its versions, or compare them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from server.proto.triton import model_config_pb2 as pb
from server.repository.refuse import Refuse

Compare = Literal["values", "top"]

CANARY_VERSION, CANARY_WEIGHT = "canary_version", "canary_weight"
SHADOW_VERSION, SHADOW_SHARE = "shadow_version", "shadow_share"
_ERRORS, _LATENCY = "rollout_max_error_rate", "rollout_max_latency_ratio"
_DISAGREEMENT, _REQUESTS = "rollout_max_disagreement", "rollout_min_requests"
_COMPARE, _TOLERANCE = "rollout_compare", "rollout_tolerance"
ROLLOUT = (
    *(CANARY_VERSION, CANARY_WEIGHT, SHADOW_VERSION, SHADOW_SHARE, _ERRORS, _LATENCY),
    *(_DISAGREEMENT, _REQUESTS, _COMPARE, _TOLERANCE),
)
"""The keys, all of the scheduler's side."""


WINDOW = 500
"""Requests of each version that are looked at."""


@dataclass(frozen=True, slots=True)
class Rollout:
    """A candidate beside the version that serves, and what ends it."""

    version: str
    """The candidate."""
    shadow: bool
    """Its answers are compared and thrown away; else they are sent."""
    part: float
    """Of the requests that name no version, those that the candidate gets too, or gets."""
    max_error_rate: float = 0.02
    """Above that of the version that serves."""
    max_latency_ratio: float = 3.0
    """Of the 95 % quantiles of both."""
    max_disagreement: float = 0.05
    """Of the answers that were compared."""
    min_requests: int = 50
    """Of the candidate, before anything is said of it."""
    compare: Compare = "top"
    tolerance: float = 1e-3
    """Of values, of the largest one of the output."""


def read_rollout(message: pb.ModelConfig, refuse: Refuse) -> Rollout | None:
    """None: all requests are for the newest version."""
    parameters = {key: value.string_value for key, value in message.parameters.items()}
    given = [key for key in ROLLOUT if key in parameters]
    if not given:
        return None
    shadow = SHADOW_VERSION in parameters
    key, part_key = (SHADOW_VERSION, SHADOW_SHARE) if shadow else (CANARY_VERSION, CANARY_WEIGHT)
    if key not in parameters:
        refuse(_field(given[0]), f"is of a rollout, and neither {CANARY_VERSION} nor {SHADOW_VERSION} is set")
    for other in (CANARY_VERSION, CANARY_WEIGHT) if shadow else (SHADOW_SHARE,):
        if other in parameters:
            refuse(_field(other), f"does not go together with {key}: one candidate at a time")
    alone = _alone(message)
    if alone:
        refuse(_field(key), f"does not go together with {alone}")
    compare = parameters.get(_COMPARE, "top")
    if compare not in ("values", "top"):
        refuse(_field(_COMPARE), f"is '{compare}', it must be values or top")

    def number(name: str, default: float, least: float, most: float) -> float:
        return _number(parameters, name, default, (least, most), refuse)

    return Rollout(
        _version(parameters, key, refuse),
        shadow,
        number(part_key, 1.0 if shadow else 0.05, 0, 1),
        number(_ERRORS, 0.02, 0, 1),
        number(_LATENCY, 3.0, 1, 1000),
        number(_DISAGREEMENT, 0.05, 0, 1),
        int(number(_REQUESTS, 50, 1, WINDOW)),
        "values" if compare == "values" else "top",
        number(_TOLERANCE, 1e-3, 0, 1),
    )


def _alone(message: pb.ModelConfig) -> str:
    """What of a config is between one version and its callers; empty: nothing."""
    if message.HasField("sequence_batching"):
        return "sequence_batching"
    return "model_transaction_policy.decoupled" if message.model_transaction_policy.decoupled else ""


def _version(parameters: Mapping[str, str], key: str, refuse: Refuse) -> str:
    version = parameters[key]
    if not version.isdecimal() or version != str(int(version)) or version == "0":
        refuse(_field(key), f"is '{version}', it must be the number of a version")
    return version


def _number(
    parameters: Mapping[str, str], name: str, default: float, bounds: tuple[float, float], refuse: Refuse
) -> float:
    try:
        value = float(parameters.get(name, default))
    except ValueError:
        value = -1.0
    least, most = bounds
    if not least <= value <= most:
        refuse(_field(name), f"is '{parameters[name]}', it must be a number from {least:g} to {most:g}")
    return value


def _field(key: str) -> str:
    return f'parameters["{key}"]'
