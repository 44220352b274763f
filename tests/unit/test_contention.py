"""Models on the same cores, simulated: what the share between them does and what it costs."""

from __future__ import annotations

from dataclasses import replace

import pytest

from loadtests.arrivals import poisson
from loadtests.contention import Contention, Workload, contend
from loadtests.simulation import Engine
from tests.support.scheduler import MS

SECONDS = 10.0


def workload(
    name: str, pass_ms: int, load: float, deadline_ms: int = 1000, instances: int = 1, seed: int = 1
) -> Workload:
    """Requests that keep `load` cores busy, each a pass of its own."""
    engine = Engine(base_ns=0, row_ns=pass_ms * MS, noise=0.05, max_batch_size=1)
    arrivals_ns = poisson(load * 1000 / pass_ms, SECONDS, seed)
    return Workload(name, engine, arrivals_ns, deadline_ms * MS, instances)


def tenants(*loads: float, fair: bool) -> list[Workload]:
    """Of one model with one instance of 10 ms a request, whose places are few enough to be all taken."""
    return [
        replace(
            workload("m", 10, load, deadline_ms=60_000, seed=seed),
            tenant=f"t{seed}",
            fair_by_tenant=fair,
            max_queue_size=200,
        )
        for seed, load in enumerate(loads)
    ]


def both(*workloads: Workload, cores: int) -> tuple[Contention, Contention]:
    """With the share, and without."""
    shared, free = (contend(workloads, cores, SECONDS, seed=7, shared=on) for on in (True, False))
    return shared, free


@pytest.mark.parametrize("cores", [1, 2])
def test_an_overloaded_model_leaves_the_other_what_it_asks_for(cores: int) -> None:
    """A is offered three times the machine on four instances, B a third of it: B is answered as offered."""
    a = workload("a", 10, 3 * cores, instances=4)
    b = workload("b", 10, 0.3 * cores, instances=cores, seed=2)
    shared, free = both(a, b, cores=cores)
    tally = shared.tallies[1]
    assert (tally.in_time, tally.refused, tally.expired) == (tally.offered, 0, 0)
    assert tally.p99_ms() < free.tallies[1].p99_ms() / 2
    assert shared.busy > 0.995, "A gets the rest"
    assert shared.tallies[0].in_time >= 0.65 * cores * SECONDS * 100


def test_two_overloaded_models_get_the_same() -> None:
    """Whatever their instances: without the share the one with four gets four times as much."""
    a, b = workload("a", 10, 6, instances=4), workload("b", 10, 6, seed=2)
    shared, free = both(a, b, cores=2)
    first, second = (tally.in_time for tally in shared.tallies)
    assert first == pytest.approx(second, rel=0.05)
    assert free.tallies[0].in_time > 3 * free.tallies[1].in_time


@pytest.mark.parametrize("instances", [1, 4])
@pytest.mark.parametrize("cores", [1, 2])
def test_long_passes_hold_up_short_ones_but_little(cores: int, instances: int) -> None:
    """Passes of 200 ms, and of 2 ms that need a third of a core: those wait for no long pass to end."""
    a = workload("a", 200, 3 * cores, deadline_ms=3000, instances=instances)
    b = workload("b", 2, 0.3, seed=2)
    shared, _ = both(a, b, cores=cores)
    tally = shared.tallies[1]
    assert tally.in_time == tally.offered
    assert tally.p99_ms() < 30, "each shares its core with one other thread at the most: 4 ms, and their queue"


def test_nothing_is_lost_by_the_share() -> None:
    """The cores do as much work as without it, and as many requests are answered in time."""
    a, b, c = (
        workload("a", 10, 6, instances=4),
        workload("b", 100, 6, deadline_ms=2000, instances=2, seed=2),
        workload("c", 2, 0.3, seed=3),
    )
    shared, free = both(a, b, c, cores=2)
    assert shared.busy >= free.busy - 0.001
    core_ms = [sum(t.in_time * ms for t, ms in zip(run.tallies, (10, 100, 2), strict=True)) for run in (shared, free)]
    assert core_ms[0] >= 0.98 * core_ms[1]


@pytest.mark.parametrize("instances", [1, 2, 4])
def test_a_model_alone_does_not_notice(instances: int) -> None:
    """To the last request the same as without a share."""
    shared, free = both(workload("a", 10, 3, instances=instances), cores=2)
    assert shared == free


def test_foresight_counts_the_others() -> None:
    """Of those that an overloaded model admits hardly any expire, though another takes half of the machine."""
    shared, _ = both(workload("a", 10, 6, instances=4), workload("b", 10, 6, instances=2, seed=2), cores=2)
    for tally in shared.tallies:
        assert tally.expired + tally.late <= 0.15 * tally.in_time


# --- tenants of one model ------------------------------------------------------------------------


def test_a_flood_of_one_tenant_does_not_reach_another() -> None:
    """Three times the capacity from one: the other, with a fifth of it, waits for no more than one pass for each of its
    own and for the one under way."""
    flooded = contend(tenants(3, 0.2, fair=True), 1, SECONDS, seed=1, shared=False).tallies[1]
    alone = contend(tenants(3, 0.2, fair=True)[1:], 1, SECONDS, seed=1, shared=False).tallies[0]
    unfair = contend(tenants(3, 0.2, fair=False), 1, SECONDS, seed=1, shared=False).tallies[1]
    assert (flooded.in_time, flooded.refused) == (flooded.offered, 0)
    assert flooded.p99_ms() < 2 * alone.p99_ms() + 10
    assert unfair.refused > unfair.offered / 2, "which first come, first served does not keep"


def test_two_floods_get_the_same() -> None:
    """Three and six times the capacity: half of it each, and none of it is lost."""
    run = contend(tenants(3, 6, fair=True), 1, SECONDS, seed=1, shared=False)
    first, second = (tally.in_time for tally in run.tallies)
    assert first == pytest.approx(second, rel=0.15)
    assert run.busy > 0.995


def test_foresight_of_a_flood_is_not_that_of_the_other_tenant() -> None:
    """With deadlines of 200 ms the flood is refused what is too much, and the other nothing."""
    workloads = [replace(w, deadline_ns=200 * MS) for w in tenants(3, 0.2, fair=True)]
    flood, few = contend(workloads, 1, SECONDS, seed=1, shared=False).tallies
    assert few.in_time == few.offered
    assert flood.expired + flood.late <= 0.08 * flood.in_time
    assert flood.in_time >= 0.75 * SECONDS * 100
