"""From the outputs of forward passes to answers: those of requests whose passes ended together are made together.

Postprocessing is a dozen calls on a few numbers, and takes for the rows of a whole pass hardly longer than for one. So
whoever is settled waits for the end of the step that settles, mostly of a pass; then the outputs of neighbours that
differ in nothing but their rows are joined, and what is made of them is dealt out. Where the joined rows have no
answer, each request is tried by itself: what is wrong with a neighbour's outputs is not told to others.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import groupby

import numpy as np

from server.afterwards import afterwards
from server.observability.whose import of
from server.pipeline.base import Pipeline, by_row, needs_inputs
from server.tensor import Array
from server.types import InferRequest, InferResponse, Outcome, Prediction, PredictRequest


class Waiting:
    """A prediction on its way: the `caller` of the request for its tensors."""

    __slots__ = ("_ended", "pipeline", "predictions", "request", "response")

    response: InferResponse
    """Once it ended without an error."""

    def __init__(
        self, pipeline: Pipeline, request: PredictRequest, ended: Callable[[Waiting, BaseException | None], None]
    ) -> None:
        """`ended` is called once, with this and the error that there is in the place of an answer, or None; it never
        raises."""
        self.pipeline = pipeline
        self.request = request
        self._ended = ended
        self.predictions: Sequence[Prediction] | None = None
        """None at the end: they are to be made of the response and the inputs, which is no work for the loop."""

    def end(self, error: BaseException | None = None) -> None:
        ended = self._ended
        del self._ended  # Who is told may keep the error, whose frames hold this.
        ended(self, error)

    def kind(self) -> object:
        """Equal for neighbours whose outputs may be joined."""
        rows, outputs = len(self.request.inputs), self.response.outputs
        if not by_row(self.pipeline) or any(tensor.shape[:1] != (rows,) for tensor in outputs):
            return self
        tensors = [(tensor.name, tensor.datatype, tensor.shape[1:]) for tensor in outputs]
        return self.pipeline, self.request.top_k, tensors


class Answering:
    """Of all models of a data plane. On the event loop."""

    def __init__(self) -> None:
        self._settled: list[Waiting] = []
        """In this step."""

    def on_settle(self, request: InferRequest, outcome: Outcome) -> None:
        """Of a request whose `caller` is a `Waiting`."""
        waiting = request.caller
        assert isinstance(waiting, Waiting)
        if not isinstance(outcome, InferResponse):
            of(outcome, request)
            waiting.end(outcome)
            return
        waiting.response = outcome
        if request.explanation is not None:
            request.explanation.mark_pass(request.enqueued_ns, outcome.timing)
        if needs_inputs(waiting.pipeline):
            waiting.end()
            return
        if not self._settled:
            afterwards(self._answer)
        self._settled.append(waiting)

    def _answer(self) -> None:
        settled, self._settled = self._settled, []
        for _, group in groupby(settled, Waiting.kind):
            together = list(group)
            if len(together) == 1 or not _answered(together):
                for waiting in together:
                    _answer_alone(waiting)


def _answered(together: Sequence[Waiting]) -> bool:
    """Whether these, of one kind, have their answers; else nothing was done."""
    columns = zip(*[waiting.response.outputs for waiting in together], strict=True)
    try:
        outputs = {column[0].name: np.concatenate([tensor.numpy() for tensor in column]) for column in columns}
        predictions = together[0].pipeline.postprocess(outputs, together[0].request.top_k)
    except Exception:  # noqa: BLE001 - each is told what is wrong with its own
        return False
    start = 0
    for waiting in together:
        stop = start + len(waiting.request.inputs)
        _end(waiting, predictions[start:stop])
        start = stop
    return True


def _answer_alone(waiting: Waiting) -> None:
    try:
        predictions = waiting.pipeline.postprocess(arrays(waiting.response), waiting.request.top_k)
    except BaseException as error:  # noqa: BLE001 - whoever awaits the answer gets it
        waiting.end(error)
    else:
        _end(waiting, predictions)


def arrays(response: InferResponse) -> dict[str, Array]:
    """The outputs by name."""
    return {tensor.name: tensor.numpy() for tensor in response.outputs}


def _end(waiting: Waiting, predictions: Sequence[Prediction]) -> None:
    waiting.predictions = predictions
    if waiting.request.explanation is not None:
        waiting.request.explanation.mark("postprocess")
    waiting.end()
