"""The training loop: a run folder in, trained weights and measured metrics out; a killed run goes on where it stopped.

    runs/<name>/config.yaml       what decides the outcome; a run folder belongs to one configuration
                data.json         the report of the data, with its hash
                history.json      losses and learning rate of each epoch
                checkpoint.pt     after each epoch, replaced atomically: weights, optimiser, schedule, early stopping,
                                  and the best weights so far
                evaluation.json   metrics on the held-out test split; the run is over when it is there

All randomness of an epoch is a function of the seed and the epoch's number, so that an epoch that was
interrupted is repeated exactly: a run that was killed and resumed ends with the metrics of an unbroken one.
"""

from __future__ import annotations

import logging
import os
import signal
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import lightning
import numpy as np
import torch
from lightning.pytorch.callbacks import Callback, EarlyStopping, LearningRateMonitor, TQDMProgressBar
from lightning.pytorch.callbacks.progress.tqdm_progress import Tqdm
from lightning.pytorch.loggers import TensorBoardLogger
from torch import nn
from torch.utils.data import DataLoader, Dataset, Sampler

from exporter import processes
from exporter.errors import RunError
from exporter.history import History, write_history
from exporter.recipes.base import Arrays, Hyperparameters, Predict, RatesApart, Split, Task
from exporter.schedule import schedule
from server.tensor import Array
from server.whole import replacing

CHECKPOINT_FILE = "checkpoint.pt"
EVALUATION_BATCH = 256
TENSORBOARD_FOLDER = "tensorboard"

Batch = tuple[tuple[torch.Tensor, ...], torch.Tensor]


class Rows(Dataset[Batch]):
    """A split of a task, asked for whole batches: an item is (epoch, rows)."""

    def __init__(self, task: Task, split: Split) -> None:
        self._task = task
        self._split = split

    def __getitem__(self, item: tuple[int, Array]) -> Batch:
        epoch, rows = item
        inputs, targets = self._task.batch(self._split, rows, epoch)
        return tensors_of(self._task, inputs), torch.from_numpy(np.ascontiguousarray(targets))


class Batches(Sampler[tuple[int, Array]]):
    """Batches of rows: shuffled anew in each epoch (by seed and epoch alone), or in order without a seed.

    Asks `epoch` for the epoch: Lightning tells samplers of it too late after a resume, when the first
    batches are drawn already.
    """

    def __init__(
        self,
        size: int,
        batch_size: int,
        seed: int | None,
        epoch: Callable[[], int] = lambda: 0,
        place: Callable[[], tuple[int, int]] = lambda: (0, 1),
    ) -> None:
        """`place`: which of how many processes this is; each gets its part of every batch."""
        self._place = place
        self._size = size
        # Batch normalisation can't learn from a batch of one row: what is left over is spread over the others.
        self._count = max(1, size // batch_size) if seed is not None else -(-size // batch_size)
        self._seed = seed
        self._epoch = epoch

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[tuple[int, Array]]:
        epoch = self._epoch()
        rows = np.arange(self._size)
        if self._seed is not None:
            rows = np.random.default_rng([self._seed, epoch]).permutation(rows)
        process, of = self._place()
        for part in np.array_split(rows, self._count):
            yield epoch, np.array_split(part, of)[process]


class Training(lightning.LightningModule):
    """A task's network and loss under AdamW with a one-cycle schedule."""

    def __init__(self, task: Task, training: Hyperparameters, seed: int) -> None:
        super().__init__()
        self.network = task.network()
        self._task = task
        self._training = training
        self._seed = seed
        size = task.size(Split.TRAIN)
        self.batches = Batches(size, training.batch_size, seed, lambda: self.current_epoch, self._place)

    def _place(self) -> tuple[int, int]:
        return self.trainer.global_rank, self.trainer.world_size

    def setup(self, stage: str) -> None:
        if self.trainer.world_size > 1:
            processes.settle()

    def on_train_start(self) -> None:
        self.setup("fit")  # once more: Lightning has set its own handlers since

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        # Dropout draws from torch's generator, which a data loader draws from as well: reset for each batch, so
        # that a batch does not depend on what was drawn before it.
        process, _ = self._place()
        words = [self._seed, self.current_epoch, batch_idx, *([process] if process else [])]
        state = np.random.SeedSequence(words).generate_state(1)
        torch.manual_seed(int(state[0]))

    def training_step(self, batch: Batch, index: int) -> torch.Tensor:
        loss = self._loss(batch)
        self.log("train_loss", loss, prog_bar=True, on_step=False, on_epoch=True, batch_size=len(batch[1]))
        return loss

    def validation_step(self, batch: Batch, index: int) -> None:
        self.log("validation_loss", self._loss(batch), prog_bar=True, batch_size=len(batch[1]))

    def configure_optimizers(self) -> Any:
        task, training = self._task, self._training
        parts = task.learning_rates(self.network) if isinstance(task, RatesApart) else [(list(self.parameters()), 1.0)]
        rates = [training.learning_rate * share for _, share in parts]
        groups = [{"params": list(parameters), "lr": rate} for (parameters, _), rate in zip(parts, rates, strict=True)]
        optimizer = torch.optim.AdamW(groups, lr=training.learning_rate, weight_decay=training.weight_decay)
        steps = training.epochs * len(self.batches)
        over_time = schedule(optimizer, training, steps)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": over_time, "interval": "step"}}

    def _loss(self, batch: Batch) -> torch.Tensor:
        inputs, targets = batch
        return self._task.loss(as_tuple(self.network(*inputs)), targets)


class RunCheckpoint(Callback):
    """One file with everything, replaced atomically at the end of each epoch; remembers the best weights."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.best_loss = float("inf")
        self.best_epoch = -1
        self.best_weights: Mapping[str, torch.Tensor] = {}

    def state_dict(self) -> dict[str, Any]:
        return {"loss": self.best_loss, "epoch": self.best_epoch, "weights": dict(self.best_weights)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.best_loss, self.best_epoch = state_dict["loss"], state_dict["epoch"]
        self.best_weights = state_dict["weights"]

    def on_train_epoch_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        loss = float(trainer.callback_metrics["validation_loss"])
        if loss < self.best_loss:
            self.best_loss, self.best_epoch = loss, trainer.current_epoch
            network: nn.Module = pl_module.network  # type: ignore[assignment]
            self.best_weights = {key: value.detach().cpu().clone() for key, value in network.state_dict().items()}
        if trainer.is_global_zero:
            with replacing(self._path) as partial:
                trainer.save_checkpoint(partial)
        else:  # all take part, one writes
            trainer.save_checkpoint(self._path)


class ProgressBar(TQDMProgressBar):
    """Lightning's, with one line for an epoch: validation is too short for a bar of its own."""

    def init_validation_tqdm(self) -> Tqdm:
        return Tqdm(disable=True)


def train(task: Task, training: Hyperparameters, seed: int, folder: Path, *, threads: int = 1) -> nn.Module:
    """Train until the epochs or the patience are used up; the network with its best weights, in evaluation mode.

    Goes on from `folder`'s checkpoint where there is one. The caller has checked that it belongs to this
    configuration and this data.

    Raises:
        RunError: the loss on the validation split was never a number, the checkpoint can't be read, batches are too
            small to be spread over the devices, or one of several processes failed.
    """
    if training.devices > 1 and min(training.batch_size, task.size(Split.TRAIN)) < 2 * training.devices:
        raise RunError(f"a batch has less than 2 rows for each of {training.devices} devices: see --batch-size")
    with _deterministic(seed, threads), _quiet_lightning():
        path = folder / CHECKPOINT_FILE
        module = Training(task, training, seed)
        kept, history = RunCheckpoint(path), History()
        stopping = EarlyStopping("validation_loss", patience=training.patience, check_on_train_epoch_end=False)
        finished = _restore_if_finished(path, kept, stopping, training)
        if not finished:
            trainer = _trainer(training, [stopping, history, kept, ProgressBar(refresh_rate=10)], folder)
            with processes.told(training.devices):
                _fit(trainer, task, module, path)
        if finished or training.devices > 1:
            # What other processes have seen, or an earlier one, is in the file alone.
            _restore(path, {kept.state_key: kept, history.state_key: history})
        write_history(folder, history.epochs)
        if not kept.best_weights:
            raise RunError("the validation loss was never a number: lower the learning rate, or look at the data")
        network = module.network.cpu()
        network.load_state_dict(kept.best_weights)
        return network.eval()


def _fit(trainer: lightning.Trainer, task: Task, module: Training, path: Path) -> None:
    validation = Batches(task.size(Split.VALIDATION), EVALUATION_BATCH, None)
    handler = signal.getsignal(signal.SIGINT)
    try:
        trainer.fit(
            module,
            DataLoader(Rows(task, Split.TRAIN), sampler=module.batches, batch_size=None),
            DataLoader(Rows(task, Split.VALIDATION), sampler=validation, batch_size=None),
            ckpt_path=path if path.exists() else None,
            weights_only=True,
        )
    except SystemExit as stop:
        # On Ctrl-C Lightning ends the process and turns the signal off; how to end is the command's to say.
        signal.signal(signal.SIGINT, handler)
        raise KeyboardInterrupt from stop


def _restore_if_finished(path: Path, kept: RunCheckpoint, stopping: EarlyStopping, training: Hyperparameters) -> bool:
    """True, with the best weights in `kept`, if the checkpoint is of a training that had come to its end."""
    if not path.exists():
        return False
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
        early = checkpoint["callbacks"][stopping.state_key]
        best = checkpoint["callbacks"][kept.state_key]
        epochs = checkpoint["epoch"] + 1
    except Exception as error:
        raise RunError(f"{path} can't be read: {error}") from error
    if epochs < training.epochs and early["wait_count"] < training.patience:
        return False
    kept.load_state_dict(best)
    return True


def _restore(path: Path, callbacks: Mapping[str, Callback]) -> None:
    """Give callbacks what the checkpoint has of them."""
    if path.exists():
        states = torch.load(path, map_location="cpu", weights_only=True)["callbacks"]
        for key, callback in callbacks.items():
            if key in states:
                callback.load_state_dict(states[key])


def _trainer(training: Hyperparameters, callbacks: Sequence[Callback], folder: Path) -> lightning.Trainer:
    if training.precision == "16-mixed" and not torch.cuda.is_available():
        raise RunError("precision 16-mixed needs a GPU; bf16-mixed does not")
    logger = TensorBoardLogger(folder, name="", version=TENSORBOARD_FOLDER) if training.tensorboard else False
    monitors = [LearningRateMonitor("step")] if training.tensorboard else []
    return lightning.Trainer(
        accelerator="auto",
        **processes.of_this_machine(training.devices),
        precision=training.precision,
        # Each process takes its part of every batch by itself, see `Batches`.
        use_distributed_sampler=False,
        max_epochs=training.epochs,
        callbacks=[*callbacks, *monitors],
        deterministic=True,
        logger=logger,
        log_every_n_steps=10,
        enable_checkpointing=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        gradient_clip_val=training.gradient_clip or None,
    )


def predictor(task: Task, network: nn.Module) -> Predict:
    """The network as a function on arrays of any number of rows; the network must be in evaluation mode."""

    def predict(arrays: Arrays) -> Arrays:
        inputs = tensors_of(task, arrays)
        parts: list[tuple[torch.Tensor, ...]] = []
        with torch.inference_mode():
            for start in range(0, len(inputs[0]), EVALUATION_BATCH):
                part = tuple(tensor[start : start + EVALUATION_BATCH] for tensor in inputs)
                parts.append(as_tuple(network(*part)))
        columns = zip(*parts, strict=True)
        names = (spec.name for spec in task.outputs)
        return {name: torch.cat(column).numpy() for name, column in zip(names, columns, strict=True)}

    return predict


def tensors_of(task: Task, arrays: Arrays) -> tuple[torch.Tensor, ...]:
    """A task's input arrays as tensors, in the order of the network's arguments."""
    return tuple(torch.from_numpy(np.ascontiguousarray(arrays[spec.name])) for spec in task.inputs)


def as_tuple(outputs: torch.Tensor | Sequence[torch.Tensor]) -> tuple[torch.Tensor, ...]:
    """What a network returns, as a tuple also where it is one tensor."""
    return (outputs,) if isinstance(outputs, torch.Tensor) else tuple(outputs)


@contextmanager
def _deterministic(seed: int, threads: int) -> Iterator[None]:
    """The same results each time on the same machine; torch's global settings are put back afterwards."""
    before = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(True)
    torch.manual_seed(seed)
    try:
        yield
    finally:
        torch.set_num_threads(before[0])
        torch.use_deterministic_algorithms(before[1])


@contextmanager
def _quiet_lightning() -> Iterator[None]:
    """Without Lightning's advice on workers and its banners: the steps are reported by the command."""
    logger = logging.getLogger("lightning.pytorch")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*does not have many workers.*")
            warnings.filterwarnings("ignore", message=".*LeafSpec.*is deprecated.*")  # Lightning's own use of PyTorch
            warnings.filterwarnings("ignore", message=".*sync_dist=True.*")  # each process validates on all rows
            warnings.filterwarnings("ignore", message=".*number of training batches.*log_every_n_steps.*")
            yield
    finally:
        logger.setLevel(level)
