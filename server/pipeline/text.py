"""Texts in; a class, or a vector, out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import isfinite
from pathlib import Path

import numpy as np

from server.errors import EngineFailure, InvalidRequest, ModelLoadFailed, ServingError
from server.pipeline.base import PROCESSING_FILE
from server.pipeline.classification import Classifier
from server.pipeline.text_spec import TextClassificationSpec, TextEmbeddingSpec
from server.pipeline.tokens import TextEncoder
from server.tensor import Array
from server.types import Embedding, Prediction, RawInput, TextInput


class TextClassificationPipeline:
    """`server.pipeline.base.Pipeline` for texts that are one of several labels."""

    by_row = True

    def __init__(self, spec: TextClassificationSpec, folder: Path) -> None:
        """Raises ModelLoadFailed: the tokenizer or the labels can't be used, or the example is no valid text."""
        self.task: str = spec.task
        self._spec = spec
        self._encoder = TextEncoder.from_folder(spec.tokens, folder)
        self._classifier = Classifier.from_folder(spec.classification, folder)
        check_example(self._encoder, spec.example, folder)

    def preprocess(self, inputs: Sequence[RawInput]) -> Mapping[str, Array]:
        """INT64 tensors [B, T]; see `TextEncoder.preprocess`."""
        return self._encoder.preprocess(inputs)

    def postprocess(self, outputs: Mapping[str, Array], top_k: int = 0) -> list[Prediction]:
        """One answer for each text; see `Classifier.postprocess`."""
        return self._classifier.postprocess(outputs, top_k)

    def describe(self) -> Mapping[str, object]:
        """The task, what a text may be, the labels, and the decision threshold if there is one."""
        decision = self._spec.classification.decision
        return {
            "task": self.task,
            "input": self._encoder.describe(),
            "labels": list(self._classifier.labels),
            "decision": None if decision is None else decision.model_dump(),
        }

    def example(self) -> RawInput:
        """The spec's own."""
        return TextInput(self._spec.example)


class TextEmbeddingPipeline:
    """`server.pipeline.base.Pipeline` for texts that become vectors."""

    by_row = True

    def __init__(self, spec: TextEmbeddingSpec, folder: Path) -> None:
        """Raises ModelLoadFailed: the tokenizer can't be used, or the example is no valid text."""
        self.task: str = spec.task
        self._spec = spec
        self._model_name = folder.name
        self._encoder = TextEncoder.from_folder(spec.tokens, folder)
        check_example(self._encoder, spec.example, folder)

    def preprocess(self, inputs: Sequence[RawInput]) -> Mapping[str, Array]:
        """INT64 tensors [B, T]; see `TextEncoder.preprocess`."""
        return self._encoder.preprocess(inputs)

    def postprocess(self, outputs: Mapping[str, Array], top_k: int = 0) -> list[Prediction]:
        """A vector for each text.

        Raises:
            InvalidRequest: `top_k` is given.
            EngineFailure: the output is missing, of another width, or not finite.
        """
        no_labels("top_k", top_k)
        vectors_bd = checked(outputs, self._spec.output, (self._spec.dimensions,), self._model_name)
        return [Embedding(tuple(row)) for row in vectors_bd.tolist()]

    def describe(self) -> Mapping[str, object]:
        """The task, what a text may be, and how long a vector is; there are no labels."""
        return {
            "task": self.task,
            "input": self._encoder.describe(),
            "labels": [],
            "dimensions": self._spec.dimensions,
            "normalized": self._spec.normalized,
        }

    def example(self) -> RawInput:
        """The spec's own."""
        return TextInput(self._spec.example)


def check_example(encoder: TextEncoder, example: str, folder: Path) -> None:
    """Raises ModelLoadFailed: the encoder refuses the spec's own example."""
    try:
        encoder.preprocess([TextInput(example)])
    except ServingError as error:
        problem = str(error).removeprefix("inputs[0]: ")
        raise ModelLoadFailed(folder.name, f"{PROCESSING_FILE}: example", problem) from error


def no_labels(field: str, top_k: int) -> None:
    """Raises InvalidRequest: `top_k` asks for the best labels of an answer that is none."""
    if top_k:
        raise InvalidRequest(field, "the model's answers are no labels, so there are no best ones")


def checked(outputs: Mapping[str, Array], name: str, dims: tuple[int, ...], model_name: str) -> Array:
    """An output [B, ...], its last dims `dims`, all of it finite. Raises EngineFailure where it is not."""
    if name not in outputs:
        raise EngineFailure(model_name, f"the model gave no output {name!r}")
    values = np.asarray(outputs[name])
    if values.ndim < 2 or values.shape[-len(dims) :] != dims:
        raise EngineFailure(model_name, f"output {name!r} has shape {values.shape}, it must end with {list(dims)}")
    if not isfinite(np.add.reduce(values, axis=None, dtype=np.float64)):
        raise EngineFailure(model_name, f"output {name!r} holds a value that is not finite")
    return values
