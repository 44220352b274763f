"""What the processes of a server have counted, as JSON, and the sum of it.

Whatever attributes `ModelStatistics` has are what crosses, so that a count added there is in every sum. Counts and
times are added; a time of day is the latest; demand is summed by `server.scheduler.saturation`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any, TypeVar

from server.scheduler.histogram import DURATION_BOUNDS_NS, Exemplar, Histogram
from server.scheduler.saturation import Demand
from server.scheduler.saturation import summed as sum_demands
from server.scheduler.sequence_statistics import SequenceStatistics
from server.scheduler.statistics import BatchStatistics, Duration, ModelStatistics
from server.scheduler.writing_statistics import WritingStatistics

if TYPE_CHECKING:
    from server.observability.machine import Pulse

_K = TypeVar("_K", SequenceStatistics, WritingStatistics)

_LATEST = "last_inference_ms"
_DEMAND = "demand"
_SEQUENCES = "sequences"
_WRITING = "writing"
_NOTES = {"_wall", "_last_s", "_noted_passes", "_noted_requests"}
_OWN = frozenset({"name", "version", "load", "ability", "demands", "preparing", *_NOTES})
"""Attributes that are no counts, and those of models that several processes do not serve."""


class Total(ModelStatistics):
    """The sum over several processes."""

    def __init__(self, name: str, version: str) -> None:
        super().__init__(name, version)
        self.demands: list[Demand] = []

    def demand(self, now_ns: int) -> Demand:
        return sum_demands(self.demands)


def told(statistics: ModelStatistics, now_ns: int) -> dict[str, Any]:
    """Of one version, as JSON."""
    statistics.count_noted()
    counts = {key: _told(value) for key, value in vars(statistics).items() if key not in _OWN}
    return {"name": statistics.name, "version": statistics.version, _DEMAND: statistics.demand(now_ns), **counts}


def summed(parts: Iterable[Mapping[str, Any]]) -> dict[tuple[str, str], Total]:
    """By name and version."""
    totals: dict[tuple[str, str], Total] = {}
    for part in parts:
        key = part["name"], part["version"]
        total = totals.setdefault(key, Total(*key))
        total.demands.append(Demand(*part[_DEMAND]))
        for name, value in vars(total).items():
            if name == _LATEST:
                total.last_inference_ms = max(value, part[name])
            elif name == _SEQUENCES:
                total.sequences = _sum_kind(SequenceStatistics, total.sequences, part[name])
            elif name == _WRITING:
                total.writing = _sum_kind(WritingStatistics, total.writing, part[name])
            elif name not in _OWN:
                setattr(total, name, _sum(value, part[name]))
    return totals


_GAUGES = {_LATEST, "pending", "instances"}


def since(now: Any, before: Any) -> Any:
    """What was counted between two tellings. What is no count, or began anew meanwhile, is as it is now."""
    if isinstance(now, dict):
        if "success" in now and (now["success"] < before["success"] or now["fail"] < before["fail"]):
            return now
        return {k: v if k in _GAUGES or k not in before else since(v, before[k]) for k, v in now.items()}
    if isinstance(now, list) and len(now) == len(before):
        return [since(more, less) for more, less in zip(now, before, strict=True)]
    return now - before if type(now) is int else now


def _told(value: Any) -> Any:
    if isinstance(value, Duration):
        return [value.count, value.ns]
    if isinstance(value, Histogram):
        return [value.sum, list(value.exemplars.items()), *value.counts]
    if isinstance(value, BatchStatistics):
        return [_told(getattr(value, name)) for name in BatchStatistics.__slots__]
    if isinstance(value, SequenceStatistics | WritingStatistics):
        return _told(vars(value))
    if value is None:
        return None
    if isinstance(value, dict):
        return {str(key): _told(inner) for key, inner in value.items()}
    assert isinstance(value, int), value
    return value


def _sum(own: Any, more: Any) -> Any:
    """`more` is added to `own`, in place where that can be."""
    if isinstance(own, Duration):
        own.add(*more)
    elif isinstance(own, Histogram):
        total, exemplars, *counts = more
        own.sum += total
        own.exemplars |= {bucket: Exemplar(*told) for bucket, told in exemplars}
        own.counts = [a + b for a, b in zip(own.counts, counts, strict=True)]
    elif isinstance(own, dict):
        _sum_each(own, more)
    else:
        return own + more
    return own


def _sum_kind(kind: Callable[[], _K], own: _K | None, more: Mapping[str, Any] | None) -> _K | None:
    """Of models of one kind alone; None: no part has any."""
    if more is None:
        return own
    own = own or kind()
    for name, value in vars(own).items():
        setattr(own, name, _sum(value, more[name]))
    return own


def _sum_each(own: dict[Any, Any], more: Mapping[str, Any]) -> None:
    for key, inner in more.items():
        if isinstance(own.get(key), Histogram):
            _sum(own[key], inner)
        elif isinstance(inner, list):  # Of a batch size.
            sized = own.setdefault(int(key), BatchStatistics())
            for name, duration in zip(BatchStatistics.__slots__, inner, strict=True):
                getattr(sized, name).add(*duration)
        else:
            own[key] += inner


def told_pulse(pulse: Pulse) -> dict[str, Any]:
    """Of one process, as JSON."""
    return {"process": pulse.process, "rows": pulse.rows(), "lag": _told(pulse.lag)}


def lags(pulses: Iterable[Mapping[str, Any]]) -> dict[str, Histogram]:
    """How late their loops are, of processes that told, by name."""
    found: dict[str, Histogram] = {}
    for pulse in pulses:
        found[pulse["process"]] = lag = Histogram(DURATION_BOUNDS_NS)
        _sum(lag, pulse["lag"])
    return found


def counters(parts: Iterable[Mapping[str, int]]) -> Counter[str]:
    total: Counter[str] = Counter()
    for part in parts:
        total.update(part)
    return total
