"""Our repository for a Triton that has no ONNX Runtime backend: the same folders, each with a model of its Python
backend that runs the ONNX file."""

from __future__ import annotations

from pathlib import Path

from server.local_triton import __path__ as here
from server.proto.triton import model_config_pb2 as pb
from server.repository.config_text import CONFIG_FILE, parse_text, write_model_config
from server.repository.ensemble import PLATFORM as ENSEMBLE

_MODEL = Path(here[0]) / "onnx_model.py"
_ONNX_PLATFORM, _ONNX_BACKEND = "onnxruntime_onnx", "onnxruntime"
_ONNX_FILE = "model.onnx"


def translate(repository: Path, target: Path, packages: Path) -> list[str]:
    """Write `repository` into the empty folder `target`; returns the names of the models that had to be changed.

    Files are linked to, not copied. `packages` is the folder that has numpy and onnxruntime for the Python backend.

    Raises:
        OSError: `repository` can't be read.
        ModelLoadFailed: a config.pbtxt is not one.
    """
    changed = []
    for folder in sorted(path for path in repository.iterdir() if (path / CONFIG_FILE).is_file()):
        config = parse_text((folder / CONFIG_FILE).read_text(encoding="utf-8"), folder.name)
        if config.backend == _ONNX_BACKEND or config.platform == _ONNX_PLATFORM:
            _write(folder, target / folder.name, config, packages)
            changed.append(folder.name)
        elif config.platform == ENSEMBLE and not any(map(_is_version, folder.iterdir())):
            _with_version(folder, target / folder.name)
        else:
            (target / folder.name).symlink_to(folder.resolve())
    return changed


def _is_version(path: Path) -> bool:
    return path.is_dir() and path.name.isdecimal()


def _with_version(folder: Path, target: Path) -> None:
    """An ensemble's version folder is empty and may be missing, but not to Triton."""
    target.mkdir()
    (target / "1").mkdir()
    for path in folder.iterdir():
        (target / path.name).symlink_to(path.resolve())


def _write(folder: Path, target: Path, config: pb.ModelConfig, packages: Path) -> None:
    onnx = config.default_model_filename or _ONNX_FILE
    config.ClearField("platform")
    config.ClearField("default_model_filename")
    config.ClearField("optimization")  # Graph levels and accelerators are the other backend's.
    config.backend = "python"
    config.parameters["onnx_filename"].string_value = onnx
    target.mkdir()
    write_model_config(config, target / CONFIG_FILE)
    program = f"import sys\n\nsys.path[:0] = [{str(packages)!r}]\n\n{_MODEL.read_text()}"
    for path in folder.iterdir():
        if _is_version(path):
            version = target / path.name
            version.mkdir()
            for file in path.iterdir():
                (version / file.name).symlink_to(file.resolve())
            # The Python backend imports nothing before this very file, and ignores PYTHONPATH.
            (version / "model.py").write_text(program)
        elif path.name != CONFIG_FILE:
            (target / path.name).symlink_to(path.resolve())
