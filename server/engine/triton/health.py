"""Whether a server may be sent requests, by its answers to probes; and when to probe it next. No clock, no I/O."""

from __future__ import annotations

_FIRST_BACKOFF_S = 0.25
_SILENCES = 2
"""Probes in a row without an answer in time after which a server is ejected: one alone may be a full core."""


class Health:
    """Of one server; ejected until a first probe succeeds."""

    __slots__ = ("_backoff_s", "_interval_s", "_longest_s", "_silences", "ejections", "up")

    def __init__(self, interval_s: float, longest_backoff_s: float) -> None:
        """`interval_s`: between probes of one that is well. `longest_backoff_s`: between those of one that is not."""
        self._interval_s = interval_s
        self._longest_s = longest_backoff_s
        self._backoff_s = _FIRST_BACKOFF_S
        self._silences = 0
        self.up = False
        self.ejections = 0

    def passed(self) -> None:
        self.up = True
        self._silences = 0
        self._backoff_s = _FIRST_BACKOFF_S

    def failed(self) -> None:
        """It can't be reached, or says itself that it does not serve."""
        if self.up:
            self.up = False
            self.ejections += 1
            self._backoff_s = _FIRST_BACKOFF_S
        else:
            self._backoff_s = min(2 * self._backoff_s, self._longest_s)

    def silent(self) -> None:
        """A probe was not answered in time."""
        self._silences += 1
        if not self.up or self._silences >= _SILENCES:
            self.failed()

    @property
    def next_s(self) -> float:
        """Seconds until the next probe."""
        if not self.up:
            return self._backoff_s
        return self._interval_s if not self._silences else min(self._interval_s, _FIRST_BACKOFF_S)
