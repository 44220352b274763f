"""A remote repository as a source of models: looked at by its listing, downloaded file by file into the cache.

A model is downloaded under the marks of one listing. Each file must have its mark again once it is here, and so must
the listing once all are: what changes on the way is noticed, and downloaded anew. What is here already is not.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path

from server.errors import ModelLoadFailed, ModelUnreachable
from server.repository.certificate import concerns, passed_over
from server.repository.names import is_model_name, is_path_below
from server.repository.remote.cache import Cache, key_of
from server.repository.remote.store import Mark, Patience, Store, Unreachable
from server.repository.sources import Needed
from server.settings import RemoteSettings

log = logging.getLogger(__name__)

_ROUNDS = 3
"""How often a model that changes while it is downloaded is begun anew."""


class _Changed(Exception):
    """A file is no longer what the listing said of it."""


class RemoteSource:
    """The repository `name` in `store`. See `Source`; the OSError that it raises is Unreachable."""

    def __init__(self, name: str, url: str, store: Store, cache: Cache, settings: RemoteSettings) -> None:
        """`url` tells it from all others, and is told in the log."""
        self._name = name
        self._url = url
        self._store = store
        self._cache = cache
        self._settings = settings
        self._patience = Patience(settings)
        self._known: list[str] = []

    @property
    def name(self) -> str:
        return self._name

    def names(self) -> list[str]:
        self._known = sorted(filter(is_model_name, set(self._patience.ask(self._url, self._store.folders))))
        return self._known

    def known(self) -> list[str]:
        return self._known

    def survey(self) -> Mapping[str, object]:
        models: dict[str, dict[str, Mark]] = {}
        for path, mark in self._files("").items():
            name, slash, rest = path.partition("/")
            if slash and is_model_name(name):
                models.setdefault(name, {})[rest] = mark
        self._known = sorted(models)
        return {name: _print_of(files) for name, files in models.items()}

    def fingerprint(self, model_name: str) -> object:
        return _print_of(self._model(model_name))

    @contextmanager
    def hold(self, model_name: str, needed: Needed) -> Iterator[Path]:
        with ExitStack() as until_loaded:
            try:
                parent = until_loaded.enter_context(self._cache.folder())
                folder = self._download(model_name, parent, needed)
            except Unreachable as error:
                log.info("model '%s': %s", model_name, error.detail)
                raise ModelUnreachable(model_name, f"repository '{self._name}'", error.problem) from error
            except OSError as error:
                problem = f"can't be written: {error.strerror or error}"
                raise ModelUnreachable(model_name, "--repository-cache-folder", problem) from error
            yield folder

    def stop(self) -> None:
        self._patience.stop()
        self._store.stop()

    def close(self) -> None:
        self._cache.close()

    def _files(self, folder: str) -> dict[str, Mark]:
        """What counts of what is there, as of a folder of this machine."""
        found = self._patience.ask(f"{self._url}/{folder}".rstrip("/"), lambda: self._store.files(folder))
        return {path: mark for path, mark in found.items() if not any(map(passed_over, path.split("/")))}

    def _model(self, name: str) -> dict[str, Mark]:
        return {path.removeprefix(f"{name}/"): mark for path, mark in self._files(name).items()}

    # --- downloading ------------------------------------------------------------------------------

    def _download(self, name: str, parent: Path, needed: Needed) -> Path:
        """The model's folder below `parent`. Raises OSError, ModelLoadFailed, and what `needed` raises."""
        for round_ in range(_ROUNDS):
            files = self._model(name)
            self._check(name, files)
            folder = parent / str(round_) / name
            try:
                downloaded = self._fill(name, folder, files, needed)
            except _Changed as changed:
                log.info("model '%s': %s changed while it was downloaded", name, changed)
                continue
            if not downloaded or self._model(name) == files:
                return folder
            log.info("model '%s' changed while it was downloaded", name)
        raise ModelUnreachable(name, f"repository '{self._name}'", f"it changed in each of {_ROUNDS} downloads")

    def _check(self, name: str, files: Mapping[str, Mark]) -> None:
        if not files:
            raise ModelLoadFailed(name, ".", f"is gone from the repository '{self._name}'")
        for path in files:
            if not is_path_below(path):
                raise ModelLoadFailed(name, repr(path), "is no path of a file below the model's folder")

    def _fill(self, name: str, folder: Path, files: Mapping[str, Mark], needed: Needed) -> int:
        """Put what is needed of the files into `folder`; how many had to be downloaded."""
        for path in files:
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
        shared = {path: mark for path, mark in files.items() if concerns(path, "")}
        self._demand_room(name, shared)
        downloaded = self._bring(name, folder, shared)
        serving = needed(folder)
        rest = {path: mark for path, mark in files.items() if path not in shared and serving(path)}
        self._demand_room(name, shared | rest)
        return downloaded + self._bring(name, folder, rest)

    def _demand_room(self, name: str, files: Mapping[str, Mark]) -> None:
        size, most = sum(mark.size for mark in files.values()), self._cache.max_bytes
        if size > most:
            raise ModelLoadFailed(name, ".", f"has {size} bytes, over --repository-cache-max-bytes {most}")

    def _bring(self, name: str, folder: Path, files: Mapping[str, Mark]) -> int:
        """The files into `folder`, those from the cache that are there; how many had to be downloaded."""
        keys = {path: key_of(self._url, name, path, *mark) for path, mark in files.items()}
        missing = [p for p, mark in files.items() if not self._cache.take(keys[p], mark.size, folder / p)]
        self._cache.make_room(sum(files[path].size for path in missing), set(keys.values()))
        if not missing:
            return 0
        log.info("model '%s': downloading %d of %d files of %s", name, len(missing), len(files), self._url)
        with ThreadPoolExecutor(self._settings.downloads, thread_name_prefix="download") as pool:
            tasks = [
                pool.submit(self._fetch, f"{name}/{path}", files[path], folder / path, keys[path]) for path in missing
            ]
            try:
                for task in tasks:
                    task.result()
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                raise
        return len(missing)

    def _fetch(self, path: str, mark: Mark, to: Path, key: str) -> None:
        """Download one file, and keep it: what is here is not downloaded again, whatever becomes of the others."""
        url = f"{self._url}/{path}"
        self._patience.ask(url, lambda: self._store.fetch(path, to))
        now = self._patience.ask(url, lambda: self._store.mark(path))
        if now != mark or to.stat().st_size != mark.size:
            raise _Changed(path)
        self._cache.keep(to, key)


def _print_of(files: Mapping[str, Mark]) -> object:
    return tuple(sorted((path, *mark) for path, mark in files.items()))
