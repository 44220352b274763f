"""Tensors and their v2 datatypes.

Shapes are tuples of ints with the batch dimension first where the model has one. A tensor's `data` is its v2 raw
form (little endian, row major; BYTES elements each behind a 4-byte length), so that a request's bytes are looked
at, not copied, until they are merged into a batch.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from server import bfloat16

Array = NDArray[Any]
Buffer = bytes | bytearray | memoryview


class Datatype(NamedTuple):
    """One v2 datatype. `size` is bytes per element, 0 for BYTES."""

    name: str
    numpy: np.dtype[Any]
    size: int
    config: str
    """The name in model_config.proto's DataType."""

    @property
    def kind(self) -> str:
        """As numpy's: b, i, u, f, or O for BYTES. BF16, which numpy does not have, is one of its f."""
        return "f" if self.name == "BF16" else self.numpy.kind


DATATYPES: Mapping[str, Datatype] = {
    d.name: d
    for d in (
        Datatype("BOOL", np.dtype("?"), 1, "TYPE_BOOL"),
        Datatype("UINT8", np.dtype("u1"), 1, "TYPE_UINT8"),
        Datatype("UINT16", np.dtype("<u2"), 2, "TYPE_UINT16"),
        Datatype("UINT32", np.dtype("<u4"), 4, "TYPE_UINT32"),
        Datatype("UINT64", np.dtype("<u8"), 8, "TYPE_UINT64"),
        Datatype("INT8", np.dtype("i1"), 1, "TYPE_INT8"),
        Datatype("INT16", np.dtype("<i2"), 2, "TYPE_INT16"),
        Datatype("INT32", np.dtype("<i4"), 4, "TYPE_INT32"),
        Datatype("INT64", np.dtype("<i8"), 8, "TYPE_INT64"),
        Datatype("FP16", np.dtype("<f2"), 2, "TYPE_FP16"),
        Datatype("BF16", bfloat16.BF16, 2, "TYPE_BF16"),
        Datatype("FP32", np.dtype("<f4"), 4, "TYPE_FP32"),
        Datatype("FP64", np.dtype("<f8"), 8, "TYPE_FP64"),
        Datatype("BYTES", np.dtype("O"), 0, "TYPE_STRING"),
    )
}
"""Source: KServe v2 "Tensor Data Types", and Triton's BF16: FP32 without the lower half of its bits."""

LARGEST: Mapping[str, float] = {
    **{name: float(np.finfo(DATATYPES[name].numpy).max) for name in ("FP16", "FP32", "FP64")},
    "BF16": bfloat16.LARGEST,
}
"""The largest number of each datatype of floats."""

_new = object.__new__

_NAME_OF_NUMPY = {d.numpy: d.name for d in DATATYPES.values()}


def datatype_of(array: Array) -> str:
    """The v2 datatype of a numpy array; any string or object array is BYTES. Raises KeyError for others."""
    name = _NAME_OF_NUMPY.get(array.dtype)
    if name is None:  # big endian, strings of a fixed length, BF16 of another package, or unknown
        if bfloat16.is_foreign(array.dtype):
            return "BF16"
        name = "BYTES" if array.dtype.kind in "SU" else _NAME_OF_NUMPY[array.dtype.newbyteorder("<")]
    return name


def pack_bytes(elements: Sequence[Any]) -> bytes:
    """Join BYTES elements (bytes, or str as UTF-8) into v2's raw form: length, element, length, element...

    Raises TypeError for any other element: `bytes(5)` would be five zeros and nobody's intention.
    """
    parts: list[bytes] = []
    for element in elements:
        raw = element.encode() if isinstance(element, str) else bytes(memoryview(element))
        parts.append(struct.pack("<I", len(raw)))
        parts.append(raw)
    return b"".join(parts)


def unpack_bytes(data: Buffer, count: int) -> list[bytes]:
    """The inverse of `pack_bytes`. Raises ValueError unless `data` holds exactly `count` elements."""
    view = memoryview(data)
    elements: list[bytes] = []
    offset = 0
    for index in range(count):
        if offset + 4 > len(view):
            raise ValueError(f"element {index} of {count} is missing its 4-byte length")
        (length,) = struct.unpack_from("<I", view, offset)
        offset += 4
        if offset + length > len(view):
            raise ValueError(f"element {index} of {count} says {length} bytes, {len(view) - offset} are left")
        elements.append(bytes(view[offset : offset + length]))
        offset += length
    if offset != len(view):
        raise ValueError(f"{len(view) - offset} bytes follow the last of {count} elements")
    return elements


@dataclass(slots=True)
class Tensor:
    """A named tensor. `data` is v2's raw form of exactly ``prod(shape)`` elements (checked at the door)."""

    name: str
    datatype: str
    shape: tuple[int, ...]
    data: Buffer

    @classmethod
    def from_numpy(cls, name: str, array: Array) -> Tensor:
        """A tensor over `array`'s memory; copied only if it is not contiguous, big endian, or holds strings."""
        datatype = datatype_of(array)
        if datatype == "BYTES":
            return cls(name, datatype, array.shape, pack_bytes(array.reshape(-1).tolist()))
        if datatype == "BF16" and bfloat16.is_foreign(array.dtype):
            array = np.ascontiguousarray(array).view(bfloat16.BF16).reshape(array.shape)
        little = array.astype(DATATYPES[datatype].numpy, copy=False)
        flat = np.ascontiguousarray(little).reshape(-1).view(np.uint8)
        return cls(name, datatype, array.shape, flat.data)

    @staticmethod
    def cut(name: str, datatype: str, dims: tuple[int, ...], data: Buffer, rows: Sequence[int]) -> list[Tensor]:
        """Tensors of so many rows each, one behind the other in `data`; a row has `dims` and a fixed size.

        Made without a call of the class, which would be half of the cost.
        """
        row_bytes = prod(dims) * DATATYPES[datatype].size
        cuts: list[Tensor] = []
        start, last, shape = 0, -1, dims
        for count in rows:
            # Neighbours mostly have the same number of rows: then they share a shape.
            if count != last:
                last, shape = count, (count, *dims)
            stop = start + count * row_bytes
            cut: Tensor = _new(Tensor)
            cut.name = name
            cut.datatype = datatype
            cut.shape = shape
            cut.data = data[start:stop]
            cuts.append(cut)
            start = stop
        return cuts

    def numpy(self) -> Array:
        """An array of `shape`: a read-only view on `data`, or for BYTES an object array of bytes."""
        if self.datatype == "BYTES":
            array = np.empty(prod(self.shape), dtype=object)
            array[:] = unpack_bytes(self.data, array.size)
            return array.reshape(self.shape)
        return np.frombuffer(self.data, dtype=DATATYPES[self.datatype].numpy).reshape(self.shape)


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """What a model says of one input or output. `dims` is without the batch dimension; -1 is any size."""

    name: str
    datatype: str
    dims: tuple[int, ...]
    optional: bool = False
    """An input that a request may leave out; the model then has a default for it."""
    reshape: tuple[int, ...] | None = None
    """The dims that the model itself has for the same elements; None: `dims`."""
