"""Whole answers, kept in memory for requests that ask the same again: bounded by bytes, the least recently used go.

One for the process, shared by all models that ask for it, as Triton's `local` cache. What is kept is a copy, for an
answer's own tensors are views on the outputs of its whole batch. But for `key` and `copied` all is the event loop's.

Source: Triton, docs/user_guide/response_cache.md.
"""

from __future__ import annotations

import secrets
from collections import OrderedDict
from collections.abc import Sequence
from hashlib import blake2b
from itertools import count
from typing import NamedTuple

from server.offload import Offload
from server.tensor import Tensor
from server.types import InferRequest

ON_LOOP_BYTES = 16 * 1024
"""To hash or to copy so much costs less than the way to a thread and back."""
_THREADS = 2
_DIGEST_BYTES = 32
_ENTRY_BYTES = 350
_TENSOR_BYTES = 250
"""What an entry takes beside its tensors' data, and what each tensor does: measured, and rounded up."""


class CacheCounts(NamedTuple):
    """What a cache tells of itself; the names are those of Triton's nv_cache_* metrics."""

    util: float
    """Bytes in use over the bytes that it may use."""
    num_entries: int
    num_lookups: int
    num_hits: int
    num_misses: int
    num_evictions: int
    """Entries that made room for others."""
    lookup_duration: int
    """Microseconds, as the next."""
    insertion_duration: int


class ResponseCache:
    """`size_bytes`, above 0, bounds the data of all entries together with what holds it."""

    def __init__(self, size_bytes: int) -> None:
        self.size_bytes = size_bytes
        self.used_bytes = 0
        self.hits = 0
        self.misses = 0
        self.evictions = 0
        self.lookup_ns = 0
        self.insertion_ns = 0
        self.offload = Offload(_THREADS, "cache")
        # With a secret nobody outside can look for two requests of one digest.
        self._secret = secrets.token_bytes(_DIGEST_BYTES)
        self._entries: OrderedDict[bytes, tuple[tuple[Tensor, ...], int]] = OrderedDict()
        self._owners = count()

    def owner(self) -> bytes:
        """A new owner of entries: a version as it is loaded now. What an earlier load of it gave is not found by it."""
        return next(self._owners).to_bytes(8, "little")

    def key(self, owner: bytes, request: InferRequest) -> bytes:
        """Equal for requests that `owner` answers alike: their inputs, in the order of the config, and what they want.

        What does not reach the model is not in it: id, parameters, priority, deadline. Any thread.
        """
        views = [memoryview(tensor.data) for tensor in request.inputs]
        said = [(t.name, t.datatype, t.shape, v.nbytes) for t, v in zip(request.inputs, views, strict=True)]
        # No two of these begin alike, and they tell the length of what follows: only equal requests are equal bytes.
        digest = blake2b(repr((tuple(request.outputs), said)).encode(), key=self._secret, digest_size=_DIGEST_BYTES)
        for view in views:
            digest.update(view)
        return owner + digest.digest()

    def find(self, key: bytes) -> tuple[Tensor, ...] | None:
        """The outputs of the answer, which nobody may change; None: it is not there."""
        entry = self._entries.get(key)
        if entry is None:
            self.misses += 1
            return None
        self.hits += 1
        self._entries.move_to_end(key)
        return entry[0]

    def fits(self, outputs: Sequence[Tensor]) -> bool:
        """Whether they could be kept at all."""
        return entry_bytes(outputs) <= self.size_bytes

    def keep(self, key: bytes, outputs: tuple[Tensor, ...]) -> None:
        """Keep `outputs` (see `copied`) in place of what was least recently found or kept; if they fit and are new."""
        size = entry_bytes(outputs)
        if key in self._entries or size > self.size_bytes:
            return
        self.used_bytes += size
        while self.used_bytes > self.size_bytes:
            _, (_, freed) = self._entries.popitem(last=False)
            self.used_bytes -= freed
            self.evictions += 1
        self._entries[key] = (outputs, size)

    def forget(self, owner: bytes) -> None:
        """Free what was kept for it: it is out of service."""
        for key in [key for key in self._entries if key.startswith(owner)]:
            self.used_bytes -= self._entries.pop(key)[1]

    def counts(self) -> CacheCounts:
        return CacheCounts(
            util=self.used_bytes / self.size_bytes,
            num_entries=len(self._entries),
            num_lookups=self.hits + self.misses,
            num_hits=self.hits,
            num_misses=self.misses,
            num_evictions=self.evictions,
            lookup_duration=self.lookup_ns // 1000,
            insertion_duration=self.insertion_ns // 1000,
        )


def entry_bytes(outputs: Sequence[Tensor]) -> int:
    """What an entry of these outputs takes."""
    return _ENTRY_BYTES + sum([_TENSOR_BYTES + memoryview(tensor.data).nbytes for tensor in outputs])


def copied(outputs: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """The same tensors with memory of their own. Any thread."""
    return tuple(Tensor(tensor.name, tensor.datatype, tensor.shape, bytes(tensor.data)) for tensor in outputs)
