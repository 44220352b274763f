"""What both servers are asked: the golden rows, seeded random ones, and requests that must be refused.

Random values are like the golden ones where there are any (a model of token ids is not asked for ids that it does not
have): floats of their mean and spread, whole numbers from their range, strings from among them.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from server.bfloat16 import narrowed, widened
from server.repository.golden import Golden
from server.tensor import DATATYPES, Array, TensorSpec

_LONGEST = 8
"""Of a dimension that may have any size, where no golden input says what is usual."""
_WORDS = (b"", b"a", b"forward pass", "größer".encode(), b"0")


@dataclass(frozen=True, slots=True)
class Question:
    """One request. `rows` is what it adds to a model's count of inferences."""

    what: str
    inputs: Mapping[str, Array]
    rows: int
    outputs: tuple[str, ...] = ()
    version: str = ""


def golden_questions(golden: Golden, max_batch_size: int) -> Iterator[Question]:
    """All golden rows, in batches as large as the model takes, and the first row alone."""
    if not max_batch_size:
        yield Question("golden inputs", golden.inputs, 1)
        return
    rows = min(len(array) for array in golden.inputs.values())
    for start in range(0, rows, max_batch_size):
        part = {name: array[start : start + max_batch_size] for name, array in golden.inputs.items()}
        count = min(max_batch_size, rows - start)
        yield Question(f"golden rows {start} to {start + count - 1}", part, count)
    yield Question("golden row 0 alone", {name: array[:1] for name, array in golden.inputs.items()}, 1)


def random_questions(
    inputs: Sequence[TensorSpec], max_batch_size: int, golden: Golden | None, seed: int, count: int, model: str
) -> Iterator[Question]:
    """`count` requests of 1 to `max_batch_size` rows; the same for the same seed and model.

    `inputs` are as metadata tell them: with the batch dimension, if the model has one.
    """
    rng = np.random.default_rng([seed, zlib.crc32(model.encode())])
    for index in range(count):
        rows = int(rng.integers(1, max_batch_size + 1)) if max_batch_size else 1
        # Dimensions of any size mostly belong together: a mask is as long as its tokens.
        length = int(rng.integers(1, _LONGEST + 1))
        made = {}
        for spec in inputs:
            like = None if golden is None else golden.inputs.get(spec.name)
            dims = tuple(_size(dim, axis, spec, like, length) for axis, dim in enumerate(spec.dims))
            shape = (rows, *dims[1:]) if max_batch_size else dims
            made[spec.name] = _random(rng, spec.datatype, shape, like)
        yield Question(f"random request {index}", made, rows)


def _size(dim: int, axis: int, spec: TensorSpec, like: Array | None, length: int) -> int:
    if dim != -1:
        return dim
    return like.shape[axis] if like is not None and like.ndim == len(spec.dims) else length


def _random(rng: np.random.Generator, datatype: str, shape: tuple[int, ...], like: Array | None) -> Array:
    kind = DATATYPES[datatype].kind
    if kind == "O":
        words = list(_WORDS) if like is None else like.reshape(-1).tolist()
        array = np.empty(shape, dtype=object)
        array.reshape(-1)[:] = [words[at] for at in rng.integers(0, len(words), array.size)]
        return array
    if kind == "b":
        return rng.integers(0, 2, shape).astype(np.bool_)
    if kind in "iu":
        low, high = (0, 1) if like is None else (int(like.min()), int(like.max()))
        return rng.integers(low, high, shape, endpoint=True).astype(DATATYPES[datatype].numpy)
    mean, spread = _moments(like)
    values = rng.normal(mean, spread, shape).astype(np.float32)
    return narrowed(values) if datatype == "BF16" else values.astype(DATATYPES[datatype].numpy)


def _moments(like: Array | None) -> tuple[float, float]:
    """Mean and spread of the golden values that are numbers; 0 and 1 where there are none."""
    if like is None:
        return 0.0, 1.0
    values = (widened(like) if like.dtype.names else like).astype(np.float64)
    values = values[np.isfinite(values)]
    return (float(values.mean()), float(values.std()) or 1.0) if values.size else (0.0, 1.0)


def faulty_questions(good: Question, max_batch_size: int) -> Iterator[Question]:
    """Variations of `good`, each with one fault that a server must find before it runs the model."""
    name, array = next(iter(good.inputs.items()))
    rest = {key: value for key, value in good.inputs.items() if key != name}

    def with_first(what: str, changed: Array) -> Question:
        return replace(good, what=what, inputs={name: changed, **rest})

    yield replace(good, what="an unknown version", version="999999")
    yield replace(good, what="an unknown output", outputs=("no such output",))
    yield replace(good, what="an unknown input", inputs={"no such input": array, **rest})
    yield replace(good, what="a missing input", inputs=rest) if rest else replace(good, what="no input", inputs={})
    yield replace(good, what="an input too many", inputs={**good.inputs, "no such input": array})
    yield with_first("another datatype", np.zeros(array.shape, np.uint16 if array.dtype != np.uint16 else np.int8))
    yield with_first("a dimension too many", array[..., None])
    if max_batch_size:
        many = {key: np.repeat(value[:1], max_batch_size + 1, axis=0) for key, value in good.inputs.items()}
        yield replace(good, what="more rows than max_batch_size", inputs=many)
