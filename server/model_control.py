"""The models in service: loaded, found by name and version, swapped under load, drained and closed.

Loading runs on threads of its own, a model at a time on each; all the rest here runs on the event loop.
A load that fails leaves the versions that serve as they are. A swap puts the new versions in service
first, then drains the old ones, then frees their memory: no request falls between them.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Coroutine, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from weakref import WeakValueDictionary

from server import process
from server.errors import ModelLoadFailed, ModelUnreachable, UnknownModel
from server.in_service import InService
from server.observability.catalog import Rows
from server.repository.composition import in_order
from server.repository.load_counts import LoadCounts
from server.repository.override import read_override
from server.repository.repository import Repository, ServedModel
from server.rollout import RolloutServed
from server.scheduler.response_cache import CacheCounts, ResponseCache
from server.scheduler.share import Share
from server.scheduler.statistics import ModelStatistics
from server.served import SequenceServed, Served
from server.serving import Serving
from server.types import IndexEntry

log = logging.getLogger(__name__)

_DRAIN_NS = 30_000_000_000
"""How long an old version may finish what it has admitted once it is out of service."""

_FINISHING = "answering what it has admitted"
"""What an index says of a version that is out of service, and not closed yet."""


class ModelControl:
    """All versions in service, and the way in and out of it."""

    def __init__(
        self,
        repository: Repository,
        *,
        default_max_queue_size: int,
        share: Share | None = None,
        cache_size_bytes: int = 0,
        load_threads: int = 1,
        max_override_bytes: int = 0,
        hang_s: float = 0.0,
    ) -> None:
        """`share`: of the cores between the models; None: the system shares them out among all their threads.
        `cache_size_bytes`: of the answers that are kept, of all models that ask for it; 0: none is.
        `load_threads`: models that may be loaded at a time. `max_override_bytes`: of the files of one load request.
        `hang_s`: a pass may take so long at least before its instance is replaced; 0: any time."""
        self._repository = repository
        self._cache = ResponseCache(cache_size_bytes) if cache_size_bytes else None
        self._serving = Serving(default_max_queue_size, share, self._cache, hang_s)
        self._in_service = InService(self.index, repository.mark)
        self.resolve = self._in_service.resolve
        """An attribute, because every request comes this way."""
        self._statistics: dict[tuple[str, str], ModelStatistics] = {}
        self._fingerprints: dict[str, object] = {}
        self._loads = LoadCounts()
        self._said: dict[str, str] = {}
        """What was logged of the last load of each model that failed."""
        self._max_override_bytes = max_override_bytes
        self._loader = ThreadPoolExecutor(max_workers=load_threads, thread_name_prefix="load")
        self._closer = ThreadPoolExecutor(max_workers=1, thread_name_prefix="unload")
        """Apart from the loader: the memory of what was replaced is freed while others load."""
        self._turns: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()
        """One load or unload of a model at a time, in the order in which they were asked for."""
        self._under_way: set[asyncio.Task[None]] = set()
        self._retiring: set[asyncio.Task[None]] = set()
        self.changed: Callable[[], None] | None = None
        """Called when a model was put in service or out of it, before what it replaced is drained."""

    def __iter__(self) -> Iterator[Served]:
        return iter(self._in_service)

    def versions(self, name: str) -> list[Served]:
        """The versions of a model in service, lowest first; empty where none is."""
        return self._in_service.versions(name)

    def rollouts(self) -> list[RolloutServed]:
        """Of the models whose config asks for one."""
        return [served for served in self._in_service.defaults() if isinstance(served, RolloutServed)]

    def counted(self) -> list[ModelStatistics]:
        """Of every version whose counts are kept."""
        return list(self._statistics.values())

    def statistics_of(self, name: str, version: str) -> ModelStatistics:
        """The counts of a version, which go on when it is loaded anew."""
        return self._statistics.setdefault((name, version), ModelStatistics(name, version))

    def cache_counts(self) -> CacheCounts | None:
        """Of the response cache; None: there is none."""
        return self._cache.counts() if self._cache is not None else None

    def load_rows(self) -> Rows:
        """The metrics of loads."""
        return self._loads.rows(served.model for served in self)

    def fingerprint(self, name: str) -> object:
        """Of the model's files as they were when it was loaded last; None: it was not, or not of them."""
        return self._fingerprints.get(name)

    def index(self, repository_name: str = "") -> list[IndexEntry]:
        """Every version that the repositories know, or one of them, in service or not, with its state and reason.

        Raises:
            UnknownRepository: no repository has that name.
        """
        return self._repository.index(repository_name)

    def names(self) -> list[str]:
        """Every model in the repository's folder."""
        return self._repository.names()

    async def look(self) -> tuple[list[str], list[str]]:
        """The models that there are, and why repositories can't be read. Raises OSError: one of this machine can't."""
        loop = asyncio.get_running_loop()
        names = await loop.run_in_executor(self._loader, self._repository.names)
        return names, self._repository.unreachable()

    async def load(self, name: str, parameters: Mapping[str, object] | None = None, repository_name: str = "") -> None:
        """Load a model, or load it anew, and put it in service; `parameters` as of Triton's load request.

        A load that has begun goes on if its caller is cancelled: what it loads must be in service, or be closed.

        Raises:
            UnknownModel: no repository has it.
            UnknownRepository: no repository has that name.
            InvalidRequest, PayloadTooLarge: of the parameters.
            ModelLoadFailed: no version could be loaded; what served before goes on serving.
        """
        await self._finished(self._load_with_steps(name, parameters or {}, repository_name))

    async def _finished(self, load: Coroutine[None, None, None]) -> None:
        task = asyncio.get_running_loop().create_task(load)
        self._under_way.add(task)
        task.add_done_callback(self._under_way.discard)
        await asyncio.shield(task)

    async def _load_with_steps(self, name: str, parameters: Mapping[str, object], repository_name: str) -> None:
        """Of an ensemble, what it is composed of first, if that does not serve or has changed."""
        loop = asyncio.get_running_loop()
        for other in await loop.run_in_executor(self._loader, self._due_before, name, parameters):
            try:
                await self._load(other, {}, "")
            except (ModelLoadFailed, UnknownModel) as error:
                log.error("%s", error.public_message)  # The ensemble will say what it lacks.
        await self._load(name, parameters, repository_name)

    def _due_before(self, name: str, parameters: Mapping[str, object]) -> list[str]:
        """On a thread."""
        steps = self._repository.composed_of(name, read_override(parameters, self._max_override_bytes))
        return [other for other in in_order(steps, self._repository.composed_of) if other != name and self._due(other)]

    def _due(self, name: str) -> bool:
        known = self._fingerprints.get(name)
        if name not in self._in_service:
            return True
        try:
            # One that was loaded of a request's parameters stays as it is.
            return known is not None and known != self._repository.fingerprint(name)
        except (OSError, UnknownModel):
            return False

    async def _load(self, name: str, parameters: Mapping[str, object], repository_name: str) -> None:
        async with self._turns.setdefault(name, asyncio.Lock()):
            loop = asyncio.get_running_loop()
            try:
                mark, models = await loop.run_in_executor(self._loader, self._read, name, parameters, repository_name)
            except Exception as error:
                self._loads.failed(name, error)
                raise
            self._loads.loaded(name, replaces=bool(self._in_service.loaded(name)))
            self._fingerprints[name] = mark
            self._replace(name, [self._serving.serve(m, self.statistics_of(m.name, m.version)) for m in models])

    def _read(
        self, name: str, parameters: Mapping[str, object], repository_name: str
    ) -> tuple[object, list[ServedModel]]:
        """What was loaded, and the mark of the files that it is of. On a thread."""
        override = read_override(parameters, self._max_override_bytes)
        if override is not None and override.files:
            return None, self._repository.load(name, override, repository_name, self._in_service.config_of)
        try:
            mark = self._repository.fingerprint(name)
        except OSError:
            mark = None  # The load says what is wrong.
        # Here already, for a load that fails: what did not change since is not tried again.
        self._fingerprints[name] = mark
        try:
            return mark, self._repository.load(name, override, repository_name, self._in_service.config_of)
        except ModelUnreachable:
            self._fingerprints[name] = None  # But this is.
            raise

    async def unload(self, name: str, *, with_composing: bool = False) -> None:
        """Take a model out of service and free it once it has answered what it admitted.

        `with_composing`: also the models that it is composed of (an ensemble's steps), but for those that others in
        service are composed of as well. Triton calls it `unload_dependents`.

        Raises:
            UnknownModel: the model is not in the repository, nor in service.
        """
        composing = sorted(self._in_service.composed_of(name) - {name}) if with_composing else []
        async with self._turns.setdefault(name, asyncio.Lock()):
            loop = asyncio.get_running_loop()
            if name not in self._in_service and name not in await loop.run_in_executor(self._loader, self._known):
                raise UnknownModel(name)
            self._replace(name, [])
            await loop.run_in_executor(self._closer, self._repository.unloaded, name)
        for other in composing:
            if self._in_service.loaded(other) and not self._in_service.users_of(other):
                await self.unload(other, with_composing=True)

    def _known(self) -> set[str]:
        return {entry.name for entry in self._repository.index()}

    async def load_all(self, names: list[str]) -> None:
        """Load each of `names`, ensembles behind the models that they are composed of, and such models that do not
        serve yet; what can't be loaded is logged, once, and stays in the index with its reason."""
        loop = asyncio.get_running_loop()
        order = await loop.run_in_executor(self._loader, in_order, names, self._repository.composed_of)
        for name in [name for name in order if name in names or name not in self._in_service]:
            try:
                await self._finished(self._load(name, {}, ""))
            except (ModelLoadFailed, UnknownModel) as error:
                if self._said.get(name) != error.public_message:
                    log.error("%s", error.public_message)
                self._said[name] = error.public_message
            else:
                self._said.pop(name, None)

    async def poll(self, interval_s: float) -> None:
        """Follow the repository's folder until cancelled: load what is new or changed, unload what is gone."""
        while True:
            await asyncio.sleep(interval_s)
            await self._follow()

    async def _follow(self) -> None:
        """What is in a repository that can't be read now stays as it is."""
        survey = await asyncio.get_running_loop().run_in_executor(self._loader, self._repository.survey)
        there = survey.fingerprints
        for name in [name for name in self._fingerprints if name not in there and name not in survey.unseen]:
            del self._fingerprints[name]
            await self.unload(name)
        changed = [n for n in sorted(there) if there[n] != self._fingerprints.get(n) and n not in survey.unseen]
        if changed:
            loop = asyncio.get_running_loop()
            await self.load_all(await loop.run_in_executor(self._loader, self._with_waiting, sorted(there), changed))

    def _with_waiting(self, names: list[str], changed: list[str]) -> list[str]:
        """`changed` and the ensembles that could not be loaded without them. On a thread."""
        due = set(changed)
        for name in in_order(names, self._repository.composed_of):
            if not self._in_service.loaded(name) and due & self._repository.composed_of(name):
                due.add(name)
        return [name for name in names if name in due]

    def _replace(self, name: str, new: list[Served]) -> None:
        old = self._in_service.loaded(name)
        newest = self._in_service.newest(name)
        new.sort(key=lambda served: int(served.model.version))
        self._repository.retiring(name, {s.model.version for s in old} - {s.model.version for s in new}, _FINISHING)
        self._in_service.put(name, new)
        for served in new:
            if isinstance(served, SequenceServed):
                version = served.model.version
                served.replaces([e for e in old if e.model.version == version or (e is newest and served is new[-1])])
        if self.changed is not None:
            self.changed()
        if isinstance(newest, RolloutServed):
            self._retire_soon(newest.drain(time.monotonic_ns() + _DRAIN_NS))
        for served in old:
            self._retire_soon(self._retire(served, time.monotonic_ns() + _DRAIN_NS))

    def _retire_soon(self, work: Coroutine[None, None, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._retiring.add(task)
        task.add_done_callback(self._retiring.discard)

    async def _retire(self, served: Served, until_ns: int) -> None:
        await served.drain(until_ns)
        await served.batcher.close()
        for other in self:
            if isinstance(other, SequenceServed) and served in other.elders:
                other.elders.remove(served)
        await asyncio.get_running_loop().run_in_executor(self._closer, self._free, served)
        self._forget(served)
        self._in_service.review()  # An ensemble's reason for not serving may be this one's state.

    def _free(self, served: Served) -> None:
        served.model.engine_model.close()
        process.reclaim()
        self._repository.retired(served.model.name, served.model.version)

    def _forget(self, served: Served) -> None:
        """Statistics outlive a reload and an unload, and no version that others took the place of."""
        name, version = served.model.name, served.model.version
        versions = {served.model.version for served in self._in_service.loaded(name)}
        if versions and version not in versions:
            self._statistics.pop((name, version), None)

    async def finish_sequences(self, until_ns: int) -> None:
        """Start no sequence any more; returns when those that have begun are over, at `until_ns` at the latest."""
        served = [each for s in self if isinstance(s, SequenceServed) for each in (s, *s.elders)]
        await asyncio.gather(*(each.sequences.drain(until_ns) for each in served))

    async def drain(self, until_ns: int) -> None:
        """Answer what every version has admitted; what is left at `until_ns` is settled as UNAVAILABLE."""
        await asyncio.gather(*(served.drain(until_ns) for served in (*self, *self.rollouts())))

    async def settled(self) -> None:
        """Return when what is out of service by now is closed."""
        if self._retiring:
            await asyncio.wait(set(self._retiring))

    async def close(self) -> None:
        """Take everything out of service and free it. Requests that still wait are settled as UNAVAILABLE."""
        self._repository.stop()
        if self._under_way:
            await asyncio.gather(*self._under_way, return_exceptions=True)
        now = time.monotonic_ns()
        for served in self._in_service.clear():
            await self._retire(served, now)
        if self._retiring:
            await asyncio.gather(*self._retiring, return_exceptions=True)
        self._loader.shutdown()
        self._closer.shutdown()
        if self._cache is not None:
            self._cache.offload.close()
        self._repository.close()
