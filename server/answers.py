"""What `predict` answers: one `Prediction` for each raw input, of the kind that the model's task gives."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Score:
    label: str
    score: float


@dataclass(frozen=True, slots=True)
class Classification:
    """The answer for one input: the chosen label with its probability, and the `top_k` best, best first.

    The chosen label is the best one, unless the spec sets a decision threshold for a positive label.
    """

    label: str
    score: float
    top_k: tuple[Score, ...]


@dataclass(frozen=True, slots=True)
class Regression:
    """The answer for one input: a number, between the bounds that the model was trained to give."""

    value: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Ranking:
    """The answer for one input: items by their ids, best first; a score only orders those of one answer."""

    items: tuple[Score, ...]


@dataclass(frozen=True, slots=True)
class Custom:
    """The answer of a model's own code: any value that JSON has."""

    value: Any


@dataclass(frozen=True, slots=True)
class Embedding:
    """The answer for one input: a vector that stands for it; those of inputs alike are near each other."""

    vector: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Entity:
    """A stretch of a text: characters `start` up to `end`, of one label."""

    label: str
    score: float
    """The mean probability of the label over its tokens."""
    start: int
    end: int
    text: str


@dataclass(frozen=True, slots=True)
class Entities:
    """The answer for one text: what was found in it, in its order; nothing where there is nothing."""

    entities: tuple[Entity, ...]


@dataclass(frozen=True, slots=True)
class Written:
    """A piece of a text that is being written: pieces in their order are the text."""

    text: str
    finish_reason: str = ""
    """Why the text ended, ``stop`` or ``length``; empty but for its last piece."""
    num_input_tokens: int = 0
    """Tokens of the prompt; 0 where the model does not tell."""
    num_output_tokens: int = 0
    """Of this piece; 0 likewise."""


Prediction = Classification | Regression | Ranking | Embedding | Entities | Custom
"""The kinds of answers; a task gives one of them. `Written` is for streams alone."""
