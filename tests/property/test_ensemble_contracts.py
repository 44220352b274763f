"""Any ensemble, whatever becomes of its steps: right tensors, one outcome for each request, nothing in vain."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from server.ensembles import NEWEST, Step
from server.errors import DeadlineExceeded, Draining, EngineFailure, InvalidRequest
from server.explain import Explanation, WaitReason
from server.types import InferRequest, InferResponse
from tests.support.ensemble_steps import Bench, StillModel, Values, numbers
from tests.support.scheduler import MS


def gives(step: int, inputs: Values) -> dict[str, int]:
    """The outputs of a step's model: each depends on every input by its name."""
    total = sum((ord(name[-1]) + 1) * value for name, value in inputs.items())
    return {f"out{index}": (total * 31 + step * 7 + index) % 1_000_003 for index in range(3)}


@dataclass(frozen=True)
class Graph:
    """An ensemble that could be in a config."""

    inputs: list[str]
    steps: list[Step]
    outputs: list[str]

    def value(self, inputs: Values, tensor: str) -> int:
        """What a tensor is, found out from behind."""
        if tensor in inputs:
            return inputs[tensor]
        step, output = self.source(tensor)
        taken = {name: self.value(inputs, source) for name, source in self.steps[step].input_map.items()}
        return gives(step, taken)[output]

    def source(self, tensor: str) -> tuple[int, str]:
        return next((i, key) for i, step in enumerate(self.steps) for key, t in step.output_map.items() if t == tensor)

    def needed(self, wanted: Sequence[str]) -> set[tuple[int, str]]:
        """Steps that lead to what is wanted, with each output of theirs that does."""
        found: set[tuple[int, str]] = set()
        for tensor in wanted:
            if tensor not in self.inputs and (source := self.source(tensor)) not in found:
                found |= {source, *self.needed(list(self.steps[source[0]].input_map.values()))}
        return found


@st.composite
def graphs(draw: st.DrawFn) -> Graph:
    there = [f"in{index}" for index in range(draw(st.integers(1, 3)))]
    steps: list[Step] = []
    for index in range(draw(st.integers(1, 6))):
        sources = draw(st.lists(st.sampled_from(there), min_size=1, max_size=3))
        outputs = {f"out{i}": f"t{index}-{i}" for i in range(draw(st.integers(1, 2)))}
        steps.append(Step(f"m{index}", NEWEST, {f"x{i}": name for i, name in enumerate(sources)}, outputs))
        there += outputs.values()
    read = {tensor for step in steps for tensor in step.input_map.values()}
    made = [tensor for step in steps for tensor in step.output_map.values()]
    outputs = [tensor for tensor in made if tensor not in read or draw(st.booleans())]
    order = draw(st.permutations(steps))
    return Graph([name for name in there if name in read and name not in made], order, draw(st.permutations(outputs)))


def bench_of(graph: Graph) -> Bench:
    models = [StillModel(step.model_name, partial(gives, index)) for index, step in enumerate(graph.steps)]
    return Bench(graph.steps, graph.outputs, models)


@given(graphs(), st.data())
def test_every_tensor_is_right_in_whichever_order_steps_end(graph: Graph, data: st.DataObject) -> None:
    """Each needed step runs once, when its tensors are there, and is asked for what somebody takes and no more."""
    bench = bench_of(graph)
    wanted = data.draw(st.lists(st.sampled_from(graph.outputs), unique=True))
    inputs = {name: data.draw(st.integers(-9, 9)) for name in graph.inputs}
    request = bench.request(inputs, wanted)
    bench.submit(request)
    while under_way := bench.waiting():
        step, inner = data.draw(st.sampled_from(under_way))
        bench.models[step].answer(inner)

    (outcome,) = bench.outcomes[request]
    assert isinstance(outcome, InferResponse), outcome
    assert list(numbers(outcome.outputs)) == (wanted or graph.outputs)
    assert numbers(outcome.outputs) == {name: graph.value(inputs, name) for name in wanted or graph.outputs}
    asked = {(step, name) for step, model in enumerate(bench.models) for inner in model.came for name in inner.outputs}
    assert asked == graph.needed(wanted or graph.outputs)
    assert all(len(model.came) <= 1 for model in bench.models)
    ran = sum(len(model.came) for model in bench.models)
    assert (bench.statistics.success.count, bench.statistics.compute_infer.ns) == (1, 3 * ran)


class Chaos:
    """Several requests of one ensemble, whose steps end in any order and any way."""

    def __init__(self, graph: Graph, data: st.DataObject) -> None:
        self.graph = graph
        self.data = data
        self.bench = bench_of(graph)
        self.inputs: dict[InferRequest, Values] = {}
        self.causes: dict[InferRequest, type[BaseException]] = {}
        """Why a request must have failed."""
        self.lineups = 1
        refused = data.draw(st.sets(st.integers(0, len(graph.steps) - 1), max_size=1))
        for step in refused:
            self.bench.models[step].refuses = self.refuse

    def refuse(self, inner: InferRequest) -> InvalidRequest | None:
        if inner.id != "unlucky":
            return None
        return InvalidRequest("inputs", "unlucky")

    def live(self) -> list[InferRequest]:
        return [request for request, outcomes in self.bench.outcomes.items() if not outcomes]

    def submit(self) -> None:
        count = self.data.draw(st.integers(1, 3))
        requests = []
        for _ in range(count):
            inputs = {name: self.data.draw(st.integers(-9, 9)) for name in self.graph.inputs}
            wanted = self.data.draw(st.lists(st.sampled_from(self.graph.outputs), unique=True))
            within_ms = self.data.draw(st.sampled_from([0, 5, 20]))
            luck = self.data.draw(st.sampled_from(["", "unlucky"]))
            request = self.bench.request(inputs, wanted, within_ms=within_ms, id=luck)
            self.inputs[request] = inputs
            requests.append(request)
        self.bench.submit(*requests)

    def answer(self) -> None:
        if under_way := self.bench.waiting():
            step, inner = self.data.draw(st.sampled_from(under_way))
            self.bench.models[step].answer(inner)

    def fail(self) -> None:
        if under_way := self.bench.waiting():
            step, inner = self.data.draw(st.sampled_from(under_way))
            before = self.live()
            error = EngineFailure(self.bench.models[step].name, "scripted")
            self.bench.models[step].fail(inner, error)
            (hit,) = set(before) - set(self.live())
            assert self.bench.outcomes[hit] == [error]

    def cancel(self) -> None:
        if live := self.live():
            request = self.data.draw(st.sampled_from(live))
            self.bench.batcher.cancel(request)
            assert len(self.bench.outcomes[request]) == 1

    def swap(self) -> None:
        self.bench.batcher.use(self.bench.lineup())

    def wait(self) -> None:
        self.bench.clock.now_ns += self.data.draw(st.sampled_from([1, 6])) * MS

    def check(self) -> None:
        live = set(self.live())
        for _, inner in self.bench.waiting():
            assert inner.caller.request in live, "a step runs for a request that is over"  # type: ignore[attr-defined]
        assert not [inner for model in self.bench.models for inner in model.in_vain]


ACTS = ("submit", "answer", "answer", "answer", "fail", "cancel", "swap", "wait")


@given(graphs(), st.lists(st.sampled_from(ACTS), max_size=30), st.data())
def test_every_request_is_settled_once_whatever_becomes_of_its_steps(
    graph: Graph, acts: list[str], data: st.DataObject
) -> None:
    """With its tensors or the first error; what is over runs no more, and the models are let go of."""
    chaos = Chaos(graph, data)
    for act in acts:
        getattr(chaos, act)()
        chaos.check()
    bench = chaos.bench
    while bench.waiting():
        chaos.answer()
        chaos.check()

    for request, outcomes in bench.outcomes.items():
        assert len(outcomes) == 1, outcomes
        if isinstance(outcomes[0], InferResponse):
            right = {name: graph.value(chaos.inputs[request], name) for name in request.outputs or graph.outputs}
            assert numbers(outcomes[0].outputs) == right
        elif isinstance(outcomes[0], DeadlineExceeded):
            assert bench.clock() >= request.deadline_ns
        elif isinstance(outcomes[0], InvalidRequest):
            assert request.id == "unlucky"
    counts = bench.statistics
    assert counts.success.count + counts.fail.count == len(bench.outcomes)
    assert [model.held for model in bench.models] == [1] * len(bench.models)
    bench.batcher.use(None)
    assert [model.held for model in bench.models] == [0] * len(bench.models)


def sequence(name: int, *, start: bool = False) -> Mapping[str, bool | int]:
    return {"sequence_id": name, "sequence_start": start}


def kept() -> Bench:
    """A step that keeps sequences behind one that does not."""
    steps = [
        Step("keeper", NEWEST, {"x": "middle"}, {"out0": "result"}),
        Step("plain", NEWEST, {"x": "raw"}, {"out0": "middle"}),
    ]
    models = [StillModel("keeper", partial(gives, 0), keeps_sequences=True), StillModel("plain", partial(gives, 1))]
    return Bench(steps, ["result"], models, max_queue_size=3)


class Sequences:
    """Requests of two sequences, whose steps end in any order and any way."""

    def __init__(self, data: st.DataObject) -> None:
        self.data = data
        self.bench = kept()
        self.keeper, self.plain = self.bench.models
        self.sent: dict[object, list[str]] = {1: [], 2: []}
        self.seen: dict[object, list[str]] = {1: [], 2: []}
        """Where they are kept, as come or as missing."""
        self.missing: set[str] = set()
        self._came = self.keeper.submit
        self.keeper.submit, self.keeper.lost = self._note, self._miss  # type: ignore[method-assign]

    def _note(self, requests: Sequence[InferRequest]) -> None:
        for inner in requests:
            self.seen[inner.parameters["sequence_id"]].append(inner.id)
        self._came(requests)

    def _miss(self, request: InferRequest) -> None:
        assert request.settled
        self.missing.add(request.id)
        self.seen[request.parameters["sequence_id"]].append(request.id)

    def _new(self, name: int, **more: float) -> InferRequest:
        request = self.bench.request({"raw": 1}, parameters=sequence(name), id=str(len(self.bench.outcomes)), **more)  # type: ignore[arg-type]
        self.sent[name].append(request.id)
        return request

    def ask(self) -> None:
        self.bench.submit(self._new(self.data.draw(st.sampled_from([1, 2])), within_ms=100))

    def refuse(self) -> None:
        """At the check of the ensemble itself."""
        request = self._new(1)
        request.settle(InvalidRequest("inputs", "bad"))
        self.bench.submit(request)

    def cancel(self) -> None:
        live = [request for request, outcomes in self.bench.outcomes.items() if not outcomes]
        if live:
            self.bench.batcher.cancel(self.data.draw(st.sampled_from(live)))

    def expire(self) -> None:
        self.bench.clock.now_ns += 60 * MS

    def answer(self) -> None:
        if under_way := self.bench.waiting():
            step, inner = self.data.draw(st.sampled_from(under_way))
            self.bench.models[step].answer(inner)

    def fail(self) -> None:
        if under_way := self.bench.waiting():
            step, inner = self.data.draw(st.sampled_from(under_way))
            self.bench.models[step].fail(inner, EngineFailure(self.bench.models[step].name, ""))

    def check(self) -> None:
        """Never two at a time; what was sent first is kept first, and nothing is missed in silence."""
        at = [inner.caller.request.parameters["sequence_id"] for _, inner in self.bench.waiting()]  # type: ignore[attr-defined]
        assert len(set(at)) == len(at)

    def check_all(self) -> None:
        for sent, seen in zip(self.sent.values(), self.seen.values(), strict=True):
            assert seen == [number for number in sent if number in set(seen)]
            # Of several gaps one behind the other the first may stand for all.
            before = {later: earlier for earlier, later in pairwise(sent)}
            unseen = [number for number in sent if number not in seen]
            assert all(before[number] in {*self.missing, *unseen} for number in unseen)


SEQUENCE_ACTS = ("ask", "ask", "answer", "answer", "answer", "fail", "cancel", "refuse", "expire")


@given(st.lists(st.sampled_from(SEQUENCE_ACTS), max_size=40), st.data())
def test_a_sequence_reaches_its_keeper_in_order_and_no_gap_is_hidden(acts: list[str], data: st.DataObject) -> None:
    """Each request of a sequence comes to the step that keeps it, or is told there as missing, in the order in which
    they were sent; never two at a time. What a step does not keep is not told of sequences."""
    sequences = Sequences(data)
    for act in acts:
        getattr(sequences, act)()
        sequences.check()
    while sequences.bench.waiting():
        sequences.answer()
    sequences.check_all()
    assert all(len(outcomes) == 1 for outcomes in sequences.bench.outcomes.values())
    assert all("sequence_id" not in inner.parameters for inner in sequences.plain.came)


async def test_a_drain_that_is_over_settles_who_waits_their_turn_too() -> None:
    """Everybody, once."""
    bench = kept()
    requests = [bench.request({"raw": 1}, parameters=sequence(1)) for _ in range(3)]
    bench.submit(*requests)
    await bench.batcher.drain(bench.clock())
    assert [type(bench.outcomes[request][0]) for request in requests] == [Draining] * 3
    assert [len(bench.outcomes[request]) for request in requests] == [1] * 3
    assert bench.waiting() == []


def test_steps_get_what_the_request_says_of_itself() -> None:
    """Its deadline, tenant, id and parameters; their receipt is when they were asked."""
    bench = kept()
    parameters = {"priority": 2, "timeout": 9_000_000, **sequence(5, start=True)}
    request = bench.request({"raw": 1}, within_ms=50, parameters=parameters, id="seven", tenant="t")
    bench.submit(request)
    bench.clock.now_ns += MS
    bench.models[1].answer(bench.models[1].waiting[0])
    plain, keeper = bench.models[1].came[0], bench.models[0].came[0]
    for inner in (plain, keeper):
        assert (inner.id, inner.tenant, inner.deadline_ns) == ("seven", "t", request.deadline_ns)
    assert plain.parameters == {"priority": 2, "timeout": 9_000_000}
    assert keeper.parameters == parameters
    assert keeper.received_ns == plain.received_ns + MS


def test_a_wait_for_its_turn_is_time_in_the_queue() -> None:
    """And told as the sequence's."""
    bench = kept()
    first, second = (bench.request({"raw": 1}, parameters=sequence(1)) for _ in range(2))
    second.explanation = Explanation(bench.clock(), bench.clock)
    bench.submit(first, second)
    bench.clock.now_ns += 5 * MS
    while under_way := bench.waiting():
        bench.models[under_way[0][0]].answer(under_way[0][1])
        bench.clock.now_ns += MS
    waits = [outcome[0].timing.queue_ns for outcome in bench.outcomes.values()]  # type: ignore[union-attr]
    assert waits == [0, 6 * MS]
    assert bench.statistics.queue.ns == 6 * MS
    assert second.explanation.waited is WaitReason.SEQUENCE


def test_no_step_begins_after_the_deadline() -> None:
    """Neither the first nor one behind it; at the very nanosecond it is too late."""
    bench = kept()
    late, later = (bench.request({"raw": 1}, within_ms=ms) for ms in (5, 10))
    bench.clock.now_ns += 5 * MS
    bench.submit(late, later)
    assert isinstance(bench.outcomes[late][0], DeadlineExceeded)
    ((_, plain),) = bench.waiting()
    bench.clock.now_ns += 5 * MS
    bench.models[1].answer(plain)
    assert isinstance(bench.outcomes[later][0], DeadlineExceeded)
    assert bench.models[0].came == []


def test_a_step_beside_one_that_is_refused_at_once_is_not_even_asked() -> None:
    """Neither are they run as the first steps of a request nor behind others."""
    steps = [
        Step("first", NEWEST, {"x": "raw"}, {"out0": "one"}),
        Step("bad", NEWEST, {"x": "one"}, {"out0": "two"}),
        Step("good", NEWEST, {"x": "one"}, {"out0": "three"}),
        Step("also", NEWEST, {"x": "raw"}, {"out0": "four"}),
    ]
    models = [StillModel(step.model_name, partial(gives, index)) for index, step in enumerate(steps)]
    bench = Bench(steps, ["two", "three", "four"], models)
    models[1].refuses = lambda _: InvalidRequest("inputs[0].shape", "bad")
    request = bench.request({"raw": 1})
    bench.submit(request)
    models[0].answer(models[0].waiting[0])
    assert [len(model.came) for model in models] == [1, 1, 0, 1]
    assert bench.waiting() == []
    models[0].refuses = models[1].refuses
    bench.submit(bench.request({"raw": 1}))
    assert [len(model.came) for model in models] == [2, 1, 0, 1]
    (error,) = bench.outcomes[request]
    assert str(error) == "ensemble 'e', step[1], inputs[0].shape: bad"


def test_requests_that_arrive_together_are_given_to_their_first_steps_together() -> None:
    """So that a step is batched as its model's other requests are."""
    bench = kept()
    bench.submit(*(bench.request({"raw": value}) for value in range(4)))
    assert bench.models[1].together == [4]
