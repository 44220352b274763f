"""The window of a server: it finds what keeps the server busy, against simulated servers of several kinds."""

from __future__ import annotations

import heapq
import random
from collections.abc import Callable
from itertools import pairwise

import pytest

from server.scheduler.window import Bounds, Window

MS = 1_000_000


class Simulated:
    """A server that merges what waits into batches, with more demand than it can do."""

    def __init__(self, cost_ms: Callable[[int], float], largest: int, instances: int, window: Window) -> None:
        self._cost_ms, self._largest, self._idle, self.window = cost_ms, largest, instances, window
        self._random = random.Random(1)
        self._events: list[tuple[float, float, str, int]] = []
        self._now, self._queued = 0.0, 0
        self.answered = 0

    def run(self, seconds: float) -> float:
        """Answers a second, of the second half of that time."""
        end, half, before = self._now + seconds * 1000, self._now + seconds * 500, self.answered
        self._send()
        while self._now < end:
            self._now, _, kind, rows = heapq.heappop(self._events)
            if self._now < half:
                before = self.answered
            getattr(self, kind)(rows)
        return (self.answered - before) / (seconds / 2)

    def _later(self, ms: float, kind: str, rows: int) -> None:
        heapq.heappush(self._events, (self._now + ms, self._random.random(), kind, rows))

    def _send(self) -> None:
        while self.window.fits(1):
            self.window.begin(1)
            self._later(0.1 + 0.2 * self._random.random(), "arrive", 1)

    def arrive(self, _rows: int) -> None:
        self._queued += 1
        self._start()

    def _start(self) -> None:
        while self._queued and self._idle:
            rows = min(self._queued, self._largest)
            self._queued -= rows
            self._idle -= 1
            self._later(self._cost_ms(rows) * (1 + 0.1 * self._random.random()), "done", rows)

    def done(self, rows: int) -> None:
        self._idle += 1
        self._start()
        for _ in range(rows):
            self._later(0.2 * self._random.random(), "answer", 1)

    def answer(self, rows: int) -> None:
        self.answered += 1
        self.window.end(rows, int(self._now * MS), answered=True)
        self._send()


SERVERS: dict[str, tuple[Callable[[int], float], int, int, int]] = {
    "batches cost nothing more": (lambda rows: 4 + 0.06 * rows, 32, 1, 200),
    "batches cost less by the row": (lambda rows: 1 + 0.25 * rows, 32, 1, 100),
    "batches gain nothing": (lambda rows: 4 * rows, 32, 1, 16),
    "four instances without batches": (lambda rows: 10, 1, 4, 40),
    "a slow model": (lambda rows: 100 + 5 * rows, 8, 1, 64),
}
"""What a batch costs in ms, the largest one, instances, and the largest window that is still sensible."""


@pytest.mark.parametrize("first", [2, 64])
@pytest.mark.parametrize("server", SERVERS)
def test_the_window_comes_to_what_keeps_the_server_busy(server: str, first: int) -> None:
    """From a small one and from a large one: most of what the server can do, and no long queue there."""
    cost_ms, largest, instances, most = SERVERS[server]
    window = Window(Bounds(2 * instances, max(first, 2 * instances), 512))
    simulated = Simulated(cost_ms, largest, instances, window)

    rate = simulated.run(20)

    best = max(instances * 1000 * rows / cost_ms(rows) for rows in range(1, largest + 1))
    assert rate > 0.7 * best
    assert window.size <= most


def test_demand_below_the_window_teaches_nothing() -> None:
    """The rate is then the callers', however long it lasts."""
    window = Window(Bounds(2, 16, 64))
    for at in range(10_000):
        window.begin(1)
        window.end(1, at * MS, answered=True)
        window.slack()

    assert window.size == 16


def test_a_cut_makes_it_smaller_and_never_smaller_than_the_least() -> None:
    """The server's own queue was full."""
    window = Window(Bounds(4, 16, 64))
    window.cut()
    assert window.size == 11

    for _ in range(10):
        window.cut()

    assert window.size == 4


def test_requests_that_have_no_time_there_cut_it() -> None:
    """They would rather wait where they can be refused; a few of them do not."""
    window = Window(Bounds(2, 16, 64))
    sizes = []
    for at in range(16):
        window.begin(1)
        window.end(1, at * MS, answered=False, late=True)
        sizes.append(window.size)

    assert sizes[:8] == [16] * 7 + [11]
    assert sizes[-1] == 7


def test_it_stays_within_its_bounds() -> None:
    """However much a server could do."""
    window = Window(Bounds(2, 4, 8))

    Simulated(lambda rows: 4.0, 64, 1, window).run(5)

    assert 2 <= window.size <= 8


@pytest.mark.parametrize(("failing", "most"), [(False, 64), (True, 8)])
def test_a_failure_is_time_without_rows(failing: bool, most: int) -> None:
    """A server that does as much more as it is given more has its window grow, but not where half of that fails."""
    window, now_ns = Window(Bounds(8, 8, 64)), 0
    for at in range(20_000):
        while window.fits(1):
            window.begin(1)
        now_ns += 8 * MS // window.size
        window.end(1, now_ns, answered=not (failing and window.size > 8 and at % 2))

    assert window.size == most or (failing and window.size == 12)


# --- one step at a time -----------------------------------------------------------------------------------------------


class Rounds:
    """A window whose every round is full, and has the rate that a test says."""

    def __init__(self, bounds: Bounds) -> None:
        self.window = Window(bounds)
        self.now_ns = 1000 * MS
        self.end()

    def end(self, rows: int = 1) -> None:
        self.window.begin(rows)
        self.window.end(rows, self.now_ns, answered=True)

    def round(self, rows_per_s: float) -> int:
        """The window after a round of that rate; what is still of the window before is not in it."""
        while self.window._skip > 0:
            self.end()
        rows = max(16, 2 * self.window.size)
        self.now_ns += int(rows / rows_per_s * 1e9)
        self.end(rows)
        return self.window.size


def test_it_goes_up_as_long_as_the_rate_follows_by_a_quarter() -> None:
    """Half as many rows more must bring an eighth more; else it goes back, and tries the other direction."""
    rounds = Rounds(Bounds(2, 20, 400))
    assert rounds.round(100) == 30, "the rate is known: a trial"
    assert rounds.round(112.6) == 45
    assert rounds.round(126) == 30, "it did not follow"
    assert [rounds.round(112) for _ in range(2)] == [30, 20], "after a pause"
    # A third less may cost a twelfth of the rate.
    assert rounds.round(102.7) == 13
    assert rounds.round(93.6) == 20


def test_pauses_between_trials_that_changed_nothing_double() -> None:
    """Up to sixteen rounds."""
    rounds, rates = Rounds(Bounds(10, 20, 40)), {13: 80, 20: 100, 30: 100}
    sizes = [20]
    while len(sizes) < 62:
        sizes.append(rounds.round(rates[sizes[-1]]))
    trials = [at for at, size in enumerate(sizes) if size != 20]
    assert [later - at - 1 for at, later in pairwise(trials)] == [2, 3, 5, 9, 17, 17]
    assert [sizes[at] for at in trials[:4]] == [30, 13, 30, 13]


def test_at_a_bound_it_tries_the_other_direction() -> None:
    """One step beyond it is cut to it; where there is no room at all nothing is tried."""
    assert Rounds(Bounds(2, 20, 20)).round(100) == 13
    assert Rounds(Bounds(2, 20, 22)).round(100) == 22
    assert Rounds(Bounds(1, 1, 2)).round(100) == 2
    fixed = Rounds(Bounds(20, 20, 20))
    assert {fixed.round(100) for _ in range(5)} == {20}


def test_a_round_takes_enough_rows_and_time() -> None:
    """Sixteen rows, two windows, and 50 ms, whichever is last."""
    for first, rows in ((4, 16), (20, 40)):
        rounds = Rounds(Bounds(2, first, 400))
        for _ in range(rows - 1):
            rounds.now_ns += 60 * MS
            rounds.end()
        assert rounds.window.size == first
        rounds.end()
        assert rounds.window.size == first * 1.5
    short = Rounds(Bounds(2, 4, 400))
    short.now_ns += 50 * MS - 1
    short.end(100)
    assert short.window.size == 4
    short.now_ns += 1
    short.end()
    assert short.window.size == 6


def test_answers_of_the_window_before_do_not_count() -> None:
    """As many as were in flight when it changed; the round begins behind them."""
    rounds = Rounds(Bounds(2, 20, 400))
    assert rounds.round(100) == 30
    for _ in range(29):
        rounds.end()
    began_ns = rounds.now_ns
    rounds.now_ns += MS
    assert rounds.window._skip == 1
    rounds.end()
    assert (rounds.window._skip, rounds.window._answered) == (0, 0)
    assert rounds.window._since_ns == began_ns + MS


def test_slack_begins_the_round_anew() -> None:
    """With the end after it."""
    rounds = Rounds(Bounds(2, 4, 400))
    rounds.end(15)
    rounds.window.slack()
    rounds.now_ns += 100 * MS
    rounds.end(20)
    rounds.now_ns += 100 * MS
    rounds.end(15)
    assert rounds.window.size == 4
    rounds.end()
    assert rounds.window.size == 6


def test_after_a_cut_the_next_trial_goes_up_and_comes_late() -> None:
    """Sixteen rounds after it; a trial under way is over."""
    rounds = Rounds(Bounds(2, 20, 400))
    rounds.round(100)
    rounds.window.cut()
    assert rounds.window.size == 21
    sizes = [rounds.round(100) for _ in range(18)]
    assert sizes[:16] == [21] * 16
    assert sizes[16] == 32


def test_what_is_late_is_forgotten_with_the_round() -> None:
    """A few now and then do not add up."""
    rounds = Rounds(Bounds(2, 16, 16))
    for late in (7, 5):
        rounds.window.begin(late)
        rounds.window.end(late, rounds.now_ns, answered=False, late=True)
        assert rounds.window.size == (16 if late == 7 else 11)
        if late == 7:
            assert rounds.round(100) == 11, "a trial"


def test_a_request_fits_beside_others_or_alone() -> None:
    """To the last row."""
    window = Window(Bounds(1, 4, 4))
    assert window.fits(9)
    window.begin(1)
    assert window.fits(3)
    assert not window.fits(4)
