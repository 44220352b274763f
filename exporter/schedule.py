"""How the learning rate goes over a training."""

from __future__ import annotations

from math import cos, pi

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR, LRScheduler, OneCycleLR

from exporter.recipes.base import Hyperparameters

WARM_UP = 0.05
"""The share of all steps in which the cosine schedule goes up."""


def schedule(optimizer: Optimizer, training: Hyperparameters, steps: int) -> LRScheduler:
    """Of `steps` steps; the rates of the optimizer's groups are the peaks."""
    if training.schedule == "one-cycle":
        return OneCycleLR(optimizer, [group["lr"] for group in optimizer.param_groups], steps)
    if training.schedule == "constant":
        return LambdaLR(optimizer, lambda step: 1.0)
    return LambdaLR(optimizer, lambda step: cosine(step, steps))


def cosine(step: int, steps: int) -> float:
    """The share of the peak: up in a line, then down to 0 along half a cosine."""
    rising = max(1, round(WARM_UP * steps))
    if step < rising:
        return (step + 1) / rising
    return 0.5 * (1 + cos(pi * min(1.0, (step - rising) / max(1, steps - rising))))
