"""Why requests that asked to be explained wait in the queue. Requests that did not ask are not looked at."""

from __future__ import annotations

from collections.abc import Sequence

from server.explain import WaitReason
from server.types import InferRequest


class _Wait:
    __slots__ = ("overtaken", "passed_over", "reason", "since_ns", "spent_ns")

    def __init__(self) -> None:
        self.overtaken: WaitReason | None = None
        """By whom, if it was."""
        self.passed_over = False
        self.reason = WaitReason.NONE
        self.since_ns = 0
        self.spent_ns: dict[WaitReason, int] = {}

    def turn(self, reason: WaitReason, now_ns: int) -> None:
        """From now on it waits for `reason`."""
        if self.reason is not WaitReason.NONE:
            self.spent_ns[self.reason] = self.spent_ns.get(self.reason, 0) + now_ns - self.since_ns
        self.reason, self.since_ns = reason, now_ns

    def longest(self) -> WaitReason:
        return max(self.spent_ns, key=self.spent_ns.__getitem__, default=WaitReason.NONE)


class Waits:
    """The waiting requests that asked, each with the time that it spent on each reason."""

    def __init__(self, *, by_tenant: bool = False) -> None:
        """`by_tenant`: tenants share the queue."""
        self._by_tenant = by_tenant
        self._watched: dict[InferRequest, _Wait] = {}

    def __bool__(self) -> bool:
        return bool(self._watched)

    def watch(self, request: InferRequest) -> None:
        """The request was admitted and asks."""
        self._watched[request] = _Wait()

    def begin(self, requests: Sequence[InferRequest], now_ns: int) -> None:
        """A pass of `requests` begins: tell those of them that asked why they waited; the others stay behind."""
        for request in requests:
            wait = self._watched.pop(request, None)
            if wait is not None and request.explanation is not None:
                wait.turn(WaitReason.NONE, now_ns)
                request.explanation.waited = wait.longest()
        for request, wait in self._watched.items():
            if request.signature != requests[0].signature:
                wait.passed_over = True
            else:
                wait.overtaken = wait.overtaken or self._overtaker(request, requests)

    def _overtaker(self, request: InferRequest, batch: Sequence[InferRequest]) -> WaitReason | None:
        later = [other for other in batch if other.enqueued_ns > request.enqueued_ns]
        if not later:
            return None
        if self._by_tenant and all(other.tenant != request.tenant for other in later):
            return WaitReason.OTHER_TENANTS
        return WaitReason.PRIORITY

    def look(self, now_ns: int, *, busy: bool, others: bool = False, signatures: int = 1) -> None:
        """All that could begin has begun: who is left waits for an instance if all are `busy`, for the passes of
        other models where those have the cores (`others`), else for company.

        `signatures`: how many kinds of requests that can't share a batch wait.
        """
        self.forget_settled()
        for wait in self._watched.values():
            if others:
                wait.turn(WaitReason.OTHER_MODELS, now_ns)
            elif not busy:
                wait.turn(WaitReason.BUCKET if signatures > 1 else WaitReason.WINDOW, now_ns)
            elif wait.overtaken:
                wait.turn(wait.overtaken, now_ns)
            elif wait.passed_over:
                wait.turn(WaitReason.BUCKET, now_ns)
            else:
                wait.turn(WaitReason.INSTANCE_BUSY, now_ns)

    def forget_settled(self) -> None:
        for request in [request for request in self._watched if request.settled]:
            del self._watched[request]
