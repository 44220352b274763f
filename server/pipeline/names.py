"""A file of names beside a model, one a line, in the order of an output's columns: labels of classes, ids of items."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from server.errors import ModelLoadFailed

_FEWEST = 2


@dataclass(frozen=True, slots=True)
class NamesFile:
    """At least two names, all different."""

    file: str
    """In the model's folder."""
    one: str
    """What a name is, for messages: ``label``."""
    many: str

    def write(self, folder: Path, names: Sequence[str]) -> None:
        """Raises ValueError for names that `read` would not give back."""
        problem = self._problem_of(names)
        if problem:
            raise ValueError(problem)
        (folder / self.file).write_text("".join(f"{name}\n" for name in names), encoding="utf-8")

    def read(self, folder: Path) -> tuple[str, ...]:
        """Raises ModelLoadFailed: the file is missing, not UTF-8, or holds an empty, repeated or single name."""
        try:
            text = (folder / self.file).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise ModelLoadFailed(folder.name, self.file, f"can't be read: {type(error).__name__}") from error
        names = tuple(text.removesuffix("\n").split("\n"))
        problem = self._problem_of(names)
        if problem:
            raise ModelLoadFailed(folder.name, self.file, problem)
        return names

    def _problem_of(self, names: Sequence[str]) -> str:
        """What is wrong with the names, or an empty string."""
        if len(names) < _FEWEST:
            return f"{len(names)} {self.many}, at least {_FEWEST} are needed"
        seen: set[str] = set()
        for number, name in enumerate(names, start=1):
            if name != name.strip() or not name or len(name.splitlines()) != 1:
                return f"line {number} is empty, or has spaces around its {self.one} or a line break in it"
            if name in seen:
                return f"line {number} repeats the {self.one} {name!r}"
            seen.add(name)
        return ""
