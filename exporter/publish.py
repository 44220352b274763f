"""A verified model into the repository: all of it, or nothing.

The folder is put together beside the models (``.publishing-<name>``: hidden, so nobody serves it; on the same
file system, so a rename is enough), flushed to the disk, loaded back as the server would, and only then
moved in one step. A publisher that is killed leaves the repository as it was; the next one cleans up.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tritonclient.grpc import model_config_pb2 as pb

from exporter import swap
from exporter.card import write_card
from exporter.errors import PublishError, UsageError
from server.engine.base import Accelerator
from server.engine.session import place
from server.errors import ServingError
from server.pipeline.base import PROCESSING_FILE
from server.pipeline.classification import LABELS_FILE
from server.pipeline.load import read_spec
from server.repository import certificate
from server.repository.certificate import Manifest, VersionRecord
from server.repository.model_config import CONFIG_FILE, read_model_config, write_model_config
from server.tensor import DATATYPES, Array, TensorSpec
from server.types import RawInput

MODEL_FILE = "model.onnx"
EXAMPLE_STEM = "example"
"""Files of that name are samples for people; all others that a recipe writes are shared by a model's versions."""
INFER_ONLY = "infer"
"""The task, in the manifest, of a model without processing.yaml."""

Certify = Callable[[Path, Sequence[RawInput]], "Certificate"]
"""Verify the model with the pipeline of a model's folder on raw inputs. Raises VerifyError."""


@dataclass(frozen=True, slots=True)
class Certificate:
    """What was verified: the golden arrays, and the record for the manifest."""

    inputs: Mapping[str, Array]
    outputs: Mapping[str, Array]
    record: VersionRecord


@dataclass(frozen=True, slots=True)
class Model:
    """What is to be published, before it is verified in its folder."""

    name: str
    recipe: str
    synthetic: bool
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    max_batch_size: int
    model_file: Path
    write_processing: Callable[[Path], None]
    golden_inputs: Sequence[RawInput]
    certify: Certify
    parameters: Mapping[str, str] = field(default_factory=dict)
    """Of config.pbtxt."""
    accelerators: tuple[Accelerator, ...] = ()
    """Of a GPU, for config.pbtxt's `optimization`; a server or a Triton without one passes them over."""


@dataclass(frozen=True, slots=True)
class Published:
    folder: Path
    version: str
    atomic: bool
    """False: the system has no exchange of folders, and the old model was away for a moment."""


def publish(model: Model, repository: Path, *, replace: bool = False) -> Published:
    """Publish `model` as a new model, as a further version of a model with the same processing, or in its place.

    A further version keeps the raw golden inputs of the model, so that they hold for all of its versions.

    Raises:
        PublishError: the model is there with another processing, other labels or another config (unless
            `replace`), or has no manifest; or the repository can't be written.
        VerifyError: the model does not answer as it should; nothing was changed.
    """
    target = repository / model.name
    staged, backup = repository / f".publishing-{model.name}", repository / f".replaced-{model.name}"
    try:
        repository.mkdir(parents=True, exist_ok=True)
        with swap.locked(repository):
            swap.recover(target, staged=staged, backup=backup)
            try:
                return _publish(model, target, staged, backup, replace)
            finally:
                if staged.exists():
                    shutil.rmtree(staged)
    except OSError as error:
        raise PublishError(f"{repository} can't be written: {error}") from error
    except ServingError as error:
        raise PublishError(str(error)) from error


def _publish(model: Model, target: Path, staged: Path, backup: Path, replace: bool) -> Published:
    # The server's own readers check that a folder's name and its files agree, so the name is right in there.
    folder = staged / model.name
    folder.mkdir(parents=True)
    model.write_processing(folder)
    config = model_config(model, labelled=(folder / LABELS_FILE).exists())
    write_model_config(config, folder / CONFIG_FILE)
    read_model_config(folder)
    previous = None
    raw: Sequence[RawInput] = model.golden_inputs
    if target.exists() and not replace:
        previous = _joinable(folder, target)
        raw = certificate.read_raw(target)
        shutil.copytree(target, folder, dirs_exist_ok=True)
    versions = dict(previous.versions) if previous else {}
    version = str(max((int(name) for name in versions), default=0) + 1)
    _fill(model, folder, version, versions, raw)
    # As the server will, wherever it has no GPU: what it would refuse of the config is refused before it is there.
    place(read_model_config(folder).engine_spec(folder, version), (), ())
    swap.flush(folder)
    if target.exists():
        return Published(target, version, swap.exchange(folder, target, backup=backup))
    swap.create(folder, target)
    return Published(target, version, True)


def _fill(
    model: Model, folder: Path, version: str, versions: Mapping[str, VersionRecord], raw: Sequence[RawInput]
) -> None:
    """Add one version to a model's folder, and certify the whole."""
    place = folder / version / MODEL_FILE
    place.parent.mkdir()
    shutil.copyfile(model.model_file, place)
    certified = model.certify(folder, raw)
    certificate.write_golden(folder, version, certified.inputs, certified.outputs)
    certificate.write_raw(folder, raw)
    manifest = Manifest(
        model_name=model.name,
        recipe=model.recipe,
        task=read_spec(folder).task if (folder / PROCESSING_FILE).exists() else INFER_ONLY,
        synthetic=model.synthetic,
        versions={**versions, version: certified.record},
        files=certificate.hash_files(folder),
    )
    certificate.write_manifest(folder, manifest)
    certificate.verify_files(folder, manifest, version)
    write_card(folder)


def _joinable(folder: Path, target: Path) -> Manifest:
    """The manifest of the model at `target`, if a version may be added to it. Raises PublishError."""
    manifest = certificate.read_manifest(target)
    if manifest is None:
        raise PublishError(
            f"{target} has no {certificate.MANIFEST_FILE}: it was not published from here; use --replace"
        )
    shared = {path.name for path in folder.iterdir() if path.stem != EXAMPLE_STEM}
    strange = {path.name for path in (target / name for name in (PROCESSING_FILE, LABELS_FILE)) if path.exists()}
    for name in sorted(shared | strange):
        here, there = folder / name, target / name
        if not (here.is_file() and there.is_file() and here.read_bytes() == there.read_bytes()):
            raise PublishError(
                f"{target} has another {name}, which all versions share; use --replace or another --name"
            )
    return manifest


def accelerator(text: str) -> Accelerator:
    """``tensorrt``, or with parameters ``tensorrt:precision_mode=FP16,trt_cuda_graph_enable=1``. Raises UsageError."""
    name, _, rest = text.partition(":")
    pairs = [pair.partition("=") for pair in rest.split(",") if pair]
    bad = next(("".join(pair) for pair in pairs if not (pair[0] and pair[2])), None)
    if not name or bad is not None:
        raise UsageError(f"--accelerator {text}: wanted is NAME, or NAME:KEY=VALUE,KEY=VALUE")
    return Accelerator(name, {key: value for key, _, value in pairs})


def model_config(model: Model, *, labelled: bool) -> pb.ModelConfig:
    """The config.pbtxt of a model, as Triton's own message: dynamic batching, one instance on what there is.

    `labelled`: labels.txt has the names of the first output's columns.
    """
    message = pb.ModelConfig(
        name=model.name,
        platform="onnxruntime_onnx",
        backend="onnxruntime",
        max_batch_size=model.max_batch_size,
        instance_group=[pb.ModelInstanceGroup(kind=pb.ModelInstanceGroup.KIND_AUTO, count=1)],
        dynamic_batching=pb.ModelDynamicBatching() if model.max_batch_size else None,
    )
    for key, value in model.parameters.items():
        message.parameters[key].string_value = value
    for accelerator in model.accelerators:
        message.optimization.execution_accelerators.gpu_execution_accelerator.add(
            name=accelerator.name, parameters=dict(accelerator.parameters)
        )
    for spec in model.inputs:
        message.input.add(name=spec.name, data_type=DATATYPES[spec.datatype].config, dims=spec.dims)
    for spec in model.outputs:
        labels = LABELS_FILE if labelled and spec.name == model.outputs[0].name else ""
        message.output.add(
            name=spec.name, data_type=DATATYPES[spec.datatype].config, dims=spec.dims, label_filename=labels
        )
    return message
