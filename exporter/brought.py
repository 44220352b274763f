"""Models that nobody trained here: what is published of them, and what stands in their certificate.

Of a user's own module (`exporter.callables`) PyTorch is the reference. Of a ready ONNX file (`exporter.ready`) there is
none but ONNX Runtime itself: the golden outputs hold what it answered on the day, and rows alone must be answered as
in a batch. Golden inputs are the examples that were given, or seeded random ones.
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

import numpy as np

from exporter import onnx
from exporter.checks import demand_same, session_of
from exporter.environment import environment
from exporter.errors import UsageError, VerifyError
from exporter.publish import Certificate, Certify, Model, Published, publish
from exporter.recipes.base import Arrays, Predict
from exporter.verify import OutputError
from server.errors import ServingError
from server.pipeline.base import PROCESSING_FILE
from server.pipeline.load import load_pipeline
from server.repository.certificate import DataRecord, ErrorRecord, RowCounts, Tolerance, VersionRecord
from server.tensor import DATATYPES, Array, TensorSpec
from server.types import RawInput

MAX_GOLDEN_ROWS = 32
RANDOM_ROWS = 4
TOLERANCE = Tolerance(atol=1e-4, rtol=1e-3)


@dataclass(frozen=True, slots=True)
class Processing:
    """What the user gives of pre- and postprocessing: a processing.yaml and the files that it names; or nothing."""

    file: Path | None = None
    beside: tuple[Path, ...] = ()

    def write(self, folder: Path) -> None:
        """Copy all of it into a model's folder. Raises UsageError for a file that is not there."""
        for path in (*([self.file] if self.file else []), *self.beside):
            if not path.is_file():
                raise UsageError(f"{path}: no such file")
            shutil.copyfile(path, folder / (PROCESSING_FILE if path == self.file else path.name))


NO_PROCESSING = Processing()


@dataclass(frozen=True, slots=True)
class Brought:
    """A model to publish. `max_batch_size` of 0: its tensors have no batch dimension of their own."""

    name: str
    how: str
    """``export`` or ``import``."""
    source: str
    """Where it came from, for the certificate."""
    file: Path
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    max_batch_size: int
    examples: Arrays
    reference: Predict
    framework: str
    processing: Processing = NO_PROCESSING

    def publish(self, repository: Path, *, replace: bool) -> tuple[Published, Mapping[str, OutputError]]:
        """Verify and publish; what was measured comes along. Raises PublishError, VerifyError, UsageError."""
        measured: dict[str, OutputError] = {}
        model = Model(
            name=self.name,
            recipe=self.how,
            synthetic=False,
            inputs=self.inputs,
            outputs=self.outputs,
            max_batch_size=self.max_batch_size,
            model_file=self.file,
            write_processing=self.processing.write,
            golden_inputs=self._raw_examples(),
            certify=self._certify(measured),
        )
        return publish(model, repository, replace=replace), measured

    def _raw_examples(self) -> Sequence[RawInput]:
        """The pipeline's own example, twice for a batch to be one; nothing where there is no pipeline."""
        if self.processing.file is None:
            return []
        folder = self.file.parent / self.name
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        self.processing.write(folder)
        try:
            return [load_pipeline(folder, custom_code=(self.name,)).example()] * 2
        except ServingError as error:
            raise UsageError(f"{self.processing.file}: {error}") from error
        finally:
            shutil.rmtree(folder)

    def _certify(self, measured: dict[str, OutputError]) -> Certify:
        def certify(folder: Path, raw: Sequence[RawInput]) -> Certificate:
            inputs = self.examples
            if raw:
                try:
                    inputs = load_pipeline(folder, custom_code=(self.name,)).preprocess(raw)
                except ServingError as error:
                    raise VerifyError(f"the pipeline refuses its own example: {error}") from error
            outputs = self.reference(inputs)
            measured.update(compared(self, inputs, outputs))
            return Certificate(inputs, outputs, self._record(inputs, measured))

        return certify

    def _record(self, inputs: Arrays, measured: Mapping[str, OutputError]) -> VersionRecord:
        opset, ir_version = onnx.versions_of(self.file)
        return VersionRecord(
            created=datetime.now(UTC).isoformat(timespec="seconds"),
            opset=opset,
            ir_version=ir_version,
            seed=0,
            data=DataRecord(source=self.source, sha256=digest(inputs), rows=RowCounts(train=0, validation=0, test=0)),
            metrics={},
            baseline={},
            environment=environment(),
            tolerances={spec.name: TOLERANCE for spec in self.outputs},
            errors={name: ErrorRecord(**asdict(error)) for name, error in measured.items()},
        )


def compared(model: Brought, inputs: Arrays, expected: Arrays) -> dict[str, OutputError]:
    """By output, how far ONNX Runtime is from `expected`: on all rows together, and alone where rows are batched.

    Raises:
        VerifyError: by more than the tolerance, or something that is not finite; names the output.
    """
    run = runner(model.file, [spec.name for spec in model.outputs])
    found = [run(inputs)]
    if model.max_batch_size:
        rows = len(next(iter(inputs.values())))
        alone = [run({name: array[i : i + 1] for name, array in inputs.items()}) for i in range(rows)]
        found.append({name: np.concatenate([one[name] for one in alone]) for name in expected})
    errors = {}
    for name, truth in expected.items():
        if truth.dtype.kind == "f" and not np.isfinite(truth).all():
            raise VerifyError(f"output {name!r}: {model.framework} itself gives a value that is not finite")
        for outputs in found:
            demand_same(f"output {name!r}: ONNX Runtime's", outputs[name], truth, TOLERANCE)
        errors[name] = _distance([outputs[name] for outputs in found], truth)
    return errors


def _distance(found: Sequence[Array], truth: Array) -> OutputError:
    if truth.dtype.kind not in "fiub" or not truth.size:
        return OutputError(0.0, 0.0)
    off = np.abs(np.stack(found).astype(np.float64) - truth.astype(np.float64))
    return OutputError(float(off.max()), float(off.mean()))


def runner(path: Path, outputs: Sequence[str]) -> Predict:
    """The file in ONNX Runtime, on the CPU with one thread. Raises VerifyError if it can't be loaded or run."""
    session = session_of(path)

    def run(inputs: Arrays) -> Arrays:
        try:
            found = session.run(list(outputs), {name: np.ascontiguousarray(array) for name, array in inputs.items()})
        except Exception as error:  # see `session_of`
            raise VerifyError(f"ONNX Runtime can't run {path.name}: {error}") from error
        return dict(zip(outputs, found, strict=True))

    return run


def random_arrays(specs: Sequence[TensorSpec], rows: int, free: int) -> Arrays:
    """Seeded arrays: normal floats, zeros and ones, short texts. `rows` in front (0: none), `free` for dims of -1."""
    generator = np.random.default_rng(0)
    arrays: dict[str, Array] = {}
    for spec in specs:
        shape = (*([rows] if rows else []), *(free if size == -1 else size for size in spec.dims))
        if spec.datatype == "BYTES":
            texts = np.array([f"text {n}" for n in range(int(np.prod(shape)))], dtype=object)
            arrays[spec.name] = texts.reshape(shape)
        elif spec.datatype.startswith("FP"):
            arrays[spec.name] = generator.normal(size=shape).astype(DATATYPES[spec.datatype].numpy)
        else:
            arrays[spec.name] = generator.integers(0, 2, shape).astype(DATATYPES[spec.datatype].numpy)
    return arrays


def digest(arrays: Arrays) -> str:
    """SHA-256 over names, shapes and contents, in hexadecimal."""
    made = hashlib.sha256()
    for name in sorted(arrays):
        array = arrays[name]
        content = repr(array.tolist()).encode() if array.dtype.kind == "O" else np.ascontiguousarray(array).tobytes()
        made.update(f"{name} {array.dtype} {array.shape}\n".encode() + content)
    return made.hexdigest()
