"""From logits to the next token of one text. Pure: the same logits and the same number give the same token.

Scores are logits of the whole vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from server.engine.genai.parameters import Sampling

Logits = NDArray[np.float32]

_NUCLEUS = 1024
"""Of the likeliest tokens that are looked at first for top_p: their mass is nearly always enough, and a sort of the
whole vocabulary takes longer than a pass of a small model."""


class Likely(NamedTuple):
    """A token, its logarithm of probability by the model alone, and its rank there, from 1."""

    token: int
    logprob: float
    rank: int


class Sampler:
    """Chooses the tokens of one text."""

    __slots__ = ("_bans", "_counts", "_random", "_seen", "plain", "sampling")

    def __init__(self, sampling: Sampling, prompt: Iterable[int], vocabulary: int, ends: Iterable[int]) -> None:
        """`ends`: the tokens that end a text, which `min_tokens` keeps out."""
        self.sampling = sampling
        seed = None if sampling.seed is None else sampling.seed & (2**64 - 1)
        self._random = None if sampling.greedy else np.random.Generator(np.random.PCG64(seed))
        self._seen: NDArray[np.bool_] | None = None
        self._counts: NDArray[np.int32] | None = None
        if sampling.penalises:
            self._seen = np.zeros(vocabulary, np.bool_)
            self._seen[np.fromiter(prompt, np.int64)] = True
            self._counts = np.zeros(vocabulary, np.int32)
        self._bans = np.fromiter(ends, np.int64) if sampling.min_tokens else None
        self.plain = self._random is None and self._seen is None and self._bans is None
        """The likeliest token by the logits as they are: of many texts these are found together."""

    def choose(self, scores: Logits, made: int) -> int:
        """The next token, after `made` of them. The scores are not changed."""
        logits = scores.astype(np.float64)
        if self._seen is not None and self._counts is not None:
            self._penalise(logits)
        if self._bans is not None and made < self.sampling.min_tokens:
            logits[self._bans] = -np.inf
        token = int(logits.argmax()) if self._random is None else self._draw(logits, self._random.random())
        if self._seen is not None and self._counts is not None:
            self._seen[token] = True
            self._counts[token] += 1
        return token

    def _penalise(self, logits: NDArray[np.float64]) -> None:
        sampling, seen, counts = self.sampling, self._seen, self._counts
        assert seen is not None
        assert counts is not None
        if sampling.repetition_penalty != 1:
            penalty = sampling.repetition_penalty
            logits[seen] = np.where(logits[seen] > 0, logits[seen] / penalty, logits[seen] * penalty)
        logits -= sampling.frequency_penalty * counts + sampling.presence_penalty * (counts > 0)

    def _draw(self, logits: NDArray[np.float64], number: float) -> int:
        """`number`: from 0 to 1, where in the distribution."""
        sampling = self.sampling
        scaled = (logits - logits.max()) / sampling.temperature
        if sampling.top_k:
            return _drawn(scaled, _likeliest(scaled, sampling.top_k), sampling.top_p, number)
        if sampling.top_p == 1:
            return _at(np.exp(scaled), number)
        first = _likeliest(scaled, _NUCLEUS)
        weights = np.exp(scaled)
        if weights[first].sum() < sampling.top_p * weights.sum():
            first = _likeliest(scaled, len(scaled))
        return _drawn(scaled, first, sampling.top_p, number, float(weights.sum()))


def _drawn(scaled: NDArray[np.float64], tokens: NDArray[Any], top_p: float, number: float, total: float = 0.0) -> int:
    """Of `tokens`, likeliest first, those that top_p leaves. `total`: the weight of all that it is a part of."""
    weights = np.exp(scaled[tokens])
    if top_p < 1:
        before = np.cumsum(weights) - weights
        weights = weights[: max(1, int(np.count_nonzero(before < top_p * (total or weights.sum()))))]
    return int(tokens[_at(weights, number)])


def _at(weights: NDArray[np.float64], number: float) -> int:
    sums = np.cumsum(weights)
    return min(int(np.searchsorted(sums, number * sums[-1], side="right")), len(weights) - 1)


def _likeliest(values: NDArray[Any], count: int) -> NDArray[Any]:
    """Tokens by their values, the highest first, of equal ones the smallest token."""
    if count < len(values):
        # Everything that ties with the last one is a candidate, or it would be up to the partition which is in.
        least = np.partition(values, len(values) - count)[len(values) - count]
        tokens = np.flatnonzero(values >= least)
    else:
        tokens = np.arange(len(values))
    return tokens[np.lexsort((tokens, -values[tokens]))][:count]


def likely(scores: Logits, token: int, count: int) -> list[Likely]:
    """`token` first, then the `count` likeliest, without it where it is one of them. By the model's own distribution,
    before temperature, penalties and cuts."""
    logits = scores.astype(np.float64)
    highest = logits.max()
    total = highest + np.log(np.exp(logits - highest).sum())
    best = _likeliest(logits, count) if count else ()
    own = Likely(token, float(logits[token] - total), int(np.count_nonzero(logits > logits[token])) + 1)
    others = [Likely(int(t), float(logits[t] - total), rank) for rank, t in enumerate(best, 1) if t != token]
    return [own, *others]
