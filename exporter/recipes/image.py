"""`image-classification`: a small residual network on pictures.

Shapes: B rows, C channels, H and W as the spec's resize says.
"""

from __future__ import annotations

import io
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import nn
from torch.nn import functional

from exporter.data import images
from exporter.data.labels import check as check_labels
from exporter.data.split import stratified
from exporter.recipes.base import (
    Arrays,
    Collected,
    DataReport,
    Dropped,
    Evaluation,
    Hyperparameters,
    Predict,
    RunConfig,
    Split,
    Task,
    Tolerance,
)
from exporter.recipes.weights import weights_of
from server.pipeline.classification import LABELS, ClassificationSpec
from server.pipeline.image import ImageSteps
from server.pipeline.image_spec import Decode, Foreground, ImageSpec, Normalize, Resize
from server.pipeline.load import write_spec
from server.tensor import Array, TensorSpec
from server.types import ImageInput, RawInput

OUTPUT = "logits"
NUM_GOLDEN = 10

DIGITS_SPEC = ImageSpec(
    mode="L",
    decode=Decode(background="contrast", max_side=256),
    foreground=Foreground(margin=0.05),
    resize=Resize(height=20, width=20, filter="bilinear"),
    normalize=Normalize(mean=(0.25,), std=(0.35,)),
    classification=ClassificationSpec(output=OUTPUT, top_k=3),
)
"""Digits are drawn on anything: what counts is the ink, at one size and in one contrast."""

PHOTO_SPEC = ImageSpec(
    mode="RGB",
    decode=Decode(decoder="pillow-draft", max_side=128),
    resize=Resize(height=64, width=64, filter="bilinear", fit="crop"),
    normalize=Normalize(mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25)),
    classification=ClassificationSpec(output=OUTPUT),
)


class ImageRecipe:
    """See `exporter.recipes.base.Recipe`."""

    name = "image-classification"
    options = frozenset({"class_weights"})
    bundled: Mapping[str, str] = {"digits": "1,797 handwritten digits, 10 classes (bundled with scikit-learn)"}

    def hyperparameters(self, data: str) -> Hyperparameters:
        if data in self.bundled:
            return Hyperparameters(epochs=40, batch_size=64, learning_rate=4e-3, weight_decay=1e-2, patience=20)
        return Hyperparameters(epochs=60, batch_size=32, learning_rate=2e-3, weight_decay=1e-2, patience=12)

    def collect(self, config: RunConfig) -> Collected:
        if config.data in self.bundled:
            pictures = images.collect_digits()
            return _collected(images.DIGITS_SOURCE, DIGITS_SPEC, pictures, ())
        folder = Path(config.data)
        found, broken = images.collect_folder(folder, ImageSteps(PHOTO_SPEC))
        return _collected(f"folder {folder.name}", PHOTO_SPEC, found, broken)


def _collected(source: str, spec: ImageSpec, found: images.PictureSet, broken: tuple[Dropped, ...]) -> Collected:
    sha256, rows = images.fingerprint(found.items), len(found.items) + len(broken)

    def prepare(config: RunConfig) -> Task:
        kept, dropped = images.duplicates(found.items)
        pictures = found.keep(kept)
        labels = tuple(sorted({item.label for item in pictures.items}))
        targets = np.array([labels.index(item.label) for item in pictures.items], dtype=np.int64)
        notes = check_labels(source, labels, targets)
        splits = stratified(targets, config.seed)
        by_label = {
            split: dict(sorted(Counter(labels[target] for target in targets[indices]).items()))
            for split, indices in splits.items()
        }
        report = DataReport(source, sha256, rows, broken, dropped, by_label, tuple(notes))
        weights = weights_of(config.training, targets[splits[Split.TRAIN]], len(labels))
        return ImageTask(report, spec, pictures, targets, splits, labels, config.seed, weights)

    return Collected(source, sha256, rows, prepare)


class ImageTask:
    """See `exporter.recipes.base.Task`."""

    max_batch_size = 32

    def __init__(
        self,
        report: DataReport,
        spec: ImageSpec,
        pictures: images.PictureSet,
        targets: NDArray[np.int64],
        splits: Mapping[Split, NDArray[np.int64]],
        labels: tuple[str, ...],
        seed: int,
        weights: torch.Tensor | None = None,
    ) -> None:
        self.report = report
        self._weights = weights
        self.labels = labels
        channels, height, width = len(spec.mode), spec.resize.height, spec.resize.width
        self.inputs = (TensorSpec(spec.input, "FP32", (channels, height, width)),)
        self.outputs = (TensorSpec(OUTPUT, "FP32", (len(labels),)),)
        self.tolerances = {OUTPUT: Tolerance()}
        self._spec = spec
        self._steps = ImageSteps(spec)
        self._pictures = pictures
        self._targets = targets
        self._splits = splits
        self._seed = seed

    def size(self, split: Split) -> int:
        return len(self._splits[split])

    def batch(self, split: Split, rows: Array, epoch: int) -> tuple[Arrays, Array]:
        """Train rows are varied anew in every epoch; the others are plain."""
        indices = self._splits[split][rows]
        if split is Split.TRAIN:
            pictures = [self._varied(int(index), epoch) for index in indices]
        else:
            pictures = [self._pictures.plain(int(index)) for index in indices]
        return self._tensors(pictures), self._targets[indices]

    def network(self) -> nn.Module:
        channels, height, width = self.inputs[0].dims
        return ResidualNetwork(channels, len(self.labels), halve_first=min(height, width) >= 48)

    def loss(self, outputs: Sequence[torch.Tensor], targets: torch.Tensor) -> torch.Tensor:
        return functional.cross_entropy(outputs[0], targets, weight=self._weights, label_smoothing=0.05)

    def evaluate(self, predict: Predict) -> Evaluation:
        """Accuracy on the test pictures as they are, and on one variation of each."""
        baseline = self._baseline()
        reference = self._accuracies(baseline)
        return Evaluation(self.metrics(predict), reference, "logistic regression on the pixels")

    def metrics(self, predict: Predict) -> Mapping[str, float]:
        """Without the baseline's."""
        return self._accuracies(lambda inputs: predict(inputs)[OUTPUT].argmax(axis=1))

    def write_processing(self, folder: Path, evaluation: Evaluation) -> None:
        classification = self._spec.classification.model_copy(update={"decision": evaluation.decision})
        write_spec(self._spec.model_copy(update={"classification": classification}), folder)
        LABELS.write(folder, self.labels)
        example = self._pictures.example(int(self._splits[Split.TEST][0]))
        (folder / self._spec.example).write_bytes(_png(example))
        # Its twin, for people to send as well: what a camera gives is a JPEG.
        example.save((folder / self._spec.example).with_suffix(".jpg"), quality=85)

    def golden_inputs(self) -> Sequence[RawInput]:
        """PNGs of test pictures, of as many labels as there is room for; JPEG decoders differ between machines."""
        test = self._splits[Split.TEST]
        _, first = np.unique(self._targets[test], return_index=True)
        return [ImageInput(_png(self._pictures.plain(int(index))), "image/png") for index in test[first][:NUM_GOLDEN]]

    def _accuracies(self, chosen: Callable[[Arrays], Array]) -> Mapping[str, float]:
        """Of a function from inputs to indices of labels."""
        indices = self._splits[Split.TEST]
        plain, targets = self.batch(Split.TEST, np.arange(len(indices)), 0)
        varied = self._tensors([self._varied(int(index), 0) for index in indices])
        found = (("accuracy", plain), ("accuracy_varied", varied))
        return {name: float(np.mean(chosen(inputs) == targets)) for name, inputs in found}

    def _varied(self, index: int, epoch: int) -> Image.Image:
        return self._pictures.varied(index, np.random.default_rng([self._seed, epoch, index]))

    def _tensors(self, pictures: Sequence[Image.Image]) -> Arrays:
        return {self._spec.input: np.stack([self._steps.tensor(picture) for picture in pictures])}

    def _baseline(self) -> Callable[[Arrays], Array]:
        """A logistic regression on the pixels of the train pictures as they are."""
        from sklearn.linear_model import LogisticRegression

        indices = self._splits[Split.TRAIN]
        inputs = self._tensors([self._pictures.plain(int(index)) for index in indices])
        model = LogisticRegression(max_iter=1000).fit(_flat(inputs[self._spec.input]), self._targets[indices])
        return lambda arrays: np.asarray(model.predict(_flat(arrays[self._spec.input])))


def _png(picture: Image.Image) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, "PNG", optimize=True)
    return buffer.getvalue()


def _flat(pictures: Array) -> Array:
    return pictures.reshape(len(pictures), -1)


class ResidualNetwork(nn.Module):
    """Three stages of residual blocks, then the mean over the picture: about 110,000 parameters.

    x_BCHW -> logits_BK, for any H and W of at least 8.
    """

    def __init__(self, channels: int, num_labels: int, halve_first: bool) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(channels, 24, 3, stride=2 if halve_first else 1, padding=1, bias=False),
            nn.BatchNorm2d(24),
            nn.ReLU(),
        )
        self.stages = nn.Sequential(Block(24, 24, 1), Block(24, 48, 2), Block(48, 64, 2))
        self.dropout = nn.Dropout(0.2)
        self.head = nn.Linear(64, num_labels)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        features = self.stages(self.stem(x)).mean(dim=(2, 3))
        logits: torch.Tensor = self.head(self.dropout(features))
        return logits


class Block(nn.Module):
    """Two 3x3 convolutions around a shortcut."""

    def __init__(self, channels: int, wide: int, stride: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(channels, wide, 3, stride=stride, padding=1, bias=False)
        self.first_norm = nn.BatchNorm2d(wide)
        self.second = nn.Conv2d(wide, wide, 3, padding=1, bias=False)
        self.second_norm = nn.BatchNorm2d(wide)
        self.shortcut = nn.Identity() if stride == 1 and channels == wide else nn.Conv2d(channels, wide, 1, stride)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = functional.relu(self.first_norm(self.first(x)))
        y = self.second_norm(self.second(y))
        return functional.relu(y + self.shortcut(x))
