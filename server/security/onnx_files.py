"""What an ONNX file would have the engine read beside it, found without loading it.

A model names files for its large tensors. ONNX Runtime opens them while it loads, so that a model from a stranger could
have it read any file of the machine. Only files within the model's own version folder are let through, and no link that
leads out. Compiled code in a model (EPContext) is refused; libraries of operators are never loaded here, so that an
operator that needs one is unknown.

The file is walked by its bytes, by the numbers of the fields that lead to what is looked for: no tensor is copied, and
nothing that the file says of its own size is believed.

Source: onnx.proto; the encoding of protobuf messages.
"""

from __future__ import annotations

import mmap
import os
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath

from server.errors import ModelLoadFailed

_DEEPEST = 100
"""Messages within messages, as protobuf itself allows."""
_WAYS: Mapping[str, Mapping[int, str]] = {
    "model": {7: "graph", 20: "training", 25: "function"},
    "training": {1: "graph", 2: "graph"},
    "graph": {1: "node", 5: "tensor", 15: "sparse"},
    "function": {7: "node", 11: "attribute"},
    "node": {4: "operator", 5: "attribute"},
    "attribute": {5: "tensor", 6: "graph", 10: "tensor", 11: "graph", 22: "sparse", 23: "sparse"},
    "sparse": {1: "tensor", 2: "tensor"},
    "tensor": {13: "entry"},
}
"""By a message, the fields that lead to where a file or an operator is named. An `entry` has key (1) and value (2)."""
_COMPILED = frozenset(("EPContext",))


class NotOnnx(ValueError):
    """The bytes are no ONNX model."""


def check_onnx(model_name: str, path: Path, where: str) -> None:
    """Hold the model file at `path` against what it may name; `where` is what the file is called in an error.

    Raises:
        ModelLoadFailed: it names a file that is not within its folder, or brings compiled code, or is no ONNX model.
        OSError: it can't be read.
    """
    folder = path.parent
    try:
        for kind, text in named(path):
            if kind == "operator" and text in _COMPILED:
                raise ModelLoadFailed(model_name, where, f"the operator {text} brings compiled code, which is not run")
            if kind == "location" and not _is_within(folder, text):
                raise ModelLoadFailed(
                    model_name, where, f"names the file {text[:100]!a}, which is not within its version's folder"
                )
    except NotOnnx as error:
        raise ModelLoadFailed(model_name, where, f"is no ONNX model, protobuf parsing failed: {error}") from error


def named(path: Path) -> Iterator[tuple[str, str]]:
    """Each ("operator", its type) and ("location", a file that a tensor is in) of a model. Raises NotOnnx, OSError."""
    with path.open("rb") as file:
        if not os.fstat(file.fileno()).st_size:
            raise NotOnnx("it is empty")
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content, memoryview(content) as view:
            yield from named_in(view)


def named_in(view: memoryview) -> Iterator[tuple[str, str]]:
    """The same of the bytes of a model. Raises NotOnnx."""
    yield from _walk(view, 0, len(view), "model", 0)


def _walk(view: memoryview, at: int, end: int, kind: str, depth: int) -> Iterator[tuple[str, str]]:
    if depth > _DEEPEST:
        raise NotOnnx(f"it has more than {_DEEPEST} messages within each other")
    ways = _WAYS[kind]
    for number, begin, stop in _parts(view, at, end):
        way = ways.get(number)
        if way is None:
            continue
        if way == "operator":
            yield "operator", _text(view, begin, stop)
        elif way == "entry":
            entry = {n: _text(view, b, s) for n, b, s in _parts(view, begin, stop)}
            if entry.get(1) == "location":
                yield "location", entry.get(2, "")
        else:
            yield from _walk(view, begin, stop, way, depth + 1)


def _parts(view: memoryview, at: int, end: int) -> Iterator[tuple[int, int, int]]:
    """Number, begin and end of each field that has a length; the others are passed over."""
    while at < end:
        tag, at = _varint(view, at, end)
        kind = tag & 7
        if kind == 2:
            size, at = _varint(view, at, end)
            if size > end - at:
                raise NotOnnx("a field is longer than the file")
            yield tag >> 3, at, at + size
            at += size
        elif kind == 0:
            _, at = _varint(view, at, end)
        elif kind in (1, 5):
            at += 8 if kind == 1 else 4
        else:
            raise NotOnnx(f"a field of type {kind}")
    if at != end:
        raise NotOnnx("a field is longer than the file")


def _varint(view: memoryview, at: int, end: int) -> tuple[int, int]:
    value = shift = 0
    while at < end and shift < 70:
        byte = view[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
        shift += 7
    raise NotOnnx("a number without an end")


def _text(view: memoryview, begin: int, end: int) -> str:
    return bytes(view[begin:end]).decode("utf-8", "surrogateescape")


def _is_within(folder: Path, location: str) -> bool:
    """Whether a location leads to a file in the folder, whatever links lie on the way."""
    pure = PurePosixPath(location)
    if not location or "\0" in location or "\\" in location or pure.is_absolute() or ".." in pure.parts:
        return False
    root = folder.resolve()
    return (folder / location).resolve().is_relative_to(root)
