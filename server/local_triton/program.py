"""Where a `tritonserver` is, and what its build can run."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

FOLDER = Path("build") / "triton"
"""Where `make triton` puts one, below the folder that it is run in."""
REQUIREMENTS = Path(__file__).parent / "requirements-server.txt"
"""The package that has a tritonserver in it."""
_CONTAINER = Path("/opt/tritonserver")
"""Where NVIDIA's container image has it."""
_ONNX_BACKEND = "onnxruntime"


class TritonMissing(Exception):
    """There is no tritonserver that can serve ONNX models; the text says what was looked for and what to do."""


@dataclass(frozen=True, slots=True)
class Program:
    """A tritonserver and its backends."""

    path: Path
    backends: Path
    packages: Path | None
    """The packages that a model of the Python backend needs (numpy, onnxruntime); None: this build has the ONNX
    Runtime backend, and needs none."""


def find(path: Path | None = None, folder: Path = FOLDER) -> Program:
    """The program at `path`; without one that on PATH, that of the container image, that of `make triton`.

    Raises:
        TritonMissing: there is none, or it can run no ONNX model.
    """
    if path is None:
        path = _on_this_machine(folder)
    if path is None or not path.is_file():
        raise TritonMissing(
            f"no tritonserver: looked for {path or 'it on PATH, in /opt/tritonserver and in ' + str(folder)}; "
            "make triton installs one"
        )
    path = path.resolve()
    backends = path.parent.parent / "backends"
    if (backends / _ONNX_BACKEND).is_dir():
        return Program(path, backends, None)
    if not (backends / "python").is_dir():
        raise TritonMissing(f"{path} has neither the ONNX Runtime backend nor the Python backend in {backends}")
    complete(path)
    return Program(path, backends, _packages(folder))


def _on_this_machine(folder: Path) -> Path | None:
    found = shutil.which("tritonserver")
    places: Iterable[Path] = [
        *([Path(found)] if found else []),
        _CONTAINER / "bin" / "tritonserver",
        folder / "server" / "pytriton" / "tritonserver" / "bin" / "tritonserver",
    ]
    return next((place for place in places if place.is_file()), None)


def complete(path: Path) -> None:
    """Make what a wheel unpacked a program: run bits, and the stub of the Python backend for this Python.

    Raises:
        TritonMissing: there is no stub for it.
    """
    root = path.parent.parent
    python = f"{sys.version_info.major}.{sys.version_info.minor}"
    installed = root / "backends" / "python" / "triton_python_backend_stub"
    stub = root / "python_backend_stubs" / python / installed.name
    if not installed.exists():
        if not stub.exists():
            raise TritonMissing(f"{path} has no stub of the Python backend for Python {python}")
        shutil.copy(stub, installed)
    for program in (installed, path):
        if not program.stat().st_mode & 0o100:
            program.chmod(0o755)


def _packages(folder: Path) -> Path:
    found = next(folder.glob("python/lib/python*/site-packages"), None)
    if found is None:
        raise TritonMissing(
            f"this tritonserver has no ONNX Runtime backend, and {folder}/python, which a model of its Python backend "
            "would take ONNX Runtime from, is not there; make triton installs it"
        )
    return found.resolve()
