"""Schedules, weights, histories: what the options of a training mean."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from exporter.history import History, read_history, write_history
from exporter.recipes.base import Hyperparameters
from exporter.recipes.weights import weights_of
from exporter.run import Batches
from exporter.schedule import cosine, schedule


def rates(name: str, steps: int = 40) -> list[float]:
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.5)
    training = Hyperparameters(schedule=name)
    made = schedule(optimizer, training, steps)
    found = []
    for _ in range(steps - 1):
        found.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        made.step()
    return found


def test_the_schedules_have_their_shapes() -> None:
    """Constant; up and down; a short way up, then down to nothing; the peak is the configured rate."""
    assert set(rates("constant")) == {0.5}
    assert max(rates("one-cycle")) == pytest.approx(0.5, rel=1e-3)
    found = rates("cosine")
    assert found[0] == 0.25
    assert found[1:3] == [0.5, 0.5]
    assert found[2:] == sorted(found[2:], reverse=True)
    assert found[-1] < 0.01
    assert cosine(1000, 10) == 0.0


def test_balanced_weights_make_labels_count_alike() -> None:
    """Rows times weight is the same for each label, and one on average; none without the option."""
    targets = np.repeat([0, 1, 2], [60, 30, 10])
    found = weights_of(Hyperparameters(class_weights="balanced"), targets, 3)
    assert found is not None
    assert (found.numpy() * [60, 30, 10]).tolist() == pytest.approx([100 / 3] * 3)
    assert weights_of(Hyperparameters(), targets, 3) is None


def test_processes_share_every_batch() -> None:
    """Together they see each row once, in the batches that one process would see."""
    alone = [rows.tolist() for _, rows in Batches(50, 8, 3)]
    parts = [[rows.tolist() for _, rows in Batches(50, 8, 3, place=lambda n=n: (n, 2))] for n in (0, 1)]
    assert [one + two for one, two in zip(*parts, strict=True)] == alone


def test_a_history_is_kept_with_the_run(tmp_path: Path) -> None:
    """In the checkpoint by its state, in the folder as JSON; none where none was written."""
    one, other = History(), History()
    one.epochs.append({"epoch": 0.0, "train_loss": 1.5, "validation_loss": 2.0, "learning_rate": 0.1})
    other.load_state_dict(one.state_dict())
    assert other.epochs == one.epochs
    assert read_history(tmp_path) == []
    write_history(tmp_path, one.epochs)
    assert read_history(tmp_path) == one.epochs
