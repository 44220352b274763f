"""Where a pass runs: on its instance's thread, or on the event loop itself. No clock, no I/O.

Giving a pass to a thread and back costs some tens of microseconds, more when the loop is busy and holds the
interpreter's lock; a pass that is shorter than that runs on the loop, which gains nothing from being free meanwhile.
How long that would be can't be read off passes on a thread: they also wait for the lock, on caches that another
thread has used. So the loop's own passes tell, and where there are none a trial now and then: otherwise a model
that one disturbance has sent to its thread would stay there.
"""

from __future__ import annotations

HANDOFF_NS = 50_000
"""A pass on the loop may take this long."""
_TRIAL_NS = 4 * HANDOFF_NS
"""A pass that is expected to take longer is no candidate: not even a trial may hold the loop up for it."""
_TRIAL_EVERY = 64
_WEIGHT = 8


class Handoff:
    """Of one model version. An unknown cost is never taken for a small one."""

    __slots__ = ("_on_thread", "_share")

    def __init__(self) -> None:
        self._share = 1.0
        """A pass on the loop over what is expected of a pass."""
        self._on_thread = 0
        """Candidates since the last pass on the loop."""

    def inline(self, expected_ns: int | None) -> bool:
        """Whether a pass whose compute is expected to take so long runs on the loop."""
        if expected_ns is None or expected_ns >= _TRIAL_NS:
            return False
        if expected_ns * self._share < HANDOFF_NS:
            return True
        self._on_thread += 1
        return self._on_thread >= _TRIAL_EVERY

    def learn(self, expected_ns: int, took_ns: int) -> None:
        """A pass on the loop took so long. It may be disturbed, never shorter by accident: so believe the shorter."""
        self._on_thread = 0
        share = took_ns / max(1, expected_ns)
        self._share = min(share, self._share + max(0.0, share - self._share) / _WEIGHT)
