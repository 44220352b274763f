"""When a text that comes now would have its first token: what was learned of steps, and a look ahead. No clock.

The look ahead plays what is known: who runs leaves when its text is as long as texts were of late, or may be, and then
those who wait take its place, in their order. Unknown is what others will ask for, and who goes away early.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

_WEIGHT = 0.1
"""Of what was seen last, in the means."""


class Part(NamedTuple):
    """A text in a look ahead."""

    prompt_tokens: int
    """That are still to be taken in."""
    tokens: float
    """That it will still have."""
    reserved: int
    """Of the budget of tokens, for all that it may come to."""


@dataclass(slots=True)
class WritingCosts:
    """Means of late. 0: not known yet."""

    step_ns: float = 0.0
    """Of a step that gave texts a token, without what it took in of prompts."""
    prefill_ns: float = 0.0
    """Of one token of a prompt."""
    tokens: float = 0.0
    """Of a text that ended by itself."""

    def learn_step(self, step_ns: int, *, wrote: bool, prefilled: int, prefill_ns: int) -> None:
        """`wrote`: it gave tokens to texts that ran before it."""
        if wrote:
            self.step_ns = _mean(self.step_ns, step_ns - prefill_ns)
        if prefilled:
            self.prefill_ns = _mean(self.prefill_ns, prefill_ns / prefilled)

    def learn_end(self, tokens: int) -> None:
        self.tokens = _mean(self.tokens, tokens)

    def expected(self, made: int, most: int) -> float:
        """Tokens that a text of `made` will still have."""
        left = most - made
        return min(left, max(1.0, self.tokens - made)) if self.tokens else left


def _mean(before: float, seen: float) -> float:
    return before + _WEIGHT * (seen - before) if before else seen


@dataclass(frozen=True, slots=True)
class Room:
    """Of one instance, for those who run and those who come."""

    rows: int
    tokens: int
    chunk: int


def first_token_ns(
    running: Iterable[Part], waiting: Iterable[Part], own: Part, room: Room, costs: WritingCosts
) -> int | None:
    """From now to the first token of a text that goes behind those who wait; None where no cost is known."""
    if not costs.prefill_ns:
        return None
    look = _Look(running, room)
    for part in waiting:
        look.begin(part)
    steps = look.begin(own)
    return int(steps * costs.step_ns + (look.prompt_tokens) * costs.prefill_ns)


def done_ns(running: Iterable[Part], waiting: Iterable[Part], room: Room, costs: WritingCosts) -> int:
    """From now until everybody's text has ended; 0 where no cost is known."""
    look = _Look(running, room)
    for part in waiting:
        look.begin(part)
    return int(look.last * costs.step_ns + look.prompt_tokens * costs.prefill_ns)


class _Look:
    """Time is counted in steps; what is taken in of prompts comes on top."""

    def __init__(self, running: Iterable[Part], room: Room) -> None:
        self._room = room
        self._now = 0.0
        self._ends: list[tuple[float, int]] = []
        self._reserved = 0
        self.prompt_tokens = 0
        """Taken in until now."""
        self.last = 0.0
        """When the last text ends."""
        for part in running:
            self._add(part)

    def begin(self, part: Part) -> float:
        """It begins as soon as there is room. The step in which it has its first token."""
        while len(self._ends) >= self._room.rows or self._reserved + part.reserved > self._room.tokens:
            if not self._ends:
                break
            end, reserved = heapq.heappop(self._ends)
            self._now = max(self._now, end)
            self._reserved -= reserved
        self._add(part)
        return self._now + part.prompt_tokens / self._room.chunk

    def _add(self, part: Part) -> None:
        self.prompt_tokens += part.prompt_tokens
        self._reserved += part.reserved
        end = self._now + part.prompt_tokens / self._room.chunk + part.tokens
        self.last = max(self.last, end)
        heapq.heappush(self._ends, (end, part.reserved))
