"""The model repository: which models and versions there are, loading them, and what became of each.

Loading is read config -> verify hashes -> load into the engine -> replay golden inputs -> warm up. It
blocks, and is meant for a thread. A version that fails keeps no other from serving; its reason is in the
index.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Mapping
from pathlib import Path

from server.engine.base import Engine
from server.errors import ModelLoadFailed, UnknownModel
from server.pipeline.base import Pipeline
from server.repository.certificate import MANIFEST_FILE, model_files
from server.repository.loading import Loader, Outcome, ServedModel, failure_of
from server.types import IndexEntry

__all__ = ["Repository", "ServedModel"]

log = logging.getLogger(__name__)

READY = "READY"
UNAVAILABLE = "UNAVAILABLE"
LOADING = "LOADING"


class Repository:
    """The models in the folder `root`, loaded into `engine`. May be called from several threads.

    `warmup_s` bounds the warm-up of one version.
    """

    def __init__(
        self, root: Path, engine: Engine, *, load_pipeline: Callable[[Path], Pipeline], warmup_s: float
    ) -> None:
        self._root = root
        self._loader = Loader(engine, load_pipeline, warmup_s)
        self._entries: dict[str, dict[str, IndexEntry]] = {}
        self._lock = threading.Lock()
        self._loading = threading.Lock()

    def names(self) -> list[str]:
        """Every folder in the repository, sorted; hidden ones are none of ours.

        Raises:
            OSError: the repository can't be read.
        """
        return sorted(path.name for path in self._root.iterdir() if not path.name.startswith(".") and path.is_dir())

    def index(self) -> list[IndexEntry]:
        """Every version that was ever asked for, and every model of the folder that was not."""
        with self._lock:
            entries = [entry for versions in self._entries.values() for entry in versions.values()]
            known = set(self._entries)
        try:
            entries.extend(
                IndexEntry(name, "", UNAVAILABLE, "not loaded") for name in self.names() if name not in known
            )
        except OSError as error:
            log.warning("the repository can't be read: %s", error)
        return sorted(entries, key=lambda entry: (entry.name, int(entry.version or 0)))

    def fingerprint(self, name: str) -> object:
        """Equal for as long as no file of the model changed. Compare with ==.

        Raises:
            UnknownModel: there is no such folder.
        """
        folder = self._folder(name)
        marks = []
        for path in (*model_files(folder), Path(MANIFEST_FILE)):
            try:
                stat = (folder / path).stat()
            except OSError:
                continue  # gone since it was listed, or a dead link: its absence is the mark
            marks.append((path.as_posix(), stat.st_mtime_ns, stat.st_size, stat.st_ino))
        return tuple(marks)

    def load(self, name: str) -> list[ServedModel]:
        """Load the versions that the config's version_policy asks for, lowest first. Blocking.

        What is returned is the whole of what the model serves from now on. If it raises, what was loaded
        before is untouched and still READY in the index.

        Raises:
            UnknownModel: there is no such folder.
            ModelLoadFailed: no version can be served; the reason of each is in the index.
        """
        folder = self._folder(name)
        with self._loading:
            before = self._mark_loading(name)
            outcome: Outcome
            try:
                outcome = self._loader.load(folder)
            except Exception as error:  # noqa: BLE001 - whatever it is, the other models must go on
                outcome = {"": failure_of(folder, error)}
            return self._settle(name, before, outcome)

    def unload(self, name: str) -> None:
        """Note that the model is out of service; the caller closes what it has. Unknown names are fine.

        A model whose folder is gone leaves the index.
        """
        gone = not (self._root / name).is_dir()
        with self._lock:
            if name not in self._entries:
                return
            if gone:
                del self._entries[name]
            else:
                self._entries[name] = {
                    version: IndexEntry(name, version, UNAVAILABLE, "unloaded") for version in self._entries[name]
                }

    def _folder(self, name: str) -> Path:
        """The model's folder. A name is looked up among those that are there, so none can lead out of it."""
        try:
            names = self.names()
        except OSError as error:
            raise UnknownModel(name) from error
        if name not in names:
            raise UnknownModel(name)
        return self._root / name

    # --- what the index says --------------------------------------------------------------------

    def _mark_loading(self, name: str) -> dict[str, IndexEntry]:
        with self._lock:
            before = self._entries.get(name, {})
            if not any(entry.state == READY for entry in before.values()):
                self._entries[name] = {"": IndexEntry(name, "", LOADING, "")}
            return before

    def _settle(self, name: str, before: Mapping[str, IndexEntry], outcome: Outcome) -> list[ServedModel]:
        served = [result for result in outcome.values() if isinstance(result, ServedModel)]
        failures = {version: result for version, result in outcome.items() if isinstance(result, ModelLoadFailed)}
        entries = {model.version: IndexEntry(name, model.version, READY, "") for model in served}
        for version, failure in failures.items():
            entries[version] = IndexEntry(name, version, UNAVAILABLE, f"{failure.where}: {failure.problem}")
        if not served:
            # The versions loaded before go on serving: they stay READY, with the reason beside them.
            reason = "; ".join(entry.reason for entry in entries.values())
            still = [entry.version for entry in before.values() if entry.state == READY]
            entries.update({v: IndexEntry(name, v, READY, f"the last load failed: {reason}") for v in still})
            if still:
                entries.pop("", None)
        with self._lock:
            self._entries[name] = entries
        if not served:
            raise list(failures.values())[-1]
        for failure in failures.values():
            log.error("%s; other versions of it serve", failure.public_message)
        return sorted(served, key=lambda model: int(model.version))
