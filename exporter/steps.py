"""From a configuration to a published model, step by step; what each step did is reported as it ends.

A run folder belongs to one configuration and one state of the data. `Run` holds both and hands each step to
the module that does it: `exporter.run`, `exporter.onnx`, `exporter.verify`, `exporter.publish`.
"""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path

from exporter import checks, onnx, run
from exporter.config import difference
from exporter.environment import differences, environment, revision
from exporter.errors import RunError, VerifyError
from exporter.folder import (
    CONFIG_FILE,
    DATA_FILE,
    ENVIRONMENT_FILE,
    EVALUATION_FILE,
    MODEL_FILE,
    read_config,
    read_evaluation,
    read_json,
    write_config,
    write_evaluation,
)
from exporter.publish import Certificate, Certify, Model, Published, publish
from exporter.recipes import find
from exporter.recipes.base import (
    Arrays,
    Configured,
    Decides,
    Dropped,
    Evaluation,
    Fits,
    RunConfig,
    Split,
    Task,
    Trained,
)
from exporter.report import write_report
from exporter.verify import verify
from server.engine.base import Accelerator
from server.errors import ServingError
from server.pipeline.base import Pipeline
from server.pipeline.load import load_pipeline
from server.repository.certificate import (
    CheckRecord,
    DataRecord,
    ErrorRecord,
    RowCounts,
    Tolerance,
    VersionRecord,
    labels_of,
)
from server.types import RawInput
from server.whole import replacing, write_text

LISTED = 5
"""Dropped rows that a report names; data.json has them all."""

Report = Callable[[str, Sequence[str]], None]
"""Told the name of a finished step and lines about it."""


class Run:
    """A run folder with its task."""

    def __init__(self, folder: Path, config: RunConfig, report: Report, task: Task | None = None) -> None:
        """Collects and prepares the data, unless that was done: then `task` is what came of it.

        Raises:
            DataError, UsageError: see `Recipe.collect` and `Collected.prepare`.
            RunError: the folder's checkpoint was trained on other data.
        """
        self.folder = folder
        self.config = config
        self._report = report
        self.task = task or _prepared(config, report, folder)
        write_text(folder / DATA_FILE, json.dumps(asdict(self.task.report), indent=2, ensure_ascii=False) + "\n")

    @classmethod
    def start(cls, folder: Path, config: RunConfig, report: Report, *, resume: bool) -> Run:
        """A new run (what an earlier one left in `folder` is removed), or with `resume` the one that is there.

        Nothing is removed before the data was found to be fit to train on.

        Raises:
            DataError, UsageError: see `Recipe.collect` and `Collected.prepare`.
            RunError: nothing to resume, or it has another configuration; `folder` holds something else.
        """
        if resume:
            found = read_config(folder)
            if found != config:
                raise RunError(f"{folder} has another configuration: {difference(found, config)}")
            return cls(folder, config, report)
        if folder.exists() and any(folder.iterdir()) and not (folder / CONFIG_FILE).exists():
            raise RunError(f"{folder} is not empty and is no run folder; name another with --run-dir")
        task = _prepared(config, report)
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        write_config(folder, config)
        write_text(folder / ENVIRONMENT_FILE, json.dumps(_environment(), indent=2) + "\n")
        return cls(folder, config, report, task)

    @classmethod
    def repeat(cls, earlier: Path, folder: Path, report: Report, *, resume: bool) -> Run:
        """A run of the configuration of an earlier one, in another folder; tells what differs from then.

        Raises:
            RunError: `earlier` is no run folder, or `folder` itself; or the data is another by now.
        """
        if folder.resolve() == earlier.resolve():
            raise RunError(f"{folder} is the run that is to be repeated; name another folder with --run-dir")
        config = read_config(earlier)
        before = read_json(earlier / ENVIRONMENT_FILE)
        wanted = read_json(earlier / DATA_FILE).get("sha256")
        changed = differences(before, _environment())
        report("repeat", [str(earlier), *(changed or ["in the same environment"])])
        run = cls.start(folder, config, report, resume=resume)
        if run.task.report.sha256 != wanted:
            raise RunError(f"the data at {config.data} is not what {earlier} was trained on")
        return run

    @classmethod
    def open(cls, folder: Path, report: Report) -> Run:
        """A run that was started earlier. Raises RunError if there is none."""
        return cls(folder, read_config(folder), report)

    def train(self) -> None:
        """Train, or go on training, and evaluate on the test split; done at once where both were done before."""
        trained = self._trained
        if not (self.folder / EVALUATION_FILE).exists():
            evaluation = self.task.evaluate(trained.predict)
            write_evaluation(self.folder, evaluation)
        evaluation = self.evaluation
        lines = [
            f"{name} {value:.4f} ({evaluation.baseline_name}: {evaluation.baseline[name]:.4f})"
            for name, value in evaluation.metrics.items()
        ]
        self._report("evaluate", [f"{self.task.size(Split.TEST)} test rows", *lines, *evaluation.notes])

    def write_report(self) -> Path:
        """Write report.html into the run's folder."""
        evaluated = (self.folder / EVALUATION_FILE).exists()
        path = write_report(self.folder, self.config, self.task, self.evaluation if evaluated else None)
        self._report("report", [str(path)])
        return path

    @property
    def evaluation(self) -> Evaluation:
        """Raises RunError where training has not come to its end."""
        return read_evaluation(self.folder)

    def export(self) -> Path:
        """Write the run's model.onnx and return its path. Raises ExportError."""
        path = self.folder / MODEL_FILE
        with replacing(path) as partial:
            self._trained.export(partial)
        opset, ir_version = onnx.versions_of(path)
        self._report("export", [f"{path}: {path.stat().st_size:,} bytes, opset {opset}, IR version {ir_version}"])
        return path

    def verify(self) -> None:
        """Compare the run's model.onnx with the trained network, in a folder of its own. Raises VerifyError."""
        folder = self.folder / "verify"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        self.task.write_processing(folder, self.evaluation)
        self._certify(folder, self.task.golden_inputs())

    def publish(self, repository: Path, *, replace: bool, accelerators: tuple[Accelerator, ...] = ()) -> Published:
        """Verify once more, in the folder to be, and publish. Raises PublishError, VerifyError."""
        model = self._to_publish(self.config.name, self.model_file, self._certify, self.evaluation)
        return self._publish(dataclasses.replace(model, accelerators=accelerators), repository, replace)

    def publish_copy(
        self, file: Path, precision: str, repository: Path, *, name: str, replace: bool, max_drop: float
    ) -> Published:
        """Publish `file`, a copy of the model in another precision, with its own answers as the golden ones.

        A model of its own has a threshold or a margin of its own, by the copy's answers to the validation rows. A
        version of the run's model shares that of all its versions: then what hangs on it may fall by `max_drop`.

        Raises:
            PublishError: as `publish`.
            VerifyError: as `publish`; or with the shared threshold or margin the copy loses more than `max_drop`.
        """
        evaluation = self.evaluation
        if isinstance(self.task, Decides):
            predict = checks.predictor_of(checks.session_of(file), self.task)
            if name == self.config.name:
                _demand_shared(self.task.decided(predict, evaluation), evaluation, max_drop)
            else:
                evaluation = self.task.decide(predict, evaluation)

        def certify(folder: Path, raw: Sequence[RawInput]) -> Certificate:
            return self._certify_copy(folder, raw, file, precision, evaluation)

        return self._publish(self._to_publish(name, file, certify, evaluation), repository, replace)

    def _to_publish(self, name: str, file: Path, certify: Certify, evaluation: Evaluation) -> Model:
        task = self.task
        return Model(
            name=name,
            recipe=self.config.recipe,
            synthetic=task.report.synthetic,
            inputs=task.inputs,
            outputs=task.outputs,
            max_batch_size=task.max_batch_size,
            model_file=file,
            write_processing=lambda folder: task.write_processing(folder, evaluation),
            golden_inputs=task.golden_inputs(),
            certify=certify,
            parameters=task.parameters if isinstance(task, Configured) else {},
        )

    def _publish(self, model: Model, repository: Path, replace: bool) -> Published:
        published = publish(model, repository, replace=replace)
        lines = [f"{published.folder}, version {published.version}"]
        if not published.atomic:
            lines.append("this file system can't exchange folders: the model was away for a moment")
        self._report("publish", lines)
        return published

    @property
    def model_file(self) -> Path:
        """The exported model. Raises RunError."""
        path = self.folder / MODEL_FILE
        if not path.exists():
            raise RunError(f"{path} is not there; write it with: export")
        return path

    @cached_property
    def _trained(self) -> Trained:
        trained = self.task.fit(self.folder) if isinstance(self.task, Fits) else self._trained_by_the_loop()
        self._report("train", [f"{trained.framework}: {trained.size}; in {self.folder}"])
        return trained

    def _trained_by_the_loop(self) -> Trained:
        config = self.config
        network = run.train(self.task, config.training, config.seed, self.folder, threads=config.threads)
        return onnx.TrainedNetwork(self.task, network)

    def _certify(self, folder: Path, raw: Sequence[RawInput]) -> Certificate:
        pipeline, inputs = self._preprocessed(folder, raw)
        trained = self._trained
        verified = verify(self.task, trained.predict, self.model_file, inputs, trained.framework)
        rows, who = len(next(iter(inputs.values()))), f"{trained.framework} and ONNX Runtime"
        self._report(
            "verify",
            [
                f"{name}: {who} differ by at most {error.max_abs:.2e} in batches of 1 and {rows}"
                for name, error in verified.errors.items()
            ],
        )
        errors = {name: ErrorRecord(**asdict(error)) for name, error in verified.errors.items()}
        limits = checks.Limits(self._tolerances)
        records = checks.check(self.task, trained.predict, self.model_file, verified.inputs, limits)
        metrics = self.evaluation.metrics
        self._report("check", [checks.told(record, metrics, trained.framework) for record in records])
        record = self._record(errors, records, labels_of(pipeline, raw, verified.outputs))
        return Certificate(verified.inputs, verified.outputs, record)

    def _certify_copy(
        self, folder: Path, raw: Sequence[RawInput], file: Path, precision: str, served: Evaluation
    ) -> Certificate:
        pipeline, inputs = self._preprocessed(folder, raw)
        predict = checks.predictor_of(checks.session_of(file), self.task)
        outputs = predict(inputs)
        tolerances = checks.own_tolerances(predict, inputs, outputs)
        limits, trained = checks.Limits(None, None), self._trained.framework
        records = checks.check(self.task, self._trained.predict, file, inputs, limits, precision, served=served)
        self._report("check", [checks.told(record, self.evaluation.metrics, trained) for record in records])
        golden, held_out = records[0], records[1]
        record = self._record(golden.errors, records, labels_of(pipeline, raw, outputs)).model_copy(
            update={"precision": precision, "tolerances": tolerances, "metrics": dict(held_out.metrics)}
        )
        return Certificate(inputs, outputs, record)

    def _preprocessed(self, folder: Path, raw: Sequence[RawInput]) -> tuple[Pipeline, Arrays]:
        try:
            pipeline = load_pipeline(folder)
            return pipeline, pipeline.preprocess(raw)
        except ServingError as error:
            raise VerifyError(f"the pipeline that was written refuses a golden input: {error}") from error

    @property
    def _tolerances(self) -> dict[str, Tolerance]:
        limits = self.task.tolerances
        return {name: Tolerance(atol=limit.absolute, rtol=limit.relative) for name, limit in limits.items()}

    def _record(
        self, errors: Mapping[str, ErrorRecord], records: Sequence[CheckRecord], answers: tuple[str, ...]
    ) -> VersionRecord:
        opset, ir_version = onnx.versions_of(self.model_file)
        task, evaluation = self.task, self.evaluation
        sizes = {split.value: task.size(split) for split in Split}
        return VersionRecord(
            created=datetime.now(UTC).isoformat(timespec="seconds"),
            opset=opset,
            ir_version=ir_version,
            seed=self.config.seed,
            data=DataRecord(source=task.report.source, sha256=task.report.sha256, rows=RowCounts(**sizes)),
            metrics=dict(evaluation.metrics),
            baseline={"name": evaluation.baseline_name, **evaluation.baseline},
            environment=environment(),
            tolerances=self._tolerances,
            errors=dict(errors),
            answers=answers,
            checks=tuple(records),
        )


def _prepared(config: RunConfig, report: Report, folder: Path | None = None) -> Task:
    """Collect and prepare the data; of a run that is there, by its `folder`, it must be the data of then."""
    collected = find(config.recipe).collect(config)
    path = folder / DATA_FILE if folder is not None else None
    if path is not None and path.exists() and read_json(path).get("sha256") != collected.sha256:
        raise RunError(f"the data at {config.data} is not what {folder} was trained on; train anew")
    report("collect", [collected.source, f"{collected.rows} rows, sha256 {collected.sha256[:12]}"])
    task = collected.prepare(config)
    told = task.report
    lines = [*_listed("broken", told.broken), *_listed("duplicate", told.duplicates)]
    for split, counts in told.rows.items():
        by_label = ", ".join(f"{label}: {count}" for label, count in counts.items())
        lines.append(f"{split} {sum(counts.values())} rows ({by_label})")
    report("prepare", [*lines, *told.notes])
    return task


def _environment() -> dict[str, str]:
    return environment() | {"revision": revision()}


def is_within(drop: float, max_drop: float) -> bool:
    """Whether a metric falls by no more than is allowed, but for rounding."""
    return drop <= max_drop + 1e-12


def _demand_shared(found: Mapping[str, float], evaluation: Evaluation, max_drop: float) -> None:
    """Raises VerifyError where what was found is less than the run's by more than `max_drop`."""
    for name, value in found.items():
        before = evaluation.metrics[name]
        if not is_within(before - value, max_drop):
            raise VerifyError(
                f"{name} falls from {before:.4f} to {value:.4f} with what was chosen for the model, which all its "
                "versions share; as a model of its own (--as) it has its own"
            )


def _listed(kind: str, dropped: Sequence[Dropped]) -> list[str]:
    lines = [f"{len(dropped)} {kind} rows dropped"]
    lines += [f"  {item.where}: {item.reason}" for item in dropped[:LISTED]]
    if len(dropped) > LISTED:
        lines.append(f"  and {len(dropped) - LISTED} more, all of them in {DATA_FILE}")
    return lines
