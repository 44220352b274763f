"""What a recipe is: everything that one task needs to get from data to a published model.

The order of calls, all of them made by `exporter.run` and `exporter.publish`:

    recipe.collect(config)          -> Collected     read the data; what can't be read is listed
    collected.prepare(config)       -> Task          drop broken and duplicate rows, split, fit the transforms on train
    task.network()                  -> nn.Module     right after torch was seeded
    task.batch(split, rows, epoch)  -> (inputs, targets)    many times
    task.loss(outputs, targets)     -> scalar        many times
    task.evaluate(predict)          -> Evaluation    once, with the best weights
    task.write_processing(folder, evaluation)        processing.yaml, labels.txt and what they need
    task.golden_inputs()            -> raw inputs    through the pipeline that was just written

The same `RunConfig` on the same data gives the same `Task`: nothing here may depend on time, on hash order
or on global random state. A recipe must apply its transforms through the code in `server.pipeline`, by the
very spec that it writes.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, Protocol, runtime_checkable

from pydantic import BaseModel, ConfigDict, Field

from server.pipeline.classification import DecisionThreshold
from server.tensor import Array, TensorSpec
from server.types import RawInput

if TYPE_CHECKING:
    import torch
    from torch import nn

Arrays = Mapping[str, Array]
"""Arrays by tensor name, each with the batch dimension first."""

Predict = Callable[[Arrays], Arrays]
"""The trained network in evaluation mode: input arrays of any number of rows to output arrays."""


class Split(StrEnum):
    TRAIN = "train"
    VALIDATION = "validation"
    TEST = "test"


class Hyperparameters(BaseModel):
    """How long and how hard to train. A recipe has its own; options of the command line replace single ones."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    epochs: Annotated[int, Field(ge=1)] = 50
    """At most this many; early stopping may end sooner."""
    batch_size: Annotated[int, Field(ge=2)] = 64
    learning_rate: Annotated[float, Field(gt=0)] = 1e-3
    """The peak of the schedule."""
    weight_decay: Annotated[float, Field(ge=0)] = 1e-4
    patience: Annotated[int, Field(ge=1)] = 10
    """Epochs without a lower validation loss before training stops."""
    schedule: Literal["one-cycle", "cosine", "constant"] = "one-cycle"
    """Over all `epochs`: up and down; a short way up, then down along a cosine; the same rate throughout."""
    gradient_clip: Annotated[float, Field(ge=0)] = 1.0
    """The largest norm of a step's gradient; 0: as it is."""
    class_weights: Literal["none", "balanced"] = "none"
    """balanced: a row counts by how rare its label is, so that all labels count the same. Recipes with labels only."""
    precision: Literal["32-true", "bf16-mixed", "16-mixed"] = "32-true"
    """mixed: passes in half precision, weights in full; 16 needs a GPU."""
    devices: Annotated[int, Field(ge=1, le=64)] = 1
    """GPUs, or processes where there is none; each batch is spread over them."""
    tensorboard: bool = False
    """Keep logs for TensorBoard in the run's folder."""


class TextOptions(BaseModel):
    """What recipes for texts let choose."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    encoder: str = ""
    """A pretrained encoder: a local folder of Hugging Face's form, or ``minilm``. None: train one from nothing."""
    tuning: Literal["full", "partial", "frozen"] = "full"
    """What of the encoder is trained: all, its last blocks, nothing but the new head."""
    max_length: Annotated[int, Field(ge=0, le=8192)] = 0
    """Tokens of a text that are seen; 0: as many as the recipe says."""
    vocabulary: Annotated[int, Field(ge=300, le=200_000)] = 2_000
    """Tokens of a tokenizer that is trained on the data."""


class RunConfig(BaseModel):
    """Everything that decides the outcome of a run; stored in the run folder as config.yaml."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    recipe: str
    data: str
    """The name of a bundled data set, or the path of a file or folder."""
    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", max_length=128)]
    """The model's name in the repository."""
    target: str = ""
    """Tabular data from a file: the column to predict."""
    split: Literal["random", "time", "group"] = "random"
    """random: stratified by label where there are labels. time: the latest rows are tested. group: a group's rows stay
    together."""
    split_column: str = ""
    """The column of times or groups; it is no feature."""
    interval: Annotated[float, Field(gt=0, lt=1)] | None = None
    """Regression: the share of rows that the interval is to hold; the recipe's own if not given."""
    seed: Annotated[int, Field(ge=0, lt=2**31)] = 0
    threads: Annotated[int, Field(ge=1)] = 1
    """Of PyTorch on the CPU. Part of the outcome: another number adds up in another order."""
    training: Hyperparameters = Hyperparameters()
    text: TextOptions | None = None
    """None for recipes that read no text."""


OPTIONAL = ("target", "split", "split_column", "interval")
"""The fields of `RunConfig` that a recipe may not honour; it refuses those, see `Recipe.options`."""


@dataclass(frozen=True, slots=True)
class Dropped:
    """One row or file that training leaves out. `where` is a path in the data folder, or ``row 17``."""

    where: str
    reason: str


@dataclass(frozen=True, slots=True)
class DataReport:
    """What happened to the data between `collect` and training; printed, and kept in the manifest."""

    source: str
    """Name or path of the data, with its origin where it is bundled."""
    sha256: str
    """Of the data as collected (rows, order and labels), in hexadecimal; a resumed run must find the same."""
    collected: int
    """Rows or files seen, the broken ones included."""
    broken: tuple[Dropped, ...]
    duplicates: tuple[Dropped, ...]
    rows: Mapping[Split, Mapping[str, int]]
    """Rows of each label in each split; all together `collected - len(broken) - len(duplicates)`."""
    notes: tuple[str, ...] = ()
    """What a reader must know of the data."""
    synthetic: bool = False
    """The data was generated, and so every figure that is measured on it says nothing of the real thing."""


@dataclass(frozen=True, slots=True)
class Evaluation:
    """Measured on the held-out test split, which nothing before this step has looked at."""

    metrics: Mapping[str, float]
    """For example ``accuracy``, ``pr_auc``, ``recall_at_precision_0.90``; of the first one, more is better."""
    baseline: Mapping[str, float]
    """The same names, reached by `baseline_name` on the same rows."""
    baseline_name: str
    """For example ``majority class`` or ``logistic regression``."""
    decision: DecisionThreshold | None = None
    """A threshold chosen on the validation split, where the most probable label is not the right choice."""
    chosen: Mapping[str, float] = field(default_factory=dict)
    """What else the validation split decided, by name, for `write_processing`."""
    notes: tuple[str, ...] = ()
    """Lines for the run's report."""


@dataclass(frozen=True, slots=True)
class Tolerance:
    """How far ONNX Runtime may be from the trained model: ``|a - b| <= absolute + relative * |b|``."""

    absolute: float = 1e-4
    relative: float = 1e-3


class Trained(Protocol):
    """A trained model, whatever library it is of: what is evaluated, exported, and compared with its export."""

    @property
    def framework(self) -> str:
        """Who trained it, for messages: ``PyTorch``, ``scikit-learn``."""

    @property
    def size(self) -> str:
        """For people, for example ``4,130 parameters`` or ``200 trees``."""

    def predict(self, arrays: Arrays) -> Arrays:
        """As `Predict`."""

    def export(self, path: Path) -> None:
        """Write it as ONNX with the task's tensors and a free batch dimension. Raises ExportError."""


@runtime_checkable
class Fits(Protocol):
    """A `Task` that is not trained by the loop in `exporter.run`: it fits its model itself.

    The same configuration and data must give the same model, for a step that needs it fits it again.
    """

    def fit(self, folder: Path) -> Trained:
        """The trained model. `folder` is the run's, for what is worth keeping."""


class Task(Protocol):
    """A recipe together with its prepared data. Arrays are numpy; only `network` and `loss` speak torch."""

    @property
    def report(self) -> DataReport: ...

    @property
    def labels(self) -> tuple[str, ...]:
        """In the order of the output's columns, targets are indices into it; none where there are no classes."""

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        """In the order of the arguments of the network's `forward`; dims without the batch dimension."""

    @property
    def outputs(self) -> tuple[TensorSpec, ...]:
        """In the order of what `forward` returns (one tensor, or a tuple of them)."""

    @property
    def max_batch_size(self) -> int:
        """For config.pbtxt."""

    @property
    def tolerances(self) -> Mapping[str, Tolerance]:
        """One for each output."""

    def size(self, split: Split) -> int:
        """Rows in a split, at least 1."""

    def batch(self, split: Split, rows: Array, epoch: int) -> tuple[Arrays, Array]:
        """Inputs and targets (B of them, as `loss` takes them) of some rows of a split, as the pipeline makes them.

        `rows` are indices below `size(split)`. Only on the train split may the answer depend on `epoch`
        (augmentation), and then only through `epoch`, the row and the seed.
        """

    def network(self) -> nn.Module:
        """A new, untrained network. Called right after `torch.manual_seed`; must be exportable by `torch.export`."""

    def loss(self, outputs: Sequence[torch.Tensor], targets: torch.Tensor) -> torch.Tensor:
        """The mean loss of a batch, a scalar; the same on validation as on train."""

    def evaluate(self, predict: Predict) -> Evaluation:
        """Metrics on the test split; a decision threshold, if any, is chosen on the validation split."""

    def write_processing(self, folder: Path, evaluation: Evaluation) -> None:
        """Write processing.yaml, labels.txt and whatever else `server.pipeline` reads, into a model's folder."""

    def golden_inputs(self) -> Sequence[RawInput]:
        """2 to 32 raw inputs for the golden files, of several labels, hard cases (missing values) among them."""


@runtime_checkable
class Measured(Protocol):
    """A `Task` whose test metrics can be had without those of its baseline: of the exported file, for example."""

    def metrics(self, predict: Predict) -> Mapping[str, float]:
        """As in `Evaluation`, on the test split."""


@runtime_checkable
class Decides(Protocol):
    """A `Task` whose answers hang on what the validation rows have decided by a model's own outputs."""

    def decide(self, predict: Predict, evaluation: Evaluation) -> Evaluation:
        """`evaluation` with a threshold or a margin chosen anew, by `predict`'s outputs on the validation rows."""

    def decided(self, predict: Predict, evaluation: Evaluation) -> Mapping[str, float]:
        """The metrics that hang on it, of `predict` with what `evaluation` has decided; of each, more is better."""

    def served(self, folder: Path) -> Evaluation:
        """What `processing.yaml` of a published model has decided, and nothing else. Raises ServingError."""


@runtime_checkable
class Configured(Protocol):
    """A `Task` whose config.pbtxt has `parameters` of its own, length buckets for example."""

    @property
    def parameters(self) -> Mapping[str, str]: ...


@runtime_checkable
class RatesApart(Protocol):
    """A `Task` that trains parts of its network at other rates than the configured one."""

    def learning_rates(self, network: nn.Module) -> Sequence[tuple[Sequence[nn.Parameter], float]]:
        """What is trained, in parts, each with what its learning rate is of the configured one."""


@dataclass(frozen=True)
class Collected:
    """The data of a run as it was read."""

    source: str
    """As in `DataReport`."""
    sha256: str
    """As in `DataReport`."""
    rows: int
    """Rows or files seen, the broken ones included."""
    prepare: Callable[[RunConfig], Task]
    """Drop, de-duplicate, then split (`exporter.data.split.stratified`), then fit transforms on train alone.

    Raises DataError: what is left can't be trained on (fewer than 2 labels, too few rows of a label).
    """


class Recipe(Protocol):
    """A way to make one kind of model. Stateless; registered in `exporter.recipes`."""

    @property
    def name(self) -> str:
        """As on the command line, for example ``image-classification``."""

    @property
    def options(self) -> Container[str]:
        """The names of the fields of `RunConfig` that only some recipes honour, and that this one does."""

    @property
    def bundled(self) -> Mapping[str, str]:
        """Names for `RunConfig.data` that need no file, each with a line about it."""

    def hyperparameters(self, data: str) -> Hyperparameters:
        """The defaults for a data set."""

    def collect(self, config: RunConfig) -> Collected:
        """Read the data, touching nothing.

        Raises:
            DataError: there is none at `config.data`, or it can't be read at all.
            UsageError: an option is missing (`target`) or makes no sense for this recipe.
        """
