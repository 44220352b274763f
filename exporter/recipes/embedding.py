"""`text-embedding`: a pretrained sentence encoder, its pooling and normalisation in the graph; texts become vectors.

Nothing is trained. Labelled texts measure it: how often is the nearest training text, by the cosine, of the same label?
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import nn

from exporter.errors import ExporterError, LabelsError, UsageError
from exporter.onnx import TrainedNetwork
from exporter.recipes.base import Collected, Evaluation, Hyperparameters, Predict, RunConfig, Split, Tolerance, Trained
from exporter.recipes.text import BUNDLED, TextTask, by_words, collected, refuse_idle
from exporter.text.hub import HubFolder
from exporter.text.rows import lengths_cut
from server.pipeline.load import write_spec
from server.pipeline.text_spec import TextEmbeddingSpec
from server.tensor import Array, TensorSpec

TASK = "text-embedding"
OUTPUT = "sentence_embedding"
CLOSE = Tolerance(absolute=1e-4, relative=0.0)
METRIC = "nearest_label_accuracy"


class EmbeddingTask(TextTask):
    """`exporter.recipes.base.Task` that fits itself: it loads the encoder."""

    @property
    def outputs(self) -> tuple[TensorSpec, ...]:
        return (TensorSpec(OUTPUT, "FP32", (self._hub.dimensions,)),)

    @property
    def tolerances(self) -> Mapping[str, Tolerance]:
        return {OUTPUT: CLOSE}

    @property
    def _hub(self) -> HubFolder:
        assert self.hub is not None
        return self.hub

    def fit(self, folder: Path) -> Trained:
        """The encoder as it is."""
        return TrainedNetwork(self, self.network().eval())

    def network(self) -> nn.Module:
        return self._hub.sentences()

    def loss(self, outputs: Sequence[torch.Tensor], targets: torch.Tensor) -> torch.Tensor:
        raise ExporterError("an encoder of sentences is not trained here")

    def evaluate(self, predict: Predict) -> Evaluation:
        """The share of test texts whose nearest training text has their label, by vectors and by tf-idf."""
        (train, known), (test, wanted) = self.rows.of(Split.TRAIN), self.rows.of(Split.TEST)
        words, asked = by_words(train, test, most=1)
        nearest = (asked @ words.T).toarray().argmax(axis=1)
        baseline = {METRIC: float(np.mean(known[nearest] == wanted))}
        note = (f"cut at {self.tokens.max_length} tokens: {lengths_cut(self.rows, Split.TEST)} test texts",)
        return Evaluation(self.metrics(predict), baseline, "nearest by tf-idf", notes=note)

    def metrics(self, predict: Predict) -> Mapping[str, float]:
        """By the vectors."""
        vectors = {split: self._vectors(predict, split) for split in (Split.TRAIN, Split.TEST)}
        nearest = (vectors[Split.TEST] @ vectors[Split.TRAIN].T).argmax(axis=1)
        known, wanted = self.rows.of(Split.TRAIN)[1], self.rows.of(Split.TEST)[1]
        return {METRIC: float(np.mean(known[nearest] == wanted))}

    def write_processing(self, folder: Path, evaluation: Evaluation) -> None:
        spec = TextEmbeddingSpec(
            tokens=self.tokens,
            output=OUTPUT,
            dimensions=self.outputs[0].dims[0],
            normalized=self._hub.modules.normalized,
            example=self.rows.texts[int(self.rows.splits[Split.TEST][0])],
        )
        write_spec(spec, folder)
        (folder / self.tokens.tokenizer).write_bytes(self.tokenizer_json)

    def _vectors(self, predict: Predict, split: Split) -> Array:
        """In small batches of like length, for a batch is as long as its longest text."""
        indices = self.rows.splits[split]
        order = np.argsort([self.rows.length(int(index)) for index in indices], kind="stable")
        parts = [
            predict(self.rows.batch(indices[part])[0])[OUTPUT] for part in np.array_split(order, len(order) // 32 + 1)
        ]
        found = np.empty((len(indices), parts[0].shape[1]), np.float32)
        found[order] = np.concatenate(parts)
        found /= np.linalg.norm(found, axis=1, keepdims=True).clip(min=1e-12)
        return found


class EmbeddingRecipe:
    """`exporter.recipes.base.Recipe`: see above."""

    name = TASK
    bundled: Mapping[str, str] = BUNDLED
    options = ("text",)

    def hyperparameters(self, data: str) -> Hyperparameters:
        return Hyperparameters()

    def collect(self, config: RunConfig) -> Collected:
        if config.text is None or not config.text.encoder:
            raise UsageError("--encoder is missing: the folder of a sentence encoder, or `minilm`")
        refuse_idle(config.training, Hyperparameters.model_fields, f"nothing is trained by {TASK}")
        refuse_idle(config.text, ("tuning", "vocabulary"), f"nothing is trained by {TASK}")
        with _without_labels():
            found = collected(config, EmbeddingTask)
        return replace(found, prepare=_without_labels()(found.prepare))


@contextmanager
def _without_labels() -> Iterator[None]:
    """Who has no labels is told what else there is."""
    try:
        yield
    except LabelsError as error:
        raise LabelsError(f"{error}; `forwardpass import FOLDER` publishes an encoder without a single text") from error
