"""The models that Tritons have, in service here: what appears there appears here, what vanishes there vanishes here.

Stands where `ModelControl` stands over the embedded engine. A model vanishes only when a Triton that can be asked says
so: while all that had it are down it stays, and says that it is not ready.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Coroutine, Iterator, Mapping
from contextlib import suppress
from typing import Any

from server.engine.triton.methods import CONFIG, LOAD, METADATA, UNLOAD, Unary
from server.engine.triton.pool import Pool
from server.engine.triton.server import ModelKey, TritonServer
from server.errors import CallExpired, ModelLoadFailed, ServingError, TritonUnreached, UnknownRepository
from server.observability.catalog import Rows
from server.over_triton.control import load_message, unload_message
from server.over_triton.pipelines import Pipelines
from server.over_triton.version import Version
from server.proto.triton import model_config_pb2
from server.proto.triton import service_pb2 as pb
from server.rollout import RolloutServed, rolled_out
from server.scheduler.statistics import ModelStatistics
from server.served import Served, absent
from server.settings import TritonSettings
from server.types import IndexEntry

log = logging.getLogger(__name__)

_DRAIN_NS = 30_000_000_000
"""How long an old version may finish what it has admitted once it is out of service."""
_READY = "READY"
_UNAVAILABLE = "UNAVAILABLE"

Told = tuple[TritonServer, ModelKey]


class TritonModels:
    """All versions in service, and the way in and out of it, which is Triton's. All on the event loop."""

    def __init__(
        self,
        pool: Pool,
        pipelines: Pipelines,
        settings: TritonSettings,
        *,
        default_max_queue_size: int,
        max_override_bytes: int,
    ) -> None:
        """Nobody is asked before `load_all`."""
        self.pool = pool
        self._pipelines = pipelines
        self._settings = settings
        self._default_max_queue_size = default_max_queue_size
        self._max_override_bytes = max_override_bytes
        self._versions: dict[ModelKey, Version] = {}
        self._defaults: dict[str, Served] = {}
        """Who gets the requests that name no version, of each model in service."""
        self._configs: dict[Told, bytes] = {}
        """What each Triton said of each version that it serves."""
        self._refused: dict[ModelKey, dict[bytes, str]] = {}
        """Configs of versions that this server can't stand in front of, and why."""
        self._untold = False
        """A Triton did not say, when it was last asked, what it serves."""
        self._statistics: dict[ModelKey, ModelStatistics] = {}
        self._retiring: set[asyncio.Task[None]] = set()
        self._turn = asyncio.Lock()
        self._look = asyncio.Event()
        self._following: asyncio.Task[None] | None = None
        pool.changed = self._on_change

    # --- as of `Models` ---------------------------------------------------------------------------

    def resolve(self, name: str, version: str = "") -> Served:
        """The version in service that a request means; the highest number, or a rollout, where it names none.

        Raises:
            UnknownModel: no Triton has such a model, or none of them serves that version.
            ModelNotReady: it is there, and not in service; says why.
        """
        if not version and (served := self._defaults.get(name)) is not None:
            return served
        found = self._versions.get((name, version))
        if found is None:
            raise absent(name, version, self.index(), others_serve=name in self._defaults)
        return found.served

    def rollouts(self) -> list[RolloutServed]:
        """Of the models whose config asks for one."""
        return [served for served in self._defaults.values() if isinstance(served, RolloutServed)]

    def _choose(self, name: str) -> None:
        """Say anew who gets the requests that name no version: which versions there are is another matter than it was.
        A candidate that was rolled back is on trial again."""
        old = self._defaults.pop(name, None)
        versions = {version.key[1]: version.served for version in self._of(name)}
        if versions:
            self._defaults[name] = rolled_out(versions)
        if isinstance(old, RolloutServed):
            self._retire_soon(old.drain(time.monotonic_ns() + _DRAIN_NS))

    def _of(self, name: str) -> list[Version]:
        """Lowest first."""
        found = [version for key, version in self._versions.items() if key[0] == name]
        return sorted(found, key=lambda version: int(version.key[1]))

    def placed(self) -> list[Version]:
        """Every version in service."""
        return list(self._versions.values())

    def version(self, name: str, version: str = "") -> Version:
        """Raises as `resolve`."""
        model = self.resolve(name, version).model
        return self._versions[model.name, model.version]

    def versions(self, name: str) -> list[Served]:
        """The versions of a model in service, lowest first; empty where none is."""
        return [version.served for version in self._of(name)]

    def __iter__(self) -> Iterator[Served]:
        for key in sorted(self._versions, key=lambda key: (key[0], int(key[1]))):
            yield self._versions[key].served

    def names(self) -> list[str]:
        """What Tritons have."""
        return sorted({name for server in self.pool.servers for name, _ in server.index})

    def index(self, repository_name: str = "") -> list[IndexEntry]:
        """What Tritons say of every model they know; READY is what one of them serves, and this server too.

        Raises:
            UnknownRepository: a repository is named; those of Tritons have no names.
        """
        if repository_name:
            raise UnknownRepository(repository_name)
        entries: dict[ModelKey, IndexEntry] = {}
        for server in self.pool.servers:
            for key, told in server.index.items():
                entry = self._entry(server, told)
                if key not in entries or entries[key].state != _READY:
                    entries[key] = entry
        known = {name for (name, version) in entries if version}
        shown = [entry for entry in entries.values() if entry.version or entry.name not in known]
        return sorted(shown, key=lambda entry: (entry.name, int(entry.version or 0)))

    def _entry(self, server: TritonServer, told: IndexEntry) -> IndexEntry:
        key = (told.name, told.version)
        if told.state != _READY:
            return told
        if not server.up:
            return IndexEntry(*key, _UNAVAILABLE, "no server that has it is ready")
        version = self._versions.get(key)
        if version is not None and version.is_served_by(server):
            return IndexEntry(*key, _READY, version.problem)
        config = self._configs.get((server, key), b"")
        other = version is not None and config
        why = "its config is another than that in service" if other else "not looked at yet"
        return IndexEntry(*key, _UNAVAILABLE, self._refused.get(key, {}).get(config, why))

    # --- following Tritons ------------------------------------------------------------------------

    async def look(self) -> tuple[list[str], list[str]]:
        """The models, and why repositories can't be read: nothing is read of the latter before `load_all`."""
        return self.names(), []

    async def load_all(self, names: list[str]) -> None:
        """Find the Tritons and put in service what they have; from now on they are followed. `names`: to be loaded
        there before."""
        await self.pool.start()
        for name in names:
            try:
                await self.load(name)
            except ServingError as error:
                log.error("model '%s' is not loaded: %s", name, error.public_message)
        await self._follow()
        self._following = asyncio.get_running_loop().create_task(self._follow_on())

    def following(self) -> bool:
        """Whoever follows the Tritons is at it."""
        return self._following is None or not self._following.done()

    def _on_change(self) -> None:
        """A Triton came, went, or tells another index: at once for what is in service, the rest soon."""
        there = set(self.pool.up)
        self._configs = {told: config for told, config in self._configs.items() if told[0] in there}
        self._place()
        self._look.set()

    def _place(self) -> None:
        """Who has which version. One that has come up anew is asked for its configs before it is sent anything."""
        for key, version in self._versions.items():
            same = version.message.SerializeToString(deterministic=True)
            version.serve_by([s for s in self.pool.up if s.has(key) and self._configs.get((s, key)) == same])

    async def _follow_on(self) -> None:
        loop, settings = asyncio.get_running_loop(), self._settings
        anew_at = loop.time() + settings.poll_s
        while True:
            wait_s = min(anew_at - loop.time(), settings.health_interval_s if self._untold else settings.poll_s)
            with suppress(TimeoutError):
                await asyncio.wait_for(self._look.wait(), wait_s)
            self._look.clear()
            anew = loop.time() >= anew_at
            if anew:
                anew_at = loop.time() + settings.poll_s
            try:
                await self._follow(anew=anew)
            except Exception:
                log.exception("what Tritons have could not be followed; it is tried again")

    async def _follow(self, *, anew: bool = False) -> None:
        """Put in service what is there, and out of it what is not. `anew`: ask for configs that are known too."""
        async with self._turn:
            told = [(server, key) for server in self.pool.up for key in server.index if server.has(key)]
            asked = told if anew else [one for one in told if one not in self._configs]
            await asyncio.gather(*(self._ask_config(*one) for one in asked))
            self._configs = {one: self._configs[one] for one in told if one in self._configs}
            self._untold = len(self._configs) < len(told)
            # Together: none waits for the first pass of another. Whatever fails, all are over then.
            keys = dict.fromkeys(key for _, key in self._configs)
            renewed = await asyncio.gather(*map(self._renew, keys), return_exceptions=True)
            for key in [key for key in self._versions if not self._is_there(key)]:
                log.info("model %s version %s is gone from the Tritons", *key)
                self._take_out(key)
            self._refused = {key: why for key, why in self._refused.items() if self._is_there(key)}
            self._place()
            for failure in filter(None, renewed):
                raise failure

    def _is_there(self, key: ModelKey) -> bool:
        """As far as is known: one that is down is taken to have what it had."""
        entries = [server.index.get(key) for server in self.pool.servers]
        return any(entry is not None and entry.state == _READY for entry in entries)

    async def _ask_config(self, server: TritonServer, key: ModelKey) -> None:
        message = pb.ModelConfigRequest(name=key[0], version=key[1])
        with suppress(ServingError, TimeoutError):
            answer = await server.call(CONFIG, message, self._settings.probe_timeout_s, key[0])
            self._configs[server, key] = answer.config.SerializeToString(deterministic=True)

    async def _renew(self, key: ModelKey) -> None:
        """Bring the version that is in service, if any, to what Tritons say now."""
        said = {server: config for (server, each), config in self._configs.items() if each == key}
        known = self._versions.get(key)
        mark = await asyncio.to_thread(self._pipelines.mark, key[0])
        configs = list(dict.fromkeys(said.values()))
        if known is not None:
            current = known.message.SerializeToString(deterministic=True)
            if current in configs:
                if known.mark == mark:
                    return
                configs = [current]
        refused = self._refused.setdefault(key, {})
        for config in [config for config in configs if config not in refused]:
            server = next(server for server, each in said.items() if each == config)
            new = await self._make(key, config, server, mark)
            if new is not None:
                self._put_in(key, new, known)
                return
        if known is not None and refused.keys() >= set(configs):
            self._take_out(key)

    def _put_in(self, key: ModelKey, new: Version, known: Version | None) -> None:
        self._versions[key] = new
        self._choose(key[0])
        self._place()
        if known is not None:
            self._retire(known)
        log.info("model %s version %s is in service%s", *key, f", but {new.problem}" if new.problem else "")

    def _take_out(self, key: ModelKey) -> None:
        gone = self._versions.pop(key)
        self._choose(key[0])
        self._retire(gone)

    async def _make(self, key: ModelKey, config: bytes, server: TritonServer, mark: object) -> Version | None:
        try:
            version = await self._version(key, config, server)
        except ModelLoadFailed as error:
            log.error("%s", error.public_message)
            self._refused[key][config] = f"{error.where}: {error.problem}"
            return None
        except (ServingError, TimeoutError) as error:
            log.warning("model %s version %s: Triton %s does not say what it is: %s", *key, server.name, error)
            self._untold = True
            return None
        version.mark = mark
        try:
            if version.config.decoupled:
                version.talk(await asyncio.to_thread(self._pipelines.chat, key[0]))
            pipeline = await asyncio.to_thread(self._pipelines.load, key[0])
            if pipeline is not None:
                await version.give(pipeline, server)
        except ModelLoadFailed as error:
            log.error("%s; it answers infer alone", error.public_message)
            version.problem = f"{error.where}: {error.problem}"
        return version

    async def _version(self, key: ModelKey, config: bytes, server: TritonServer) -> Version:
        message = pb.ModelMetadataRequest(name=key[0], version=key[1])
        metadata = await server.call(METADATA, message, self._settings.probe_timeout_s, key[0])
        return Version(
            key,
            model_config_pb2.ModelConfig.FromString(config),
            metadata,
            self.statistics_of(*key),
            default_max_queue_size=self._default_max_queue_size,
            most_in_flight=self._settings.max_in_flight_rows,
        )

    def load_rows(self) -> Rows:
        """Tritons load for themselves."""
        return {}

    def statistics_of(self, name: str, version: str) -> ModelStatistics:
        """The counts of a version, which go on when it is there anew."""
        return self._statistics.setdefault((name, version), ModelStatistics(name, version))

    def _retire(self, version: Version) -> None:
        self._retire_soon(self._finish(version, time.monotonic_ns() + _DRAIN_NS))

    def _retire_soon(self, work: Coroutine[None, None, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._retiring.add(task)
        task.add_done_callback(self._retiring.discard)

    async def _finish(self, version: Version, until_ns: int) -> None:
        try:
            await version.served.drain(until_ns)
        finally:
            await version.relay.close()

    def cache_counts(self) -> None:
        """No answers are kept here: that is Triton's, where the model is."""

    # --- control ----------------------------------------------------------------------------------

    async def load(self, name: str, parameters: Mapping[str, object] | None = None, repository_name: str = "") -> None:
        """Have every Triton load a model.

        Raises:
            TritonUnreached: none is up.
            InvalidRequest, PayloadTooLarge: of the parameters.
            TritonSaid: a Triton's own refusal; others may have loaded it.
        """
        message = load_message(name, parameters or {}, repository_name, self._max_override_bytes)
        await self._on_all(LOAD, message, name)
        self._choose(name)

    async def unload(self, name: str, *, with_composing: bool = False) -> None:
        """Have every Triton unload a model. Raises as `load`."""
        await self._on_all(UNLOAD, unload_message(name, with_composing), name)

    async def _on_all(self, method: Unary, message: Any, name: str) -> None:
        servers = self.pool.up
        if not servers:
            raise TritonUnreached(name, "no server is ready")
        timeout_s = self._settings.control_timeout_s
        answers = await asyncio.gather(
            *(server.call(method, message, timeout_s, name) for server in servers), return_exceptions=True
        )
        await asyncio.gather(*(server.probe() for server in servers))
        # It may have been loaded anew with another config.
        await self._follow(anew=True)
        for answer in answers:
            if isinstance(answer, TimeoutError):
                raise CallExpired
            if isinstance(answer, BaseException):
                raise answer

    # --- the end ----------------------------------------------------------------------------------

    async def finish_sequences(self, until_ns: int) -> None:
        """There are none here."""

    async def drain(self, until_ns: int) -> None:
        """Answer what every version has admitted; what is left at `until_ns` is settled as UNAVAILABLE."""
        await asyncio.gather(*(served.drain(until_ns) for served in (*self, *self.rollouts())))

    async def close(self) -> None:
        """Take everything out of service. Requests that still wait are settled as UNAVAILABLE."""
        if self._following is not None:
            self._following.cancel()
        for task in self._retiring:
            task.cancel()
        await asyncio.gather(
            *self._retiring, *(version.relay.close() for version in self._versions.values()), return_exceptions=True
        )
        self._versions.clear()
        self._defaults.clear()
        await self.pool.close()
