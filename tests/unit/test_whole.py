"""Files that are written whole or not at all."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from server.whole import replacing, write_text


def test_the_new_file_takes_the_place_in_the_end(tmp_path: Path) -> None:
    """Until then the old one is there; afterwards nothing is beside it, a leftover of a kill neither."""
    path = tmp_path / "a.json"
    write_text(path, "old")
    (tmp_path / ".a.json.partial").write_text("half, and long")
    with replacing(path) as partial:
        assert partial.read_bytes() == b""
        partial.write_text("new")
        assert path.read_text() == "old"
    assert path.read_text() == "new"
    assert [each.name for each in tmp_path.iterdir()] == ["a.json"]


def test_after_an_error_the_old_file_is_there_and_nothing_beside_it(tmp_path: Path) -> None:
    """A disk that is full while it is written, say."""
    path = tmp_path / "a.json"
    write_text(path, "old")

    def fill() -> None:
        with replacing(path) as partial:
            partial.write_text("ne")
            Path("/dev/full").write_text("w")

    with pytest.raises(OSError, match="No space left"):
        fill()
    assert path.read_text() == "old"
    assert [each.name for each in tmp_path.iterdir()] == ["a.json"]


def test_bytes_are_on_the_disk_before_the_name_and_the_name_before_it_returns(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else a power cut could leave the new name with no bytes, or take back what was said to be written."""
    synced: list[tuple[bool, bool]] = []
    real = os.fsync
    path = tmp_path / "a.json"

    def noted(descriptor: int) -> None:
        synced.append((stat.S_ISDIR(os.fstat(descriptor).st_mode), path.exists()))
        real(descriptor)

    monkeypatch.setattr(os, "fsync", noted)
    write_text(path, "text")
    assert synced == [(False, False), (True, True)]


def test_a_file_can_be_for_its_owner_alone(tmp_path: Path) -> None:
    """From the first byte on, even where one was there that all may read."""
    path = tmp_path / "keys"
    path.write_text("old")
    with replacing(path, mode=0o600) as partial:
        assert stat.S_IMODE(partial.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
