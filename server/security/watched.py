"""Files that may change while the server runs: read anew when they do."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Generic, TypeVar

T = TypeVar("T")

_Marks = tuple[tuple[str, int, int, int], ...]


class Watched(Generic[T]):
    """What `read` makes of the files; a change that can't be read leaves what there was."""

    def __init__(self, files: Callable[[], Iterable[Path]], read: Callable[[], T]) -> None:
        """Raises what `files` and `read` do."""
        self._files = files
        self._read = read
        # Marked first: what changes while it is read is read again.
        self._seen: _Marks | None = self._marks()
        self.value = read()

    def refresh(self) -> bool:
        """Whether there is a new `value`. Any thread, one at a time. Raises what `read` does, once for each change."""
        try:
            marks = self._marks()
        except OSError:
            if self._seen is None:
                return False
            self._seen = None
            raise
        if marks == self._seen:
            return False
        self._seen = marks
        self.value = self._read()
        return True

    def _marks(self) -> _Marks:
        marks = []
        for path in self._files():
            status = path.stat()
            marks.append((str(path), status.st_mtime_ns, status.st_size, status.st_ino))
        return tuple(marks)
