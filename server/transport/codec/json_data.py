"""A tensor's elements as JSON numbers, booleans and strings <-> v2's raw form.

JSON has no NaN and no infinity: a request can't hold them (null is no number), a number too large for the
datatype is refused instead of becoming infinity, and an answer that holds one is refused rather than
rounded to null; such tensors travel in the binary extension.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain
from typing import Any

import numpy as np

from server.bfloat16 import narrowed, widened
from server.errors import InvalidRequest, Unsupported
from server.tensor import DATATYPES, LARGEST, Array, Datatype, Tensor, pack_bytes
from server.transport.codec.tensors import quoted

_JSON_TYPES: dict[str, tuple[frozenset[type], str]] = {
    "b": (frozenset({bool}), "true or false"),
    "i": (frozenset({int}), "a whole number"),
    "u": (frozenset({int}), "a whole number"),
    "f": (frozenset({int, float}), "a number"),
    "O": (frozenset({str}), "a string"),
}
"""By numpy kind: the Python types that orjson makes of an element of the datatype, and their name for people."""

_FEW = 1000
"""Elements up to which Python looks at each of them sooner than numpy is asked to look at all."""


def pack_json(field: str, datatype: Datatype, shape: Sequence[int], count: int, data: object) -> bytes:
    """The raw form of `data`: a flat list of `count` elements, or lists nested exactly as `shape` says.

    Raises:
        InvalidRequest: the nesting or the count differs from the shape, or an element is of another type or
            out of the datatype's range.
    """
    if not isinstance(data, list):
        raise InvalidRequest(field, "must be a list")
    flat = _flatten(field, shape, data)
    if len(flat) != count:
        raise InvalidRequest(field, f"{len(flat)} elements, the shape needs {count}")
    types, expected = _JSON_TYPES[datatype.kind]
    if not types.issuperset(map(type, flat)):
        index = next(index for index, value in enumerate(flat) if type(value) not in types)
        raise InvalidRequest(field, f"element {index} is {_shown(flat[index])}, {datatype.name} needs {expected}")
    if datatype.name == "BYTES":
        return pack_bytes(flat)
    return _number_array(field, datatype, flat).tobytes()


def unpack_json(field: str, tensor: Tensor) -> Array | list[str]:
    """The elements of an output, flat, as something that orjson writes (FP32 with its own shortest digits).

    Raises:
        Unsupported: NaN, an infinity or bytes that are no UTF-8, none of which JSON can carry.
    """
    array = tensor.numpy().reshape(-1)
    if tensor.datatype == "BYTES":
        try:
            return [element.decode() for element in array]
        except UnicodeDecodeError as error:
            problem = f"output {quoted(tensor.name)} is no UTF-8, ask infer for it as binary_data"
            raise Unsupported(field, problem) from error
    if tensor.datatype == "BF16":
        array = widened(array)
    # A search in the bytes costs half of `all()` where there are few.
    if DATATYPES[tensor.datatype].kind == "f" and b"\0" in np.isfinite(array).tobytes():
        problem = (
            f"output {quoted(tensor.name)} holds NaN or infinity, JSON has neither: ask infer for it as binary_data"
        )
        raise Unsupported(field, problem)
    return array


def _flatten(field: str, shape: Sequence[int], data: list[Any]) -> list[Any]:
    """`data` itself if it is flat, else its elements in row-major order; every list as long as its dimension."""
    if not data or type(data[0]) is not list:
        return data
    level = data
    for depth, dim in enumerate(shape):
        lists = [data] if depth == 0 else level
        if not all(type(item) is list and len(item) == dim for item in lists):
            raise InvalidRequest(field, f"is neither flat nor nested as the shape {list(shape)} says")
        if depth:
            level = list(chain.from_iterable(lists))
    return level


def _number_array(field: str, datatype: Datatype, flat: list[Any]) -> Array:
    if datatype.name == "BF16":
        array = narrowed(np.array(flat, np.float64))
        finite = np.isfinite(widened(array))
        if not finite.all():
            raise InvalidRequest(field, f"{flat[int(finite.argmin())]} is out of the range of BF16")
        return array
    if datatype.kind == "f":
        if 0 < len(flat) <= _FEW:
            limit = LARGEST[datatype.name]
            if -limit <= min(flat) and max(flat) <= limit:
                return np.array(flat, datatype.numpy)
        # Judged by its outcome: 3.4028235e38 is beyond FP32's largest number and rounds to it.
        with np.errstate(over="ignore"):
            array = np.array(flat, datatype.numpy)
        finite = np.isfinite(array)
        if not finite.all():
            raise InvalidRequest(field, f"{flat[int(finite.argmin())]} is out of the range of {datatype.name}")
        return array
    if datatype.kind in "iu" and flat:
        limits = np.iinfo(datatype.numpy)
        for value in (min(flat), max(flat)):
            if not limits.min <= value <= limits.max:
                raise InvalidRequest(field, f"{value} is out of the range of {datatype.name}")
    return np.array(flat, datatype.numpy)


def _shown(value: object) -> str:
    return {list: "a list", dict: "an object", type(None): "null"}.get(type(value)) or quoted(value)
