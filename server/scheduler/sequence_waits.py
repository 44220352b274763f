"""Why requests of sequences that asked to be explained wait. Requests that did not ask are not looked at."""

from __future__ import annotations

from collections.abc import Container

from server.explain import WaitReason
from server.scheduler.slots import Slots
from server.scheduler.waits import Waits
from server.types import InferRequest


class SequenceWaits(Waits):
    """As `Waits`, of requests that may only run once those before them in their sequence have."""

    def look_at(self, slots: Slots, idle: Container[int], now_ns: int, *, others: bool) -> None:
        """All that could begin has begun. `idle`: the lanes whose instances run nothing; `others`: as in `look`."""
        self.forget_settled()
        for request, wait in self._watched.items():
            wait.turn(_reason(slots, request, idle, others), now_ns)


def _reason(slots: Slots, request: InferRequest, idle: Container[int], others: bool) -> WaitReason:
    chain = slots.chain(request)
    if chain is None or chain.lane < 0 or chain.running is not None or chain.waiting[0] is not request:
        return WaitReason.SEQUENCE
    if chain.lane not in idle:
        return WaitReason.INSTANCE_BUSY
    return WaitReason.OTHER_MODELS if others else WaitReason.WINDOW
