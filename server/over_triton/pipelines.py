"""What is here of models that Tritons run, in a folder of the model's name: `processing.yaml`, a chat template."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from server.chat import CHAT_FILES, ChatTemplate, read_chat_template
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
        folders = dict.fromkeys((*self._of(name), *self._of(name, *CHAT_FILES)))
        return tuple(LocalSource(folder.parent).fingerprint(name) for folder in folders)

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

    def chat(self, name: str) -> ChatTemplate | None:
        """The model's chat template, of the first folder that has one; None: there is none.

        Raises:
            ModelLoadFailed: it can't be read.
        """
        found = (read_chat_template(name, folder) for folder in self._of(name, *CHAT_FILES))
        return next((template for template in found if template is not None), None)

    def _of(self, name: str, *files: str) -> list[Path]:
        """The model's folders that have one of these files."""
        wanted = files or (PROCESSING_FILE,)
        there = [folder / name for folder in self._folders]
        return [folder for folder in there if any((folder / file).is_file() for file in wanted)]
