"""Whatever comes and goes, a Triton that still reads a request's place finds that request's numbers in it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from server.engine.triton.memory import Backing, Copy, Memory, Placed
from server.engine.triton.methods import SYSTEM_REGIONS
from server.tensor import Tensor
from server.types import InferRequest

SIZE = 1 << 20
KEPT_S = 30
TENSORS = st.lists(st.sampled_from([0, 1, 63, 65, 1 << 16, 70_000, 150_000, 1 << 19]), min_size=1, max_size=2)
STEPS = st.lists(
    st.tuples(st.just("put"), TENSORS)
    | st.tuples(st.sampled_from(["read", "given up"]), st.integers(0, 9))
    | st.tuples(st.just("wait"), st.sampled_from([1, KEPT_S // 2, KEPT_S + 1])),
    min_size=8,
    max_size=30,
)


class Bytes(Backing):
    """Plain memory of this process."""

    methods = SYSTEM_REGIONS

    def __init__(self, aligned: int) -> None:
        self.aligned = aligned  # type: ignore[misc]
        self.size_bytes = SIZE
        self.name = "r"
        self.there = bytearray(SIZE)

    def open(self) -> None:
        """It is there."""

    def write(self, copies: Sequence[Copy]) -> None:
        for at, data in copies:
            assert 0 <= at <= at + len(data) <= SIZE
            self.there[at : at + len(data)] = data

    def close(self) -> None:
        """With the test."""

    def registration(self) -> Any:
        raise AssertionError

    def was_left(self, region: str) -> bool:
        raise AssertionError(region)


class Run:
    """A memory, and who may still be read there, until when."""

    def __init__(self, aligned: int) -> None:
        self.now = 0.0
        self.backing = Bytes(aligned)
        self.memory = Memory(self.backing, 1, lambda: self.now)
        self.memory.open()
        self.in_use: list[tuple[Placed, int]] = []
        self.kept: list[tuple[float, Placed, int]] = []
        self.count = 0

    def put(self, sizes: list[int]) -> None:
        self.count += 1
        value = self.count % 251
        tensors = [Tensor.from_numpy(f"x{i}", np.full(size, value, np.uint8)) for i, size in enumerate(sizes)]
        placed = self.memory.put(InferRequest("m", tensors, on_settle=lambda *_: None, received_ns=0))
        if placed is not None:
            assert {name: piece.byte_size for name, piece in placed.pieces.items()} == {
                f"x{i}": size for i, size in enumerate(sizes) if size
            }
            assert all(piece.offset % self.backing.aligned == 0 for piece in placed.pieces.values())
            self.in_use.append((placed, value))

    def leave(self, which: int, *, read: bool) -> None:
        if self.in_use:
            placed, value = self.in_use.pop(which % len(self.in_use))
            self.memory.give_back(placed, read=read)
            if not read:
                self.kept.append((self.now + KEPT_S, placed, value))

    def check(self) -> None:
        self.kept = [each for each in self.kept if each[0] > self.now]
        for placed, value in (*self.in_use, *(each[1:] for each in self.kept)):
            for piece in placed.pieces.values():
                found = self.backing.there[piece.offset : piece.offset + piece.byte_size]
                assert found.count(value) == piece.byte_size


@settings(max_examples=60)
@given(st.sampled_from([64, 256]), STEPS)
def test_no_place_is_used_while_it_may_be_read(aligned: int, steps: list[tuple[str, Any]]) -> None:
    """In use, or of a request that was given up. When nobody reads any more, all places are free."""
    run = Run(aligned)
    for step, what in steps:
        if step == "put":
            run.put(what)
        elif step == "wait":
            run.now += what
        else:
            run.leave(what, read=step == "read")
        run.check()
    while run.in_use:
        run.leave(0, read=True)
    run.now += KEPT_S + 1
    run.put([1])
    assert run.memory.taken == len(run.in_use)
