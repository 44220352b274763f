"""The requests of one model version that wait for a forward pass, and the policy they wait under.

Two lines, each first in, first out: `waiting`, and behind it `delayed`, where a request goes whose queue
timeout is over when the policy says DELAY. Within a line requests are also held by signature, because only
requests of equal signature may share a batch. Admitting, removing and finding the oldest take constant
time; times of expiry stand in a heap that is cleaned of those who left, so that it stays within twice the
number of waiting requests.
"""

from __future__ import annotations

import heapq
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import count
from typing import Literal

from server.types import NO_DEADLINE, InferRequest

TimeoutAction = Literal["REJECT", "DELAY"]

_HEAP_SLACK = 64
"""Entries of the expiry heap below which cleaning it is not worth the walk."""

_Lane = OrderedDict[InferRequest, None]
_NO_LANE: _Lane = OrderedDict()


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


class Line:
    """Requests in order of arrival, as a whole and by signature."""

    __slots__ = ("_lanes", "_order", "rows", "size")

    def __init__(self) -> None:
        self._order: _Lane = OrderedDict()
        self._lanes: dict[object, _Lane] = {}
        self.rows = 0
        """Of all requests in the line together."""
        self.size = 0
        """Requests. A plain number, because it is asked for at every admission."""

    def __iter__(self) -> Iterator[InferRequest]:
        return iter(self._order)

    def __contains__(self, request: InferRequest) -> bool:
        return request in self._order

    def add(self, request: InferRequest) -> None:
        # The lane comes first: it is what fails when a signature can't be hashed, and then nothing has changed.
        lane = self._lanes.get(request.signature)
        if lane is None:
            lane = self._lanes[request.signature] = OrderedDict()
        lane[request] = None
        self._order[request] = None
        self.rows += request.rows
        self.size += 1

    def remove(self, request: InferRequest) -> bool:
        """False if the request is not in this line."""
        if request not in self._order:
            return False
        del self._order[request]
        lane = self._lanes[request.signature]
        del lane[request]
        if not lane:
            del self._lanes[request.signature]
        self.rows -= request.rows
        self.size -= 1
        return True

    def oldest(self) -> InferRequest | None:
        return next(iter(self._order), None)

    def lane(self, signature: object) -> Iterable[InferRequest]:
        """The requests of one signature, oldest first; none if there is none."""
        return self._lanes.get(signature, _NO_LANE)

    def signatures(self) -> Iterable[object]:
        return self._lanes


class RequestQueue:
    """All waiting requests of one model version. It has no clock: whoever asks says what time it is."""

    __slots__ = ("_expiries", "_ticket", "delayed", "policy", "waiting")

    def __init__(self, policy: QueuePolicy) -> None:
        self.policy = policy
        self.waiting = Line()
        self.delayed = Line()
        self._expiries: list[tuple[int, int, InferRequest]] = []
        self._ticket = count()

    def __len__(self) -> int:
        return self.waiting.size + self.delayed.size

    def __iter__(self) -> Iterator[InferRequest]:
        yield from self.waiting
        yield from self.delayed

    def __contains__(self, request: InferRequest) -> bool:
        return request in self.waiting or request in self.delayed

    @property
    def rows(self) -> int:
        return self.waiting.rows + self.delayed.rows

    def admit(self, request: InferRequest, now_ns: int) -> bool:
        """Put the request at the end of the queue. False, and nothing done, if the queue is full."""
        policy = self.policy
        if 0 < policy.max_queue_size <= self.waiting.size + self.delayed.size:
            return False
        self.waiting.add(request)
        request.enqueued_ns = now_ns
        expiry_ns = request.deadline_ns
        timeout_ns = policy.timeout_ns(request) if policy.default_timeout_ns or request.parameters else 0
        if timeout_ns:
            expiry_ns = min(now_ns + timeout_ns, expiry_ns)
        if expiry_ns < NO_DEADLINE:
            self._watch(request, expiry_ns)
        return True

    def remove(self, request: InferRequest) -> bool:
        """Give the request's place free. False if it does not wait here."""
        return self.waiting.remove(request) or self.delayed.remove(request)

    def take(self, requests: Sequence[InferRequest]) -> None:
        """Remove the requests of a batch that is dispatched; all of them wait here."""
        for request in requests:
            self.remove(request)

    def clear(self) -> list[InferRequest]:
        """Remove and return everything."""
        everything = list(self)
        self.waiting = Line()
        self.delayed = Line()
        self._expiries.clear()
        return everything

    def expire(self, now_ns: int) -> list[InferRequest]:
        """Remove and return the requests whose time is over; under DELAY move those behind that only timed out.

        A request is over at the very nanosecond of its expiry. The client's deadline always rejects.
        """
        expired: list[InferRequest] = []
        heap = self._expiries
        while heap and heap[0][0] <= now_ns:
            request = heapq.heappop(heap)[2]
            if request not in self:
                continue
            if request.deadline_ns <= now_ns or self.policy.timeout_action == "REJECT":
                self.remove(request)
                expired.append(request)
            else:
                self.waiting.remove(request)
                self.delayed.add(request)
                if request.deadline_ns < NO_DEADLINE:
                    self._watch(request, request.deadline_ns)
        return expired

    def next_expiry_ns(self) -> int:
        """When `expire` next has something to do; NO_DEADLINE for never."""
        heap = self._expiries
        while heap and heap[0][2] not in self:
            heapq.heappop(heap)
        return heap[0][0] if heap else NO_DEADLINE

    def _watch(self, request: InferRequest, expiry_ns: int) -> None:
        if len(self._expiries) > 2 * len(self) + _HEAP_SLACK:
            self._expiries = [entry for entry in self._expiries if entry[2] in self]
            heapq.heapify(self._expiries)
        heapq.heappush(self._expiries, (expiry_ns, next(self._ticket), request))
