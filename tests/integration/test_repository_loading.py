"""Model folders on disk, real ONNX Runtime: what loads, what is kept out, and the reason that is given."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import numpy as np
import pytest

from server.engine.onnxruntime import OnnxRuntimeEngine
from server.errors import ModelLoadFailed
from server.pipeline.base import Pipeline
from server.repository.certificate import (
    DataRecord,
    ErrorRecord,
    Manifest,
    RowCounts,
    Tolerance,
    VersionRecord,
    hash_files,
    write_golden,
    write_manifest,
)
from server.repository.repository import Repository
from server.types import Batch
from tests.support.onnx_models import CONFIG, WEIGHTS, linear, linear_folder, masked_folder


def no_pipeline(folder: Path) -> Pipeline:
    raise AssertionError(f"{folder.name} has no processing.yaml")


@pytest.fixture
def repository(tmp_path: Path) -> Repository:
    return Repository(tmp_path, OnnxRuntimeEngine(1), load_pipeline=no_pipeline, warmup_s=5.0)


def certify(folder: Path, versions: tuple[str, ...] = ("1",), atol: float = 1e-5) -> None:
    """Golden files of what `linear_folder` makes, and a manifest over all of it."""
    x = np.random.default_rng(0).random((11, 3), np.float32)
    for version in versions:
        write_golden(folder, version, {"x": x}, {"y": x @ WEIGHTS * np.float32(version)})
    record = VersionRecord(
        created="2026-01-01T00:00:00Z",
        opset=17,
        ir_version=8,
        seed=0,
        data=DataRecord(source="test", sha256="0" * 64, rows=RowCounts(train=1, validation=1, test=1)),
        metrics={},
        baseline={},
        environment={},
        tolerances={"y": Tolerance(atol=atol, rtol=1e-5)},
        errors={"y": ErrorRecord(max_abs=0, mean_abs=0)},
    )
    manifest = Manifest(
        model_name=folder.name,
        recipe="r",
        task="t",
        synthetic=True,
        versions=dict.fromkeys(versions, record),
        files=hash_files(folder),
    )
    write_manifest(folder, manifest)


def reason(repository: Repository, name: str) -> str:
    with pytest.raises(ModelLoadFailed) as caught:
        repository.load(name)
    assert "\n" not in caught.value.public_message
    assert caught.value.model_name == name
    return f"{caught.value.where}: {caught.value.problem}"


def flip_weight(path: Path) -> None:
    """Flip one bit of a weight in a model file: it still loads, and answers wrongly."""
    data = bytearray(path.read_bytes())
    at = data.index(WEIGHTS.tobytes()) + 4 * 3 + 2  # the fourth of six, in the mantissa
    data[at] ^= 0x40
    path.write_bytes(data)


def test_a_plain_triton_folder_loads_warm_and_uncertified(repository: Repository, tmp_path: Path) -> None:
    """No manifest, no golden files, no processing spec: `infer` works, and batch sizes have a cost."""
    linear_folder(tmp_path, "plain", versions=(1, 2), more="version_policy { all {} }")
    one, two = repository.load("plain")

    assert (one.version, two.version) == ("1", "2")
    assert not one.certified
    assert one.pipeline is None
    costs = one.costs_ns["cpu"][None]
    assert {1, 2, 4, 8} <= costs.keys()
    assert all(cost > 0 for cost in costs.values())
    x = np.ones((4, 3), np.float32)
    for model, factor in ((one, 1), (two, 2)):
        outputs = model.engine_model.instances[0].run(Batch("plain", model.version, 4, {"x": x}))
        np.testing.assert_allclose(outputs["y"], x @ WEIGHTS * factor)
    assert [(e.version, e.state) for e in repository.index()] == [("1", "READY"), ("2", "READY")]


def test_a_certified_model_loads_when_all_of_it_holds(repository: Repository, tmp_path: Path) -> None:
    """Hashes, golden outputs in batches and alone: then it is ready and certified."""
    certify(linear_folder(tmp_path, "good"))
    (model,) = repository.load("good")

    assert model.certified
    assert model.manifest is not None
    assert model.manifest.synthetic


def test_a_flipped_bit_under_a_manifest_names_the_file(repository: Repository, tmp_path: Path) -> None:
    """The hash finds it before the engine sees the file."""
    folder = linear_folder(tmp_path, "m")
    certify(folder)
    flip_weight(folder / "1" / "model.onnx")

    assert reason(repository, "m").startswith("1/model.onnx: differs from manifest.json: sha256 ")
    assert "1/model.onnx" in repository.index()[0].reason


def test_a_flipped_bit_without_a_manifest_is_found_by_the_golden_replay(repository: Repository, tmp_path: Path) -> None:
    """Golden files alone hold a model too, with the default tolerance."""
    folder = linear_folder(tmp_path, "m")
    certify(folder)
    (folder / "manifest.json").unlink()
    repository.load("m")
    flip_weight(folder / "1" / "model.onnx")

    assert "golden/1.npz: output 'y' is off by" in reason(repository, "m")


def test_a_flipped_bit_with_neither_is_beyond_us(repository: Repository, tmp_path: Path) -> None:
    """Nothing says what the plain model should answer; it loads, and is marked uncertified."""
    folder = linear_folder(tmp_path, "m")
    flip_weight(folder / "1" / "model.onnx")

    assert not repository.load("m")[0].certified


def test_a_golden_mismatch_under_a_valid_manifest_names_output_and_error(
    repository: Repository, tmp_path: Path
) -> None:
    """Another runtime, another machine: the hashes hold and the answers do not."""
    folder = linear_folder(tmp_path, "m")
    linear(folder / "1" / "model.onnx", weights=WEIGHTS + np.float32(0.25))
    certify(folder)
    text = reason(repository, "m")

    assert text.startswith("golden/1.npz: output 'y' is off by 0.")
    assert "limit" in text


def test_a_certified_version_stands_beside_a_damaged_one(
    repository: Repository, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Version 2 is damaged, version 3 certified by nobody: version 1 serves, and both reasons are shown."""
    folder = linear_folder(tmp_path, "m", versions=(1, 2), more="version_policy { all {} }")
    certify(folder, ("1", "2"))
    flip = folder / "2" / "model.onnx"
    flip.write_bytes(flip.read_bytes()[:-1])
    shutil.copytree(folder / "1", folder / "3")

    assert [model.version for model in repository.load("m")] == ["1"]
    states = {entry.version: (entry.state, entry.reason) for entry in repository.index()}
    assert states["1"] == ("READY", "")
    assert "differs from manifest.json" in states["2"][1]
    assert states["3"] == ("UNAVAILABLE", "manifest.json: does not list version 3")
    assert caplog.text.count("other versions of it serve") == 2


def test_one_broken_model_leaves_the_others_alone(repository: Repository, tmp_path: Path) -> None:
    """Every kind of broken folder beside a good one."""
    linear_folder(tmp_path, "good")
    (tmp_path / "empty").mkdir()
    (linear_folder(tmp_path, "truncated") / "1" / "model.onnx").write_bytes(b"\x08\x08\x12")
    os.mkfifo(linear_folder(tmp_path, "pipe") / "golden.fifo")
    linear_folder(tmp_path, "named").rename(tmp_path / "renamed")
    linear_folder(tmp_path, "wide", max_batch_size=0)

    outcome = {}
    for name in repository.names():
        try:
            outcome[name] = f"{len(repository.load(name))} version"
        except ModelLoadFailed as error:
            outcome[name] = f"{error.where}: {error.problem}"

    assert outcome["good"] == "1 version"
    assert outcome["pipe"] == "1 version"
    assert outcome["empty"].startswith("config.pbtxt: there is no such file")
    assert outcome["truncated"].startswith("1/model.onnx: is no ONNX model, protobuf parsing failed")
    assert outcome["renamed"].startswith("config.pbtxt: name: is 'named', the folder is 'renamed'")
    assert outcome["wide"].startswith("config.pbtxt: input[0]: config.pbtxt says input 'x' is FP32 [3]")
    ready = [entry.name for entry in repository.index() if entry.state == "READY"]
    assert ready == ["good", "pipe"]


def test_models_and_versions_may_be_links(repository: Repository, tmp_path: Path) -> None:
    """A volume or a release folder behind a link is a model like any other, certificate included."""
    store = tmp_path.parent / f"{tmp_path.name}-store"
    certify(linear_folder(store, "linked"))
    (tmp_path / "linked").symlink_to(store / "linked")
    folder = linear_folder(tmp_path, "version")
    (folder / "1").rename(store / "release")
    (folder / "1").symlink_to(store / "release")

    assert repository.load("linked")[0].certified
    assert len(repository.load("version")) == 1


def test_a_file_that_may_not_be_read_is_a_reason(repository: Repository, tmp_path: Path) -> None:
    """Permissions are the commonest fault of a mounted volume."""
    folder = linear_folder(tmp_path, "m")
    certify(folder)
    (folder / "1" / "model.onnx").chmod(0)
    if os.access(folder / "1" / "model.onnx", os.R_OK):
        pytest.skip("this user may read everything")
    assert reason(repository, "m") == "1/model.onnx: can't be read to be verified: Permission denied"
    (folder / "manifest.json").unlink()
    assert reason(repository, "m") == "1/model.onnx: can't be read: permission denied"


def test_a_model_without_a_batch_dimension_replays_and_warms_up_whole(repository: Repository, tmp_path: Path) -> None:
    """max_batch_size 0: shapes are whole, and one cost is measured."""
    folder = tmp_path / "whole"
    linear(folder / "1" / "model.onnx", batch=2)
    text = CONFIG.format(name="whole", max_batch_size=0, more="")
    (folder / "config.pbtxt").write_text(text.replace("dims: 3", "dims: [2, 3]").replace("dims: 2", "dims: [2, 2]"))
    x = np.ones((2, 3), np.float32)
    write_golden(folder, "1", {"x": x}, {"y": x @ WEIGHTS})

    (model,) = repository.load("whole")
    assert list(model.costs_ns["cpu"][None]) == [1]


def test_huge_numbers_in_a_config_are_answered_quickly(tmp_path: Path) -> None:
    """The largest max_batch_size serves within the warm-up's limit; impossible dims are a mismatch."""
    repository = Repository(tmp_path, OnnxRuntimeEngine(1), load_pipeline=no_pipeline, warmup_s=0.05)
    linear_folder(tmp_path, "rows", max_batch_size=2**31 - 1)
    folder = linear_folder(tmp_path, "dims")
    config = folder / "config.pbtxt"
    config.write_text(config.read_text().replace("dims: 3", f"dims: {2**63 - 1}"))

    assert 1 in repository.load("rows")[0].costs_ns["cpu"][None]
    assert "the model has FP32 [3]" in reason(repository, "dims")


def masked(tmp_path: Path, *, honoured: bool = True, more: str = "") -> Path:
    """A model with length buckets 4 and 8, and golden rows of length 3."""
    folder = masked_folder(tmp_path, "masked", masked=honoured, more=more)
    x = np.arange(18, dtype=np.float32).reshape(2, 3, 3)
    mask = np.ones((2, 3), np.int64)
    mean = x.mean(axis=1)
    write_golden(folder, "1", {"x": x, "mask": mask}, {"mean": mean, "tokens": x - mean[:, None]})
    return folder


def test_a_model_with_buckets_loads_warm_in_each(repository: Repository, tmp_path: Path) -> None:
    """Padded golden rows give the golden answers, and each bucket has its costs."""
    masked(tmp_path)
    (model,) = repository.load("masked")
    costs = model.costs_ns["cpu"]
    assert costs.keys() == {4, 8}
    assert all({1, 2, 4, 8} <= sizes.keys() for sizes in costs.values())


def test_a_model_that_padding_changes_is_kept_out(repository: Repository, tmp_path: Path) -> None:
    """A model that takes the mean over padding too would give wrong answers to whoever shares a batch."""
    pad = 'parameters { key: "pad_value" value { string_value: "x=9" } }'
    masked(tmp_path, honoured=False, more=pad)
    problem = reason(repository, "masked")
    assert 'parameters["length_buckets"]: padding the golden rows from 3 to 4 changes the answers' in problem
