"""Of each sequence one request of an ensemble at a time: two of them could change places between two steps."""

from __future__ import annotations

from collections import deque

from server.sequences import SequenceId, sequence_id
from server.types import InferRequest


class Turns:
    """The sequences that have a request under way, and who waits behind it."""

    __slots__ = ("_lines",)

    def __init__(self) -> None:
        self._lines: dict[SequenceId, deque[InferRequest]] = {}
        """The first of each is under way."""

    def enter(self, request: InferRequest, most: int) -> int:
        """How many of its sequence are before it; at 0 it may begin. Of no sequence, it always may.

        Over `most` it must be settled as refused: it has no turn then, but for one to be told as missing.
        """
        name = _sequence(request)
        if not name:
            return 0
        line = self._lines.setdefault(name, deque())
        before = len(line)
        if before <= most or not line[-1].settled:
            line.append(request)
        return before

    def is_first(self, request: InferRequest) -> bool:
        """It is of a sequence, and its turn has come."""
        line = self._lines.get(_sequence(request))
        return line is not None and line[0] is request

    def leave(self, request: InferRequest) -> list[InferRequest]:
        """A request that was under way is over: those behind it whose turn it is now.

        All but the last were settled while they waited; the last may be so too. One that waits itself stays, so that
        its turn comes, and it is known to be missing where its sequence is kept.
        """
        name = _sequence(request)
        line = self._lines.get(name)
        if line is None or line[0] is not request:
            return []
        line.popleft()
        due = []
        while line:
            due.append(line[0])
            if not line[0].settled:
                return due
            line.popleft()
        del self._lines[name]
        return due

    def waiting(self) -> list[InferRequest]:
        """Everybody whose turn it is not."""
        return [request for line in self._lines.values() for request in list(line)[1:]]


def _sequence(request: InferRequest) -> SequenceId:
    return sequence_id(request.parameters.get("sequence_id"))
