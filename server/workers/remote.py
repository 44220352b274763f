"""What a front knows of the models that the engine process serves, and how their requests get there.

`RemoteModels` stands where in a single process `ModelControl` stands, and `RemoteBatcher` where a model's `Batcher`
does. Which versions there are, and which of them run here, is in `versions.py`.
"""

from __future__ import annotations

import asyncio
import logging
import pickle
import time
from base64 import b64encode
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

from server.errors import (
    Cancelled,
    DeadlineExceeded,
    Draining,
    EngineFailure,
    EngineLost,
    ServingError,
)
from server.model_control import ModelControl
from server.observability.whose import about
from server.scheduler.settling import CALLER_FAILED, READER_FAILED
from server.scheduler.statistics import ModelStatistics
from server.served import Served, absent
from server.shared_memory.places import SMALLEST_BYTES, Places
from server.tasks import Tasks
from server.types import IndexEntry, InferRequest, InferResponse
from server.workers.frames import BadFrame, Kind, frame
from server.workers.link import Link, Question
from server.workers.messages import (
    NOWHERE,
    NUMBER,
    Shapes,
    number_of,
    read_answer,
    read_error,
    read_json,
    write_infer,
)
from server.workers.versions import Announcement, Versions

log = logging.getLogger(__name__)

_SILENCE_NS = 5_000_000_000
"""The engine process tells of its health ten times a second; one that is silent for so long hangs."""
_SILENT_NS = 300_000_000
"""From here on the deadlines of what it was asked are kept in its place."""
_LOOK_S = 0.02
_AT_ONCE = 64
"""Requests that are told of a loss in one turn of the loop, at whose end their answers are written."""


class RemoteBatcher:
    """A batcher's interface to the engine process's batcher of one version."""

    def __init__(self, engine: RemoteModels, handle: int) -> None:
        self._engine = engine
        self._handle = handle

    def submit(self, requests: Sequence[InferRequest]) -> None:
        self._engine.submit(self._handle, requests)

    def cancel(self, request: InferRequest) -> None:
        self._engine.cancel(request)

    def healthy(self) -> bool:
        return self._engine.healthy()

    async def drain(self, until_ns: int) -> None:
        """Nothing more will come from here: the engine process may let go of the version."""
        self._engine.release(self._handle)

    async def close(self) -> None:
        """There is nothing to close here."""


class RemoteModels:
    """The models of the engine process behind a link, which may be lost and come again. All on the event loop."""

    def __init__(self, local: ModelControl, answer: Question, *, max_unsent_bytes: int) -> None:
        """`local` has the models that run here; `answer` answers the engine process's questions."""
        self._local = local
        self._answer = answer
        self._max_unsent_bytes = max_unsent_bytes
        self._link: Link | None = None
        self._shapes = Shapes()
        self._places: Places | None = None
        self._pending: dict[int, tuple[InferRequest, Served, int]] = {}
        """By number: who waits, for which version, and the place of its inputs."""
        self._numbers: dict[InferRequest, int] = {}
        """Of those who wait."""
        self._number = 0
        self._untold: deque[tuple[InferRequest, Served]] = deque()
        """Whom an engine process that is lost can't answer any more."""
        self._tasks = Tasks()
        self._versions = Versions(local, partial(RemoteBatcher, self), self._tasks)
        self._heard_ns = 0
        self._well = False
        self.told = asyncio.Event()
        """The engine process has said what it serves, and its link is there."""

    # --- the link ---------------------------------------------------------------------------------

    def attach(self, places: Places | None, lost: Callable[[], None]) -> Link:
        """A new link to the engine process, in place of any that was. `places`: of the memory shared with it.

        `lost` is called when it ends, unless another one has taken its place.
        """
        old = self._link
        if old is not None:
            self._give_up()
            old.close()
        link = Link("the engine process", self._take, self._answer)
        link.lost = partial(self._lost, link, lost)
        self._link, self._places = link, places
        return link

    def _lost(self, link: Link, tell: Callable[[], None]) -> None:
        if link is self._link:
            self._give_up()
            tell()

    def _give_up(self) -> None:
        """Everybody who waits is told; what is known of the models stays, to say the same of each of them."""
        self._link = None
        self._well = False
        self.told.clear()
        self._versions.lost()
        pending, self._pending = self._pending, {}
        self._numbers.clear()
        whose = about(*(request for request, _, _ in pending.values()))
        log.warning("the link to the engine process is lost, with %d requests under way", len(pending), extra=whose)
        self._untold += ((request, served) for request, served, _ in pending.values())
        self._tasks.start(self._tell())

    async def _tell(self) -> None:
        """Not all in one turn of the loop: of thousands, the first would wait for the last."""
        while self._untold:
            self._tell_some(_AT_ONCE)
            await asyncio.sleep(0)

    def _tell_some(self, most: int) -> None:
        for _ in range(min(most, len(self._untold))):
            self._fail(*self._untold.popleft(), EngineLost())

    def _fail(self, request: InferRequest, served: Served, error: ServingError) -> None:
        if self._settle(request, error):
            served.statistics.count_failure(error, time.monotonic_ns() - request.received_ns)

    @property
    def available(self) -> bool:
        """The engine process is there and has told what it serves."""
        return self.told.is_set()

    def healthy(self) -> bool:
        """Every queue there moves. While the process is replaced there is none that could stand still."""
        if self._link is None or not self.told.is_set():
            return True
        return self._well and time.monotonic_ns() - self._heard_ns < _SILENCE_NS

    async def ask(self, what: str, **more: Any) -> Any:
        """Raises ServingError as the engine process does; EngineLost."""
        if self._link is None:
            raise EngineLost
        return await self._link.ask(what, **more)

    # --- requests ---------------------------------------------------------------------------------

    def submit(self, handle: int, requests: Sequence[InferRequest]) -> None:
        link, served = self._link, self._versions.held(handle)
        if link is None or served is None or link.unsent_bytes > self._max_unsent_bytes:
            self._refuse(requests)
            return
        shapes, pending = self._shapes, self._pending
        for request in requests:
            if request.settled:
                continue
            number = self._number = (self._number + 1) & 0xFFFFFFFF
            place = self._place(request)
            pending[number] = request, served, place
            self._numbers[request] = number
            link.send(*write_infer(shapes, number, handle, request, place))

    def _refuse(self, requests: Sequence[InferRequest]) -> None:
        for request in requests:
            try:
                served = self.resolve(request.model_name, request.model_version)
            except ServingError:
                request.settle(EngineLost())
            else:
                self._fail(request, served, EngineLost())

    def _place(self, request: InferRequest) -> int:
        """Where its inputs are in shared memory, if they are large; text never is, see `places.py`."""
        if self._places is None:
            return NOWHERE
        datas = [tensor.data for tensor in request.inputs]
        if sum(map(len, datas)) < SMALLEST_BYTES or any(tensor.datatype == "BYTES" for tensor in request.inputs):
            return NOWHERE
        place = self._places.put(datas)
        return NOWHERE if place is None else place

    def cancel(self, request: InferRequest) -> None:
        """Settle it as Cancelled; the engine process is told, and counts it."""
        number = self._numbers.get(request)
        if number is None:
            return
        self._forget(number)
        if self._link is not None:
            self._link.send(frame(Kind.CANCEL, NUMBER.pack(number)))
        request.settle(Cancelled())

    def expire(self, now_ns: int) -> None:
        """Settle those whose time is over, while the engine process, which does so else, says nothing."""
        link = self._link
        if link is None or not self.told.is_set() or now_ns - self._heard_ns < _SILENT_NS:
            return
        for number, (request, served, _) in list(self._pending.items()):
            if request.deadline_ns <= now_ns:
                self._forget(number)
                link.send(frame(Kind.CANCEL, NUMBER.pack(number)))
                waited_us = (now_ns - request.received_ns) // 1000
                self._fail(request, served, DeadlineExceeded(request.model_name, waited_us))

    async def watch(self) -> None:
        """Look whether somebody's time is over, for ever."""
        while True:
            await asyncio.sleep(_LOOK_S)
            self.expire(time.monotonic_ns())

    def _forget(self, number: int) -> tuple[InferRequest, Served] | None:
        found = self._pending.pop(number, None)
        if found is None:
            return None
        request, served, place = found
        del self._numbers[request]
        if place != NOWHERE and self._places is not None:
            self._places.give_back(place)
        return request, served

    def _take(self, kind: int, body: memoryview) -> None:
        if kind == Kind.ANSWER:
            self._answered(body)
        elif kind == Kind.PIECE:
            self._piece(body)
        elif kind == Kind.FAILURE:
            error = read_error(read_json(body))
            found = self._forget(number_of(body))
            if found is not None:
                self._settle(found[0], error)
        elif kind == Kind.HEALTH:
            self._heard_ns, self._well = time.monotonic_ns(), bytes(body) == b"\1"
        elif kind == Kind.MODELS:
            self._announced(body)
        else:
            raise BadFrame(f"kind {kind} is not for a front")

    def _answered(self, body: memoryview) -> None:
        answer = read_answer(self._shapes, body)
        found = self._forget(number_of(body))
        if found is None:
            return
        request, served = found
        model = served.model
        response = InferResponse(
            model.name, answer.version or model.version, answer.outputs, request.id, answer.parameters, answer.timing
        )
        request.enqueued_ns = answer.enqueued_ns
        if request.explanation is not None:
            request.explanation.waited = answer.waited
        self._settle(request, response)

    def _piece(self, body: memoryview) -> None:
        """One of several responses."""
        answer = read_answer(self._shapes, body)
        number = number_of(body)
        if (found := self._pending.get(number)) is None:
            return  # It was cancelled meanwhile.
        request, served, _ = found
        response = InferResponse(served.model.name, served.model.version, answer.outputs, request.id, answer.parameters)
        try:
            request.send(response, partial(self._took, number))
        except Exception as error:
            log.exception(READER_FAILED, request.model_name, extra=about(request))
            self.cancel(request)
            request.settle(EngineFailure(request.model_name, repr(error)))

    def _took(self, number: int) -> None:
        if self._link is not None and number in self._pending:
            self._link.send(frame(Kind.TAKEN, NUMBER.pack(number)))

    def _settle(self, request: InferRequest, outcome: InferResponse | ServingError) -> bool:
        """Whether it had no outcome before."""
        try:
            return request.settle(outcome)
        except Exception:
            log.exception(CALLER_FAILED, request.model_name, extra=about(request))
            return True

    # --- models -----------------------------------------------------------------------------------

    def _announced(self, body: memoryview) -> None:
        told: Announcement = pickle.loads(body)  # nosec B301 # noqa: S301 - of our own process
        self._versions.announced(told)
        self._heard_ns, self._well = time.monotonic_ns(), True
        self.told.set()

    def release(self, handle: int) -> None:
        """Nothing more will be asked of that version."""
        if self._versions.release(handle) and self._link is not None:
            self._link.send(frame(Kind.RELEASE, NUMBER.pack(handle)))

    # --- as ModelControl --------------------------------------------------------------------------

    def resolve(self, name: str, version: str = "") -> Served:
        """Raises UnknownModel, ModelNotReady; EngineLost where nothing is known yet."""
        served = self._versions.find(name, version)
        if served is not None:
            return served
        others = self.versions(name)
        if not others and not self.told.is_set():
            raise EngineLost
        raise absent(name, version, self.index(), others_serve=bool(others))

    def __iter__(self) -> Iterator[Served]:
        return iter(self._versions)

    def versions(self, name: str) -> list[Served]:
        return self._versions.of(name)

    def index(self, repository_name: str = "") -> list[IndexEntry]:
        """As it was told last, of all repositories; `FrontPlane` asks for that of one."""
        return self._versions.index

    async def load(self, name: str, parameters: Mapping[str, object] | None = None, repository_name: str = "") -> None:
        """Raises ServingError as the engine process does."""
        files = {key: b64encode(value).decode() for key, value in (parameters or {}).items() if type(value) is bytes}
        plain = {key: value for key, value in (parameters or {}).items() if key not in files}
        await self.ask("load", name=name, parameters=plain, files=files, repository_name=repository_name)

    async def unload(self, name: str, *, with_composing: bool = False, repository_name: str = "") -> None:
        """Raises ServingError as the engine process does."""
        await self.ask("unload", name=name, with_composing=with_composing, repository_name=repository_name)

    def counted(self) -> list[ModelStatistics]:
        """What was counted here: of models that run here, and failures to reach the engine process."""
        return self._local.counted()

    async def drain(self, until_ns: int) -> None:
        """Wait for what is under way; what is left at `until_ns` is settled as UNAVAILABLE."""
        await self._local.drain(until_ns)
        while (self._pending or self._untold) and time.monotonic_ns() < until_ns:  # noqa: ASYNC110 - of a registry
            await asyncio.sleep(0.01)
        self._tell_some(len(self._untold))
        for number in list(self._pending):
            found = self._forget(number)
            if found is not None:
                found[0].settle(Draining())

    async def close(self) -> None:
        if self._link is not None:
            link, self._link = self._link, None
            link.close()
        await self._local.close()
