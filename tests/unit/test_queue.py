"""The queue and its policy."""

from __future__ import annotations

from collections.abc import Mapping

import pytest

from server.scheduler.queue import PATIENCE_NS, Priorities, QueuePolicy, RequestQueue
from server.types import NO_DEADLINE, InferRequest, Parameter
from tests.support.scheduler import Caller, ManualClock, admit


def make(
    parameters: Mapping[str, Parameter] | None = None, deadline_ns: int = NO_DEADLINE, rows: int = 1, columns: int = 1
) -> InferRequest:
    return Caller(ManualClock(0)).request([1] * rows, columns=columns, parameters=parameters, deadline_ns=deadline_ns)


@pytest.mark.parametrize(
    ("default_us", "override", "own", "expected_us"),
    [
        (0, False, None, 0),
        (0, False, 7, 7),
        (0, True, 7, 7),
        (9, False, None, 9),
        (9, False, 7, 9),
        (9, True, 7, 7),
        (9, True, 11, 9),
        (9, True, 0, 9),
        (0, True, 0, 0),
        (0, True, -5, 0),
        (0, True, "7", 0),
        (0, True, 7.5, 0),
        (0, True, True, 0),
    ],
)
def test_effective_timeout(default_us: int, override: bool, own: Parameter | None, expected_us: int) -> None:
    """A request's timeout counts where there is no default, and else only lowers it, and only if allowed."""
    policy = QueuePolicy(0, default_us * 1000, "REJECT", override)
    request = make({} if own is None else {"timeout": own})
    assert policy.timeout_ns(request) == expected_us * 1000


def test_a_full_queue_admits_nobody_until_a_place_is_free() -> None:
    """max_queue_size counts waiting requests; removing one frees its place at once."""
    queue = RequestQueue(QueuePolicy(max_queue_size=2))
    first, second, third = make(), make(rows=3), make()
    assert admit(queue, first, 0)
    assert admit(queue, second, 0)
    assert not admit(queue, third, 0)
    assert third not in queue
    assert queue.remove(first)
    assert admit(queue, third, 0)
    assert (len(queue), queue.rows) == (2, 4)


def test_no_limit() -> None:
    """A max_queue_size of 0 is no limit."""
    queue = RequestQueue(QueuePolicy())
    assert all(admit(queue, make(), 0) for _ in range(100))


def test_removing_twice_is_told() -> None:
    """Only the first removal of a request is one; counters stay right."""
    queue = RequestQueue(QueuePolicy())
    request = make(rows=2)
    admit(queue, request, 0)
    assert queue.remove(request)
    assert not queue.remove(request)
    assert (len(queue), queue.rows) == (0, 0)


def test_rejected_at_its_expiry() -> None:
    """Under REJECT a request leaves the queue at the very nanosecond that its timeout is over."""
    queue = RequestQueue(QueuePolicy(default_timeout_ns=10))
    request = make()
    admit(queue, request, 100)
    assert queue.next_expiry_ns() == 110
    assert queue.expire(109) == []
    assert queue.expire(110) == [request]
    assert len(queue) == 0
    assert queue.next_expiry_ns() == NO_DEADLINE


def test_the_clients_deadline_always_rejects() -> None:
    """A client's deadline rejects under DELAY too, before the timeout and after it."""
    queue = RequestQueue(QueuePolicy(default_timeout_ns=10, timeout_action="DELAY"))
    early, late = make(deadline_ns=5), make(deadline_ns=50)
    admit(queue, early, 0)
    admit(queue, late, 0)
    assert queue.expire(5) == [early]
    assert queue.expire(10) == []
    assert late in list(queue.levels[0].delayed)
    assert queue.next_expiry_ns() == 50
    assert queue.expire(50) == [late]


def test_delayed_still_counts() -> None:
    """A delayed request keeps its place in the queue, and can be removed and taken like any other."""
    queue = RequestQueue(QueuePolicy(max_queue_size=1, default_timeout_ns=10, timeout_action="DELAY"))
    request = make(rows=3)
    admit(queue, request, 0)
    queue.expire(10)
    assert (len(queue), queue.rows, list(queue)) == (1, 3, [request])
    assert not admit(queue, make(), 11)
    queue.take([request])
    assert (len(queue), queue.rows) == (0, 0)
    assert queue.expire(10**9) == []


def test_who_left_does_not_expire() -> None:
    """A request that was taken or cancelled is not reported when its time comes."""
    queue = RequestQueue(QueuePolicy(default_timeout_ns=10))
    taken, kept = make(), make()
    admit(queue, taken, 0)
    admit(queue, kept, 5)
    queue.take([taken])
    assert queue.next_expiry_ns() == 15
    assert queue.expire(20) == [kept]


def test_who_left_is_forgotten() -> None:
    """Requests that left long before their deadline are not held: memory follows the queue's length."""
    queue = RequestQueue(QueuePolicy())
    for number in range(5000):
        request = make(deadline_ns=10**12 + number)
        admit(queue, request, number)
        queue.remove(request)
    assert len(queue._expiries) <= 130


def test_an_empty_queue_keeps_nobody() -> None:
    """Requests hold what was received: once the last has left, no time of expiry holds one."""
    queue = RequestQueue(QueuePolicy())
    gone = [make(deadline_ns=deadline_ns) for deadline_ns in (5, 10)]
    for request in gone:
        admit(queue, request, 0)
    queue.take(gone)
    assert queue._expiries == []
    assert queue.expire(20) == []


def test_lanes_disappear_with_their_last_request() -> None:
    """A signature costs nothing once nobody of it waits."""
    queue = RequestQueue(QueuePolicy())
    for columns in range(1, 50):
        request = make(columns=columns)
        admit(queue, request, 0)
        queue.remove(request)
    assert queue.levels[0].waiting.lanes == {}


def test_a_signature_that_cannot_be_hashed_changes_nothing() -> None:
    """A failed admission leaves the queue as it was."""
    queue = RequestQueue(QueuePolicy())
    request = make()
    request.signature = []
    with pytest.raises(TypeError):
        admit(queue, request, 0)
    assert (len(queue), queue.rows, request in queue) == (0, 0, False)


def test_clear_returns_everything_once() -> None:
    """Clearing empties both lines and forgets every expiry."""
    queue = RequestQueue(QueuePolicy(default_timeout_ns=10, timeout_action="DELAY"))
    first, second = make(), make()
    admit(queue, first, 0)
    admit(queue, second, 5)
    queue.expire(10)
    assert sorted(map(id, queue.clear())) == sorted(map(id, [first, second]))
    assert (len(queue), queue.rows, queue.next_expiry_ns()) == (0, 0, NO_DEADLINE)


@pytest.mark.parametrize(
    ("levels", "own", "expected"),
    [(0, 1, 0), (3, None, 2), (3, 0, 2), (3, 1, 1), (3, 3, 3), (3, 4, 2), (3, True, 2), (3, "1", 2)],
)
def test_level(levels: int, own: Parameter | None, expected: int) -> None:
    """Without levels there is one; a priority that names no level means the default one, as in Triton."""
    assert Priorities(levels, 2).level(make({} if own is None else {"priority": own})) == expected


def test_each_level_has_its_own_policy_and_its_own_places() -> None:
    """priority_queue_policy replaces the default policy for its level alone; a full level closes no other."""
    queue = RequestQueue(QueuePolicy(max_queue_size=1), Priorities(2, 2, {1: QueuePolicy(2, 7)}))
    urgent = [make({"priority": 1}) for _ in range(3)]
    assert [admit(queue, request, 0) for request in urgent] == [True, True, False]
    assert [admit(queue, make(), 0) for _ in range(2)] == [True, False]
    assert queue.expire(7) == urgent[:2]


@pytest.mark.parametrize(
    ("client", "timeout", "default", "slo", "expected"),
    [
        (NO_DEADLINE, 0, 0, 0, NO_DEADLINE),
        (900, 0, 0, 0, 900),
        (9_000, 1, 5_000, 0, 2_000),
        (9_000, 0, 5_000, 0, 6_000),
        (9_000, 0, 0, 400, 400),
        (300, 1, 5_000, 400, 300),
    ],
)
def test_the_deadline_is_the_earliest_of_all(client: int, timeout: int, default: int, slo: int, expected: int) -> None:
    """The caller's, both timeouts (from admission), and the model's objective (from receipt)."""
    queue = RequestQueue(QueuePolicy(0, default, "REJECT", True), slo_ns=slo)
    request = make({"timeout": timeout}, deadline_ns=client)
    assert admit(queue, request, 1_000)
    assert request.deadline_ns == expected


def test_under_delay_a_timeout_is_no_deadline() -> None:
    """The queue timeout moves the request behind; only its real deadline ends it."""
    queue = RequestQueue(QueuePolicy(default_timeout_ns=10, timeout_action="DELAY"), slo_ns=100)
    request = make()
    admit(queue, request, 0)
    assert (request.deadline_ns, queue.expire(10), queue.expire(100)) == (100, [], [request])


def test_who_has_no_deadline_is_not_starved_by_those_who_have() -> None:
    """It stands as if it had a second from its arrival: deadlines before that go first, later ones behind it."""
    queue = RequestQueue(QueuePolicy())
    patient, later, sooner = make(), make(deadline_ns=PATIENCE_NS + 2), make(deadline_ns=PATIENCE_NS)
    admit(queue, patient, 1)
    admit(queue, later, 2)
    admit(queue, sooner, 3)

    order = [entry[2] for entry in queue.levels[0].waiting.lane(patient.signature)]

    assert order == [sooner, patient, later]
    assert patient.deadline_ns == NO_DEADLINE
    assert queue.expire(PATIENCE_NS * 100) == [sooner, later]


def test_a_clear_keeps_nothing_of_those_who_waited() -> None:
    """Neither their places nor their deadlines: a request holds its tensors."""
    queue, caller = RequestQueue(QueuePolicy()), Caller(ManualClock(0))
    requests = [caller.request([1], deadline_ns=500 + number) for number in range(3)]
    for request in requests:
        admit(queue, request, 0)
    assert queue.clear() == requests
    assert not queue._expiries
    assert (len(queue), queue.rows, queue.next_expiry_ns()) == (0, 0, NO_DEADLINE)
