"""Strings that end a text, also where they span tokens: no part of one is ever told. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple


class Told(NamedTuple):
    """What may be told now; `stopped` is the string that ended the text, None while it goes on."""

    text: str
    stopped: str | None = None


class StopStrings:
    """Of one text. The one that begins first ends it, of those that begin together the longest; none is empty."""

    __slots__ = ("_held", "_include", "_stops")

    def __init__(self, stops: Sequence[str], *, include: bool = False) -> None:
        """`include`: the string that ends the text is told as well."""
        self._stops = tuple(stops)
        self._include = include
        self._held = ""

    def push(self, text: str) -> Told:
        """Take the next piece. What might be the beginning of a stop string is held back."""
        if not self._stops:
            return Told(text)
        text = self._held + text
        found = min(((at, -len(stop)) for stop in self._stops if (at := text.find(stop)) >= 0), default=None)
        if found is not None:
            at, length = found[0], -found[1]
            self._held = ""
            return Told(text[: at + length if self._include else at], text[at : at + length])
        keep = self._beginning(text)
        self._held = text[len(text) - keep :]
        return Told(text[: len(text) - keep])

    def flush(self) -> str:
        """The text ends otherwise: what was held back was no stop string."""
        held, self._held = self._held, ""
        return held

    def _beginning(self, text: str) -> int:
        """Characters at the end of `text` that may be the beginning of a stop string: the most for any."""
        longest = min(len(text), max(map(len, self._stops)) - 1)
        for size in range(longest, 0, -1):
            end = text[len(text) - size :]
            if any(stop.startswith(end) for stop in self._stops):
                return size
        return 0
