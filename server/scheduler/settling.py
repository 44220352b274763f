"""How requests end: each is settled once, and counted as what it was settled with.

A callback that raises is its own caller's trouble: it is logged, and its request counts as settled.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence

from server.errors import Code, ServingError
from server.observability.whose import about
from server.scheduler.ordering import InOrder
from server.scheduler.statistics import ModelStatistics
from server.scheduler.worker import Pass
from server.types import InferRequest, InferResponse, Outcome, Timing

log = logging.getLogger(__name__)

CALLERS = frozenset({Code.INVALID_ARG, Code.TOO_LARGE, Code.UNSUPPORTED})
"""What is wrong with an input is nobody's failure, as with one that a model's check refuses."""
CALLER_FAILED = "the caller of a request to model %s failed to take its outcome"
READER_FAILED = "the caller of a request to model %s failed to take a response"


class Settling:
    """Of the requests of one model version."""

    __slots__ = ("_clock", "_in_order", "_model_name", "_statistics")

    def __init__(
        self, model_name: str, statistics: ModelStatistics, clock: Callable[[], int], *, preserve_ordering: bool
    ) -> None:
        self._model_name = model_name
        self._statistics = statistics
        self._clock = clock
        self._in_order: InOrder[tuple[InferResponse, Pass]] | None = InOrder() if preserve_ordering else None

    @property
    def preserve_ordering(self) -> bool:
        """Answers leave in the order in which their requests were admitted."""
        return self._in_order is not None

    def admit(self, request: InferRequest) -> None:
        """Under `preserve_ordering`: no answer of a request that is admitted later leaves before this one's."""
        if self._in_order is not None:
            self._in_order.admit(request)

    def fail(self, request: InferRequest, error: ServingError, now_ns: int) -> None:
        if self._settle(request, error):
            self._statistics.count_failure(error, now_ns - request.received_ns)

    def fail_each(self, requests: Iterable[InferRequest], make_error: Callable[[], ServingError]) -> None:
        """`make_error` is called for each: an exception remembers where it was raised, so several do not share one."""
        now_ns = self._clock()
        for request in requests:
            self.fail(request, make_error(), now_ns)

    def spoil(
        self, requests: Sequence[InferRequest], spoiled: Mapping[InferRequest, ServingError], now_ns: int
    ) -> list[InferRequest]:
        """Tell those of a pass whose inputs became no tensors, and return the others."""
        for request, error in spoiled.items():
            if self._settle(request, error) and error.code not in CALLERS:
                self._statistics.count_failure(error, now_ns - request.received_ns)
        return [request for request in requests if request not in spoiled]

    def answer(self, requests: Sequence[InferRequest], result: Pass, ended_ns: int) -> None:
        """Give each its answer of a pass that succeeded; under `preserve_ordering` when its turn comes: `release`."""
        durations = result.durations_ns
        self._statistics.count_pass(result.rows, *durations)
        padding = 0.0
        if result.input_elements:
            padding = result.padding
            self._statistics.count_padding(result.input_elements, result.padding_elements)
        answered: list[InferRequest] = []
        enqueued_ns: int | None = None
        timing: Timing | None = None
        in_order = self._in_order
        for request, response in zip(requests, result.responses, strict=True):
            # Those who came together have the same number as an object, too; for others it is made once more.
            if request.enqueued_ns is not enqueued_ns:
                enqueued_ns = request.enqueued_ns
                waited_ns = result.started_ns - enqueued_ns
                timing = Timing(waited_ns, *durations, result.rows, padding, result.prepare_ns)
            response.timing = timing
            if in_order is not None:
                in_order.ready(request, (response, result))
                continue
            try:  # as in `_settle`, without a call for each
                if request.settle(response):
                    answered.append(request)
            except Exception:
                log.exception(CALLER_FAILED, self._model_name, extra=about(request))
                answered.append(request)
        self._statistics.count_success(answered, result.started_ns, ended_ns, *durations)

    def release(self) -> None:
        """Let go the answers that waited for those before them. Call it whenever somebody was settled."""
        if self._in_order is None:
            return
        now_ns = self._clock()
        for request, (response, result) in self._in_order.release():
            if self._settle(request, response):
                self._statistics.count_success([request], result.started_ns, now_ns, *result.durations_ns)

    def _settle(self, request: InferRequest, outcome: Outcome) -> bool:
        """Whether this was the request's settlement."""
        try:
            return request.settle(outcome)
        except Exception:
            log.exception(CALLER_FAILED, self._model_name, extra=about(request))
            return True
