"""Whatever comes, ends and goes away in any order: preprocessing settles each request once, and wastes nothing."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from server.errors import Cancelled, DeadlineExceeded, InvalidRequest, Overloaded, QueueFull
from server.scheduler.queue import QueuePolicy
from server.types import InferRequest, InferResponse
from tests.support.preparing import PreparingBench
from tests.support.scheduler import MS

STEPS = st.one_of(
    st.tuples(st.just("ask"), st.sampled_from([None, 1, 5, 20, 60]), st.sampled_from([1, 7, 255])),
    st.tuples(st.just("cancel"), st.integers(0, 30), st.just(0)),
    st.tuples(st.just("prepared"), st.integers(0, 8), st.just(0)),
    st.tuples(st.just("answered"), st.integers(0, 3), st.just(0)),
    st.tuples(st.just("advance"), st.integers(1, 30), st.just(0)),
)
ENDS = (InferResponse, InvalidRequest, Overloaded, QueueFull, DeadlineExceeded, Cancelled)


@settings(max_examples=80)
@given(st.lists(STEPS, max_size=60), st.integers(1, 3), st.sampled_from([1, 3]), st.booleans())
def test_each_request_is_settled_once_and_prepared_at_most_once_in_time(
    steps: list[tuple[str, int | None, int]], threads: int, together: int, passes: bool
) -> None:
    """The threads themselves assert that nothing begins which is settled or late, one at a time on each."""
    bench = PreparingBench(threads, together=together, passes=passes, policy=QueuePolicy(max_queue_size=6))
    requests: list[InferRequest] = []
    for kind, number, value in steps:
        if kind == "ask":
            requests.append(bench.ask(str(len(requests)), value, within_ns=number and number * MS))
        elif kind == "cancel" and requests:
            request = requests[(number or 0) % len(requests)]
            assert request.holder is not None
            request.holder.cancel(request)
            bench.loop.run()
        elif kind == "prepared" and bench.busy:
            bench.prepared((number or 0) * MS)
        elif kind == "answered" and bench.behind.runner.job is not None:
            bench.clock.now_ns += (number or 0) * MS
            bench.answered()
        elif kind == "advance":
            bench.advance((number or 0) * MS)
        assert len(bench.busy) <= threads
    while bench.busy or bench.behind.runner.job is not None:
        if bench.busy:
            bench.prepared(MS)
        else:
            bench.answered()
    assert len(set(bench.begun)) == len(bench.begun)
    for request in requests:
        assert isinstance(bench.outcome(request), ENDS), bench.outcome(request)
    bad = sum(isinstance(bench.outcome(request), InvalidRequest) for request in requests)
    assert bench.statistics.success.count + bench.statistics.fail.count == len(requests) - bad
    assert bench.statistics.pending == 0
