"""Which text has which row of the cache. Those that take the next pass lie in the first rows, without a gap."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Generic, Protocol, TypeVar

from server.engine.genai.cache import KvCache


class Holder(Protocol):
    row: int
    length: int
    """Tokens of it that are in the cache."""


T = TypeVar("T", bound=Holder)


class Rows(Generic[T]):
    """Of one cache. A text moves when others come and go: by as many bytes as it has in the cache."""

    def __init__(self, cache: KvCache) -> None:
        self._cache = cache
        self._held: list[T | None] = [None] * cache.rows
        self._active = 0

    @property
    def active(self) -> Sequence[T]:
        """In the order of their rows."""
        return [held for held in self._held[: self._active] if held is not None]

    @property
    def free(self) -> int:
        return self._held.count(None)

    def take(self, holder: T) -> None:
        """Give it a row, without a part in passes. There is one free."""
        row = self._held.index(None, self._active)
        self._held[row] = holder
        holder.row, holder.length = row, 0

    def activate(self, holder: T) -> None:
        """It takes part in passes from now on."""
        self._exchange(holder.row, self._active)
        self._active += 1

    def deactivate(self, holder: T) -> None:
        """It keeps its row, and takes no part in passes."""
        self._active -= 1
        self._exchange(holder.row, self._active)

    def release(self, holder: T) -> None:
        """Free its memory."""
        row, self._held[holder.row] = holder.row, None
        if row < self._active:
            self._active -= 1
            self._exchange(row, self._active)
            row = self._active
        self._cache.free(row)
        holder.row = -1

    def _exchange(self, one: int, other: int) -> None:
        if one == other:
            return
        first, second = self._held[one], self._held[other]
        if first is not None and second is not None:
            self._cache.swap(one, other, max(first.length, second.length))
        elif first is not None:
            self._cache.move(one, other, first.length)
            self._cache.free(one)
        elif second is not None:
            self._cache.move(other, one, second.length)
        self._held[one], self._held[other] = second, first
        if first is not None:
            first.row = other
        if second is not None:
            second.row = one
