"""Folders that live no longer than what is done with them, nor than the process, however it ends.

A process holds a lock on its folder for as long as it lives. A folder whose lock can be taken is one that a process
left when it was killed, and goes with the next start.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_PREFIX = "forwardpass-scratch-"
_LOCK = ".lock"


class Scratch:
    """Folders below `parent` (None: the system's place for them). Nothing is made before the first is asked for."""

    def __init__(self, parent: Path | None = None) -> None:
        self._parent = parent or Path(tempfile.gettempdir())
        self._root: Path | None = None
        self._lock = -1
        self._making = threading.Lock()

    @contextmanager
    def folder(self) -> Iterator[Path]:
        """A new, empty folder, for the time of the block. Raises OSError."""
        folder = Path(tempfile.mkdtemp(dir=self._own()))
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def close(self) -> None:
        """Remove all of it."""
        root, self._root = self._root, None
        if root is not None:
            shutil.rmtree(root, ignore_errors=True)
            os.close(self._lock)

    def _own(self) -> Path:
        with self._making:
            if self._root is None:
                self._root = self._make()
            return self._root

    def _make(self) -> Path:
        self._parent.mkdir(parents=True, exist_ok=True)
        _sweep(self._parent)
        # Under its final name only once it is locked: else another process could take it for one that was left.
        made = Path(tempfile.mkdtemp(prefix=".forwardpass-", dir=self._parent))
        self._lock = os.open(made / _LOCK, os.O_CREAT | os.O_RDWR, 0o600)
        fcntl.flock(self._lock, fcntl.LOCK_EX)
        return made.rename(self._parent / f"{_PREFIX}{made.name.removeprefix('.forwardpass-')}")


def _sweep(parent: Path) -> None:
    """Remove what processes left that are no more; what is another user's stays."""
    for folder in parent.glob(f"{_PREFIX}*"):
        try:
            lock = os.open(folder / _LOCK, os.O_RDWR)
        except OSError:
            continue
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            continue
        else:
            shutil.rmtree(folder, ignore_errors=True)
        finally:
            os.close(lock)
