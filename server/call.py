"""From the data plane's plain calls to a coroutine: one future for one request."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from server.types import InferRequest, InferResponse, Outcome

Settled = asyncio.Future[Outcome]


def settle_into(settled: Settled) -> Callable[[InferRequest, Outcome], None]:
    """An `on_settle` that hands the outcome to whoever awaits `settled`, unless it has gone away."""

    def on_settle(_request: InferRequest, outcome: Outcome) -> None:
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
