"""What an ensemble is made of: steps that are other models, and tensors that go from one to the next.

Source: model_config.proto, ModelEnsembling. A tensor of the ensemble is an input of it, or an output of one step.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

NEWEST = -1
"""The `model_version` of a step that takes whichever version its model serves when no version is named."""


@dataclass(frozen=True, slots=True)
class Step:
    """Source: ModelEnsembling.Step."""

    model_name: str
    model_version: int
    """`NEWEST`, or the one version that will do."""
    input_map: Mapping[str, str]
    """By the model's input: the ensemble's tensor that it gets."""
    output_map: Mapping[str, str]
    """By the model's output: the ensemble's tensor that it becomes."""

    @property
    def version(self) -> str:
        """As a request names it: empty for the newest."""
        return "" if self.model_version == NEWEST else str(self.model_version)


@dataclass(frozen=True, slots=True)
class Ensemble:
    """Steps in the order of the config. No step waits for itself, and each tensor comes from one place."""

    steps: tuple[Step, ...]

    @property
    def model_names(self) -> set[str]:
        """The models that it is composed of."""
        return {step.model_name for step in self.steps}


def like(dims: tuple[int, ...], others: tuple[int, ...]) -> bool:
    """Whether there is a shape that is of both; -1 is any size."""
    return len(dims) == len(others) and all(
        one == other or -1 in (one, other) for one, other in zip(dims, others, strict=True)
    )
