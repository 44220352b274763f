"""Passes of a decoder over the rows of its cache: some tokens of one prompt, or the next token of many texts.

The model is the ONNX file that onnxruntime-genai's builder writes: its GroupQueryAttention takes each row's length from
the attention mask, so that texts of unequal length share a pass, and where a past and its present are the same memory
it writes the new keys and values in place. A row's numbers are the same whatever the other rows are.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from server.engine.genai.cache import KvCache
from server.engine.genai.folder import GenaiConfig

_CPU = "cpu"
Tokens = NDArray[np.int64]


class Forward:
    """A session and its cache. One thread at a time."""

    def __init__(self, session: Any, config: GenaiConfig, cache: KvCache, logits_type: np.dtype[Any]) -> None:
        self._session = session
        self._config = config
        self._cache = cache
        self._logits_type = logits_type
        self._bindings: dict[tuple[int, int], Any] = {}
        """By the first row and how many: the cache's part of it stays."""
        self._positions = config.inputs.get("position_ids")

    def prefill(self, row: int, tokens: Sequence[int], before: int) -> NDArray[np.float32]:
        """Take in some tokens of a prompt, behind the `before` ones that the row has. The logits behind the last."""
        ids = np.asarray([tokens], np.int64)
        mask = np.ones((1, before + len(tokens)), np.int64)
        last: NDArray[np.float32] = self._run(row, ids, mask, np.array([before], np.int64))[0]
        return last

    def decode(self, tokens: Tokens, lengths: Tokens) -> NDArray[np.float32]:
        """Take in one token of each of the first rows, which have `lengths` tokens. The logits by row."""
        mask = np.arange(lengths.max() + 1) <= lengths[:, None]
        return self._run(0, tokens[:, None], mask.astype(np.int64), lengths)

    def _run(self, row: int, ids: Tokens, mask: Tokens, before: Tokens) -> NDArray[np.float32]:
        """The logits behind the last token of each row. `ids`: rows of equal length; `before`: tokens that each has."""
        binding = self._binding(row, len(ids))
        names = self._config.inputs
        feeds = {names["input_ids"]: np.ascontiguousarray(ids), names["attention_mask"]: mask}
        if self._positions is not None:
            feeds[self._positions] = before[:, None] + np.arange(ids.shape[1])
        for name, array in feeds.items():
            binding.bind_input(name, _CPU, 0, np.int64, array.shape, array.ctypes.data)
        logits = np.empty((*ids.shape, self._config.vocab_size), self._logits_type)
        name = self._config.outputs["logits"]
        binding.bind_output(name, _CPU, 0, self._logits_type, logits.shape, logits.ctypes.data)
        self._session.run_with_iobinding(binding)
        last: NDArray[np.float32] = logits[:, -1].astype(np.float32, copy=False)
        return last

    def _binding(self, row: int, rows: int) -> Any:
        binding = self._bindings.get((row, rows))
        if binding is None:
            binding = self._bindings[row, rows] = self._session.io_binding()
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
        self._bindings.clear()
        self._session = None
