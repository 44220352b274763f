"""Trains with two processes, well, with one that fails and with one that stands still; what came of it as JSON.

Run by itself (`python -m tests.support.training_together FOLDER`): processes are forked, and a test's own has threads.
"""

from __future__ import annotations

import json
import sys
import time
from datetime import timedelta
from pathlib import Path

import torch
from torch import nn

from exporter import processes, run
from exporter.errors import RunError
from exporter.history import read_history
from exporter.recipes.base import Arrays, Hyperparameters, Split
from server.tensor import Array
from tests.support.models import PointsTask

TRAINING = Hyperparameters(epochs=2, batch_size=16, learning_rate=0.05, devices=2)


class Wide(PointsTask):
    """Its parameters are so many that PyTorch computes with as many threads as it may."""

    def network(self) -> nn.Module:
        return nn.Sequential(nn.Linear(2, 40_000), nn.ReLU(), nn.Linear(40_000, 2))


class Ill(Wide):
    """In the second process a batch fails, or stands still."""

    def __init__(self, *, still: bool) -> None:
        super().__init__()
        self._still = still

    def batch(self, split: Split, rows: Array, epoch: int) -> tuple[Arrays, Array]:
        if split is Split.TRAIN and torch.distributed.get_rank() == 1:
            if self._still:
                time.sleep(60)
            raise OSError("the disk is gone")
        return super().batch(split, rows, epoch)


def use_threads() -> None:
    """Have OpenMP start threads, which a forked process does not have."""
    torch.set_num_threads(2)
    torch.nn.functional.gelu(torch.ones(1_000_000)).sum()


def error_of(task: PointsTask, folder: Path) -> str:
    folder.mkdir()
    try:
        run.train(task, TRAINING, 3, folder)
    except RunError as error:
        return str(error)
    return ""


def main() -> None:
    folder = Path(sys.argv[1])
    use_threads()
    (folder / "well").mkdir()
    # As a machine with many cores would have it.
    network = run.train(Wide(), TRAINING, 3, folder / "well", threads=2)
    finite = all(bool(torch.isfinite(value).all()) for value in network.parameters())
    found = {
        "finite": finite,
        "history": read_history(folder / "well"),
        "failed": error_of(Ill(still=False), folder / "a"),
    }
    processes.WAIT = timedelta(seconds=1)
    found["still"] = error_of(Ill(still=True), folder / "b")
    sys.stdout.write(f"\n{json.dumps(found)}\n")


if __name__ == "__main__":
    main()
