"""What happened to the sequences of one model version: plain counters that Prometheus reads."""

from __future__ import annotations

from server.scheduler.slots import Ending, Slots


class SequenceStatistics:
    """A version that is replaced and its successor count in the same numbers, so each adds what changed."""

    def __init__(self) -> None:
        self.active = 0
        """Sequences that hold a slot now."""
        self.backlog = 0
        """Sequences that wait for one now."""
        self.started = 0
        """Sequences that were given a slot."""
        self.ended = dict.fromkeys(Ending, 0)
        """Sequences that were over before their end was answered, by cause."""


class Tally:
    """Of one batcher: what it has told its statistics."""

    def __init__(self, statistics: SequenceStatistics) -> None:
        self._statistics = statistics
        self._told = (0, 0, 0)
        self._ended = dict.fromkeys(Ending, 0)

    def tell(self, slots: Slots) -> None:
        """Tell what has changed since the last time."""
        now = (slots.active, len(slots.backlog), slots.started)
        if now != self._told:
            active, backlog, started = (new - old for new, old in zip(now, self._told, strict=True))
            self._statistics.active += active
            self._statistics.backlog += backlog
            self._statistics.started += started
            self._told = now
        for cause, count in slots.ended.items():
            if count != self._ended[cause]:
                self._statistics.ended[cause] += count - self._ended[cause]
                self._ended[cause] = count
