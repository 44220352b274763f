"""Who is held without a pass: who has just arrived, who waits in the queue, who is to be run once more. No clock."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

from server.scheduler.queue import RequestQueue
from server.scheduler.statistics import ModelStatistics
from server.types import InferRequest


class Backlog:
    """Of one model version."""

    __slots__ = ("_counted", "_statistics", "arrived", "at_once", "queue", "reruns")

    def __init__(self, queue: RequestQueue, statistics: ModelStatistics) -> None:
        self.queue = queue
        self.reruns: deque[InferRequest] = deque()
        """Neighbours of a pass that failed, each to be run once more, alone, before anything else."""
        self.arrived: list[InferRequest] = []
        """Since the last tick; not looked at yet."""
        self.at_once = False
        """All of them came with one read of a socket."""
        self._statistics = statistics
        self._counted = 0

    def __len__(self) -> int:
        """Requests that were admitted and wait for a pass."""
        return len(self.queue.places) + len(self.reruns)

    def __bool__(self) -> bool:
        return bool(self.queue.places or self.reruns)

    def arrive(self, requests: Sequence[InferRequest]) -> None:
        """They came together."""
        self.at_once = not self.arrived
        self.arrived += requests

    def oldest_ns(self) -> int:
        """When the first of those that wait was admitted. There is one."""
        waiting: list[InferRequest] = [*self.queue, *self.reruns]
        return min([request.enqueued_ns for request in waiting])

    def next_expiry_ns(self) -> int:
        """When `expire` next has something to do; NO_DEADLINE for never."""
        if not self.reruns:
            return self.queue.next_expiry_ns()
        return min(self.queue.next_expiry_ns(), *(request.deadline_ns for request in self.reruns))

    def expire(self, now_ns: int) -> list[InferRequest]:
        """Remove and return those whose deadline is over."""
        expired = self.queue.expire(now_ns)
        if self.reruns:
            expired += [request for request in self.reruns if request.deadline_ns <= now_ns]
            self.reruns = deque(request for request in self.reruns if request.deadline_ns > now_ns)
        return expired

    def take(self, requests: Sequence[InferRequest]) -> None:
        """Remove those whose pass begins: the first rerun, where there is one, else a batch of the queue."""
        if self.reruns:
            self.reruns.popleft()
        else:
            self.queue.take(requests)

    def remove(self, request: InferRequest) -> None:
        """It waits no more, if it did. One that has just arrived stays, and must be settled."""
        self.queue.remove(request)
        if request in self.reruns:
            self.reruns.remove(request)

    def clear(self) -> list[InferRequest]:
        """Remove and return everybody."""
        everybody = [*self.reruns, *self.queue.clear(), *self.arrived]
        self.reruns.clear()
        self.arrived = []
        return everybody

    def count(self) -> int:
        """How many wait for a pass; tells the statistics too what changed: a predecessor may still drain into them."""
        held = len(self)
        if held != self._counted:
            self._statistics.pending += held - self._counted
            self._counted = held
        return held
