"""From one configuration to the best one: each thing varied in turn, and what is better is kept.

A configuration is not measured to its end unless it is better: it is asked whether it holds a little more than the best
one so far, which is one window, or two. Only where it does, its own highest rate is searched. Then the best one so far
is asked for that rate again: where it holds it too, it was a quiet minute that was better, and not the configuration.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Protocol

from server.load.search import Found, Probe
from server.tuning.choices import Choice, axes

BETTER = 1.03
"""Less than this is no reason to change a configuration."""

_NOTES = {"slo": "", "generator": "the generator was the limit", "none": "nothing higher was tried"}


class Trial(Protocol):
    """A server with one configuration, for as long as it is measured."""

    def reaches(self, rate: float) -> Probe:
        """Whether it holds that rate."""

    def highest(self, guess: float | None) -> Found:
        """The highest that it holds, searched from `guess`; None: from what a closed loop gives."""


class Failed(Exception):
    """A configuration can't be served; the text says why."""


Try = Callable[[Choice, Callable[[Trial], None]], None]
"""Serve a choice, and call with its trial. Raises Failed."""


@dataclass(frozen=True)
class Tried:
    choice: Choice
    rate: float
    """The highest that holds; 0: nothing that was asked."""
    at: Probe | None
    """The window that says most of it: the best that held, else the last that did not."""
    note: str
    better: bool


def tune(
    first: Choice,
    cores: int,
    batches: bool,
    attempt: Try,
    over: Callable[[], bool],
    tell: Callable[[Tried], None] = lambda _: None,
) -> list[Tried]:
    """All that was tried, in order; the last one that is `better` is the best, and the first is the one that is there.

    `over`: the time is up, so that what runs is ended and nothing more is begun.

    Raises:
        Failed: the first one can't be served.
    """
    found: list[Tried] = []

    def note(one: Tried) -> None:
        found.append(one)
        tell(one)

    note(_measured(first, attempt, 0.0))
    best, rate, improved = first, found[0].rate, True
    seen = {first}
    while improved and not over():
        improved = False
        for field, values in axes(first, cores, batches).items():
            for value in values:
                choice = replace(best, **{field: value})
                if choice in seen or over():
                    continue
                seen.add(choice)
                try:
                    one = _measured(choice, attempt, rate)
                    again = _again(best, attempt, one.rate) if one.better and rate else None
                except Failed as error:
                    one, again = Tried(choice, 0.0, None, f"can't be served: {error}", better=False), None
                if again is not None and again.better:
                    note(replace(one, note="so does the best one, asked again", better=False))
                    note(again)
                    rate = again.rate
                    continue
                note(one)
                if one.better:
                    best, rate, improved = choice, one.rate, True
    return found


def _again(choice: Choice, attempt: Try, rate: float) -> Tried:
    """Whether it holds that rate as well."""
    made: list[Probe] = []
    attempt(choice, lambda trial: made.append(trial.reaches(rate)))
    (at,) = made
    return Tried(choice, rate if at.held else 0.0, at, "asked again", better=at.held)


def _measured(choice: Choice, attempt: Try, rate: float) -> Tried:
    """Against the best `rate` so far; 0: there is none."""
    made: list[Tried] = []

    def measure(trial: Trial) -> None:
        if rate:
            wanted = trial.reaches(rate * BETTER)
            if not wanted.held:
                note = wanted.late or f"at {wanted.rate:,.0f}/s: {', '.join(wanted.broken)}"
                made.append(Tried(choice, 0.0, wanted, note, better=False))
                return
        found = trial.highest(rate * BETTER if rate else None)
        at = found.best or (found.probes[-1] if found.probes else None)
        note = _NOTES[found.bound] if found.rate else "holds no rate"
        made.append(
            Tried(choice, found.rate, at, note, better=found.rate > rate * BETTER or (not rate and found.rate > 0))
        )

    attempt(choice, measure)
    return made[0]
