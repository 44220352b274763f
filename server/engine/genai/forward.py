"""Passes of a decoder over the rows of its cache: some tokens of prompts, or the next token of many texts.

The model is the ONNX file that onnxruntime-genai's builder writes: its GroupQueryAttention takes each row's length from
the attention mask, so that texts of unequal length share a pass, and where a past and its present are the same memory
it writes the new keys and values in place. A row's numbers are the same whatever the other rows are.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from server.engine.genai.cache import KvCache
from server.engine.genai.folder import GenaiConfig
from server.engine.genai.graph import LOGITS_AT

_CPU = "cpu"
_MASK = 64
"""Tokens by which a decoding pass's mask grows: it is bound anew no more often. More of it than there are tokens is
read by nobody."""
_MOST_BEGUN = 256
"""Bindings that are kept for prompts: of many rows there are more pairs of a first one and a number."""
Tokens = NDArray[np.int64]
Logits = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class _Fed:
    """A decoding pass's inputs, bound once: they are filled before each."""

    binding: Any
    ids: Tokens
    mask: Tokens
    positions: Tokens


class Forward:
    """A session and its cache. One thread at a time."""

    def __init__(self, session: Any, config: GenaiConfig, cache: KvCache, logits_type: np.dtype[Any]) -> None:
        self._session = session
        self._config = config
        self._cache = cache
        self._logits_type = logits_type
        self._positions = config.inputs.get("position_ids")
        self._counted = np.arange(cache.context)
        self._ones = np.ones(cache.context, np.int64)
        self._begun: dict[tuple[int, int], Any] = {}
        """Bindings for prompts by the first row and how many: the cache's part of it stays."""
        self._fed: dict[int, _Fed] = {}
        """By how many rows a decoding pass is over."""
        self._ids, self._places = np.zeros((2, cache.rows, 1), np.int64)
        self._mask = np.empty(cache.rows * cache.context, np.int64)
        self._first = np.arange(cache.rows)[:, None]
        self._logits = np.empty((cache.rows, 1, config.vocab_size), logits_type)
        """For as many rows as there may be, as the mask: memory that is not used yet is only reserved."""

    def prefill(self, row: int, pieces: Sequence[Tokens], before: int) -> Logits:
        """Take in a piece of each prompt of as many rows from `row` on: several only where they have nothing `before`
        it. The logits behind each one's last token; they are gone with the next pass."""
        rows = len(pieces)
        binding = self._begun.get((row, rows))
        if binding is None:
            if len(self._begun) == _MOST_BEGUN:
                self._begun.clear()
            binding = self._begun[row, rows] = self._over(row, rows)
        feeds = _of_one(pieces[0], before, self._counted, self._ones) if rows == 1 else self._of_several(pieces)
        self._bind(binding, *feeds)
        self._session.run_with_iobinding(binding)
        return self._logits[:rows, 0].astype(np.float32, copy=False)

    def _of_several(self, pieces: Sequence[Tokens]) -> tuple[Tokens, Tokens, Tokens, Tokens]:
        rows, counts = len(pieces), np.fromiter(map(len, pieces), np.int64, len(pieces))
        longest = int(counts.max())
        ids = np.zeros((rows, longest), np.int64)
        for own, piece in zip(ids, pieces, strict=True):
            own[: len(piece)] = piece
        # What is behind a shorter piece is written where its next tokens will be, and looked at by nobody.
        mask = (self._counted[:longest] < counts[:, None]).astype(np.int64)
        positions = np.tile(self._counted[:longest], (rows, 1))
        return ids, mask, positions, (np.arange(rows) * longest + counts - 1)[:, None]

    def decode(self, tokens: Tokens, lengths: Tokens) -> Logits:
        """Take in one token of each of the first rows, which have `lengths` tokens. The logits by row; they are gone
        with the next pass."""
        rows, longest = len(tokens), int(lengths.max()) + 1
        width = min(-(-longest // _MASK) * _MASK, self._cache.context)
        fed = self._fed.get(rows)
        if fed is None or fed.mask.shape[1] != width:
            fed = self._fed[rows] = self._feed(rows, width)
        fed.ids[:, 0] = tokens
        fed.positions[:, 0] = lengths
        np.less_equal(self._counted[:width], lengths[:, None], out=fed.mask)
        self._session.run_with_iobinding(fed.binding)
        return self._logits[:rows, 0].astype(np.float32, copy=False)

    def _feed(self, rows: int, width: int) -> _Fed:
        known = self._fed.get(rows)
        mask = self._mask[: rows * width].reshape(rows, width)
        fed = _Fed(known.binding if known else self._over(0, rows), self._ids[:rows], mask, self._places[:rows])
        self._bind(fed.binding, fed.ids, fed.mask, fed.positions, self._first[:rows])
        return fed

    def _bind(self, binding: Any, ids: Tokens, mask: Tokens, positions: Tokens, logits_at: Tokens) -> None:
        """What a pass reads and writes beside the cache. `binding` keeps none of it alive."""
        names, logits = self._config.inputs, self._logits[: len(ids)]
        feeds = {names["input_ids"]: ids, names["attention_mask"]: mask, LOGITS_AT: logits_at}
        if self._positions is not None:
            feeds[self._positions] = positions
        for name, array in feeds.items():
            binding.bind_input(name, _CPU, 0, np.int64, array.shape, array.ctypes.data)
        name = self._config.outputs["logits"]
        binding.bind_output(name, _CPU, 0, self._logits_type, logits.shape, logits.ctypes.data)

    def _over(self, row: int, rows: int) -> Any:
        """A binding to so many rows of the cache from `row` on."""
        binding = self._session.io_binding()
        inputs, outputs = self._config.inputs, self._config.outputs
        shape = (rows, *self._cache.row_shape)
        for index, array in enumerate(self._cache.arrays):
            layer, kind = divmod(index, 2)
            name = ("key", "value")[kind]
            place = (_CPU, 0, array.dtype.type, shape, array[row:].ctypes.data)
            binding.bind_input(inputs[f"past_{name}_names"] % layer, *place)
            binding.bind_output(outputs[f"present_{name}_names"] % layer, *place)
        return binding

    def close(self) -> None:
        """Let go of the session."""
        self._begun.clear()
        self._fed.clear()
        self._session = None


def _of_one(piece: Tokens, before: int, counted: Tokens, ones: Tokens) -> tuple[Tokens, Tokens, Tokens, Tokens]:
    """Views alone."""
    end = before + len(piece)
    last = len(piece) - 1
    return piece[None], ones[None, :end], counted[None, before:end], counted[last : last + 1, None]
