"""`import model.onnx`: a ready ONNX file into the repository, with a config that fits it and golden inputs.

Names, datatypes and shapes are read from the file. Where the first dimension of every tensor is free, and rows alone
are answered as in a batch, it is the batch; else the model takes one request at a time (`max_batch_size: 0`). Weights
that lie in files beside it are taken into the one that is published.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace as changed
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort

from exporter.brought import (
    MAX_GOLDEN_ROWS,
    NO_PROCESSING,
    RANDOM_ROWS,
    Brought,
    Processing,
    compared,
    random_arrays,
    runner,
)
from exporter.errors import ExportError, UsageError, VerifyError
from exporter.onnx import versions_of
from exporter.recipes.base import Arrays
from server.tensor import TensorSpec

_DATATYPES = {
    "tensor(float)": "FP32",
    "tensor(double)": "FP64",
    "tensor(float16)": "FP16",
    "tensor(int64)": "INT64",
    "tensor(int32)": "INT32",
    "tensor(int16)": "INT16",
    "tensor(int8)": "INT8",
    "tensor(uint64)": "UINT64",
    "tensor(uint32)": "UINT32",
    "tensor(uint16)": "UINT16",
    "tensor(uint8)": "UINT8",
    "tensor(bool)": "BOOL",
    "tensor(string)": "BYTES",
}
DEFAULT_FREE = 8
"""The size of a free dimension in made-up golden inputs."""

Report = Callable[[str, Sequence[str]], None]


def import_onnx(
    path: Path,
    name: str,
    repository: Path,
    report: Report,
    *,
    processing: Processing = NO_PROCESSING,
    examples: Path | None = None,
    max_batch_size: int = 64,
    replace: bool = False,
) -> None:
    """Publish the file as the model `name`. `examples`: an .npz of golden inputs by name, instead of made-up ones.

    Raises:
        ExportError: it is no ONNX that ONNX Runtime loads, or has tensors of a kind that v2 has no datatype for.
        UsageError: the examples do not fit.
        VerifyError, PublishError: as for every model.
    """
    with TemporaryDirectory() as folder:
        file = Path(folder) / "model.onnx"
        _one_file(path, file)
        inputs, outputs, batched = _tensors(file)
        run = runner(file, [spec.name for spec in outputs])
        made = random_arrays(inputs, RANDOM_ROWS if batched else 0, DEFAULT_FREE)
        model = Brought(
            name=name,
            how="import",
            source=f"{path.name}, examples {examples.name if examples else 'made up'}",
            file=file,
            inputs=inputs,
            outputs=outputs,
            max_batch_size=max_batch_size if batched else 0,
            examples=made if examples is None else _read(examples, inputs, batched),
            reference=run,
            framework="ONNX Runtime",
            processing=processing,
        )
        why = ""
        if batched:
            why = _rows_depend(model)
            if why:
                model = changed(
                    model,
                    inputs=_with_batch(inputs),
                    outputs=_with_batch(outputs),
                    max_batch_size=0,
                    examples=model.examples,
                )
        opset, ir_version = versions_of(file)
        lines = [f"{path}: {file.stat().st_size:,} bytes, opset {opset}, IR version {ir_version}", *_told(model, why)]
        report("import", lines)
        published, _ = model.publish(repository, replace=replace)
    report("publish", [f"{published.folder}, version {published.version}"])


def _one_file(path: Path, target: Path) -> None:
    if not path.is_file():
        raise UsageError(f"{path}: no such file")
    try:
        model = onnx.load(path)
        onnx.checker.check_model(model)
        target.write_bytes(model.SerializeToString(deterministic=True))
    except Exception as error:  # protobuf, onnx and the file system each have their own
        raise ExportError(f"{path} can't be read as ONNX: {error}") from error


def _tensors(file: Path) -> tuple[tuple[TensorSpec, ...], tuple[TensorSpec, ...], bool]:
    """Inputs and outputs, and whether all have a free first dimension, which is then none of their dims."""
    options = ort.SessionOptions()
    options.log_severity_level = 4
    try:
        session = ort.InferenceSession(file, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # ONNX Runtime's exceptions have no common class of their own
        raise ExportError(f"ONNX Runtime can't load it: {error}") from error
    found = (session.get_inputs(), session.get_outputs())
    batched = all(bool(t.shape) and not isinstance(t.shape[0], int) for tensors in found for t in tensors)
    inputs, outputs = (tuple(_spec(tensor, batched) for tensor in tensors) for tensors in found)
    if not inputs:
        raise ExportError("the model has no input: there is nothing to ask it")
    return inputs, outputs, batched


def _spec(tensor: Any, batched: bool) -> TensorSpec:
    if tensor.type not in _DATATYPES:
        raise ExportError(f"{tensor.name!r} is a {tensor.type}, which v2 has no datatype for")
    dims = tuple(size if isinstance(size, int) else -1 for size in tensor.shape)
    return TensorSpec(tensor.name, _DATATYPES[tensor.type], dims[1:] if batched else dims)


def _with_batch(specs: Sequence[TensorSpec]) -> tuple[TensorSpec, ...]:
    return tuple(TensorSpec(spec.name, spec.datatype, (-1, *spec.dims)) for spec in specs)


def _rows_depend(model: Brought) -> str:
    """Why the free first dimension is no batch; empty if it is one."""
    try:
        compared(model, model.examples, model.reference(model.examples))
    except VerifyError as error:
        return str(error)
    except (IndexError, ValueError) as error:
        return f"its outputs do not have a row for each of the inputs: {error}"
    return ""


def _read(path: Path, inputs: Sequence[TensorSpec], batched: bool) -> Arrays:
    try:
        with np.load(path, allow_pickle=False) as file:
            found = dict(file)
    except (OSError, ValueError) as error:
        raise UsageError(f"--example-inputs: {path} can't be read: {error}") from error
    wanted = {spec.name for spec in inputs}
    if set(found) != wanted:
        raise UsageError(
            f"--example-inputs: {path} has {', '.join(sorted(found))}; wanted are {', '.join(sorted(wanted))}"
        )
    return {name: array[:MAX_GOLDEN_ROWS] if batched else array for name, array in found.items()}


def _told(model: Brought, why: str) -> list[str]:
    lines = [
        f"{kind} {spec.name}: {spec.datatype} {list(spec.dims)}"
        for kind, specs in (("input", model.inputs), ("output", model.outputs))
        for spec in specs
    ]
    if model.max_batch_size:
        lines.append(f"rows alone are answered as in a batch: batches up to {model.max_batch_size}")
    else:
        lines.append(f"one request at a time{f': {why}' if why else ': its shapes have no free batch dimension'}")
    return [*lines, "processing.yaml as given" if model.processing.file else "no processing: infer only"]
