"""The requests of one model version that wait for a forward pass, and the policy they wait under.

For each priority level two lines: `waiting`, and behind it `delayed`, where a request goes whose queue timeout
is over when the policy says DELAY. A line is held by signature, because only requests of equal signature may
share a batch; within a signature the earliest deadline is first, and of equal ones who came first. Who comes
with the latest deadline, as nearly everybody does, is appended; another one is placed by bisection. Times of
expiry stand in a heap that is cleaned of those who left, so that it stays within twice the number of waiting
requests.
"""

from __future__ import annotations

import heapq
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import count
from typing import Literal

from server.types import NO_DEADLINE, InferRequest

TimeoutAction = Literal["REJECT", "DELAY"]

_HEAP_SLACK = 64
"""Entries of the expiry heap below which cleaning it is not worth the walk."""

Entry = tuple[int, int, InferRequest]
"""When it is due (its deadline, or its patience), number of arrival, request."""
_NO_LANE: list[Entry] = []

PATIENCE_NS = 1_000_000_000
"""Where a request without a deadline stands among those that have one: as if it had one second from its arrival."""


@dataclass(frozen=True, slots=True)
class QueuePolicy:
    """How long the queue may become, and how long a request may wait in it. Source: ModelQueuePolicy."""

    max_queue_size: int = 0
    """Requests that may wait; 0 is no limit."""
    default_timeout_ns: int = 0
    """The queue timeout of every request; 0 is none."""
    timeout_action: TimeoutAction = "REJECT"
    allow_timeout_override: bool = False
    """Whether a request's own timeout may lower the default one. It never raises it."""

    def timeout_ns(self, request: InferRequest) -> int:
        """The queue timeout in effect, 0 for none.

        The request's parameter ``timeout`` (microseconds) also counts where the model has no default:
        there is nothing to override then. Anything but a positive integer says nothing.
        """
        own_us = request.parameters.get("timeout")
        own_ns = own_us * 1000 if type(own_us) is int and own_us > 0 else 0
        if not self.default_timeout_ns:
            return own_ns
        if own_ns and self.allow_timeout_override:
            return min(own_ns, self.default_timeout_ns)
        return self.default_timeout_ns


@dataclass(frozen=True, slots=True)
class Priorities:
    """Source: ModelDynamicBatching.priority_levels, default_priority_level, priority_queue_policy."""

    levels: int = 0
    """1 is the most urgent level; 0: there are none, and what a request says of its priority is ignored."""
    default_level: int = 0
    policies: Mapping[int, QueuePolicy] = field(default_factory=dict)
    """By level; a level that is not here has the default policy."""

    def level(self, request: InferRequest) -> int:
        """The request's level, 0 where there are none. As in Triton, one that does not exist is the default one."""
        if not self.levels:
            return 0
        own = request.parameters.get("priority") if request.parameters else None
        return own if type(own) is int and 1 <= own <= self.levels else self.default_level


class Line:
    """Requests by signature, each signature's earliest deadline first."""

    __slots__ = ("lanes", "rows", "size")

    def __init__(self) -> None:
        self.lanes: dict[object, list[Entry]] = {}
        self.rows = 0
        """Of all requests in the line together."""
        self.size = 0
        """Requests. A plain number, because it is asked for at every admission."""

    def __iter__(self) -> Iterator[InferRequest]:
        for lane in self.lanes.values():
            for entry in lane:
                yield entry[2]

    def add(self, entry: Entry) -> Line:
        """Returns the line that it is to be removed from."""
        request = entry[2]
        # The lane comes first: it is what fails when a signature can't be hashed, and then nothing has changed.
        lane = self.lanes.get(request.signature)
        if lane is None:
            self.lanes[request.signature] = [entry]
        elif entry > lane[-1]:
            lane.append(entry)
        else:
            lane.insert(bisect_left(lane, entry), entry)
        self.rows += request.rows
        self.size += 1
        return self

    def remove(self, entry: Entry) -> None:
        request = entry[2]
        lane = self.lanes[request.signature]
        del lane[0 if lane[0] is entry else bisect_left(lane, entry)]
        if not lane:
            del self.lanes[request.signature]
        self.rows -= request.rows
        self.size -= 1

    def lane(self, signature: object) -> Iterable[Entry]:
        """The requests of one signature, most urgent first; none if there is none."""
        return self.lanes.get(signature, _NO_LANE)

    def signatures(self) -> list[object]:
        """Those that wait here, the one with the most urgent request first."""
        if len(self.lanes) < 2:
            return list(self.lanes)
        return sorted(self.lanes, key=lambda signature: self.lanes[signature][0][:2])

    def rows_before(self, request: InferRequest) -> Iterable[tuple[object, int]]:
        """Rows that go before a request that comes now, by signature."""
        return [(signature, rows_until(self, lane, request.deadline_ns)) for signature, lane in self.lanes.items()]

    def rows_by_signature(self) -> Iterable[tuple[object, int]]:
        """All rows; of several signatures each is taken to have the line's mean rows a request."""
        return [(signature, -(-len(lane) * self.rows // self.size)) for signature, lane in self.lanes.items()]

    def held(self, request: InferRequest) -> int:
        """How many requests wait here of those that share their places with this one."""
        return self.size

    def charge(self, rows: int) -> None:
        """So many rows from here are served now. They are removed behind this."""


def rows_until(line: Line, lane: Sequence[Entry], deadline_ns: int) -> int:
    """Rows of a lane that go before a request that comes now with this deadline.

    Requests are counted, and taken to have the line's mean rows: every request that comes asks this, and an
    exact answer would take a walk.
    """
    place = len(lane)
    if lane[-1][0] > deadline_ns:
        place = bisect_right(lane, deadline_ns, key=lambda entry: entry[0])
    return -(-place * line.rows // line.size)


class Level:
    """One priority level: its policy and its two lines."""

    __slots__ = ("delayed", "policy", "waiting")

    def __init__(self, policy: QueuePolicy, make_line: Callable[[], Line]) -> None:
        self.policy = policy
        self.waiting = make_line()
        self.delayed = make_line()


class RequestQueue:
    """All waiting requests of one model version. It has no clock: whoever asks says what time it is."""

    __slots__ = ("_expiries", "_ticket", "fair", "levels", "lines", "places", "priorities", "slo_ns")

    def __init__(
        self,
        policy: QueuePolicy,
        priorities: Priorities | None = None,
        slo_ns: int = 0,
        make_line: Callable[[], Line] = Line,
    ) -> None:
        """`slo_ns`: the model's latency objective, from a request's receipt; 0 is none.

        `make_line`: lines in another order than that of deadlines alone, whose places are shared.
        """
        self.fair = make_line is not Line
        self.priorities = priorities or Priorities()
        self.slo_ns = slo_ns
        policies = self.priorities.policies
        self.levels = [
            Level(policies.get(number + 1, policy), make_line) for number in range(max(1, self.priorities.levels))
        ]
        self.lines = [line for level in self.levels for line in (level.waiting, level.delayed)]
        """In the order in which they are served."""
        self.places: dict[InferRequest, tuple[Line, Entry]] = {}
        """All who wait, and where. Only to be looked at from outside: whether anybody waits is asked on every tick."""
        self._expiries: list[Entry] = []
        self._ticket = count()

    def __len__(self) -> int:
        return len(self.places)

    def __iter__(self) -> Iterator[InferRequest]:
        return iter(self.places)

    def __contains__(self, request: InferRequest) -> bool:
        return request in self.places

    @property
    def rows(self) -> int:
        return sum([line.rows for line in self.lines])

    @property
    def plain(self) -> bool:
        """One level without a queue timeout: nothing but its deadline tells when a request goes."""
        return not self.priorities.levels and not self.levels[0].policy.default_timeout_ns

    def rows_before(self, request: InferRequest) -> int:
        """Rows that go before a request that comes now."""
        level, rows = self.level(request), 0
        for above in self.levels:
            if above is level:
                break
            rows += above.waiting.rows + above.delayed.rows
        return rows + sum([rows for _, rows in level.waiting.rows_before(request)])

    def level(self, request: InferRequest) -> Level:
        return self.levels[max(0, self.priorities.level(request) - 1)] if self.priorities.levels else self.levels[0]

    def set_deadline(self, request: InferRequest, now_ns: int) -> int:
        """Make the request's deadline the earliest of all that it has; returns when it only times out.

        That is NO_DEADLINE unless its level's policy says DELAY: then the queue timeout delays, while the
        client's deadline and the model's objective always reject.
        """
        if self.slo_ns:
            request.deadline_ns = min(request.deadline_ns, request.received_ns + self.slo_ns)
        policy = self.level(request).policy
        timeout_ns = policy.timeout_ns(request) if policy.default_timeout_ns or request.parameters else 0
        if not timeout_ns:
            return NO_DEADLINE
        if policy.timeout_action == "DELAY":
            return now_ns + timeout_ns
        request.deadline_ns = min(request.deadline_ns, now_ns + timeout_ns)
        return NO_DEADLINE

    def is_full(self, request: InferRequest) -> bool:
        """Whether the request's level takes nobody more, or none of its tenant's.

        A tenant may hold as many places as are free. So there are free ones while somebody floods the line: of n who
        do, each comes to hold an n + 1st part, and such a part stays free for those who come.
        """
        level = self.level(request)
        limit, size = level.policy.max_queue_size, level.waiting.size + level.delayed.size
        if not limit or not self.fair:
            return 0 < limit <= size
        return self.held(request) >= limit - size

    def held(self, request: InferRequest) -> int:
        """Places of the request's level that its tenant holds; all that are taken where tenants do not matter."""
        level = self.level(request)
        return level.waiting.held(request) + level.delayed.held(request)

    def add(self, request: InferRequest, now_ns: int, delays_ns: int) -> None:
        """Put a request in its line; at `delays_ns` it moves behind."""
        line = self.level(request).waiting
        # Who names no deadline is taken to be this patient: behind everybody who has one it might wait for ever.
        due_ns = request.deadline_ns if request.deadline_ns < NO_DEADLINE else now_ns + PATIENCE_NS
        entry = (due_ns, next(self._ticket), request)
        self.places[request] = line.add(entry), entry
        request.enqueued_ns = now_ns
        expiry_ns = min(request.deadline_ns, delays_ns)
        if expiry_ns < NO_DEADLINE:
            self._watch((expiry_ns, entry[1], request))

    def remove(self, request: InferRequest) -> bool:
        """Give the request's place free. False if it does not wait here."""
        place = self.places.pop(request, None)
        if place is None:
            return False
        place[0].remove(place[1])
        if not self.places:
            self._expiries.clear()
        return True

    def take(self, requests: Sequence[InferRequest]) -> None:
        """Remove the requests of a batch that is dispatched; all of them wait here."""
        if self.fair:
            for request in requests:
                self.places[request][0].charge(request.rows)
        for request in requests:
            self.remove(request)

    def clear(self) -> list[InferRequest]:
        """Remove and return everything."""
        everything = list(self)
        for request in everything:
            self.remove(request)
        self._expiries.clear()
        return everything

    def expire(self, now_ns: int) -> list[InferRequest]:
        """Remove and return the requests whose time is over; under DELAY move those behind that only timed out.

        A request is over at the very nanosecond of its expiry. Deadlines always reject.
        """
        expired: list[InferRequest] = []
        heap = self._expiries
        while heap and heap[0][0] <= now_ns:
            _, ticket, request = heapq.heappop(heap)
            place = self.places.get(request)
            if place is None:
                continue
            if request.deadline_ns <= now_ns:
                self.remove(request)
                expired.append(request)
            else:
                self._delay(request, *place)
                if request.deadline_ns < NO_DEADLINE:
                    self._watch((request.deadline_ns, ticket, request))
        return expired

    def _delay(self, request: InferRequest, line: Line, entry: Entry) -> None:
        line.remove(entry)
        delayed = self.level(request).delayed
        # Behind all that were delayed before it: who timed out waits in the order of the timeouts.
        entry = (request.deadline_ns, next(self._ticket), request)
        self.places[request] = delayed.add(entry), entry

    def next_expiry_ns(self) -> int:
        """When `expire` next has something to do; NO_DEADLINE for never."""
        heap = self._expiries
        while heap and heap[0][2] not in self.places:
            heapq.heappop(heap)
        return heap[0][0] if heap else NO_DEADLINE

    def _watch(self, expiry: Entry) -> None:
        if len(self._expiries) > 2 * len(self) + _HEAP_SLACK:
            self._expiries = [entry for entry in self._expiries if entry[2] in self.places]
            heapq.heapify(self._expiries)
        heapq.heappush(self._expiries, expiry)
