"""How much a row counts in the loss, by its label."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from exporter.recipes.base import Hyperparameters


def weights_of(training: Hyperparameters, targets: NDArray[np.int64], num_labels: int) -> torch.Tensor | None:
    """A weight for each label, one on average over the training rows; None: all count the same."""
    if training.class_weights == "none":
        return None
    counts = np.maximum(np.bincount(targets, minlength=num_labels), 1)
    return torch.tensor(len(targets) / (num_labels * counts), dtype=torch.float32)
