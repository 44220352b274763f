"""One engine instance and the thread that runs it.

A pass is merge, `Instance.run`, split. `forward` is the one place where foreign exceptions become
`EngineFailure`; what is no `Exception` at all ends the thread, after its callers were told.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from queue import SimpleQueue
from typing import TYPE_CHECKING, Protocol

from server.buckets import Buckets
from server.engine.base import Instance
from server.errors import EngineFailure, ServingError
from server.observability.whose import about
from server.scheduler.merge import joined, merge, split
from server.scheduler.pad import Padding, elements, padding_of
from server.tensor import Array
from server.types import Batch, InferRequest, InferResponse

if TYPE_CHECKING:
    from server.scheduler.raw import RawPasses

log = logging.getLogger(__name__)

_CPU = "cpu"
"""The device whose passes are only as long as they need to be: see `server.buckets`."""


@dataclass(slots=True)
class Pass:
    """The outcome of one forward pass: an answer for each request in their order, or an error for all."""

    rows: int
    started_ns: int
    responses: Sequence[InferResponse] = ()
    error: ServingError | None = None
    compute_input_ns: int = 0
    compute_infer_ns: int = 0
    compute_output_ns: int = 0
    died: bool = False
    """The worker can't be used any more."""
    input_elements: int = 0
    """Of inputs that are padded to a bucket, what the pass had."""
    padding_elements: int = 0
    """How many of these were padding."""
    prepare_ns: int = 0
    """Where it made its tensors, what that took, before the rest."""
    spoiled: Mapping[InferRequest, ServingError] | None = None
    """Of such a pass, the requests whose inputs became no tensors, and why. They are in nothing else here."""

    @property
    def padding(self) -> float:
        """The share of padding, 0 to 1."""
        return self.padding_elements / self.input_elements if self.input_elements else 0.0

    @property
    def durations_ns(self) -> tuple[int, int, int]:
        """Of input, infer and output."""
        return self.compute_input_ns, self.compute_infer_ns, self.compute_output_ns

    @property
    def compute_ns(self) -> int:
        return self.prepare_ns + self.compute_input_ns + self.compute_infer_ns + self.compute_output_ns


Done = Callable[[Pass], None]
_Jobs = SimpleQueue[tuple[Sequence[InferRequest], Done] | None]


@dataclass(frozen=True, slots=True)
class Model:
    """What a worker must know of the model version it runs."""

    name: str
    version: str
    batched: bool
    """It has a batch dimension."""
    buckets: Buckets | None = None
    """The lengths to which its requests are padded."""
    raw: RawPasses | None = None
    """How requests with raw inputs get their tensors."""


class Runner(Protocol):
    """What the batcher needs of a worker; `Worker` is the one that has a thread."""

    @property
    def alive(self) -> bool:
        """Whether it can run another pass."""

    def start(self, requests: Sequence[InferRequest], done: Done) -> None:
        """Begin a pass; `done` is called once, on the event loop, later. One pass at a time."""

    def run_inline(self, requests: Sequence[InferRequest]) -> Pass:
        """Do a pass here and now, on the caller's thread. No other may be under way."""

    def stop(self) -> None:
        """Begin nothing any more; what is under way is finished. May be called again."""

    async def join(self) -> None:
        """Return when nothing is under way and nothing will be. Call `stop` before."""


def forward(
    instance: Instance,
    requests: Sequence[InferRequest],
    model: Model,
    clock: Callable[[], int],
) -> Pass:
    """One forward pass. Raises nothing but what is no `Exception`: any other failure is in the result."""
    started_ns = clock()
    if requests[0].raw is not None:
        return _prepared(instance, requests, model, clock, started_ns)
    padding: Padding | None = None
    try:
        if model.buckets is not None:
            padding = padding_of(requests, model.buckets, fixed=instance.device != _CPU)
        batch = merge(requests, model.name, model.version, padding)
        merged_ns = clock()
        outputs = instance.run(batch)
        ran_ns = clock()
        responses = split(outputs, requests, batch, batched=model.batched, padding=padding)
    except Exception as error:  # noqa: BLE001 - the one place where foreign exceptions are translated
        return failed_pass(model, sum([request.rows for request in requests]), started_ns, error)
    result = Pass(batch.rows, started_ns, responses, None, merged_ns - started_ns, ran_ns - merged_ns, clock() - ran_ns)
    if model.buckets is not None:
        result.input_elements, result.padding_elements = elements(batch, model.buckets, padding, requests)
    return result


def _prepared(
    instance: Instance, requests: Sequence[InferRequest], model: Model, clock: Callable[[], int], started_ns: int
) -> Pass:
    """The pass of requests with raw inputs."""
    spoiled: dict[InferRequest, ServingError] = {}
    try:
        result = _in_pieces(instance, requests, model, clock, started_ns, spoiled)
    except Exception as error:  # noqa: BLE001 - as of any other pass; none of its requests has an answer
        result = failed_pass(model, sum([request.rows for request in requests]), started_ns, error)
    result.spoiled = spoiled
    return result


def _in_pieces(
    instance: Instance,
    requests: Sequence[InferRequest],
    model: Model,
    clock: Callable[[], int],
    started_ns: int,
    spoiled: dict[InferRequest, ServingError],
) -> Pass:
    """A piece becomes rows, the engine runs them, and only then the next one is prepared. Those of `spoiled`, which is
    filled, have no answer."""
    assert model.raw is not None
    result = Pass(0, started_ns)
    ready: list[InferRequest] = []
    batches: list[Batch] = []
    outputs: list[Mapping[str, Array]] = []
    at_once, pieces = model.raw.pieces(requests)
    now_ns = started_ns
    for piece in pieces:
        bad, inputs = model.raw.prepare(piece)
        prepared_ns = clock()
        result.prepare_ns += prepared_ns - now_ns
        now_ns = prepared_ns
        spoiled.update(bad)
        good = [request for request in piece if request not in bad] if bad else piece
        if not good:
            continue
        batches.append(merge(good, model.name, model.version, together=inputs))
        merged_ns = clock()
        outputs.append(instance.run(batches[-1]))
        now_ns = clock()
        result.compute_input_ns += merged_ns - prepared_ns
        result.compute_infer_ns += now_ns - merged_ns
        result.rows += batches[-1].rows
        ready += good
    if not ready:
        return result
    if at_once:
        model.raw.engine.learn(at_once, result.rows, result.compute_infer_ns)
    batch = batches[0] if len(batches) == 1 else Batch(model.name, model.version, result.rows, {})
    result.responses = split(joined(outputs), ready, batch, batched=model.batched)
    result.compute_output_ns = clock() - now_ns
    return result


def failed_pass(model: Model, rows: int, started_ns: int, error: Exception) -> Pass:
    """The outcome of a pass that raised."""
    return Pass(rows, started_ns, error=translated(model.name, error))


def translated(model_name: str, error: BaseException) -> ServingError:
    """What the caller of a pass that raised is told."""
    return error if isinstance(error, ServingError) else _failure(model_name, error)


def _failure(model_name: str, error: BaseException) -> EngineFailure:
    failure = EngineFailure(model_name, f"{type(error).__name__}: {error}")
    failure.__cause__ = error
    return failure


class Worker:
    """An instance with a thread of its own. Whoever makes a worker stops it; a thread that hangs is left behind."""

    def __init__(
        self, instance: Instance, model: Model, loop: asyncio.AbstractEventLoop, clock: Callable[[], int]
    ) -> None:
        self._instance = instance
        self._model = model
        self._loop = loop
        self._clock = clock
        self._ended = asyncio.Event()
        self._given_up = self._stopped = False
        self._life = 0
        """Which thread it is; one that was given up belongs to an earlier life."""
        self._begin()

    def _begin(self) -> None:
        self._jobs: _Jobs = SimpleQueue()
        self._life += 1
        # A daemon, so that one which hangs keeps no process from ending; all others are joined.
        self._thread = threading.Thread(
            target=self._work, args=(self._jobs, self._life), name=f"forward {self._instance.name}", daemon=True
        )
        self._thread.start()
        self.alive = True

    def start(self, requests: Sequence[InferRequest], done: Done) -> None:
        self._jobs.put((requests, done))

    def run_inline(self, requests: Sequence[InferRequest]) -> Pass:
        return forward(self._instance, requests, self._model, self._clock)

    def stop(self) -> None:
        self._stopped = True
        self._jobs.put(None)

    async def join(self) -> None:
        await self._ended.wait()
        if not self._given_up:
            self._thread.join()

    def give_up(self) -> None:
        """The pass under way hangs: nobody waits for it any more, and `done` is not called. It is not alive then."""
        self._life += 1
        self.alive, self._given_up = False, True
        self._ended.set()
        self._jobs.put(None)  # Should it ever come back.
        interrupt = getattr(self._instance, "interrupt", None)
        if interrupt is not None:
            interrupt()

    async def renew(self) -> None:
        """Put another instance in the place of one that was given up. Raises ServingError: there can't be another."""
        make: Callable[[], Instance] | None = getattr(self._instance, "renew", None)
        if make is None:
            raise EngineFailure(self._model.name, f"{self._instance.name}: its engine makes no second one")
        instance = await asyncio.to_thread(make)
        if self._stopped:
            raise EngineFailure(self._model.name, f"{self._instance.name}: it is not wanted any more")
        self._instance = instance
        self._ended.clear()
        self._given_up = False
        self._begin()

    def _work(self, jobs: _Jobs, life: int) -> None:
        try:
            self._run(jobs, life)
        finally:
            if life == self._life:
                self.alive = False
                self._post(self._ended.set)

    def _run(self, jobs: _Jobs, life: int) -> None:
        while (job := jobs.get()) is not None:
            requests, done = job
            try:
                result = self._pass(requests)
            except BaseException as error:  # the thread ends, and its callers must not wait for ever
                log.critical("the thread of %s died", self._instance.name, exc_info=error, extra=about(*requests))
                if life == self._life:
                    self._post(done, self._death(requests, error))
                break
            if life != self._life:
                log.warning("a pass of %s that was given up has ended", self._instance.name, extra=about(*requests))
                return
            self._post(done, result)

    def _pass(self, requests: Sequence[InferRequest]) -> Pass:
        return forward(self._instance, requests, self._model, self._clock)

    def _death(self, requests: Sequence[InferRequest], error: BaseException) -> Pass:
        self.alive = False
        rows = sum([request.rows for request in requests])
        return Pass(rows, self._clock(), error=_failure(self._model.name, error), died=True)

    def _post(self, callback: Callable[..., None], *arguments: object) -> bool:
        try:
            self._loop.call_soon_threadsafe(callback, *arguments)
        except RuntimeError:  # the loop is closed: nobody is left who could wait
            log.warning("%s ended a pass after the event loop", self._instance.name)
            return False
        return True
