"""Networks that read tokens: a small transformer to be trained from nothing, pooling, and a head for labels.

Shapes: B texts, T tokens, D the width, H heads, C labels. `mask_bt` is 1 for a token of the text and 0 for padding;
what is padded never changes what comes out.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal, Protocol

import torch
from torch import nn

Pooling = Literal["mean", "cls", "max"]


class TokenEncoder(Protocol):
    """Tokens to vectors: what `Classifier` and `SentenceEncoder` stand on. An `nn.Module`."""

    width: int
    """D."""

    def __call__(self, ids_bt: torch.Tensor, mask_bt: torch.Tensor, *more: torch.Tensor) -> torch.Tensor:
        """Vectors [B, T, D]; `more` are the model's other inputs, in their order."""


class SmallTransformer(nn.Module):
    """Embeddings of tokens and places, then blocks of attention and a gated layer. x_BTD, for any T.

    A place beyond the last one that was trained is taken for the last one, a token that does not exist for the
    padding: a request that holds such must not fail its neighbours' batch.
    """

    def __init__(self, vocabulary: int, max_length: int, width: int, layers: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.width = width
        self._vocabulary = vocabulary
        self._last_place = max_length - 1
        self._tokens = nn.Embedding(vocabulary, width)
        self._places = nn.Embedding(max_length, width)
        nn.init.normal_(self._tokens.weight, std=0.05)
        nn.init.normal_(self._places.weight, std=0.05)
        self._dropout = nn.Dropout(dropout)
        self._blocks = nn.ModuleList(Block(width, heads, dropout) for _ in range(layers))
        self._norm = nn.LayerNorm(width)

    def forward(self, ids_bt: torch.Tensor, mask_bt: torch.Tensor) -> torch.Tensor:
        known = (ids_bt >= 0) & (ids_bt < self._vocabulary)
        places_t = torch.arange(ids_bt.shape[1], device=ids_bt.device).clamp(max=self._last_place)
        x_btd = self._tokens(torch.where(known, ids_bt, 0)) + self._places(places_t)
        x_btd = self._dropout(x_btd)
        # Added to the scores: padding gets no attention. Finite, so that a row of padding alone is no NaN.
        bias_b11t = (1.0 - mask_bt[:, None, None, :].to(x_btd.dtype)) * -1e9
        for block in self._blocks:
            x_btd = block(x_btd, bias_b11t)
        normed: torch.Tensor = self._norm(x_btd)
        return normed


class Block(nn.Module):
    """Attention and a layer of four times the width, each around a shortcut."""

    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self._heads = heads
        self._scale = (width // heads) ** -0.5
        self._attention_norm = nn.LayerNorm(width)
        self._joined = nn.Linear(width, 3 * width)
        self._attended = nn.Linear(width, width)
        self._wide_norm = nn.LayerNorm(width)
        self._wide = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))
        self._dropout = nn.Dropout(dropout)

    def forward(self, x_btd: torch.Tensor, bias_b11t: torch.Tensor) -> torch.Tensor:
        batch, length, width = x_btd.shape
        joined = self._joined(self._attention_norm(x_btd)).reshape(batch, length, 3, self._heads, -1)
        query_bhtd, key_bhtd, value_bhtd = joined.permute(2, 0, 3, 1, 4).unbind(0)
        scores_bhtt = query_bhtd @ key_bhtd.transpose(-1, -2) * self._scale + bias_b11t
        mixed_bhtd = scores_bhtt.softmax(dim=-1) @ value_bhtd
        x_btd = x_btd + self._dropout(self._attended(mixed_bhtd.transpose(1, 2).reshape(batch, length, width)))
        changed: torch.Tensor = x_btd + self._dropout(self._wide(self._wide_norm(x_btd)))
        return changed


def pooled(x_btd: torch.Tensor, mask_bt: torch.Tensor, pooling: Pooling) -> torch.Tensor:
    """One vector for each text, [B, D]: of its tokens the mean, the first, or the largest of each dimension."""
    if pooling == "cls":
        return x_btd[:, 0]
    mask_bt1 = mask_bt[:, :, None].to(x_btd.dtype)
    if pooling == "max":
        return (x_btd - (1.0 - mask_bt1) * 1e9).amax(dim=1)
    return (x_btd * mask_bt1).sum(dim=1) / mask_bt1.sum(dim=1).clamp(min=1e-9)


class TextClassifier(nn.Module):
    """Tokens to logits [B, C]."""

    def __init__(self, encoder: nn.Module, width: int, num_labels: int, pooling: Pooling, dropout: float) -> None:
        super().__init__()
        self.encoder = encoder
        self._pooling: Pooling = pooling
        self._dropout = nn.Dropout(dropout)
        self.head = nn.Linear(width, num_labels)

    def forward(self, *inputs: torch.Tensor) -> torch.Tensor:
        vectors_bd = pooled(self.encoder(*inputs), inputs[1], self._pooling)
        logits: torch.Tensor = self.head(self._dropout(vectors_bd))
        return logits


class SentenceEncoder(nn.Module):
    """Tokens to one vector for each text, [B, D]: pooled, then through what follows in turn."""

    def __init__(self, encoder: nn.Module, pooling: Pooling, following: Iterable[nn.Module] = ()) -> None:
        super().__init__()
        self.encoder = encoder
        self._pooling: Pooling = pooling
        self._following = nn.Sequential(*following)

    def forward(self, *inputs: torch.Tensor) -> torch.Tensor:
        vectors_bd: torch.Tensor = self._following(pooled(self.encoder(*inputs), inputs[1], self._pooling))
        return vectors_bd
