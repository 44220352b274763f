"""The way of a prediction: raw inputs are admitted, become tensors on a thread, run as any request, become answers."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING

from server.answering import Answering, Waiting, arrays
from server.observability.tracing import Tracing
from server.observability.whose import of
from server.offload import Offload
from server.pipeline.base import Pipeline, answers, most_brief
from server.scheduler.preparing import Foresees, Preparing
from server.scheduler.share import Share
from server.scheduler.worker import Model
from server.served import Served
from server.types import InferRequest, Prediction, PredictRequest, PredictResponse

if TYPE_CHECKING:
    from server.observability.following import Call


class Predictions:
    """Of all models of a data plane. On the event loop."""

    def __init__(
        self, threads: Offload, tracing: Tracing, cancel: Callable[[InferRequest], None], share: Share | None = None
    ) -> None:
        """`threads`: that run the pipelines. `share`: of the cores between the models."""
        self._threads = threads
        self._tracing = tracing
        self._cancel = cancel
        self._share = share
        self._answering = Answering()

    async def answer(
        self, served: Served, pipeline: Pipeline, request: PredictRequest, call: Call | None = None
    ) -> PredictResponse:
        """An answer for each input. `call`: by which it is followed. Raises ServingError: see `DataPlane.predict`."""
        ended: asyncio.Future[tuple[Waiting, BaseException | None]] = asyncio.get_running_loop().create_future()
        inner = self.begin(served, pipeline, request, partial(_into, ended))
        try:
            waiting, error = await ended
        except asyncio.CancelledError:
            self._cancel(inner)
            raise
        if error is not None:
            try:
                raise error
            finally:
                # The error's traceback holds this frame and the one that made it: neither is to hold the error.
                del error, ended
        if request.explanation is not None:
            request.explanation.mark("loop")
        predictions = waiting.predictions
        if predictions is None:
            finish = partial(answers, pipeline, request.inputs, arrays(waiting.response))
            predictions = await self._threads.run(finish, request.top_k)
            if request.explanation is not None:
                request.explanation.mark("postprocess")
        if call is not None:
            call.answered(served.model.version, served.statistics)
        return _response(waiting, predictions)

    def begin(
        self,
        served: Served,
        pipeline: Pipeline,
        request: PredictRequest,
        ended: Callable[[Waiting, BaseException | None], None],
    ) -> InferRequest:
        """Take it in, and return the request for its tensors. `ended`: see `Waiting`; maybe before this returns."""
        served.stages.one(request)
        inner = self._inner(served, request, Waiting(pipeline, request, ended))
        (served.preparing or self._prepare(served, pipeline)).submit(inner, request.inputs)
        return inner

    def _prepare(self, served: Served, pipeline: Pipeline) -> Preparing:
        model, batcher = served.model, served.batcher
        served.preparing = Preparing(
            Model(model.name, model.version, batched=False),
            pipeline.preprocess,
            self._threads,
            served.statistics,
            lambda request: served.submit((request,)),
            batcher if isinstance(batcher, Foresees) else None,
            asyncio.get_running_loop(),
            most_rows=model.config.max_batch_size,
            brief=most_brief(pipeline),
            share=self._share,
            passes=served.passes,
        )
        return served.preparing

    def _inner(self, served: Served, request: PredictRequest, waiting: Waiting) -> InferRequest:
        """The request for the tensors that the inputs become."""
        inner = InferRequest(
            request.model_name,
            (),
            on_settle=self._answering.on_settle,
            received_ns=request.received_ns,
            model_version=served.model.version,
            id=request.id,
            deadline_ns=request.deadline_ns,
            parameters=request.parameters,
            explanation=request.explanation,
            tenant=request.tenant,
            caller=waiting,
        )
        if request.metadata:
            inner.metadata = request.metadata
        inner.rows = len(request.inputs)
        if inner.explanation is not None:
            inner.explanation.mark("loop")
        if self._tracing.active:
            self._tracing.watch((inner,), request.model_name, served.model.version, follows=False)
        return inner


def _into(
    ended: asyncio.Future[tuple[Waiting, BaseException | None]], waiting: Waiting, error: BaseException | None
) -> None:
    # Always a result, never an exception: asyncio would complain of one that nobody awaits any more.
    if not ended.done():
        ended.set_result((waiting, error))


def tell(
    served: Served,
    answered: Callable[[PredictResponse | BaseException], None],
    waiting: Waiting,
    error: BaseException | None,
) -> None:
    """The end of a prediction for which `served` was held, whose answer no thread makes."""
    served.__exit__()
    request = waiting.request
    if error is not None:
        answered(of(error, request))
        return
    if request.explanation is not None:
        request.explanation.mark("loop")
    assert waiting.predictions is not None
    answered(_response(waiting, waiting.predictions))


def _response(waiting: Waiting, predictions: Sequence[Prediction]) -> PredictResponse:
    response = waiting.response
    return PredictResponse(response.model_name, response.model_version, predictions, waiting.request.id)
