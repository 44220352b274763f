"""Which steps of an ensemble a request needs, and which of them may run by now. Pure: no clock, no requests.

A step runs as soon as each tensor that it takes is there, whatever others are at. Steps whose outputs lead to nothing
that is asked for do not run, and of a step that runs only the outputs that somebody takes are asked for.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from server.ensembles import Ensemble

_MOST_PLANS = 64
"""Kept at a time: clients choose what they ask for, in any order."""


class Plan(NamedTuple):
    """What an answer with certain outputs takes; the same for every request that asks for them."""

    wanted: tuple[str, ...]
    """The ensemble's outputs, in the order of the answer."""
    outputs: tuple[tuple[str, ...], ...]
    """By step: the outputs of its model that somebody takes; none: the step does not run."""
    first: tuple[int, ...]
    """Steps that wait for nothing but the request."""
    waits: tuple[int, ...]
    """By step: how many tensors of other steps it waits for."""
    readers: Mapping[str, tuple[int, ...]]
    """By tensor: the steps that run and wait for it."""
    steps: int
    """How many run."""


class Plans:
    """Of one ensemble."""

    def __init__(self, ensemble: Ensemble, outputs: Sequence[str]) -> None:
        """`outputs`: of the ensemble, in the order of its config."""
        self._steps = ensemble.steps
        self._sources = {
            tensor: index for index, step in enumerate(ensemble.steps) for tensor in step.output_map.values()
        }
        self._all = self._make(tuple(outputs))
        self._some: dict[tuple[str, ...], Plan] = {}

    def plan(self, wanted: Sequence[str]) -> Plan:
        """What a request for these outputs takes; for none, all of them."""
        if not wanted:
            return self._all
        key = tuple(wanted)
        plan = self._some.get(key)
        if plan is None:
            if len(self._some) == _MOST_PLANS:
                self._some.clear()
            plan = self._some[key] = self._make(key)
        return plan

    def _make(self, wanted: tuple[str, ...]) -> Plan:
        taken = self._taken(wanted)
        running = {self._sources[tensor] for tensor in taken if tensor in self._sources}
        waits, readers = [0] * len(self._steps), dict[str, list[int]]()
        for index in sorted(running):
            for tensor in sorted(set(self._steps[index].input_map.values()) & self._sources.keys()):
                waits[index] += 1
                readers.setdefault(tensor, []).append(index)
        return Plan(
            wanted,
            tuple(
                tuple(output for output, tensor in step.output_map.items() if tensor in taken) for step in self._steps
            ),
            tuple(index for index in sorted(running) if not waits[index]),
            tuple(waits),
            {tensor: tuple(steps) for tensor, steps in readers.items()},
            len(running),
        )

    def _taken(self, wanted: Iterable[str]) -> set[str]:
        """Every tensor that leads to what is wanted."""
        taken: set[str] = set()
        left = list(wanted)
        while left:
            tensor = left.pop()
            if tensor not in taken:
                taken.add(tensor)
                if tensor in self._sources:
                    left += self._steps[self._sources[tensor]].input_map.values()
        return taken


class Progress:
    """How far one request has come."""

    __slots__ = ("_left", "_readers", "_waits")

    def __init__(self, plan: Plan) -> None:
        self._readers = plan.readers
        self._waits = list(plan.waits)
        self._left = plan.steps

    def ended(self, tensors: Iterable[str]) -> list[int]:
        """A step ended and gave these tensors: the steps that may run now."""
        self._left -= 1
        ready: list[int] = []
        for tensor in tensors:
            for step in self._readers.get(tensor, ()):
                self._waits[step] -= 1
                if not self._waits[step]:
                    ready.append(step)
        return ready

    def waiting(self) -> list[int]:
        """Steps that still wait for others."""
        return [step for step, count in enumerate(self._waits) if count]

    @property
    def over(self) -> bool:
        """Every step that is needed has ended."""
        return not self._left
