"""The files of labels that a model's outputs name: a class's label on each line. Source: Triton, `label_filename`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from server.errors import ModelLoadFailed
from server.repository.config_text import CONFIG_FILE


def read_labels(folder: Path, filenames: Mapping[str, str]) -> dict[str, Sequence[str]]:
    """By output, the labels of its classes: as many as there are lines, fewer or more than classes, some empty.

    Raises:
        ModelLoadFailed: a file is not there, or is no UTF-8.
    """
    return {output: _lines(folder, output, filename) for output, filename in filenames.items()}


def _lines(folder: Path, output: str, filename: str) -> list[str]:
    path = folder / filename
    if not path.is_file():
        raise ModelLoadFailed(folder.name, CONFIG_FILE, f"output '{output}': label_filename '{filename}' is not there")
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ModelLoadFailed(folder.name, filename, "is not UTF-8 text") from error
    return text.removesuffix("\n").split("\n")
