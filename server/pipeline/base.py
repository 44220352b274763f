"""A pipeline turns raw inputs into a model's tensors, and its outputs into answers.

It is described by `processing.yaml` in the model's folder, which training writes and both sides execute:
there is no second implementation that could drift. A pipeline is immutable once built, has no I/O after
that, and may be called from several threads at once.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

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

        Has at least ``task``, ``input`` (``{"kind": "image", ...}`` or ``{"kind": "row", "columns": [...]}``)
        and ``labels``.
        """

    def example(self) -> RawInput:
        """A small valid input, for the command that `serve` prints and for smoke tests."""
