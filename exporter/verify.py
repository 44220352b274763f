"""Does the exported file answer as the trained network does? If not, nothing is published."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort

from exporter.checks import demand_same, session_of
from exporter.errors import VerifyError
from exporter.recipes.base import Arrays, Predict, Task
from server.repository import certificate
from server.tensor import Array, TensorSpec

_ORT_TYPES = {
    "FP32": "tensor(float)",
    "FP64": "tensor(double)",
    "FP16": "tensor(float16)",
    "INT64": "tensor(int64)",
    "INT32": "tensor(int32)",
    "BOOL": "tensor(bool)",
    "BYTES": "tensor(string)",
}


@dataclass(frozen=True, slots=True)
class OutputError:
    """How far ONNX Runtime was from the trained model, over all golden rows and batch sizes."""

    max_abs: float
    mean_abs: float


@dataclass(frozen=True, slots=True)
class Verified:
    """The golden arrays (outputs are the trained model's) and what was measured on them."""

    inputs: Arrays
    outputs: Arrays
    errors: Mapping[str, OutputError]


def verify(task: Task, predict: Predict, path: Path, inputs: Arrays, framework: str = "PyTorch") -> Verified:
    """Compare `path` in ONNX Runtime with `predict` on `inputs`: as one batch, and each row alone.

    `framework` is whose `predict` is, for messages.

    Raises:
        VerifyError: the file can't be loaded, its tensors are not the task's, or an output is off by more
            than the task's tolerance; names the output and the largest error.
    """
    rows = len(next(iter(inputs.values())))
    if rows < 2:
        raise VerifyError(f"{rows} golden rows are too few to compare batches of 1 and of N")
    session = session_of(path)
    _check_tensors("input", session.get_inputs(), task.inputs)
    _check_tensors("output", session.get_outputs(), task.outputs)
    expected = predict(inputs)
    for name, array in expected.items():
        if not np.isfinite(array).all():
            raise VerifyError(f"output {name!r}: {framework} itself gives a value that is not finite")
    together = _run(session, task, inputs)
    alone = [_run(session, task, {name: array[i : i + 1] for name, array in inputs.items()}) for i in range(rows)]
    errors = {}
    for spec in task.outputs:
        name, tolerance = spec.name, task.tolerances[spec.name]
        limit = certificate.Tolerance(atol=tolerance.absolute, rtol=tolerance.relative)
        single = np.concatenate([row[name] for row in alone])
        for batch, actual in ((rows, together[name]), (1, single)):
            demand_same(f"output {name!r}, batch of {batch}: ONNX Runtime's", actual, expected[name], limit)
        errors[name] = _error([together[name], single], expected[name])
    return Verified(inputs, expected, errors)


def _check_tensors(kind: str, found: Sequence[Any], expected: Sequence[TensorSpec]) -> None:
    """Names in order, types, and shapes with a free batch dimension in front."""
    if [tensor.name for tensor in found] != [spec.name for spec in expected]:
        names = [tensor.name for tensor in found]
        raise VerifyError(f"the file's {kind}s are {names}, the task's are {[spec.name for spec in expected]}")
    for tensor, spec in zip(found, expected, strict=True):
        if tensor.type != _ORT_TYPES[spec.datatype]:
            raise VerifyError(f"{kind} {spec.name!r} is a {tensor.type}, the task says {spec.datatype}")
        batch, *dims = tensor.shape
        if isinstance(batch, int):
            raise VerifyError(f"{kind} {spec.name!r} has a fixed batch dimension of {batch}")
        known = [-1 if not isinstance(size, int) else size for size in dims]
        if tuple(known) != spec.dims:
            raise VerifyError(f"{kind} {spec.name!r} has dims {known}, the task says {list(spec.dims)}")


def _run(session: ort.InferenceSession, task: Task, inputs: Arrays) -> Arrays:
    names = [spec.name for spec in task.outputs]
    try:
        outputs = session.run(names, {name: np.ascontiguousarray(array) for name, array in inputs.items()})
    except Exception as error:  # see `session_of`
        rows = len(next(iter(inputs.values())))
        raise VerifyError(f"ONNX Runtime can't run a batch of {rows}: {error}") from error
    return dict(zip(names, outputs, strict=True))


def _error(found: Sequence[Array], expected: Array) -> OutputError:
    difference = np.abs(np.stack(found).astype(np.float64) - expected)
    return OutputError(float(difference.max()), float(difference.mean()))
