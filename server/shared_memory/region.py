"""A region of memory that a client has registered, whatever kind of memory that is: read and written by copies.

The copy is also what makes checks worth something: a client can change its memory at any time, and not what was copied
of it. Source: Triton's extension_shared_memory.md.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Literal

from server.errors import InvalidRequest
from server.shared_memory.references import Reference
from server.tensor import Buffer

Kind = Literal["system", "cuda"]


class Region(ABC):
    """Open while it is registered or somebody uses it."""

    __slots__ = ("_users", "byte_size", "name")

    kind: Kind

    def __init__(self, name: str, byte_size: int) -> None:
        self.name = name
        self.byte_size = byte_size
        self._users = 1

    def hold(self) -> None:
        self._users += 1

    def release(self) -> None:
        self._users -= 1
        if not self._users:
            self._close()

    def check(self, reference: Reference) -> None:
        """Raises InvalidRequest for a piece that is not within the region."""
        _, offset, byte_size = reference
        if offset >= self.byte_size:
            raise InvalidRequest(
                "Invalid offset for shared memory region", f"'{self.name}' has {self.byte_size} bytes, got {offset}"
            )
        if offset + byte_size > self.byte_size:
            raise InvalidRequest(
                "Invalid offset + byte size for shared memory region",
                f"'{self.name}' has {self.byte_size} bytes, got {offset} + {byte_size}",
            )

    @abstractmethod
    def read(self, reference: Reference) -> Buffer:
        """A copy of the piece. Any thread. Raises InvalidRequest where the memory is not there any more."""

    @abstractmethod
    def write(self, offset: int, data: Buffer) -> None:
        """Any thread. Raises InvalidRequest where the memory is not there any more."""

    @abstractmethod
    def _close(self) -> None:
        """Nobody uses it."""


def not_registered(name: str, problem: str, kind: str = "") -> InvalidRequest:
    """`kind`: "CUDA ", where it is no memory of the host."""
    return InvalidRequest(f"failed to register {kind}shared memory region '{name}'", problem)
