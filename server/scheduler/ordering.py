"""preserve_ordering: answers leave in the order in which their requests were admitted."""

from __future__ import annotations

from collections import deque
from typing import Generic, TypeVar

from server.types import InferRequest

T = TypeVar("T")


class InOrder(Generic[T]):
    """Holds an answer until every request admitted before it has been settled.

    Only answers wait: an error says that there will be none, and is told at once.
    Source: ModelDynamicBatching.preserve_ordering.
    """

    __slots__ = ("_admitted", "_ready")

    def __init__(self) -> None:
        self._admitted: deque[InferRequest] = deque()
        self._ready: dict[InferRequest, T] = {}

    def admit(self, request: InferRequest) -> None:
        self._admitted.append(request)

    def ready(self, request: InferRequest, answer: T) -> None:
        self._ready[request] = answer

    def release(self) -> list[tuple[InferRequest, T]]:
        """The answers that may leave now, in order. Ask it whenever somebody was settled."""
        released: list[tuple[InferRequest, T]] = []
        admitted = self._admitted
        while admitted and (admitted[0].settled or admitted[0] in self._ready):
            request = admitted.popleft()
            answer = self._ready.pop(request, None)
            if answer is not None and not request.settled:
                released.append((request, answer))
        return released
