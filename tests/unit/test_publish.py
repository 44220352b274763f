"""Into the repository: all of a model, or nothing."""

from __future__ import annotations

import resource
import threading
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from exporter import publish as publishing
from exporter import swap
from exporter.errors import PublishError, UsageError, VerifyError
from exporter.publish import Certificate, Model, accelerator, publish
from server.pipeline.load import load_pipeline
from server.repository import certificate
from server.repository.certificate import DataRecord, RowCounts, Tolerance, VersionRecord
from server.repository.model_config import read_model_config
from server.tensor import TensorSpec
from server.types import ImageInput, RawInput
from tests.support.drawn_digits import STYLES, draw, encode
from tests.support.models import SMALL_SPEC, write_image_model

RAW = [ImageInput(encode(draw("3", STYLES[0]), "PNG"), "image/png")]
RECORD = VersionRecord(
    created="2026-01-01T00:00:00+00:00",
    opset=18,
    ir_version=10,
    seed=0,
    data=DataRecord(source="drawings", sha256="0" * 64, rows=RowCounts(train=1, validation=1, test=1)),
    metrics={"accuracy": 1.0},
    baseline={"accuracy": 0.5, "name": "a coin"},
    environment={},
    tolerances={"logits": Tolerance(atol=1e-4, rtol=1e-3)},
    errors={},
)


def certify(folder: Path, raw: Sequence[RawInput]) -> Certificate:
    inputs = load_pipeline(folder).preprocess(raw)
    return Certificate(inputs, {"logits": np.zeros((len(raw), 2), dtype=np.float32)}, RECORD)


@pytest.fixture
def model(tmp_path: Path) -> Model:
    file = tmp_path / "model.onnx"
    file.write_bytes(b"weights one")
    return Model(
        name="pets",
        recipe="image-classification",
        synthetic=False,
        inputs=(TensorSpec("image", "FP32", (1, 4, 6)),),
        outputs=(TensorSpec("logits", "FP32", (2,)),),
        max_batch_size=8,
        model_file=file,
        write_processing=lambda folder: (write_image_model(folder), None)[1],
        golden_inputs=RAW,
        certify=certify,
    )


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    return tmp_path / "repository"


def tree(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def changed(model: Model) -> Model:
    """The same model with another processing."""
    spec = SMALL_SPEC.model_copy(update={"layout": "NHWC"})
    return replace(model, write_processing=lambda folder: (write_image_model(folder, spec), None)[1])


def test_a_new_model_is_a_whole_folder_that_the_server_accepts(model: Model, repository: Path) -> None:
    """Config, processing, labels, weights, golden files and a manifest that certifies each of them."""
    published = publish(model, repository)
    folder = repository / "pets"
    assert (published.folder, published.version, published.atomic) == (folder, "1", True)
    manifest = certificate.read_manifest(folder)
    assert manifest is not None
    certificate.verify_files(folder, manifest, "1")
    config = read_model_config(folder)
    assert (config.max_batch_size, config.inputs, config.outputs) == (8, model.inputs, model.outputs)
    assert config.dynamic_batching is not None
    assert config.instance_groups[0].kind == "KIND_AUTO"
    assert config.label_filenames == {"logits": "labels.txt"}
    golden = certificate.read_golden(folder, "1")
    assert golden is not None
    certificate.replay_preprocessing("pets", golden, certificate.read_raw(folder), load_pipeline(folder))
    assert [path.name for path in repository.iterdir()] == ["pets"], "nothing else is left behind"


def test_accelerators_of_a_gpu_stand_in_the_config_as_the_server_reads_them(model: Model, repository: Path) -> None:
    """On request; a version more must ask for the same, for all versions share the config."""
    wanted = tuple(accelerator(text) for text in ("tensorrt:precision_mode=FP16,trt_engine_cache_enable=1", "cuda"))
    folder = publish(replace(model, accelerators=wanted), repository).folder
    config = read_model_config(folder)
    assert config.gpu_accelerators == wanted
    assert dict(wanted[0].parameters) == {"precision_mode": "FP16", "trt_engine_cache_enable": "1"}
    with pytest.raises(PublishError, match=r"another config\.pbtxt"):
        publish(model, repository)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("openvino", "'openvino' is not served here; known are tensorrt, cuda"),
        ("tensorrt:precision_mode=FP8", r'parameters\["precision_mode"\]: is .FP8., it must be FP32'),
        ("tensorrt:wings=2", r'parameters\["wings"\]: is not honoured'),
    ],
    ids=["another name", "another value", "another key"],
)
def test_an_accelerator_that_no_server_would_load_is_not_published(
    model: Model, repository: Path, text: str, problem: str
) -> None:
    """The server's own reader says so, before anything is there."""
    with pytest.raises(PublishError, match=problem):
        publish(replace(model, accelerators=(accelerator(text),)), repository)
    assert list(repository.iterdir()) == []


@pytest.mark.parametrize("text", ["", ":a=b", "tensorrt:a", "tensorrt:=b", "tensorrt:a="])
def test_an_accelerator_is_a_name_with_keys_and_values(text: str) -> None:
    """What is wanted is said."""
    with pytest.raises(UsageError, match="NAME:KEY=VALUE"):
        accelerator(text)


def test_a_second_training_becomes_a_further_version(model: Model, repository: Path) -> None:
    """The first version's files are untouched, and both are certified."""
    publish(model, repository)
    before = tree(repository / "pets")
    model.model_file.write_bytes(b"weights two")
    assert publish(model, repository).version == "2"
    after = tree(repository / "pets")
    told = {"manifest.json", "README.md"}
    assert {name: after[name] for name in before if name not in told} == {
        name: content for name, content in before.items() if name not in told
    }
    manifest = certificate.read_manifest(repository / "pets")
    assert manifest is not None
    for version in ("1", "2"):
        certificate.verify_files(repository / "pets", manifest, version)
    assert (after["1/model.onnx"], after["2/model.onnx"]) == (b"weights one", b"weights two")


def test_a_further_version_keeps_the_raw_golden_inputs(model: Model, repository: Path) -> None:
    """raw.json belongs to all versions: one of another split would not fit the first version's golden rows."""
    publish(model, repository)
    other = [ImageInput(encode(draw("8", STYLES[1]), "PNG"), "image/png")] * 2
    publish(replace(model, golden_inputs=other), repository)
    folder = repository / "pets"
    assert certificate.read_raw(folder) == RAW
    for version in ("1", "2"):
        golden = certificate.read_golden(folder, version)
        assert golden is not None
        certificate.replay_preprocessing("pets", golden, certificate.read_raw(folder), load_pipeline(folder))


def test_another_processing_is_refused_and_changes_nothing(model: Model, repository: Path) -> None:
    """Versions share processing.yaml: a further version must not change what the others are fed."""
    publish(model, repository)
    before = tree(repository)
    with pytest.raises(PublishError, match=r"processing\.yaml.*--replace"):
        publish(changed(model), repository)
    assert tree(repository) == before


def test_replace_takes_the_place_of_all_versions(model: Model, repository: Path) -> None:
    """With replace, the model starts again at version 1 and nothing of the old one remains."""
    publish(model, repository)
    publish(model, repository)
    model.model_file.write_bytes(b"weights new")
    assert publish(changed(model), repository, replace=True).version == "1"
    files = tree(repository / "pets")
    assert files["1/model.onnx"] == b"weights new"
    assert "2/model.onnx" not in files
    assert [path.name for path in repository.iterdir()] == ["pets"]


def test_a_model_that_was_not_published_from_here_is_left_alone(model: Model, repository: Path) -> None:
    """Without a manifest nobody knows what the folder holds."""
    write_image_model(repository / "pets")
    before = tree(repository)
    with pytest.raises(PublishError, match="--replace"):
        publish(model, repository)
    assert tree(repository) == before


@pytest.mark.parametrize("first", [True, False], ids=["a new model", "a further version"])
def test_a_failed_verification_publishes_nothing(model: Model, repository: Path, first: bool) -> None:
    """The repository is as it was, to the byte."""
    if not first:
        publish(model, repository)
    before = tree(repository) if repository.exists() else {}

    def refuse(folder: Path, raw: Sequence[RawInput]) -> Certificate:
        raise VerifyError("off by 3")

    with pytest.raises(VerifyError):
        publish(replace(model, certify=refuse), repository)
    assert tree(repository) == before
    assert not [path for path in repository.iterdir() if path.name.startswith(".")]


class Died(BaseException):
    """The process ends: no handler of ours runs."""


STEPS = ["write_processing", "certify", "write_manifest", "flush", "swap"]


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("first", [True, False], ids=["a new model", "a further version"])
def test_a_publisher_that_dies_leaves_no_half_model(
    model: Model, repository: Path, step: str, first: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever the moment, the repository shows the old state, and the next publisher cleans up and succeeds."""
    if not first:
        publish(model, repository)
    before = tree(repository / "pets") if not first else {}

    def die(*_: object, **__: object) -> None:
        raise Died

    with monkeypatch.context() as patch:
        # Nothing that a killed process would not have done: its clean-up is taken away too.
        patch.setattr(publishing.shutil, "rmtree", lambda path, **_: None)
        dying = model
        if step in ("write_processing", "certify"):
            dying = replace(model, **{step: die})
        elif step == "write_manifest":
            patch.setattr(certificate, "write_manifest", die)
        elif step == "flush":
            patch.setattr(swap, "flush", die)
        else:
            patch.setattr(swap, "_renameat2", die)
        with pytest.raises(Died):
            publish(dying, repository)
    visible = [path.name for path in repository.iterdir() if not path.name.startswith(".")]
    assert visible == ([] if first else ["pets"])
    if not first:
        assert tree(repository / "pets") == before
    assert publish(model, repository).version == ("1" if first else "2")
    assert [path.name for path in repository.iterdir()] == ["pets"]


@pytest.mark.parametrize("most", [20, 300, 5_000], ids=["the first file", "the configuration", "the weights"])
@pytest.mark.parametrize("first", [True, False], ids=["a new model", "a further version"])
def test_a_full_disk_leaves_the_repository_as_it_was(model: Model, repository: Path, most: int, first: bool) -> None:
    """Whichever file there is no room for, the error says so, and nothing is left of the attempt."""
    if not first:
        publish(model, repository)
    before = tree(repository) if repository.exists() else {}
    model.model_file.write_bytes(b"w" * 20_000)
    _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (most, hard))
    try:
        with pytest.raises(PublishError, match="can't be written"):
            publish(model, repository)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
    assert tree(repository) == before


def without_renameat2(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(swap, "_renameat2", lambda *_: False)


def test_without_an_exchange_two_renames_do_and_say_so(
    model: Model, repository: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Older kernels and other systems publish too; the answer says that it was not one step."""
    without_renameat2(monkeypatch)
    assert publish(model, repository).atomic
    second = publish(model, repository)
    assert (second.version, second.atomic) == ("2", False)
    assert [path.name for path in repository.iterdir()] == ["pets"]


def test_death_between_the_two_renames_is_healed(
    model: Model, repository: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The old model is put back before anything else is done."""
    publish(model, repository)
    before = tree(repository / "pets")
    without_renameat2(monkeypatch)
    rename = Path.rename

    def die_at_second(path: Path, target: Path) -> Path:
        if target.name == "pets":
            raise Died
        return rename(path, target)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", die_at_second)
        with pytest.raises(Died):
            publish(model, repository)
    assert not (repository / "pets").exists()
    with pytest.raises(PublishError):
        publish(changed(model), repository)
    assert tree(repository / "pets") == before


def test_publishers_take_turns(model: Model, repository: Path) -> None:
    """Two at once both get their version; neither overwrites the other's."""
    publish(model, repository)
    versions: list[str] = []
    threads = [threading.Thread(target=lambda: versions.append(publish(model, repository).version)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(versions) == ["2", "3", "4", "5"]


def test_create_never_replaces_what_is_there(tmp_path: Path) -> None:
    """Not even an empty folder, which a plain rename would take away."""
    staged, target = tmp_path / "staged", tmp_path / "target"
    staged.mkdir()
    target.mkdir()
    with pytest.raises(FileExistsError):
        swap.create(staged, target)
    assert staged.exists()


def test_an_unwritable_repository_is_an_error_that_says_so(model: Model, tmp_path: Path) -> None:
    """A file where the repository should be."""
    (tmp_path / "file").write_text("")
    with pytest.raises(PublishError, match="can't be written"):
        publish(model, tmp_path / "file" / "repository")
