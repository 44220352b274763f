"""The models of repositories, as a folder of this machine: for a Triton, and for the server in front of it."""

from __future__ import annotations

import logging
import shutil
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

from server.errors import InvalidRequest
from server.repository.certificate import read_manifest, verify_all
from server.repository.opening import open_sources
from server.repository.sources import Source
from server.settings import RemoteSettings, without_secrets

log = logging.getLogger(__name__)


def fetch(places: Sequence[str], to: Path, settings: RemoteSettings) -> list[str]:
    """Put every model of `places` (as `--model-repository` names them) below `to`: all that is served of it, in the
    place of what is there under its name; and return their names. One with a manifest is held against it first.

    Raises:
        InvalidRequest: a place is none, or two of them have a model of the same name, or none has any.
        ModelLoadFailed: files are not those of the manifest. What was fetched before is there.
        OSError: a place can't be reached, or `to` not be written.
    """
    with tempfile.TemporaryDirectory() as cache:
        if not settings.cache_folder:
            settings = settings.model_copy(update={"cache_folder": cache})
        sources = open_sources(places, settings)
        try:
            models = _models(sources)
            if not models:
                raise InvalidRequest("--model-repository", f"{', '.join(map(without_secrets, places))} has no model")
            to.mkdir(parents=True, exist_ok=True)
            for name, source in models.items():
                with source.hold(name, _everything) as folder:
                    manifest = read_manifest(folder)
                    if manifest is not None:
                        verify_all(folder, manifest)
                    _put(folder, to / name)
                log.info(
                    "model '%s': fetched, %s", name, "not certified" if manifest is None else "as its manifest says"
                )
        finally:
            for source in sources:
                source.close()
    return list(models)


def _models(sources: Sequence[Source]) -> dict[str, Source]:
    found: dict[str, Source] = {}
    for source in sources:
        for name in source.names():
            if name in found:
                problem = f"model '{name}' is in '{found[name].name}' and in '{source.name}'"
                raise InvalidRequest("--model-repository", problem)
            found[name] = source
    return found


def _everything(_folder: Path) -> Callable[[str], bool]:
    return lambda _path: True


def _put(folder: Path, to: Path) -> None:
    """All of it or nothing, as far as others see."""
    part = to.with_name(f".{to.name}")
    shutil.rmtree(part, ignore_errors=True)
    shutil.copytree(folder, part, copy_function=shutil.copyfile)
    shutil.rmtree(to, ignore_errors=True)
    part.replace(to)
