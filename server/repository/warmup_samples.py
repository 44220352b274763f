"""The samples of `model_warmup`: their data, and their passes on every instance."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import prod
from pathlib import Path

import numpy as np

from server.bfloat16 import narrowed
from server.engine.base import Instance
from server.errors import EngineFailure, ModelLoadFailed
from server.repository.model_config import ModelConfig
from server.repository.model_warmup import WARMUP_FOLDER, WarmupInput, WarmupSample
from server.tensor import DATATYPES, Array, Tensor, unpack_bytes
from server.types import Batch

_SEED = 0
"""Random data are the same at each load: one that fails fails again."""

Rows = Mapping[str, Array]
"""One row of each input of a sample, with a dimension for it where the model has batches."""


def read_samples(config: ModelConfig, folder: Path) -> list[Rows]:
    """The data of each sample of the model in `folder`.

    Raises:
        ModelLoadFailed: a file is missing, or is not one row of its input.
    """
    batched = config.max_batch_size > 0
    return [
        {one.spec.name: row[np.newaxis] if batched else row for one, row in _rows(config.name, sample, folder)}
        for sample in config.model_warmup
    ]


def filling(config: ModelConfig, samples: Sequence[Rows]) -> Rows | None:
    """The first that has every input of the clients: real sizes where the config has -1. None: there is none."""
    needed = {spec.name for spec in config.inputs}
    return next((rows for rows in samples if needed <= rows.keys()), None)


def run_samples(config: ModelConfig, version: str, samples: Sequence[Rows], instances: Sequence[Instance]) -> None:
    """Run each on every instance.

    Raises:
        ModelLoadFailed: a pass failed; `where` is its sample.
    """
    batched = config.max_batch_size > 0
    for sample, rows in zip(config.model_warmup, samples, strict=True):
        size = sample.batch_size
        inputs = {name: np.repeat(row, size, axis=0) if batched else row for name, row in rows.items()}
        if config.sequence_batching is not None:
            inputs = config.sequence_batching.lone_inputs(size, batched=batched) | inputs
        batch = Batch(config.name, version, size, inputs)
        for instance in instances:
            for _ in range(sample.count):
                _run(sample, instance, batch)


def _run(sample: WarmupSample, instance: Instance, batch: Batch) -> None:
    try:
        instance.run(batch)
    except EngineFailure as error:
        named = f"'{sample.name}' " if sample.name else ""
        problem = f"{named}failed on instance {instance.name}: {error.detail}"
        raise ModelLoadFailed(batch.model_name, f"config.pbtxt: {sample.field}", problem) from error


def _rows(model_name: str, sample: WarmupSample, folder: Path) -> list[tuple[WarmupInput, Array]]:
    random = np.random.default_rng(_SEED)
    rows = []
    for one in sample.inputs:
        datatype, dims = one.spec.datatype, one.spec.dims
        if one.source == "input_data_file":
            field = f'config.pbtxt: {sample.field}.inputs["{one.spec.name}"].input_data_file'
            try:
                row = _from_file(one, folder)
            except ValueError as error:
                raise ModelLoadFailed(model_name, field, f"'{WARMUP_FOLDER}/{one.file}' {error}") from error
        elif datatype == "BYTES":  # empty strings for random ones too, as in Triton
            row = np.full(dims, b"", dtype=object)
        elif one.source == "zero_data":
            row = np.zeros(dims, dtype=DATATYPES[datatype].numpy)
        else:
            row = _random(random, datatype, dims)
        rows.append((one, row))
    return rows


def _random(random: np.random.Generator, datatype: str, dims: tuple[int, ...]) -> Array:
    """Whole numbers of the whole range, and floats from 0 to 1: among random bits there are some that are no number."""
    known = DATATYPES[datatype]
    if known.kind == "b":
        return random.integers(0, 2, dims).astype(known.numpy)
    if known.kind == "f":
        floats = random.random(dims)
        return narrowed(floats) if datatype == "BF16" else floats.astype(known.numpy)
    bounds = np.iinfo(known.numpy)
    return random.integers(bounds.min, bounds.max, dims, dtype=known.numpy.type, endpoint=True)


def _from_file(one: WarmupInput, folder: Path) -> Array:
    """Raises ValueError, whose text goes on behind the file's name."""
    file = folder / WARMUP_FOLDER / one.file
    if not file.is_file():
        raise ValueError("is not there")
    count, size = prod(one.spec.dims), DATATYPES[one.spec.datatype].size
    if size and file.stat().st_size != count * size:
        raise ValueError(f"has {file.stat().st_size} bytes, one row has {count * size}")
    data = file.read_bytes()
    if not size:
        try:
            for element in unpack_bytes(data, count):
                element.decode()
        except ValueError as error:
            raise ValueError(f"is not {count} strings, each behind its length in 4 bytes: {error}") from error
    return Tensor(one.spec.name, one.spec.datatype, one.spec.dims, data).numpy()
