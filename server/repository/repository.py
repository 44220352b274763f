"""The model repository: which models and versions there are, loading them, and what became of each.

Loading is read config -> verify hashes -> load into the engine -> replay golden inputs -> warm up. It
blocks, and is meant for a thread. A version that fails keeps no other from serving; its reason is in the
index.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import NoReturn, TypeVar

from server.engine.base import Engine
from server.errors import (
    ModelLoadFailed,
    ModelUnreachable,
    NotInRepository,
    ServingError,
    UnknownModel,
    UnknownRepository,
)
from server.pipeline.base import Pipeline
from server.repository.certificate import Vouch
from server.repository.composition import InService, check_composition
from server.repository.loading import Loader, Outcome, ServedModel, failure_of
from server.repository.model_config import from_message, read_model_config
from server.repository.override import Override, check_model_name
from server.repository.remote.store import Unreachable
from server.repository.scratch import Scratch
from server.repository.sources import LocalSource, Source
from server.types import IndexEntry

__all__ = ["Repository", "ServedModel", "Survey"]

log = logging.getLogger(__name__)

Names = TypeVar("Names", bound=Collection[str])

READY = "READY"
UNAVAILABLE = "UNAVAILABLE"
LOADING = "LOADING"
UNLOADING = "UNLOADING"

NOT_LOADED = "not loaded"
UNLOADED = "unloaded"
"""Triton's word, and a reason that strict readiness takes for none."""


@dataclass(frozen=True, slots=True)
class Survey:
    """One look at all repositories."""

    fingerprints: Mapping[str, object]
    """Of every model, as `Repository.fingerprint` tells them."""
    unseen: frozenset[str]
    """Models of repositories that can't be read now, of which nothing is known."""


def _no_version(_folder: Path) -> Callable[[str], bool]:
    """What a config says needs no version's files."""
    return lambda path: False


def _nobody(name: str, version: str) -> NoReturn:
    raise UnknownModel(name, version)


class Repository:
    """The models of one source or several, loaded into `engine`. May be called from several threads, one for a model.

    `warmup_s` bounds the warm-up of one version.
    """

    def __init__(
        self,
        sources: Path | Sequence[Source],
        engine: Engine,
        *,
        load_pipeline: Callable[[Path], Pipeline],
        warmup_s: float,
        vouch: Vouch | None = None,
    ) -> None:
        """`vouch`: who must have signed a model, if any."""
        self._sources: Sequence[Source] = (LocalSource(sources),) if isinstance(sources, Path) else sources
        self._loader = Loader(engine, load_pipeline, warmup_s, vouch)
        self._scratch = Scratch()
        self._entries: dict[str, dict[str, IndexEntry]] = {}
        self._lock = threading.Lock()
        self._had: dict[Source, frozenset[str]] = {}
        """The models of each source at the last look that succeeded."""
        self._down: dict[Source, OSError] = {}
        """Why the last look at a source did not."""

    def stop(self) -> None:
        """Give up on downloads that are under way, and begin none. Any thread."""
        for source in self._sources:
            source.stop()

    def close(self) -> None:
        """Leave nothing behind. No load may be under way."""
        self._scratch.close()
        for source in self._sources:
            source.close()

    def names(self) -> list[str]:
        """Every model of the sources, sorted, but of remote ones that are out of reach: see `unreachable`.

        Raises:
            OSError: a repository of this machine can't be read.
        """
        found = {name for source in self._sources for name in self._look(source, source.names) or ()}
        for error in self._down.values():
            if not isinstance(error, Unreachable):
                raise error
        return sorted(found)

    def unreachable(self) -> list[str]:
        """The repositories that could not be read when they were looked at last, each with the reason."""
        return [f"{source.name}: {error}" for source, error in self._down.items()]

    def survey(self) -> Survey:
        """Look at all sources. One that can't be read keeps no other from being looked at; it is logged once."""
        marks: dict[str, list[object]] = {}
        unseen: set[str] = set()
        for source in self._sources:
            found = self._look(source, source.survey)
            if found is None:
                unseen.update(self._had.get(source, ()))
                continue
            for name, mark in found.items():
                marks.setdefault(name, []).append(mark)
        return Survey({name: tuple(each) for name, each in marks.items()}, frozenset(unseen))

    def index(self, repository_name: str = "") -> list[IndexEntry]:
        """Every version that was ever asked for, and every model of the sources that was not; of all, or of one source.

        Raises:
            UnknownRepository: no source has that name.
        """
        with self._lock:
            entries = [entry for versions in self._entries.values() for entry in versions.values()]
            loaded = set(self._entries)
        known = {name for source in self._named(repository_name) for name in _known(source)}
        entries.extend(IndexEntry(name, "", UNAVAILABLE, NOT_LOADED) for name in known if name not in loaded)
        if repository_name:
            entries = [entry for entry in entries if entry.name in known]
        return sorted(entries, key=lambda entry: (entry.name, int(entry.version or 0)))

    def fingerprint(self, name: str) -> object:
        """Equal for as long as no file of the model changed. Compare with ==.

        Raises:
            UnknownModel: no source has it.
            OSError: a remote one can't be asked.
        """
        return tuple(source.fingerprint(name) for source in self._sources_of(name))

    def load(
        self,
        name: str,
        override: Override | None = None,
        repository_name: str = "",
        in_service: InService = _nobody,
    ) -> list[ServedModel]:
        """Load the versions that the config's version_policy asks for, lowest first. Blocking.

        `in_service` knows the models that an ensemble may be composed of; it is called on this thread.

        What is returned is the whole of what the model serves from now on. If it raises, what was loaded
        before is untouched and still READY in the index.

        Raises:
            UnknownModel: no source has it, and no file of it was given.
            InvalidRequest: files were given for a name that no model can have.
            ModelLoadFailed: no version can be served; the reason of each is in the index. ModelUnreachable, if the
                model could not be had from its repository.
            UnknownRepository: no source has that name.
        """
        sources: list[Source] = []
        if override is not None and override.files:
            check_model_name(name)
        else:
            try:
                sources = self._sources_of(name, repository_name)
            except Unreachable as error:
                failure = ModelUnreachable(name, "--model-repository", f"can't be read: {error}")
                return self._settle(name, self._mark_loading(name), {"": failure})
        before = self._mark_loading(name)
        outcome: Outcome
        try:
            with self._folder(name, sources, override) as folder:
                message = override.config if override is not None else None
                check = partial(check_composition, in_service=in_service, steps_of=partial(self._steps_of, in_service))
                outcome = self._loader.load(folder, message, partial(self._mark_stage, name), check)
        except Exception as error:  # noqa: BLE001 - whatever it is, the other models must go on
            outcome = {"": failure_of(Path(name), error)}
        return self._settle(name, before, outcome)

    def composed_of(self, name: str, override: Override | None = None) -> set[str]:
        """The models that the steps of an ensemble are, as its config says; none of what is no sound ensemble."""
        try:
            if override is not None and override.config is not None:
                config = from_message(override.config, name)
            else:
                sources = self._sources_of(name)
                if len(sources) > 1:
                    return set()
                with sources[0].hold(name, _no_version) as folder:
                    config = read_model_config(folder)
        except (ServingError, OSError):
            return set()
        return config.ensemble.model_names if config.ensemble is not None else set()

    def _steps_of(self, in_service: InService, name: str) -> set[str]:
        try:
            config = in_service(name, "")
        except ServingError:
            return self.composed_of(name)
        return config.ensemble.model_names if config.ensemble is not None else set()

    def retiring(self, name: str, versions: Iterable[str], reason: str) -> None:
        """Note that these versions are out of service, and are finishing what they admitted."""
        with self._lock:
            entries = self._entries.setdefault(name, {})
            entries.update({version: IndexEntry(name, version, UNLOADING, reason) for version in versions})

    def mark(self, name: str, version: str, problem: str) -> None:
        """Note that a loaded version can't serve for now, and why; or, without a problem, that it serves."""
        with self._lock:
            entries = self._entries.setdefault(name, {})
            if not problem:
                entries.pop("", None)  # Of a load that failed meanwhile.
            entries[version] = IndexEntry(name, version, UNAVAILABLE if problem else READY, problem)

    def retired(self, name: str, version: str) -> None:
        """Note that a version is closed. It leaves the index if others of the model serve, or the model is gone."""
        gone = all(name not in _known(source) for source in self._sources)
        with self._lock:
            entries = self._entries.get(name, {})
            if version in entries and entries[version].state == UNLOADING:
                if gone or any(entry.state == READY for entry in entries.values()):
                    del entries[version]
                else:
                    entries[version] = IndexEntry(name, version, UNAVAILABLE, UNLOADED)
            if not entries:
                self._entries.pop(name, None)

    def unloaded(self, name: str) -> None:
        """Note that what is left of the model is asked for no more. Unknown names are fine.

        A model whose folder is gone leaves the index.
        """
        gone = all(name not in _known(source) for source in self._sources)
        with self._lock:
            entries = self._entries.get(name, {})
            for version in [version for version, entry in entries.items() if entry.state != UNLOADING]:
                if gone:
                    del entries[version]
                else:
                    entries[version] = IndexEntry(name, version, UNAVAILABLE, UNLOADED)
            if not entries:
                self._entries.pop(name, None)

    @contextmanager
    def _folder(self, name: str, sources: Sequence[Source], override: Override | None) -> Iterator[Path]:
        if override is not None and override.files:
            with override.folder(name, self._scratch) as folder:
                self._lend_labels(name, folder, override.wanted_labels())
                yield folder
            return
        if len(sources) > 1:
            several = ", ".join(source.name for source in sources)
            problem = f"the model is not unique across all model repositories: {several} have it"
            raise ModelLoadFailed(name, "--model-repository", problem)
        message = override.config if override is not None else None
        with sources[0].hold(name, partial(self._loader.needed, overriding=message)) as folder:
            yield folder

    def _lend_labels(self, name: str, folder: Path, paths: set[str]) -> None:
        """Labels that a load's own files lack are those of the repository, as with Triton; what nobody has is missed
        when the config is read."""
        holders = [source for source in self._sources if name in (self._look(source, source.names) or ())]
        if not paths or len(holders) != 1:
            return
        with holders[0].hold(name, lambda _: paths.__contains__) as origin:
            for path in paths:
                if (origin / path).is_file():
                    (folder / path).parent.mkdir(parents=True, exist_ok=True)
                    (folder / path).write_bytes((origin / path).read_bytes())

    def _named(self, repository_name: str) -> list[Source]:
        found = [source for source in self._sources if repository_name in ("", source.name)]
        if not found:
            raise UnknownRepository(repository_name)
        return found

    def _sources_of(self, name: str, repository_name: str = "") -> list[Source]:
        """Those that have the model. A name is looked up among those that are there, so none can lead out.

        Raises:
            NotInRepository: none has it.
            Unreachable: none that can be read has it, and there is one that can't.
        """
        asked = self._named(repository_name)
        found = [source for source in asked if name in (self._look(source, source.names) or ())]
        if found:
            return found
        for error in (self._down[source] for source in asked if source in self._down):
            if isinstance(error, Unreachable):
                raise error
        raise NotInRepository(name)

    def _look(self, source: Source, ask: Callable[[], Names]) -> Names | None:
        """What `ask` finds in the source; None: it can't be read, which is logged when it begins and when it ends."""
        try:
            found = ask()
        except OSError as error:
            before = self._down.get(source)
            self._down[source] = error
            if str(before) != str(error):
                told = error.detail if isinstance(error, Unreachable) else error
                log.error("the repository '%s' can't be read: %s", source.name, told)
            return None
        if self._down.pop(source, None) is not None:
            log.info("the repository '%s' can be read again", source.name)
        self._had[source] = frozenset(found)
        return found

    # --- what the index says --------------------------------------------------------------------

    def _mark_loading(self, name: str) -> dict[str, IndexEntry]:
        with self._lock:
            before = dict(self._entries.get(name, {}))
            if not any(entry.state == READY for entry in before.values()):
                going = {version: entry for version, entry in before.items() if entry.state == UNLOADING}
                self._entries[name] = {**going, "": IndexEntry(name, "", LOADING, "reading config.pbtxt")}
            return before

    def _mark_stage(self, name: str, version: str, stage: str) -> None:
        """What the load of a version has come to; of one that serves, it is a reason beside READY."""
        with self._lock:
            entries = self._entries.setdefault(name, {})
            entries.pop("", None)
            now = entries.get(version)
            if now is not None and now.state == READY:
                entries[version] = replace(now, reason=f"being loaded anew: {stage}")
            else:
                entries[version] = IndexEntry(name, version, LOADING, stage)

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
            now = self._entries.get(name, {})
            going = {v: e for v, e in now.items() if e.state == UNLOADING and v not in entries}
            self._entries[name] = {**going, **entries}
        if not served:
            raise list(failures.values())[-1]
        for failure in failures.values():
            log.error("%s; other versions of it serve", failure.public_message)
        return sorted(served, key=lambda model: int(model.version))


def _known(source: Source) -> list[str]:
    try:
        return source.known()
    except OSError as error:
        log.warning("the repository '%s' can't be read: %s", source.name, error)
        return []
