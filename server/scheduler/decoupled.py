"""Models that give any number of responses to a request: a pass is one request, its responses leave as they come.

The request waits, expires, is cancelled and drained as any other. The pass's end settles it: with an outcome without
outputs, which says that there are no more, or with the error that ended the pass, behind the responses before it. A
pass waits for its caller to take its responses: one that reads slowly keeps an instance, for as long as its transport
lets it.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import closing
from functools import partial
from typing import cast

from server.engine.base import Instance, StreamingInstance
from server.errors import EngineFailure
from server.observability.whose import about
from server.scheduler.batcher import Batcher
from server.scheduler.cost import CostModel
from server.scheduler.instances import Run
from server.scheduler.merge import merge, split
from server.scheduler.plan import Limits
from server.scheduler.queue import Priorities, QueuePolicy
from server.scheduler.settling import READER_FAILED
from server.scheduler.share import Share
from server.scheduler.statistics import ModelStatistics
from server.scheduler.worker import Model, Pass, Worker, failed_pass
from server.types import InferRequest, InferResponse

log = logging.getLogger(__name__)


class DecoupledBatcher(Batcher):
    """As `Batcher`, but that requests are not merged, for their passes end at different times, and that nothing is
    foreseen: how long a pass takes is up to its request."""

    def __init__(
        self,
        model_name: str,
        model_version: str,
        instances: Sequence[Instance],
        policy: QueuePolicy,
        statistics: ModelStatistics,
        loop: asyncio.AbstractEventLoop,
        clock: Callable[[], int] = time.monotonic_ns,
        *,
        priorities: Priorities | None = None,
        slo_ns: int = 0,
        share: Share | None = None,
        fair_by_tenant: bool = False,
    ) -> None:
        """`instances` are `StreamingInstance`s; the rest is as of `Batcher`."""
        model = Model(model_name, model_version, batched=False)
        super().__init__(
            model_name,
            model_version,
            instances,
            Limits(max_batch_size=0),
            policy,
            CostModel(),
            statistics,
            loop,
            clock,
            partial(StreamingWorker, model=model, loop=loop, clock=clock),
            priorities=priorities,
            slo_ns=slo_ns,
            share=share,
            fair_by_tenant=fair_by_tenant,
        )

    def submit(self, requests: Sequence[InferRequest]) -> None:
        """As of `Batcher`. What arrives is taken to be as much work as those before it were, in the mean."""
        counts = self.statistics
        if counts.execution_count:
            counts.load.arrive(counts.busy_ns // counts.execution_count * len(requests), self._clock())
        super().submit(requests)

    def _learn(self, run: Run, result: Pass, ended_ns: int) -> None:
        self.statistics.count_end(run.predicted_ns, ended_ns - run.begun_ns)


class StreamingWorker(Worker):
    """Runs a pass response by response, no faster than its caller takes them."""

    def _pass(self, requests: Sequence[InferRequest]) -> Pass:
        (request,) = requests
        model, started_ns = self._model, self._clock()
        try:
            batch = merge(requests, model.name, model.version)
            merged_ns = self._clock()
            with closing(cast("StreamingInstance", self._instance).stream(batch)) as responses:
                for outputs in responses:
                    [response] = split(outputs, requests, batch, batched=model.batched)
                    if not self._give(request, response):
                        break
        except Exception as error:  # noqa: BLE001 - as in `forward`
            return failed_pass(model, request.rows, started_ns, error)
        # As Triton's, the mere end of the responses has no version.
        end = InferResponse(model.name, "", (), request.id)
        return Pass(request.rows, started_ns, [end], None, merged_ns - started_ns, self._clock() - merged_ns)

    def _give(self, request: InferRequest, response: InferResponse) -> bool:
        """Wait until the caller takes another response; False if it takes none any more."""
        room = threading.Event()
        if not self._post(_send, request, response, room.set):
            return False
        room.wait()
        return not request.settled


def _send(request: InferRequest, response: InferResponse, go_on: Callable[[], None]) -> None:
    """On the loop. A caller that raises gets no more, and keeps no worker waiting."""
    try:
        request.send(response, go_on)
    except Exception as error:
        log.exception(READER_FAILED, response.model_name, extra=about(request))
        request.settle(EngineFailure(response.model_name, repr(error)))
        go_on()
