"""From a classifier's output tensor to labels and probabilities: the part that every classification task shares.

Shapes: B rows, C classes. The labels stand in `labels.txt` beside the spec, one a line, in the order of the
output's columns.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import isfinite
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

from server.errors import EngineFailure, InvalidRequest, ModelLoadFailed
from server.pipeline.names import NamesFile
from server.tensor import Array
from server.types import Classification, Prediction, Score

LABELS_FILE = "labels.txt"
LABELS = NamesFile(LABELS_FILE, "label", "labels")
_FEW_LABELS = 32
"""Up to so many are ranked more quickly by Python than by numpy."""

Probabilities = NDArray[np.float64]


class SpecModel(BaseModel):
    """The base of everything that processing.yaml may hold: immutable, unknown keys refused."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class DecisionThreshold(SpecModel):
    """`positive_label` is chosen when its probability is at least `threshold`, else the best of the others."""

    positive_label: str
    threshold: Annotated[float, Field(gt=0, le=1)]


class ClassificationSpec(SpecModel):
    """How an output tensor of shape [B, C] becomes answers."""

    output: str = "logits"
    """Name of the output tensor."""
    activation: Literal["softmax", "sigmoid", "none"] = "softmax"
    """softmax: a logit for each label. sigmoid: one logit, of the second of two labels. none: the model
    gives a probability for each label itself."""
    labels: Literal["labels.txt"] = "labels.txt"
    """The file of labels, in the model's folder; Triton's config.pbtxt names the same one."""
    top_k: Annotated[int, Field(ge=1)] = 5
    """Labels of an answer where the caller does not say; never more than there are."""
    decision: DecisionThreshold | None = None
    """Without it the most probable label is chosen."""


def _ranked(row: list[float]) -> list[int]:
    """The places of a row's numbers, the largest first; of equal ones the earlier."""
    return sorted(range(len(row)), key=row.__getitem__, reverse=True)


class Classifier:
    """A `ClassificationSpec` with its labels: what a pipeline of any classification task ends with.

    Immutable, and safe to call from several threads.
    """

    def __init__(self, spec: ClassificationSpec, labels: tuple[str, ...], model_name: str) -> None:
        """Raises ModelLoadFailed where the spec and the labels contradict each other."""
        if spec.activation == "sigmoid" and len(labels) != 2:
            raise ModelLoadFailed(model_name, LABELS_FILE, f"{len(labels)} labels, a sigmoid decides between 2")
        if spec.decision is not None and spec.decision.positive_label not in labels:
            problem = f"{spec.decision.positive_label!r} is not in {LABELS_FILE}"
            raise ModelLoadFailed(model_name, "processing.yaml: decision.positive_label", problem)
        self.spec = spec
        self.labels = labels
        self._model_name = model_name
        self._default_top_k = min(spec.top_k, len(labels))

    @classmethod
    def from_folder(cls, spec: ClassificationSpec, folder: Path) -> Classifier:
        """A classifier with the labels of a model's folder. Raises ModelLoadFailed."""
        return cls(spec, LABELS.read(folder), folder.name)

    def probabilities(self, outputs: Mapping[str, Array]) -> Probabilities:
        """Probabilities, shape [B, C], columns in the order of the labels.

        Raises:
            EngineFailure: the output is missing, of another width, or not finite: no answer can be made of it.
        """
        values = self._checked(outputs)
        if self.spec.activation == "softmax":
            exponents = np.exp(values - np.maximum.reduce(values, axis=1, keepdims=True))
            exponents /= np.add.reduce(exponents, axis=1, keepdims=True)
            return exponents
        if self.spec.activation == "sigmoid":
            # tanh never overflows, where exp(-x) does for logits below -709.
            positive = 0.5 * (1.0 + np.tanh(0.5 * values))
            return np.concatenate([1.0 - positive, positive], axis=1)
        return values

    def postprocess(self, outputs: Mapping[str, Array], top_k: int = 0) -> list[Prediction]:
        """One answer for each row. `top_k` of 0 means the spec's own default; ties go to the earlier label.

        Raises:
            InvalidRequest: `top_k` is negative or larger than the number of labels.
            EngineFailure: see `probabilities`.
        """
        count = self.check_top_k(top_k)
        rows = self.probabilities(outputs)
        # Two at least: a decision may fall on the second where only the first is asked for. As Python's numbers,
        # which are several times quicker to look at one by one.
        first = max(count, 2)
        if len(self.labels) <= _FEW_LABELS:
            return [self._answer(row, _ranked(row)[:first], count) for row in rows.tolist()]
        order = (-rows).argsort(axis=1, kind="stable")[:, :first].tolist()
        return [self._answer(row, ranked, count) for row, ranked in zip(rows.tolist(), order, strict=True)]

    def check_top_k(self, top_k: int) -> int:
        """The number of labels that an answer will hold. Raises InvalidRequest, see `postprocess`."""
        if not 0 <= top_k <= len(self.labels):
            raise InvalidRequest("top_k", f"{top_k} is not between 0 and the model's {len(self.labels)} labels")
        return top_k or self._default_top_k

    def _answer(self, row: list[float], ranked: list[int], count: int) -> Classification:
        labels = self.labels
        best = tuple([Score(labels[i], row[i]) for i in ranked[:count]])
        chosen = ranked[0]
        if self.spec.decision is not None:
            positive = labels.index(self.spec.decision.positive_label)
            other = ranked[1] if chosen == positive else chosen
            chosen = positive if row[positive] >= self.spec.decision.threshold else other
        return Classification(labels[chosen], row[chosen], best)

    def _checked(self, outputs: Mapping[str, Array]) -> Probabilities:
        name = self.spec.output
        if name not in outputs:
            raise EngineFailure(self._model_name, f"the model gave no output {name!r}")
        values = np.asarray(outputs[name], dtype=np.float64)
        width = 1 if self.spec.activation == "sigmoid" else len(self.labels)
        if values.ndim != 2 or values.shape[1] != width:
            raise EngineFailure(self._model_name, f"output {name!r} has shape {values.shape}, expected [B, {width}]")
        # The sum is quicker to look at; where it is not finite it may still have been an overflow.
        if not isfinite(np.add.reduce(values, axis=None)) and not np.isfinite(values).all():
            raise EngineFailure(self._model_name, f"output {name!r} holds a value that is not finite")
        return values
