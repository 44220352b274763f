"""Places in memory that two processes share, for inputs too large for a socket. Of a front and the engine process:

The front alone gives out places in it, and takes a place back when the request that has it is settled: nothing is said
of it on the link. A request that was cancelled may then still be in a pass, which reads what another one writes: its
own rows are thrown away, and no number in them can harm its neighbours' rows. Text could, so text goes by socket.

Of this process and a Triton: `engine/triton/memory.py`.
"""

from __future__ import annotations

import mmap
from collections import defaultdict

from server.tensor import Buffer

SMALLEST_BYTES = 64 * 1024
"""Of a place. Below, a socket is as fast (`make bench-workers`)."""


class Room:
    """Gives out places in memory of `size_bytes`, each of a power of two bytes; one that is given back is for the next
    of its size. What memory that is, and what is in it, is its owner's business."""

    def __init__(self, size_bytes: int) -> None:
        self._size = size_bytes
        self._fresh = 0
        """Where what was never given out begins."""
        self._free: defaultdict[int, list[int]] = defaultdict(list)
        self._taken: dict[int, int] = {}

    def take(self, size_bytes: int) -> int | None:
        """Where a place of at least so many bytes is; None: there is no room."""
        size = max(SMALLEST_BYTES, 1 << (size_bytes - 1).bit_length())
        free = self._free[size]
        if free:
            place = free.pop()
        elif self._fresh + size <= self._size:
            place, self._fresh = self._fresh, self._fresh + size
        else:
            return None
        self._taken[place] = size
        return place

    def give_back(self, place: int) -> None:
        self._free[self._taken.pop(place)].append(place)

    @property
    def taken(self) -> int:
        """Places in use."""
        return len(self._taken)


class Places(Room):
    """Places in memory that this process has mapped."""

    def __init__(self, file: int, size_bytes: int) -> None:
        """`file` is the descriptor of the memory."""
        super().__init__(size_bytes)
        self._memory = mmap.mmap(file, size_bytes)
        self._view = memoryview(self._memory)

    def put(self, datas: list[Buffer]) -> int | None:
        """Copy `datas` behind one another into a place and return where that is; None: there is no room."""
        place = self.take(sum([memoryview(data).nbytes for data in datas]))
        if place is None:
            return None
        at = place
        for data in datas:
            view = memoryview(data).cast("B")
            self._view[at : at + len(view)] = view
            at += len(view)
        return place


def view_of(file: int, size_bytes: int) -> memoryview:
    """What the other side sees of the memory behind the descriptor `file`: to be read only."""
    return memoryview(mmap.mmap(file, size_bytes, prot=mmap.PROT_READ))
