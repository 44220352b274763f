"""generate and generate_stream: a request by names and one answer, or an event for each answer.

Source: Triton's extension_generate.md; WHATWG HTML, "Server-sent events".
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import TYPE_CHECKING

import orjson

from server.call import Responses, each
from server.errors import InvalidRequest, Unsupported
from server.explain import decoded
from server.transport.codec.generate import decode_generate, encode_generate
from server.transport.codec.v2_rest import Call
from server.transport.exchange import explained
from server.transport.http1.reply import Headers, Reply, StreamedReply
from server.transport.status import failure_of

if TYPE_CHECKING:
    from server.transport.exchange import Exchange
    from server.types import InferRequest, InferResponse

_JSON: Headers = [(b"content-type", b"application/json")]
_EVENTS: Headers = [(b"content-type", b"text/event-stream; charset=utf-8"), (b"cache-control", b"no-cache")]


async def generate(exchange: Exchange) -> Reply:
    """The model's one answer. Raises InvalidRequest where it gives another number of them."""
    request, answers = await _ask(exchange)
    only: InferResponse | None = None
    async with aclosing(answers):
        async for response in answers:
            if only is not None and response.outputs:
                raise _not_one("several responses")
            only = response if response.outputs else only
    if only is None:
        raise _not_one("no response")
    return explained(Reply(200, encode_generate(only), _JSON), request.explanation)


def _not_one(given: str) -> InvalidRequest:
    return InvalidRequest("generate", f"the model gave {given}, and generate tells exactly one: use generate_stream")


async def generate_stream(exchange: Exchange) -> StreamedReply:
    """Each answer as an event. The first decides the status: an error before it is answered as anywhere else."""
    _, answers = await _ask(exchange, explains=False)
    try:
        first = _events_of(await anext(answers))
    except BaseException:
        await answers.aclose()
        raise
    return StreamedReply(200, _EVENTS, _events(first, answers), _failed)


async def _events(first: bytes, answers: AsyncGenerator[InferResponse]) -> AsyncGenerator[bytes]:
    async with aclosing(answers):
        yield first
        async for response in answers:
            yield _events_of(response)


def _events_of(response: InferResponse) -> bytes:
    """One event; none for the mere end of the responses."""
    return _event(encode_generate(response)) if response.outputs else b""


async def _ask(exchange: Exchange, *, explains: bool = True) -> tuple[InferRequest, AsyncGenerator[InferResponse]]:
    """The request, which is on its way, and the responses to it. Raises ServingError: it says something wrong."""
    arrived = asyncio.Event()
    responses = Responses(arrived.set)
    request = await _decode(exchange, responses)
    if request.explanation is not None and not explains:
        raise Unsupported("explain", "has no place in a stream of events: use generate")
    dataplane = exchange.dataplane
    dataplane.stream((request,))
    return request, each(request, responses, arrived, dataplane.cancel)


async def _decode(exchange: Exchange, responses: Responses) -> InferRequest:
    explanation = exchange.explanation()
    specs = exchange.dataplane.model_metadata(*exchange.model).inputs
    call = Call(
        *exchange.model,
        responses.settle,
        exchange.received_ns,
        exchange.deadline_ns(),
        tenant=exchange.tenant,
        caller=responses,
    )
    body = await exchange.body()
    if explanation is not None:
        explanation.mark("receive")
    request = decode_generate(call, body, specs)
    request.metadata = exchange.metadata
    request.explanation = decoded(explanation, request.parameters, exchange.received_ns)
    return request


def _event(data: bytes) -> bytes:
    """orjson writes no line breaks, which would end the event."""
    return b"data: %s\n\n" % data


def _failed(error: BaseException) -> bytes:
    return _event(orjson.dumps({"error": failure_of(error).message}))
