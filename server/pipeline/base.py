"""A pipeline turns raw inputs into a model's tensors, and its outputs into answers.

It is described by `processing.yaml` in the model's folder, which training writes and both sides execute:
there is no second implementation that could drift. A pipeline is immutable once built, has no I/O after
that, and may be called from several threads at once.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol, cast

from server.tensor import Array
from server.types import Prediction, RawInput

PROCESSING_FILE = "processing.yaml"


class Pipeline(Protocol):
    """Pre- and post-processing of one model, for one task."""

    @property
    def task(self) -> str:
        """The task of the spec, for example ``image-classification``."""

    def preprocess(self, inputs: Sequence[RawInput]) -> Mapping[str, Array]:
        """The model's input arrays by tensor name, one row for each raw input.

        Raises:
            InvalidRequest: an input is of the wrong kind or can't be read; the field is
                ``inputs[i]`` or, below it, ``inputs[i].column``.
            PayloadTooLarge: an input is over a limit of the spec (pixels, bytes).
        """

    def postprocess(self, outputs: Mapping[str, Array], top_k: int = 0) -> list[Prediction]:
        """One answer for each row of the model's outputs. `top_k` of 0 means the spec's own default.

        Raises:
            InvalidRequest: `top_k` is larger than the number of labels.
        """

    def describe(self) -> Mapping[str, object]:
        """What `predict` takes and gives, for clients and for people: plain JSON values.

        Has at least ``task``, ``input`` (``{"kind": "image", ...}``, ``{"kind": "row", "columns": [...]}`` or
        ``{"kind": "text", ...}``) and ``labels``, which are none where the answers are no labels.
        """

    def example(self) -> RawInput:
        """A small valid input, for the command that `serve` prints and for smoke tests."""


class Brief(Pipeline, Protocol):
    """A pipeline whose work on a few inputs takes less than to hand them to a thread, whatever is in them."""

    most_brief: int
    """Inputs of one request that are few."""


def most_brief(pipeline: Pipeline) -> int:
    """So many inputs may be preprocessed on the event loop itself; 0: none, it is no `Brief`."""
    return getattr(pipeline, "most_brief", 0)


class Fills(Pipeline, Protocol):
    """A pipeline whose rows all have one shape: they can be made where a whole pass has its own, without a copy."""

    def empty(self, rows: int) -> Mapping[str, Array]:
        """Arrays for so many rows, by tensor name, to be filled."""

    def fill(self, inputs: Sequence[RawInput], rows: Mapping[str, Array]) -> None:
        """As `preprocess`, into the rows of such arrays, one for each input."""


def fills(pipeline: Pipeline) -> Fills | None:
    """It, where it is a `Fills`."""
    return cast("Fills", pipeline) if hasattr(pipeline, "fill") else None


class ByRow(Pipeline, Protocol):
    """A pipeline that makes each answer of its own row alone: rows of several requests may be postprocessed together,
    to the same bits."""

    by_row: bool


def by_row(pipeline: Pipeline) -> bool:
    """Whether it is a `ByRow`."""
    return getattr(pipeline, "by_row", False)


class OfInputs(Pipeline, Protocol):
    """A pipeline whose answers name parts of the inputs, so that the outputs alone are not enough."""

    def postprocess_inputs(
        self, inputs: Sequence[RawInput], outputs: Mapping[str, Array], top_k: int = 0
    ) -> list[Prediction]:
        """As `postprocess`; `inputs` are what `preprocess` made the model's inputs of."""


def needs_inputs(pipeline: Pipeline) -> bool:
    """Whether it is an `OfInputs`, which looks at the inputs once more: work for a thread, not for the loop."""
    return hasattr(pipeline, "postprocess_inputs")


def answers(
    pipeline: Pipeline, inputs: Sequence[RawInput], outputs: Mapping[str, Array], top_k: int = 0
) -> list[Prediction]:
    """One answer for each of `inputs`. Raises as `Pipeline.postprocess`."""
    of_inputs = getattr(pipeline, "postprocess_inputs", None)
    if of_inputs is None:
        return pipeline.postprocess(outputs, top_k)
    found: list[Prediction] = of_inputs(inputs, outputs, top_k)
    return found
