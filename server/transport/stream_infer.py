"""ModelStreamInfer: requests in one stream, answers in the other.

Requests go to the data plane as they come, so that those of one stream share batches too; but no more of them at a
time than `_IN_FLIGHT`: a client that does not read its answers is not read either. Answers come in the order of the
requests, but for those of models that may give several: these come as they are made, and hold nobody up. A request
that fails is answered by an `error_message`, and the stream goes on.
Source: Triton, grpc_service.proto, ModelStreamInfer.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Any, NamedTuple

from server.call import Responses
from server.errors import Unsupported
from server.explain import decoded
from server.observability.whose import of
from server.request_check import ENABLE_EMPTY_FINAL_RESPONSE
from server.transport.codec import v2_grpc
from server.transport.status import failure_of
from server.types import InferRequest, InferResponse, Outcome

if TYPE_CHECKING:
    from server.dataplane import DataPlane
    from server.transport.methods import CallInfo

_IN_FLIGHT = 64
"""Two batches of the usual size: one that runs, and one that fills."""


async def stream_infer(dataplane: DataPlane, messages: AsyncIterator[Any], info: CallInfo) -> AsyncIterator[Any]:
    """The answers to the `messages`.

    Raises:
        ServingError: a message can't be parsed, which ends the stream behind the answers to those before it.
    """
    stream = _Stream(dataplane, info)
    reading = asyncio.create_task(stream.read(messages))
    try:
        while (answer := await stream.next()) is not None:
            yield answer
    finally:
        reading.cancel()
        await asyncio.wait((reading,))
        stream.cancel()


class _Asked(NamedTuple):
    """A message, and what came of it. `request` is None if it never became one."""

    id: str
    request: InferRequest | None
    responses: Responses


class _Stream:
    """What was asked in one stream and is not answered to the end."""

    def __init__(self, dataplane: DataPlane, info: CallInfo) -> None:
        self._dataplane = dataplane
        self._info = info
        self._ordered: deque[_Asked] = deque()
        self._decoupled: deque[_Asked] = deque()
        self._places = asyncio.Semaphore(_IN_FLIGHT)
        self._news = asyncio.Event()
        self._read_all = False
        self._broken: Exception | None = None

    async def read(self, messages: AsyncIterator[Any]) -> None:
        """Hands requests over as they come, while there are places for them."""
        try:
            await self._places.acquire()
            async for message in messages:
                self._ask(message)
                await self._places.acquire()
        except Exception as error:  # noqa: BLE001 - raised again where the answers are made, behind those of before
            self._broken = error
        self._read_all = True
        self._news.set()

    async def next(self) -> Any:
        """The next answer; None behind the last one. Raises what broke the stream."""
        while True:
            self._news.clear()
            answer = self._ready()
            if answer is not None:
                return answer
            if self._read_all and not self._ordered and not self._decoupled:
                if self._broken is not None:
                    raise self._broken
                return None
            await self._news.wait()

    def cancel(self) -> None:
        """The caller is gone: whatever it still waited for is cancelled."""
        for one in (*self._ordered, *self._decoupled):
            if one.request is not None:
                self._dataplane.cancel(one.request)
            one.responses.forget()

    def _ask(self, message: Any) -> None:
        responses = Responses(self._news.set)
        try:
            request = self._decode(message, responses)
        except Exception as error:  # noqa: BLE001 - becomes the answer to this request
            self._ordered.append(_Asked(message.id, None, responses))
            responses.settle(None, error)
            return
        decoupled = self._dataplane.decoupled(request.model_name, request.model_version)
        (self._decoupled if decoupled else self._ordered).append(_Asked(request.id, request, responses))
        self._dataplane.stream((request,))

    def _decode(self, message: Any, responses: Responses) -> InferRequest:
        now_ns = time.monotonic_ns()
        request = v2_grpc.decode_infer(
            message, on_settle=responses.settle, received_ns=now_ns, deadline_ns=self._info.deadline_ns
        )
        if decoded(None, request.parameters, now_ns) is not None:
            raise Unsupported("parameters.explain", "has no place in the answers of a stream: use ModelInfer")
        request.tenant = self._info.tenant
        if self._info.metadata:
            request.metadata = self._info.metadata
        request.caller = responses
        return request

    def _ready(self) -> Any:
        """An answer that can be told now; None: there is none."""
        for _ in range(len(self._decoupled)):
            one = self._decoupled.popleft()
            answer = self._pop(one)
            if not one.responses.over:
                self._decoupled.append(one)  # Behind the others, whose turn it is next.
            if answer is not None:
                return answer
        while self._ordered:
            one = self._ordered[0]
            answer = self._pop(one)
            if one.responses.over:
                self._ordered.popleft()
            if answer is not None or not one.responses.over:
                return answer
        return None

    def _pop(self, one: _Asked) -> Any:
        """The next message of a request; None: there is none yet, or its end is not to be told."""
        popped = one.responses.pop()
        if popped is None:
            return None
        outcome, final = popped
        if final:
            self._places.release()
        try:
            return _message(one, outcome, final=final)
        except Exception as error:  # noqa: BLE001 - becomes the answer to this request
            return _failed(one, error)


def _message(one: _Asked, outcome: Outcome, *, final: bool) -> Any:
    if not isinstance(outcome, InferResponse):
        return _failed(one, outcome)
    if outcome.outputs or (one.request and one.request.parameters.get(ENABLE_EMPTY_FINAL_RESPONSE)):
        return v2_grpc.encode_stream_infer(outcome, final=final)
    return None


def _failed(one: _Asked, error: BaseException) -> Any:
    model_name = ""
    if one.request is not None:
        of(error, one.request)
        model_name = one.request.model_name
    return v2_grpc.encode_stream_error(failure_of(error).message, one.id, model_name)
