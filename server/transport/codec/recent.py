"""What was seen lately, by its bytes, in bounded memory."""

from __future__ import annotations

from collections.abc import Hashable
from typing import Generic, TypeVar

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")


class Recent(Generic[K, V]):
    """A map that forgets what was not asked for lately.

    Two generations: what is put, or found in the old one, is young. When the young ones weigh more than
    `max_weight` they become the old ones, and the old ones are gone. So whoever puts ever new entries pushes out
    only what nobody asked for meanwhile, and at most twice `max_weight` (and an entry) is held.
    """

    def __init__(self, max_weight: int) -> None:
        self._max_weight = max_weight
        self._young: dict[K, tuple[V, int]] = {}
        self._old: dict[K, tuple[V, int]] = {}
        self._weight = 0

    def __len__(self) -> int:
        return len(self._young) + len(self._old)

    def get(self, key: K) -> V | None:
        entry = self._young.get(key)
        if entry is None:
            entry = self._old.pop(key, None)
            if entry is None:
                return None
            self.put(key, *entry)
        return entry[0]

    def put(self, key: K, value: V, weight: int) -> None:
        """Keep `value`, which weighs `weight`, for a `key` that was not found."""
        if self._weight + weight > self._max_weight:
            self._old, self._young, self._weight = self._young, {}, 0
        self._young[key] = value, weight
        self._weight += weight
