"""What happened to the texts of one model version, beside what happens to all requests."""

from __future__ import annotations

from enum import StrEnum

from server.scheduler.histogram import DURATION_BOUNDS_NS, Histogram


class Finish(StrEnum):
    """How a text ended."""

    STOP = "stop"
    LENGTH = "length"
    CANCELLED = "cancelled"
    EXPIRED = "expired"
    FAILED = "failed"
    """Also because the server ended."""


class WritingStatistics:
    """Only the event loop writes."""

    def __init__(self) -> None:
        self.first_token = Histogram(DURATION_BOUNDS_NS)
        """Nanoseconds from a request's receipt to its first token."""
        self.between_tokens = Histogram(DURATION_BOUNDS_NS)
        """Nanoseconds from one token of a text to its next."""
        self.prompt_tokens = 0
        """Taken in."""
        self.tokens = 0
        """Written."""
        self.running = 0
        self.held = 0
        """Of those that run: which wait for their readers."""
        self.reserved_tokens = 0
        """Of those that run: their prompts and all that they may write."""
        self.kv_tokens = 0
        """As many may be reserved."""
        self.finished: dict[Finish, int] = dict.fromkeys(Finish, 0)
