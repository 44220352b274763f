"""Preprocessing in front of a batcher, on a manual clock: threads that end when a test says so."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np

from server.errors import InvalidRequest, Overloaded
from server.scheduler.preparing import OnThread, Preparing, Work
from server.scheduler.raw import RawPasses
from server.scheduler.worker import Done, Model
from server.tensor import Array
from server.types import NO_DEADLINE, ImageInput, InferRequest, InferResponse, Outcome, Parameter, RawInput
from tests.support.scheduler import Bench

SMALL = 1000
"""Bytes of a picture whose size nothing depends on."""


def _check(request: InferRequest) -> None:
    request.signature = 1


class ManualThread:
    """Has one request until `complete`; its time counts from the start."""

    def __init__(self, inner: OnThread, bench: PreparingBench) -> None:
        self.alive = True
        self.job: tuple[Sequence[InferRequest], Done] | None = None
        self.begun_ns = 0
        self._inner = inner
        self._bench = bench

    def start(self, requests: Sequence[InferRequest], done: Done) -> None:
        assert self.job is None, "one at a time"
        for work in requests:
            assert isinstance(work, Work)
            assert not work.of.settled
            assert work.of.deadline_ns > self._bench.clock()
            self._bench.begun.append(work.of.id)
        self.begun_ns = self._bench.clock()
        self.job = requests, done

    def complete(self, handover_ns: int = 0) -> None:
        """The loop hears of it so much later."""
        assert self.job is not None
        (requests, done), self.job = self.job, None
        result = self._inner.run_inline(requests)
        result.started_ns, result.compute_infer_ns = self.begun_ns, self._bench.clock() - self.begun_ns
        self._bench.clock.now_ns += handover_ns
        self._bench.loop.call_soon(done, result)

    def stop(self) -> None:
        return

    async def join(self) -> None:
        return


class PreparingBench:
    """Pictures of a first byte each, in front of the `Doubler`."""

    def __init__(
        self,
        threads: int = 1,
        *,
        foresees: bool = True,
        together: int = 1,
        brief: int = 0,
        passes: bool = False,
        **behind: Any,
    ) -> None:
        """`passes`: those behind can prepare, too."""
        raw = RawPasses("doubler", self._prepare, None, _check, lambda: self.clock()) if passes else None
        self.takes_ns = 0
        """The time that goes by while one input is prepared."""
        self.behind = Bench(raw=raw, **behind)
        self.clock, self.loop, self.statistics = self.behind.clock, self.behind.loop, self.behind.statistics
        self.begun: list[str] = []
        """Ids of the requests whose preprocessing began, in that order."""
        self.prepared_bytes: list[int] = []
        """The first byte of each input that was prepared."""
        self.threads: list[ManualThread] = []
        self.outcomes: dict[InferRequest, list[Outcome]] = {}
        model = Model("doubler", "1", batched=False)
        inner = OnThread(model, self._prepare, SimpleNamespace(), self.clock)  # type: ignore[arg-type]

        def make_runner(_: object) -> ManualThread:
            self.threads.append(ManualThread(inner, self))
            return self.threads[-1]

        self.preparing = Preparing(
            model,
            self._prepare,
            SimpleNamespace(most=threads),  # type: ignore[arg-type]
            self.statistics,
            self._submit,
            self.behind.batcher if foresees else None,
            self.loop,  # type: ignore[arg-type]
            self.clock,
            most_rows=4,
            together=together,
            brief=brief,
            passes=self.behind.batcher if passes else None,
            make_runner=make_runner,
        )

    def _prepare(self, raw: Sequence[RawInput]) -> Mapping[str, Array]:
        """The first byte of each; 255 is no picture."""
        values = [item.data[0] for item in raw if isinstance(item, ImageInput)]
        self.prepared_bytes += values
        self.clock.now_ns += self.takes_ns * len(values)
        if 255 in values:
            raise InvalidRequest(f"inputs[{values.index(255)}]", "is no picture")
        return {"x": np.asarray(values, dtype=np.int64).reshape(-1, 1)}

    def _submit(self, request: InferRequest) -> None:
        _check(request)
        request.holder = self.behind.batcher
        self.behind.batcher.submit((request,))

    @property
    def busy(self) -> list[ManualThread]:
        return [thread for thread in self.threads if thread.job is not None]

    def hopeless(self, within_ns: int, size: int = SMALL) -> Overloaded | None:
        """Of one picture, by its size alone."""
        return self.preparing.hopeless(size, self.clock(), self.clock() + within_ns)

    def ask(
        self,
        id: str = "",
        *values: int,
        within_ns: int | None = None,
        size: int = SMALL,
        parameters: Mapping[str, Parameter] | None = None,
        explanation: Any = None,
    ) -> InferRequest:
        """Submit a request of one picture for each value (of 7, where there are none)."""
        request = InferRequest(
            "doubler",
            (),
            on_settle=lambda request, outcome: self.outcomes[request].append(outcome),
            received_ns=self.clock(),
            id=id,
            deadline_ns=NO_DEADLINE if within_ns is None else self.clock() + within_ns,
            parameters=parameters,
            explanation=explanation,
        )
        raw = [ImageInput(bytes([value]) * size) for value in values or (7,)]
        request.rows = len(raw)
        self.outcomes[request] = []
        self.preparing.submit(request, raw)
        self.loop.run()
        return request

    def ask_at_once(self, *values: int) -> None:
        """Requests of a picture each, in one turn of the loop."""
        run, self.loop.run = self.loop.run, lambda: None  # type: ignore[method-assign]
        for value in values:
            self.ask(str(value), value)
        self.loop.run = run  # type: ignore[method-assign]
        self.loop.run()

    def advance(self, by_ns: int) -> None:
        self.clock.now_ns += by_ns
        self.loop.run()

    def prepared(self, after_ns: int = 0, handover_ns: int = 0) -> None:
        """The first thread that is busy ends, so much later, and the loop hears of it."""
        self.advance(after_ns)
        self.busy[0].complete(handover_ns)
        self.loop.run()

    def answered(self) -> None:
        """The pass behind ends."""
        self.behind.complete()

    def learn(self, prepare_ns: int, size: int = SMALL, times: int = 4) -> None:
        """Preprocessing of that size takes so long, and it is known."""
        for _ in range(times):
            self.ask("learned", size=size)
            self.prepared(prepare_ns)
            self.answered()

    def outcome(self, request: InferRequest) -> Outcome | None:
        outcomes = self.outcomes[request]
        assert len(outcomes) <= 1, "settled more than once"
        return outcomes[0] if outcomes else None

    def answer(self, request: InferRequest) -> list[int]:
        outcome = self.outcome(request)
        assert isinstance(outcome, InferResponse), repr(outcome)
        values: list[int] = outcome.outputs[0].numpy()[:, 0].tolist()
        return values
