"""`reshape`: clients see the dims, the model has its own."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest

from server.errors import EngineFailure
from server.repository.reshape import reshaped
from server.tensor import Array, TensorSpec
from server.types import Batch


class Echo:
    """A model of one instance that gives its only input back, and remembers the shape in which it came."""

    name, device, threads = "echo", "cpu", 1
    closed = False

    def __init__(self) -> None:
        self.instances = [self]
        self.seen: tuple[int, ...] = ()

    def run(self, batch: Batch) -> Mapping[str, Array]:
        self.seen = batch.inputs["x"].shape
        return {"y": batch.inputs["x"]}

    def close(self) -> None:
        self.closed = True


def spec(name: str, dims: tuple[int, ...], reshape: tuple[int, ...] | None) -> TensorSpec:
    return TensorSpec(name, "FP32", dims, reshape=reshape)


@pytest.mark.parametrize(
    ("dims", "own", "sent", "seen"),
    [
        ((1,), (), (3, 1), (3,)),
        ((4,), (2, 2), (3, 4), (3, 2, 2)),
        ((2, 4, -1, 6), (8, -1, 1, 6), (5, 2, 4, 7, 6), (5, 8, 7, 1, 6)),
        ((-1, 2, -1), (-1, 2, -1), (1, 3, 2, 0), (1, 3, 2, 0)),
        ((1,), (), (1,), ()),
    ],
    ids=["a scalar for each row", "a picture", "around a size of -1", "with nothing in it", "without rows"],
)
def test_there_and_back(
    dims: tuple[int, ...], own: tuple[int, ...], sent: tuple[int, ...], seen: tuple[int, ...]
) -> None:
    """The model sees its own shape, the client gets that of the config, and no element moves."""
    echo = Echo()
    model = reshaped(echo, [spec("x", dims, own)], [spec("y", dims, own)])
    x = np.arange(np.prod(sent), dtype=np.float32).reshape(sent)

    y = model.instances[0].run(Batch("m", "1", sent[0] if sent else 1, {"x": x}))["y"]

    assert echo.seen == seen
    np.testing.assert_array_equal(y, x)
    model.close()
    assert echo.closed


def test_a_model_without_reshape_is_left_alone() -> None:
    """It pays nothing."""
    echo: Any = Echo()

    assert reshaped(echo, [spec("x", (2,), None)], [spec("y", (2,), None)]) is echo


def test_an_output_of_another_shape_is_the_models_fault() -> None:
    """It fails its pass, and is not bent into the client's shape."""
    model = reshaped(Echo(), [], [spec("y", (6,), (2, 3))])

    with pytest.raises(EngineFailure) as caught:
        model.instances[0].run(Batch("m", "1", 1, {"x": np.zeros((1, 3, 2), np.float32)}))
    assert "reshape says: shape [1, 3, 2]" in caught.value.detail
