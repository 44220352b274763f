"""One version of a model in service: the check of its requests, who runs them, and how it is drained."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Iterable, Sequence
from typing import Protocol

from server.errors import ModelNotReady, ServingError, UnknownModel, Unsupported
from server.observability.stages import Stages
from server.repository.repository import ServedModel
from server.request_check import RequestCheck
from server.scheduler.batcher import Batcher
from server.scheduler.ensemble import EnsembleBatcher
from server.scheduler.lineup import Lineup, Member
from server.scheduler.preparing import Preparing
from server.scheduler.sequence_batcher import SequenceBatcher
from server.scheduler.statistics import ModelStatistics
from server.sequences import sequence_id
from server.types import IndexEntry, InferRequest, Special


class ModelBatcher(Protocol):
    """Who runs the requests of one version: a batcher, or the way to one in another process."""

    def submit(self, requests: Sequence[InferRequest]) -> None: ...
    def cancel(self, request: InferRequest) -> None: ...
    def healthy(self) -> bool: ...
    async def drain(self, until_ns: int) -> None: ...
    async def close(self) -> None: ...


class Served:
    """One version in service: what was loaded, the check of its requests, and its batcher.

    While somebody is inside ``with served:`` it is not drained: a prediction whose picture is still being
    decoded keeps the version that decodes it.
    """

    __slots__ = ("_held", "_idle", "batcher", "check", "model", "preparing", "stages", "statistics")

    def __init__(self, model: ServedModel, batcher: ModelBatcher, statistics: ModelStatistics) -> None:
        self.model = model
        self.check = RequestCheck(model.config)
        self.batcher = batcher
        self.statistics = statistics
        self.stages = Stages(statistics)
        self.preparing: Preparing | None = None
        """Of raw inputs, from the first on."""
        self._held = 0
        self._idle = asyncio.Event()
        self._idle.set()

    def __enter__(self) -> Served:
        self._held += 1
        self._idle.clear()
        return self

    def __exit__(self, *_: object) -> None:
        self._held -= 1
        if not self._held:
            self._idle.set()

    @property
    def passes(self) -> Batcher | None:
        """Its batcher, where requests may come to that with raw inputs: see `server.scheduler.raw`."""
        return self.batcher if isinstance(self.batcher, Batcher) and self.batcher.raw is not None else None

    def submit(self, requests: Sequence[InferRequest]) -> None:
        """Check requests and queue them; each is settled in any case. A plain call that never raises."""
        batcher = self.batcher
        good = self.check.passing(requests, self._refuse)
        for request in good:
            request.holder = batcher
        if good:
            batcher.submit(good)

    def _refuse(self, request: InferRequest, error: ServingError) -> None:
        request.settle(error)
        self.lost(request)

    def stream(self, request: InferRequest) -> None:
        """As `submit`, of a caller that takes several responses."""
        self.submit((request,))

    def check_special(self, special: Special) -> None:
        """Raises Unsupported for what the model can't do with its tensors."""

    @property
    def keeps_sequences(self) -> bool:
        """It takes requests that belong to sequences."""
        return False

    def lost(self, request: InferRequest) -> None:
        """A request that is settled was meant for this version, and never comes: a gap in its sequence, if it is of
        one. Nothing to a version that keeps none."""

    def healthy(self) -> bool:
        """What runs it works, and its queue moves."""
        return self.batcher.healthy()

    async def drain(self, until_ns: int) -> None:
        """Answer all that was admitted; what is left at `until_ns` is settled as UNAVAILABLE."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(max(0, until_ns - time.monotonic_ns()) / 1e9):
                await self._idle.wait()
        if self.preparing is not None:
            await self.preparing.close()
        await self.batcher.drain(until_ns)


class DecoupledServed(Served):
    """A version that gives any number of responses to a request, and so none to callers that take just one."""

    __slots__ = ()

    def submit(self, requests: Sequence[InferRequest]) -> None:
        name = self.model.name
        problem = (
            f"model '{name}' has a decoupled transaction policy: use ModelStreamInfer, generate or generate_stream"
        )
        for request in requests:
            request.settle(Unsupported("model_transaction_policy", problem))

    def stream(self, request: InferRequest) -> None:
        super().submit((request,))

    def check_special(self, special: Special) -> None:
        if special.shared is not None and special.shared.outputs:
            raise Unsupported("outputs", "several responses can't have one place in shared memory")
        if special.classes:
            raise Unsupported("outputs", "several responses can't be classified, ask for the tensors")


class SequenceServed(Served):
    """A version that batches sequences. Those that began on a version which it replaced go on there to their ends."""

    __slots__ = ("elders", "sequences")

    def __init__(self, model: ServedModel, batcher: SequenceBatcher, statistics: ModelStatistics) -> None:
        super().__init__(model, batcher, statistics)
        self.sequences = batcher
        self.elders: list[SequenceServed] = []
        """The versions that it replaced, while they are being drained."""

    def submit(self, requests: Sequence[InferRequest]) -> None:
        """As of `Served`, each by the version that has its sequence."""
        for request in requests:
            served = self._whose(request)
            try:
                served.check(request)
            except ServingError as error:
                request.settle(error)
            else:
                request.holder = served.sequences
            # One that was refused too: it may leave a gap in its sequence.
            served.sequences.submit((request,))

    @property
    def keeps_sequences(self) -> bool:
        return True

    def lost(self, request: InferRequest) -> None:
        self.submit((request,))

    def _whose(self, request: InferRequest) -> SequenceServed:
        if not self.elders:
            return self
        name = sequence_id(request.parameters.get("sequence_id"))
        for elder in self.elders:
            if elder.sequences.knows(name):
                if not request.parameters.get("sequence_start"):
                    return elder
                elder.sequences.supersede(name)
        return self

    def replaces(self, served: Sequence[Served]) -> None:
        """These go out of service, and this comes into it."""
        for elder in served:
            if isinstance(elder, SequenceServed):
                self.elders += [elder, *elder.elders]


class EnsembleServed(Served):
    """An ensemble in service, or out of it for as long as the models of its steps do not serve it."""

    __slots__ = ("_members", "ensemble")

    def __init__(self, model: ServedModel, batcher: EnsembleBatcher, statistics: ModelStatistics) -> None:
        super().__init__(model, batcher, statistics)
        self.ensemble = batcher
        self._members: list[tuple[Served, bool]] = []

    @property
    def keeps_sequences(self) -> bool:
        return self.ensemble.keeps_sequences

    def lost(self, request: InferRequest) -> None:
        if self.keeps_sequences:
            # By way of its turn: what came before it may not be at the step yet that keeps its sequence.
            self.ensemble.submit((request,))

    def compose(self, members: Sequence[Served]) -> None:
        """Its steps run on these from now on."""
        key = [(served, served.keeps_sequences) for served in members]
        if key != self._members:
            self._members = key
            self.ensemble.use(Lineup([_member(served) for served in members]))
            self.check = RequestCheck(self.model.config, takes_sequences=self.keeps_sequences)

    def part(self, why: str) -> None:
        """There is nothing that its steps could run on."""
        self._members = []
        self.ensemble.use(None, why)


def _member(served: Served) -> Member:
    config = served.model.config
    inputs = {spec.name: spec.dims for spec in config.inputs}
    return Member(served.model.name, served.model.version, served, config.max_batch_size > 0, inputs)


def absent(name: str, version: str, index: Iterable[IndexEntry], *, others_serve: bool) -> ServingError:
    """Why no version of that name is in service (`version` empty: none at all). `others_serve`: of the same model."""
    entries = [entry for entry in index if entry.name == name and version in ("", entry.version)]
    if not entries or (others_serve and version):
        return UnknownModel(name, version)
    return ModelNotReady(name, version, "; ".join(sorted({entry.reason for entry in entries if entry.reason})))
