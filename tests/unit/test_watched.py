"""Files that are read anew when they change: keys, key sets, certificates."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from server.security.watched import Watched


def watched(path: Path) -> Watched[str]:
    return Watched(lambda: [path], path.read_text)


@pytest.mark.parametrize("seconds", [-3600, 0, 3600])
def test_a_file_that_is_replaced_is_read_whatever_its_time_says(tmp_path: Path, seconds: int) -> None:
    """It was written by a clock that had been set back, or ahead, or came with the time and size of the one before."""
    path = tmp_path / "file"
    path.write_text("old")
    at = path.stat().st_mtime_ns
    file = watched(path)
    assert not file.refresh()

    (tmp_path / "new").write_text("new")
    os.utime(tmp_path / "new", ns=(at, at + seconds * 10**9))
    (tmp_path / "new").replace(path)
    assert (file.refresh(), file.value) == (True, "new")
    assert not file.refresh()


def test_a_file_that_is_gone_or_broken_leaves_what_there_was(tmp_path: Path) -> None:
    """It is said once, and the next one is read."""
    path = tmp_path / "file"
    path.write_text("old")
    file = watched(path)
    path.unlink()
    with pytest.raises(FileNotFoundError):
        file.refresh()
    assert (file.refresh(), file.value) == (False, "old")
    path.write_bytes(b"\xff")
    with pytest.raises(UnicodeDecodeError):
        file.refresh()
    assert (file.refresh(), file.value) == (False, "old")
    path.write_text("new")
    assert (file.refresh(), file.value) == (True, "new")
