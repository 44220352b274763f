"""When a text that comes now would have its first token: what was learned of steps, and a look ahead. No clock.

The look ahead plays what is known, step by step: who runs leaves when its text is over, those who wait take its place
in their order, and their prompts are taken in one behind the other. How long texts are is told by those that ended of
late, each taken for a different one of them: of many that run, the first is over long before the mean. Unknown is what
others will ask for, and who goes away early.
"""

from __future__ import annotations

import heapq
from bisect import bisect_right, insort
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import ceil
from typing import NamedTuple

from server.scheduler.cost import CostModel

_WEIGHT = 0.1
"""Of what was seen last, in the means."""
_ENDED = 64
"""Texts whose lengths are remembered."""
_GOLDEN = 0.6180339887498949
"""The fraction of its multiples is spread evenly, however many are taken."""


class Part(NamedTuple):
    """A text in a look ahead."""

    prompt_tokens: int
    """That are still to be taken in."""
    tokens: float
    """That it will still have."""
    reserved: int
    """Of the budget of tokens, for all that it may come to."""


class Lengths:
    """Of the texts that ended of late."""

    def __init__(self) -> None:
        self._of_late: deque[tuple[int, bool]] = deque()
        self._sorted: list[tuple[int, bool]] = []
        """With whether it came to its end by itself: else no more is known than that it was not shorter."""

    def learn(self, tokens: int, *, by_itself: bool) -> None:
        """A text had so many."""
        if len(self._of_late) == _ENDED:
            self._sorted.remove(self._of_late.popleft())
        self._of_late.append((tokens, by_itself))
        insort(self._sorted, (tokens, by_itself))

    def left(self, made: int, most: int, place: float) -> int:
        """Tokens, 1 or more, that a text with `made` will still have. `place`: from 0 to 1, which of those that were
        longer it is taken for, by their lengths."""
        first = bisect_right(self._sorted, (made, True))
        longer = len(self._sorted) - first
        if not longer:
            return max(1, most - made)
        tokens, by_itself = self._sorted[first + int(place * longer)]
        return max(1, (min(tokens, most) if by_itself else most) - made)


class WritingCosts:
    """What steps took of late."""

    def __init__(self) -> None:
        self.steps = CostModel()
        """Of those that gave texts a token, by how many, without what they took in of prompts."""
        self.prefill_ns = 0.0
        """Of one token of a prompt; 0: not known."""
        self.hand_over = CostModel()
        """From a step's end until its tokens are told: as of one row."""
        self.wake = CostModel()
        """From a text's begin to its first step, where no other text kept it waiting; of one row, too."""
        self.lengths = Lengths()

    def learn_step(self, step_ns: int, *, ran: int, prefilled: int, prefill_ns: int) -> None:
        """`step_ns`: since the one before. `ran`: texts to which it gave a token and that had one before."""
        if ran:
            self.steps.observe(ran, step_ns - prefill_ns)
        if prefilled:
            seen = prefill_ns / prefilled
            self.prefill_ns += (_WEIGHT if self.prefill_ns else 1) * (seen - self.prefill_ns)

    def learn_around(self, hand_over_ns: int, wake_ns: int | None) -> None:
        """`wake_ns`: None where others kept it waiting."""
        self.hand_over.observe(1, hand_over_ns)
        if wake_ns is not None:
            self.wake.observe(1, wake_ns)

    def step_ns(self, running: int) -> float:
        """Of a step that gives so many texts a token. Of one size alone nothing is known of others: it stands for all,
        so that ignorance refuses nobody."""
        if not running:
            return 0.0
        return self.steps.mean_ns(running if len(self.steps.sizes) > 1 else 1)

    def expected(self, made: int, most: int, number: int) -> int:
        """Tokens that a text with `made` will still have; `number`: which one it is of those in a look ahead."""
        return self.lengths.left(made, most, (0.5 + number * _GOLDEN) % 1)


@dataclass(frozen=True, slots=True)
class Room:
    """Of one instance, for those who run and those who come."""

    rows: int
    tokens: int
    takes_in: Callable[[int, int], int]
    """Tokens of prompts that a step takes in, while so many wait to be taken in and so many run."""


def first_token_ns(
    running: Sequence[Part], waiting: Sequence[Part], own: Part, room: Room, costs: WritingCosts
) -> int | None:
    """From now to the first token of a text that goes behind those who wait; None where no cost is known."""
    if not costs.prefill_ns:
        return None
    look = _Look(running, room, costs, len(waiting) + 1)
    for part in (*waiting, own):
        look.begin(part)
    return int(look.told_ns())


def done_ns(running: Sequence[Part], waiting: Sequence[Part], room: Room, costs: WritingCosts) -> int:
    """From now until everybody's text has ended; 0 where no cost is known."""
    look = _Look(running, room, costs, len(waiting))
    for part in waiting:
        look.begin(part)
    look.end()
    return int(look.now_ns)


class _Look:
    def __init__(self, running: Sequence[Part], room: Room, costs: WritingCosts, coming: int) -> None:
        """`coming`: how many will begin behind those who have begun."""
        self._room = room
        self._costs = costs
        self._step_ns = [costs.step_ns(number) for number in range(room.rows + 1)]
        """By how many write."""
        self._step = 0.0
        self._ends: list[tuple[float, int]] = []
        """Of those that write: in which step, and what becomes free."""
        self._reserved = sum([part.reserved for part in running])
        begun = [part for part in running if part.prompt_tokens]
        self._coming = len(begun) + coming
        self._ends += [(part.tokens, part.reserved) for part in running if not part.prompt_tokens]
        heapq.heapify(self._ends)
        # A step is under way; by now half of it is over.
        self.now_ns = self._step_ns[len(self._ends)] / 2 if running else costs.wake.mean_ns(1)
        for part in begun:
            self._take_in(part)

    def begin(self, part: Part) -> None:
        """It begins as soon as there is room; then it has its first token."""
        room = self._room
        while self._ends and (len(self._ends) >= room.rows or self._reserved + part.reserved > room.tokens):
            self._go_on(self._ends[0][0])
        self._reserved += part.reserved
        self._take_in(part)

    def told_ns(self) -> float:
        """When who began last has its first token: in a step those who write have theirs first."""
        rest_ns = (ceil(self._step) - self._step) * self._step_ns[len(self._ends) - 1]
        return self.now_ns + rest_ns + self._costs.hand_over.mean_ns(1)

    def end(self) -> None:
        """Everybody writes to the end."""
        while self._ends:
            self._go_on(self._ends[0][0])

    def _take_in(self, part: Part) -> None:
        write = len(self._ends)
        size = self._room.takes_in(max(1, min(self._coming, self._room.rows - write)), write)
        self._coming -= 1
        self._go_on(self._step + part.prompt_tokens / size)
        self.now_ns += part.prompt_tokens * self._costs.prefill_ns
        heapq.heappush(self._ends, (self._step + part.tokens, part.reserved))

    def _go_on(self, step: float) -> None:
        """To that step; who ends until then leaves."""
        ends, step_ns = self._ends, self._step_ns
        while ends and ends[0][0] <= step:
            writing = len(ends)
            end, reserved = heapq.heappop(ends)
            if end > self._step:
                self.now_ns += (end - self._step) * step_ns[writing]
                self._step = end
            self._reserved -= reserved
        self.now_ns += (step - self._step) * step_ns[len(ends)]
        self._step = step
