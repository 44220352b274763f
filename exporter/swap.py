"""Folders that appear, or change places, in one step of the file system.

A new folder is one rename. To replace a folder there is Linux's renameat2 with RENAME_EXCHANGE: at every
moment, the old or the new one is there. Where the kernel or the file system does not have it, two renames
do: for some microseconds the folder is not there, and after a crash in between `recover` puts the old one
back.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from server.whole import sync

_AT_FDCWD = -100
_RENAME_NOREPLACE = 1
_RENAME_EXCHANGE = 2
_NOT_SUPPORTED = (errno.ENOSYS, errno.EINVAL, errno.ENOTSUP)


def create(staged: Path, target: Path) -> None:
    """Make `staged` be `target`, which must not exist. Raises FileExistsError, with nothing changed, if it does."""
    if _renameat2(staged, target, _RENAME_NOREPLACE):
        return
    if target.exists():
        raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(target))
    staged.rename(target)


def exchange(staged: Path, target: Path, *, backup: Path) -> bool:
    """Let `staged` and `target`, both folders, change places; the former target is removed afterwards.

    True if it was one step; False if the system does not have it, and `target` was away for a moment.
    """
    atomic = _renameat2(staged, target, _RENAME_EXCHANGE)
    if atomic:
        shutil.rmtree(staged)
        return True
    target.rename(backup)
    staged.rename(target)
    shutil.rmtree(backup)
    return False


def recover(target: Path, *, staged: Path, backup: Path) -> None:
    """Clean up after a process that was killed on the way; call it under `locked`."""
    if backup.exists() and not target.exists():
        backup.rename(target)
    for left in (staged, backup):
        if left.exists():
            shutil.rmtree(left)


def flush(folder: Path) -> None:
    """Have every file below `folder` on the disk, so that after a power cut a rename can't show empty files."""
    for top, folders, files in os.walk(folder):
        for name in (*files, *folders, "."):
            sync(Path(top, name))


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """One at a time, over all processes: an advisory lock on the folder itself, gone when its holder dies."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _renameat2(source: Path, target: Path, flags: int) -> bool:
    """False if the system does not have the call. Raises OSError for any other failure. Source: rename(2)."""
    function = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if function is None:
        return False
    function.argtypes = (ctypes.c_int, ctypes.c_char_p, ctypes.c_int, ctypes.c_char_p, ctypes.c_uint)
    if function(_AT_FDCWD, os.fsencode(source), _AT_FDCWD, os.fsencode(target), flags) == 0:
        return True
    code = ctypes.get_errno()
    if code in _NOT_SUPPORTED:
        return False
    raise OSError(code, os.strerror(code), str(source), None, str(target))
