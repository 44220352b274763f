"""What a load request says instead of the repository: another config, and files of its own.

Source: Triton's model repository extension, the load parameters ``config`` and ``file:<version>/<name>``. With files
the model is made of them alone, and the config must come along: nothing of the repository is used.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from google.protobuf import json_format

from server.errors import InvalidRequest, PayloadTooLarge
from server.proto.triton import model_config_pb2 as pb
from server.repository.names import LONGEST_NAME, is_model_name, is_path_below
from server.repository.scratch import Scratch

CONFIG = "config"
FILE = "file:"
WHERE = "parameters.config"
"""How a fault of an overriding config is named, where that of a file would be called config.pbtxt."""

_MOST_FILES = 1000
_CONFIG_BYTES = 1024 * 1024


@dataclass(frozen=True, slots=True)
class Override:
    """`files` by path relative to the model's folder; empty: those of the repository."""

    config: pb.ModelConfig
    files: Mapping[str, bytes] = field(default_factory=dict)

    @contextmanager
    def folder(self, model_name: str, scratch: Scratch) -> Iterator[Path]:
        """A folder with the files, called as the model, for the time of the block. Raises OSError, InvalidRequest."""
        with scratch.folder() as parent:
            folder = parent / model_name
            folder.mkdir()
            for path, content in self.files.items():
                (folder / path).parent.mkdir(parents=True, exist_ok=True)
                (folder / path).write_bytes(content)
            yield folder

    def wanted_labels(self) -> set[str]:
        """Files of labels that the config names and that are not given; those below the model's folder."""
        outputs = self.config.output if self.config is not None else ()
        names = {output.label_filename for output in outputs} - self.files.keys()
        return {name for name in names if is_path_below(name)}


def read_override(parameters: Mapping[str, object], max_bytes: int) -> Override | None:
    """What the `parameters` of a load say; None: nothing. `max_bytes` of all files together.

    Raises:
        InvalidRequest: an unknown parameter, a value of the wrong kind, a path that leaves the model's folder, files
            without a config, or a config that is no ModelConfig.
        PayloadTooLarge: the files, or the config, are over their limit.
    """
    if not parameters:
        return None
    config: object = None
    files: dict[str, bytes] = {}
    for name, value in parameters.items():
        if name == CONFIG:
            config = value
        elif name.startswith(FILE):
            files[_path(name)] = _content(name, value)
        else:
            raise InvalidRequest(
                f"parameters.{name}", "is not known; a load takes 'config' and 'file:<version>/<name>'"
            )
    _check_files(files, max_bytes)
    if config is None:
        raise InvalidRequest(
            WHERE, "must be given with files: nothing but labels of the model's folder is used beside them"
        )
    return Override(_config(config), files)


def check_model_name(name: str) -> None:
    """Raises InvalidRequest if a model can't be called so: its name is that of a folder."""
    if not is_model_name(name):
        problem = f"must be the name of a folder: no slash, no dot in front, {LONGEST_NAME} bytes at most"
        raise InvalidRequest("model_name", problem)


def _content(name: str, value: object) -> bytes:
    if not isinstance(value, bytes):
        raise InvalidRequest(f"parameters.{name}", "must be the file's bytes")
    return value


def _path(name: str) -> str:
    text = name.removeprefix(FILE)
    if not is_path_below(text):
        raise InvalidRequest(f"parameters.{name}", "must be a path below the model's folder, as in 'file:1/model.onnx'")
    if text.endswith(".py") and "/" not in text:
        # Those who may load models must not thereby run code of theirs: what runs is what lies in the repository.
        raise InvalidRequest(f"parameters.{name}", "is code for the task 'custom', which is not taken from a request")
    return text


def _check_files(files: Mapping[str, bytes], max_bytes: int) -> None:
    if len(files) > _MOST_FILES:
        raise PayloadTooLarge("parameters", _MOST_FILES, len(files), "files")
    size = sum(len(content) for content in files.values())
    if size > max_bytes:
        raise PayloadTooLarge("parameters: files", max_bytes, size)
    folders = {str(folder) for path in files for folder in PurePosixPath(path).parents}
    for path in files:
        if path in folders:
            raise InvalidRequest(f"parameters.{FILE}{path}", "is a file here, and a folder of another file")


def _config(value: object) -> pb.ModelConfig:
    if not isinstance(value, str):
        raise InvalidRequest(WHERE, "must be the JSON of a ModelConfig, as text")
    if len(value) > _CONFIG_BYTES:
        raise PayloadTooLarge(WHERE, _CONFIG_BYTES, len(value))
    try:
        return json_format.Parse(value, pb.ModelConfig())
    except (json_format.ParseError, RecursionError) as error:
        raise InvalidRequest(WHERE, f"is no ModelConfig in JSON: {str(error)[:200]}") from error
