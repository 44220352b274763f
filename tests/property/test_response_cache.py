"""Whatever happens in whichever order, an answer is the one that the model gives: the cache changes nothing else."""

from __future__ import annotations

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from server.scheduler.caching import CachingBatcher
from server.scheduler.response_cache import ResponseCache, entry_bytes
from server.tensor import Tensor
from server.types import InferRequest, InferResponse
from tests.support.scheduler import MS, POISON, Bench

DATATYPES = ("INT64", "FP32")


class Side:
    """A model, with a cache in front or without, and all that was asked of it."""

    def __init__(self, cache: ResponseCache | None, beside: Bench | None = None) -> None:
        self.bench = Bench(max_batch_size=4, beside=beside)
        self.front: Any = self.bench.batcher
        if cache is not None:
            self.front = CachingBatcher(self.bench.batcher, "1", cache, self.bench.statistics, clock=self.bench.clock)
        self.requests: list[InferRequest] = []

    def submit(self, asked: list[tuple[list[int], int]]) -> None:
        requests = [
            self.bench.caller.request(
                values,
                id=str(len(self.requests) + index),
                **({"deadline_ns": self.bench.clock.now_ns + within_ms * MS} if within_ms else {}),
            )
            for index, (values, within_ms) in enumerate(asked)
        ]
        self.requests += requests
        self.front.submit(requests)
        self.bench.loop.run()

    def complete(self) -> None:
        if self.bench.runner.job is not None:
            self.bench.complete()

    def finish(self) -> None:
        while self.bench.runner.job is not None or self.bench.batcher.pending:
            self.complete()

    def told(self, request: InferRequest) -> object:
        """What an answer says; None for any other outcome."""
        outcome = self.bench.caller.outcome(request)
        assert outcome is not None, "nobody waits for ever"
        if not isinstance(outcome, InferResponse):
            return None
        tensors = [(t.name, t.datatype, t.shape, bytes(t.data)) for t in outcome.outputs]
        return outcome.model_name, outcome.model_version, outcome.id, tensors


VALUES = st.lists(st.sampled_from([0, 1, 2, POISON]), min_size=1, max_size=3)
STEPS = st.lists(
    st.one_of(
        st.tuples(
            st.just("submit"), st.lists(st.tuples(VALUES, st.sampled_from([0, 0, 1, 3])), min_size=1, max_size=4)
        ),
        st.tuples(st.just("complete"), st.none()),
        st.tuples(st.just("cancel"), st.integers(0, 30)),
        st.tuples(st.just("advance"), st.integers(1, 2)),
    ),
    max_size=30,
)


@given(STEPS, st.sampled_from([1, 2 * entry_bytes([Tensor("y", "INT64", (1, 1), bytes(8))]), 1 << 20]))
def test_an_answer_with_a_cache_is_the_answer_without(steps: list[Any], size_bytes: int) -> None:
    """Byte by byte, id included, of every request that both answer; each is settled once, on either side, and every
    answer is a hit or a miss."""
    cache = ResponseCache(size_bytes)
    cached = Side(cache)
    plain = Side(None)
    for step, what in steps:
        for side in (cached, plain):
            if step == "submit":
                side.submit(what)
            elif step == "complete":
                side.complete()
            elif step == "cancel" and what < len(side.requests):
                side.front.cancel(side.requests[what])
            elif step == "advance":
                side.bench.advance(what * MS)
        assert cache.used_bytes <= size_bytes
    for side in (cached, plain):
        side.finish()
    for one, other in zip(cached.requests, plain.requests, strict=True):
        answer, expected = cached.told(one), plain.told(other)
        # Which request is in time, and which in one batch with a broken one, may differ: a hit takes no time.
        if answer is not None and expected is not None:
            assert answer == expected
    counts = cached.bench.statistics
    answered = sum(cached.told(request) is not None for request in cached.requests)
    assert counts.success.count == counts.queue.count == answered
    assert counts.cache_hit.count + counts.cache_miss.count == answered
    assert counts.compute_infer.count == counts.cache_miss.count
    assert counts.success.count + counts.fail.count == len(cached.requests)


TENSOR = st.builds(
    Tensor,
    st.text(max_size=3),
    st.sampled_from(DATATYPES),
    st.lists(st.integers(0, 3), max_size=3).map(tuple),
    st.binary(max_size=12),
)
QUESTION = st.tuples(st.lists(TENSOR, max_size=3), st.lists(st.text(max_size=3), max_size=2))


@given(QUESTION, QUESTION)
def test_keys_are_equal_for_equal_questions_alone(
    one: tuple[list[Tensor], list[str]], other: tuple[list[Tensor], list[str]]
) -> None:
    """However names, shapes and data are cut, no two questions are one; and one question has one key."""
    cache = ResponseCache(1)
    owner = cache.owner()

    def key(question: tuple[list[Tensor], list[str]]) -> bytes:
        inputs, outputs = question
        request = InferRequest("m", inputs, outputs=outputs, on_settle=lambda _, __: None, received_ns=0)
        return cache.key(owner, request)

    assert (key(one) == key(other)) == (one == other)
    assert key(one) == key(one)
