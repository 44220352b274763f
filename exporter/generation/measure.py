"""Perplexity: of a model on held-out tokens, and of pairs of tokens, which is the least that it must be better than."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from server.tensor import Array

Logits = Callable[[Array], Array]
"""Tokens, one row of a window, to logits of each behind it."""


def perplexity(logits: Logits, tokens: Array, window: int) -> float:
    """The exponential of the mean loss of a token, each window read from its own beginning."""
    losses = [_loss(logits(read), wanted) for read, wanted in _windows(tokens, window)]
    return float(np.exp(np.concatenate(losses).mean()))


def bigram_perplexity(train: Array, held_out: Array, vocabulary: int, window: int) -> float:
    """Of a table of which token follows which, with Jelinek-Mercer's weight of a tenth for single tokens."""
    single = np.bincount(train, minlength=vocabulary) + 1.0
    single /= single.sum()
    pairs, counts = np.unique(train[:-1] * vocabulary + train[1:], return_counts=True)
    table = dict(zip(pairs.tolist(), counts.tolist(), strict=True))
    before = np.bincount(train[:-1], minlength=vocabulary)
    losses = []
    for read, wanted in _windows(held_out, window):
        found = np.array([table.get(int(a) * vocabulary + int(b), 0) for a, b in zip(read, wanted, strict=True)])
        losses.append(-np.log(0.9 * found / np.maximum(before[read], 1) + 0.1 * single[wanted]))
    return float(np.exp(np.concatenate(losses).mean()))


def _windows(tokens: Array, window: int) -> Iterator[tuple[Array, Array]]:
    for start in range(0, len(tokens) - window, window):
        yield tokens[start : start + window], tokens[start + 1 : start + window + 1]


def _loss(logits: Array, wanted: Array) -> Array:
    logits = logits.astype(np.float64)
    highest = logits.max(axis=1)
    total = highest + np.log(np.exp(logits - highest[:, None]).sum(axis=1))
    loss: Array = total - logits[np.arange(len(wanted)), wanted]
    return loss


def of_torch(model: Any) -> Logits:
    """A model of transformers, in evaluation mode."""

    def logits(tokens: Array) -> Array:
        with torch.inference_mode():
            found: Array = model(input_ids=torch.from_numpy(tokens[None]), use_cache=False).logits[0].float().numpy()
        return found

    return logits


def of_onnx(folder: Path, config: Any) -> Logits:
    """A model that the builder wrote, with an empty past. `config`: its `GenaiConfig`."""
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 4
    session = ort.InferenceSession(folder / config.filename, options, providers=["CPUExecutionProvider"])
    shape = (1, config.kv_heads, 0, config.head_size)
    pasts = {
        node.name: np.empty(shape, np.float16 if node.type == "tensor(float16)" else np.float32)
        for node in session.get_inputs()
        if node.name.startswith("past")
    }

    def logits(tokens: Array) -> Array:
        feeds = {"input_ids": tokens[None], "attention_mask": np.ones((1, len(tokens)), np.int64), **pasts}
        found: Array = session.run(["logits"], feeds)[0][0].astype(np.float32)
        return found

    return logits
