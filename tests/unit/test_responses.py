"""Several responses to one request: their order, who is held up, how they end."""

from __future__ import annotations

import asyncio
from contextlib import aclosing

import pytest

from server.call import MOST_WAITING_BYTES, Responses, each
from server.errors import Cancelled, EngineFailure
from server.tensor import Tensor
from server.types import InferRequest, InferResponse


def response(number: int, size: int = 1) -> InferResponse:
    return InferResponse("m", "1", [Tensor("y", "UINT8", (size,), bytes([number]) * size)])


END = InferResponse("m", "", ())


class Asked:
    """A request whose responses are collected, and who sends them."""

    def __init__(self) -> None:
        self.arrived = asyncio.Event()
        self.responses = Responses(self.arrived.set)
        self.request = InferRequest("m", [], on_settle=self.responses.settle, received_ns=0, caller=self.responses)
        self.went_on = 0
        self.cancelled: list[InferRequest] = []

    def send(self, *responses: InferResponse) -> None:
        for one in responses:
            self.request.send(one, self.go_on)

    def go_on(self) -> None:
        self.went_on += 1

    def cancel(self, request: InferRequest) -> None:
        self.cancelled.append(request)
        request.settle(Cancelled())

    def each(self):  # type: ignore[no-untyped-def]  # an async generator, of which aclosing knows the type
        return each(self.request, self.responses, self.arrived, self.cancel)


async def test_responses_come_in_order_and_the_last_one_ends_them() -> None:
    """Those that were sent, then what settled the request."""
    asked = Asked()
    sent = [response(number) for number in range(3)]
    asked.send(*sent[:2])
    telling = asyncio.ensure_future(anext(told := asked.each()))
    assert await telling is sent[0]
    assert await anext(told) is sent[1]
    waiting = asyncio.ensure_future(anext(told))
    await asyncio.sleep(0)
    assert not waiting.done()
    asked.request.settle(sent[2])
    assert await waiting is sent[2]
    assert [one async for one in told] == []
    assert asked.cancelled == []


async def test_an_error_comes_behind_the_responses_before_it() -> None:
    """What was sent is told, then the error is raised."""
    asked = Asked()
    asked.send(response(1))
    asked.request.settle(EngineFailure("m"))
    told = asked.each()
    await anext(told)
    with pytest.raises(EngineFailure):
        await anext(told)
    assert asked.cancelled == []


async def test_a_caller_that_closes_early_cancels_the_request() -> None:
    """And so does one that is cancelled while it waits."""
    for waits in (False, True):
        asked = Asked()
        asked.send(response(1))
        async with aclosing(asked.each()) as told:
            await anext(told)
            if waits:
                waiting = asyncio.ensure_future(anext(told))
                await asyncio.sleep(0)
                waiting.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await waiting
        assert asked.cancelled == [asked.request]


async def test_whoever_sends_is_held_up_while_much_waits() -> None:
    """One response may always wait, whatever its size; further ones up to a limit of bytes."""
    asked = Asked()
    asked.send(response(1, MOST_WAITING_BYTES * 2))
    assert asked.went_on == 0
    assert asked.responses.pop() is not None
    assert asked.went_on == 1
    sent = 0
    while asked.went_on == sent + 1:
        asked.send(response(1, 1000))
        sent += 1
    assert 10 < sent < MOST_WAITING_BYTES // 1000 + 1
    asked.responses.pop()
    assert asked.went_on == sent + 1


async def test_nobody_is_held_up_for_a_request_that_is_settled() -> None:
    """Whoever waits is let go on, and whoever comes later is not held up; what it sends is dropped."""
    asked = Asked()
    asked.send(response(1, MOST_WAITING_BYTES))
    assert asked.went_on == 0
    asked.request.settle(Cancelled())
    assert asked.went_on == 1
    asked.send(response(2))
    assert asked.went_on == 2
    assert [asked.responses.pop() is not None for _ in range(3)] == [True, True, False]
    assert asked.responses.over
