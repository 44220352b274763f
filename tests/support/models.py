"""Small model folders and tasks for tests of the pipelines and of the exporter."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import nn

from exporter.recipes.base import Arrays, DataReport, Evaluation, Predict, Split, Tolerance
from server.pipeline.classification import LABELS, ClassificationSpec
from server.pipeline.image_spec import ImageSpec, Normalize, Resize
from server.pipeline.load import write_spec
from server.tensor import Array, TensorSpec
from server.types import RawInput, RowInput
from tests.support.drawn_digits import encode

SMALL_SPEC = ImageSpec(
    mode="L",
    resize=Resize(height=4, width=6),
    normalize=Normalize(mean=(0.0,), std=(1.0,)),
    classification=ClassificationSpec(top_k=2),
)


def write_image_model(folder: Path, spec: ImageSpec = SMALL_SPEC, labels: tuple[str, ...] = ("cat", "dog")) -> Path:
    """What `load_pipeline` reads of an image model, in `folder`; returns it."""
    folder.mkdir(parents=True, exist_ok=True)
    write_spec(spec, folder)
    LABELS.write(folder, labels)
    (folder / spec.example).write_bytes(encode(Image.new("L", (8, 8), 200), "PNG"))
    return folder


class Killed(BaseException):
    """Stands for the end of the process in the middle of a batch."""


class PointsTask:
    """Points in a plane, inside or outside a ring; a small network with dropout and batch normalisation.

    `die_at` is the epoch and the batch in it at which the process "dies".
    """

    labels = ("inside", "outside")
    inputs = (TensorSpec("point", "FP32", (2,)),)
    outputs = (TensorSpec("logits", "FP32", (2,)),)
    max_batch_size = 8
    tolerances: Mapping[str, Tolerance] = {"logits": Tolerance()}

    def __init__(self, die_at: tuple[int, int] | None = None) -> None:
        self._die_at = die_at
        self._batches = 0
        generator = np.random.default_rng(5)
        self._points = generator.normal(size=(120, 2)).astype(np.float32)
        self._targets = (np.linalg.norm(self._points, axis=1) > 1.1).astype(np.int64)
        rows = np.arange(120)
        self._splits = {Split.TRAIN: rows[:80], Split.VALIDATION: rows[80:100], Split.TEST: rows[100:]}
        self.report = DataReport("points", "0" * 64, 120, (), (), {split: {} for split in Split})

    def size(self, split: Split) -> int:
        return len(self._splits[split])

    def batch(self, split: Split, rows: Array, epoch: int) -> tuple[Arrays, Array]:
        if split is Split.TRAIN and self._die_at is not None and epoch == self._die_at[0]:
            if self._batches == self._die_at[1]:
                raise Killed
            self._batches += 1
        indices = self._splits[split][rows]
        points = self._points[indices]
        if split is Split.TRAIN:
            noise = [np.random.default_rng([epoch, int(row)]).normal(scale=0.05, size=2) for row in indices]
            points = points + np.array(noise, dtype=np.float32)
        return {"point": points}, self._targets[indices]

    def network(self) -> nn.Module:
        return nn.Sequential(nn.Linear(2, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(0.3), nn.Linear(16, 2))

    def loss(self, outputs: Sequence[torch.Tensor], targets: torch.Tensor) -> torch.Tensor:
        return nn.functional.cross_entropy(outputs[0], targets)

    def evaluate(self, predict: Predict) -> Evaluation:
        inputs, targets = self.batch(Split.TEST, np.arange(self.size(Split.TEST)), 0)
        accuracy = float(np.mean(predict(inputs)["logits"].argmax(axis=1) == targets))
        return Evaluation({"accuracy": accuracy}, {"accuracy": float(np.mean(targets))}, "always outside")

    def write_processing(self, folder: Path, evaluation: Evaluation) -> None:
        raise NotImplementedError("points are not published")

    def golden_inputs(self) -> Sequence[RawInput]:
        return [RowInput(point.tolist()) for point in self._points[100:104]]
