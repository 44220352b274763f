"""The losses and the learning rate of each epoch, kept in the checkpoint, so that a resumed run has all of them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lightning
from lightning.pytorch.callbacks import Callback

from server.whole import write_text

HISTORY_FILE = "history.json"

Epochs = list[dict[str, float]]
"""Each with ``epoch``, ``train_loss``, ``validation_loss`` and ``learning_rate``."""


class History(Callback):
    """Stands before the checkpoint's callback: what it adds in an epoch is in that epoch's checkpoint."""

    def __init__(self) -> None:
        self.epochs: Epochs = []

    def state_dict(self) -> dict[str, Any]:
        return {"epochs": self.epochs}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.epochs = list(state_dict["epochs"])

    def on_train_epoch_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        found = {"epoch": float(trainer.current_epoch)}
        for name in ("train_loss", "validation_loss"):
            if name in trainer.callback_metrics:
                found[name] = float(trainer.callback_metrics[name])
        self.epochs.append(found | {"learning_rate": float(trainer.optimizers[0].param_groups[0]["lr"])})


def write_history(folder: Path, epochs: Epochs) -> None:
    """Into a run's folder."""
    write_text(folder / HISTORY_FILE, json.dumps(epochs, indent=1) + "\n")


def read_history(folder: Path) -> Sequence[dict[str, float]]:
    """Of a run's folder; nothing where none was written."""
    path = folder / HISTORY_FILE
    found: Epochs = json.loads(path.read_text(encoding="utf-8")) if path.exists() else []
    return found
