"""From the data plane's plain calls to coroutines: one future for one answer, a queue for several responses."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, Callable

from server.observability.whose import of
from server.types import InferRequest, InferResponse, Outcome

Settled = asyncio.Future[Outcome]

MOST_WAITING_BYTES = 64 * 1024
"""Of the responses to one request that wait for their caller; one may always wait."""
_RESPONSE_BYTES = 256
"""What a response weighs beside its tensors."""


def settle_into(settled: Settled) -> Callable[[InferRequest, Outcome], None]:
    """An `on_settle` that hands the outcome to whoever awaits `settled`, unless it has gone away."""

    def on_settle(request: InferRequest, outcome: Outcome) -> None:
        if not isinstance(outcome, InferResponse):
            of(outcome, request)
        # Always a result, never an exception: asyncio would complain of one that nobody awaits any more.
        if not settled.done():
            settled.set_result(outcome)

    return on_settle


async def answer(request: InferRequest, settled: Settled, cancel: Callable[[InferRequest], None]) -> InferResponse:
    """The answer to a submitted request that settles into `settled`. Cancelling this coroutine cancels the request.

    Raises:
        ServingError: as the request was settled (any other exception is our own fault).
    """
    try:
        outcome = await settled
    except asyncio.CancelledError:
        cancel(request)
        raise
    if isinstance(outcome, InferResponse):
        if request.explanation is not None:
            request.explanation.mark_pass(request.enqueued_ns, outcome.timing)
        return outcome
    try:
        raise outcome
    finally:
        del outcome  # the error's traceback holds this frame, the frame must not hold the error


class Responses:
    """The responses to one request that were not taken up yet. It is the request's `caller`, and hears its outcome.

    Where more wait than `MOST_WAITING_BYTES`, whoever sends them is held up.
    """

    __slots__ = ("_bytes", "_go_on", "_news", "_waiting", "over")

    def __init__(self, news: Callable[[], None]) -> None:
        """`news` is called when there is something to pop."""
        self._news = news
        self._waiting: deque[tuple[Outcome, bool, int]] = deque()
        """With whether it is the last, and what it weighs."""
        self._bytes = 0
        self._go_on: Callable[[], None] | None = None
        self.over = False
        """The last one was popped."""

    def take(self, response: InferResponse, go_on: Callable[[], None]) -> None:
        """One of several. As `Taker.take`."""
        weight = _weight(response)
        self._waiting.append((response, False, weight))
        self._bytes += weight
        if self._bytes < MOST_WAITING_BYTES:
            go_on()
        else:
            self._go_on = go_on
        self._news()

    def settle(self, request: InferRequest | None, outcome: Outcome) -> None:
        """The last one, or the error that ends them."""
        if request is not None and not isinstance(outcome, InferResponse):
            of(outcome, request)
        self._waiting.append((outcome, True, 0))
        self._bytes = 0  # Nobody is held up any more.
        self._make_room()
        self._news()

    def pop(self) -> tuple[Outcome, bool] | None:
        """The next one, and whether it is the last; None: it is not here yet."""
        if not self._waiting:
            return None
        outcome, self.over, weight = self._waiting.popleft()
        self._bytes = max(0, self._bytes - weight)
        if self._go_on is not None:
            self._make_room()
        return outcome, self.over

    def forget(self) -> None:
        """Nobody takes them any more. The frames of an error that was raised may hold these responses."""
        self._waiting.clear()

    def _make_room(self) -> None:
        if self._go_on is not None and self._bytes < MOST_WAITING_BYTES:
            go_on, self._go_on = self._go_on, None
            go_on()


def _weight(response: InferResponse) -> int:
    weight = _RESPONSE_BYTES
    for tensor in response.outputs:  # one mostly, for each token of a text
        weight += memoryview(tensor.data).nbytes
    return weight


async def each(
    request: InferRequest, responses: Responses, arrived: asyncio.Event, cancel: Callable[[InferRequest], None]
) -> AsyncGenerator[InferResponse]:
    """The responses to a submitted request as they come; `arrived` is what `responses` tells. The last one may be
    without outputs. Closing this before its end cancels the request.

    Raises:
        ServingError: as the request was settled (any other exception is our own fault).
    """
    try:
        while not responses.over:
            next_one = responses.pop()
            if next_one is None:
                arrived.clear()
                await arrived.wait()
                continue
            outcome, last = next_one
            if not isinstance(outcome, InferResponse):
                try:
                    raise outcome
                finally:
                    del outcome, next_one  # As in `answer`.
            if last and request.explanation is not None:
                request.explanation.mark_pass(request.enqueued_ns, outcome.timing)
            yield outcome
    finally:
        if not request.settled:
            cancel(request)
