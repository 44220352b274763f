"""What a caller gets for an output: numpy's own types, and so FP32 for BF16, which numpy does not have."""

from __future__ import annotations

from server.bfloat16 import widened
from server.tensor import Array, Tensor


def array_of(tensor: Tensor) -> Array:
    """The elements of `tensor`; those of BF16 widened, exactly."""
    array = tensor.numpy()
    return widened(array) if tensor.datatype == "BF16" else array
