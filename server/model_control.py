"""The models in service: loaded, found by name and version, swapped under load, drained and closed.

Loading runs on threads of its own, a model at a time on each; all the rest here runs on the event loop.
A load that fails leaves the versions that serve as they are. A swap puts the new versions in service
first, then drains the old ones, then frees their memory: no request falls between them.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from weakref import WeakValueDictionary

from server import process
from server.errors import ModelLoadFailed, ModelUnreachable, UnknownModel
from server.queueing import priorities, queue_policy
from server.repository.override import read_override
from server.repository.repository import Repository, ServedModel
from server.scheduler.batcher import Batcher
from server.scheduler.caching import CachingBatcher
from server.scheduler.costs import Costs, make_costs
from server.scheduler.decoupled import DecoupledBatcher
from server.scheduler.plan import Limits
from server.scheduler.queue import QueuePolicy
from server.scheduler.response_cache import CacheCounts, ResponseCache
from server.scheduler.sequence_batcher import SequenceBatcher
from server.scheduler.share import Share
from server.scheduler.statistics import ModelStatistics
from server.sequences import SequenceBatching
from server.served import DecoupledServed, ModelBatcher, SequenceServed, Served, absent
from server.types import IndexEntry

log = logging.getLogger(__name__)

_DRAIN_NS = 30_000_000_000
"""How long an old version may finish what it has admitted once it is out of service."""

_FINISHING = "answering what it has admitted"
"""What an index says of a version that is out of service, and not closed yet."""


def costs_of(model: ServedModel) -> Costs:
    """What its passes cost, as the warm-up found it."""
    config = model.config
    return make_costs(
        {instance.device: model.costs_ns.get(instance.device, {}) for instance in model.engine_model.instances},
        by_length=any(-1 in spec.dims for spec in config.inputs),
        buckets=config.buckets.lengths if config.buckets else (),
        max_batch_size=config.max_batch_size,
    )


def composed_of(model: ServedModel) -> set[str]:
    """The models that run as steps of this one; empty for all but ensembles."""
    return {step.model_name for step in model.config.message.ensemble_scheduling.step}


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
    ) -> None:
        """`share`: of the cores between the models; None: the system shares them out among all their threads.
        `cache_size_bytes`: of the answers that are kept, of all models that ask for it; 0: none is.
        `load_threads`: models that may be loaded at a time. `max_override_bytes`: of the files of one load request."""
        self._repository = repository
        self._share = share
        self._cache = ResponseCache(cache_size_bytes) if cache_size_bytes else None
        self._default_max_queue_size = default_max_queue_size
        self._served: dict[str, dict[str, Served]] = {}
        self._newest: dict[str, Served] = {}
        self._statistics: dict[tuple[str, str], ModelStatistics] = {}
        self._fingerprints: dict[str, object] = {}
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

    def resolve(self, name: str, version: str = "") -> Served:
        """The version in service that a request means; the highest number where it names none.

        Raises:
            UnknownModel: the repository has no such model, or does not serve that version.
            ModelNotReady: the model is there, and not in service; says why.
        """
        served = self._served[name].get(version) if version and name in self._served else self._newest.get(name)
        if served is None:
            raise absent(name, version, self.index(), others_serve=name in self._newest)
        return served

    def __iter__(self) -> Iterator[Served]:
        for versions in self._served.values():
            yield from versions.values()

    def versions(self, name: str) -> list[Served]:
        """The versions of a model in service, lowest first; empty where none is."""
        return list(self._served.get(name, {}).values())

    def counted(self) -> list[ModelStatistics]:
        """Of every version whose counts are kept."""
        return list(self._statistics.values())

    def statistics_of(self, name: str, version: str) -> ModelStatistics:
        """The counts of a version, which go on when it is loaded anew."""
        return self._statistics.setdefault((name, version), ModelStatistics(name, version))

    def cache_counts(self) -> CacheCounts | None:
        """Of the response cache; None: there is none."""
        return self._cache.counts() if self._cache is not None else None

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
        task = asyncio.get_running_loop().create_task(self._load(name, parameters or {}, repository_name))
        self._under_way.add(task)
        task.add_done_callback(self._under_way.discard)
        await asyncio.shield(task)

    async def _load(self, name: str, parameters: Mapping[str, object], repository_name: str) -> None:
        async with self._turns.setdefault(name, asyncio.Lock()):
            loop = asyncio.get_running_loop()
            mark, models = await loop.run_in_executor(self._loader, self._read, name, parameters, repository_name)
            self._fingerprints[name] = mark
            self._replace(name, [self._serve(model) for model in models])

    def _read(
        self, name: str, parameters: Mapping[str, object], repository_name: str
    ) -> tuple[object, list[ServedModel]]:
        """What was loaded, and the mark of the files that it is of. On a thread."""
        override = read_override(parameters, self._max_override_bytes)
        if override is not None and override.files:
            return None, self._repository.load(name, override, repository_name)
        try:
            mark = self._repository.fingerprint(name)
        except OSError:
            mark = None  # The load says what is wrong.
        # Here already, for a load that fails: what did not change since is not tried again.
        self._fingerprints[name] = mark
        try:
            return mark, self._repository.load(name, override, repository_name)
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
        composing = self._composing(name) if with_composing else []
        async with self._turns.setdefault(name, asyncio.Lock()):
            loop = asyncio.get_running_loop()
            if name not in self._served and name not in await loop.run_in_executor(self._loader, self._known):
                raise UnknownModel(name)
            self._replace(name, [])
            await loop.run_in_executor(self._closer, self._repository.unloaded, name)
        for other in composing:
            if other in self._served and not any(other in composed_of(served.model) for served in self):
                await self.unload(other, with_composing=True)

    def _known(self) -> set[str]:
        return {entry.name for entry in self._repository.index()}

    def _composing(self, name: str) -> list[str]:
        return sorted({other for served in self.versions(name) for other in composed_of(served.model)} - {name})

    async def load_all(self, names: list[str]) -> None:
        """Load each of `names`; what can't be loaded is logged, once, and stays in the index with its reason."""
        for name in names:
            try:
                await self.load(name)
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
        await self.load_all(
            [n for n in sorted(there) if there[n] != self._fingerprints.get(n) and n not in survey.unseen]
        )

    def _serve(self, model: ServedModel) -> Served:
        statistics = self.statistics_of(model.name, model.version)
        sequences = model.config.sequence_batching
        if sequences is not None:
            return self._serve_sequences(model, sequences, statistics)
        if model.config.decoupled:
            return self._serve_decoupled(model, statistics)
        config = model.config
        batching = config.dynamic_batching
        # A model without dynamic_batching runs each request alone: Triton's default scheduler.
        limits = Limits(
            max_batch_size=config.max_batch_size if batching else 0,
            preferred_batch_size=batching.preferred_batch_size if batching else (),
            max_queue_delay_ns=batching.max_queue_delay_microseconds * 1000 if batching else 0,
        )
        batcher = Batcher(
            model.name,
            model.version,
            model.engine_model.instances,
            limits,
            queue_policy(config, self._default_max_queue_size),
            costs_of(model),
            statistics,
            asyncio.get_running_loop(),
            priorities=priorities(config, self._default_max_queue_size),
            slo_ns=int(config.slo_ms * 1_000_000),
            preserve_ordering=batching.preserve_ordering if batching else False,
            share=self._share,
            fair_by_tenant=config.fair_by_tenant,
            buckets=config.buckets,
        )
        return Served(model, self._with_cache(model, batcher, statistics), statistics)

    def _with_cache(self, model: ServedModel, batcher: Batcher, statistics: ModelStatistics) -> ModelBatcher:
        """As in Triton, a model whose answers are to be kept is served without where the server keeps none."""
        if not model.config.response_cache:
            return batcher
        if self._cache is None:
            log.warning(
                "model '%s' has a response_cache, and the server keeps no answers (--cache-size-bytes)", model.name
            )
            return batcher
        slo_ns = int(model.config.slo_ms * 1_000_000)
        return CachingBatcher(batcher, model.version, self._cache, statistics, slo_ns=slo_ns)

    def _serve_decoupled(self, model: ServedModel, statistics: ModelStatistics) -> DecoupledServed:
        config, fair, loop = model.config, model.config.fair_by_tenant, asyncio.get_running_loop()
        size, slo_ns = self._default_max_queue_size, int(config.slo_ms * 1_000_000)
        who = model.name, model.version, model.engine_model.instances, queue_policy(config, size)
        levels = priorities(config, size)
        batcher = DecoupledBatcher(
            *who, statistics, loop, priorities=levels, slo_ns=slo_ns, share=self._share, fair_by_tenant=fair
        )
        return DecoupledServed(model, batcher, statistics)

    def _serve_sequences(
        self, model: ServedModel, sequences: SequenceBatching, statistics: ModelStatistics
    ) -> SequenceServed:
        batcher = SequenceBatcher(
            model.name,
            model.version,
            model.engine_model.instances,
            sequences,
            model.config.max_batch_size,
            QueuePolicy(max_queue_size=self._default_max_queue_size),
            costs_of(model),
            statistics,
            asyncio.get_running_loop(),
            outputs=[spec.name for spec in model.config.outputs],
            slo_ns=int(model.config.slo_ms * 1_000_000),
            share=self._share,
        )
        return SequenceServed(model, batcher, statistics)

    def _replace(self, name: str, new: list[Served]) -> None:
        old = list(self._served.pop(name, {}).values())
        newest = self._newest.pop(name, None)
        if new:
            new.sort(key=lambda served: int(served.model.version))
            self._served[name] = {served.model.version: served for served in new}
            self._newest[name] = new[-1]
        for served in new:
            if isinstance(served, SequenceServed):
                version = served.model.version
                served.replaces([e for e in old if e.model.version == version or (e is newest and served is new[-1])])
        self._repository.retiring(name, {s.model.version for s in old} - {s.model.version for s in new}, _FINISHING)
        if self.changed is not None:
            self.changed()
        for served in old:
            task = asyncio.get_running_loop().create_task(self._retire(served, time.monotonic_ns() + _DRAIN_NS))
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

    def _free(self, served: Served) -> None:
        served.model.engine_model.close()
        process.reclaim()
        self._repository.retired(served.model.name, served.model.version)

    def _forget(self, served: Served) -> None:
        """Statistics outlive a reload and an unload, and no version that others took the place of."""
        name, version = served.model.name, served.model.version
        if name in self._served and version not in self._served[name]:
            self._statistics.pop((name, version), None)

    async def finish_sequences(self, until_ns: int) -> None:
        """Start no sequence any more; returns when those that have begun are over, at `until_ns` at the latest."""
        served = [each for s in self if isinstance(s, SequenceServed) for each in (s, *s.elders)]
        await asyncio.gather(*(each.sequences.drain(until_ns) for each in served))

    async def drain(self, until_ns: int) -> None:
        """Answer what every version has admitted; what is left at `until_ns` is settled as UNAVAILABLE."""
        await asyncio.gather(*(served.drain(until_ns) for served in self))

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
        for name in list(self._served):
            for served in self._served[name].values():
                await self._retire(served, now)
        self._served.clear()
        self._newest.clear()
        if self._retiring:
            await asyncio.gather(*self._retiring, return_exceptions=True)
        self._loader.shutdown()
        self._closer.shutdown()
        if self._cache is not None:
            self._cache.offload.close()
        self._repository.close()
