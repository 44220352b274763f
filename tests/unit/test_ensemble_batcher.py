"""The scheduler of an ensemble, over models that answer when a test says so: what steps are asked, who is told what."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from itertools import permutations
from typing import Any

import numpy as np
import pytest

from server.ensembles import NEWEST, Ensemble, Step
from server.errors import (
    Cancelled,
    DeadlineExceeded,
    Draining,
    EngineFailure,
    InvalidRequest,
    ModelNotReady,
    QueueFull,
    SequenceLost,
)
from server.explain import Explanation, WaitReason
from server.scheduler.ensemble import EnsembleBatcher
from server.scheduler.ensemble_plan import Plans
from server.scheduler.lineup import Lineup, Member
from server.scheduler.statistics import ModelStatistics
from server.tensor import Tensor
from server.types import NO_DEADLINE, InferRequest, InferResponse, Outcome, Timing
from tests.support.scheduler import MS, ManualClock

STEPS = (
    Step("first", NEWEST, {"x": "raw"}, {"y": "middle"}),
    Step("second", 3, {"x": "middle"}, {"y": "out"}),
    Step("beside", NEWEST, {"x": "raw"}, {"y": "other"}),
)
OUTPUTS = {"out": (1,), "other": (1,)}


class Model:
    """A step's model."""

    def __init__(self, *, keeps_sequences: bool = False) -> None:
        self.keeps_sequences = keeps_sequences
        self.asked: list[InferRequest] = []
        self.missing: list[InferRequest] = []
        self.cancelled: list[InferRequest] = []
        self.in_use = 0
        self.well = True
        self.holds = False
        """It is the holder of what it was asked."""

    def submit(self, requests: Sequence[InferRequest]) -> None:
        for request in requests:
            if self.holds:
                request.holder = self
        self.asked += requests

    def lost(self, request: InferRequest) -> None:
        self.missing.append(request)

    def cancel(self, request: InferRequest) -> None:
        self.cancelled.append(request)
        request.settle(Cancelled())

    def healthy(self) -> bool:
        return self.well

    def __enter__(self) -> None:
        self.in_use += 1

    def __exit__(self, *_: object) -> None:
        self.in_use -= 1


class Bench:
    def __init__(self, *, keeps: Sequence[bool] = (False,) * 3, max_queue_size: int = 2, slo_ns: int = 0) -> None:
        self.clock = ManualClock()
        self.models = [Model(keeps_sequences=each) for each in keeps]
        self.lineup = Lineup(
            [
                Member(step.model_name, step.version, model, True, {"x": (1,)})
                for step, model in zip(STEPS, self.models, strict=True)
            ]
        )
        self.statistics = ModelStatistics("e", "1")
        self.batcher = EnsembleBatcher(
            "e",
            "1",
            Ensemble(STEPS),
            OUTPUTS,
            self.statistics,
            self.clock,
            batched=True,
            max_queue_size=max_queue_size,
            slo_ns=slo_ns,
        )
        self.batcher.use(self.lineup)
        self.outcomes: dict[InferRequest, list[Outcome]] = {}

    def request(
        self, *, name: int = 0, deadline_ns: int = NO_DEADLINE, outputs: Sequence[str] = (), **flags: bool
    ) -> InferRequest:
        parameters = {"sequence_id": name} if name else {}
        request = InferRequest(
            "e",
            [Tensor.from_numpy("raw", np.ones((1, 1), np.float32))],
            on_settle=lambda request, outcome: self.outcomes[request].append(outcome),
            received_ns=self.clock.now_ns,
            deadline_ns=deadline_ns,
            outputs=outputs,
            parameters=parameters | {f"sequence_{flag}": value for flag, value in flags.items()},
        )
        request.rows = 1
        self.outcomes[request] = []
        return request

    def submit(self, *requests: InferRequest) -> None:
        self.batcher.submit(requests)

    def answer(self, step: int, number: int = -1, *, name: str = "y") -> None:
        """By one of those that the step was asked."""
        inner = self.models[step].asked[number]
        values = inner.inputs[0].numpy() + 1
        response = InferResponse("m", "1", [Tensor.from_numpy(name, values)])
        response.timing = Timing(0, 1, 10, 100, 1)
        inner.settle(response)

    def outcome(self, request: InferRequest) -> Outcome | None:
        outcomes = self.outcomes[request]
        assert len(outcomes) <= 1, "settled more than once"
        return outcomes[0] if outcomes else None

    def told(self, request: InferRequest) -> dict[str, float]:
        outcome = self.outcome(request)
        assert isinstance(outcome, InferResponse), repr(outcome)
        return {tensor.name: float(tensor.numpy()[0, 0]) for tensor in outcome.outputs}

    def asked(self) -> list[int]:
        return [len(model.asked) for model in self.models]


def test_steps_that_wait_for_nothing_go_at_once_and_the_others_with_what_they_wait_for() -> None:
    """Under the names of their models; the answer has the ensemble's."""
    bench = Bench()
    request = bench.request()
    bench.submit(request)
    assert bench.asked() == [1, 0, 1]
    first = bench.models[0].asked[0]
    assert (first.model_name, first.model_version, [t.name for t in first.inputs]) == ("first", "", ["x"])
    assert first.outputs == ("y",)
    bench.clock.now_ns += 5 * MS
    bench.answer(0)
    second = bench.models[1].asked[0]
    assert (second.model_version, second.received_ns) == ("3", bench.clock.now_ns)
    bench.answer(1)
    assert bench.outcome(request) is None
    bench.answer(2)
    assert bench.told(request) == {"out": 3, "other": 2}


def test_an_answer_is_counted_as_one_pass_of_all_its_steps() -> None:
    """Their times together; from its begin to its end it did not wait."""
    bench = Bench()
    request = bench.request()
    bench.submit(request)
    bench.clock.now_ns += 5 * MS
    for step in (0, 1, 2):
        bench.answer(step)
    counts = bench.statistics
    assert (counts.admitted, counts.success.count, counts.success.ns) == (1, 1, 5 * MS)
    assert (counts.inference_count, counts.execution_count, counts.queue.ns) == (1, 1, 0)
    durations = counts.compute_input.ns, counts.compute_infer.ns, counts.compute_output.ns
    assert durations == (3, 30, 300)
    outcome = bench.outcome(request)
    assert isinstance(outcome, InferResponse)
    assert outcome.timing == Timing(0, 0, 5 * MS, 0, 1)


def test_a_step_that_fails_ends_the_others() -> None:
    """What is wrong with its inputs is told with the step's number; who is asked already is cancelled where it is."""
    bench = Bench()
    bench.models[2].holds = True
    request = bench.request()
    bench.submit(request)
    bench.models[0].asked[0].settle(InvalidRequest("inputs[0]", "is wrong"))
    outcome = bench.outcome(request)
    assert isinstance(outcome, InvalidRequest)
    assert (outcome.field, outcome.problem) == ("ensemble 'e', step[0], inputs[0]", "is wrong")
    assert bench.models[2].cancelled == bench.models[2].asked
    assert not bench.models[2].missing
    assert bench.asked() == [1, 0, 1]
    assert (bench.statistics.fail.count, bench.statistics.success.count) == (1, 0)


def test_a_step_that_nobody_holds_is_settled_and_missed() -> None:
    """As one whose check is still to come."""
    bench = Bench()
    request = bench.request()
    bench.submit(request)
    bench.batcher.cancel(request)
    bench.batcher.cancel(request)
    assert isinstance(bench.outcome(request), Cancelled)
    for step in (0, 2):
        assert bench.models[step].asked[0].settled
        assert bench.models[step].missing == bench.models[step].asked
    assert bench.statistics.cancelled == 1
    bench.answer(0)
    assert bench.asked() == [1, 0, 1], "it is over"


def test_a_fault_of_ours_settles_its_request_once() -> None:
    """A model that answers with a tensor that it does not have; the next request is served."""
    bench = Bench()
    request, other = bench.request(), bench.request()
    bench.submit(request, other)
    bench.answer(0, 0, name="nothing")
    outcome = bench.outcome(request)
    assert isinstance(outcome, EngineFailure)
    assert bench.models[2].asked[0].settled
    for step in (0, 1, 2):
        bench.answer(step)
    assert bench.told(other)


def test_a_request_that_can_not_even_begin_is_settled() -> None:
    """Those beside it go on."""
    bench = Bench()
    bad, good = bench.request(outputs=[["out"]]), bench.request()  # type: ignore[list-item]
    bench.submit(bad, good)
    assert isinstance(bench.outcome(bad), EngineFailure)
    assert bench.asked() == [1, 0, 1]


def test_nothing_begins_at_the_deadline_and_no_step_after_it() -> None:
    """At the very nanosecond; it tells how long it waited, and the model's objective counts from the receipt."""
    bench = Bench()
    late, request = bench.request(deadline_ns=bench.clock.now_ns), bench.request(deadline_ns=bench.clock.now_ns + MS)
    bench.submit(late, request)
    outcome = bench.outcome(late)
    assert isinstance(outcome, DeadlineExceeded)
    assert outcome.waited_us == 0
    assert bench.models[0].asked[0].deadline_ns == request.deadline_ns
    bench.clock.now_ns += MS
    bench.answer(0)
    outcome = bench.outcome(request)
    assert isinstance(outcome, DeadlineExceeded)
    assert outcome.waited_us == 1000
    assert bench.asked() == [1, 0, 1]
    assert bench.models[2].asked[0].settled
    assert bench.statistics.expired == 2

    bounded = Bench(slo_ns=7 * MS)
    near, far = bounded.request(deadline_ns=bounded.clock.now_ns + MS), bounded.request()
    bounded.submit(near, far)
    assert [request.deadline_ns - bounded.clock.now_ns for request in (near, far)] == [MS, 7 * MS]


# --- sequences --------------------------------------------------------------------------------------------------------


def test_of_a_sequence_one_request_is_under_way_at_a_time() -> None:
    """The next begins when it is over, and is told that it waited for that; other sequences do not wait."""
    bench = Bench(keeps=(True, False, False))
    first, second, other = bench.request(name=1), bench.request(name=1), bench.request(name=2)
    second.explanation = Explanation(bench.clock.now_ns, bench.clock)
    bench.submit(first, second, other)
    assert bench.asked() == [2, 0, 2]
    assert second.explanation.waited is WaitReason.SEQUENCE
    assert bench.statistics.admitted == 3
    for step in (0, 1, 2):
        bench.answer(step, 0)
    assert bench.told(first)
    assert bench.asked() == [3, 1, 3]
    bench.answer(0)
    bench.answer(1)
    bench.answer(2)
    assert bench.told(second)
    assert not any(model.missing for model in bench.models)


def test_only_models_that_keep_sequences_hear_of_them() -> None:
    """Other parameters reach all."""
    bench = Bench(keeps=(True, False, False))
    request = bench.request(name=1, start=True)
    request.parameters = {**request.parameters, "p": 5}
    bench.submit(request)
    assert bench.models[0].asked[0].parameters == {"sequence_id": 1, "sequence_start": True, "p": 5}
    assert bench.models[2].asked[0].parameters == {"p": 5}
    assert bench.batcher.keeps_sequences
    assert not Bench().batcher.keeps_sequences


def test_so_many_of_a_sequence_may_wait() -> None:
    """One more is refused; when its turn would have come the models are told that it is missing."""
    bench = Bench(keeps=(True, True, False), max_queue_size=1)
    requests = [bench.request(name=1) for _ in range(3)]
    bench.submit(*requests)
    refused = bench.outcome(requests[2])
    assert isinstance(refused, QueueFull)
    assert refused.limit == 1
    assert bench.statistics.admitted == 2
    for _ in range(2):
        for step in (0, 1, 2):
            bench.answer(step)
    assert [bool(bench.told(request)) for request in requests[:2]] == [True, True]
    assert [model.missing for model in bench.models] == [[requests[2]]] * 3


def test_one_that_was_refused_at_its_check_is_missing_in_its_sequence() -> None:
    """At once where its turn has come; no step of it runs."""
    bench = Bench(keeps=(True, False, False))
    refused = bench.request(name=1)
    refused.settle(InvalidRequest("inputs", "none"))
    bench.submit(refused)
    assert [model.missing for model in bench.models] == [[refused]] * 3
    assert bench.asked() == [0, 0, 0]
    after = bench.request(name=1)
    bench.submit(after)
    assert bench.asked() == [1, 0, 1]


def test_steps_that_a_failed_request_did_not_come_to_miss_it() -> None:
    """Those that had it know; then the next of its sequence begins."""
    bench = Bench(keeps=(True, True, True))
    first, second = bench.request(name=1), bench.request(name=1)
    bench.submit(first, second)
    bench.models[0].asked[0].settle(SequenceLost("first", 1, "gone"))
    assert isinstance(bench.outcome(first), SequenceLost)
    assert bench.models[1].missing == [first]
    assert not bench.models[0].missing
    assert bench.asked() == [2, 0, 2]
    assert bench.outcome(second) is None


def test_one_that_is_cancelled_while_it_waits_is_missing_when_its_turn_comes() -> None:
    """Not before: those before it are still to be served."""
    bench = Bench(keeps=(True, False, False))
    first, second, third = (bench.request(name=1) for _ in range(3))
    bench.submit(first, second, third)
    bench.batcher.cancel(second)
    assert isinstance(bench.outcome(second), Cancelled)
    assert not bench.models[0].missing
    for step in (0, 1, 2):
        bench.answer(step)
    assert bench.models[0].missing == [second]
    assert bench.asked() == [2, 1, 2]


# --- the end ----------------------------------------------------------------------------------------------------------


def test_a_lineup_is_held_until_its_last_request_is_over() -> None:
    """Those that begin then run on the next; on none they are told why not."""
    bench = Bench()
    request = bench.request()
    bench.submit(request)
    bench.batcher.use(None, "second was unloaded")
    assert [model.in_use for model in bench.models] == [1, 1, 1]
    assert bench.batcher.healthy()
    late = bench.request()
    bench.submit(late)
    outcome = bench.outcome(late)
    assert isinstance(outcome, ModelNotReady)
    assert "second was unloaded" in str(outcome.args)
    for step in (0, 1, 2):
        bench.answer(step)
    assert bench.told(request)
    assert [model.in_use for model in bench.models] == [0, 0, 0]


def test_it_is_as_well_as_all_its_models() -> None:
    """One that is not is enough."""
    bench = Bench()
    assert bench.batcher.healthy()
    bench.models[1].well = False
    assert not bench.batcher.healthy()


def test_a_drain_waits_for_who_is_under_way_and_admits_nobody() -> None:
    """Then the models are let go."""

    async def scenario() -> None:
        bench = Bench()
        request = bench.request()
        bench.submit(request)
        draining = asyncio.ensure_future(bench.batcher.drain(bench.clock.now_ns + 60_000 * MS))
        await asyncio.sleep(0)
        late = bench.request()
        bench.submit(late)
        assert isinstance(bench.outcome(late), Draining)
        for step in (0, 1, 2):
            bench.answer(step)
        await draining
        assert bench.told(request)
        assert [model.in_use for model in bench.models] == [0, 0, 0]

    asyncio.run(scenario())


@pytest.mark.parametrize("before", [0, 1])
def test_a_drain_of_nobody_is_over_at_once(before: int) -> None:
    """Also where somebody was there before."""

    async def scenario() -> None:
        bench = Bench()
        for _ in range(before):
            bench.submit(bench.request())
            for step in (0, 1, 2):
                bench.answer(step)
        async with asyncio.timeout(30):
            await bench.batcher.drain(bench.clock.now_ns + 3_600_000 * MS)
        assert [model.in_use for model in bench.models] == [0, 0, 0]

    asyncio.run(scenario())


def test_a_drain_that_is_over_settles_who_is_left_and_who_waits() -> None:
    """Each once."""

    async def scenario() -> None:
        bench = Bench(keeps=(True, False, False))
        requests = [bench.request(name=1), bench.request(name=1), bench.request()]
        bench.submit(*requests)
        await bench.batcher.drain(bench.clock.now_ns)
        assert all(isinstance(bench.outcome(request), Draining) for request in requests)
        assert [model.in_use for model in bench.models] == [0, 0, 0]

    asyncio.run(scenario())


# --- plans and forms --------------------------------------------------------------------------------------------------


def test_plans_and_forms_are_made_once_and_bounded() -> None:
    """For the same outputs, and for inputs of the same shapes; clients choose both."""
    names = [f"o{number}" for number in range(5)]
    steps = tuple(Step("m", NEWEST, {"x": "raw"}, {"y": name}) for name in names)
    plans = Plans(Ensemble(steps), names)
    assert plans.plan(()) is plans.plan(())
    assert plans.plan(["o1"]) is plans.plan(("o1",))
    for wanted in permutations(names):
        assert plans.plan(wanted).wanted == wanted
        assert 0 < len(plans._some) <= 64

    member = Member("m", "1", Model(), True, {"x": (-1,)})

    def tensors(size: int) -> list[Tensor]:
        return [Tensor("x", "FP32", (1, size), bytes(4 * size))]

    assert member.form(tensors(1)) is member.form(tensors(1)) is not member.form(tensors(2))
    for size in range(100):
        member.form(tensors(size))
        assert 0 < len(member._forms) <= 64


@pytest.mark.parametrize(
    ("wanted", "outputs", "first", "waits", "running"),
    [
        ((), (("y",), ("y",), ("y",)), (0, 2), (0, 1, 0), 3),
        (("out",), (("y",), ("y",), ()), (0,), (0, 1, 0), 2),
        (("other",), ((), (), ("y",)), (2,), (0, 0, 0), 1),
    ],
)
def test_a_plan_has_the_steps_that_lead_to_what_is_wanted(
    wanted: Sequence[str], outputs: Any, first: Any, waits: Any, running: int
) -> None:
    """And who waits for what."""
    plan = Plans(Ensemble(STEPS), list(OUTPUTS)).plan(wanted)
    assert (plan.wanted, plan.outputs, plan.first) == (tuple(wanted or OUTPUTS), outputs, first)
    assert (plan.waits, plan.steps) == (waits, running)
    assert plan.readers == ({"middle": (1,)} if running > 1 else {})
