"""Where a pass runs: on its instance's thread, or on the event loop itself. No clock, no I/O.

Giving a pass to a thread and back costs up to a hundred microseconds, more when the loop is busy and holds the
interpreter's lock. So a pass whose time in the engine is shorter than that runs on the loop, which gains nothing from
being free meanwhile: merging and splitting hold the lock wherever they run, and only the engine lets go of it.
How long the engine takes can't be read off passes on a thread, for they wait for the lock before it is over: a
busy loop would make every model look long, and send it to its thread for good. What the warm-up measured is where it
begins; then the loop's own passes tell, and where there are none a trial now and then.
"""

from __future__ import annotations

from copy import deepcopy

from server.scheduler.cost import CostModel

HANDOFF_NS = 100_000
"""The engine's part of a pass on the loop may take this long."""
ONE_CORE = 3
"""Times as long where there is one core: a thread brings no second one, and each hand-off takes time of it."""
_TRIAL = 4
"""A pass that is expected to take so many times as long is no candidate: not even a trial may hold up the loop."""
_TRIAL_EVERY = 64
_WEIGHT = 8


class _Before(dict[int, int]):
    """Nanoseconds by rows, as a cost model expected them when this was made; 0: it did not know."""

    def __init__(self, cost: CostModel) -> None:
        super().__init__()
        self._cost = deepcopy(cost)

    def __missing__(self, rows: int) -> int:
        ns = self[rows] = self._cost.compute_ns(rows) or 0
        return ns


class _Known:
    """Of the passes of one cost model: as they were expected before the first, and what became of that."""

    __slots__ = ("before", "on_thread", "share")

    def __init__(self, cost: CostModel) -> None:
        self.before = _Before(cost)
        self.share = 1.0
        """What the engine takes on the loop over what was expected."""
        self.on_thread = 0
        """Candidates since the last pass on the loop."""


class Handoff:
    """Of one model version. An unknown cost is never taken for a small one."""

    __slots__ = ("_known", "_longest_ns")

    def __init__(self, *, one_core: bool = False) -> None:
        """`one_core`: all passes of this process share it with the loop."""
        self._longest_ns = HANDOFF_NS * (ONE_CORE if one_core else 1)
        self._known: dict[CostModel, _Known] = {}

    def inline(self, cost: CostModel, rows: int) -> bool:
        """Whether a pass of so many rows, whose times are those of `cost`, runs on the loop."""
        known = self._known.get(cost)
        if known is None:
            if not cost.sizes:
                return False
            known = self._known[cost] = _Known(cost)
        expected_ns = known.before[rows] * known.share
        if expected_ns < self._longest_ns:
            return True
        if expected_ns >= _TRIAL * self._longest_ns:
            return False
        known.on_thread += 1
        return known.on_thread >= _TRIAL_EVERY

    def learn(self, cost: CostModel, rows: int, engine_ns: int) -> None:
        """The engine took so long for a pass on the loop. It may be disturbed, never shorter by accident: so a
        shorter time is believed at once, a longer one little by little."""
        known = self._known[cost]
        known.on_thread = 0
        share = engine_ns / max(1, known.before[rows])
        known.share = min(share, known.share + max(0.0, share - known.share) / _WEIGHT)
