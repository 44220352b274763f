"""ModelStreamInfer: requests in one stream, answers in the other, in the order of the requests.

Requests go to the data plane as they come, so that those of one stream share batches too; but no more of them at a
time than `_IN_FLIGHT`: a client that does not read its answers is not read either. A request that fails is answered
by an `error_message`, and the stream goes on. Source: Triton, grpc_service.proto, ModelStreamInfer.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Any, NamedTuple

from server.call import Settled, answer, settle_into
from server.errors import Unsupported
from server.explain import decoded
from server.transport.codec import v2_grpc
from server.transport.status import failure_of
from server.types import InferRequest

if TYPE_CHECKING:
    from server.dataplane import DataPlane
    from server.transport.methods import CallInfo

_IN_FLIGHT = 64
"""Two batches of the usual size: one that runs, and one that fills."""


class _Asked(NamedTuple):
    """A request on its way, or the error that it met before it was one."""

    id: str
    request: InferRequest | None
    settled: Settled | None
    error: Exception | None = None


_Queue = asyncio.Queue[_Asked | Exception | None]
"""What was asked, in order; behind it None where the client has said all, or what broke the stream."""


async def stream_infer(dataplane: DataPlane, messages: AsyncIterator[Any], info: CallInfo) -> AsyncIterator[Any]:
    """The answers to the `messages`.

    Raises:
        ServingError: a message can't be parsed, which ends the stream.
    """
    asked: _Queue = asyncio.Queue()
    places = asyncio.Semaphore(_IN_FLIGHT)
    reading = asyncio.create_task(_read(dataplane, messages, info, asked, places))
    try:
        while (one := await asked.get()) is not None:
            if isinstance(one, Exception):
                raise one
            yield await _answer(dataplane, one)
            places.release()
    finally:
        reading.cancel()
        await asyncio.wait((reading,))
        _cancel_all(dataplane, asked)


async def _read(
    dataplane: DataPlane, messages: AsyncIterator[Any], info: CallInfo, asked: _Queue, places: asyncio.Semaphore
) -> None:
    """Hands requests over as they come, while there are places for them."""
    try:
        await places.acquire()
        async for message in messages:
            asked.put_nowait(_ask(dataplane, message, info))
            await places.acquire()
    except Exception as error:  # noqa: BLE001 - raised again where the answers are made, behind those of before
        asked.put_nowait(error)
    else:
        asked.put_nowait(None)


def _ask(dataplane: DataPlane, message: Any, info: CallInfo) -> _Asked:
    settled: Settled = asyncio.get_running_loop().create_future()
    now_ns = time.monotonic_ns()
    try:
        request = v2_grpc.decode_infer(
            message, on_settle=settle_into(settled), received_ns=now_ns, deadline_ns=info.deadline_ns
        )
        if decoded(None, request.parameters, now_ns) is not None:
            raise Unsupported("parameters.explain", "has no place in the answers of a stream: use ModelInfer")
    except Exception as error:  # noqa: BLE001 - becomes the answer to this request
        return _Asked(message.id, None, None, error)
    request.tenant = info.tenant
    dataplane.submit((request,))
    return _Asked(request.id, request, settled)


async def _answer(dataplane: DataPlane, one: _Asked) -> Any:
    try:
        if one.request is None or one.settled is None:
            raise one.error or AssertionError("neither a request nor an error")
        response = await answer(one.request, one.settled, dataplane.cancel)
    except Exception as error:  # noqa: BLE001 - becomes the answer to this request
        model_name = one.request.model_name if one.request is not None else ""
        return v2_grpc.encode_stream_error(failure_of(error).message, one.id, model_name)
    return v2_grpc.encode_stream_infer(response, final=True)


def _cancel_all(dataplane: DataPlane, asked: _Queue) -> None:
    """The caller is gone: whatever it still waited for is cancelled."""
    while not asked.empty():
        one = asked.get_nowait()
        if isinstance(one, _Asked) and one.request is not None:
            dataplane.cancel(one.request)
