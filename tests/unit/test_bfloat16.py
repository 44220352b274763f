"""BF16 without a numpy type: there and back, beside the BF16 of `ml_dtypes`."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest

from server.bfloat16 import BF16, LARGEST, narrowed, widened
from server.tensor import Tensor, datatype_of

EVERY = np.arange(2**16, dtype=np.uint16)


def test_every_word_is_widened_as_ml_dtypes_does_and_comes_back() -> None:
    """All 65,536 of them; a NaN stays one."""
    ours, theirs = widened(EVERY.view(BF16)), EVERY.view(ml_dtypes.bfloat16).astype(np.float32)

    np.testing.assert_array_equal(ours, theirs)
    back = narrowed(ours).view(np.uint16)
    numbers = ~np.isnan(ours)
    np.testing.assert_array_equal(back[numbers], EVERY[numbers])
    assert np.isnan(widened(back[~numbers].view(BF16))).all()


def test_floats_are_rounded_to_the_nearest_ties_to_even() -> None:
    """As `ml_dtypes` rounds, for numbers between the words and at the ends of the range."""
    bits = np.random.default_rng(0).integers(0, 2**32, 100_000, dtype=np.uint32)
    single = np.concatenate([bits.view(np.float32), np.float32([LARGEST, -LARGEST, 3.4e38, 0, -0.0, np.inf])])
    single = single[~np.isnan(single)]
    with np.errstate(over="ignore"):
        expected = single.astype(ml_dtypes.bfloat16)

    np.testing.assert_array_equal(narrowed(single).view(np.uint16), expected.view(np.uint16))


@pytest.mark.parametrize("shape", [(), (0,), (2, 3)], ids=["a scalar", "nothing", "a matrix"])
def test_arrays_of_ml_dtypes_are_taken(shape: tuple[int, ...]) -> None:
    """Whoever has them may send them; the tensor has the same words."""
    array = np.full(shape, 1.5, ml_dtypes.bfloat16)
    tensor = Tensor.from_numpy("x", array)

    assert (datatype_of(array), tensor.datatype, tensor.shape) == ("BF16", "BF16", shape)
    np.testing.assert_array_equal(widened(tensor.numpy()), np.full(shape, 1.5, np.float32))
