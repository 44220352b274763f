"""From logits to a token: cuts, penalties, draws."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from server.engine.genai.parameters import Sampling
from server.engine.genai.sampling import Sampler, likely

LOGITS = np.log(np.array([0.1, 0.4, 0.3, 0.15, 0.05], np.float32))


def drawn(logits: np.ndarray, count: int = 4000, prompt: tuple[int, ...] = (), **sampling: object) -> Counter[int]:
    sampler = Sampler(Sampling(seed=1, **sampling), prompt, len(logits), ())
    return Counter(sampler.choose(logits, made) for made in range(count))


@pytest.mark.parametrize(
    ("sampling", "want"),
    [
        ({}, [0.1, 0.4, 0.3, 0.15, 0.05]),
        ({"top_k": 2}, [0, 4 / 7, 3 / 7, 0, 0]),
        ({"top_p": 0.7}, [0, 4 / 7, 3 / 7, 0, 0]),
        ({"top_p": 0.71}, [0, 0.4 / 0.85, 0.3 / 0.85, 0.15 / 0.85, 0]),
        ({"top_p": 0.01}, [0, 1, 0, 0, 0]),
        ({"top_k": 3, "top_p": 0.5}, [0, 4 / 7, 3 / 7, 0, 0]),
        ({"temperature": 0.5}, np.array([1, 16, 9, 2.25, 0.25]) / 28.5),
    ],
)
def test_tokens_are_drawn_as_often_as_they_are_likely(sampling: dict[str, object], want: list[float]) -> None:
    """Of what top_k and top_p leave, at the temperature."""
    counts = drawn(LOGITS, **sampling)
    assert [counts[token] / 4000 for token in range(5)] == pytest.approx(want, abs=0.03)
    assert all(not counts[token] for token, share in enumerate(want) if share == 0)


def test_the_same_seed_draws_the_same_tokens() -> None:
    """And another one others."""

    def text(seed: int) -> list[int]:
        sampler = Sampler(Sampling(seed=seed), (), 5, ())
        return [sampler.choose(LOGITS, made) for made in range(50)]

    assert text(7) == text(7) != text(8)
    assert text(-1) == text(-1)


def test_a_large_vocabulary_is_cut_as_a_small_one() -> None:
    """top_p looks at the likeliest first, and at all where these do not suffice."""
    flat = np.zeros(5000, np.float32)
    assert len(drawn(flat, 1000, top_p=0.9)) > 700
    assert max(drawn(flat, 1000, top_p=0.5)) < 2500  # of equal ones the first
    assert set(drawn(flat, 50, top_k=3)) <= {0, 1, 2}


def test_what_was_said_is_said_less() -> None:
    """repetition_penalty of what the prompt has too, the others of what the text has, by how often."""
    sampler = Sampler(Sampling(temperature=0, repetition_penalty=10.0), [1], 5, ())
    assert not sampler.plain
    assert [sampler.choose(LOGITS, made) for made in range(3)] == [2, 3, 0]
    sampler = Sampler(Sampling(temperature=0, frequency_penalty=1.0), [1], 5, ())
    assert [sampler.choose(LOGITS, made) for made in range(4)] == [1, 2, 3, 1]
    sampler = Sampler(Sampling(temperature=0, presence_penalty=2.0), [1], 5, ())
    assert [sampler.choose(LOGITS, made) for made in range(5)] == [1, 2, 3, 0, 1]


def test_the_end_is_not_chosen_before_its_time() -> None:
    """min_tokens."""
    sampler = Sampler(Sampling(temperature=0, min_tokens=2), (), 5, (1,))
    assert [sampler.choose(LOGITS, made) for made in range(3)] == [2, 2, 1]


def test_logarithms_are_those_of_the_model() -> None:
    """The chosen token first, with its rank, then the likeliest."""
    told = likely(LOGITS, 3, 2)
    assert [(one.token, one.rank) for one in told] == [(3, 3), (1, 1), (2, 2)]
    assert [one.logprob for one in told] == pytest.approx(np.log([0.15, 0.4, 0.3]), abs=1e-6)
    assert [one.token for one in likely(LOGITS, 1, 2)] == [1, 2]
