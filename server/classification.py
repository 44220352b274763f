"""Outputs as their best classes, for callers that ask so (`classification`): texts ``value:index[:label]``.

A request of that kind is like any other until it is settled; then the outputs that it wants so are replaced by texts,
on a thread where they are large. What `predict` makes of a model's outputs is another thing: `server.pipeline`.
Source: Triton's extension_classification.md, and its classification.cc for what the page does not say.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from math import prod
from typing import NamedTuple

import numpy as np

from server.errors import Cancelled, Draining, InvalidRequest, ServingError
from server.offload import Offload
from server.tensor import Array, Tensor, pack_bytes
from server.types import InferRequest, InferResponse, Outcome

CLASSIFIED = frozenset(
    {"UINT8", "UINT16", "UINT32", "UINT64", "INT8", "INT16", "INT32", "INT64", "FP32", "FP64"},
)
"""The datatypes that have classes; FP16 and BF16 have none, as with Triton."""

_ON_LOOP_ELEMENTS = 4096
"""So many are sorted and written sooner than a thread is told of them."""

Labels = Mapping[str, Sequence[str]]
"""Of a model: by output, the name of each class. Empty, and beyond the end: it has none."""


def refuse_datatype(field: str, datatype: str) -> None:
    """Raises InvalidRequest for a datatype that has no classes. `field` is the requested output's."""
    if datatype not in CLASSIFIED:
        raise InvalidRequest(
            f"{field}.parameters.classification",
            f"class result not available for output due to unsupported type '{datatype}'",
        )


def classified(tensor: Tensor, classes: int, labels: Sequence[str], *, batched: bool) -> Tensor:
    """The `classes` largest values of each row, or all if there are fewer: BYTES of [rows, classes], or [classes]
    where the model has no batch dimension.

    Of equal values the one with the lower index comes first, NaN comes last.
    """
    rows = tensor.shape[0] if batched else 1
    count = prod(tensor.shape[1:] if batched else tensor.shape)
    kept = min(classes, count)
    values = tensor.numpy().reshape(rows, count)
    texts = [text for row in values for text in _texts(row, kept, labels)]
    return Tensor(tensor.name, "BYTES", (rows, kept) if batched else (kept,), pack_bytes(texts))


def _texts(row: Array, kept: int, labels: Sequence[str]) -> list[str]:
    write = "%f:%d" if row.dtype.kind == "f" else "%d:%d"
    best = _best(row, kept)
    texts = [write % told for told in zip(row[best].tolist(), best.tolist(), strict=True)]
    named = [labels[index] if index < len(labels) else "" for index in best.tolist()]
    return [f"{text}:{label}" if label else text for text, label in zip(texts, named, strict=True)]


def _best(row: Array, kept: int) -> Array:
    """The indices of the `kept` largest, largest first."""
    if row.dtype.kind == "f":
        row = np.where(np.isnan(row), -np.inf, row)
    candidates = np.arange(len(row))
    if 0 < kept < len(row):
        candidates = np.flatnonzero(row >= np.partition(row, len(row) - kept)[len(row) - kept])
    # Sorted upwards from the far end and read from there: downwards, and equal ones in their order.
    backwards = candidates[::-1]
    best: Array = backwards[np.argsort(row[backwards], kind="stable")[::-1]][:kept]
    return best


class Classes(NamedTuple):
    """What one request wants classified: by output how many classes; and what its model says of them."""

    counts: Mapping[str, int]
    labels: Labels
    batched: bool
    """Whether the model's tensors have a batch dimension."""

    def elements(self, outputs: Sequence[Tensor]) -> int:
        """To be looked at."""
        return sum([prod(tensor.shape) for tensor in outputs if tensor.name in self.counts])

    def replaced(self, outputs: Sequence[Tensor]) -> list[Tensor]:
        """The outputs, those that are wanted so as texts. Any thread. Raises InvalidRequest as `refuse_datatype`."""
        return [self._replaced(index, tensor) for index, tensor in enumerate(outputs)]

    def _replaced(self, index: int, tensor: Tensor) -> Tensor:
        count = self.counts.get(tensor.name)
        if count is None:
            return tensor
        refuse_datatype(f"outputs[{index}]", tensor.datatype)
        return classified(tensor, count, self.labels.get(tensor.name, ()), batched=self.batched)


def classify(request: InferRequest, classes: Classes, threads: Offload) -> None:
    """Let the request, which is about to be submitted, settle with its outputs classified; by `threads` if large."""
    _Use(request, classes, threads)


class _Use:
    """One request's way to its classes. It is the request's holder while a thread is at them."""

    __slots__ = ("_classes", "_over", "_request", "_settle", "_threads")

    def __init__(self, request: InferRequest, classes: Classes, threads: Offload) -> None:
        self._request = request
        self._classes = classes
        self._threads = threads
        self._over = False
        """The caller has its outcome."""
        self._settle = request.divert(self._settled)

    def _settled(self, request: InferRequest, outcome: Outcome) -> None:
        if not isinstance(outcome, InferResponse):
            self._tell(outcome)
            return
        if request.explanation is not None:
            request.explanation.mark_pass(request.enqueued_ns, outcome.timing)
        if self._classes.elements(outcome.outputs) > _ON_LOOP_ELEMENTS:
            request.holder = self
            converting = self._threads.run(self._classes.replaced, outcome.outputs)
            converting.add_done_callback(lambda done: self._was_replaced(done, outcome))
            return
        try:
            outputs = self._classes.replaced(outcome.outputs)
        except ServingError as error:
            self._tell(error)
        else:
            self._answer(outcome, outputs)

    def _was_replaced(self, done: asyncio.Future[list[Tensor]], response: InferResponse) -> None:
        failure = Draining() if done.cancelled() else done.exception()
        if failure is None:
            self._answer(response, done.result())
        else:
            self._tell(failure)

    def _answer(self, response: InferResponse, outputs: list[Tensor]) -> None:
        """A new one: of the old one a trace may be made."""
        explanation, timing = self._request.explanation, response.timing
        if explanation is not None:
            explanation.mark("postprocess")
            timing = None  # Its parts are told already.
        self._tell(
            InferResponse(
                response.model_name, response.model_version, outputs, response.id, response.parameters, timing
            )
        )

    def cancel(self, request: InferRequest) -> None:
        """The caller has gone: it is told so now, whatever the thread still does."""
        self._tell(Cancelled())

    def _tell(self, outcome: Outcome) -> None:
        if not self._over:
            self._over = True
            self._settle(self._request, outcome)
