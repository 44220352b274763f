"""A model that was published before, with all that a certificate has by now: its files stay as they are, byte for byte.

The checkpoint is gone. But the file holds the weights: the network is built from them in PyTorch again, must give the
golden outputs, which are the trained model's, and is what the file is compared with on the held-out rows of then. Of
another precision, or of trees, the golden outputs alone stand for who trained it. The file's metrics must be those that
were told, with the threshold or the margin that is served. Copies whose graph is optimised were once told to be in fp32
as their models are: what wrote the file tells them apart.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from exporter import checks, quantize
from exporter.card import write_card
from exporter.config import make_config
from exporter.errors import DataError, UsageError, VerifyError
from exporter.publish import MODEL_FILE
from exporter.rebuilt import network_of
from exporter.recipes import find
from exporter.recipes.base import Decides, Evaluation, Fits, Measured, Predict, RunConfig, Task
from server.errors import ServingError
from server.pipeline.load import load_pipeline
from server.repository import certificate
from server.repository.certificate import CheckRecord, Golden, Manifest, VersionRecord, labels_of

METRIC_TOLERANCE = 1e-3
"""A row or two between two labels may fall to the other side on another CPU."""

Report = Callable[[str, Sequence[str]], None]


@dataclass(frozen=True, slots=True)
class Trained:
    """What a model was trained on, as for `train`, where that is all that was told."""

    data: str
    target: str = ""


def certify_again(folder: Path, trained: Trained | RunConfig, report: Report) -> None:
    """Write the manifest and the card of a published model anew, by what it was trained on or the whole configuration.

    Raises:
        UsageError: the recipe can't measure a file by itself.
        DataError: the folder is no published model, or the data is not what it was trained on.
        VerifyError: a file answers otherwise than it was certified to.
    """
    try:
        manifest = certificate.read_manifest(folder)
        if manifest is None:
            raise DataError(f"{folder} has no {certificate.MANIFEST_FILE}: it was not published from here")
        versions = {
            version: _again(folder, manifest, version, record, trained, report)
            for version, record in manifest.versions.items()
        }
        certificate.write_manifest(folder, manifest.model_copy(update={"versions": versions}))
        write_card(folder)
    except ServingError as error:
        raise DataError(str(error)) from error


def _again(
    folder: Path,
    manifest: Manifest,
    version: str,
    record: VersionRecord,
    trained: Trained | RunConfig,
    report: Report,
) -> VersionRecord:
    certificate.verify_files(folder, manifest, version)
    golden, raw, pipeline = (
        certificate.read_golden(folder, version),
        certificate.read_raw(folder),
        load_pipeline(folder),
    )
    if golden is None:
        raise DataError(f"{folder} has no golden files of version {version}")
    if record.precision == certificate.FULL_PRECISION and quantize.is_optimized(folder / version / MODEL_FILE):
        record = record.model_copy(update={"precision": quantize.VARIANTS["optimized"].precision})  # as was told once
    task = _task(manifest, record, trained)
    served = task.served(folder) if isinstance(task, Decides) else None
    checked = _checked(task, folder / version / MODEL_FILE, golden, record, served)
    report("check", [checks.told(one, record.metrics, "trained") for one in checked])
    return record.model_copy(update={"checks": checked, "answers": labels_of(pipeline, raw, golden.outputs)})


def _task(manifest: Manifest, record: VersionRecord, trained: Trained | RunConfig) -> Task:
    """As it was prepared then. Raises DataError, UsageError."""
    if isinstance(trained, RunConfig):
        if (trained.recipe, trained.seed) != (manifest.recipe, record.seed):
            raise UsageError(f"the run is not that of {manifest.model_name}: another recipe or seed")
        config = trained
    else:
        told = {"recipe": manifest.recipe, "name": manifest.model_name, "seed": record.seed}
        config = make_config(told | {"data": trained.data, "target": trained.target}, {})
    collected = find(manifest.recipe).collect(config)
    if collected.sha256 != record.data.sha256:
        raise DataError(f"the data at {config.data} is not what {manifest.model_name} was trained on")
    return collected.prepare(config)


def _checked(
    task: Task, file: Path, golden: Golden, record: VersionRecord, served: Evaluation | None
) -> tuple[CheckRecord, ...]:
    if not isinstance(task, Measured):
        raise UsageError("the recipe can't measure a file by itself")
    limits = checks.Limits(record.tolerances)
    if record.precision == certificate.FULL_PRECISION and not isinstance(task, Fits):
        predict = _rebuilt(task, file, golden, record)
        found = checks.check(task, predict, file, golden.inputs, limits, record.precision, served=served)
        for each in found:
            _demand_metrics(each.metrics, record, file)
        return found
    checked = checks.check(
        task, lambda _: golden.outputs, file, golden.inputs, limits, record.precision, held_out=False
    )
    metrics = checks.metrics_of(task, checks.predictor_of(checks.session_of(file), task), served)
    _demand_metrics(metrics, record, file)
    held_out = CheckRecord(
        provider=checks.CPU.removesuffix("ExecutionProvider"),
        precision=record.precision,
        data="held-out",
        rows=record.data.rows.test,
        errors={},
        metrics=metrics,
    )
    return (*checked, held_out)


def _rebuilt(task: Task, file: Path, golden: Golden, record: VersionRecord) -> Predict:
    """In PyTorch, with the file's weights. Raises VerifyError where that is not who gave the golden outputs."""
    rebuilt = network_of(task, file)
    for name, array in rebuilt.predict(golden.inputs).items():
        what = f"output {name!r}, with the weights of {file}: PyTorch's"
        checks.demand_same(what, array, golden.outputs[name], record.tolerances[name])
    return rebuilt.predict


def _demand_metrics(metrics: Mapping[str, float], record: VersionRecord, file: Path) -> None:
    for name, value in metrics.items():
        if not np.isclose(value, record.metrics[name], rtol=0, atol=METRIC_TOLERANCE):
            raise VerifyError(f"{name} of {file} is {value:.4f}, the manifest says {record.metrics[name]:.4f}")
