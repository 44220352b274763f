"""Texts in, the stretches of them that have a label out: names, places, dates.

Shapes: B texts, T tokens of the longest, C labels.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from server.errors import EngineFailure, ModelLoadFailed
from server.pipeline.base import PROCESSING_FILE
from server.pipeline.classification import LABELS
from server.pipeline.text import check_example, checked, no_labels
from server.pipeline.text_spec import TokenClassificationSpec
from server.pipeline.tokens import TextEncoder
from server.tensor import Array
from server.types import Entities, Entity, Prediction, RawInput, TextInput

if TYPE_CHECKING:
    from tokenizers import Encoding


@dataclass(frozen=True, slots=True)
class _Token:
    kind: str
    """The label without its ``B-`` or ``I-``."""
    begins: bool
    score: float
    start: int
    end: int


class TokenClassificationPipeline:
    """`server.pipeline.base.OfInputs`: the answers are stretches of the text, so it is tokenised again for them."""

    def __init__(self, spec: TokenClassificationSpec, folder: Path) -> None:
        """Raises ModelLoadFailed: tokenizer, labels and spec can't be used together."""
        self.task: str = spec.task
        self._spec = spec
        self._model_name = folder.name
        self._encoder = TextEncoder.from_folder(spec.tokens, folder)
        self._labels = LABELS.read(folder)
        if spec.outside not in self._labels:
            raise ModelLoadFailed(
                folder.name, f"{PROCESSING_FILE}: outside", f"{spec.outside!r} is not in {spec.labels}"
            )
        check_example(self._encoder, spec.example, folder)

    def preprocess(self, inputs: Sequence[RawInput]) -> Mapping[str, Array]:
        """INT64 tensors [B, T]; see `TextEncoder.preprocess`."""
        return self._encoder.preprocess(inputs)

    def postprocess(self, outputs: Mapping[str, Array], top_k: int = 0) -> list[Prediction]:
        """Raises EngineFailure: without the texts there is no answer."""
        raise EngineFailure(self._model_name, "the entities of a text can't be told without the text")

    def postprocess_inputs(
        self, inputs: Sequence[RawInput], outputs: Mapping[str, Array], top_k: int = 0
    ) -> list[Prediction]:
        """The entities of each text.

        Raises:
            InvalidRequest: `top_k` is given.
            EngineFailure: the output is missing, of another shape, or not finite.
        """
        no_labels("top_k", top_k)
        logits_btc = checked(outputs, self._spec.output, (len(self._labels),), self._model_name)
        texts = [raw.text for raw in inputs if isinstance(raw, TextInput)]
        encodings = self._encoder.encode(texts)
        longest = max(len(encoding) for encoding in encodings)
        if logits_btc.ndim != 3 or logits_btc.shape[0] != len(texts) or logits_btc.shape[1] < longest:
            raise EngineFailure(self._model_name, f"output {self._spec.output!r} has shape {logits_btc.shape}")
        return [
            Entities(tuple(_entities(text, self._tokens(encoding, logits_tc))))
            for text, encoding, logits_tc in zip(texts, encodings, logits_btc, strict=True)
        ]

    def describe(self) -> Mapping[str, object]:
        """The task, what a text may be, and the kinds of entities; the answers are no labels."""
        kinds = dict.fromkeys(_kind(label) for label in self._labels if label != self._spec.outside)
        return {"task": self.task, "input": self._encoder.describe(), "labels": [], "entities": list(kinds)}

    def example(self) -> RawInput:
        """The spec's own."""
        return TextInput(self._spec.example)

    def _tokens(self, encoding: Encoding, logits_tc: Array) -> Iterator[_Token | None]:
        """Of each token of the text its label; None for one that belongs to no entity, and for special ones."""
        values = logits_tc[: len(encoding)].astype(np.float64)
        values -= values.max(axis=1, keepdims=True)
        probabilities = np.exp(values)
        probabilities /= probabilities.sum(axis=1, keepdims=True)
        shift = len(self._spec.tokens.prefix)
        chosen = probabilities.argmax(axis=1).tolist()
        for place, (start, end) in enumerate(encoding.offsets):
            if encoding.special_tokens_mask[place] or end <= shift:
                continue
            label = self._labels[chosen[place]]
            if label == self._spec.outside:
                yield None
            else:
                score = float(probabilities[place, chosen[place]])
                yield _Token(_kind(label), label.startswith("B-"), score, max(start - shift, 0), end - shift)


def _kind(label: str) -> str:
    return label[2:] if label.startswith(("B-", "I-")) else label


def _entities(text: str, tokens: Iterable[_Token | None]) -> Iterator[Entity]:
    """Neighbours of one kind, up to one that begins anew. A piece of a word goes with the word it is a piece of."""
    run: list[_Token] = []
    for token in (*tokens, None):
        inside_word = bool(run) and token is not None and token.start == run[-1].end
        if run and (token is None or token.kind != run[-1].kind or (token.begins and not inside_word)):
            start, end = run[0].start, run[-1].end
            score = sum(one.score for one in run) / len(run)
            yield Entity(run[0].kind, score, start, end, text[start:end])
            run = []
        if token is not None:
            run.append(token)
