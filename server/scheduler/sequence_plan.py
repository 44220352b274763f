"""Whose requests an idle instance should run now, of the sequences in its slots. Pure: no clock, no await, no I/O.

*direct*: everybody who is ready, each in the row of its slot; with a `minimum_slot_utilization` not before so many
slots are ready, or the first of them has waited for `max_queue_delay`.
*oldest*: who has been ready longest, up to the largest batch that is worth forming; with a `max_queue_delay` not
before the batch is full, has a preferred size, or its first has waited for so long.

Rows that can't be stacked do not share a pass: who has been ready longest says which shapes go. Waiting ends when
it would miss a deadline. Source: model_config.proto, StrategyDirect, StrategyOldest.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import islice

from server.scheduler.plan import Cost, Wait
from server.scheduler.slots import Chain, Lane
from server.sequences import Direct, Oldest
from server.types import NO_DEADLINE


@dataclass(frozen=True, slots=True)
class Step:
    """Run the next request of each of these, in one pass; they still wait: who acts on it takes them."""

    chains: Sequence[Chain]


def plan_lane(
    lane: Lane,
    now_ns: int,
    strategy: Direct | Oldest,
    max_batch_size: int,
    key: Callable[[Chain], object],
    cost: Cost,
) -> Step | Wait:
    """What to do with an instance that is idle and has somebody ready.

    `key`: equal for those whose next requests can be stacked, with the states that they meet. `cost`: of the first one.
    """
    wanted = key(next(iter(lane.ready)))
    alike = (chain for chain in lane.ready if key(chain) == wanted)
    if isinstance(strategy, Direct):
        return _direct(list(alike), now_ns, strategy, lane.size, cost)
    # As in `plan.Limits`: where preferred sizes are set nothing else is known better.
    cap = max(1, max_batch_size if strategy.preferred_batch_size else cost.best_rows(max_batch_size))
    return _oldest(list(islice(alike, cap)), cap, now_ns, strategy, cost)


def _direct(alike: list[Chain], now_ns: int, strategy: Direct, slots: int, cost: Cost) -> Step | Wait:
    needed = strategy.minimum_slot_utilization * slots
    if not needed or not strategy.max_queue_delay_microseconds or len(alike) >= needed:
        return Step(alike)
    closes_ns = _closes_ns(alike, strategy.max_queue_delay_microseconds, cost)
    return Step(alike) if now_ns >= closes_ns else Wait(closes_ns)


def _oldest(chosen: list[Chain], cap: int, now_ns: int, strategy: Oldest, cost: Cost) -> Step | Wait:
    closes_ns = _closes_ns(chosen, strategy.max_queue_delay_microseconds, cost)
    if strategy.max_queue_delay_microseconds and now_ns >= closes_ns:
        return Step(chosen)
    if best := max((size for size in strategy.preferred_batch_size if size <= len(chosen)), default=0):
        return Step(chosen[:best])
    if len(chosen) == cap or not strategy.max_queue_delay_microseconds:
        return Step(chosen)
    return Wait(closes_ns)


def _closes_ns(chains: Sequence[Chain], delay_us: int, cost: Cost) -> int:
    """When those who are ready wait for company no longer."""
    heads = [chain.waiting[0] for chain in chains]
    start_by_ns = min([head.deadline_ns for head in heads])
    if start_by_ns < NO_DEADLINE:
        start_by_ns -= cost.high_ns(len(heads)) or 0
    return min(min([head.enqueued_ns for head in heads]) + delay_us * 1000, start_by_ns)
