"""A run repeated from its folder, and what is said where that can't be."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from typer.testing import CliRunner

from exporter.cli import commands
from tests.support.tables import write_csv

pytestmark = [pytest.mark.training, pytest.mark.filterwarnings("ignore:.*LeafSpec.*:FutureWarning")]


def train(*arguments: str) -> tuple[int, str]:
    done = CliRunner().invoke(commands, ["train", *arguments, "--no-publish"])
    return done.exit_code, done.output


@pytest.fixture(scope="module")
def earlier(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("earlier")
    data = write_csv(folder / "data.csv", 300, rare=False)
    code, output = train(
        "tabular-classification",
        "--data",
        str(data),
        "--target",
        "label",
        "--name",
        "rows",
        "--epochs",
        "2",
        "--seed",
        "5",
        "--run-dir",
        str(folder / "run"),
    )
    assert code == 0, output
    return folder


def test_a_run_is_repeated_to_the_same_metrics(earlier: Path) -> None:
    """Its folder has all that decides it: configuration, data, environment; the model's file is the same."""
    code, output = train("--from-run", str(earlier / "run"), "--run-dir", str(earlier / "again"))
    assert code == 0, output
    assert "in the same environment" in output
    for name in ("evaluation.json", "model.onnx", "config.yaml", "environment.json"):
        assert (earlier / "again" / name).read_bytes() == (earlier / "run" / name).read_bytes()
    told = json.loads((earlier / "run" / "environment.json").read_text())
    assert {"python", "torch", "onnxruntime", "revision"} <= set(told)


def test_what_is_another_by_now_is_told_or_refused(earlier: Path, tmp_path: Path) -> None:
    """Another version of a library is named; other data is an error that names the data."""
    copy = tmp_path / "run"
    shutil.copytree(earlier / "run", copy)
    told = json.loads((copy / "environment.json").read_text()) | {"torch": "1.0"}
    (copy / "environment.json").write_text(json.dumps(told))
    data = json.loads((copy / "data.json").read_text()) | {"sha256": "0" * 64}
    (copy / "data.json").write_text(json.dumps(data))
    code, output = train("--from-run", str(copy), "--run-dir", str(tmp_path / "again"))
    assert code == 4
    assert "torch was 1.0, is " in output
    assert "is not what" in output


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--from-run", "{run}", "--epochs", "9", "--data", "x"], "--data, --epochs: not beside --from-run"),
        (["--from-run", "{run}", "--run-dir", "{run}"], "is the run that is to be repeated"),
        (["--from-run", "nowhere"], "nowhere is no run folder"),
        (["tabular-classification"], "--data, --name: missing; or repeat an earlier run with --from-run"),
    ],
)
def test_what_makes_no_sense_is_refused(earlier: Path, arguments: list[str], words: str) -> None:
    """By the names of the options."""
    code, output = train(*(argument.format(run=earlier / "run") for argument in arguments))
    assert code in (2, 4)
    assert words in output
