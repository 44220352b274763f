"""`text-classification`: a text is one of several labels, by a small transformer or by a pretrained encoder."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import chain, islice, zip_longest
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydantic import BaseModel
from torch import nn
from torch.nn import functional

from exporter.data.support import SOURCE, support_messages
from exporter.data.texts import TextSet, clean, read_file
from exporter.errors import UsageError
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
    TextOptions,
    Tolerance,
)
from exporter.recipes.tabular_metrics import Scored, balanced_metrics
from exporter.text.hub import HubEncoder, HubFolder, folder_of, freeze
from exporter.text.network import SmallTransformer, TextClassifier
from exporter.text.rows import TextRows, lengths_cut, scratch_tokenizer
from server.pipeline.classification import LABELS, ClassificationSpec, Classifier
from server.pipeline.load import write_spec
from server.pipeline.text_spec import TextClassificationSpec, TokensSpec
from server.tensor import Array, TensorSpec
from server.types import RawInput, TextInput

TASK = "text-classification"
OUTPUT = "logits"
MAX_BATCH_SIZE = 64
GOLDEN_TEXTS = 10
SCRATCH_LENGTH = 64
ENCODER_LENGTH = 128
"""Tokens of a text where --max-length does not say: most texts are shorter, and attention costs by the square."""
ENCODER_RATE = 0.03
"""What a pretrained encoder's learning rate is of the head's."""
BUNDLED = {"support_messages": f"3,000 {SOURCE}"}
HARD_TEXTS = ("?", "Ünïcode 🙂 名前")
"""Golden texts that training has hardly seen the like of."""


class TextTask:
    """`exporter.recipes.base.Task` for one set of labelled texts."""

    max_batch_size = MAX_BATCH_SIZE

    def __init__(self, found: TextSet, config: RunConfig) -> None:
        options = config.text or TextOptions()
        self._options = options
        self._name = config.name
        self.hub = HubFolder(folder_of(options.encoder)) if options.encoder else None
        kept, duplicates = clean(found.labelled)
        self.rows = TextRows(kept, config.seed)
        self.labels = self.rows.labels
        if self.hub is None:
            length = options.max_length or SCRATCH_LENGTH
            train = [self.rows.texts[index] for index in self.rows.splits[Split.TRAIN]]
            self.tokenizer_json = scratch_tokenizer(train, options.vocabulary)
            tokens = TokensSpec(max_length=length)
        else:
            self.tokenizer_json = self.hub.tokenizer_json
            tokens = self.hub.tokens(options.max_length)
            if not options.max_length:
                tokens = tokens.model_copy(update={"max_length": min(tokens.max_length, ENCODER_LENGTH)})
        self.rows.encode(tokens, self.tokenizer_json)
        if self.hub is not None:
            self.hub.check_vocabulary(self.rows.vocabulary)
        self.tokens = tokens
        self.report = self._report(found, duplicates)

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        return tuple(TensorSpec(name, "INT64", (-1,)) for name in self.tokens.tensors)

    @property
    def outputs(self) -> tuple[TensorSpec, ...]:
        return (TensorSpec(OUTPUT, "FP32", (len(self.labels),)),)

    @property
    def parameters(self) -> Mapping[str, str]:
        """For config.pbtxt: requests of like length share a batch."""
        return self.rows.bucket_parameters()

    @property
    def tolerances(self) -> Mapping[str, Tolerance]:
        return {OUTPUT: Tolerance()}

    def size(self, split: Split) -> int:
        return len(self.rows.splits[split])

    def batch(self, split: Split, rows: Array, epoch: int) -> tuple[Arrays, Array]:
        return self.rows.batch(self.rows.splits[split][rows])

    def network(self) -> nn.Module:
        if self.hub is None:
            small = SmallTransformer(
                self.rows.vocabulary, self.tokens.max_length, width=64, layers=2, heads=4, dropout=0.1
            )
            return TextClassifier(small, small.width, len(self.labels), "mean", dropout=0.1)
        encoder = self.hub.encoder()
        freeze(encoder, self._options.tuning)
        return TextClassifier(encoder, encoder.width, len(self.labels), self.hub.modules.pooling, dropout=0.1)

    def learning_rates(self, network: nn.Module) -> Sequence[tuple[Sequence[nn.Parameter], float]]:
        """A pretrained encoder is moved less than its new head."""
        assert isinstance(network, TextClassifier)
        if not isinstance(network.encoder, HubEncoder):
            return [(list(network.parameters()), 1.0)]
        tuned = [parameter for parameter in network.encoder.parameters() if parameter.requires_grad]
        head = [(list(network.head.parameters()), 1.0)]
        return [(tuned, ENCODER_RATE), *head] if tuned else head

    def loss(self, outputs: Sequence[torch.Tensor], targets: torch.Tensor) -> torch.Tensor:
        return functional.cross_entropy(outputs[0], targets)

    def evaluate(self, predict: Predict) -> Evaluation:
        """Accuracy and macro-F1 of the network, and of a logistic regression on tf-idf of words and pairs of words."""
        cut = lengths_cut(self.rows, Split.TEST)
        note = f"cut at {self.tokens.max_length} tokens: {cut} of {self.size(Split.TEST)} test texts"
        return Evaluation(self.metrics(predict), self._baseline(), "tf-idf and logistic regression", notes=(note,))

    def metrics(self, predict: Predict) -> Mapping[str, float]:
        """By the serving code."""
        inputs, targets = self.batch(Split.TEST, np.arange(self.size(Split.TEST)), 0)
        classifier = Classifier(self._classification(), self.labels, self._name)
        return balanced_metrics(Scored(targets, classifier.probabilities(predict(inputs))))

    def write_processing(self, folder: Path, evaluation: Evaluation) -> None:
        example = self.rows.texts[int(self.rows.splits[Split.TEST][0])]
        spec = TextClassificationSpec(tokens=self.tokens, classification=self._classification(), example=example)
        write_spec(spec, folder)
        LABELS.write(folder, self.labels)
        (folder / self.tokens.tokenizer).write_bytes(self.tokenizer_json)

    def golden_inputs(self) -> Sequence[RawInput]:
        """Test texts of every label in turn, then hard ones."""
        return golden_texts(self.rows)

    def _classification(self) -> ClassificationSpec:
        return ClassificationSpec(output=OUTPUT, top_k=min(len(self.labels), 5))

    def _baseline(self) -> dict[str, float]:
        from sklearn.linear_model import LogisticRegression

        train, test = (self.rows.of(split) for split in (Split.TRAIN, Split.TEST))
        known, asked = by_words(train[0], test[0], most=2)
        model = LogisticRegression(max_iter=2_000, C=10.0).fit(known, train[1])
        return balanced_metrics(Scored(test[1], model.predict_proba(asked)))

    def _report(self, found: TextSet, duplicates: tuple[Dropped, ...]) -> DataReport:
        cut = lengths_cut(self.rows, Split.TRAIN)
        notes = [f"texts are cut at {self.tokens.max_length} tokens: {cut} of {self.size(Split.TRAIN)} in training"]
        if self.hub is not None:
            notes.append(f"encoder {self.hub.name}, sha256 {self.hub.sha256[:12]}")
        return DataReport(
            source=found.source,
            sha256=fingerprint(found, self.hub),
            collected=len(found.labelled) + len(found.broken),
            broken=found.broken,
            duplicates=duplicates,
            rows=self.rows.counts(),
            notes=(*notes, *self.rows.notes),
            synthetic=found.synthetic,
        )


def by_words(train: Sequence[str], test: Sequence[str], most: int) -> tuple[Any, Any]:
    """tf-idf of words, and of up to `most` in a row; of characters, where the training texts have no words."""
    from sklearn.feature_extraction.text import TfidfVectorizer

    vectorizer = TfidfVectorizer(ngram_range=(1, most), sublinear_tf=True)
    try:
        known = vectorizer.fit_transform(train)
    except ValueError:  # of signs alone, or each a single one, as in Chinese
        vectorizer = TfidfVectorizer(ngram_range=(1, most), sublinear_tf=True, analyzer="char")
        known = vectorizer.fit_transform(train)
    return known, vectorizer.transform(test)


def golden_texts(rows: TextRows) -> list[RawInput]:
    texts, targets = rows.of(Split.TEST)
    by_label = [
        [text for text, target in zip(texts, targets, strict=True) if target == n] for n in range(len(rows.labels))
    ]
    turns = (text for text in chain.from_iterable(zip_longest(*by_label)) if text is not None)
    return [TextInput(text) for text in (*islice(turns, GOLDEN_TEXTS), *HARD_TEXTS)]


def fingerprint(found: TextSet, hub: HubFolder | None) -> str:
    """Of the texts, and of the encoder that a run began with: other weights are another run."""
    return found.sha256 if hub is None else hashlib.sha256(f"{found.sha256} {hub.sha256}".encode()).hexdigest()


class TextRecipe:
    """`exporter.recipes.base.Recipe`: see above."""

    name = TASK
    bundled: Mapping[str, str] = BUNDLED
    options = ("text",)

    def hyperparameters(self, data: str) -> Hyperparameters:
        return Hyperparameters(epochs=30, batch_size=32, learning_rate=2e-3, weight_decay=1e-2, patience=8)

    def collect(self, config: RunConfig) -> Collected:
        options = config.text or TextOptions()
        if options.encoder:
            refuse_idle(options, ("vocabulary",), "the encoder has a tokenizer of its own")
        else:
            refuse_idle(options, ("tuning",), "goes with --encoder, of which it says what is trained")
        return collected(config, TextTask)


def refuse_idle(options: BaseModel, names: Iterable[str], why: str) -> None:
    """Raises UsageError: one of these options is set, and would do nothing."""
    for name in names:
        if getattr(options, name) != type(options).model_fields[name].default:
            raise UsageError(f"--{name.replace('_', '-')}: {why}")


def collected(config: RunConfig, task: Callable[[TextSet, RunConfig], Task]) -> Collected:
    """Labelled texts, for a task that takes such. Raises DataError, UsageError."""
    found, options = texts_of(config), config.text or TextOptions()
    hub = HubFolder(folder_of(options.encoder)) if options.encoder else None
    rows = len(found.labelled) + len(found.broken)
    return Collected(found.source, fingerprint(found, hub), rows, lambda config: task(found, config))


def texts_of(config: RunConfig) -> TextSet:
    """The texts that a configuration names. Raises DataError, UsageError."""
    return support_messages() if config.data in BUNDLED else read_file(Path(config.data))
