"""Files of remote repositories, kept on this machine: each under a key that no other content of it ever has.

    <folder>/files/<2 digits>/<key>       a file, whole; how long it was not used is in its time of change
    <folder>/forwardpass-scratch-*/       what a process is downloading, and the folders of models that it is loading

A file is put under its key by one rename, and is taken by a hard link: so whoever else uses the cache at the same time,
also another process, finds it whole or not at all, and what is taken stays when it is removed here.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Collection
from contextlib import AbstractContextManager, suppress
from pathlib import Path

from server.repository.scratch import Scratch


class Cache:
    """At most `max_bytes` of files in `folder`, the longest unused of which go first. Any thread. All raise OSError."""

    def __init__(self, folder: Path, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self._files = folder / "files"
        self._scratch = Scratch(folder)

    def folder(self) -> AbstractContextManager[Path]:
        """A new, empty folder, on the same disk, for the time of the block."""
        return self._scratch.folder()

    def take(self, key: str, size: int, to: Path) -> bool:
        """Link the file of `key` as `to`. False: it is not here, or is not of that size and was removed."""
        path = self._path(key)
        try:
            if path.stat().st_size != size:
                path.unlink(missing_ok=True)
                return False
            os.utime(path)
            _link(path, to)
        except FileNotFoundError:
            return False
        return True

    def keep(self, path: Path, key: str) -> None:
        """Put a file, which is whole and on the same disk, under its key, and leave it where it is as well."""
        place = self._path(key)
        place.parent.mkdir(parents=True, exist_ok=True)
        again = path.with_name(f"{path.name}.kept")
        _link(path, again)
        again.rename(place)

    def make_room(self, needed: int, keeping: Collection[str]) -> None:
        """Remove the longest unused until `needed` more bytes are allowed; never what is under the keys `keeping`."""
        found = []
        for path in self._files.glob("??/*"):
            with suppress(FileNotFoundError):  # another process may do the same
                stat = path.stat()
                found.append((stat.st_mtime_ns, stat.st_size, path))
        total = needed + sum(size for _, size, _ in found)
        for _, size, path in sorted(found):
            if total <= self.max_bytes:
                return
            if path.name not in keeping:
                path.unlink(missing_ok=True)
                total -= size

    def close(self) -> None:
        """Remove what is not kept."""
        self._scratch.close()

    def _path(self, key: str) -> Path:
        return self._files / key[:2] / key


def key_of(*parts: object) -> str:
    """The key of a file by all that tells it from any other, and its content from any other that it had."""
    return hashlib.sha256("\0".join(map(str, parts)).encode(errors="surrogatepass")).hexdigest()


def _link(path: Path, to: Path) -> None:
    try:
        to.hardlink_to(path)
    except FileNotFoundError:
        raise
    except OSError:  # the file system has no hard links
        shutil.copyfile(path, to)
