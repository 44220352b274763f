"""Passes that make their tensors themselves: whose, in which company, and what becomes of each of their requests."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import count
from typing import Any

import numpy as np
import pytest

from server.errors import Cancelled, DeadlineExceeded, EngineFailure, InvalidRequest, Overloaded
from server.explain import Explanation
from server.observability.tracing import _entries as trace_entries
from server.scheduler.merge import merge
from server.scheduler.pieces import Pieces
from server.scheduler.plan import Limits
from server.scheduler.raw import Raw, RawPasses, size_class
from server.scheduler.statistics import Refusal
from server.scheduler.worker import Model, Pass, forward
from server.tensor import Array
from server.types import Batch, ImageInput, InferRequest, InferResponse, RawInput, RowInput
from tests.support.preparing import SMALL, PreparingBench
from tests.support.scheduler import MS, StillCost


def brief(**more: Any) -> PreparingBench:
    """Preprocessing is known to take 1 ms, on a thread and in a pass."""
    bench = PreparingBench(passes=True, **more)
    bench.learn(1 * MS, times=1)
    bench.ask("first in a pass")
    bench.takes_ns = 1 * MS
    bench.answered()
    bench.takes_ns = 0
    bench.begun.clear()
    bench.prepared_bytes.clear()
    bench.behind.runner.instance.batches.clear()
    return bench


def test_what_is_brief_is_prepared_by_its_pass() -> None:
    """It has one outcome, and no thread had it; what the pass took before the engine is told by itself."""
    bench = brief()
    before = bench.statistics.queue.ns, bench.statistics.compute_input.ns, bench.statistics.inference_count
    explanation = Explanation(bench.clock(), bench.clock)
    request = bench.ask("a", 3, 4, explanation=explanation)
    assert (bench.begun, bench.prepared_bytes, bench.behind.runner.job is not None) == ([], [], True)
    bench.takes_ns = 2 * MS
    bench.answered()
    assert bench.answer(request) == [6, 8]
    statistics = bench.statistics
    assert (statistics.queue.ns, statistics.compute_input.ns, statistics.inference_count) == (
        *before[:2],
        before[2] + 2,
    )
    outcome = bench.outcome(request)
    assert isinstance(outcome, InferResponse)
    explanation.mark_pass(request.enqueued_ns, outcome.timing)
    assert explanation.parts_ns()["preprocess"] == 4 * MS
    traced = trace_entries(request, "1", outcome, bench.clock())
    times = {entry["name"]: entry["ns"] for part in traced[1:] for entry in part["timestamps"]}
    assert times["COMPUTE_START"] - times["QUEUE_START"] == 4 * MS
    assert statistics.success.count == 3


@pytest.mark.parametrize(("ms", "pictures", "there"), [(10, 1, True), (11, 1, False), (3, 3, True), (3, 4, False)])
def test_what_takes_long_stays_on_the_threads(ms: int, pictures: int, there: bool) -> None:
    """Nobody who comes with tensors is to wait for that."""
    bench = PreparingBench(passes=True)
    bench.learn(ms * MS, times=1)
    bench.begun.clear()
    bench.ask("a", *range(1, pictures + 1))
    assert (bench.begun, bench.behind.runner.job is not None) == (([], True) if there else (["a"], False))


def test_what_nobody_knows_goes_to_the_threads_first() -> None:
    bench = PreparingBench(passes=True)
    bench.ask("a")
    assert bench.begun == ["a"]


def test_what_seemed_long_in_one_way_comes_back_by_the_other() -> None:
    """The first ones may have been disturbed; what is long in both stays on the threads."""
    bench = PreparingBench(passes=True)
    bench.learn(1 * MS, times=1)
    bench.takes_ns = 90 * MS
    bench.ask("disturbed")
    bench.answered()
    bench.takes_ns = 0
    bench.begun.clear()
    bench.ask("next")
    assert bench.begun == []
    assert bench.behind.runner.job is not None


def test_with_several_threads_they_prepare_beside_one_another() -> None:
    bench = PreparingBench(threads=2, passes=True)
    bench.learn(1 * MS, times=1)
    bench.begun.clear()
    bench.ask("a")
    bench.ask("b")
    assert bench.begun == ["a", "b"]


def test_raw_inputs_and_tensors_share_no_batch_and_keep_their_order() -> None:
    """Their passes cost different things; whoever came first goes first."""
    bench = brief(max_batch_size=8)
    behind = bench.behind
    running = behind.caller.request([100])
    behind.submit(running)
    pictures = [bench.ask(str(number), number) for number in range(1, 10)]
    tensors = [behind.caller.request([value]) for value in (101, 102)]
    behind.submit(*tensors)
    pictures.append(bench.ask("last", 10))
    while behind.runner.job is not None:
        bench.answered()
    assert behind.batches == [[100], [1, 2, 3, 4, 5, 6, 7, 8], [9, 10], [101, 102]]
    assert [bench.answer(picture) for picture in pictures] == [[2 * number] for number in range(1, 11)]
    assert [behind.caller.answer(request) for request in tensors] == [[202], [204]]


def test_what_is_not_so_brief_goes_four_by_four() -> None:
    """Also where an instance is idle, and whatever larger passes would save."""
    bench = PreparingBench(passes=True, max_batch_size=16)
    raw = bench.behind.batcher.raw
    assert raw is not None
    for rows, ms in ((1, 20), (4, 40), (16, 130)):
        raw.costs.for_signature(size_class([ImageInput(b"x" * SMALL)])).observe(rows, ms * MS)
    bench.ask_at_once(1, 2, 3, 4, 5, 6)
    bench.ask("last", 7)
    while bench.behind.runner.job is not None:
        bench.answered()
    assert bench.behind.batches == [[1, 2, 3, 4], [5, 6, 7]]


def test_a_model_without_batches_has_a_pass_for_each() -> None:
    bench = brief(max_batch_size=0)
    bench.ask("running", 1)
    bench.ask("a", 2)
    bench.ask("b", 3)
    for _ in range(3):
        bench.answered()
    assert bench.behind.batches == [[1], [2], [3]]


def test_a_bad_input_spoils_none_of_its_pass() -> None:
    """It is its caller's fault, and nobody's failure; nothing is prepared twice."""
    bench = brief()
    bench.ask("running", 1)
    good, bad, other = bench.ask("good", 2), bench.ask("bad", 255), bench.ask("other", 3)
    bench.answered()
    bench.answered()
    assert isinstance(bench.outcome(bad), InvalidRequest)
    assert (bench.answer(good), bench.answer(other)) == ([4], [6])
    assert bench.prepared_bytes == [1, 2, 255, 3]
    assert (bench.behind.batches[-1], bench.statistics.fail.count) == ([2, 3], 0)


def test_where_nothing_can_be_prepared_there_is_no_pass() -> None:
    """None that counts or is learned from: the engine had nothing to do."""
    bench = brief()
    passes, raw = bench.statistics.execution_count, bench.behind.batcher.raw
    assert raw is not None
    bad = bench.ask("bad", 255)
    bench.takes_ns = 5 * MS
    bench.answered()
    assert isinstance(bench.outcome(bad), InvalidRequest)
    assert (bench.behind.batches, bench.statistics.execution_count, bench.statistics.fail.count) == ([], passes, 0)
    assert raw.costs.for_signature(size_class([ImageInput(b"x" * SMALL)])).sizes == [1]
    assert bench.behind.batcher.healthy()
    assert bench.answer(_answered(bench, 6)) == [12]


def _answered(bench: PreparingBench, value: int) -> InferRequest:
    request = bench.ask("next", value)
    bench.takes_ns = 0
    bench.answered()
    return request


def test_what_expires_while_others_of_its_pass_are_prepared_is_not_prepared() -> None:
    bench = brief()
    bench.ask("running", 1)
    late, patient = bench.ask("late", 2, within_ns=10 * MS), bench.ask("patient", 3)
    bench.answered()
    bench.behind.clock.now_ns += 11 * MS
    bench.answered()
    assert isinstance(bench.outcome(late), DeadlineExceeded)
    assert bench.answer(patient) == [6]
    assert bench.prepared_bytes == [1, 3]
    assert (bench.statistics.expired, bench.statistics.fail.count) == (1, 1)


def test_a_caller_that_goes_away_is_not_prepared_for() -> None:
    """Waiting or in a pass that has begun; it is counted once."""
    bench = brief()
    bench.ask("running", 1)
    waiting, other = bench.ask("waiting", 2), bench.ask("other", 3)
    assert waiting.holder is not None
    waiting.holder.cancel(waiting)
    bench.answered()
    assert other.holder is not None
    other.holder.cancel(other)
    bench.answered()
    assert all(isinstance(bench.outcome(request), Cancelled) for request in (waiting, other))
    assert bench.prepared_bytes == [1]
    assert (bench.statistics.cancelled, bench.statistics.fail.count) == (2, 2)


def test_an_engine_that_fails_runs_each_alone_and_prepares_nothing_twice() -> None:
    bench = brief()
    bench.ask("running", 1)
    requests = [bench.ask(str(number), number) for number in (2, 3)]
    bench.answered()
    bench.behind.runner.instance.faults.append(ValueError("once"))
    for _ in range(3):
        bench.answered()
    assert [bench.answer(request) for request in requests] == [[4], [6]]
    assert bench.behind.batches[-3:] == [[2, 3], [2], [3]]
    assert bench.prepared_bytes == [1, 2, 3]


def test_preprocessing_that_raises_anything_fails_its_request_alone() -> None:
    """As on a thread: it is ours, and counts."""
    bench = brief()

    def broken(_: object) -> Mapping[str, Array]:
        raise SystemExit

    raw = bench.behind.batcher.raw
    assert raw is not None
    raw._prepare = broken
    request = bench.ask("a")
    bench.answered()
    assert isinstance(bench.outcome(request), EngineFailure)
    assert bench.statistics.fail.count == 1
    assert bench.behind.batcher.healthy()


def test_where_there_is_no_room_for_its_rows_a_pass_fails() -> None:
    """As one whose engine fails."""
    bench = brief()

    class Full(Filling):
        def empty(self, rows: int) -> Mapping[str, Array]:
            raise MemoryError

    raw = bench.behind.batcher.raw
    assert raw is not None
    raw._fills = Full()
    request = bench.ask("a")
    bench.answered()
    assert isinstance(bench.outcome(request), EngineFailure)
    assert bench.behind.batcher.healthy()


def test_a_check_that_refuses_tensors_refuses_their_request() -> None:
    bench = brief()
    raw = bench.behind.batcher.raw
    assert raw is not None

    def check(request: InferRequest) -> None:
        raise InvalidRequest("inputs", "of another shape")

    raw._check = check
    request = bench.ask("a")
    bench.answered()
    outcome = bench.outcome(request)
    assert isinstance(outcome, InvalidRequest)
    assert outcome.__traceback__ is None
    assert bench.statistics.fail.count == 0


def test_who_would_be_late_is_refused_before_anything_is_spent_on_it() -> None:
    """By what passes that prepare have cost; and the last one that was asked tells of the next."""
    bench = PreparingBench(passes=True, max_batch_size=1, cost=StillCost(1 * MS))
    bench.learn(10 * MS, times=1)
    bench.takes_ns = 10 * MS
    for _ in range(4):
        bench.ask("learned")
        bench.answered()
    bench.takes_ns = 0
    bench.prepared_bytes.clear()
    for number in range(3):
        bench.ask(str(number), within_ns=45 * MS)
    assert bench.hopeless(36 * MS) is None, "nobody was asked since somebody wants to know"
    assert bench.outcome(bench.ask("in time", within_ns=45 * MS)) is None
    late = bench.outcome(bench.ask("late", within_ns=46 * MS))
    assert isinstance(late, Overloaded)
    assert isinstance(bench.hopeless(47 * MS), Overloaded)
    assert bench.hopeless(200 * MS) is None
    assert bench.statistics.refused[Refusal.OVERLOAD] == bench.statistics.fail.count == 2
    assert bench.prepared_bytes == []


def test_small_pictures_are_prepared_on_no_loop() -> None:
    """However short their passes have been, for what few bytes hold is not known before."""
    bench = PreparingBench(passes=True)
    bench.learn(0, times=1)
    for _ in range(100):
        bench.ask("tiny")
        assert bench.behind.runner.job is not None
        bench.answered()


class Filling:
    """One row of two numbers for each input, which say its value; None is bad."""

    def __init__(self) -> None:
        self.made: list[Array] = []

    def empty(self, rows: int) -> Mapping[str, Array]:
        self.made.append(np.full((rows, 2), -1, np.float32))
        return {"x": self.made[-1]}

    def fill(self, inputs: Sequence[RawInput], rows: Mapping[str, Array]) -> None:
        for index, item in enumerate(inputs):
            assert isinstance(item, RowInput)
            [value] = item.values
            if value is None:
                raise InvalidRequest(f"inputs[{index}]", "is bad")
            rows["x"][index] = value

    def preprocess(self, inputs: Sequence[RawInput]) -> Mapping[str, Array]:
        raise AssertionError


@pytest.fixture
def ask() -> Callable[..., InferRequest]:
    def make(*values: float | None) -> InferRequest:
        request = InferRequest("m", (), on_settle=lambda _, __: None, received_ns=0)
        request.raw = [RowInput([value]) for value in values]
        request.rows, request.signature = len(values), Raw(0)
        return request

    return make


def test_rows_are_made_where_the_pass_has_them(ask: Callable[..., InferRequest]) -> None:
    """Without a copy, one behind the other; the places of who has none are the next one's."""
    filling = Filling()
    passes = RawPasses("m", filling.preprocess, filling, lambda _: None)
    first, bad, last = ask(1, 2), ask(3, None), ask(5)
    spoiled, inputs = passes.prepare([first, bad, last])
    assert list(spoiled) == [bad]
    assert inputs is not None
    batch = merge([first, last], "m", "1", None, inputs)
    assert batch.inputs["x"].tolist() == [[1, 1], [2, 2], [5, 5]]
    assert (batch.rows, np.shares_memory(batch.inputs["x"], filling.made[0])) == (3, True)


def test_rows_of_one_shape_are_checked_once(ask: Callable[..., InferRequest]) -> None:
    """But each is whose request says something beside its inputs; and until one was found to be right."""
    seen: list[tuple[object, ...]] = []

    def check(request: InferRequest) -> None:
        [tensor] = request.inputs
        seen.append((*tensor.numpy()[:, 0], dict(request.parameters), request.tenant))
        request.signature = None
        if len(seen) == 1:
            raise InvalidRequest("inputs", "of another shape")

    filling = Filling()
    passes = RawPasses("m", filling.preprocess, filling, check)
    requests = [ask(number) for number in range(1, 6)]
    requests[3].parameters, requests[4].tenant = {"priority": "?"}, "a"
    spoiled, _ = passes.prepare(requests)
    assert list(spoiled) == requests[:1]
    assert seen == [(1, {}, ""), (2, {}, ""), (4, {"priority": "?"}, ""), (5, {}, "a")]
    assert all(request.signature == Raw(0) for request in requests)


class Logged:
    """An engine's instance that knows the rows of each run."""

    name, device, threads = "logged", "cpu", 1

    def __init__(self) -> None:
        self.runs: list[list[float]] = []

    def run(self, batch: Batch) -> Mapping[str, Array]:
        self.runs.append(batch.inputs["x"][:, 0].tolist())
        if self.runs[-1] == [666]:
            raise ValueError
        return {"y": batch.inputs["x"] * 2}


def in_one_pass(requests: Sequence[InferRequest], at_once: int) -> tuple[Pass, list[list[float]]]:
    """Its outcome, where the engine gets so many rows at once, and what the engine got."""

    class Fixed(Pieces):
        def rows(self, of: int) -> int:
            return at_once

    filling, instance, ticks = Filling(), Logged(), count(0, MS)
    raw = RawPasses("m", filling.preprocess, filling, lambda _: None, lambda: 0)
    raw.engine = Fixed()
    model = Model("m", "1", batched=True, raw=raw)
    return forward(instance, requests, model, lambda: next(ticks)), instance.runs


@pytest.mark.parametrize(
    ("at_once", "runs"),
    [
        (1, [[1], [2], [3, 4, 5], [6]]),
        (3, [[1, 2], [3, 4, 5], [6]]),
        (4, [[1, 2], [3, 4, 5, 6]]),
        (8, [[1, 2, 3, 4, 5, 6]]),
    ],
)
def test_a_pass_may_be_run_in_pieces(ask: Callable[..., InferRequest], at_once: int, runs: list[list[int]]) -> None:
    """Of whole requests; each has the same answer, and the times are those of all."""
    requests = [ask(1), ask(None), ask(2), ask(3, 4, 5), ask(6)]
    result, ran = in_one_pass(requests, at_once)
    assert (ran, result.error, result.rows) == (runs, None, 6)
    assert [answer.outputs[0].numpy()[:, 0].tolist() for answer in result.responses] == [[2], [4], [6, 8, 10], [12]]
    assert result.spoiled is not None
    assert list(result.spoiled) == [requests[1]]
    assert result.compute_infer_ns == result.compute_input_ns == len(runs) * MS
    assert result.compute_output_ns == 1 * MS


def test_a_pass_fails_as_a_whole_whichever_piece_does(ask: Callable[..., InferRequest]) -> None:
    """Then each is run alone, with what it brought."""
    requests = [ask(1), ask(None), ask(666), ask(2)]
    result, ran = in_one_pass(requests, 1)
    assert isinstance(result.error, EngineFailure)
    assert (ran, result.responses) == ([[1], [666]], ())
    assert result.spoiled is not None
    assert list(result.spoiled) == [requests[1]]
    assert all(request.raw is not None for request in requests)


def test_rows_are_run_by_as_many_as_have_proved_quick() -> None:
    """Each way is tried; what has become slow is left little by little, and what was is looked at again."""
    pieces = Pieces()

    def passes(times: int, ns_by_rows: Mapping[int, int]) -> list[int]:
        chosen = []
        for _ in range(times):
            chosen.append(pieces.rows(of=6))
            pieces.learn(chosen[-1], 6, 6 * ns_by_rows[chosen[-1]])
        return chosen

    assert passes(6, {1: 30, 2: 20, 4: 50, 8: 90}) == [1, 2, 4, 8, 2, 2]
    after = passes(400, {1: 30, 2: 70, 4: 10, 8: 90})
    assert set(after[:20]) == {1, 2}
    assert after[-30:].count(4) >= 29
    assert (pieces.rows(of=1), pieces.rows(of=2)) == (1, 1)


def test_limits_of_tensors_are_as_they_were() -> None:
    passes = RawPasses("m", lambda _: {}, None, lambda _: None)
    limits = passes.limits(Limits(16, (4, 8), 5 * MS))
    tensors, raw = limits.for_signature(None), limits.for_signature(Raw(1024))
    assert (tensors.max_batch_size, tensors.preferred_batch_size, tensors.max_queue_delay_ns) == (16, (4, 8), 5 * MS)
    assert (raw.max_batch_size, raw.preferred_batch_size, raw.max_queue_delay_ns) == (16, (), 0)
    assert (tensors.cap(None), raw.cap(None)) == (16, 4)
