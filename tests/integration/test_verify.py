"""Export and verification, with the real PyTorch, ONNX and ONNX Runtime."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from torch import nn

from exporter import onnx as exporting
from exporter.errors import ExportError, VerifyError
from exporter.recipes.base import Arrays, Predict, Split, Tolerance
from exporter.run import predictor
from exporter.verify import verify
from server.tensor import TensorSpec
from tests.support.models import PointsTask


@pytest.fixture(scope="module")
def trained() -> tuple[PointsTask, nn.Module]:
    task = PointsTask()
    torch.manual_seed(0)
    return task, task.network().eval()


@pytest.fixture(scope="module")
def exported(trained: tuple[PointsTask, nn.Module], tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("exported") / "model.onnx"
    exporting.export(*trained, path)
    return path


@pytest.fixture
def golden(trained: tuple[PointsTask, nn.Module]) -> Arrays:
    return trained[0].batch(Split.TEST, np.arange(5), 0)[0]


@pytest.fixture
def predict(trained: tuple[PointsTask, nn.Module]) -> Predict:
    return predictor(*trained)


def edited(path: Path, target: Path, edit: Callable[[onnx.ModelProto], None]) -> Path:
    model = onnx.load(path)
    edit(model)
    onnx.save(model, target)
    return target


def test_the_file_is_one_that_older_runtimes_read(exported: Path) -> None:
    """Opset 18 and IR version 10 are what ONNX Runtime 1.19 reads; the weights are inside."""
    assert exporting.versions_of(exported) == (18, 10)
    assert [path.name for path in exported.parent.iterdir()] == ["model.onnx"]


def test_the_file_says_nothing_of_the_machine(exported: Path) -> None:
    """No path of a source file, no stack trace."""
    content = exported.read_bytes()
    assert str(Path(__file__).parents[2]).encode() not in content
    assert b"stack_trace" not in content


def test_the_same_network_gives_the_same_bytes(
    trained: tuple[PointsTask, nn.Module], exported: Path, tmp_path: Path
) -> None:
    """A model that did not change has the same hash."""
    exporting.export(*trained, tmp_path / "again.onnx")
    assert (tmp_path / "again.onnx").read_bytes() == exported.read_bytes()


def test_a_true_copy_passes_with_its_errors_measured(
    trained: tuple[PointsTask, nn.Module], exported: Path, predict: Predict, golden: Arrays
) -> None:
    """The golden outputs are PyTorch's, and the error is small and honest."""
    verified = verify(trained[0], predict, exported, golden)
    np.testing.assert_array_equal(verified.outputs["logits"], predict(golden)["logits"])
    assert 0 <= verified.errors["logits"].mean_abs <= verified.errors["logits"].max_abs < 1e-5


def test_a_changed_weight_fails_and_names_the_output(
    trained: tuple[PointsTask, nn.Module], exported: Path, predict: Predict, golden: Arrays, tmp_path: Path
) -> None:
    """One bias off by 0.01 is more than the tolerance."""

    def shift(model: onnx.ModelProto) -> None:
        bias = next(i for i in model.graph.initializer if list(i.dims) == [2])
        bias.CopyFrom(onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(bias) + np.float32(0.01), bias.name))

    with pytest.raises(VerifyError, match=r"'logits'.*off by 0\.01"):
        verify(trained[0], predict, edited(exported, tmp_path / "m.onnx", shift), golden)


def test_the_tolerance_is_the_tasks_own(
    exported: Path, trained: tuple[PointsTask, nn.Module], golden: Arrays, predict: Predict
) -> None:
    """What is off by 0.01 passes where 0.1 is allowed, and fails where 0.001 is."""
    task = PointsTask()

    def shifted(arrays: Arrays) -> Arrays:
        return {"logits": predict(arrays)["logits"] + np.float32(0.01)}

    task.tolerances = {"logits": Tolerance(absolute=0.1, relative=0)}
    assert verify(task, shifted, exported, golden).errors["logits"].max_abs == pytest.approx(0.01, rel=1e-3)
    task.tolerances = {"logits": Tolerance(absolute=0.001, relative=0)}
    with pytest.raises(VerifyError):
        verify(task, shifted, exported, golden)


def test_a_model_that_mixes_its_rows_fails(tmp_path: Path) -> None:
    """Right as one batch and wrong row by row: dynamic batching would change answers."""

    class Mixing(nn.Module):
        def forward(self, point: torch.Tensor) -> torch.Tensor:
            return point - point.mean(dim=0, keepdim=True)

    task, network = PointsTask(), Mixing().eval()
    exporting.export(task, network, tmp_path / "m.onnx")
    golden = task.batch(Split.TEST, np.arange(5), 0)[0]
    with pytest.raises(VerifyError, match="batch of 1"):
        verify(task, predictor(task, network), tmp_path / "m.onnx", golden)


def test_a_fixed_batch_dimension_fails(
    trained: tuple[PointsTask, nn.Module], exported: Path, predict: Predict, golden: Arrays, tmp_path: Path
) -> None:
    """The server sends batches of every size."""

    def fix(model: onnx.ModelProto) -> None:
        model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 5

    with pytest.raises(VerifyError, match="fixed batch dimension of 5"):
        verify(trained[0], predict, edited(exported, tmp_path / "m.onnx", fix), golden)


@pytest.mark.parametrize(
    ("spec", "problem"),
    [
        (TensorSpec("pixel", "FP32", (2,)), "inputs are"),
        (TensorSpec("point", "FP64", (2,)), "FP64"),
        (TensorSpec("point", "FP32", (3,)), "dims"),
    ],
)
def test_tensors_that_are_not_the_tasks_fail(
    spec: TensorSpec, problem: str, exported: Path, predict: Predict, golden: Arrays
) -> None:
    """Name, datatype and dims go into config.pbtxt, so they have to be the file's."""
    task = PointsTask()
    task.inputs = (spec,)
    with pytest.raises(VerifyError, match=problem):
        verify(task, predict, exported, golden)


def test_a_network_that_gives_nan_fails(exported: Path, golden: Arrays) -> None:
    """NaN equals NaN in a comparison of golden files; a model that gives it is not published."""
    with pytest.raises(VerifyError, match="not finite"):
        verify(PointsTask(), lambda arrays: {"logits": np.full((5, 2), np.nan, np.float32)}, exported, golden)


def test_one_golden_row_is_not_enough(exported: Path, predict: Predict, golden: Arrays) -> None:
    """With one row, batches of 1 and of N are the same thing."""
    with pytest.raises(VerifyError, match="too few"):
        verify(PointsTask(), predict, exported, {name: array[:1] for name, array in golden.items()})


def test_a_file_that_is_no_model_fails(tmp_path: Path, predict: Predict, golden: Arrays) -> None:
    """Neither module lets a foreign exception out."""
    (tmp_path / "m.onnx").write_bytes(b"\x00not onnx")
    with pytest.raises(VerifyError, match="can't load"):
        verify(PointsTask(), predict, tmp_path / "m.onnx", golden)
    with pytest.raises(ExportError):
        exporting.versions_of(tmp_path / "m.onnx")


def test_a_network_that_can_not_be_exported_leaves_no_file(tmp_path: Path) -> None:
    """Python control flow on values has no form in ONNX."""

    class Branching(nn.Module):
        def forward(self, point: torch.Tensor) -> torch.Tensor:
            return point if point.sum().item() > 0 else -point

    with pytest.raises(ExportError):
        exporting.export(PointsTask(), Branching().eval(), tmp_path / "m.onnx")
    assert list(tmp_path.iterdir()) == []
