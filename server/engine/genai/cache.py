"""The keys and values of the texts that are being written: a row of memory for each, for as long as it needs it.

The rows lie in one array for each layer, so that a pass over the first n of them needs no copy: the model reads its
pasts there and writes the new ones behind them. Memory is reserved by address alone: a page is the system's until a
token is written into it, and is given back as soon as its text is over.

R = rows, H = heads, C = tokens that a row has room for, D = size of a head.
"""

from __future__ import annotations

import mmap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from server.tensor import Array

_NO_RESERVE = 0x4000
"""MAP_NORESERVE, which the module does not name in every version: addresses are not counted as memory."""


class KvCache:
    """Of a model's layers."""

    def __init__(self, layers: int, rows: int, heads: int, context: int, size: int, dtype: np.dtype[Any]) -> None:
        self.rows, self.context = rows, context
        token_bytes = heads * size * dtype.itemsize
        capacity = context
        while capacity * token_bytes % mmap.PAGESIZE:  # a row begins a page, or it could not be given back alone
            capacity += 1
        self.row_shape = (heads, capacity, size)
        self.bytes_per_token = 2 * layers * token_bytes
        self._row_bytes = capacity * token_bytes
        self._maps = [
            mmap.mmap(-1, rows * self._row_bytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _NO_RESERVE)
            for _ in range(2 * layers)
        ]
        self.arrays: Sequence[Array] = [
            np.frombuffer(buffer, dtype).reshape(rows, *self.row_shape) for buffer in self._maps
        ]
        """A key and a value for each layer, in turn."""

    def move(self, source: int, target: int, tokens: int) -> None:
        """Copy the first `tokens` of a row."""
        for array in self.arrays:
            array[target, :, :tokens] = array[source, :, :tokens]

    def swap(self, one: int, other: int, tokens: int) -> None:
        """Exchange the first `tokens` of two rows."""
        for array in self.arrays:
            kept = array[one, :, :tokens].copy()
            array[one, :, :tokens] = array[other, :, :tokens]
            array[other, :, :tokens] = kept

    def free(self, row: int) -> None:
        """Give the row's memory back to the system."""
        for buffer in self._maps:
            buffer.madvise(mmap.MADV_DONTNEED, row * self._row_bytes, self._row_bytes)

    def resident_bytes(self) -> int:
        """Memory that holds tokens now, as the system counts it: whole pages."""
        return sum(_resident(array) for array in self.arrays)

    def close(self) -> None:
        """Free everything. No pass may use it any more."""
        self.arrays = ()
        self._maps.clear()


def _resident(array: Array) -> int:
    """Pages of `array` that are there. Source: Documentation/admin-guide/mm/pagemap.rst, bit 63."""
    first = array.ctypes.data // mmap.PAGESIZE
    pages = -(-array.nbytes // mmap.PAGESIZE)
    with Path("/proc/self/pagemap").open("rb", buffering=0) as file:
        file.seek(first * 8)
        entries = np.frombuffer(file.read(pages * 8), np.uint64)
    return int(np.count_nonzero(entries >> np.uint64(63))) * mmap.PAGESIZE
