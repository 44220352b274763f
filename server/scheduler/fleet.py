"""Instances on different devices: which of them takes the next batch, and what all of them do together. No clock.

Instances of one device are alike. Where all are, any idle one is as good as another and nothing here is asked.
Else the next batch goes to the idle instance that would answer it first, in a batch of the size that is best there.
What would be late on a slow device is left for a faster one that is busy: there it may be in time.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Generic, TypeVar

from server.scheduler.costs import Costs
from server.scheduler.plan import IDLE, Dispatch, Limits, Plan, Wait, plan
from server.scheduler.queue import RequestQueue

T = TypeVar("T")
"""Whatever runs passes."""


class Fleet(Generic[T]):
    """The devices of one model version's instances."""

    def __init__(self, devices: Mapping[T, str], costs: Costs) -> None:
        self._devices = dict(devices)
        self._costs = costs
        self._of = {runner: costs.on(device) for runner, device in devices.items()}
        self.alike = len(set(devices.values())) < 2

    def costs(self, runner: T) -> Costs:
        """What passes cost on that instance."""
        return self._of[runner]

    def speed(self, runners: Sequence[T]) -> float:
        """What these do together, in instances of the fastest device."""
        if self.alike:
            return len(runners)
        return sum([self._costs.speed(self._devices[runner]) for runner in runners])

    def work_ns(self, runner: T, time_ns: int) -> int:
        """What that instance does in a time, as time of an instance on the fastest device."""
        return time_ns if self.alike else int(time_ns * self._costs.speed(self._devices[runner]))

    def first(self, idle: Sequence[T], signature: object, rows: int) -> T:
        """Of the `idle` ones the one that answers first."""
        return self._fastest_first(idle, signature, rows)[0]

    def plan(
        self, idle: Sequence[T], running: Iterable[T], queue: RequestQueue, now_ns: int, limits: Limits
    ) -> tuple[T, Plan]:
        """The instance that begins next with what it begins, or how long they all wait. There is an idle one."""
        busy = max([self._costs.speed(self._devices[runner]) for runner in running], default=0.0)
        until_ns: int | None = None
        signature, rows = _head(queue, limits)
        order = self._fastest_first(idle, signature, rows)
        for runner in order:
            step = plan(queue, now_ns, limits, self._of[runner])
            if isinstance(step, Dispatch) and not (step.late and self._costs.speed(self._devices[runner]) < busy):
                return runner, step
            if isinstance(step, Wait):
                until_ns = step.until_ns if until_ns is None else min(until_ns, step.until_ns)
        return order[0], IDLE if until_ns is None else Wait(until_ns)

    def _fastest_first(self, idle: Sequence[T], signature: object, rows: int) -> list[T]:
        """One of each device; one whose cost is not known comes first, to become known."""
        one_each = {self._devices[runner]: runner for runner in idle}
        return sorted(
            one_each.values(), key=lambda runner: self._of[runner].for_signature(signature).predict_ns(rows) or 0
        )


def _head(queue: RequestQueue, limits: Limits) -> tuple[object, int]:
    """Signature and rows by which instances are compared: of the most urgent request's kind as many as wait."""
    rows = max(1, min(queue.rows, limits.max_batch_size))
    return next((line.signatures()[0] for line in queue.lines if line.size), None), rows
