"""`forwardpass diff`: the embedded engine beside a real Triton, and beside a server that answers otherwise."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner, Result

from server import cli
from server.local_triton.program import TritonMissing, find
from tests.e2e.conftest import REPOSITORY, ROOT, StartServer
from tests.support.onnx_models import WEIGHTS, linear, linear_folder
from tests.support.parts import lacking

pytestmark = pytest.mark.e2e


def diff(*arguments: str | Path) -> Result:
    return CliRunner().invoke(cli.create_app(), ["diff", *(str(each) for each in arguments)])


def verdicts(result: Result) -> dict[str, str]:
    """The last word of each line of the table, by what stands first in it."""
    lines = [line for line in result.stdout.splitlines() if line.endswith(("same", "noted", "DIFFERS"))]
    return {line.split("  ")[0]: line.split()[-1] for line in lines}


@pytest.fixture
def program() -> Path:
    try:
        return find(folder=ROOT / "build" / "triton").path
    except TritonMissing as missing:
        lacking(str(missing))


@pytest.mark.parametrize("model", ["digits", "fraud", "breast_cancer"])
def test_the_shipped_models_answer_on_triton_as_here(
    program: Path, model: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Golden, random and faulty requests: nothing differs but what the engine is called."""
    monkeypatch.chdir(ROOT)
    result = diff(model, "--model-repository", REPOSITORY, "--tritonserver", program)

    assert result.exit_code == 0, result.output
    found = verdicts(result)
    assert found.pop("metadata: platform") == "noted"
    assert set(found.values()) == {"same"}
    assert {"version 1: golden row 0 alone", "version 1: 20 random requests, seed 0"} <= set(found)
    assert sum(what.startswith("predict: raw golden input") for what in found) >= 10
    assert "differences: none" in result.stdout


def test_a_triton_that_can_not_load_the_model_says_why(tmp_path: Path) -> None:
    """The last lines of its log are in the error."""
    linear_folder(tmp_path, "linear")
    script = tmp_path / "triton" / "bin" / "tritonserver"
    script.parent.mkdir(parents=True)
    script.write_text("#!/bin/sh\necho it cannot be; exit 1\n")
    script.chmod(0o755)
    (tmp_path / "triton" / "backends" / "onnxruntime").mkdir(parents=True)

    result = diff("linear", "--model-repository", tmp_path, "--tritonserver", script)

    assert result.exit_code == 1
    assert "it cannot be" in result.output


class TestBesideAServerThatAnswersOtherwise:
    """It stands in for a Triton: what is compared speaks v2 on both sides."""

    def test_other_weights_are_seen_in_every_answer(self, start_server: StartServer, tmp_path: Path) -> None:
        """Each request that differs is a line with the output, its error and the limit; metadata are the same."""
        ours, theirs = tmp_path / "ours", tmp_path / "theirs"
        linear_folder(ours, "linear")
        linear_folder(theirs, "linear")
        linear(theirs / "linear" / "1" / "model.onnx", weights=WEIGHTS + np.float32(0.01))
        other = start_server(repository=theirs)

        result = diff("linear", "--model-repository", ours, "--triton-url", f"grpc://127.0.0.1:{other.port('gRPC')}")

        assert result.exit_code == 1
        found = verdicts(result)
        assert [what for what, verdict in found.items() if verdict == "DIFFERS"] == [
            f"version 1: random request {index}" for index in range(20)
        ]
        assert "y is off by" in result.stdout
        assert "differences: 20" in result.stdout

    def test_a_tolerance_is_the_callers_to_give(self, start_server: StartServer, tmp_path: Path) -> None:
        """What is within --atol and --rtol is the same."""
        ours, theirs = tmp_path / "ours", tmp_path / "theirs"
        linear_folder(ours, "linear")
        linear_folder(theirs, "linear")
        linear(theirs / "linear" / "1" / "model.onnx", weights=WEIGHTS + np.float32(0.01))
        other = start_server(repository=theirs)
        url = f"grpc://127.0.0.1:{other.port('gRPC')}"

        result = diff("linear", "--model-repository", ours, "--triton-url", url, "--atol", "1", "--rtol", "0.1")

        assert result.exit_code == 0, result.output

    def test_another_config_other_tensors_and_other_refusals_are_seen(
        self, start_server: StartServer, tmp_path: Path
    ) -> None:
        """A larger max_batch_size, merging, and a version that only one has."""
        ours, theirs = tmp_path / "ours", tmp_path / "theirs"
        linear_folder(ours, "linear", max_batch_size=4)
        more = "dynamic_batching {} version_policy { all {} }"
        linear_folder(theirs, "linear", max_batch_size=8, versions=(1, 2), more=more)
        other = start_server(repository=theirs)

        result = diff("linear", "--model-repository", ours, "--triton-url", f"grpc://127.0.0.1:{other.port('gRPC')}")

        assert result.exit_code == 1
        found = verdicts(result)
        assert [what for what, verdict in found.items() if verdict == "DIFFERS"] == [
            "metadata: versions",
            "version 1: config, max_batch_size",
            "version 1: config, scheduling",
            "version 1: refused, more rows than max_batch_size",
        ]


class TestWhatCanNotBeCompared:
    """One line, and exit code 1."""

    def test_a_model_that_is_not_in_the_repository(self) -> None:
        """The embedded engine says so."""
        result = diff("nobody", "--model-repository", REPOSITORY, "--triton-url", "grpc://127.0.0.1:1")

        assert result.exit_code == 1
        assert "nobody" in result.output

    def test_a_triton_that_is_not_there(self) -> None:
        """Its URL is named."""
        result = diff("fraud", "--model-repository", REPOSITORY, "--triton-url", "grpc://127.0.0.1:1")

        assert result.exit_code == 1
        assert "127.0.0.1:1" in result.output

    def test_a_url_of_another_kind(self) -> None:
        """REST is not compared."""
        result = diff("fraud", "--model-repository", REPOSITORY, "--triton-url", "http://127.0.0.1:1")

        assert result.exit_code == 1
        assert "grpc://HOST:PORT" in result.output

    @pytest.mark.parametrize("given", [("--atol", "inf"), ("--atol", "nan"), ("--atol", "1", "--rtol", "inf")])
    def test_a_tolerance_that_is_no_number(self, given: tuple[str, ...]) -> None:
        """With any of them nothing would differ."""
        result = diff("fraud", "--model-repository", REPOSITORY, "--triton-url", "grpc://127.0.0.1:1", *given)

        assert result.exit_code == 2
        assert "--atol" in result.output
