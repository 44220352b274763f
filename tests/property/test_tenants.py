"""Tenants share a queue: whatever they send, and in whatever order."""

from __future__ import annotations

from collections import Counter
from itertools import chain

from hypothesis import given
from hypothesis import strategies as st

from server.scheduler.plan import Dispatch, Limits, plan
from server.scheduler.queue import QueuePolicy, RequestQueue
from server.scheduler.tenants import MOST_TENANTS, FairLine
from server.types import InferRequest
from tests.support.scheduler import Caller, ManualClock, admit

CAP = 8
NAMES = "abcd"
Arrival = tuple[str, int, int]

arrivals = st.tuples(st.sampled_from(NAMES), st.integers(1, 4), st.sampled_from([10, 20, 30, 10**18]))
steps = st.lists(st.one_of(st.none(), st.lists(arrivals, min_size=1, max_size=12)), min_size=1, max_size=60)
"""Each adds requests (tenant, rows, deadline), or (None) forms a batch and takes it."""


class Queue:
    """A fair queue with what was taken from it."""

    def __init__(self, max_queue_size: int = 0) -> None:
        self.caller = Caller(ManualClock(0))
        self.queue = RequestQueue(QueuePolicy(max_queue_size), make_line=FairLine)

    def add(self, tenant: str, rows: int = 1, deadline_ns: int = 10**18, columns: int = 1) -> InferRequest | None:
        request = self.caller.request([1] * rows, tenant=tenant, deadline_ns=deadline_ns, columns=columns)
        return request if admit(self.queue, request, 0) else None

    def take(self) -> list[InferRequest]:
        """The next batch; empty if nobody waits."""
        step = plan(self.queue, 0, Limits(CAP))
        if not isinstance(step, Dispatch):
            return []
        self.queue.take(step.requests)
        return step.requests

    @property
    def line(self) -> FairLine:
        line = self.queue.levels[0].waiting
        assert isinstance(line, FairLine)
        return line


@given(steps)
def test_who_waits_gets_as_much_as_any_other(script: list[list[Arrival] | None]) -> None:
    """While two tenants both wait, one is never ahead by more than a request of each, counted in rows."""
    fair = Queue()
    served = {(one, other): 0 for one in NAMES for other in NAMES}
    for step in script:
        for tenant, rows, deadline_ns in step or []:
            fair.add(tenant, rows, deadline_ns)
        if step is not None:
            continue
        waiting = Counter(request.tenant for request in fair.queue)
        for request in fair.take():
            waiting[request.tenant] -= 1
            for other in NAMES:
                served[request.tenant, other] += request.rows
                served[other, request.tenant] -= request.rows
            check_that_nobody_is_ahead(served, waiting)


def check_that_nobody_is_ahead(served: dict[tuple[str, str], int], waiting: Counter[str]) -> None:
    for (one, other), rows in served.items():
        if not (waiting[one] and waiting[other]):
            # From here on a new time begins in which both may wait.
            served[one, other] = 0
        elif one != other:
            assert rows <= 2 * 4, f"{one} is {rows} rows ahead of {other}"


@given(st.lists(steps, min_size=1, max_size=3))
def test_nothing_gets_lost_and_deadlines_order_each_tenant(scripts: list[list[list[Arrival] | None]]) -> None:
    """Every request is taken once, a tenant's in the order of deadlines; counts of rows and requests stay right."""
    fair = Queue()
    added: list[InferRequest | None] = []
    taken: list[InferRequest] = []
    for step in [*chain.from_iterable(scripts), *[None] * 400]:
        if step is not None:
            added += [fair.add(*arrival) for arrival in step]
            continue
        batch = fair.take()
        taken += batch
        assert sum(request.rows for request in batch) <= CAP
        for tenant in NAMES:
            own = [request.deadline_ns for request in batch if request.tenant == tenant]
            left = [request.deadline_ns for request in fair.queue if request.tenant == tenant]
            assert own == sorted(own)
            assert not own or not left or own[-1] <= min(left)
        assert fair.line.rows == sum(request.rows for request in fair.queue)
        assert fair.line.size == len(fair.queue)
    assert len(taken) == len(set(taken)) == len(added)
    assert not fair.line.tenants
    assert not fair.line._order
    assert not fair.line._rows_by_signature
    assert not fair.line._left


@given(flood=st.integers(1, 300), few=st.integers(1, 8), taken=st.integers(0, 20), rows=st.integers(1, 4))
def test_a_newcomer_goes_with_the_next_batch(flood: int, few: int, taken: int, rows: int) -> None:
    """However many of another's wait, and however many of them were served: half of the batch is the newcomer's."""
    fair = Queue()
    for _ in range(flood):
        fair.add("a", rows)
    for _ in range(taken):
        fair.take()
    for _ in range(few):
        fair.add("b")
    batch = fair.take()
    assert sum(request.tenant == "b" for request in batch) >= min(few, CAP // 2 - 1)


@given(st.lists(st.tuples(st.integers(0, 3 * MOST_TENANTS), st.integers(1, 3)), max_size=900), st.integers(0, 5))
def test_invented_names_leave_no_memory(arrivals: list[tuple[int, int]], batches: int) -> None:
    """Lines and tags are bounded, and those beyond are served all the same."""
    fair = Queue()
    for number, (name, rows) in enumerate(arrivals):
        fair.add(f"t{name}", rows)
        if number % 7 < batches:
            fair.take()
        assert len(fair.line.tenants) <= MOST_TENANTS + 1
        assert len(fair.line._order) == len(fair.line.tenants)
        assert len(fair.line._left) <= MOST_TENANTS
    while fair.take():
        pass
    assert not len(fair.queue)


@given(st.lists(st.tuples(st.sampled_from(NAMES), st.booleans()), max_size=200), st.integers(1, 40))
def test_a_flood_never_takes_all_places(script: list[tuple[str, bool]], places: int) -> None:
    """Never more than max_queue_size wait, and one that floods alone leaves as many places free as it holds."""
    fair = Queue(max_queue_size=places)
    for tenant, takes in script:
        if takes:
            fair.take()
        else:
            fair.add(tenant)
        assert len(fair.queue) <= places
    while fair.take():
        pass
    while fair.add("flood"):
        pass
    assert len(fair.queue) == -(-places // 2)
    assert places == 1 or fair.add("few") is not None
