"""BF16 in numpy, which has no such type: 16-bit words in a type of their own, and the way to FP32 and back.

A BF16 is the upper half of an FP32. As a structured type of one word it is told from UINT16, and sliced, stacked and
written to files like any other; only who computes with it has to widen it.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

BF16 = np.dtype([("bfloat16", "<u2")])
LARGEST = float(np.uint32(0x7F7F0000).view(np.float32))
_NAN = 0x7FC0


def widened(array: NDArray[Any]) -> NDArray[np.float32]:
    """`array` of BF16 as FP32, exactly."""
    return (array.view(np.uint16).astype(np.uint32) << np.uint32(16)).view(np.float32)


def narrowed(array: NDArray[Any]) -> NDArray[Any]:
    """Floats as BF16, rounded by way of FP32 to the nearest, ties to even. What is too large becomes infinity."""
    with np.errstate(over="ignore"):
        single = np.asarray(array, np.float32)
    bits = single.view(np.uint32)
    words = ((bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))) >> np.uint32(16)).astype("<u2")
    words = np.where(np.isnan(single), (bits >> np.uint32(16)).astype("<u2") | np.uint16(_NAN), words)
    return np.ascontiguousarray(words, "<u2").reshape(single.shape).view(BF16)


def is_foreign(dtype: np.dtype[Any]) -> bool:
    """Whether `dtype` is the BF16 that `ml_dtypes` adds to numpy, which has the same words."""
    return dtype.name == "bfloat16" and dtype != BF16
