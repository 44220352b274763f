"""The network for rows: embeddings of the categories beside the features, a small MLP, and a linear shortcut."""

from __future__ import annotations

from collections.abc import Sequence
from math import ceil, sqrt

import torch
from torch import nn

from server.pipeline.columns import FIRST_CATEGORY_INDEX, UNKNOWN_INDEX

MAX_EMBEDDING = 16


class CategoryEmbedding(nn.Module):
    """Indices of one column, INT64 [B], to vectors [B, E]. Missing and unknown start at zero: they add nothing
    unless training has seen them."""

    def __init__(self, cardinality: int) -> None:
        super().__init__()
        self.width = min(MAX_EMBEDDING, ceil(sqrt(cardinality)))
        self._cardinality = cardinality
        self._table = nn.Embedding(cardinality, self.width)
        with torch.no_grad():
            self._table.weight[:FIRST_CATEGORY_INDEX] = 0.0

    def forward(self, indices: torch.Tensor) -> torch.Tensor:
        # An index that does not exist would fail the whole batch, and with it the rows of other callers.
        known = (indices >= 0) & (indices < self._cardinality)
        embedded: torch.Tensor = self._table(torch.where(known, indices, UNKNOWN_INDEX))
        return embedded


class TabularNetwork(nn.Module):
    """Features [B, F] and categories [B, C] (either may be absent) to logits [B, L].

    The shortcut makes a linear model the starting point, so that few rows are enough for a decent answer; the
    hidden layers learn what is left. Without batch statistics a row's answer never depends on its neighbours,
    in training neither.
    """

    def __init__(
        self, num_features: int, cardinalities: Sequence[int], num_labels: int, hidden: Sequence[int], dropout: float
    ) -> None:
        super().__init__()
        self._has_features = num_features > 0
        embeddings = [CategoryEmbedding(cardinality) for cardinality in cardinalities]
        self._embeddings = nn.ModuleList(embeddings)
        width = num_features + sum(embedding.width for embedding in embeddings)
        self._shortcut = nn.Linear(width, num_labels)
        layers: list[nn.Module] = []
        for previous, size in zip((width, *hidden), hidden, strict=False):
            layers += [nn.Linear(previous, size), nn.SiLU(), nn.Dropout(dropout)]
        self._hidden = nn.Sequential(*layers, nn.Linear(hidden[-1], num_labels))

    def forward(self, first: torch.Tensor, second: torch.Tensor | None = None) -> torch.Tensor:
        """`first` and `second` are features and categories in that order, without the one that there is none of."""
        parts = [first] if self._has_features else []
        categories = second if self._has_features else first
        if categories is not None:
            parts += [embed(categories[:, column]) for column, embed in enumerate(self._embeddings)]
        joined = torch.cat(parts, dim=1)
        logits: torch.Tensor = self._shortcut(joined) + self._hidden(joined)
        return logits
