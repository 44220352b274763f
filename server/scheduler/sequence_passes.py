"""The passes of a model version that batches sequences: whose requests are in one, in which rows, what comes of them.

When one may begin is the batcher's business; no asyncio.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import NamedTuple

from server.errors import DeadlineExceeded, EngineFailure, SequenceLost, ServingError
from server.observability.whose import about
from server.scheduler.costs import Costs
from server.scheduler.instances import Instances, Run
from server.scheduler.plan import Wait
from server.scheduler.sequence_plan import plan_lane
from server.scheduler.sequence_rows import Rows
from server.scheduler.sequence_waits import SequenceWaits
from server.scheduler.settling import Settling
from server.scheduler.slots import ID, Chain, Slots
from server.scheduler.statistics import ModelStatistics
from server.scheduler.worker import Pass, Runner
from server.sequences import Direct, Oldest, sequence_id
from server.types import NO_DEADLINE, InferRequest, InferResponse

log = logging.getLogger(__name__)

UNANSWERED = "a request of it was not answered"
_DIED = "the instance that it ran on has died"


class Reserved(NamedTuple):
    """A pass that must begin now."""

    run: Run
    places: Sequence[Chain | None]
    """Whose request is in which row; None: nobody's."""


class _UnderWay(NamedTuple):
    places: Sequence[Chain | None]
    requests: list[tuple[Chain, InferRequest]]


class SequencePasses:
    """Of one model version."""

    def __init__(
        self,
        model_name: str,
        runners: Sequence[Runner],
        strategy: Direct | Oldest,
        max_batch_size: int,
        rows: Rows,
        costs: Costs,
        slots: Slots,
        instances: Instances,
        settling: Settling,
        waits: SequenceWaits,
        statistics: ModelStatistics,
        clock: Callable[[], int],
    ) -> None:
        self._model_name = model_name
        self._lanes = {runner: number for number, runner in enumerate(runners)}
        self._strategy = strategy
        self._max_batch_size = max_batch_size
        self._rows = rows
        self._costs = costs
        self._slots = slots
        self._instances = instances
        self._settling = settling
        self._waits = waits
        self._statistics = statistics
        self._clock = clock
        self._reruns: list[deque[Chain]] = [deque() for _ in runners]
        """By lane: neighbours of a pass that failed, each to be run once more, alone, before anybody else there."""
        self._under_way: dict[Runner, _UnderWay] = {}

    @property
    def reruns(self) -> int:
        """Requests that wait to be run once more."""
        return sum([len(reruns) for reruns in self._reruns])

    def running(self) -> list[InferRequest]:
        """Those whose passes are under way."""
        return [request for held in self._under_way.values() for _, request in held.requests]

    def idle_lanes(self) -> set[int]:
        """Those whose instances run nothing."""
        return {self._lanes[runner] for runner in self._instances.idle}

    # --- who goes next -------------------------------------------------------------------------------

    def next(self, runner: Runner, now_ns: int) -> tuple[Sequence[Chain], int]:
        """Whose requests the idle instance should run now, and if nobody's, from when on it may."""
        number = self._lanes[runner]
        reruns = self._reruns[number]
        while reruns:
            request = reruns[0].running
            if request is not None and not request.settled and request.deadline_ns > now_ns:
                return [reruns[0]], NO_DEADLINE
            chain = reruns.popleft()
            if request is not None and not request.settled:
                self.fail(chain, self.too_late(request, now_ns), now_ns)
            else:
                self._slots.leave(chain, now_ns)
        lane = self._slots.lanes[number]
        if not lane.ready:
            return [], NO_DEADLINE
        cost = self._costs.for_signature(next(iter(lane.ready)).waiting[0].signature)
        step = plan_lane(lane, now_ns, self._strategy, self._max_batch_size, self._rows.key, cost)
        return ([], step.until_ns) if isinstance(step, Wait) else (step.chains, NO_DEADLINE)

    def reserve(self, chains: Sequence[Chain], runner: Runner, now_ns: int) -> Reserved | None:
        """The pass of these sequences' next requests; None: passes of other models go first."""
        places = self._places(chains)
        run = self._instances.reserve(self._as_rows(places), runner, now_ns)
        return None if run is None else Reserved(run, places)

    def _places(self, chains: Sequence[Chain]) -> list[Chain | None]:
        """Who is in which row of the pass: with `direct` each in its slot's, and nobody in those between."""
        if not isinstance(self._strategy, Direct):
            return list(chains)
        places: list[Chain | None] = [None] * (max([chain.row for chain in chains]) + 1)
        for chain in chains:
            places[chain.row] = chain
        return places

    def _as_rows(self, places: Sequence[Chain | None]) -> list[InferRequest]:
        rows = [None if chain is None else self._rows.row(chain, chain.running or chain.waiting[0]) for chain in places]
        beside = next(row for row in rows if row is not None)
        return [row or self._rows.empty(beside) for row in rows]

    # --- a pass, from its begin to its end ------------------------------------------------------------

    def begin(self, reserved: Reserved, on_pass: Callable[[Runner, Pass], None]) -> bool:
        """Start a pass whose turn it is; its end is told to `on_pass`. False if it ran on the loop and is over."""
        run, places = reserved
        runner, chains = run.runner, [chain for chain in places if chain is not None]
        self._instances.occupy(run)
        held = self._under_way[runner] = _UnderWay(places, [])
        try:
            reruns = self._reruns[self._lanes[runner]]
            if reruns:
                reruns.popleft()
            held.requests.extend((chain, chain.running or self._slots.begin(chain)) for chain in chains)
            if self._waits:
                self._waits.begin([request for _, request in held.requests], run.begun_ns)
            if not run.inline:
                runner.start(run.requests, partial(on_pass, runner))
                return True
            result = runner.run_inline(run.requests)
        except BaseException as error:
            self._instances.release(runner, self._clock())
            self._abandon(runner, error)
            raise
        self.finish(runner, result)
        return False

    def finish(self, runner: Runner, result: Pass) -> None:
        """A pass is over: settle its requests, keep what it left to the next ones."""
        ended_ns = self._clock()
        run = self._instances.release(runner, ended_ns)
        try:
            if run is not None:
                self._statistics.count_end(run.predicted_ns, ended_ns - run.begun_ns)
                if result.error is None:
                    self._instances.learn(run, result, ended_ns)
            self._conclude(self._lanes[runner], self._under_way[runner].places, result, ended_ns)
            del self._under_way[runner]
        except BaseException as error:
            self._abandon(runner, error)
            raise

    def _conclude(self, number: int, places: Sequence[Chain | None], result: Pass, now_ns: int) -> None:
        chains = [chain for chain in places if chain is not None]
        error = result.error
        if result.died:
            # First of all: nobody is given a slot there any more.
            for request in self._slots.kill(number):
                self.lose((request,), request, _DIED, now_ns)
        if error is None:
            self._answer(places, result, now_ns)
        elif len(chains) == 1 or result.died:
            for chain in chains:
                self.fail(chain, error, now_ns)
        else:
            told, theirs = "a pass of %d sequences failed, running each alone: %r", [chain.running for chain in chains]
            log.warning(told, len(chains), error, extra=about(*filter(None, theirs)))
            self._reruns[number].extend(chains)

    def _answer(self, places: Sequence[Chain | None], result: Pass, now_ns: int) -> None:
        answered: list[InferRequest] = []
        responses: list[InferResponse] = []
        rows = 0
        for chain, response in zip(places, result.responses, strict=True):
            if chain is None or chain.running is None:
                continue
            rows += 1
            request = chain.running
            if request.settled:
                self._slots.leave(chain, now_ns)
                continue
            try:
                states = self._rows.states(response, alone=len(places) == 1)
                responses.append(self._rows.answer(response, request))
            except EngineFailure as error:
                self.fail(chain, error, now_ns)
                continue
            self._slots.advance(chain, states, now_ns)
            answered.append(request)
        self._settling.answer(answered, _of(result, rows, responses), now_ns)

    def fail(self, chain: Chain, error: ServingError, now_ns: int) -> None:
        """The sequence's running request will not be answered, and its states are what they were before it."""
        request = chain.running
        if request is None:
            return
        lost = [] if request.settled else self._slots.lose(request, now_ns)
        self._slots.leave(chain, now_ns)
        self._settling.fail(request, error, now_ns)
        self.lose(lost, request, UNANSWERED, now_ns)

    def lose(self, lost: Iterable[InferRequest], request: InferRequest, why: str, now_ns: int) -> None:
        """Settle those who were behind `request` in its sequence."""
        name = sequence_id(request.parameters.get(ID))
        for other in lost:
            self._settling.fail(other, SequenceLost(self._model_name, name, why), now_ns)

    def too_late(self, request: InferRequest, now_ns: int) -> DeadlineExceeded:
        return DeadlineExceeded(self._model_name, (now_ns - request.enqueued_ns) // 1000)

    def clear_reruns(self) -> list[InferRequest]:
        """Nobody is run once more. Returns those who would have been; their sequences' states are as before them."""
        held: list[InferRequest] = []
        for reruns in self._reruns:
            for chain in reruns:
                if chain.running is not None:
                    held.append(chain.running)
                self._slots.leave(chain, self._clock())
            reruns.clear()
        return held

    def _abandon(self, runner: Runner, error: BaseException) -> None:
        """A bug of ours struck a pass."""
        now_ns = self._clock()
        held = self._under_way.pop(runner, None)
        for chain, request in held.requests if held is not None else ():
            failure = EngineFailure(self._model_name, repr(error))
            if chain.running is request:
                self.fail(chain, failure, now_ns)
            else:
                self._settling.fail(request, failure, now_ns)


def _of(result: Pass, rows: int, responses: Sequence[InferResponse]) -> Pass:
    """The same pass with the rows and answers of those who were in it, without the empty slots'."""
    return Pass(rows, result.started_ns, responses, None, *result.durations_ns)
