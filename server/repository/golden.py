"""Golden files: inputs and outputs that a model is held to each time it is loaded.

    golden/<version>.npz   arrays ``input:<name>`` and ``output:<name>``, rows first
    golden/raw.json        raw inputs whose preprocessing must give the first rows of the golden inputs

BYTES tensors are kept in v2's raw form (a numpy string array would lose trailing zero bytes, and an object
array would need pickle): ``bytes:input:<name>`` with their shape in ``shape:input:<name>``.
"""

from __future__ import annotations

import base64
import binascii
import json
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

from server.errors import ModelLoadFailed
from server.tensor import Array, pack_bytes, unpack_bytes
from server.types import ImageInput, RawInput, RowInput, TextInput

GOLDEN_FOLDER = "golden"
RAW_FILE = f"{GOLDEN_FOLDER}/raw.json"


@dataclass(frozen=True, slots=True)
class Golden:
    """Whole arrays by tensor name, all of `rows` rows (1 for a model without a batch dimension)."""

    version: str
    inputs: Mapping[str, Array]
    outputs: Mapping[str, Array]


def golden_file(version: str) -> str:
    """Where the golden arrays of `version` lie, relative to the model's folder."""
    return f"{GOLDEN_FOLDER}/{version}.npz"


def write_golden(folder: Path, version: str, inputs: Mapping[str, Array], outputs: Mapping[str, Array]) -> Path:
    """Write the golden arrays of one version; the same arrays give the same bytes. Returns the file."""
    path = folder / golden_file(version)
    path.parent.mkdir(parents=True, exist_ok=True)
    arrays: dict[str, Array] = {}
    for kind, tensors in (("input", inputs), ("output", outputs)):
        for name, array in tensors.items():
            arrays.update(_to_arrays(f"{kind}:{name}", np.asarray(array)))
    with path.open("wb") as file:
        np.savez(file, allow_pickle=False, **arrays)
    return path


def read_golden(folder: Path, version: str) -> Golden | None:
    """The golden arrays of `version`, None where there is no file.

    Raises:
        ModelLoadFailed: the file is damaged, or holds no input or no output.
    """
    where = golden_file(version)
    path = folder / where
    if not path.exists():
        return None
    try:
        # numpy leaves a file open that it opened itself and could not read.
        with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
            arrays = {key: archive[key] for key in archive.files}
        inputs, outputs = (_from_arrays(arrays, f"{kind}:") for kind in ("input", "output"))
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise ModelLoadFailed(folder.name, where, "is damaged: it can't be read as an npz of arrays") from error
    if not inputs or not outputs:
        raise ModelLoadFailed(folder.name, where, "holds no input or no output arrays")
    return Golden(version, inputs, outputs)


def write_raw(folder: Path, inputs: Sequence[RawInput]) -> Path:
    """Write the raw inputs that belong to the first rows of the golden inputs. Returns the file.

    Raises:
        ValueError: a row holds NaN or another value that JSON does not have; a missing value is None.
    """
    path = folder / RAW_FILE
    path.parent.mkdir(parents=True, exist_ok=True)
    document = {"inputs": [_raw_to_json(item) for item in inputs]}
    text = json.dumps(document, indent=1, ensure_ascii=False, allow_nan=False, default=_numpy_scalar)
    path.write_text(text + "\n", encoding="utf-8")
    return path


def read_raw(folder: Path) -> list[RawInput]:
    """The raw inputs of the golden files, empty where there is no raw.json. Raises ModelLoadFailed."""
    path = folder / RAW_FILE
    if not path.exists():
        return []
    try:
        items = json.loads(path.read_text(encoding="utf-8"))["inputs"]
        return [_raw_from_json(item) for item in items]
    except (OSError, ValueError, KeyError, TypeError, AttributeError, binascii.Error) as error:
        raise ModelLoadFailed(folder.name, RAW_FILE, 'is damaged: it must be {"inputs": [...]}') from error


def _to_arrays(key: str, array: Array) -> dict[str, Array]:
    if array.dtype.kind not in "OSU":
        return {key: array}
    packed = pack_bytes(array.reshape(-1).tolist())
    return {f"bytes:{key}": np.frombuffer(packed, np.uint8), f"shape:{key}": np.array(array.shape, np.int64)}


def _from_arrays(arrays: Mapping[str, Array], prefix: str) -> dict[str, Array]:
    found: dict[str, Array] = {}
    for key, array in arrays.items():
        if key.startswith(prefix):
            found[key.removeprefix(prefix)] = array
        elif key.startswith(f"bytes:{prefix}"):
            shape = tuple(int(size) for size in arrays[key.replace("bytes:", "shape:", 1)])
            elements = np.empty(prod(shape), dtype=object)
            elements[:] = unpack_bytes(array.tobytes(), elements.size)
            found[key.removeprefix(f"bytes:{prefix}")] = elements.reshape(shape)
    return found


def _raw_to_json(item: RawInput) -> dict[str, Any]:
    if isinstance(item, ImageInput):
        return {"image": {"b64": base64.b64encode(item.data).decode(), "content_type": item.content_type}}
    if isinstance(item, TextInput):
        return {"text": item.text}
    return {"row": dict(item.values) if isinstance(item.values, Mapping) else list(item.values)}


def _raw_from_json(item: Mapping[str, Any]) -> RawInput:
    if "image" in item:
        image = item["image"]
        return ImageInput(base64.b64decode(image["b64"], validate=True), str(image.get("content_type", "")))
    if "text" in item:
        return TextInput(str(item["text"]))
    return RowInput(item["row"])


def _numpy_scalar(value: Any) -> Any:
    if isinstance(value, np.generic):
        return value.item()
    raise TypeError(f"{type(value).__name__} has no JSON form")
