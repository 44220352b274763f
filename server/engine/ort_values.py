"""Forward passes of models with BF16 tensors, which ONNX Runtime takes and gives as values of its own only.

numpy has no BF16, so inputs go in as 16-bit words that are said to be BF16, and outputs are read from the memory of
the value that came back.
"""

from __future__ import annotations

import ctypes
from collections.abc import Mapping, Sequence
from math import prod
from typing import Any

import numpy as np

from server.bfloat16 import BF16
from server.tensor import Array, TensorSpec

_ONNX_BFLOAT16 = 16
"""TensorProto.DataType.BFLOAT16."""


def has_bfloat16(inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec]) -> bool:
    return any(spec.datatype == "BF16" for spec in (*inputs, *outputs))


class BFloat16Session:
    """`run` as that of an InferenceSession, with arrays of `server.bfloat16.BF16` where tensors are."""

    def __init__(self, ort_value: Any, session: Any) -> None:
        """`ort_value`: the class OrtValue. Raises AttributeError where ONNX Runtime is too old for BF16."""
        self._of_numpy = ort_value.ortvalue_from_numpy
        self._of_words = ort_value.ortvalue_from_numpy_with_onnx_type
        self._session = session

    def run(self, wanted: Sequence[str], feeds: Mapping[str, Array], options: Any = None) -> list[Array]:
        """One pass. The outputs are in host memory, and nobody else's."""
        values = {name: self._value(array) for name, array in feeds.items()}
        return [_array(value) for value in self._session.run_with_ort_values(list(wanted), values, options)]

    def _value(self, array: Array) -> Any:
        array = np.ascontiguousarray(array).reshape(array.shape)
        if array.dtype == BF16:
            return self._of_words(array.view(np.uint16), _ONNX_BFLOAT16)
        return self._of_numpy(array)


def _array(value: Any) -> Array:
    if value.data_type() != "tensor(bfloat16)":
        array: Array = value.numpy()
        return array
    if value.device_name() != "cpu":
        raise ValueError(f"a BF16 output lies on {value.device_name()}")
    shape = tuple(value.shape())
    size = prod(shape) * BF16.itemsize
    data = ctypes.string_at(value.data_ptr(), size) if size else b""
    return np.frombuffer(data, BF16).reshape(shape)
