"""What passes cost by the length of their rows and by the device that runs them: one `CostModel` for each class.

Where no size of a tensor varies there is one class, and a `CostModel` is the whole book. Else requests of one
bucket are one class, and where there are no buckets, rows of like size: their elements, rounded up to a power of two.
Each class learns from its own passes. One that had none yet starts with what its neighbours let expect:

* between two classes, on the line between them;
* beyond them, what a pass of the nearest costs without any rows, and the rest in proportion to the length.

So an unknown length is never free, and after its first passes what it really costs counts.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from math import prod
from typing import Protocol

from server.scheduler.cost import CostModel

_MOST_REMEMBERED = 1024
"""Signatures whose class is kept at hand; there may be any number of them in the long run."""


class Costs(Protocol):
    """The cost models of one model version, or of one device of it."""

    def on(self, device: str) -> Costs:
        """Those of passes on `device`."""

    def for_signature(self, signature: object) -> CostModel:
        """That of the passes of requests of one signature; of several devices, that with the most rows a second."""

    def speed(self, device: str) -> float:
        """Rows that an instance on `device` does while one on the fastest does one."""


def size_of(signature: object) -> int:
    """The length of a bucket, or the elements of a row; 0 where no size varies."""
    if isinstance(signature, int):
        return signature
    if isinstance(signature, tuple):
        return sum([prod(shape) for shape in signature])
    return 0


class CostsByLength:
    """A `CostModel` for each class of length, on one device."""

    def __init__(self, seeds: Mapping[object, Mapping[int, int]], buckets: Sequence[int] = ()) -> None:
        """`seeds`: nanoseconds by rows, of the signatures that the warm-up measured."""
        self._buckets = frozenset(buckets)
        self._models = {self._class(signature): CostModel(seed) for signature, seed in seeds.items() if seed}
        self._of: dict[object, CostModel] = {}

    def on(self, device: str) -> CostsByLength:
        return self

    def speed(self, device: str) -> float:
        return 1.0

    def for_signature(self, signature: object) -> CostModel:
        cost = self._of.get(signature)
        if cost is None:
            size = self._class(signature)
            cost = self._models.get(size)
            if cost is None:
                cost = self._models[size] = self._expected(size)
            if len(self._of) >= _MOST_REMEMBERED:
                self._of.clear()
            self._of[signature] = cost
        return cost

    def _class(self, signature: object) -> int:
        size = size_of(signature)
        return size if size in self._buckets else 1 << max(0, size - 1).bit_length()

    def _expected(self, size: int) -> CostModel:
        """A model of a class without a pass, from its neighbours."""
        known = sorted(other for other, cost in self._models.items() if cost.sizes)
        if not known:
            return CostModel()
        place = bisect_left(known, size)
        if 0 < place < len(known):
            left, right = known[place - 1], known[place]
            near = self._models[right if right - size < size - left else left]
            part = (size - left) / (right - left)
            low, high = self._models[left], self._models[right]
            return near.like({rows: low.mean_ns(rows) * (1 - part) + high.mean_ns(rows) * part for rows in near.sizes})
        nearest = known[0 if place == 0 else -1]
        near = self._models[nearest]
        fixed_ns = near.fixed_ns()
        # A size may have been measured below the fixed part, by chance: many times longer rows must not cost less.
        of_rows = {rows: max(0.0, near.mean_ns(rows) - fixed_ns) for rows in near.sizes}
        return near.like({rows: fixed_ns + ns * size / nearest for rows, ns in of_rows.items()})


class CostsByDevice:
    """The costs of each device that a model version has instances on. Instances of one device share them."""

    def __init__(self, devices: Mapping[str, Costs], max_batch_size: int) -> None:
        self._devices = dict(devices)
        self._largest = max(1, max_batch_size)
        self._common: object = None
        """The signature asked for last, by which devices are compared."""

    def on(self, device: str) -> Costs:
        return self._devices[device]

    def for_signature(self, signature: object) -> CostModel:
        self._common = signature
        return max([costs.for_signature(signature) for costs in self._devices.values()], key=self._rate)

    def speed(self, device: str) -> float:
        fastest = max(self._rate(costs.for_signature(self._common)) for costs in self._devices.values())
        own = self._rate(self._devices[device].for_signature(self._common))
        return own / fastest if own else 1.0

    def _rate(self, cost: CostModel) -> float:
        """Rows in a nanosecond at the size that is best for the device; 0: not known."""
        rows = cost.best_rows(self._largest)
        return rows / (cost.predict_ns(rows) or math.inf)


def make_costs(
    seeds: Mapping[str, Mapping[object, Mapping[int, int]]],
    *,
    by_length: bool,
    buckets: Sequence[int] = (),
    max_batch_size: int = 0,
) -> Costs:
    """The costs of one model version. `seeds`: nanoseconds by device (every one it has), signature and rows."""
    devices: dict[str, Costs] = {
        device: CostsByLength(of_device, buckets) if by_length else CostModel(of_device.get(None))
        for device, of_device in seeds.items()
    }
    return CostsByDevice(devices, max_batch_size) if len(devices) > 1 else next(iter(devices.values()))
