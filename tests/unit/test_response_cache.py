"""The response cache: what is one question, what is kept and for how long, and what is counted."""

from __future__ import annotations

import asyncio
import itertools
import tracemalloc
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest

from server.errors import Cancelled, DeadlineExceeded, Draining, EngineFailure
from server.explain import Explanation
from server.offload import Offload
from server.repository.config_text import parse_text
from server.repository.model_config import from_message
from server.request_check import RequestCheck
from server.scheduler.admission import Foreseen
from server.scheduler.caching import CachingBatcher
from server.scheduler.response_cache import ON_LOOP_BYTES, ResponseCache, copied, entry_bytes
from server.scheduler.statistics import ModelStatistics
from server.tensor import Tensor
from server.types import InferRequest, InferResponse, Outcome
from tests.support.scheduler import MS, POISON, Bench

OWNER = ResponseCache(1).owner()
TWO_INPUTS = """
backend: "onnxruntime" max_batch_size: 4
input { name: "a" data_type: TYPE_FP32 dims: 1 } input { name: "b" data_type: TYPE_FP32 dims: 1 }
output { name: "y" data_type: TYPE_FP32 dims: 1 }
"""


class Cached(Bench):
    """A bench whose batcher has a cache in front."""

    def __init__(self, cache: ResponseCache | None = None, *, slo_ns: int = 0, **rest: Any) -> None:
        super().__init__(slo_ns=slo_ns, **rest)
        self.cache = cache or ResponseCache(1 << 20)
        self.front = CachingBatcher(self.batcher, "1", self.cache, self.statistics, slo_ns=slo_ns, clock=self.clock)

    def submit(self, *requests: InferRequest) -> None:
        self.front.submit(requests)
        self.loop.run()

    def ask(self, *values: int, **more: Any) -> InferRequest:
        request = self.caller.request(values, **more)
        self.submit(request)
        return request

    def answered(self, *values: int, **more: Any) -> InferRequest:
        """Asked, executed and answered."""
        request = self.ask(*values, **more)
        self.complete()
        return request

    @property
    def hits(self) -> int:
        return self.statistics.cache_hit.count

    @property
    def misses(self) -> int:
        return self.statistics.cache_miss.count


def tensor(
    name: str = "x", datatype: str = "INT64", shape: tuple[int, ...] = (1, 2), data: bytes = bytes(16)
) -> Tensor:
    return Tensor(name, datatype, shape, data)


def asked(*inputs: Tensor, outputs: Sequence[str] = (), **more: Any) -> InferRequest:
    return InferRequest("m", inputs, on_settle=lambda _, __: None, received_ns=0, outputs=outputs, **more)


def test_an_equal_request_is_answered_without_a_pass() -> None:
    """At once, with its own id, with the same outputs."""
    bench = Cached()
    first = bench.answered(1, 2, id="first")
    second = bench.ask(1, 2, id="second")

    assert len(bench.batches) == 1
    assert bench.caller.answer(second) == bench.caller.answer(first) == [2, 4]
    one, other = bench.caller.outcome(first), bench.caller.outcome(second)
    assert isinstance(one, InferResponse)
    assert isinstance(other, InferResponse)
    assert (one.id, other.id) == ("first", "second")
    assert (other.model_name, other.model_version) == (one.model_name, one.model_version)
    assert [(t.name, t.datatype, t.shape, bytes(t.data)) for t in other.outputs] == [
        (t.name, t.datatype, t.shape, bytes(t.data)) for t in one.outputs
    ]


def test_a_hit_is_counted_as_in_triton() -> None:
    """In success and queue, and in nothing that tells of passes; the histograms count it too."""
    bench = Cached()
    bench.answered(1)
    passes = bench.statistics.last_inference_ms
    bench.advance(5 * MS)
    request = bench.caller.request([1])
    bench.advance(3 * MS)
    bench.submit(request)

    counts = bench.statistics
    assert (counts.success.count, counts.success.ns) == (2, 3 * MS)
    assert counts.queue.count == 2
    assert (counts.cache_hit.count, counts.cache_miss.count) == (1, 1)
    assert (counts.inference_count, counts.execution_count, counts.last_inference_ms) == (1, 1, passes)
    assert counts.compute_input.count == counts.compute_infer.count == counts.compute_output.count == 1
    assert counts.request_duration.count == counts.queue_duration.count == 2
    assert (counts.admitted, counts.pending, counts.fail.count) == (1, 0, 0)


@pytest.mark.parametrize(
    "other",
    [
        asked(tensor(data=bytes(15) + b"\1")),
        asked(tensor(shape=(2, 1))),
        asked(tensor(name="z")),
        asked(tensor(datatype="UINT64")),
        asked(tensor(), outputs=("y",)),
        asked(tensor(), tensor("s")),
        asked(),
    ],
    ids=["data", "shape", "name", "datatype", "outputs", "another input", "no input"],
)
def test_what_makes_another_question(other: InferRequest) -> None:
    """Any byte of an input, its shape, name and datatype, and the outputs that are wanted."""
    cache = ResponseCache(1)
    assert cache.key(OWNER, other) != cache.key(OWNER, asked(tensor()))


def test_data_are_not_run_together() -> None:
    """The same bytes, cut elsewhere between two inputs of any length, are another question."""
    cache = ResponseCache(1)
    one, other = (
        cache.key(OWNER, asked(tensor("a", "BYTES", data=data[:cut]), tensor("b", "BYTES", data=data[cut:])))
        for data, cut in ((b"abc", 1), (b"abc", 2))
    )
    assert one != other


def test_the_order_of_outputs_is_part_of_the_question() -> None:
    """An answer has them in the order in which they were asked for."""
    cache = ResponseCache(1)
    assert cache.key(OWNER, asked(outputs=("y", "z"))) != cache.key(OWNER, asked(outputs=("z", "y")))


def test_what_does_not_reach_the_model_is_no_part_of_the_question() -> None:
    """Id, parameters, deadline, tenant, the time of receipt; nor how the bytes are held."""
    cache = ResponseCache(1)
    other = InferRequest(
        "m",
        [tensor(data=memoryview(bytearray(16)))],  # type: ignore[arg-type]
        on_settle=lambda _, __: None,
        received_ns=7,
        id="id",
        parameters={"priority": 1, "mine": "x"},
        deadline_ns=9,
        tenant="t",
    )
    assert cache.key(OWNER, other) == cache.key(OWNER, asked(tensor()))


def test_the_order_of_inputs_is_no_part_of_the_question() -> None:
    """The check of a request puts them in the order of the config, before it is looked up."""
    config = from_message(parse_text(TWO_INPUTS, "m"), "m")
    cache = ResponseCache(1)
    keys = []
    for names in (("a", "b"), ("b", "a")):
        request = asked(*(tensor(name, "FP32", (1, 1), name.encode() * 4) for name in names))
        RequestCheck(config)(request)
        keys.append(cache.key(OWNER, request))
    assert keys[0] == keys[1]


def test_a_key_is_secret() -> None:
    """Of two caches the same question has unlike keys, so that nobody can prepare two that are alike."""
    assert ResponseCache(1).key(OWNER, asked(tensor())) != ResponseCache(1).key(OWNER, asked(tensor()))
    assert len(ResponseCache(1).key(OWNER, asked(tensor()))) - len(OWNER) >= 16


def test_the_least_recently_used_makes_room() -> None:
    """Entries stay within the bytes; one that was found again outlives one that was kept later."""
    outputs = (tensor(data=bytes(1000)),)
    cache = ResponseCache(3 * entry_bytes(outputs) + 10)
    for key in (b"a", b"b", b"c"):
        cache.keep(key, outputs)
    assert cache.find(b"a") == outputs
    cache.keep(b"d", outputs)

    assert [cache.find(key) is not None for key in (b"a", b"b", b"c", b"d")] == [True, False, True, True]
    assert cache.used_bytes == 3 * entry_bytes(outputs) <= cache.size_bytes
    assert cache.counts()._replace(util=0) == (0, 3, 5, 4, 1, 1, 0, 0)
    assert cache.counts().util == pytest.approx(cache.used_bytes / cache.size_bytes)


def test_what_just_fits_is_kept() -> None:
    """To the byte."""
    outputs = (tensor(data=bytes(1000)),)
    cache = ResponseCache(entry_bytes(outputs))
    assert cache.fits(outputs)
    cache.keep(b"a", outputs)
    assert cache.find(b"a") is outputs
    assert cache.counts().util == 1
    assert not ResponseCache(entry_bytes(outputs) - 1).fits(outputs)
    assert entry_bytes(outputs * 2) - entry_bytes(outputs) == entry_bytes(outputs) - entry_bytes(()) > 1000


def test_durations_are_told_in_microseconds() -> None:
    """As those of Triton's metrics."""
    cache = ResponseCache(1)
    cache.lookup_ns, cache.insertion_ns = 5_999, 7_001
    assert (cache.counts().lookup_duration, cache.counts().insertion_duration) == (5, 7)


def test_what_is_forgotten_is_its_owners_alone() -> None:
    """And its bytes are free."""
    cache = ResponseCache(1 << 20)
    one, other = cache.owner(), cache.owner()
    assert one != other
    keys = [cache.key(owner, asked(tensor(data=bytes([size] * 16)))) for owner in (one, other) for size in (1, 2)]
    for key in keys:
        cache.keep(key, (tensor(),))
    cache.forget(one)
    assert [cache.find(key) is not None for key in keys] == [False, False, True, True]
    assert cache.used_bytes == 2 * entry_bytes((tensor(),))


@pytest.mark.parametrize(("tensors", "size"), [(1, 8), (3, 8), (1, 5000)])
def test_an_entry_is_reckoned_with_what_holds_it(tensors: int, size: int) -> None:
    """The bytes that are told are no fewer than those that are taken, and not many times as many."""
    cache = ResponseCache(1 << 30)
    owner = cache.owner()
    data = memoryview(bytes(size))
    tracemalloc.start()
    try:
        for number in range(2000):
            outputs = [Tensor(f"y{index}", "UINT8", (1, size), data) for index in range(tensors)]
            cache.keep(cache.key(owner, asked(tensor(data=number.to_bytes(16, "little")))), copied(outputs))
        taken, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert taken <= cache.used_bytes < 3 * taken


def test_what_is_kept_twice_takes_its_bytes_once() -> None:
    """As it does where equal requests were under way at the same time; the first one stays."""
    first, second = (tensor(),), (tensor(),)
    cache = ResponseCache(1 << 20)
    for outputs in (first, second):
        cache.keep(b"a", outputs)
    assert cache.used_bytes == entry_bytes(first)
    assert cache.find(b"a") is first


def test_an_answer_that_is_too_large_is_not_kept() -> None:
    """Nor does it drive out anybody."""
    small, large = (tensor(),), (tensor(data=bytes(5000)),)
    cache = ResponseCache(entry_bytes(large) - 1)
    cache.keep(b"small", small)
    cache.keep(b"large", large)

    assert cache.find(b"large") is None
    assert cache.find(b"small") == small
    assert not cache.fits(large)
    assert cache.evictions == 0


def test_an_answer_too_large_is_still_given() -> None:
    """The model is as it were without a cache, but for the misses that are counted."""
    bench = Cached(ResponseCache(1))
    assert bench.caller.answer(bench.answered(1)) == bench.caller.answer(bench.answered(1)) == [2]
    assert (bench.hits, bench.misses) == (0, 2)


def test_what_is_kept_is_a_copy() -> None:
    """An answer is a view on its whole batch's outputs, and whoever gets it may put others in their places."""
    whole = np.arange(4, dtype=np.int64)
    [kept] = copied([Tensor("y", "INT64", (1,), memoryview(whole).cast("B")[:8])])
    whole[:] = 9
    assert kept.data == (0).to_bytes(8, "little")

    bench = Cached()
    response = bench.caller.outcome(bench.answered(1))
    assert isinstance(response, InferResponse)
    response.outputs = [Tensor("y", "INT64", (1, 1), b"")]
    hit = bench.caller.outcome(bench.ask(1))
    assert isinstance(hit, InferResponse)
    assert type(hit.outputs[0].data) is bytes, "and no view"
    assert hit.outputs[0].data == (2).to_bytes(8, "little")


def test_a_failure_is_not_kept() -> None:
    """The same request is executed again, and counts as no miss: it was not answered."""
    bench = Cached()
    assert isinstance(bench.caller.outcome(bench.answered(POISON)), EngineFailure)
    assert isinstance(bench.caller.outcome(bench.answered(POISON)), EngineFailure)
    assert (bench.hits, bench.misses, bench.cache.counts().num_entries) == (0, 0, 0)
    assert bench.statistics.fail.count == 2


def test_a_cancelled_request_keeps_nothing() -> None:
    """Even where its pass had begun, and gave an answer."""
    bench = Cached()
    request = bench.ask(1)
    bench.front.cancel(request)
    bench.complete()

    assert isinstance(bench.caller.outcome(request), Cancelled)
    assert bench.cache.counts().num_entries == 0
    assert bench.caller.answer(bench.answered(1)) == [2]


@pytest.mark.parametrize("slo_ns", [0, 2 * MS], ids=["of its own", "of the model"])
def test_an_expired_request_is_not_answered(slo_ns: int) -> None:
    """Its deadline rejects it as if nothing were kept, and it is counted as it would be."""
    bench = Cached(slo_ns=slo_ns)
    bench.answered(1)
    late = bench.caller.request([1], **({} if slo_ns else {"deadline_ns": bench.clock.now_ns + 2 * MS}))
    bench.advance(2 * MS)
    bench.submit(late)

    assert isinstance(bench.caller.outcome(late), DeadlineExceeded)
    assert (bench.hits, bench.statistics.expired) == (0, 1)


def test_equal_requests_at_a_time_are_each_executed() -> None:
    """They share a batch; each is a miss, and one answer is kept."""
    bench = Cached()
    requests = [bench.caller.request([3]) for _ in range(3)]
    bench.submit(*requests)
    bench.complete()

    assert bench.batches == [[3, 3, 3]]
    assert (bench.hits, bench.misses, bench.cache.counts().num_entries) == (0, 3, 1)


def test_another_load_of_the_model_does_not_answer_from_it() -> None:
    """Both are in one cache, and each finds its own; what is closed is freed."""
    old = Cached()
    old.answered(1)
    new = Cached(old.cache, beside=old)
    new.answered(1)
    assert len(new.batches) == 1
    assert old.cache.counts().num_entries == 2

    closing = old.front.close()
    with pytest.raises(StopIteration):
        closing.send(None)
    assert old.cache.counts().num_entries == 1
    assert (old.cache.used_bytes > 0, new.hits) == (True, 0)
    assert new.caller.answer(new.ask(1)) == [2]
    assert new.hits == 1


def test_nobody_is_answered_while_it_drains() -> None:
    """Who comes then is told so, as without a cache."""
    bench = Cached()
    bench.answered(1)
    draining = bench.front.drain(bench.clock.now_ns + 1000 * MS)
    draining.send(None)
    bench.loop.run()
    assert isinstance(bench.caller.outcome(bench.ask(1)), Draining)
    draining.close()


def test_a_caller_that_fails_to_take_a_hit_disturbs_nobody() -> None:
    """It is logged and counts as settled; the next one is answered."""

    def fails(_request: InferRequest, _outcome: Outcome) -> None:
        raise OSError

    bench = Cached()
    bench.answered(1)
    bad, good = bench.caller.request([1], on_settle=fails), bench.caller.request([1])
    bench.submit(bad, good)
    assert bench.caller.answer(good) == [2]
    assert bench.hits == 2


def test_a_hit_explains_itself() -> None:
    """Its time is that of looking it up; it had no pass. A miss has both."""
    bench = Cached()
    bench.answered(1)
    for value, parts in ((1, {"cache", "loop"}), (2, {"cache", "queue", "compute", "loop"})):
        request = bench.caller.request([value])
        explanation = request.explanation = Explanation(bench.clock.now_ns, bench.clock)
        bench.submit(request)
        if value == 2:
            bench.complete()
        outcome = bench.caller.outcome(request)
        assert isinstance(outcome, InferResponse)
        explanation.mark_pass(request.enqueued_ns, outcome.timing)
        assert parts <= explanation.parts_ns().keys()
        assert bool(explanation.batch_rows) == (value == 2)


def test_lookups_and_keeping_are_timed() -> None:
    """By a clock that goes on by one with each look at it: in the cache's counters, and in the model's."""
    bench = Cached()
    ticks = itertools.count(bench.clock.now_ns)
    bench.front._clock = lambda: next(ticks)
    bench.answered(1)
    assert (bench.cache.lookup_ns, bench.cache.insertion_ns) == (1, 1)
    assert (bench.statistics.cache_miss.count, bench.statistics.cache_miss.ns) == (1, 2)
    bench.ask(1)
    assert (bench.cache.lookup_ns, bench.cache.insertion_ns) == (2, 1)
    assert (bench.statistics.cache_hit.count, bench.statistics.cache_hit.ns) == (1, 1)
    # The second of two that come together is timed from where the first ended.
    bench.submit(bench.caller.request([1]), bench.caller.request([1]))
    assert (bench.cache.lookup_ns, bench.statistics.cache_hit.ns) == (4, 3)


def test_it_is_as_well_as_its_batcher_and_foresees_as_it_does() -> None:
    """It is only in front of it."""
    bench = Cached()
    assert bench.front.healthy() is bench.batcher.healthy() is True
    assert bench.front.queue is bench.batcher.queue
    request = bench.caller.request([1], deadline_ns=bench.clock.now_ns + 1)
    assert bench.front.foresee(request, 0) == bench.batcher.foresee(request, 0) != Foreseen(None)
    assert bench.front.hopeless(1, 0) is bench.batcher.hopeless(1, 0) is None


# --- what is large goes to a thread --------------------------------------------------------------------


class Direct:
    """Answers what is submitted at once, with the inputs as the outputs; or holds it."""

    def __init__(self) -> None:
        self.seen: list[InferRequest] = []
        self.holds = False
        self.drained_with = -1

    def submit(self, requests: Sequence[InferRequest]) -> None:
        self.seen += requests
        for request in requests:
            if not self.holds:
                request.settle(InferResponse("m", "1", [tensor("y", data=request.inputs[0].data)]))  # type: ignore[arg-type]

    def cancel(self, request: InferRequest) -> None:
        request.settle(Cancelled())

    async def drain(self, until_ns: int) -> None:
        self.drained_with = len(self.seen)

    async def close(self) -> None:
        pass


LARGE = bytes(range(256)) * (ON_LOOP_BYTES // 128)


def large(on_settle: Callable[[InferRequest, Outcome], None] = lambda _, __: None) -> InferRequest:
    return InferRequest("m", [tensor(data=LARGE)], on_settle=on_settle, received_ns=0)


def threaded() -> tuple[Direct, ResponseCache, ModelStatistics, CachingBatcher]:
    batcher, cache, statistics = Direct(), ResponseCache(1 << 20), ModelStatistics("m", "1")
    cache.offload = Offload(1, "cache")
    return batcher, cache, statistics, CachingBatcher(batcher, "1", cache, statistics)  # type: ignore[arg-type]


async def threads_end(cache: ResponseCache) -> None:
    """All that the one thread was given before is over, and was heard of."""
    await cache.offload.run(lambda _: None, None)


async def settled(front: CachingBatcher, request: InferRequest) -> Outcome:
    outcome: asyncio.Future[Outcome] = asyncio.get_running_loop().create_future()
    request.divert(lambda _, it: outcome.set_result(it))
    front.submit((request,))
    assert not outcome.done(), "not on the loop"
    return await outcome


def test_what_is_large_is_hashed_and_copied_on_a_thread() -> None:
    """The loop goes on meanwhile; the second one is a hit all the same."""

    async def scenario() -> None:
        batcher, cache, statistics, front = threaded()
        first = await settled(front, large())
        await threads_end(cache)
        second = await settled(front, large())
        assert isinstance(first, InferResponse)
        assert isinstance(second, InferResponse)
        assert second.outputs[0].data == LARGE
        assert len(batcher.seen) == 1
        assert (statistics.cache_hit.count, statistics.cache_miss.count) == (1, 1)
        cache.offload.close()

    asyncio.run(scenario())


@pytest.mark.parametrize(("size", "on_loop"), [(ON_LOOP_BYTES, True), (ON_LOOP_BYTES + 1, False)])
def test_what_costs_less_than_the_way_to_a_thread_stays_on_the_loop(size: int, on_loop: bool) -> None:
    """To be hashed, and to be copied."""

    async def scenario() -> None:
        batcher, cache, _, front = threaded()
        request = InferRequest("m", [tensor(data=bytes(size))], on_settle=lambda _, __: None, received_ns=0)
        front.submit((request,))
        assert bool(batcher.seen) is on_loop
        if on_loop:
            assert cache.counts().num_entries == 1, "its answer is as large"
        await front.drain(0)
        await threads_end(cache)
        assert cache.counts().num_entries == 1
        cache.offload.close()

    asyncio.run(scenario())


def test_who_expires_while_it_is_hashed_is_left_to_the_batcher() -> None:
    """Though its answer is there."""

    async def scenario() -> None:
        batcher, cache, statistics, front = threaded()
        await settled(front, large())
        await threads_end(cache)
        now_ns = 0
        front._clock = lambda: now_ns
        late = large()
        late.deadline_ns = 5
        front.submit((late,))
        now_ns = 5
        await front.drain(0)
        assert batcher.seen[1:] == [late]
        assert statistics.cache_hit.count == 0
        cache.offload.close()

    asyncio.run(scenario())


def test_who_goes_while_it_is_hashed_is_not_executed() -> None:
    """It is settled as Cancelled, once."""

    async def scenario() -> None:
        batcher, cache, _, front = threaded()
        outcomes: list[Outcome] = []
        request = large(lambda _, outcome: outcomes.append(outcome))
        front.submit((request,))
        front.cancel(request)
        await front.drain(0)
        assert [type(outcome) for outcome in outcomes] == [Cancelled]
        assert batcher.seen == []
        cache.offload.close()

    asyncio.run(scenario())


def test_a_drain_waits_for_who_is_hashed() -> None:
    """They came before it, and must be admitted before the batcher admits nobody any more."""

    async def scenario() -> None:
        batcher, cache, _, front = threaded()
        front.submit((large(), large()))
        await front.drain(0)
        assert batcher.drained_with == 2
        cache.offload.close()

    asyncio.run(scenario())


def test_an_answer_that_comes_to_be_kept_after_the_end_is_not() -> None:
    """Nobody would free it."""

    async def scenario() -> None:
        batcher, cache, _, front = threaded()
        batcher.holds = True
        front.submit((large(),))
        await front.drain(0)
        batcher.seen[0].settle(InferResponse("m", "1", [tensor("y", data=LARGE)]))
        await front.close()
        await threads_end(cache)
        assert cache.used_bytes == 0
        cache.offload.close()

    asyncio.run(scenario())
