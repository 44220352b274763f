"""Replaying the golden files: does this copy of the model, here, still give the answers it was verified with?"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import zip_longest

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from server.bfloat16 import BF16, narrowed, widened
from server.buckets import Buckets
from server.errors import ModelLoadFailed, ServingError
from server.pipeline.base import PROCESSING_FILE, Pipeline, answers
from server.repository.config_text import CONFIG_FILE
from server.repository.golden import RAW_FILE, Golden, golden_file
from server.repository.length_buckets import LENGTH_BUCKETS
from server.tensor import Array
from server.types import Classification, RawInput

LABELS = "labels.txt"
"""The file whose lines are the labels; the pipeline reads it."""

Run = Callable[[Mapping[str, Array]], Mapping[str, Array]]
"""A forward pass over whole arrays of any number of rows."""


class Tolerance(BaseModel):
    """A value may differ from the golden one by ``atol + rtol * abs(golden)``."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    atol: float = Field(ge=0)
    rtol: float = Field(ge=0)


DEFAULT_TOLERANCE = Tolerance(atol=1e-4, rtol=1e-3)
"""For golden files without a manifest: what FP32 differs by between CPUs and ONNX Runtime versions."""

PREPROCESSING_TOLERANCE = Tolerance(atol=1e-5, rtol=1e-5)
"""The same code ran on both sides, so only rounding may differ. A JPEG, whose decoders differ by more, is no
good golden input; a PNG is."""


def replay(model_name: str, golden: Golden, run: Run, tolerances: Mapping[str, Tolerance] | None = None) -> None:
    """Run the golden inputs and compare. Outputs that are not floats must be equal.

    `tolerances` of None means `DEFAULT_TOLERANCE` for each output.

    Raises:
        ModelLoadFailed: an output is missing, of another shape or type, or off by more than its tolerance;
            names it, with the largest error, its row and the limit there.
        EngineFailure: the forward pass failed.
    """
    where = golden_file(golden.version)
    outputs = run(golden.inputs)
    for name, expected in golden.outputs.items():
        if name not in outputs:
            raise ModelLoadFailed(model_name, where, f"output '{name}' is not among those of the model")
        tolerance = DEFAULT_TOLERANCE
        if tolerances is not None:
            if name not in tolerances:
                raise ModelLoadFailed(model_name, "manifest.json", f"has no tolerance for output '{name}'")
            tolerance = tolerances[name]
        difference = compare(outputs[name], expected, tolerance)
        if difference:
            raise ModelLoadFailed(model_name, where, f"output '{name}' {difference}")


def replay_padded(
    model_name: str, golden: Golden, buckets: Buckets, run: Run, tolerances: Mapping[str, Tolerance] | None = None
) -> None:
    """Replay the golden inputs padded to the next longer bucket: a model that masks them gives the same answers.

    Raises:
        ModelLoadFailed: it does not; see `replay`.
        EngineFailure: the forward pass failed.
    """
    lengths = {golden.inputs[name].shape[position + 1] for name, position in buckets.inputs.items()}
    length = max(lengths)
    longer = buckets.padded(length + 1)
    if len(lengths) > 1 or longer not in buckets.lengths:
        return

    def run_padded(inputs: Mapping[str, Array]) -> Mapping[str, Array]:
        outputs = run({name: _padded(array, name, buckets, longer) for name, array in inputs.items()})
        return {name: _cut_back(array, buckets.outputs.get(name, ()), length) for name, array in outputs.items()}

    try:
        replay(model_name, golden, run_padded, tolerances)
    except ModelLoadFailed as error:
        problem = (
            f"padding the golden rows from {length} to {longer} changes the answers: {error.problem}; "
            "the model must mask what is added, or pad_value be what it ignores"
        )
        raise ModelLoadFailed(model_name, f'{CONFIG_FILE}: parameters["{LENGTH_BUCKETS}"]', problem) from error


def _padded(array: Array, name: str, buckets: Buckets, length: int) -> Array:
    if name not in buckets.inputs:
        return array
    axis = buckets.inputs[name] + 1
    before_after = [(0, 0)] * array.ndim
    before_after[axis] = (0, length - array.shape[axis])
    value = buckets.pad_values.get(name, 0)
    if array.dtype == BF16:
        return narrowed(np.pad(widened(array), before_after, constant_values=value))
    return np.pad(array, before_after, constant_values=value)


def _cut_back(array: Array, positions: Sequence[int], length: int) -> Array:
    for position in positions:
        array = array.take(range(length), position + 1)
    return array


def replay_preprocessing(model_name: str, golden: Golden, raw: Sequence[RawInput], pipeline: Pipeline) -> None:
    """Preprocess the raw golden inputs and compare with the first rows of the golden tensors.

    Raises:
        ModelLoadFailed: the pipeline refuses an input or gives another tensor; names the input and the tensor.
    """
    if not raw:
        return
    try:
        tensors = pipeline.preprocess(raw)
    except ServingError as error:
        raise ModelLoadFailed(model_name, PROCESSING_FILE, f"golden input is refused: {error}") from error
    if set(tensors) != set(golden.inputs):
        made, wanted = ", ".join(sorted(tensors)), ", ".join(sorted(golden.inputs))
        raise ModelLoadFailed(model_name, PROCESSING_FILE, f"makes the tensors {made}; the golden inputs are {wanted}")
    for name, expected in golden.inputs.items():
        if len(tensors[name]) != len(raw) or len(expected) < len(raw):
            raise ModelLoadFailed(
                model_name,
                RAW_FILE,
                f"{len(raw)} raw inputs give {len(tensors[name])} rows of '{name}', {len(expected)} are golden",
            )
        for index, row in enumerate(expected[: len(raw)]):
            difference = compare(tensors[name][index : index + 1], row[None], PREPROCESSING_TOLERANCE, rows=False)
            if difference:
                raise ModelLoadFailed(
                    model_name,
                    PROCESSING_FILE,
                    f"preprocessing of golden input {index} differs in tensor '{name}': it {difference}",
                )


def labels_of(pipeline: Pipeline, raw: Sequence[RawInput], outputs: Mapping[str, Array]) -> tuple[str, ...]:
    """The labels that the first rows of the outputs are answered with; none where the task gives no labels."""
    first = {name: array[: len(raw)] for name, array in outputs.items()}
    found = answers(pipeline, raw, first) if raw else []
    return tuple(answer.label for answer in found if isinstance(answer, Classification))


def replay_answers(
    model_name: str, golden: Golden, raw: Sequence[RawInput], pipeline: Pipeline, expected: Sequence[str]
) -> None:
    """Make answers of the golden outputs and compare their labels with the certified ones, if there are any.

    Raises:
        ModelLoadFailed: one is another: labels.txt, or what processing.yaml says of the answers, was changed.
    """
    if not expected:
        return
    try:
        found = labels_of(pipeline, raw, golden.outputs)
    except ServingError as error:
        raise ModelLoadFailed(model_name, PROCESSING_FILE, f"can't answer with the golden outputs: {error}") from error
    for index, (label, certified) in enumerate(zip_longest(found, expected)):
        if label != certified:
            problem = f"golden input {index} is answered with the label {label!r}, certified is {certified!r}"
            raise ModelLoadFailed(model_name, LABELS, f"{problem}: labels or their order were changed")


def compare(actual: Array, expected: Array, tolerance: Tolerance, *, rows: bool = True) -> str:
    """What is wrong with `actual`, as the end of a sentence; empty if nothing is.

    NaN equals NaN and infinity equals itself: a golden file may hold them. `rows` names the row of the
    largest error.
    """
    if actual.shape != expected.shape:
        return f"has shape {list(actual.shape)}, golden is {list(expected.shape)}"
    if _kind(actual) != _kind(expected):
        return f"is {actual.dtype}, golden is {expected.dtype}"
    if _kind(expected) != "f":
        return _compare_exactly(actual, expected)
    wide_actual, wide_expected = _wide(actual), _wide(expected)
    close = np.isclose(wide_actual, wide_expected, rtol=tolerance.rtol, atol=tolerance.atol, equal_nan=True)
    if close.all():
        return ""
    with np.errstate(invalid="ignore"):
        errors = np.abs(wide_actual - wide_expected)
    errors = np.where(close, 0.0, np.where(np.isnan(errors), np.inf, errors))
    worst = np.unravel_index(int(errors.argmax()), errors.shape)
    scale = abs(wide_expected[worst]) if np.isfinite(wide_expected[worst]) else 0.0
    limit = tolerance.atol + tolerance.rtol * scale
    place = f" in row {worst[0]}" if rows and worst else ""
    return (
        f"is off by {errors[worst]:.3g}{place} (got {wide_actual[worst]:.6g}, golden {wide_expected[worst]:.6g}, "
        f"limit {limit:.3g}), {int((~close).sum())} of {close.size} values are over their limit"
    )


def _wide(array: Array) -> Array:
    return (widened(array) if array.dtype == BF16 else array).astype(np.float64)


def _kind(array: Array) -> str:
    return "f" if array.dtype == BF16 else array.dtype.kind


def _compare_exactly(actual: Array, expected: Array) -> str:
    wrong = np.atleast_1d(np.asarray(actual != expected, dtype=bool))
    if not wrong.any():
        return ""
    return f"differs in {int(wrong.sum())} of {wrong.size} values, first in row {int(np.argwhere(wrong)[0][0])}"
