"""`recommendation`: from the items of a user to those that come next, by a small causal transformer (SASRec).

Of each user the last item is the test, the one before it the validation, and the rest is learnt from; what is ranked
are all items that the user has not had. Items that stand in the training part of nobody have no place in the model:
where one is the item to be found, that counts as a miss.

Source: Kang and McAuley, "Self-Attentive Sequential Recommendation", ICDM 2018. Shapes: B rows, L positions,
E the width, V items.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.nn import functional

from exporter.data import interactions
from exporter.data.interactions import Events
from exporter.recipes.base import (
    Arrays,
    Collected,
    DataReport,
    Evaluation,
    Hyperparameters,
    Predict,
    RunConfig,
    Split,
    Tolerance,
)
from server.pipeline.load import write_spec
from server.pipeline.recommendation import (
    ITEMS,
    PADDING,
    Histories,
    RecommendationSpec,
    best_unseen,
)
from server.tensor import Array, TensorSpec
from server.types import RawInput, RowInput

OUTPUT = "scores"
INPUT = "history"
MAX_BATCH_SIZE = 64
MAX_LENGTH = 50
TOP_K = 10
"""The k of the metrics."""
GOLDEN_ROWS = 12
SYNTHETIC = "synthetic-shop"
NO_TARGET = -1
"""In the place of an item that is padding, or that the model does not know."""


class RecommendationTask:
    """`exporter.recipes.base.Task` for the histories of users."""

    labels: tuple[str, ...] = ()

    def __init__(self, events: Events, found: interactions.Histories) -> None:
        self._known = found
        train = [history[:-2] for history in found.items]
        ranked = interactions.popularity(train)
        self._items = tuple(item for item, _ in ranked)
        self._counts = np.array([count for _, count in ranked], dtype=np.float64)
        length = min(MAX_LENGTH, max(len(history) - 1 for history in found.items))
        self.spec = RecommendationSpec(
            input=INPUT, length=length, output=OUTPUT, top_k=min(TOP_K, len(self._items)), example=found.items[0][-3:-1]
        )
        if not set(self.spec.example) & set(self._items):
            self.spec = self.spec.model_copy(update={"example": self._items[:2]})
        self._index_of = {item: index for index, item in enumerate(self._items)}
        self._histories = Histories(self._items, length)
        # Training learns from every position at once: the items but the last, and what came after each.
        self._inputs = {
            Split.TRAIN: self._histories.tensor([history[:-1] for history in train]),
            Split.VALIDATION: self._histories.tensor(train),
            Split.TEST: self._histories.tensor([history[:-1] for history in found.items]),
        }
        next_items = self._histories.tensor([history[1:] for history in train])
        self._targets: dict[Split, NDArray[np.int64]] = {
            Split.TRAIN: np.where(next_items == PADDING, NO_TARGET, next_items - 1),
            Split.VALIDATION: self._indices([history[-2] for history in found.items]),
            Split.TEST: self._indices([history[-1] for history in found.items]),
        }
        self.report = self._reported(events, found, train)

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        return (TensorSpec(INPUT, "INT64", (self.spec.length,)),)

    @property
    def outputs(self) -> tuple[TensorSpec, ...]:
        return (TensorSpec(OUTPUT, "FP32", (len(self._items),)),)

    @property
    def max_batch_size(self) -> int:
        return MAX_BATCH_SIZE

    @property
    def tolerances(self) -> Mapping[str, Tolerance]:
        return {OUTPUT: Tolerance()}

    def size(self, split: Split) -> int:
        return len(self._inputs[split])

    def batch(self, split: Split, rows: Array, epoch: int) -> tuple[Arrays, Array]:
        return {INPUT: self._inputs[split][rows]}, self._targets[split][rows]

    def network(self) -> nn.Module:
        popular = np.log(self._counts / self._counts.sum())
        width = 32 if len(self._items) < 1_000 else 64
        return SequenceNetwork(len(self._items), self.spec.length, width, torch.tensor(popular, dtype=torch.float32))

    def loss(self, outputs: Sequence[torch.Tensor], targets: torch.Tensor) -> torch.Tensor:
        """Cross entropy over all items: of every position in training, of the last one else."""
        scores = outputs[0].reshape(-1, len(self._items))
        return functional.cross_entropy(scores, targets.reshape(-1), ignore_index=NO_TARGET)

    def metrics(self, predict: Predict) -> Mapping[str, float]:
        """Those of `evaluate`, without popularity's."""
        return self._measured(predict({INPUT: self._inputs[Split.TEST]})[OUTPUT])

    def evaluate(self, predict: Predict) -> Evaluation:
        metrics = self.metrics(predict)
        popular = np.broadcast_to(self._counts, (self.size(Split.TEST), len(self._items)))
        unknown = int((self._targets[Split.TEST] == NO_TARGET).sum())
        notes = (f"{unknown} of the items to find are unknown to the model and count as misses",) if unknown else ()
        return Evaluation(metrics, self._measured(popular), "popularity", notes=notes)

    def write_processing(self, folder: Path, evaluation: Evaluation) -> None:
        write_spec(self.spec, folder)
        ITEMS.write(folder, self._items)

    def profile(self) -> Mapping[str, Mapping[Split, Array]]:
        lengths = {split: (rows != PADDING).sum(axis=1) for split, rows in self._inputs.items()}
        return {"items that are read of a history": lengths}

    def golden_inputs(self) -> Sequence[RawInput]:
        """Histories of test users; then one without items, one with unknown ids, one that is too long."""
        histories = [list(history[:-1]) for history in self._known.items[:GOLDEN_ROWS]]
        unknown = ["an id that training has not seen"]
        long = [self._items[i % len(self._items)] for i in range(self.spec.length + 3)]
        return [RowInput(values) for values in (*histories, [], unknown, [*histories[0], *unknown], long)]

    def _indices(self, items: Sequence[str]) -> NDArray[np.int64]:
        return np.array([self._index_of.get(item, NO_TARGET) for item in items], dtype=np.int64)

    def _measured(self, scores: Array) -> dict[str, float]:
        """HitRate and NDCG at 10, or at all items where they are fewer: one is to be found, so the ideal gain is 1."""
        k = min(TOP_K, len(self._items))
        gains = []
        for row, (history, target) in enumerate(
            zip(self._known.items, self._targets[Split.TEST].tolist(), strict=True)
        ):
            seen = np.array(self._histories.known(history[:-1]), dtype=np.int64) - (PADDING + 1)
            place = np.flatnonzero(best_unseen(scores[row], seen, k) == target)
            gains.append(1 / np.log2(2 + place[0]) if place.size else 0.0)
        found = np.array(gains)
        return {f"ndcg_at_{k}": float(found.mean()), f"hit_rate_at_{k}": float((found > 0).mean())}

    def _reported(self, events: Events, found: interactions.Histories, train: Sequence[Sequence[str]]) -> DataReport:
        lengths = np.array([len(history) for history in found.items])
        told = (
            f"{len(found.users)} users, {len(self._items)} items; a history has {lengths.min()} to {lengths.max()}, "
            f"{np.median(lengths):g} in the middle; the model reads the last {self.spec.length}"
        )
        return DataReport(
            source=events.source,
            sha256=events.sha256,
            collected=len(events.frame) + len(events.broken),
            broken=events.broken,
            duplicates=found.duplicates,
            rows={split: {"users": self.size(split)} for split in Split},
            notes=(*found.notes, told, "the last item of each user is the test, the one before it the validation"),
            synthetic=events.synthetic,
        )


class SequenceNetwork(nn.Module):
    """Histories [B, L] to scores [B, V] of what comes next; in training to those of each position, [B, L, V]."""

    def __init__(self, items: int, length: int, width: int, popularity: torch.Tensor, blocks: int = 2) -> None:
        super().__init__()
        self._items = nn.Embedding(items + 1, width, padding_idx=PADDING)
        nn.init.normal_(self._items.weight, std=width**-0.5)
        with torch.no_grad():
            self._items.weight[PADDING] = 0.0
        self._places = nn.Parameter(torch.randn(length, width) * 0.02)
        self._blocks = nn.ModuleList(Block(width) for _ in range(blocks))
        self._norm = nn.LayerNorm(width)
        self._dropout = nn.Dropout(0.2)
        self._popularity = nn.Buffer(popularity)
        self._count = items
        causal = torch.tril(torch.ones(length, length, dtype=torch.bool))
        self._causal = nn.Buffer(causal)
        self._itself = nn.Buffer(torch.eye(length, dtype=torch.bool))

    def forward(self, history: torch.Tensor) -> torch.Tensor:
        # An index that does not exist would fail the whole batch, and with it the rows of other callers.
        history = torch.where((history >= 0) & (history <= self._count), history, PADDING)
        real = history != PADDING
        # Padding is looked at by nobody but itself, for a row that looks at nothing has no answer.
        mask = (self._causal & real.unsqueeze(1)) | self._itself
        x = self._dropout(self._items(history) + self._places)
        for block in self._blocks:
            x = block(x, mask)
        x = self._norm(x if self.training else x[:, -1])
        scores: torch.Tensor = x @ self._items.weight[1:].T
        if self.training:
            return scores
        return torch.where(real.any(dim=1, keepdim=True), scores, self._popularity)


class Block(nn.Module):
    """Self-attention of one head, then a layer for each position, each around a shortcut."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self._before = nn.LayerNorm(width)
        self._query_key_value = nn.Linear(width, 3 * width)
        self._mixed = nn.Linear(width, width)
        self._between = nn.LayerNorm(width)
        self._layers = nn.Sequential(
            nn.Linear(width, 2 * width), nn.GELU(), nn.Dropout(0.2), nn.Linear(2 * width, width)
        )
        self._dropout = nn.Dropout(0.2)

    def forward(self, x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """`mask` [B, L, L]: which position may look at which."""
        query, key, value = self._query_key_value(self._before(x)).chunk(3, dim=-1)
        weights = (query @ key.transpose(1, 2)) * query.shape[-1] ** -0.5
        weights = weights.masked_fill(~mask, -1e9).softmax(dim=-1)
        x = x + self._dropout(self._mixed(weights @ value))
        y: torch.Tensor = x + self._dropout(self._layers(self._between(x)))
        return y


class RecommendationRecipe:
    """`exporter.recipes.base.Recipe` for histories of items."""

    options = frozenset[str]()

    @property
    def name(self) -> str:
        return "recommendation"

    @property
    def bundled(self) -> Mapping[str, str]:
        return {SYNTHETIC: "900 users of a shop of 120 items, SYNTHETIC, from a seeded generator"}

    def hyperparameters(self, data: str) -> Hyperparameters:
        return Hyperparameters(epochs=40, batch_size=64, learning_rate=4e-3, weight_decay=1e-3, patience=8)

    def collect(self, config: RunConfig) -> Collected:
        events = interactions.synthetic() if config.data == SYNTHETIC else interactions.read(Path(config.data))
        return Collected(
            events.source,
            events.sha256,
            len(events.frame) + len(events.broken),
            lambda _: RecommendationTask(events, interactions.histories(events)),
        )
