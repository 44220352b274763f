"""Our HTTP/2 under bytes that no client should send: some thousand mutations of valid conversations, seeded."""

from __future__ import annotations

import random

import pytest

from tests.support.http2_fuzz import SEEDS, converse

ROUNDS = 600


def mutated(rng: random.Random) -> bytes:
    parts = bytearray(b"".join(rng.choices(SEEDS, k=rng.randint(1, 4))))
    for _ in range(rng.randint(0, 12)):
        at = rng.randrange(len(parts))
        match rng.randrange(4):
            case 0:
                parts[at] = rng.randrange(256)
            case 1:
                parts[at] ^= 1 << rng.randrange(8)
            case 2:
                del parts[at : at + rng.randint(1, 8)]
            case _:
                parts[at:at] = rng.randbytes(rng.randint(1, 8))
        if not parts:
            break
    return bytes(parts)


@pytest.mark.parametrize("seed", range(8))
def test_mutated_conversations(seed: int) -> None:
    """No bytes make the core raise, hold more than it may, or lose a request."""
    rng = random.Random(seed)
    for _ in range(ROUNDS):
        converse(mutated(rng), [rng.randint(1, 60) for _ in range(5)] if rng.random() < 0.5 else [])
