"""How much one caller may ask: requests in a second, and requests at a time."""

from __future__ import annotations

from math import ceil

from server.errors import RateLimited


class Bucket:
    """Tokens that come back with time: `rate` a second, at most `burst` of them; a request takes one."""

    __slots__ = ("_at_ns", "_burst", "_rate", "_tokens")

    def __init__(self, rate: float, burst: float) -> None:
        self._rate = rate
        self._burst = burst
        self._tokens = burst
        self._at_ns = 0

    def take(self, name: str, now_ns: int) -> None:
        """Raises RateLimited, with the time until there is one."""
        # Requests of one read of a socket may come in any order, but none of them is from the future.
        passed_ns = max(0, now_ns - self._at_ns)
        self._at_ns += passed_ns
        self._tokens = min(self._burst, self._tokens + passed_ns * self._rate / 1e9)
        if self._tokens < 1:
            raise RateLimited(name, f"{self._rate:g} requests a second", ceil((1 - self._tokens) / self._rate * 1000))
        self._tokens -= 1


class Limits:
    """What one name has used; it outlives a change of the file in which its key stands."""

    __slots__ = ("bucket", "in_flight", "said")

    def __init__(self) -> None:
        self.bucket: Bucket | None = None
        self.in_flight = 0
        self.said = (0.0, 0.0)

    def set_rate(self, rate: float, burst: float) -> None:
        """So many requests a second, from the next one on; 0: as many as they like. A bucket that fits is kept."""
        if self.said != (rate, burst):
            self.said = (rate, burst)
            self.bucket = Bucket(rate, burst) if rate else None
