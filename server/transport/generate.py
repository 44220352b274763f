"""generate and generate_stream: a request by names and one answer, or an event for each answer.

Source: Triton's extension_generate.md; WHATWG HTML, "Server-sent events".
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from typing import TYPE_CHECKING

import orjson

from server.call import Settled, answer, settle_into
from server.errors import Unsupported
from server.explain import decoded
from server.transport.codec.generate import decode_generate, encode_generate
from server.transport.codec.v2_rest import Call
from server.transport.exchange import explained
from server.transport.http1.reply import Headers, Reply, StreamedReply
from server.transport.status import failure_of

if TYPE_CHECKING:
    from server.transport.exchange import Exchange
    from server.types import InferRequest

_JSON: Headers = [(b"content-type", b"application/json")]
_EVENTS: Headers = [(b"content-type", b"text/event-stream; charset=utf-8"), (b"cache-control", b"no-cache")]


async def generate(exchange: Exchange) -> Reply:
    """The model's one answer."""
    request, settled = await _decode(exchange)
    exchange.dataplane.submit((request,))
    response = await answer(request, settled, exchange.dataplane.cancel)
    return explained(Reply(200, encode_generate(response), _JSON), request.explanation)


async def generate_stream(exchange: Exchange) -> StreamedReply:
    """Each answer as an event. The first decides the status: an error before it is answered as anywhere else."""
    request, settled = await _decode(exchange)
    if request.explanation is not None:
        raise Unsupported("explain", "has no place in a stream of events: use generate")
    exchange.dataplane.submit((request,))
    first = _event(encode_generate(await answer(request, settled, exchange.dataplane.cancel)))

    async def events() -> AsyncGenerator[bytes]:
        yield first

    return StreamedReply(200, _EVENTS, events(), _failed)


async def _decode(exchange: Exchange) -> tuple[InferRequest, Settled]:
    explanation = exchange.explanation()
    specs = exchange.dataplane.model_metadata(*exchange.model).inputs
    settled: Settled = asyncio.get_running_loop().create_future()
    call = Call(
        *exchange.model, settle_into(settled), exchange.received_ns, exchange.deadline_ns(), tenant=exchange.tenant
    )
    body = await exchange.body()
    if explanation is not None:
        explanation.mark("receive")
    request = decode_generate(call, body, specs)
    request.explanation = decoded(explanation, request.parameters, exchange.received_ns)
    return request, settled


def _event(data: bytes) -> bytes:
    """orjson writes no line breaks, which would end the event."""
    return b"data: %s\n\n" % data


def _failed(error: BaseException) -> bytes:
    return _event(orjson.dumps({"error": failure_of(error).message}))
