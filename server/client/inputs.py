"""What a caller may give as an input, as the raw inputs and tensors that both wires send."""

from __future__ import annotations

import json
import mimetypes
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from server.client.errors import ClientError
from server.errors import Code
from server.tensor import DATATYPES, Array, Tensor, datatype_of
from server.types import ImageInput, RawInput, RowInput, TextInput

Input = Path | bytes | bytearray | memoryview | str | Mapping[str, Any] | Sequence[Any] | RawInput
"""A picture's file or its bytes, a ``.json`` file of rows, a ``.txt`` file, a text, or a row as mapping or sequence."""

_ONE = (Path, bytes, bytearray, memoryview, str, Mapping, ImageInput, TextInput, RowInput)
_BLANK = b"\xef\xbb\xbf \t\r\n"


def invalid(field: str, problem: str) -> ClientError:
    return ClientError(Code.INVALID_ARG, f"{field}: {problem}")


def raw_inputs(inputs: Input | Sequence[Input]) -> list[RawInput]:
    """The raw inputs in `inputs`: one input, or a sequence of them (so that one row is ``[row]``).

    Raises:
        ClientError: INVALID_ARG, by ``inputs[i]``, for what is no input or holds what JSON has no value for.
        OSError: a file can't be read.
    """
    several: Any = [inputs] if isinstance(inputs, _ONE) else inputs
    if isinstance(several, np.ndarray):
        several = several.tolist()
    if not isinstance(several, Sequence):
        raise invalid("inputs", f"{type(inputs).__name__} is neither an input nor a sequence of them")
    raw = [one for index, value in enumerate(several) for one in _of_value(f"inputs[{index}]", value)]
    if not raw:
        raise invalid("inputs", "there must be at least one")
    return raw


def inputs_of_bytes(data: bytes) -> list[RawInput]:
    """The inputs in a file of unknown kind: JSON if it begins like it, else a picture.

    Raises:
        ClientError: INVALID_ARG if it begins like JSON and is none, or if it is empty.
    """
    start = data.lstrip(_BLANK)[:1]
    if not start:
        raise invalid("inputs", "there is nothing to read")
    return inputs_of_json(data) if start in b'{["' else [ImageInput(data)]


def inputs_of_json(document: str | bytes, field: str = "inputs") -> list[RawInput]:
    """The rows in a JSON document: an object or an array of values is one, an array of those is several.

    A string is a text.

    Raises:
        ClientError: INVALID_ARG if it is not JSON, or nothing of the above.
    """
    try:
        value = json.loads(document)
    except ValueError as error:
        raise invalid(field, f"not JSON: {error}") from error
    if isinstance(value, list) and value and all(isinstance(element, list | dict) for element in value):
        return [RowInput(element) for element in value]
    return _of_value(field, value)


def tensors(inputs: Mapping[str, Any]) -> list[Tensor]:
    """The arrays (or what numpy makes one of) as tensors, in v2's byte order.

    Raises:
        ClientError: INVALID_ARG, by the name of the input, if v2 has no datatype for it.
    """
    return [_tensor(name, _array(name, value)) for name, value in inputs.items()]


def _array(name: str, value: Any) -> Array:
    if isinstance(value, np.ndarray):
        return value
    try:
        array = np.asarray(value)
    except UnicodeDecodeError:
        return np.asarray(value, dtype=object)
    except ValueError as error:
        raise invalid(f"inputs[{name!r}]", f"numpy makes no array of it: {error}") from error
    # numpy's own strings drop trailing zero bytes and turn a number among texts into a text.
    return np.asarray(value, dtype=object) if array.dtype.kind in "SU" else array


def _tensor(name: str, array: Array) -> Tensor:
    try:
        datatype = datatype_of(array)
    except KeyError:
        raise invalid(f"inputs[{name!r}]", f"v2 has no datatype for numpy's {array.dtype}") from None
    if datatype != "BYTES":
        return Tensor.from_numpy(name, array.astype(DATATYPES[datatype].numpy, copy=False))
    if any(not isinstance(element, str | bytes) for element in array.reshape(-1).tolist()):
        raise invalid(f"inputs[{name!r}]", "an array of objects must hold str or bytes alone")
    return Tensor.from_numpy(name, array)


def _of_value(field: str, value: Any) -> list[RawInput]:
    match value:
        case Path():
            return _of_file(field, value)
        case ImageInput() | TextInput():
            return [value]
        case RowInput():
            return [RowInput(_plain(field, value.values))]
        case bytes() | bytearray() | memoryview():
            return [ImageInput(bytes(value))]
        case str():
            return [TextInput(value)]
        case Mapping() | Sequence() | np.ndarray():
            return [RowInput(_plain(field, value))]
    raise invalid(field, f"{value!r} is no input: give a Path, bytes, a text, or a row as a mapping or a sequence")


def _of_file(field: str, path: Path) -> list[RawInput]:
    if path.suffix.lower() == ".json":
        return inputs_of_json(path.read_bytes(), f"{field}: {path.name}")
    if path.suffix.lower() == ".txt":
        try:
            return [TextInput(path.read_text(encoding="utf-8").removesuffix("\n"))]
        except UnicodeDecodeError as error:
            raise invalid(f"{field}: {path.name}", f"is no UTF-8: {error.reason} at byte {error.start}") from error
    kind = mimetypes.guess_type(path.name)[0] or ""
    return [ImageInput(path.read_bytes(), kind if kind.startswith("image/") else "")]


def _plain(field: str, value: Any) -> Any:
    """`value` in JSON's own types, numpy's scalars and arrays unpacked."""
    if value is None or isinstance(value, str):
        return value
    if isinstance(value, np.ndarray | np.generic):
        return _plain(field, value.tolist())
    if isinstance(value, bool | int | float):
        return value
    if isinstance(value, Mapping):
        return {_key(field, key): _plain(f"{field}.{key}", inner) for key, inner in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, bytes | bytearray | memoryview):
        return [_plain(f"{field}[{index}]", inner) for index, inner in enumerate(value)]
    raise invalid(field, f"{type(value).__name__} is not a value of a row")


def _key(field: str, key: Any) -> str:
    if not isinstance(key, str):
        raise invalid(field, f"the column name {key!r} is not a string")
    return key
