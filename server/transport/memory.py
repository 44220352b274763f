"""Bytes of requests that are still arriving, over all connections of a listener."""

from __future__ import annotations


class Memory:
    """`limit` bytes at most. Whoever takes some gives them back."""

    __slots__ = ("_left",)

    def __init__(self, limit: int) -> None:
        self._left = limit

    def take(self, size: int) -> bool:
        """False, and nothing is taken, if there are not as many left."""
        if size > self._left:
            return False
        self._left -= size
        return True

    def give_back(self, size: int) -> None:
        self._left += size
