"""Checks on one tensor that both protocols share: datatype, shape, byte length, framing, classes."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence

import numpy as np

from server.errors import InvalidRequest
from server.tensor import DATATYPES, Buffer, Datatype, unpack_bytes

_MAX_ELEMENTS = sys.maxsize
_QUOTED = 64


def quoted(text: object) -> str:
    """`text` in quotes for a message, cut where a client sends something long."""
    shown = str(text)
    return f"'{shown}'" if len(shown) <= _QUOTED else f"'{shown[:_QUOTED]}...'"


def check_name(field: str, name: object) -> str:
    """The name of a tensor. Raises InvalidRequest unless it is a string that is not empty."""
    if not isinstance(name, str) or not name:
        raise InvalidRequest(f"{field}.name", "must be a string that is not empty")
    return name


def check_datatype(field: str, name: object) -> Datatype:
    """Raises InvalidRequest for a name that v2 does not have."""
    datatype = DATATYPES.get(name) if isinstance(name, str) else None
    if datatype is not None:
        return datatype
    raise InvalidRequest(f"{field}.datatype", f"unknown datatype {quoted(name)}, one of {', '.join(DATATYPES)}")


def count_elements(field: str, shape: Sequence[int]) -> int:
    """The elements of `shape`. Raises InvalidRequest for a negative dimension, or more than 64 bits count."""
    count, span = 1, 1
    for index, dim in enumerate(shape):
        if dim < 0:
            raise InvalidRequest(f"{field}.shape", f"dimension {index} is {dim}, must not be negative")
        count *= dim
        span *= dim or 1
        # The span leaves out dimensions of 0: numpy can't make an array of [0, 2**62, 4] either.
        if span > _MAX_ELEMENTS:
            raise InvalidRequest(f"{field}.shape", f"has more elements than {_MAX_ELEMENTS}")
    return count


def check_raw(field: str, datatype: Datatype, count: int, data: Buffer) -> None:
    """Hold raw data against its datatype and element count. `field` names the bytes, not the tensor.

    Raises:
        InvalidRequest: the byte length differs, BYTES framing is broken, or a BOOL is neither 0 nor 1.
    """
    if datatype.size:
        expected = count * datatype.size
        if len(data) != expected:
            raise InvalidRequest(
                field,
                f"input byte size mismatch, by its shape and datatype {datatype.name}. "
                f"Expected {expected}, got {len(data)}",
            )
        # numpy and ONNX Runtime take any other byte for a bool that is equal to neither true nor false.
        if datatype.name == "BOOL" and count and np.frombuffer(data, np.uint8).max() > 1:
            raise InvalidRequest(field, "every BOOL must be 0 or 1")
        return
    try:
        unpack_bytes(data, count)
    except ValueError as error:
        raise InvalidRequest(field, str(error)) from error


def class_count(field: str, parameters: Mapping[str, object], least: int) -> int:
    """How many classes are wanted of a requested output by its `parameters`; 0: none, but the tensor itself.

    Raises:
        InvalidRequest: it is no whole number from `least` on.
    """
    count = parameters.get("classification", 0)
    if type(count) is int and ("classification" not in parameters or count >= least):
        return count
    wrong = "value" if type(count) is int else "value type"
    raise InvalidRequest(
        f"{field}.parameters.classification",
        f"invalid {wrong} for 'classification' parameter, expected a whole number from {least}, got {quoted(count)}",
    )
