"""A batcher's dealings with the share: for which pass it asks, whether it waits, and since when.

Where there is no share, or no instance uses a core of this machine, every pass may begin and nothing is counted.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from server.scheduler.share import Lease, Seat, Share
from server.scheduler.statistics import ModelStatistics
from server.scheduler.worker import Runner
from server.types import NO_DEADLINE, InferRequest

FREE = Lease(0, 0, 0)
"""What a pass has that needs no token."""


class Turn:
    """Of one model version."""

    __slots__ = ("_differ", "_seat", "_since_ns", "_statistics", "_threads", "again_ns")

    def __init__(
        self,
        share: Share | None,
        model_name: str,
        threads: Mapping[Runner, int],
        statistics: ModelStatistics,
        call: Callable[[], None],
    ) -> None:
        """`threads`: that a pass of each instance uses. `call`: the turn may have come, plan again."""
        self._threads = threads
        self._statistics = statistics
        demand = sum(threads.values())
        self._seat: Seat | None = share.join(model_name, demand, call) if share is not None and demand else None
        self._differ = self._seat is not None and not all(threads.values())
        """Some instances need tokens, and some do not."""
        self._since_ns = 0
        """When the batch that waits for its turn was ready; 0: none is."""
        self.again_ns = NO_DEADLINE
        """While it waits: when it must ask again though it was not called."""

    def of_cores(self) -> float:
        """The part of the cores that a pass takes, in the mean over the instances."""
        if self._seat is None:
            return 0.0
        return self._seat.demand / len(self._threads) / self._seat.cores

    @property
    def waiting(self) -> bool:
        """A batch is ready, and an instance for it, and other models have the cores."""
        return self._seat is not None and self._seat.waiting

    def has_the_only_core(self, now_ns: int) -> bool:
        """There is one core, and no other model that would have it while this one does nothing."""
        seat = self._seat
        return seat is not None and seat.cores == 1 and seat.is_alone(now_ns)

    def must_wait(self, idle: Sequence[Runner], now_ns: int) -> bool:
        """Whether to ask would be in vain, so that nothing need be planned."""
        seat = self._seat
        if seat is None or not seat.waiting or seat.called or now_ns >= seat.again_ns:
            return False
        return all(self._threads[runner] for runner in idle)

    def choose(self, idle: Sequence[Runner]) -> Runner:
        """The idle instance for the next pass: one that needs no token, if there is one."""
        if not self._differ:
            return idle[-1]
        return next((runner for runner in idle if not self._threads[runner]), idle[-1])

    def take(self, runner: Runner, requests: Sequence[InferRequest], pass_ns: int | None, now_ns: int) -> Lease | None:
        """The tokens for a pass on a worker's thread; None: not now, and from here on it waits."""
        seat = self._seat
        if seat is None or not self._threads[runner]:
            return FREE
        urgent_ns = min([request.deadline_ns for request in requests])
        lease = seat.take(self._threads[runner], pass_ns, urgent_ns, now_ns)
        self.again_ns = seat.again_ns
        if lease is None:
            self._since_ns = self._since_ns or now_ns
        else:
            self._count(now_ns)
        return lease

    def give(self, lease: Lease, runner: Runner, begun_ns: int, now_ns: int) -> None:
        """A pass has ended. One that ran on the loop itself took no tokens, and is charged all the same."""
        if self._seat is None:
            return
        if lease is not FREE:
            self._seat.give(lease, now_ns)
        elif self._threads[runner]:
            self._seat.charge(now_ns - begun_ns, now_ns)

    def withdraw(self, now_ns: int) -> None:
        """Nothing is ready any more, or no instance."""
        if self._since_ns and self._seat is not None:
            self._seat.withdraw(now_ns)
            self._count(now_ns)

    def leave(self, now_ns: int) -> None:
        """The version is out of service, and its workers have ended."""
        if self._seat is not None:
            self._seat.leave(now_ns)

    def outlook(self, now_ns: int) -> tuple[int, float]:
        """What admission must know, see `Seat.outlook`."""
        return (0, 1.0) if self._seat is None else self._seat.outlook(now_ns)

    def _count(self, now_ns: int) -> None:
        if self._since_ns:
            self._statistics.turn_wait_ns += now_ns - self._since_ns
            self._since_ns = 0
