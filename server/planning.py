"""How many replicas and machines a peak takes, by what one replica was measured to hold, and what that costs.

Kinds of requests share a replica by the parts of it that they take: half of what it holds of one and half of what it
holds of another fill it. A replica is planned to be used up to the headroom, as the autoscaler does it.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from server.load.limits import Limits

_RATE = re.compile(r"(?:(.+?)=)?(\d+(?:\.\d+)?)\s*(rps|/s)?")
_AMOUNT = re.compile(r"(\d+(?:\.\d+)?)(m?)")
_HOURS_A_MONTH = 730


class BadPlan(Exception):
    """What was asked can't be planned; says why."""


@dataclass(frozen=True)
class Kind:
    """What one replica holds of one kind of request, alone."""

    name: str
    per_s: float
    limits: Limits | None
    """While which are held; None: that is not said."""


@dataclass(frozen=True)
class Capacity:
    """What `make capacity` found."""

    kinds: Mapping[str, Kind]
    headroom: float
    """The saturation that a replica is to have."""
    cores: float
    """Of a replica; 0: not said."""


@dataclass(frozen=True)
class Fleet:
    """Where the replicas run."""

    cores: float
    """Of a machine, those that replicas may have."""
    price_per_hour: float = 0.0
    """Of a machine; 0: not asked for."""
    watts: float = 0.0
    """That a machine draws at work; 0: not asked for."""


@dataclass(frozen=True)
class Plan:
    replicas: int
    machines: int
    busy: float
    """The part of the replicas that the peak takes."""
    joules: float
    """Of one request at the peak; 0: not known."""
    price_per_hour: float
    price_per_million: float
    """Requests, at the peak."""

    def lines(self) -> list[str]:
        """As people read it."""
        found = [
            f"replicas   {self.replicas}, {self.busy:.0%} busy at the peak",
            f"machines   {self.machines}",
        ]
        if self.joules:
            found.append(f"energy     {self.joules:.3g} J a request at the peak")
        if self.price_per_hour:
            month = self.price_per_hour * _HOURS_A_MONTH
            found.append(f"cost       {self.price_per_hour:.2f} an hour, {month:,.0f} a month")
            found.append(f"           {self.price_per_million:.3g} for a million requests at the peak")
        return found


def read_capacity(path: Path) -> Capacity:
    """Of the values file that `make capacity` writes.

    Raises:
        BadPlan: it can't be read, or has no capacity.
    """
    try:
        tree = yaml.safe_load(path.read_text())
        kinds = {name: _kind(name, told) for name, told in tree["capacity"]["kinds"].items()}
        headroom = float(tree.get("autoscaling", {}).get("targetSaturation", 0.7))
        cores = _cores(tree.get("resources", {}).get("requests", {}).get("cpu", 0))
    except OSError as error:
        raise BadPlan(f"{path}: {error.strerror}; `make capacity` writes it") from error
    except (yaml.YAMLError, KeyError, TypeError, ValueError, AttributeError) as error:
        raise BadPlan(f"{path}: is not what `make capacity` writes: {error!r}") from error
    if not kinds or not 0 < headroom <= 1:
        raise BadPlan(f"{path}: has no capacity.kinds, or a targetSaturation that is not 0 to 1")
    return Capacity(kinds, headroom, cores)


def _kind(name: str, told: Mapping[str, Any]) -> Kind:
    per_s = float(told["requestsPerSecond"])
    if not 0 < per_s < math.inf:
        raise ValueError(f"capacity.kinds[{name}].requestsPerSecond is {per_s:g}")
    return Kind(name, per_s, Limits.parse(told["slo"]) if told.get("slo") else None)


def _cores(amount: object) -> float:
    found = _AMOUNT.fullmatch(str(amount))
    if found is None:
        raise ValueError(f"resources.requests.cpu is {amount!r}")
    return float(found[1]) / (1000 if found[2] else 1)


def read_peak(texts: list[str], capacity: Capacity) -> dict[str, float]:
    """Requests a second by kind: ``5000rps`` where there is one kind, else ``grpc infer fraud=5000rps`` and so on.

    Raises:
        BadPlan: it is none, or of a kind that was not measured.
    """
    peak: dict[str, float] = {}
    known = ", ".join(capacity.kinds)
    for text in texts:
        found = _RATE.fullmatch(text.strip())
        if found is None or not float(found[2]):
            raise BadPlan(f"--peak {text!r} is none of 5000rps, 'KIND=5000rps'")
        name = found[1] or next(iter(capacity.kinds))
        if found[1] is None and len(capacity.kinds) > 1:
            raise BadPlan(f"--peak {text!r} does not say of which kind it is: {known}")
        if name not in capacity.kinds:
            raise BadPlan(f"--peak {text!r}: there is no capacity of {name!r}, only of {known}")
        peak[name] = float(found[2])
    return peak


def check_slo(slo: Limits, peak: Mapping[str, float], capacity: Capacity) -> None:
    """Raises BadPlan where a capacity was measured while less was held than `slo`."""
    for name in peak:
        held = capacity.kinds[name].limits
        if held is None:
            raise BadPlan(f"{name}: the capacity does not say what was held; measure it anew with `make capacity`")
        for quantile, most_ms in slo.latency_ms.items():
            # A limit of a higher percentile holds for the lower ones as well.
            found = [ms for each, ms in held.latency_ms.items() if each >= quantile]
            if not found or min(found) > most_ms:
                raise BadPlan(
                    f"{name}: its capacity was measured at {held}, not at p{quantile:g} <= {most_ms:g} ms: "
                    "measure it anew with that"
                )
        if held.max_error_rate > slo.max_error_rate or held.max_refused_rate > slo.max_refused_rate:
            raise BadPlan(f"{name}: its capacity was measured at {held}, with more errors or refusals than {slo}")


def make_plan(peak: Mapping[str, float], capacity: Capacity, fleet: Fleet, least: int = 2) -> Plan:
    """`least`: replicas, so that one may fail.

    Raises:
        BadPlan: a replica does not fit a machine.
    """
    full = sum(rate / capacity.kinds[name].per_s for name, rate in peak.items())
    replicas = max(least, math.ceil(full / capacity.headroom - 1e-9))
    if not capacity.cores:
        raise BadPlan("the capacity does not say the cores of a replica: resources.requests.cpu")
    on_one = int(fleet.cores // capacity.cores)
    if not on_one:
        raise BadPlan(f"a replica of {capacity.cores:g} cores does not fit a machine of {fleet.cores:g}")
    machines = -(-replicas // on_one)
    rate = sum(peak.values())
    price = machines * fleet.price_per_hour
    return Plan(
        replicas, machines, full / replicas, machines * fleet.watts / rate, price, price / (rate * 3600) * 1_000_000
    )
