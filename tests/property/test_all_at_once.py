"""The short way round the queue is what the planner would have said."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from server.scheduler.cost import CostModel
from server.scheduler.plan import Dispatch, Limits, all_at_once, plan
from server.scheduler.queue import QueuePolicy, RequestQueue
from server.types import NO_DEADLINE
from tests.support.scheduler import MS, Caller, ManualClock, admit


@given(
    arrived=st.lists(
        st.tuples(
            st.integers(1, 4),
            st.sampled_from([1, 1, 1, 1, 2]),
            st.sampled_from([None, None, 0, 1, 2, 5, 40]),
        ),
        min_size=1,
        max_size=9,
    ),
    max_batch_size=st.sampled_from([0, 1, 4, 8, 32]),
    seed=st.sampled_from([{}, {1: MS}, {1: MS, 8: 2 * MS}, {1: MS, 8: 8 * MS, 32: 40 * MS}]),
)
def test_whoever_may_go_at_once_is_who_the_planner_would_send(
    arrived: list[tuple[int, int, int | None]], max_batch_size: int, seed: dict[int, int]
) -> None:
    """Rows, signatures, deadlines near and far, with and without a cost: the same requests in one batch, or no."""
    clock = ManualClock()
    caller, queue, now_ns = Caller(clock), RequestQueue(QueuePolicy()), clock()
    limits, cost = Limits(max_batch_size), CostModel(seed)
    requests = [
        caller.request(
            [1] * min(rows, max(1, max_batch_size)),
            columns=columns,
            deadline_ns=NO_DEADLINE if left_ms is None else now_ns + left_ms * MS,
        )
        for rows, columns, left_ms in arrived
    ]
    at_once = all_at_once(requests, now_ns, limits.cap(cost), cost)
    for request in requests:
        admit(queue, request, now_ns)
    expired = queue.expire(now_ns)

    if at_once:
        step = plan(queue, now_ns, limits, cost)
        assert not expired
        assert isinstance(step, Dispatch)
        assert set(step.requests) == set(requests)
    elif len(requests) == 1 and arrived[0][2] is None:
        assert requests[0].rows > limits.cap(cost) > 0, "a single request of no more than the cap always may"
