"""Where models come from: a source is one repository, as `--model-repository` names it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Protocol

from server.repository.certificate import MANIFEST_FILE, model_files
from server.security.signing import SIGNATURE_FILE

Needed = Callable[[Path], Callable[[str], bool]]
"""Of a folder with all files that are no version's, and the versions' folders, be they empty: which files, by their
paths, a load reads."""


class Source(Protocol):
    """One repository. All but `known` may block, and may be called from several threads."""

    @property
    def name(self) -> str:
        """What requests call it by: the last part of its path."""

    def names(self) -> list[str]:
        """Its models, sorted. Raises OSError if the repository can't be read."""

    def known(self) -> list[str]:
        """Its models as far as that can be told at once. Raises OSError."""

    def fingerprint(self, model_name: str) -> object:
        """Equal for as long as no file of the model changed. Compare with ==. Raises OSError."""

    def survey(self) -> Mapping[str, object]:
        """All its models in one look, each with its fingerprint. Raises OSError."""

    def hold(self, model_name: str, needed: Needed) -> AbstractContextManager[Path]:
        """The model's folder, with all that is `needed`, for the time of the block.

        Raises OSError, ModelLoadFailed, and what `needed` raises.
        """

    def stop(self) -> None:
        """Give up, soon, on what is under way; any thread may call it."""

    def close(self) -> None:
        """Leave nothing behind; nothing is under way."""


class LocalSource:
    """A folder of this machine."""

    def __init__(self, root: Path) -> None:
        self._root = root

    @property
    def name(self) -> str:
        return self._root.resolve().name

    def names(self) -> list[str]:
        return sorted(path.name for path in self._root.iterdir() if not path.name.startswith(".") and path.is_dir())

    def known(self) -> list[str]:
        return self.names()

    def fingerprint(self, model_name: str) -> object:
        folder = self._root / model_name
        marks = []
        for path in (*model_files(folder), Path(MANIFEST_FILE), Path(SIGNATURE_FILE)):
            try:
                stat = (folder / path).stat()
            except OSError:
                continue  # gone since it was listed, or a dead link: its absence is the mark
            marks.append((path.as_posix(), stat.st_mtime_ns, stat.st_size, stat.st_ino))
        return tuple(marks)

    def survey(self) -> Mapping[str, object]:
        return {name: self.fingerprint(name) for name in self.names()}

    def stop(self) -> None:
        """Nothing takes long here."""

    def close(self) -> None:
        """There is nothing to leave behind."""

    def hold(self, model_name: str, needed: Needed) -> AbstractContextManager[Path]:
        return nullcontext(self._root / model_name)
