"""The exported file against the trained model, by each execution provider that is here, on golden and on held-out data.

What comes of it stands in the manifest. A file that is off by more than the limits is not published.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnxruntime as ort

from exporter.errors import VerifyError
from exporter.recipes.base import Arrays, Decides, Evaluation, Measured, Predict, Split, Task
from server.repository.certificate import FULL_PRECISION, CheckRecord, ErrorRecord, Tolerance, compare
from server.tensor import Array

CPU = "CPUExecutionProvider"
_PROVIDERS = (CPU, "CUDAExecutionProvider")
"""Those that are tried where ONNX Runtime has them; others (TensorRT) build engines for minutes."""
GOLDEN, HELD_OUT = "golden", "held-out"
_CHANGED_SHARE = 0.001
"""Of the held-out rows, how many may get another best label: such as were all but even between two."""


@dataclass(frozen=True, slots=True)
class Limits:
    """What is demanded of a file. None: measured and written down, not demanded."""

    tolerances: Mapping[str, Tolerance] | None
    changed_share: float | None = _CHANGED_SHARE


def session_of(path: Path, provider: str = CPU, *, threads: int = 1) -> ort.InferenceSession:
    """Raises VerifyError: ONNX Runtime can't load the file."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 4
    try:
        return ort.InferenceSession(path, options, providers=[provider])
    except Exception as error:  # ONNX Runtime's exceptions have no common class of their own
        raise VerifyError(f"ONNX Runtime can't load {path.name}: {error}") from error


def predictor_of(session: ort.InferenceSession, task: Task) -> Predict:
    """A session as a function on arrays of any number of rows, in batches as large as the task's."""
    names = [spec.name for spec in task.outputs]

    def predict(arrays: Arrays) -> Arrays:
        rows = len(next(iter(arrays.values())))
        parts: list[Sequence[Array]] = []
        for start in range(0, rows, task.max_batch_size):
            feeds = {
                name: np.ascontiguousarray(array[start : start + task.max_batch_size]) for name, array in arrays.items()
            }
            try:
                parts.append(session.run(names, feeds))
            except Exception as error:  # see `session_of`
                raise VerifyError(f"ONNX Runtime can't run a batch: {error}") from error
        return {name: np.concatenate(part) for name, part in zip(names, zip(*parts, strict=True), strict=True)}

    return predict


def check(
    task: Task,
    trained: Predict,
    path: Path,
    golden: Arrays,
    limits: Limits,
    precision: str = FULL_PRECISION,
    *,
    held_out: bool = True,
    served: Evaluation | None = None,
) -> tuple[CheckRecord, ...]:
    """A record for each provider and kind of data. `golden` are input arrays; without `held_out` they are all there is.
    `served`: as for `metrics_of`.

    Raises:
        VerifyError: more than the limits; names the provider, the data, and what is off.
    """
    data = {GOLDEN: golden}
    if held_out:
        data[HELD_OUT], _ = task.batch(Split.TEST, np.arange(task.size(Split.TEST)), 0)
    expected = {kind: trained(inputs) for kind, inputs in data.items()}
    records = []
    for provider in (name for name in _PROVIDERS if name in ort.get_available_providers()):
        predict = predictor_of(session_of(path, provider), task)
        metrics = metrics_of(task, predict, served) if held_out and isinstance(task, Measured) else {}
        for kind, inputs in data.items():
            actual = predict(inputs)
            told_of = {
                "provider": provider.removesuffix("ExecutionProvider"),
                "precision": precision,
                "data": kind,
                "metrics": metrics if kind == HELD_OUT else {},
            }
            records.append(_record(task, actual, expected[kind], limits).model_copy(update=told_of))
            _demand(records[-1], actual, expected[kind], limits)
    return tuple(records)


def metrics_of(task: Measured, predict: Predict, served: Evaluation | None) -> dict[str, float]:
    """On the test split; those that hang on a threshold or a margin with the one that is `served`, whoever chose it.

    None: `predict` chooses, as at the end of a training.
    """
    decided = task.decided(predict, served) if served is not None and isinstance(task, Decides) else {}
    return {**task.metrics(predict), **decided}


def demand_same(what: str, actual: Array, expected: Array, limit: Tolerance) -> None:
    """Raises VerifyError, which begins with `what`, where two arrays differ by more than the limit."""
    problem = compare(actual, expected, limit)
    if problem:
        raise VerifyError(f"{what} {problem}")


def own_tolerances(predict: Predict, inputs: Arrays, outputs: Arrays) -> dict[str, Tolerance]:
    """What a replay of a rounded model's own answers must allow.

    Where it measures the range of its activations anew in each batch, the rows of a batch move each other: thrice what
    they do here, and at least a hundredth of the answers' spread.
    """
    rows = len(next(iter(inputs.values())))
    alone = [predict({name: array[row : row + 1] for name, array in inputs.items()}) for row in range(rows)]
    found = {}
    for name, together in outputs.items():
        moved = np.abs(np.concatenate([each[name] for each in alone]) - together).max()
        spread = together.max() - together.min()
        found[name] = Tolerance(atol=float(max(3 * moved, spread / 100, 1e-6)), rtol=0.0)
    return found


def told(record: CheckRecord, trained: Mapping[str, float], framework: str) -> str:
    """A record in a line."""
    errors = "; ".join(
        f"{name} off by {error.max_abs:.2e} at most, {error.mean_abs:.2e} in the mean"
        for name, error in record.errors.items()
    )
    changed = "" if record.changed_top1 is None else f"; {record.changed_top1} best labels changed"
    metrics = ", ".join(
        f"{name} {value:.4f} ({framework}: {trained[name]:.4f})"
        for name, value in record.metrics.items()
        if name in trained
    )
    where = f"{record.provider}, {record.precision}, {record.rows} {record.data} rows"
    return f"{where}: {'; '.join(part for part in (errors + changed, metrics) if part)}"


def _record(task: Task, actual: Arrays, expected: Arrays, limits: Limits) -> CheckRecord:
    rows = len(next(iter(expected.values())))
    errors = {}
    for name, array in expected.items():
        difference = np.abs(actual[name].astype(np.float64) - array)
        errors[name] = ErrorRecord(max_abs=float(difference.max()), mean_abs=float(difference.mean()))
    first = task.outputs[0].name
    scores = expected[first]
    changed = None
    if len(task.labels) > 1 and scores.ndim == 2 and scores.shape[1] == len(task.labels):
        changed = int((actual[first].argmax(axis=1) != scores.argmax(axis=1)).sum())
    return CheckRecord(
        provider="",
        precision="",
        data=GOLDEN,
        rows=rows,
        errors=errors,
        changed_top1=changed,
        limits=dict(limits.tolerances or {}),
        metrics={},
    )


def _demand(record: CheckRecord, actual: Arrays, expected: Arrays, limits: Limits) -> None:
    where = f"{record.provider}, {record.data} data"
    for name, tolerance in (limits.tolerances or {}).items():
        wanted = expected[name].astype(actual[name].dtype)
        demand_same(f"output {name!r}, {where}: ONNX Runtime's", actual[name], wanted, tolerance)
    if limits.changed_share is None or record.changed_top1 is None:
        return
    most = int(record.rows * limits.changed_share)
    if record.changed_top1 > most:
        raise VerifyError(f"{where}: {record.changed_top1} of {record.rows} best labels changed, the most are {most}")
