"""A Triton on this machine: found, given a repository, run. The program is a script; the real one is in
tests/integration/test_against_triton.py."""

from __future__ import annotations

import socket
import sys
import tempfile
from pathlib import Path

import pytest
from typer.testing import CliRunner

from server import cli
from server.errors import ModelLoadFailed
from server.local_triton.process import LocalTriton, Ports, TritonFailed
from server.local_triton.program import Program, TritonMissing, find
from server.local_triton.repository import translate
from server.repository.config_text import parse_text
from tests.support.ensembles import EnsembleText, StepText
from tests.support.onnx_models import linear_folder


@pytest.fixture(autouse=True)
def alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No tritonserver of this machine is found, and temporary folders are the test's."""
    monkeypatch.setenv("PATH", "/usr/bin:/bin")
    monkeypatch.setattr("server.local_triton.program._CONTAINER", tmp_path / "no container")
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))


def install(root: Path, *backends: str, script: str = "exit 3", stub: bool = True) -> Path:
    """A tritonserver's folder as a wheel unpacks it: nothing may be run yet. Returns the program."""
    program = root / "bin" / "tritonserver"
    program.parent.mkdir(parents=True)
    program.write_text(f"#!/bin/sh\n{script}\n")
    for backend in backends:
        (root / "backends" / backend).mkdir(parents=True)
    if stub:
        python = root / "python_backend_stubs" / f"{sys.version_info.major}.{sys.version_info.minor}"
        python.mkdir(parents=True)
        (python / "triton_python_backend_stub").write_text("stub")
    return program


def packages(folder: Path) -> Path:
    path = folder / "python" / "lib" / "python3.11" / "site-packages"
    path.mkdir(parents=True)
    return path


def models(tmp_path: Path) -> Path:
    repository = tmp_path / "models"
    linear_folder(repository, "linear", max_batch_size=0)
    (repository / "linear" / "labels.txt").write_text("a\nb\n")
    return repository


def test_what_the_make_target_installs_is_found_and_made_a_program(tmp_path: Path) -> None:
    """The stub of the Python backend is put in its place, and both may be run."""
    path = install(tmp_path / "server" / "pytriton" / "tritonserver", "python")
    site = packages(tmp_path)

    program = find(folder=tmp_path)

    stub = program.backends / "python" / "triton_python_backend_stub"
    assert (program.path, program.packages) == (path, site)
    assert stub.read_text() == "stub"
    assert all(file.stat().st_mode & 0o111 for file in (path, stub))


def test_a_build_with_the_backend_needs_no_packages(tmp_path: Path) -> None:
    """The container's serves the folder as it is."""
    path = install(tmp_path / "tritonserver", "onnxruntime", stub=False)

    assert find(path, tmp_path) == Program(path, path.parent.parent / "backends", None)


@pytest.mark.parametrize(
    ("backends", "stub", "said"),
    [
        ([], True, "neither the ONNX Runtime backend nor the Python backend"),
        (["python"], False, "no stub of the Python backend for Python 3"),
        (["python"], True, "make triton installs it"),
    ],
)
def test_a_build_that_can_not_run_onnx_says_what_it_lacks(
    tmp_path: Path, backends: list[str], stub: bool, said: str
) -> None:
    """A backend, its stub, the packages."""
    path = install(tmp_path / "tritonserver", *backends, stub=stub)

    with pytest.raises(TritonMissing, match=said):
        find(path, tmp_path)


@pytest.mark.parametrize("flag", ["--http-port", "--grpc-port", "--metrics-port"])
def test_a_port_that_there_is_not(flag: str) -> None:
    """Triton would listen on what is left of it."""
    result = CliRunner().invoke(cli.create_app(), ["triton", flag, "99999"])

    assert result.exit_code == 2
    assert flag in result.output


def test_the_command_says_how_to_have_one(tmp_path: Path) -> None:
    """Where there is none."""
    result = CliRunner().invoke(cli.create_app(), ["triton", "--tritonserver", str(tmp_path / "none")])

    assert result.exit_code == 1
    assert "make triton installs one" in result.stderr


def test_the_command_ends_with_the_status_of_triton(tmp_path: Path) -> None:
    """As it would be without us."""
    path = install(tmp_path / "tritonserver", "onnxruntime")
    path.chmod(0o755)
    arguments = ["triton", "--tritonserver", str(path), "--model-repository", str(models(tmp_path))]

    assert CliRunner().invoke(cli.create_app(), arguments).exit_code == 3


def test_a_translated_model_runs_the_same_file_in_the_python_backend(tmp_path: Path) -> None:
    """Its config differs in the backend alone; its files are linked to; the original is as it was."""
    repository, target = models(tmp_path), tmp_path / "target"
    (repository / "other").mkdir()
    (repository / "other" / "config.pbtxt").write_text('backend: "python"')
    target.mkdir()
    before = sorted(repository.rglob("*"))

    assert translate(repository, target, Path("/the/packages")) == ["linear"]

    config = parse_text((target / "linear" / "config.pbtxt").read_text(), "linear")
    expected = parse_text((repository / "linear" / "config.pbtxt").read_text(), "linear")
    assert config.parameters["onnx_filename"].string_value == "model.onnx"
    expected.parameters["onnx_filename"].string_value = "model.onnx"
    expected.backend = "python"
    assert config == expected
    assert "max_batch_size: 0" in (target / "linear" / "config.pbtxt").read_text()
    assert (target / "linear" / "1" / "model.onnx").resolve() == repository / "linear" / "1" / "model.onnx"
    assert (target / "linear" / "labels.txt").resolve() == repository / "linear" / "labels.txt"
    assert "'/the/packages'" in (target / "linear" / "1" / "model.py").read_text()
    assert (target / "other").resolve() == repository / "other"
    assert sorted(repository.rglob("*")) == before


@pytest.mark.parametrize("version", ["", "1", "4"])
def test_an_ensemble_is_as_it_is_but_for_the_version_folder_that_triton_demands(tmp_path: Path, version: str) -> None:
    """Its config goes through unchanged; git keeps no empty folders, so the one that it needs may be missing."""
    repository = models(tmp_path)
    steps = [StepText("linear", {"x": "raw"}, {"y": "out"})]
    text = EnsembleText({"raw": (3,)}, {"out": (2,)}, steps, max_batch_size=0)
    text.write(repository, "whole", version=version)
    target = tmp_path / "translated"
    target.mkdir()

    assert translate(repository, target, packages(tmp_path)) == ["linear"]

    assert (target / "whole" / "config.pbtxt").read_text() == (repository / "whole" / "config.pbtxt").read_text()
    assert [path.name for path in (target / "whole").iterdir() if path.is_dir()] == [version or "1"]


def test_a_config_that_is_none_leaves_nothing_behind(tmp_path: Path) -> None:
    """The model and the line are told."""
    repository = models(tmp_path)
    (repository / "linear" / "config.pbtxt").write_text("max_batch_sise: 1")
    program = Program(install(tmp_path / "tritonserver"), tmp_path, tmp_path)

    with (
        pytest.raises(ModelLoadFailed, match="did you mean 'max_batch_size'"),
        LocalTriton(program, repository, Ports(1, 2, 3)),
    ):
        pytest.fail("it was started")

    assert not list(tmp_path.glob("forwardpass-triton-*"))


def test_one_that_ends_at_once_is_told_with_its_status(tmp_path: Path) -> None:
    """Nobody waits for it until the time is out."""
    path = install(tmp_path / "tritonserver")
    path.chmod(0o755)

    server = LocalTriton(Program(path, tmp_path, None), models(tmp_path), Ports(1, 2, 3))
    with server, pytest.raises(TritonFailed, match="ended with status 3"):
        server.wait_ready(30)


def test_one_that_is_never_ready_is_ended_with_its_repository(tmp_path: Path) -> None:
    """Also where it does not heed SIGTERM."""
    path = install(tmp_path / "tritonserver", script="trap '' TERM; while :; do sleep 0.05; done")
    path.chmod(0o755)
    with socket.create_server(("127.0.0.1", 0)) as nobody:
        port = nobody.getsockname()[1]
    server = LocalTriton(Program(path, tmp_path, tmp_path), models(tmp_path), Ports(port, 2, 3))
    server.start()
    assert len(list(tmp_path.glob("forwardpass-triton-*"))) == 1

    with pytest.raises(TritonFailed, match="not ready within"):
        server.wait_ready(0.1)
    server.stop(grace_s=0.1)

    assert not Path(f"/proc/{server.pid}").exists()
    assert not list(tmp_path.glob("forwardpass-triton-*"))
    server.stop()
