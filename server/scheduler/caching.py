"""In front of a version's batcher: requests whose answers are kept are answered here, all others go on to it.

    submit -> hash -> kept: settled, without queueing
                   `> not:  the batcher -> its answer is kept, then told

What only the batcher can say is left to it: that a request has expired, or came too late. Equal requests that are under
way at the same time are each executed: they share a batch anyway, and nobody's outcome hangs on another's.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Sequence
from functools import partial

from server.errors import Overloaded
from server.observability.whose import about
from server.scheduler.admission import Foreseen
from server.scheduler.batcher import Batcher
from server.scheduler.queue import RequestQueue
from server.scheduler.response_cache import ON_LOOP_BYTES, ResponseCache, copied
from server.scheduler.settling import CALLER_FAILED
from server.scheduler.statistics import ModelStatistics
from server.tensor import Tensor
from server.types import InferRequest, InferResponse, Outcome

log = logging.getLogger(__name__)


class CachingBatcher:
    """A batcher's interface to `batcher`. Call it on the event loop's thread only."""

    def __init__(
        self,
        batcher: Batcher,
        model_version: str,
        cache: ResponseCache,
        statistics: ModelStatistics,
        *,
        slo_ns: int = 0,
        clock: Callable[[], int] = time.monotonic_ns,
    ) -> None:
        """`slo_ns`: a deadline of every request from its receipt, as the batcher's; 0 is none."""
        self._batcher = batcher
        self._version = model_version
        self._cache = cache
        self._owner = cache.owner()
        self._statistics = statistics
        self._slo_ns = slo_ns
        self._clock = clock
        self._hashing: set[asyncio.Future[bytes]] = set()
        self._draining = False
        self._closed = False

    # --- as a batcher ------------------------------------------------------------------------------

    def submit(self, requests: Sequence[InferRequest]) -> None:
        """Answer those that can be, and hand on the others. Never raises."""
        began_ns = self._clock()
        others: list[InferRequest] = []
        for request in requests:
            if self._draining or self._expired(request, began_ns):
                others.append(request)
            elif _bytes(request.inputs) > ON_LOOP_BYTES:
                self._hash(request, began_ns)
            elif not self._answered(request, self._cache.key(self._owner, request), began_ns):
                others.append(request)
            began_ns = self._clock()
        if others:
            self._batcher.submit(others)

    def cancel(self, request: InferRequest) -> None:
        """As of `Batcher`; also of one whose key is still being made."""
        self._batcher.cancel(request)

    def foresee(self, request: InferRequest, coming: int) -> Foreseen:
        """As of `Batcher`: whether it will be answered from the cache, only its tensors tell."""
        return self._batcher.foresee(request, coming)

    def hopeless(self, signature: object, deadline_ns: int) -> Overloaded | None:
        """As of `Batcher`."""
        return self._batcher.hopeless(signature, deadline_ns)

    @property
    def queue(self) -> RequestQueue:
        """Of the batcher."""
        return self._batcher.queue

    def healthy(self) -> bool:
        return self._batcher.healthy()

    async def drain(self, until_ns: int) -> None:
        """As of `Batcher`; nobody is answered from the cache any more."""
        self._draining = True
        await self._hashed_all()
        await self._batcher.drain(until_ns)

    async def close(self) -> None:
        """As of `Batcher`; what was kept is freed."""
        self._draining = True
        await self._hashed_all()
        await self._batcher.close()
        self._closed = True
        self._cache.forget(self._owner)

    # --- looking up --------------------------------------------------------------------------------

    def _expired(self, request: InferRequest, now_ns: int) -> bool:
        slo_ns = self._slo_ns
        return now_ns >= request.deadline_ns or (slo_ns > 0 and now_ns >= request.received_ns + slo_ns)

    def _hash(self, request: InferRequest, began_ns: int) -> None:
        """On a thread."""
        hashing = self._cache.offload.run(partial(self._cache.key, self._owner), request)
        self._hashing.add(hashing)
        hashing.add_done_callback(partial(self._hashed, request, began_ns))

    def _hashed(self, request: InferRequest, began_ns: int, hashing: asyncio.Future[bytes]) -> None:
        self._hashing.discard(hashing)
        if request.settled:
            return
        problem = asyncio.CancelledError() if hashing.cancelled() else hashing.exception()
        if problem is not None:
            told = "a request to model %s could not be hashed"
            log.error(told, request.model_name, exc_info=problem, extra=about(request))
        elif not self._expired(request, self._clock()) and self._answered(request, hashing.result(), began_ns):
            return
        self._batcher.submit((request,))

    async def _hashed_all(self) -> None:
        """Return when nobody is on the way from here to the batcher."""
        if self._hashing:
            await asyncio.wait(set(self._hashing))

    def _answered(self, request: InferRequest, key: bytes, began_ns: int) -> bool:
        outputs = self._cache.find(key)
        now_ns = self._clock()
        self._cache.lookup_ns += now_ns - began_ns
        if request.explanation is not None:
            request.explanation.mark("cache", now_ns)
        if outputs is None:
            self._watch(request, key, now_ns - began_ns)
            return False
        response = InferResponse(request.model_name, self._version, outputs, request.id)
        try:
            settled = request.settle(response)
        except Exception:
            log.exception(CALLER_FAILED, request.model_name, extra=about(request))
            settled = True
        if settled:
            self._statistics.count_cache_hit(request, now_ns, now_ns - began_ns)
        return True

    # --- keeping -----------------------------------------------------------------------------------

    def _watch(self, request: InferRequest, key: bytes, lookup_ns: int) -> None:
        def settled(request: InferRequest, outcome: Outcome) -> None:
            try:
                if isinstance(outcome, InferResponse):
                    self._statistics.cache_miss.add(1, lookup_ns)
                    self._keep(key, outcome.outputs)
            finally:
                tell(request, outcome)

        tell = request.divert(settled)

    def _keep(self, key: bytes, outputs: Sequence[Tensor]) -> None:
        began_ns = self._clock()
        if not self._cache.fits(outputs):
            return
        if _bytes(outputs) <= ON_LOOP_BYTES:
            self._insert(key, copied(outputs), began_ns)
            return
        copying = self._cache.offload.run(copied, outputs)
        copying.add_done_callback(partial(self._copied, key, began_ns))

    def _copied(self, key: bytes, began_ns: int, copying: asyncio.Future[tuple[Tensor, ...]]) -> None:
        if not copying.cancelled() and copying.exception() is None:
            self._insert(key, copying.result(), began_ns)

    def _insert(self, key: bytes, outputs: tuple[Tensor, ...], began_ns: int) -> None:
        if self._closed:
            return
        self._cache.keep(key, outputs)
        spent_ns = self._clock() - began_ns
        self._cache.insertion_ns += spent_ns
        self._statistics.cache_miss.add(0, spent_ns)


def _bytes(tensors: Sequence[Tensor]) -> int:
    return sum([memoryview(tensor.data).nbytes for tensor in tensors])
