"""`import`: what a path is decides who imports it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from exporter.errors import UsageError


def import_path(
    path: Path, name: str, repository: Path, report: Callable[[str, Sequence[str]], None], *, replace: bool
) -> None:
    """Publish the model at `path`. Raises UsageError for what is no model, and what its importer raises."""
    if any((path / name).is_file() for name in ("config.json", "modules.json")):
        from exporter.hub_import import import_folder

        import_folder(path, name, repository, report, replace=replace)
        return
    raise UsageError(f"{path}: is no folder with a config.json")
