"""Whatever reads the bytes of strangers, under bytes that nobody should send: thousands of mutations, seeded."""

from __future__ import annotations

import random
from collections.abc import Sequence

import pytest

from tests.support.fuzz_corpus import MOST_BYTES, kept
from tests.support.fuzz_files import FILES
from tests.support.fuzz_targets import TARGETS, cut, joined

ROUNDS = 300


def mutated(rng: random.Random, seeds: Sequence[bytes]) -> bytes:
    """Some seeds one after the other, of which some octets are others, gone, or more."""
    parts = bytearray(rng.choice(seeds) + b"".join(rng.choices(seeds, k=rng.randint(0, 3))))
    for _ in range(rng.randint(0, 12)):
        at = rng.randrange(len(parts))
        match rng.randrange(5):
            case 0:
                parts[at] = rng.randrange(256)
            case 1:
                parts[at] ^= 1 << rng.randrange(8)
            case 2:
                del parts[at : at + rng.randint(1, 8)]
            case 3:
                parts[at:at] = parts[rng.randrange(len(parts)) :][: rng.randint(1, 60)]
            case _:
                parts[at:at] = rng.randbytes(rng.randint(1, 8))
        if not parts:
            break
    return bytes(parts)


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("target", TARGETS)
def test_mutated_bytes_break_no_rule(target: str, seed: int) -> None:
    """None makes a reader raise, hold more than it may, lose a request, or read otherwise for what came before."""
    rng = random.Random(f"{target} {seed}")
    for _ in range(ROUNDS):
        TARGETS[target].one(mutated(rng, TARGETS[target].seeds))


@pytest.mark.parametrize("target", FILES)
def test_mutated_files_break_no_rule(target: str) -> None:
    """None makes a reader raise what nobody expects, nor hides from us what others would read."""
    one, seeds = FILES[target]
    rng, made = random.Random(target), seeds()
    for seed in made:
        one(seed)
    for _ in range(ROUNDS if target == "onnx" else ROUNDS // 3):
        one(mutated(rng, made))


@pytest.mark.parametrize("target", [*TARGETS, *FILES])
def test_what_fuzzing_came_by_breaks_no_rule(target: str) -> None:
    """Inputs that led a fuzzer to lines that nothing else had led to; small ones, as many as a repository may have."""
    one = TARGETS[target].one if target in TARGETS else FILES[target][0]
    inputs = kept(target)
    assert inputs
    assert sum(map(len, inputs)) <= MOST_BYTES
    for each in inputs:
        one(each)


@pytest.mark.parametrize("target", TARGETS)
def test_every_seed_is_well_formed_to_its_target(target: str) -> None:
    """A corpus of nonsense would lead nowhere."""
    for seed in TARGETS[target].seeds:
        TARGETS[target].one(seed)


def test_pieces_are_cut_as_they_were_joined() -> None:
    """Long ones come in several."""
    assert list(cut(joined(b"a", b"", b"b" * 300))) == [b"a", b"", b"b" * 255, b"b" * 45]
    assert list(cut(b"\x05ab")) == [b"ab"]
