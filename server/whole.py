"""Files that are written whole or not at all, and stay so through a kill, a full disk and a power cut."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def replacing(path: Path, *, mode: int = 0o666) -> Iterator[Path]:
    """Gives a hidden file beside `path`, empty, to write to; in the end it is on the disk and has the place of `path`.

    After an error `path` is as it was and nothing is left beside it; after a kill the hidden file is, until the next
    time. One writer at a time. `mode` less the process's umask is for a file that nobody else may read.

    Raises:
        OSError: it can't be written.
    """
    partial = path.with_name(f".{path.name}.partial")
    partial.unlink(missing_ok=True)
    partial.touch(mode)
    try:
        yield partial
        sync(partial)
        partial.replace(path)
        sync(path.parent)
    finally:
        partial.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """All of the text, in UTF-8, or none of it. Raises OSError."""
    with replacing(path) as partial:
        partial.write_text(text, encoding="utf-8")


def sync(path: Path) -> None:
    """Have a file's bytes, or a folder's names, on the disk. Raises OSError."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
