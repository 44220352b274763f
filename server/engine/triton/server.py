"""One Triton: its connection, the probes of its health, what it says of its models, and calls to it."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Coroutine, Mapping, Sequence
from contextlib import suppress
from functools import partial
from typing import Any

import grpc
from grpc import StatusCode

from server.engine.triton.addresses import Endpoint
from server.engine.triton.calls import EMPTY_FINAL, NOWHERE, answer_of, is_final, message_of
from server.engine.triton.cancellation import survives_cancelled_calls
from server.engine.triton.channel import Channels, Line
from server.engine.triton.failures import (
    NotAnsweredError,
    checked,
    control_failure_of,
    failure_of,
    finished_with,
    memory_forgotten,
    of_grpcio,
    probe_problem,
)
from server.engine.triton.health import Health
from server.engine.triton.link import Link
from server.engine.triton.memory import Memory, Piece, Placed
from server.engine.triton.methods import INDEX, INFER, READY, SERVER, Unary
from server.engine.triton.registration import Registration
from server.engine.triton.unary import UnaryCalls
from server.engine.triton.wire import Failed, Fate, Result
from server.errors import Cancelled, EngineFailure, ServingError, TritonDeclined, TritonLost, TritonUnreached
from server.observability.whose import about
from server.proto.triton import service_pb2 as pb
from server.settings import TritonSettings
from server.types import NO_DEADLINE, IndexEntry, InferRequest, InferResponse, Outcome

log = logging.getLogger(__name__)

_READY = "READY"
_LATE = 1.5
"""A probe that took so many times as long as it may."""
_UNLOADED = "unloaded"
_LAST_ANSWERS_S = 2.0
"""That calls which nobody waits for have to be answered, where they may not be cancelled."""

ModelKey = tuple[str, str]
"""Name and version."""


class _MemoryForgottenError(Exception):
    """It does not know the memory with the inputs, and did not execute the request."""


class TritonServer:
    """At one address. All on the event loop."""

    def __init__(
        self,
        endpoint: Endpoint,
        settings: TritonSettings,
        channels: Channels,
        changed: Callable[[TritonServer], None],
        memory: Memory | None = None,
    ) -> None:
        """`changed` is called when it came up, went down, or tells another index of models than before. `memory`: what
        it may read large inputs from."""
        self.endpoint = endpoint
        self.name = endpoint.name
        self.work_ns = 0
        self.health = Health(settings.health_interval_s, settings.max_backoff_s)
        self.ready = False
        """It says so of itself, as a whole."""
        self.problem = ""
        """Why it is not up, as its last probe says; of one that is up nothing is meant."""
        self.index: Mapping[ModelKey, IndexEntry] = {}
        """What it said last."""
        self._probe_timeout_s = settings.probe_timeout_s
        self._link = channels.link(endpoint)
        """For unary calls; None: they go by the channel as well, as streams do."""
        self._streams = 0
        """Under way, by the channel."""
        self._line = Line(channels, endpoint)
        self._calls = UnaryCalls(self._line, self._link)
        self._cancellation = settings.cancellation
        self._cancels = settings.cancellation != "never"
        """It hears that nobody waits for a ModelInfer any more."""
        self._changed = changed
        self._wake = asyncio.Event()
        self._asking: set[asyncio.Task[Outcome]] = set()
        self._memory = Registration(memory, self.name, self._about_memory) if memory is not None else None
        self._watching: asyncio.Task[None] | None = None

    # --- health -----------------------------------------------------------------------------------

    @property
    def up(self) -> bool:
        """It may be sent requests."""
        return self.health.up

    def has(self, key: ModelKey) -> bool:
        """Whether it serves that version."""
        entry = self.index.get(key)
        return self.up and entry is not None and entry.state == _READY

    def watch(self) -> None:
        """Probe it from now on, but for its first probe."""
        self._watching = asyncio.get_running_loop().create_task(self._watch())

    async def _watch(self) -> None:
        while True:
            with suppress(TimeoutError):
                await asyncio.wait_for(self._wake.wait(), self.health.next_s)
            self._wake.clear()
            await self.probe()

    async def probe(self) -> None:
        """Ask it how it is and what it has. Never raises."""
        before, began = (self.up, self.ready, self.index), time.monotonic()
        try:
            ready, index, _ = await asyncio.gather(
                self.call(READY, pb.ServerReadyRequest(), self._probe_timeout_s),
                self.call(INDEX, pb.RepositoryIndexRequest(), self._probe_timeout_s),
                self._meet(),
            )
        except (TimeoutError, ServingError) as error:
            if time.monotonic() - began > _LATE * self._probe_timeout_s:
                return  # It is this process that was late: that tells nothing of the server.
            self.health.silent() if isinstance(error, TimeoutError) else self.health.failed()
            self.problem = probe_problem(error)
        else:
            self._heard(ready.ready, index)
            self.problem = "it is stopping"
        self.ready = self.ready and self.up
        if before != (self.up, self.ready, self.index):
            if self.up and not before[0]:
                log.info("Triton %s is up", self.name)
            elif before[0] and not self.up:
                log.warning("Triton %s is ejected: %s", self.name, self.problem)
            self._changed(self)

    async def _meet(self) -> None:
        """What it is, each time before it comes up: it may be another one than before."""
        if self.up or self._cancellation != "auto":
            return
        with suppress(ServingError):
            told = await self.call(SERVER, pb.ServerMetadataRequest(), self._probe_timeout_s)
            self._cancels = survives_cancelled_calls(told.name, told.version)
            if not self._cancels:
                log.warning("Triton %s: version %s may crash by a cancelled call, so none is", self.name, told.version)

    def _heard(self, ready: bool, index: Any) -> None:
        self.index = {
            (model.name, model.version): IndexEntry(model.name, model.version, model.state, model.reason)
            for model in index.models
        }
        self.ready = ready
        # Under its strict readiness one model that can't be loaded makes it say no, and the others serve. Where all
        # are well it says no because it stops.
        broken = any(entry.state != _READY and entry.reason != _UNLOADED for entry in self.index.values())
        self.health.passed() if ready or broken else self.health.failed()

    def suspect(self, request: InferRequest) -> None:
        """The request found it gone: nothing more is sent to it before a probe succeeds, which is made now."""
        if self.up:
            self.health.failed()
            self.ready = False
            log.warning("Triton %s is ejected: a call found it gone", self.name, extra=about(request))
            self._changed(self)
        self._wake.set()

    def reconnect(self) -> None:
        """The certificates are others: whoever asks from now on shows them."""
        if self.endpoint.target.tls:
            self._line.renew()
            self._wake.set()

    @property
    def may_share_memory(self) -> bool:
        """Large inputs go to it by shared memory, if it can."""
        return self._memory is not None

    @property
    def shares_memory(self) -> bool:
        """They do now."""
        return self._memory is not None and self._memory.known

    # --- requests -----------------------------------------------------------------------------------

    def ask(
        self,
        request: InferRequest,
        version: str,
        outputs: Sequence[str],
        done: Callable[[Outcome], None],
        *,
        several: bool = False,
    ) -> Callable[[], None]:
        """Send a request to that version; `done` hears the outcome once, later. Returns what gives the call up.

        `outputs`: of the model, in its order. `several`: it gives several responses; those are sent to the request,
        and the outcome is their end, without outputs.
        """
        if several:
            return self._ask(request, self._stream(request, version, outputs), done)
        placed = self._memory.put(request) if self._memory is not None else None
        if placed is not None:
            return self._ask(request, self._infer_placed(request, version, outputs, placed), done)
        if self._link is not None:
            return self._ask_plainly(self._link, request, version, outputs, done)
        return self._ask(request, self._infer_with(request, version, outputs, NOWHERE), done)

    def _ask(
        self, request: InferRequest, call: Coroutine[Any, Any, Outcome], done: Callable[[Outcome], None]
    ) -> Callable[[], None]:
        task = asyncio.get_running_loop().create_task(call)
        self._asking.add(task)
        task.add_done_callback(partial(self._asked, request, done))
        return partial(_give_up, task)

    def _ask_plainly(
        self, link: Link, request: InferRequest, version: str, outputs: Sequence[str], done: Callable[[Outcome], None]
    ) -> Callable[[], None]:
        """Without a task: nearly every request goes this way."""
        began_ns = time.monotonic_ns()
        message = message_of(request, version, began_ns).SerializeToString()

        loop = asyncio.get_running_loop()

        def told(result: Result) -> None:
            self._concluded(request, _outcome_of(result, request, outputs, began_ns), done)

        left_s, cancels = _left_s(request, began_ns), self._cancels
        give_up = link.call(INFER.path, message, left_s, request.metadata, told, cancels=cancels)
        # Not at once: whoever gives up may be in the middle of what `done` changes.
        return partial(_later, loop, give_up)

    def _asked(self, request: InferRequest, done: Callable[[Outcome], None], task: asyncio.Task[Outcome]) -> None:
        self._asking.discard(task)
        self._concluded(request, _outcome(request, task), done)

    def _concluded(self, request: InferRequest, outcome: Outcome, done: Callable[[Outcome], None]) -> None:
        if isinstance(outcome, TritonDeclined):
            self._wake.set()
        elif isinstance(outcome, TritonUnreached | TritonLost):
            self.suspect(request)
        done(outcome)

    async def _infer_placed(
        self, request: InferRequest, version: str, outputs: Sequence[str], placed: Placed
    ) -> Outcome:
        """Its inputs are in shared memory, or soon. If not, or if Triton forgot the memory, they go by message."""
        assert self._memory is not None
        read, left_s = False, _left_s(request, time.monotonic_ns())
        try:
            if placed.copying is None or await self._memory.copied(placed.copying, left_s):
                outcome = await self._infer_with(request, version, outputs, placed.pieces)
                read = True
                return outcome
        except _MemoryForgottenError:
            read = True
            self._memory.forgot()
        except ServingError as error:
            read = finished_with(error)
            raise
        finally:
            self._memory.give_back(placed, read=read)
        return await self._infer_with(request, version, outputs, NOWHERE)

    async def _infer_with(
        self, request: InferRequest, version: str, outputs: Sequence[str], pieces: Mapping[str, Piece]
    ) -> Outcome:
        began_ns = time.monotonic_ns()
        message = message_of(request, version, began_ns, pieces)
        timeout_s = _left_s(request, began_ns)
        try:
            reply = await self._calls.reply(INFER, message, timeout_s, request.metadata, cancels=self._cancels)
        except NotAnsweredError as error:
            if pieces and memory_forgotten(error.details):
                raise _MemoryForgottenError from error
            raise failure_of(request.model_name, error, _since_us(began_ns)) from error
        return answer_of(reply, request, outputs)

    async def _stream(self, request: InferRequest, version: str, outputs: Sequence[str]) -> Outcome:
        began_ns, begun = time.monotonic_ns(), False
        message = message_of(request, version, began_ns)
        message.parameters[EMPTY_FINAL].bool_param = True
        call = self._line.stream(timeout=_left_s(request, began_ns), metadata=request.metadata or None)
        self._streams += 1
        try:
            await call.write(message)
            await call.done_writing()
            async for reply in call:
                begun = True
                if reply.error_message:
                    raise EngineFailure(request.model_name, reply.error_message)
                final = is_final(reply.infer_response)
                if reply.infer_response.outputs or not final:
                    await _send(request, answer_of(reply.infer_response, request, outputs, of_several=True))
                if final:
                    break
        except grpc.aio.AioRpcError as error:
            failure = failure_of(request.model_name, of_grpcio(error), _since_us(began_ns))
            if begun and isinstance(failure, TritonUnreached):
                failure = TritonLost(request.model_name, failure.why)
            raise failure from error
        finally:
            self._streams -= 1
            call.cancel()
        # As Triton's, the mere end of the responses has no version.
        return InferResponse(request.model_name, "", (), request.id)

    async def call(self, method: Unary, message: Any, timeout_s: float, model_name: str = "") -> Any:
        """One of its other methods.

        Raises:
            TimeoutError: no answer in that time.
            ServingError: it can't be reached, or says no.
        """
        try:
            # Beside streams that are silent for long, pings alone would be an offence.
            by_channel = method is READY and self._streams > 0
            return await self._calls.reply(method, message, timeout_s, by_channel=by_channel)
        except NotAnsweredError as error:
            if error.code is StatusCode.DEADLINE_EXCEEDED:
                raise TimeoutError from error
            raise control_failure_of(model_name, error) from error

    async def _about_memory(self, method: Unary, message: Any) -> Any:
        return await self.call(method, message, self._probe_timeout_s)

    async def close(self, grace_s: float) -> None:
        """Send nothing more; what is under way has so long to be answered, then it is lost."""
        if self._watching is not None:
            self._watching.cancel()
        if self._asking:
            await asyncio.wait(set(self._asking), timeout=grace_s)
        if self._memory is not None:
            await self._memory.close()
        # The end of a connection cancels what is under way on it, too.
        await self._calls.close(grace_s if self._cancels else max(grace_s, _LAST_ANSWERS_S))
        await self._line.close()


def _left_s(request: InferRequest, now_ns: int) -> float | None:
    """Until its deadline; None: it has none."""
    return max(0, request.deadline_ns - now_ns) / 1e9 if request.deadline_ns < NO_DEADLINE else None


def _since_us(began_ns: int) -> int:
    return (time.monotonic_ns() - began_ns) // 1000


async def _send(request: InferRequest, response: InferResponse) -> None:
    """Returns when its caller takes another one."""
    room = asyncio.Event()
    request.send(response, room.set)
    await room.wait()


def _outcome(request: InferRequest, task: asyncio.Task[Outcome]) -> Outcome:
    if task.cancelled():
        return Cancelled()
    error = task.exception()
    if error is None or isinstance(error, ServingError):
        return error or task.result()
    log.error("a call to a Triton failed", exc_info=error, extra=about(request))
    return EngineFailure(request.model_name, repr(error))


def _outcome_of(result: Result, request: InferRequest, outputs: Sequence[str], began_ns: int) -> Outcome:
    if isinstance(result, Failed) and result.fate is Fate.GIVEN_UP:
        return Cancelled()
    try:
        return answer_of(pb.ModelInferResponse.FromString(checked(result)), request, outputs)
    except NotAnsweredError as error:
        return failure_of(request.model_name, error, _since_us(began_ns))
    except ServingError as error:
        return error
    except Exception as error:
        log.exception("the answer of a Triton can't be read", extra=about(request))
        return EngineFailure(request.model_name, repr(error))


def _later(loop: asyncio.AbstractEventLoop, call: Callable[[], None]) -> None:
    loop.call_soon(call)


def _give_up(task: asyncio.Task[Outcome]) -> None:
    # Not at once, as above.
    task.get_loop().call_soon(task.cancel)
