"""Files in /dev/shm that say who is alive: a process holds a lock on its own for as long as it lives.

A file whose lock can be taken is one that a process left when it was killed. Source: shm_open(3) for the folder.
"""

from __future__ import annotations

import fcntl
import logging
import os
import secrets
from pathlib import Path

log = logging.getLogger(__name__)

PREFIX = "forwardpass-triton-"
FOLDER = Path("/dev/shm")  # nosec B108 # noqa: S108 - where shm_open keeps its files


def own_name(prefix: str = PREFIX) -> str:
    """That no other process has, nor another file of this one."""
    return f"{prefix}{os.getpid()}-{secrets.token_hex(6)}"


def make(folder: Path, name: str, size_bytes: int) -> int:
    """A file of that size, for its user alone and locked; its descriptor.

    Raises:
        OSError: there is no such folder, or no room in it. Nothing is left then.
    """
    # Under its final name only once it is locked: else another process could take it for one that was left.
    hidden = folder / f".{name}"
    file = os.open(hidden, os.O_CREAT | os.O_EXCL | os.O_RDWR | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(file, fcntl.LOCK_EX)
        if size_bytes:
            # All of it now: where the folder has no room for a page, writing to it later would end the process.
            os.posix_fallocate(file, 0, size_bytes)
        hidden.rename(folder / name)
    except OSError:
        hidden.unlink(missing_ok=True)
        os.close(file)
        raise
    return file


def remove(folder: Path, name: str, file: int) -> None:
    (folder / name).unlink(missing_ok=True)
    os.close(file)


def sweep(folder: Path) -> None:
    """Remove what processes left that are no more; what is another user's stays."""
    for left in (*folder.glob(f"{PREFIX}*"), *folder.glob(f".{PREFIX}*")):
        try:
            file = os.open(left, os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError:
            continue
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            left.unlink(missing_ok=True)
            log.info("removed %s, which a server left that was killed", left)
        except OSError:
            continue
        finally:
            os.close(file)
