"""Loading one model: config, hashes, engine, golden replay, warm-up; version by version."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from server.chat import ChatTemplate, read_chat_template
from server.engine.base import Elsewhere, Engine, EngineModel, Instance
from server.errors import EngineFailure, ModelLoadFailed, ServingError
from server.pipeline.base import PROCESSING_FILE, Pipeline
from server.proto.triton import model_config_pb2 as pb
from server.repository.certificate import (
    MANIFEST_FILE,
    Manifest,
    Vouch,
    concerns,
    read_manifest,
    verify_code,
    verify_files,
    verify_shared,
)
from server.repository.config_text import CONFIG_FILE
from server.repository.golden import Golden, golden_file, read_golden, read_raw
from server.repository.load_counts import Stopwatch
from server.repository.model_config import All, ModelConfig, Specific, from_message, read_model_config, with_files
from server.repository.override import WHERE as OVERRIDING_CONFIG
from server.repository.replay import replay, replay_answers, replay_padded, replay_preprocessing
from server.repository.reshape import reshaped
from server.repository.tensors import misfit
from server.repository.trial import check_postprocessing, example_tensors
from server.repository.warmup import Costs, WarmUp, warm_up
from server.repository.warmup_samples import Rows, filling, read_samples, run_samples
from server.tensor import Array
from server.types import Batch

log = logging.getLogger(__name__)

_VERSION = re.compile(r"[1-9][0-9]{0,17}")
"""Triton's rule: other folders, and those with a leading zero, are no versions."""


@dataclass(frozen=True, slots=True)
class ServedModel:
    """A version that is loaded, verified and warm. Whoever takes it closes `engine_model`."""

    name: str
    version: str
    config: ModelConfig
    engine_model: EngineModel
    pipeline: Pipeline | None
    """None without processing.yaml: the model answers `infer` only."""
    manifest: Manifest | None
    """None: uncertified; its files were not held against anything."""
    costs_ns: Costs
    """What forward passes cost, from the warm-up."""
    load_s: Mapping[str, float] = field(default_factory=dict)
    """Seconds that its load took by phase; `golden` is there if it has golden files, and gave their outputs."""
    chat: ChatTemplate | None = None
    """Of a model that writes text: how a conversation becomes a prompt."""

    @property
    def certified(self) -> bool:
        return self.manifest is not None

    @property
    def devices(self) -> tuple[str, ...]:
        """Of each instance, wherever it is."""
        engine_model = self.engine_model
        if isinstance(engine_model, Elsewhere):
            return engine_model.devices
        return tuple(instance.device for instance in engine_model.instances)


Outcome = Mapping[str, ServedModel | ModelLoadFailed]
"""What became of each version; the key is empty for a failure of the whole model."""


Tell = Callable[[str, str], None]
"""Hears a version, and the stage that its load has come to."""


CheckComposition = Callable[[ModelConfig], None]
"""Holds an ensemble against the models that it is composed of. Raises ModelLoadFailed."""

_FIRST = "1"
"""The version of an ensemble without a version folder, which would be an empty one: git keeps none."""


def _nobody(_version: str, _stage: str) -> None:
    return None


def _anything(_config: ModelConfig) -> None:
    return None


def _overridden(message: pb.ModelConfig, folder: Path) -> ModelConfig:
    """The config of a load request. What is wrong with it is named by the parameter, not by a file."""
    try:
        return with_files(from_message(message, folder.name), folder)
    except ModelLoadFailed as error:
        where = error.where.replace(CONFIG_FILE, OVERRIDING_CONFIG, 1)
        raise ModelLoadFailed(folder.name, where, error.problem) from error


def failure_of(folder: Path, error: Exception) -> ModelLoadFailed:
    """`error` as a reason not to serve the model in `folder`, without a path of this machine.

    What nobody foresaw is logged with its traceback.
    """
    if isinstance(error, ModelLoadFailed):
        return error
    if isinstance(error, EngineFailure):
        failure = ModelLoadFailed(folder.name, "golden files", f"the forward pass failed: {error.detail}")
    elif isinstance(error, OSError) and error.filename:
        where = os.path.relpath(error.filename, folder)
        failure = ModelLoadFailed(folder.name, where, f"can't be read: {error.strerror}")
    else:
        log.error("model '%s' could not be loaded", folder.name, exc_info=error)
        problem = f"failed unexpectedly with {type(error).__name__}; the server's log has the traceback"
        failure = ModelLoadFailed(folder.name, "load", problem)
    failure.__cause__ = error
    return failure


@dataclass(frozen=True, slots=True)
class Loader:
    """How models are loaded here. `warmup_s` bounds the warm-up of one version."""

    engine: Engine
    load_pipeline: Callable[[Path], Pipeline]
    warmup_s: float
    vouch: Vouch | None = None
    """Who must have signed a model; None: nobody."""

    def load(
        self,
        folder: Path,
        overriding: pb.ModelConfig | None = None,
        tell: Tell = _nobody,
        check_composition: CheckComposition = _anything,
    ) -> dict[str, ServedModel | ModelLoadFailed]:
        """Every version that the policy asks for, loaded or with the reason why not; lowest first.

        `overriding`: the config, instead of that in the folder; `tell` hears what each version has come to;
        `check_composition` is called if it is an ensemble.

        Raises:
            ModelLoadFailed: what all versions share (config, manifest, pipeline) is at fault.
        """
        if self.vouch is not None and overriding is not None:
            raise ModelLoadFailed(
                folder.name, OVERRIDING_CONFIG, "is signed by nobody; only signed models are loaded here"
            )
        manifest = self._manifest(folder)
        config = self._config(folder, overriding)
        pipeline = self._pipeline(folder)
        if config.ensemble is not None:
            check_composition(config)
            return _ensemble(folder, config, manifest, pipeline)
        outcome: dict[str, ServedModel | ModelLoadFailed] = {}
        try:
            for version in versions_to_serve(folder, config):
                try:
                    outcome[version] = self._version(folder, config, manifest, pipeline, version, tell)
                except Exception as error:  # noqa: BLE001 - the other versions must go on
                    outcome[version] = failure_of(folder, error)
        except BaseException:
            for result in outcome.values():
                if isinstance(result, ServedModel):
                    result.engine_model.close()
            raise
        return outcome

    def needed(self, folder: Path, overriding: pb.ModelConfig | None = None) -> Callable[[str], bool]:
        """Which files `load` reads, of a folder that has all but what is in the versions' folders.

        Raises:
            ModelLoadFailed: the config is at fault, or there is no version.
        """
        versions = versions_to_serve(folder, self._config(folder, overriding))
        return lambda path: any(concerns(path, version) for version in versions)

    def _manifest(self, folder: Path) -> Manifest | None:
        """The certificate; what is used before a version is verified is held against it, code in any case."""
        manifest = read_manifest(folder, self.vouch)
        if manifest is not None:
            (verify_code if self.vouch is None else verify_shared)(folder, manifest)
        return manifest

    def _config(self, folder: Path, overriding: pb.ModelConfig | None) -> ModelConfig:
        return read_model_config(folder) if overriding is None else _overridden(overriding, folder)

    def _pipeline(self, folder: Path) -> Pipeline | None:
        if not (folder / PROCESSING_FILE).exists():
            return None
        try:
            return self.load_pipeline(folder)
        except ModelLoadFailed:
            raise
        except (ServingError, ValueError, KeyError, TypeError) as error:
            raise ModelLoadFailed(folder.name, PROCESSING_FILE, str(error)) from error

    def _version(
        self,
        folder: Path,
        config: ModelConfig,
        manifest: Manifest | None,
        pipeline: Pipeline | None,
        version: str,
        tell: Tell,
    ) -> ServedModel:
        tell(version, "verifying its files")
        if not (folder / version).is_dir():
            raise _no_folder(folder, version)
        watch = Stopwatch()
        with watch.phase("files"):
            if manifest is not None:
                verify_files(folder, manifest, version)
            golden = read_golden(folder, version)
            if golden is not None:
                _check_golden(config, golden)
                if pipeline is not None:
                    replay_preprocessing(config.name, golden, read_raw(folder), pipeline)
            samples = read_samples(config, folder)
            chat = read_chat_template(config.name, folder / version, f"{version}/") if config.writes_text else None
        tell(version, "loading it into the engine")
        with watch.phase("engine"):
            loaded = self.engine.load(config.engine_spec(folder, version))
        engine_model = reshaped(loaded, config.inputs, config.outputs)
        try:
            if golden is not None:
                with watch.phase("golden"):
                    for instance in engine_model.instances:
                        _replay(config, manifest, golden, instance)
                    if pipeline is not None and manifest is not None:
                        certified = manifest.versions[version].answers
                        replay_answers(config.name, golden, read_raw(folder), pipeline, certified)
            tell(version, "warming it up")
            with watch.phase("warmup"):
                run_samples(config, version, samples, engine_model.instances)
                # A model that writes text was warmed up by its engine: a pass of it is a whole text.
                plan = None if config.writes_text else _plan(config, version, golden, samples, self.warmup_s)
                costs = warm_up(engine_model.instances, plan) if plan is not None else {}
                if pipeline is not None:
                    _try_pipeline(config, version, pipeline, engine_model.instances[0])
        except BaseException:
            engine_model.close()
            raise
        return ServedModel(folder.name, version, config, engine_model, pipeline, manifest, costs, watch.seconds, chat)


def _plan(config: ModelConfig, version: str, golden: Golden | None, samples: Sequence[Rows], limit_s: float) -> WarmUp:
    """Batches are filled with what is most like the requests to come."""
    if golden is not None:
        return WarmUp(config, version, golden.inputs, limit_s, filled_with="golden rows")
    rows = filling(config, samples)
    if rows is not None:
        return WarmUp(config, version, rows, limit_s, filled_with="model_warmup")
    return WarmUp(config, version, None, limit_s)


def _no_folder(folder: Path, version: str) -> ModelLoadFailed:
    return ModelLoadFailed(folder.name, version, "version_policy asks for it and there is no such folder")


def _ensemble(
    folder: Path, config: ModelConfig, manifest: Manifest | None, pipeline: Pipeline | None
) -> dict[str, ServedModel | ModelLoadFailed]:
    """The versions of an ensemble: folders that may be empty, for nothing in them is read."""
    if manifest is not None or any(folder.glob("golden/*")):
        where = MANIFEST_FILE if manifest is not None else "golden"
        raise ModelLoadFailed(folder.name, where, "an ensemble is not certified as a whole; its steps' models are")
    if pipeline is not None:
        example_tensors(config, pipeline)
    outcome: dict[str, ServedModel | ModelLoadFailed] = {}
    for version in versions_to_serve(folder, config):
        if (folder / version).is_dir() or (version == _FIRST and not _versions(folder)):
            outcome[version] = ServedModel(folder.name, version, config, Elsewhere(), pipeline, None, {})
        else:
            outcome[version] = _no_folder(folder, version)
    return outcome


def versions_to_serve(folder: Path, config: ModelConfig) -> list[str]:
    """The versions that the policy picks, ascending.

    Raises:
        ModelLoadFailed: the folder has no version at all.
    """
    policy = config.version_policy
    if isinstance(policy, Specific):
        return [str(version) for version in policy.versions]
    found = _versions(folder)
    if not found:
        if config.ensemble is not None:
            return [_FIRST]
        raise ModelLoadFailed(
            folder.name, ".", f"has no version folder; put the model at 1/{config.default_model_filename}"
        )
    kept = found if isinstance(policy, All) else found[-policy.num_versions :]
    return [str(version) for version in kept]


def _versions(folder: Path) -> list[int]:
    """That have a folder, ascending."""
    return sorted(int(path.name) for path in folder.iterdir() if _VERSION.fullmatch(path.name) and path.is_dir())


def _check_golden(config: ModelConfig, golden: Golden) -> None:
    """The golden arrays must be feeds and results of this model, or the replay would say nothing clear."""
    where = golden_file(golden.version)
    wanted, known = {spec.name for spec in config.inputs}, {spec.name for spec in config.outputs}
    needed = {spec.name for spec in config.inputs if not spec.optional}
    if not needed <= set(golden.inputs) <= wanted:
        there = ", ".join(sorted(golden.inputs))
        raise ModelLoadFailed(
            config.name, where, f"has the inputs {there}; the model takes {', '.join(sorted(wanted))}"
        )
    if not set(golden.outputs) <= known:
        strange = ", ".join(sorted(set(golden.outputs) - known))
        raise ModelLoadFailed(config.name, where, f"has the output {strange}, which config.pbtxt does not")
    for spec in config.inputs:
        if spec.name in golden.inputs and (problem := misfit(golden.inputs[spec.name], spec, config.max_batch_size)):
            raise ModelLoadFailed(config.name, where, f"input {problem}")
    if config.max_batch_size:
        rows = {len(array) if array.ndim else 0 for array in (*golden.inputs.values(), *golden.outputs.values())}
        if len(rows) != 1 or 0 in rows:
            raise ModelLoadFailed(config.name, where, "its arrays must all have the same number of rows, 1 or more")


def _replay(config: ModelConfig, manifest: Manifest | None, golden: Golden, instance: Instance) -> None:
    """All rows in batches as large as the model takes, then the first row alone, then padded: all must hold."""
    tolerances = manifest.versions[golden.version].tolerances if manifest is not None else None

    def run(inputs: Mapping[str, Array]) -> Mapping[str, Array]:
        return _forward(config, golden.version, instance, inputs)

    replay(config.name, golden, run, tolerances)
    if config.max_batch_size:
        first = Golden(
            golden.version,
            {name: array[:1] for name, array in golden.inputs.items()},
            {name: array[:1] for name, array in golden.outputs.items()},
        )
        replay(config.name, first, run, tolerances)
    if config.buckets is not None:
        replay_padded(config.name, golden, config.buckets, run, tolerances)


def _forward(config: ModelConfig, version: str, instance: Instance, inputs: Mapping[str, Array]) -> Mapping[str, Array]:
    rows = len(next(iter(inputs.values()))) if config.max_batch_size else 1
    if config.sequence_batching is not None:
        # Each row is a sequence of its own.
        inputs = {**inputs, **config.sequence_batching.lone_inputs(rows, batched=config.max_batch_size > 0)}
    if not config.max_batch_size:
        return instance.run(Batch(config.name, version, 1, inputs))
    parts = []
    for start in range(0, rows, config.max_batch_size):
        part = {name: array[start : start + config.max_batch_size] for name, array in inputs.items()}
        parts.append(instance.run(Batch(config.name, version, min(config.max_batch_size, rows - start), part)))
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def _try_pipeline(config: ModelConfig, version: str, pipeline: Pipeline, instance: Instance) -> None:
    """One example all the way: a pipeline that does not fit its model must not be found out by a caller."""
    check_postprocessing(config, pipeline, _forward(config, version, instance, example_tensors(config, pipeline)))
