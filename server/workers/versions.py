"""The versions of models that a front knows of: as the engine process tells of them, and those that run here too.

A model whose passes are shorter than the way to the engine process is loaded in the front as well, and runs there.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

from server.engine.base import Elsewhere
from server.errors import ServingError, UnknownModel
from server.proto.triton import model_config_pb2
from server.repository.loading import ServedModel
from server.repository.model_config import from_message
from server.served import DecoupledServed, ModelBatcher, Served

if TYPE_CHECKING:
    from server.chat import ChatTemplate
    from server.model_control import ModelControl
    from server.repository.certificate import Manifest
    from server.tasks import Tasks
    from server.types import IndexEntry, InferRequest

log = logging.getLogger(__name__)

_RETIRING_NS = 30_000_000_000
"""How long a prediction may hold a version that is out of service."""
_NONE: Mapping[str, Served] = {}


@dataclass(frozen=True, slots=True)
class Announced:
    """One version in service, or a rollout of two, as the engine process tells of it."""

    handle: int
    name: str
    version: str
    chooses: bool
    """It is a rollout: it takes the requests that name no version, and may answer by another one than `version`."""
    config: bytes
    """The message that config.pbtxt is."""
    labels: Mapping[str, Sequence[str]]
    """Of its outputs' classes, as of `ModelConfig`."""
    pipeline: Any
    manifest: Manifest | None
    chat: ChatTemplate | None
    tiny: bool
    """It is to be loaded in the fronts too."""
    fingerprint: object
    devices: tuple[str, ...] = ()
    """Where its instances run."""


@dataclass(frozen=True, slots=True)
class Announcement:
    """Everything that a front must know. Pickled, by a process of this server for another, over a socket that nobody
    else has: a pipeline is what its class makes of files that may have changed since."""

    versions: list[Announced]
    entries: list[IndexEntry]


class Unchecked(Served):
    """A version that batches sequences, or an ensemble, which may: a request that is refused is a gap in one, which its
    scheduler must see."""

    def submit(self, requests: Sequence[InferRequest]) -> None:
        for request in requests:
            request.holder = self.batcher
        self.batcher.submit(requests)


class Versions:
    """All on the event loop. The engine process keeps a version by its handle for this front until that is released."""

    def __init__(self, local: ModelControl, batcher: Callable[[int], ModelBatcher], tasks: Tasks) -> None:
        """`local` has the models that run here; `batcher` makes the one of a version of the engine process's."""
        self._local = local
        self._batcher = batcher
        self._tasks = tasks
        self.index: list[IndexEntry] = []
        """As it was told last."""
        self._held: dict[int, tuple[Announced, Served]] = {}
        """By handle, what the engine process keeps for this front."""
        self._current: dict[int, tuple[Announced, Served]] = {}
        """Those of them that were told last; the others are let go of when nobody here is at them any more."""
        self._served: dict[str, dict[str, Served]] = {}
        self._newest: dict[str, Served] = {}
        """Who gets the requests that name no version, of each model."""
        self._tiny: dict[str, frozenset[int]] = {}
        """Models that run here, with the handles of the versions that they stand for."""
        self._loading: dict[str, asyncio.Task[None]] = {}

    # --- which there are --------------------------------------------------------------------------

    def find(self, name: str, version: str) -> Served | None:
        """The version in service that is meant; without a name of one the newest, or who chooses among them."""
        return self._served.get(name, _NONE).get(version) if version else self._newest.get(name)

    def of(self, name: str) -> list[Served]:
        """Lowest first."""
        return list(self._served.get(name, _NONE).values())

    def __iter__(self) -> Iterator[Served]:
        for versions in self._served.values():
            yield from versions.values()

    def held(self, handle: int) -> Served | None:
        """None: the engine process does not keep it any more."""
        found = self._held.get(handle)
        return None if found is None else found[1]

    # --- as the engine process tells --------------------------------------------------------------

    def announced(self, told: Announcement) -> None:
        """Put in service what is told; what is not told any more is let go of once nobody here is at it."""
        self.index = told.entries
        old, self._current = self._current, {}
        for version in told.versions:
            handle = version.handle
            known = old.pop(handle) if handle in old else (version, self._serve(version))
            self._current[handle] = self._held[handle] = known
        self._place_in_service()
        for _, served in old.values():
            self._tasks.start(served.drain(time.monotonic_ns() + _RETIRING_NS))
        for name in {version.name for version in told.versions if version.tiny} - self._loading.keys():
            self._loading[name] = task = asyncio.get_running_loop().create_task(self._load_here(name))
            task.add_done_callback(partial(self._loaded, name))

    def lost(self) -> None:
        """The engine process keeps nothing any more; what is known of the models stays, to say so of each of them."""
        self._held.clear()
        self._current.clear()

    def release(self, handle: int) -> bool:
        """Whether the engine process still kept it."""
        return self._held.pop(handle, None) is not None

    def _serve(self, told: Announced) -> Served:
        message = model_config_pb2.ModelConfig.FromString(told.config)
        config = replace(from_message(message, told.name), labels=told.labels)
        model = ServedModel(
            told.name, told.version, config, Elsewhere(told.devices), told.pipeline, told.manifest, {}, chat=told.chat
        )
        # A version that was here before goes on counting where it was.
        statistics = self._local.statistics_of(told.name, told.version)
        make = Served if config.sequence_batching is None and config.ensemble is None else Unchecked
        if config.decoupled:
            make = DecoupledServed
        return make(model, self._batcher(told.handle), statistics)

    def _place_in_service(self) -> None:
        """By what is held: each model's versions here where all of them are, else there."""
        there: dict[str, dict[str, Served]] = {}
        rollouts: dict[str, Served] = {}
        handles: dict[str, set[int]] = {}
        for told, served in sorted(self._current.values(), key=lambda held: int(held[0].version)):
            if told.chooses:
                rollouts[told.name] = served
                continue
            there.setdefault(told.name, {})[told.version] = served
            handles.setdefault(told.name, set()).add(told.handle)
        for name in [name for name in self._tiny if self._tiny[name] != frozenset(handles.get(name, ()))]:
            del self._tiny[name]
            self._tasks.start(self._unload_here(name))
        for name in self._tiny:
            there[name] = {served.model.version: served for served in self._local.versions(name)}
        self._served = there
        self._newest = {name: next(reversed(versions.values())) for name, versions in there.items()} | rollouts

    # --- which run here ---------------------------------------------------------------------------

    def _loaded(self, name: str, _task: asyncio.Task[None]) -> None:
        del self._loading[name]

    async def _unload_here(self, name: str) -> None:
        with suppress(UnknownModel):
            await self._local.unload(name)

    async def _load_here(self, name: str) -> None:
        """Load a model here too; until that is done, and where it can't be, its requests go to the engine process."""
        while (told := self._tiny_versions(name)) and self._tiny.get(name) != told.keys():
            try:
                await self._local.load(name)
            except ServingError as error:
                log.warning("%s; it runs in the engine process alone", error.public_message)
                return
            now = self._tiny_versions(name)
            if now.keys() != told.keys():
                continue  # There is another one in service meanwhile.
            here = {served.model.version for served in self._local.versions(name)}
            prints = {version.fingerprint for version in told.values()}
            same = here == {v.version for v in told.values()} and all(self._is_here(v) for v in told.values())
            if not same or prints != {self._local.fingerprint(name)}:
                log.warning("model '%s' changed since it was loaded; it runs in the engine process alone", name)
                return
            self._tiny[name] = frozenset(told)
            self._place_in_service()

    def _is_here(self, told: Announced) -> bool:
        """By the config too, which may have come with a request instead of from the model's folder."""
        config = self._local.resolve(told.name, told.version).model.config.message
        return bool(config == model_config_pb2.ModelConfig.FromString(told.config))

    def _tiny_versions(self, name: str) -> dict[int, Announced]:
        return {handle: told for handle, (told, _) in self._current.items() if told.name == name and told.tiny}
