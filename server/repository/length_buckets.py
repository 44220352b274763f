"""``parameters`` of config.pbtxt that ask for length buckets: `length_buckets` and `pad_value`."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np

from server.buckets import Buckets
from server.repository.refuse import Refuse
from server.tensor import DATATYPES, LARGEST, TensorSpec

LENGTH_BUCKETS = "length_buckets"
PAD_VALUE = "pad_value"
_MOST_BUCKETS = 64
"""Each is warmed up in every batch size."""
_LONGEST = 2**31 - 1


def read_buckets(
    parameters: Mapping[str, str],
    inputs: Sequence[TensorSpec],
    outputs: Sequence[TensorSpec],
    *,
    merges: bool,
    refuse: Refuse,
) -> Buckets | None:
    """The buckets that `parameters` ask for; None if they ask for none.

    `merges`: the model has a batch dimension and `dynamic_batching`. What can't be is told to `refuse`, by its field.
    """
    if LENGTH_BUCKETS not in parameters:
        if PAD_VALUE in parameters:
            refuse(_field(PAD_VALUE), f"says how to pad, and {LENGTH_BUCKETS} is not set")
        return None
    if not merges:
        refuse(_field(LENGTH_BUCKETS), "needs max_batch_size of 1 or more and dynamic_batching: nothing is merged here")
    lengths = _lengths(parameters[LENGTH_BUCKETS], refuse)
    positions = _positions(inputs, refuse)
    values = _pad_values(parameters.get(PAD_VALUE, ""), {spec.name: spec for spec in inputs}, positions, refuse)
    follow = {
        spec.name: tuple(position for position, size in enumerate(spec.dims) if size == -1)
        for spec in outputs
        if -1 in spec.dims
    }
    return Buckets(lengths, positions, follow, values)


def _field(key: str) -> str:
    return f'parameters["{key}"]'


def _lengths(text: str, refuse: Refuse) -> tuple[int, ...]:
    words = [word.strip() for word in text.split(",")]
    if not all(word.isascii() and word.isdecimal() and len(word) <= 10 for word in words):
        refuse(_field(LENGTH_BUCKETS), f"is '{text}', it must be whole numbers with commas between: 16,32,64")
    lengths = tuple(int(word) for word in words)
    if any(not 1 <= length <= _LONGEST for length in lengths):
        refuse(_field(LENGTH_BUCKETS), f"is '{text}', a length is 1 to {_LONGEST}")
    if list(lengths) != sorted(set(lengths)):
        refuse(_field(LENGTH_BUCKETS), f"is '{text}', each length must be larger than the one before it")
    if len(lengths) > _MOST_BUCKETS:
        refuse(_field(LENGTH_BUCKETS), f"has {len(lengths)} lengths, the most are {_MOST_BUCKETS}")
    return lengths


def _positions(inputs: Sequence[TensorSpec], refuse: Refuse) -> dict[str, int]:
    positions = {}
    for index, spec in enumerate(inputs):
        if spec.optional or spec.reshape is not None:
            what = "optional" if spec.optional else "reshape"
            refuse(f"input[{index}].{what}", f"and {LENGTH_BUCKETS} can't be together")
        variable = spec.dims.count(-1)
        if variable > 1:
            refuse(
                f"input[{index}].dims", f"has {variable} sizes of -1; with {LENGTH_BUCKETS} an input has one at most"
            )
        if variable and spec.datatype == "BYTES":
            refuse(f"input[{index}].data_type", f"is TYPE_STRING with a size of -1; {LENGTH_BUCKETS} pads numbers only")
        if variable:
            positions[spec.name] = spec.dims.index(-1)
    if not positions:
        refuse(_field(LENGTH_BUCKETS), "is set, and no input has a size of -1 in its dims")
    return positions


def _pad_values(
    text: str, inputs: Mapping[str, TensorSpec], positions: Mapping[str, int], refuse: Refuse
) -> dict[str, float | int]:
    values: dict[str, float | int] = {}
    for part in filter(None, (part.strip() for part in text.split(","))):
        name, equals, value = (word.strip() for word in part.rpartition("="))
        if not equals or not name:
            refuse(_field(PAD_VALUE), f"has '{part}', it must be input=value, with commas between")
        if name not in inputs:
            refuse(_field(PAD_VALUE), f"names '{name}', which is no input; there are {', '.join(inputs)}")
        if name not in positions:
            refuse(_field(PAD_VALUE), f"names '{name}', which has no size of -1 in its dims and is not padded")
        if name in values:
            refuse(_field(PAD_VALUE), f"names '{name}' twice")
        values[name] = _value(value, inputs[name], refuse)
    return values


def _value(text: str, spec: TensorSpec, refuse: Refuse) -> float | int:
    datatype = DATATYPES[spec.datatype]
    dtype = datatype.numpy
    try:
        if datatype.kind == "f":
            value: float | int = float(text)
            bound = LARGEST[spec.datatype]
            fits = math.isinf(value) or -bound <= value <= bound  # not a number fits nowhere
        else:
            value = int(text)
            least, most = (0, 1) if dtype.kind == "b" else (np.iinfo(dtype).min, np.iinfo(dtype).max)
            fits = least <= value <= most
    except ValueError:
        fits = False
    if not fits:
        refuse(_field(PAD_VALUE), f"gives '{spec.name}' the value '{text}', which {spec.datatype} does not have")
    return value
