"""Training is repeatable, and a run that was killed ends as one that was not."""

from __future__ import annotations

import resource
import signal
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
import typer

from exporter import run
from exporter.errors import RunError
from exporter.recipes.base import Arrays, Hyperparameters, Split
from exporter.reporting import reported
from server.tensor import Array
from tests.support.models import Killed, PointsTask

EPOCHS = 6
TRAINING = Hyperparameters(epochs=EPOCHS, batch_size=16, learning_rate=0.05, patience=4)
BATCHES = 5
Weights = Mapping[str, torch.Tensor]


def train(folder: Path, training: Hyperparameters = TRAINING, seed: int = 3, **task: tuple[int, int]) -> Weights:
    folder.mkdir(exist_ok=True)
    return run.train(PointsTask(**task), training, seed, folder).state_dict()


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory: pytest.TempPathFactory) -> Weights:
    return train(tmp_path_factory.mktemp("unbroken"))


def equal(a: Weights, b: Weights) -> bool:
    return all(torch.equal(a[key], b[key]) for key in a)


def test_the_same_seed_gives_the_same_weights(unbroken: Weights, tmp_path: Path) -> None:
    """To the bit, whatever the global random state was before."""
    torch.manual_seed(99)
    np.random.seed(99)
    assert equal(train(tmp_path), unbroken)


def test_another_seed_gives_other_weights(unbroken: Weights, tmp_path: Path) -> None:
    """The seed is not decoration."""
    assert not equal(train(tmp_path, seed=4), unbroken)


@pytest.mark.parametrize(
    "moments",
    [[(0, 0)], [(0, 3)], [(1, 0)], [(3, 2)], [(EPOCHS - 1, BATCHES - 1)], [(1, 4), (2, 0), (4, 1)]],
    ids=["at once", "in the first epoch", "between epochs", "in the middle", "in the last batch", "three times"],
)
def test_a_killed_run_ends_with_the_weights_of_an_unbroken_one(
    unbroken: Weights, moments: list[tuple[int, int]], tmp_path: Path
) -> None:
    """Bit for bit: the interrupted epoch is repeated with the same rows, noise and dropout."""
    for moment in moments:
        with pytest.raises(Killed):
            train(tmp_path, die_at=moment)
    assert equal(train(tmp_path), unbroken)


def test_a_checkpoint_that_was_being_written_is_not_believed(unbroken: Weights, tmp_path: Path) -> None:
    """Death while the checkpoint is written leaves the one before it."""
    with pytest.raises(Killed):
        train(tmp_path, die_at=(2, 1))
    (tmp_path / ".checkpoint.pt.partial").write_bytes(b"half")
    assert equal(train(tmp_path), unbroken)


def test_control_c_is_an_interrupt_and_the_run_goes_on(unbroken: Weights, tmp_path: Path) -> None:
    """Lightning would end the process with code 1 and leave Ctrl-C turned off."""

    class Interrupted(PointsTask):
        def batch(self, split: Split, rows: Array, epoch: int) -> tuple[Arrays, Array]:
            if epoch == 2:
                raise KeyboardInterrupt
            return super().batch(split, rows, epoch)

    handler = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        run.train(Interrupted(), TRAINING, 3, tmp_path)
    assert signal.getsignal(signal.SIGINT) is handler
    assert equal(train(tmp_path), unbroken)


def test_a_full_disk_is_told_in_a_line_and_the_run_goes_on(
    unbroken: Weights, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The checkpoint of before stays whole; once there is room, the run ends as one that never lacked it."""
    with pytest.raises(Killed):
        train(tmp_path, die_at=(2, 0))
    _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (500, hard))
    try:
        with pytest.raises(typer.Exit) as caught, reported():
            train(tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
    assert caught.value.exit_code == RunError.exit_code
    assert "File too large; a training goes on with the same command and --resume" in capsys.readouterr().err
    assert equal(train(tmp_path), unbroken)


def test_an_error_of_the_system_that_is_not_the_disks_is_not_hidden() -> None:
    """It is a bug of ours, and wants its traceback."""
    with pytest.raises(FileNotFoundError), reported():
        Path("/nowhere/at/all").read_text()


def test_a_finished_run_is_not_trained_again(unbroken: Weights, tmp_path: Path) -> None:
    """Not one batch: a second call gives the weights that the first one gave."""
    train(tmp_path)
    assert equal(train(tmp_path, die_at=(0, 0)), unbroken)


def test_early_stopping_gives_the_best_weights_and_stays_stopped(tmp_path: Path) -> None:
    """Training ends before its epochs, with the weights of the epoch of the lowest validation loss."""
    training = Hyperparameters(epochs=200, batch_size=16, learning_rate=0.5, patience=2)
    weights = train(tmp_path, training)
    checkpoint = torch.load(tmp_path / "checkpoint.pt", weights_only=True)
    best = checkpoint["callbacks"]["RunCheckpoint"]
    assert checkpoint["epoch"] < 150
    assert best["epoch"] == checkpoint["epoch"] - 2
    assert equal(weights, best["weights"])
    task = PointsTask()
    network = task.network().eval()
    network.load_state_dict(dict(weights))
    inputs, targets = task.batch(Split.VALIDATION, np.arange(20), 0)
    loss = task.loss([network(torch.from_numpy(inputs["point"]))], torch.from_numpy(targets))
    assert float(loss.detach()) == pytest.approx(best["loss"], rel=1e-4)
    assert equal(train(tmp_path, training, die_at=(checkpoint["epoch"] + 1, 0)), weights)


def test_a_loss_that_is_never_a_number_is_an_error(tmp_path: Path) -> None:
    """Weights that nothing is known of are not exported."""
    with pytest.raises(RunError, match="never a number"):
        train(tmp_path, Hyperparameters(epochs=2, batch_size=16, learning_rate=1e30, patience=2))


def test_a_damaged_checkpoint_is_an_error_that_names_it(tmp_path: Path) -> None:
    """It is not taken for the start of a new run."""
    (tmp_path / "checkpoint.pt").write_bytes(b"garbage")
    with pytest.raises(RunError, match=r"checkpoint\.pt"):
        train(tmp_path)


def test_every_row_is_seen_once_in_an_epoch_in_a_new_order() -> None:
    """Batches partition the rows; validation is in order."""
    orders: list[list[int]] = []
    batches = run.Batches(21, 8, seed=1, epoch=lambda: len(orders))
    for _ in range(2):
        rows = [part for _, part in batches]
        assert len(rows) == len(batches)
        assert min(len(part) for part in rows) > 1
        orders.append(np.concatenate(rows).tolist())
        assert sorted(orders[-1]) == list(range(21))
    assert orders[0] != orders[1]
    assert np.concatenate([part for _, part in run.Batches(21, 8, None)]).tolist() == list(range(21))
