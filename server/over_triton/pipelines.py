"""The pipelines of models that Tritons run: `processing.yaml` is in a folder here, by the model's name."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from server.errors import ModelLoadFailed, ServingError
from server.pipeline.base import PROCESSING_FILE, Pipeline
from server.repository.sources import LocalSource


class Pipelines:
    """Of the folders of `--model-repository`, which need not be there. Blocking."""

    def __init__(self, folders: Sequence[Path], load: Callable[[Path], Pipeline]) -> None:
        self._folders = folders
        self._load = load

    def mark(self, name: str) -> object:
        """Equal for as long as nothing of the model's folders here changed."""
        return tuple(LocalSource(folder.parent).fingerprint(name) for folder in self._of(name))

    def load(self, name: str) -> Pipeline | None:
        """The model's pipeline; None: it has none.

        Raises:
            ModelLoadFailed: it can't be used, or two folders have one.
        """
        folders = self._of(name)
        if len(folders) > 1:
            several = ", ".join(str(folder.parent) for folder in folders)
            raise ModelLoadFailed(name, "--model-repository", f"{several} have a {PROCESSING_FILE} of it")
        if not folders:
            return None
        try:
            return self._load(folders[0])
        except ModelLoadFailed:
            raise
        except (ServingError, ValueError, KeyError, TypeError, OSError) as error:
            raise ModelLoadFailed(name, PROCESSING_FILE, str(error)) from error

    def _of(self, name: str) -> list[Path]:
        return [folder / name for folder in self._folders if (folder / name / PROCESSING_FILE).is_file()]
