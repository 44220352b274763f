"""`model_warmup` of config.pbtxt: requests of the model's owner, run on every instance before the version serves.

A sample is one row, repeated to `batch_size`; of a model that batches sequences each row is a sequence of its own, and
a sample may say what its controls are. Data files lie in the model's folder ``warmup/``, a tensor of one row in each.

Source: ModelWarmup of Triton's model_config.proto; its core's TritonModelInstance for what the proto leaves open.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from pathlib import PurePosixPath
from typing import Any

from server.proto.triton import model_config_pb2 as pb
from server.repository.refuse import Refuse
from server.sequences import SequenceBatching
from server.tensor import DATATYPES, TensorSpec

WARMUP_FOLDER = "warmup"
_FIELD = "model_warmup"
_MOST_BYTES = 512 * 1024 * 1024
"""Of the inputs of one pass: warming up must not be what ends the process."""
_MOST_PASSES = 10_000
_EMPTY_BYTES = 8
"""Of a string, which is empty where no file says more: a pointer."""


@dataclass(frozen=True, slots=True)
class WarmupInput:
    """One row of an input. `source` is ``zero_data``, ``random_data`` or ``input_data_file``."""

    spec: TensorSpec
    """Its `dims` are the sizes of this row, without -1."""
    source: str
    file: str = ""
    """Below ``warmup/``, of ``input_data_file``."""


@dataclass(frozen=True, slots=True)
class WarmupSample:
    """Passes of `batch_size` equal rows."""

    field: str
    """``model_warmup[0]``, for whoever must be told what is wrong."""
    name: str
    batch_size: int
    count: int
    inputs: tuple[WarmupInput, ...]


def read_model_warmup(
    message: pb.ModelConfig, inputs: Sequence[TensorSpec], sequences: SequenceBatching | None, refuse: Refuse
) -> tuple[WarmupSample, ...]:
    """What is asked for. The data files are read when the model is loaded."""
    known = {spec.name: spec for spec in inputs}
    controls = {control.name: TensorSpec(control.name, control.datatype, (1,)) for control in _controls(sequences)}
    samples = []
    for index, sample in enumerate(message.model_warmup):
        field = f"{_FIELD}[{index}]"
        _check_sizes(field, sample, message.max_batch_size, refuse)
        for name in sorted(sample.inputs):
            if name not in known and name not in controls:
                names = ", ".join([*known, *controls])
                refuse(f'{field}.inputs["{name}"]', f"is no input of the model, which takes {names}")
        missing = [spec.name for spec in inputs if not spec.optional and spec.name not in sample.inputs]
        if missing:
            refuse(f"{field}.inputs", f"has no '{missing[0]}', which the model needs")
        read = tuple(
            _input(f'{field}.inputs["{name}"]', sample.inputs[name], spec, refuse)
            for name, spec in (known | controls).items()
            if name in sample.inputs
        )
        _check_bytes(field, sample.batch_size, read, refuse)
        samples.append(WarmupSample(field, sample.name, sample.batch_size, sample.count or 1, read))
    return tuple(samples)


def _controls(sequences: SequenceBatching | None) -> Sequence[Any]:
    return sequences.controls if sequences is not None else ()


def _check_sizes(field: str, sample: Any, max_batch_size: int, refuse: Refuse) -> None:
    largest = max(1, max_batch_size)
    if not 1 <= sample.batch_size <= largest:
        without = "" if max_batch_size else ", as the model has no batch dimension"
        refuse(f"{field}.batch_size", f"is {sample.batch_size}, it must be 1 to {largest}{without}")
    if sample.count > _MOST_PASSES:
        refuse(f"{field}.count", f"is {sample.count}, at most {_MOST_PASSES} passes are run before a model serves")


def _input(path: str, message: Any, spec: TensorSpec, refuse: Refuse) -> WarmupInput:
    wanted = DATATYPES[spec.datatype].config
    if message.data_type != pb.DataType.Value(wanted):
        known = message.data_type in pb.DataType.values()
        got = pb.DataType.Name(message.data_type) if known else str(message.data_type)
        refuse(f"{path}.data_type", f"is {got if message.data_type else 'not set'}, the model takes {wanted}")
    dims = tuple(message.dims)
    fits = len(dims) == len(spec.dims) and all(size > 0 for size in dims)
    if not fits or any(want not in (-1, got) for want, got in zip(spec.dims, dims, strict=True)):
        refuse(f"{path}.dims", f"is {list(dims)}, it must fit the model's dims {list(spec.dims)}, without -1")
    source = message.WhichOneof("input_data_type")
    if source is None:
        refuse(path, "needs zero_data, random_data or input_data_file")
    file = _inside(f"{path}.input_data_file", message.input_data_file, refuse) if source == "input_data_file" else ""
    return WarmupInput(TensorSpec(spec.name, spec.datatype, dims), source, file)


def _inside(path: str, filename: str, refuse: Refuse) -> str:
    parts = PurePosixPath(filename)
    if parts.is_absolute() or ".." in parts.parts or parts.name in ("", ".") or "\x00" in filename:
        refuse(path, f"'{filename}' must be a file below '{WARMUP_FOLDER}'")
    return filename


def _check_bytes(field: str, batch_size: int, inputs: Sequence[WarmupInput], refuse: Refuse) -> None:
    row_bytes = sum(prod(one.spec.dims) * (DATATYPES[one.spec.datatype].size or _EMPTY_BYTES) for one in inputs)
    size = batch_size * row_bytes
    if size > _MOST_BYTES:
        refuse(field, f"makes inputs of {size} bytes, at most {_MOST_BYTES}")
