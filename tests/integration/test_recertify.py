"""A model that was published before gets the certificate that a new one has, or an error that says why not."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper
from typer.testing import CliRunner

from exporter.cli import commands
from server.repository.certificate import hash_files, read_manifest, write_manifest

REPOSITORY = Path(__file__).parents[2] / "model_repository"

pytestmark = pytest.mark.training


@pytest.fixture
def earlier(tmp_path: Path) -> Path:
    """A committed model without what certificates had not at first."""
    folder = shutil.copytree(REPOSITORY / "breast_cancer", tmp_path / "breast_cancer")
    manifest = read_manifest(folder)
    assert manifest is not None
    record = manifest.versions["1"].model_copy(update={"answers": (), "checks": ()})
    write_manifest(folder, manifest.model_copy(update={"versions": {"1": record}}))
    return Path(folder)


def certified(folder: Path, data: str = "breast_cancer") -> tuple[int, str]:
    result = CliRunner().invoke(commands, ["certify", str(folder), "--data", data])
    return result.exit_code, " ".join(result.output.split())


def test_an_earlier_model_is_certified_with_what_a_new_one_has(earlier: Path) -> None:
    """Its files stay as they were; what is written is what the committed model has, which so holds on this machine."""
    code, output = certified(earlier)
    assert code == 0, output
    assert "113 held-out rows: logits off by " in output
    assert "0 best labels changed; accuracy 0.9735 (trained: 0.9735)" in output
    found, committed = read_manifest(earlier), read_manifest(REPOSITORY / "breast_cancer")
    assert found is not None
    assert committed is not None
    assert found.files == committed.files == hash_files(earlier)
    record, wanted = found.versions["1"], committed.versions["1"]
    assert record.answers == wanted.answers
    assert len(record.answers) > 10
    assert [check.metrics for check in record.checks] == [check.metrics for check in wanted.checks]


def test_another_file_or_other_data_is_not_certified(earlier: Path) -> None:
    """The error names the file, or the data; the manifest stays as it is."""
    before = (earlier / "manifest.json").read_bytes()
    assert certified(earlier, "fraud")[0] == 3
    manifest = read_manifest(earlier)
    assert manifest is not None
    record = manifest.versions["1"]
    better = record.model_copy(update={"metrics": record.metrics | {"accuracy": 0.99}})
    write_manifest(earlier, manifest.model_copy(update={"versions": {"1": better}}))
    code, output = certified(earlier)
    assert (code, "the manifest says 0.9900" in output) == (6, True)
    (earlier / "manifest.json").write_bytes(before)
    (earlier / "1" / "model.onnx").write_bytes(b"another")
    code, output = certified(earlier)
    assert (code, "1/model.onnx" in output) == (3, True)
    assert (earlier / "manifest.json").read_bytes() == before


def test_weights_that_gave_other_answers_are_not_taken_for_the_trained_ones(earlier: Path) -> None:
    """Another file with the hashes written anew: PyTorch with its weights does not give the golden outputs."""
    model = onnx.load(earlier / "1" / "model.onnx")
    bias = next(each for each in model.graph.initializer if each.name == "_shortcut.bias")
    bias.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(bias) + np.float32(0.1), bias.name))
    onnx.save(model, earlier / "1" / "model.onnx")
    manifest = read_manifest(earlier)
    assert manifest is not None
    write_manifest(earlier, manifest.model_copy(update={"files": hash_files(earlier)}))
    code, output = certified(earlier)
    assert (code, "PyTorch's" in output, "with the weights of" in output) == (6, True, True)
    bias.name = "other"
    onnx.save(model, earlier / "1" / "model.onnx")
    write_manifest(earlier, manifest.model_copy(update={"files": hash_files(earlier)}))
    code, output = certified(earlier)
    assert (code, "does not hold the weights _shortcut.bias" in output) == (6, True)


@pytest.mark.parametrize("name", ["digits", "breast_cancer", "fraud"])
def test_the_committed_models_have_answers_and_checks(name: str) -> None:
    """The server replays their labels at each load."""
    manifest = read_manifest(REPOSITORY / name)
    assert manifest is not None
    for record in manifest.versions.values():
        assert record.answers
        assert [check.data for check in record.checks] == ["golden", "held-out"]
        for check in record.checks:
            assert 0 < check.errors["logits"].mean_abs < check.errors["logits"].max_abs < 1e-5
            assert (check.changed_top1, check.limits) == (0, record.tolerances)
