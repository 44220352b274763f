"""A built model as a folder of a repository: config.pbtxt, a version, golden prompts, the manifest. All or nothing."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

from tritonclient.grpc import model_config_pb2 as pb

from exporter import swap
from exporter.errors import PublishError
from exporter.generation.certify import Certified
from exporter.publish import Published
from server.engine.genai.options import INPUTS, OUTPUTS, PROMPT
from server.errors import ServingError
from server.repository import certificate
from server.repository.certificate import Manifest, VersionRecord
from server.repository.model_config import CONFIG_FILE, TEXT_BACKEND, write_model_config
from server.tensor import DATATYPES

Certify = Callable[[Path, str], tuple[Certified, VersionRecord]]
_FIRST = "1"


def stage(folder: Path, built: Path, name: str) -> None:
    """The folder without its certificate: what the server's engine needs to load it."""
    write_model_config(model_config(name), folder / CONFIG_FILE)
    shutil.copytree(built, folder / _FIRST)


def publish(built: Path, name: str, repository: Path, certify: Certify, *, replace: bool) -> Published:
    """Certify what was built in its folder, and publish it as version 1 of a model.

    Raises:
        PublishError: the model is there (unless `replace`), or the repository can't be written.
        VerifyError: it does not write as it should; nothing was changed.
    """
    target = repository / name
    staged, backup = repository / f".publishing-{name}", repository / f".replaced-{name}"
    try:
        repository.mkdir(parents=True, exist_ok=True)
        with swap.locked(repository):
            swap.recover(target, staged=staged, backup=backup)
            try:
                folder = staged / name
                folder.mkdir(parents=True)
                stage(folder, built, name)
                _fill(folder, name, certify)
                swap.flush(folder)
                if not target.exists():
                    swap.create(folder, target)
                    return Published(target, _FIRST, True)
                if not replace:
                    raise PublishError(f"{target} is there; use --replace or another --name")
                return Published(target, _FIRST, swap.exchange(folder, target, backup=backup))
            finally:
                if staged.exists():
                    shutil.rmtree(staged)
    except OSError as error:
        raise PublishError(f"{repository} can't be written: {error}") from error
    except ServingError as error:
        raise PublishError(str(error)) from error


def _fill(folder: Path, name: str, certify: Certify) -> None:
    certified, record = certify(folder, _FIRST)
    certificate.write_golden(folder, _FIRST, certified.inputs, certified.outputs)
    manifest = Manifest(
        model_name=name,
        recipe="text-generation",
        task="text-generation",
        synthetic=False,
        versions={_FIRST: record},
        files=certificate.hash_files(folder),
    )
    certificate.write_manifest(folder, manifest)
    certificate.verify_files(folder, manifest, _FIRST)


def model_config(name: str) -> pb.ModelConfig:
    """With all that the backend can take and tell."""
    message = pb.ModelConfig(
        name=name,
        backend=TEXT_BACKEND,
        model_transaction_policy=pb.ModelTransactionPolicy(decoupled=True),
        instance_group=[pb.ModelInstanceGroup(kind=pb.ModelInstanceGroup.KIND_CPU, count=1)],
    )
    for tensor, datatype in INPUTS.items():
        # -1 for the prompt: golden files have several. A request has one.
        dims, optional = ([-1], False) if tensor == PROMPT else ([1], True)
        message.input.add(name=tensor, data_type=DATATYPES[datatype].config, dims=dims, optional=optional)
    for tensor, datatype in OUTPUTS.items():
        message.output.add(name=tensor, data_type=DATATYPES[datatype].config, dims=[-1])
    return message
