"""The signal that replicas are scaled by: what arrives over what can be done within the objective."""

from __future__ import annotations

import gc
import math
from itertools import pairwise
from weakref import WeakMethod

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.scheduler.load import WINDOW_NS
from server.scheduler.saturation import Ability, Demand, replicas, saturations, summed, use_within
from server.scheduler.statistics import ModelStatistics
from server.workers.counts import summed as summed_counts
from server.workers.counts import told
from tests.support.relaying import RelayBench
from tests.support.scheduler import MS, Bench, StillCost

PASS_NS = 10 * MS


def waits_too_long(use: float, passes: float) -> float:
    """P(wait > `passes`) of one instance, arrivals by chance, passes of equal length: Erlang's M/D/1."""
    terms = (
        (use * (k - passes)) ** k / math.factorial(k) * math.exp(-use * (k - passes)) for k in range(int(passes) + 1)
    )
    return 1 - (1 - use) * sum(terms)


@pytest.mark.parametrize("passes", [1, 2, 4, 8, 16])
def test_at_the_use_that_is_allowed_about_one_in_a_hundred_waits_too_long(passes: int) -> None:
    """Against the exact answer for one instance without batches, unless the objective is out of reach."""
    use = use_within(1, PASS_NS, 1, PASS_NS * (passes + 1))
    assert use == 0.25 or 0.0002 < waits_too_long(use, passes) < 0.03


@given(
    places=st.integers(1, 512),
    rows=st.integers(1, 64),
    objectives=st.lists(st.integers(1, 10_000), min_size=2, max_size=6),
)
def test_more_time_and_more_places_never_make_less_of_the_instances(
    places: int, rows: int, objectives: list[int]
) -> None:
    """The use is from a quarter to all of their time, and grows with the objective and with their number."""
    uses = [use_within(places, PASS_NS, rows, ms * MS) for ms in sorted(objectives)]
    assert all(0.25 <= use <= 1 for use in uses)
    assert all(one <= other for one, other in pairwise(uses))
    more = [use_within(places + 1, PASS_NS, rows, ms * MS) for ms in sorted(objectives)]
    assert all(one <= other for one, other in zip(uses, more, strict=True))


def test_without_an_objective_or_a_cost_all_of_the_time_can_be_used() -> None:
    """Nothing can be late."""
    assert use_within(1, PASS_NS, 1, 0) == use_within(1, 0, 1, 5 * MS) == 1


@pytest.mark.parametrize(
    ("places", "rows", "passes", "use"),
    [
        (1, 1, 0.5, 0.25),
        (1, 1, 1, 0.25),
        (0, 1, 5, 1),
        # By what arrives by chance: ((sqrt(2.33^2 + 4 t) - 2.33) / 2)^2 / t, with t = 64 * 1.
        (64, 8, 2, 0.7481),
        # By the tail: d / (exp(d) - 1), with d = ln(100) / 9.
        (1, 1, 10, 0.7659),
        # Who comes while a pass is under way can't join it: d = ln(100) / (2 * 8).
        (2, 2, 10, 0.8630),
    ],
)
def test_the_use_that_leaves_time_to_wait(places: float, rows: int, passes: float, use: float) -> None:
    """By the higher of two bounds, reckoned by hand; a quarter where there is no time at all."""
    assert use_within(places, PASS_NS, rows, int(passes * PASS_NS)) == pytest.approx(use, abs=5e-5)


def test_an_ability_is_what_its_instances_can_do_in_time() -> None:
    """Of passes that take several rows each."""
    assert Ability(3).within() == 3
    assert Ability(8, 8, PASS_NS, 2 * PASS_NS).within() == pytest.approx(8 * 0.7481, abs=1e-3)


DEMANDS = st.lists(st.builds(Demand, st.floats(0, 100), st.floats(0, 16), st.floats(0, 4)), min_size=1, max_size=6)


@given(DEMANDS)
def test_several_processes_are_as_saturated_as_one_with_all_of_it(parts: list[Demand]) -> None:
    """Between the least and the most of those where something arrives; no work is lost."""
    total = summed(parts)
    busy = [part.saturation() for part in parts if part.work and part.able]
    assert total.work == pytest.approx(sum(part.work for part in parts))
    if busy and all(part.able for part in parts):
        assert min(busy) * 0.999 <= total.saturation() <= max(busy) * 1.001


def test_of_several_processes_only_those_at_work_count() -> None:
    """Unless none is; without an instance a version is as saturated as if there were one."""
    parts = [Demand(0.5, 2, 0.25), Demand(0, 4, 1), Demand(1, 1, 0.5)]
    assert summed(parts) == Demand(1.5, 3, 0.75)
    assert summed(parts[1:2] * 2) == Demand(0, 8, 2)
    assert Demand(0.5).saturation() == 0.5


def test_models_that_share_the_cores_are_as_saturated_as_these() -> None:
    """Two that each keep their instance busy for 0.6 of the time, on one core: 1.2. One that nobody asks stays at 0,
    and so does one that uses no core."""
    at_work, idle, elsewhere = Demand(0.6, 1, 0.6), Demand(0, 1, 0), Demand(0.3, 1, 0)
    assert saturations([at_work, at_work, idle, elsewhere]) == [1.2, 1.2, 0, 0.3]


def test_of_two_steps_of_one_request_the_fuller_counts_and_both_take_cores() -> None:
    """Raw inputs are prepared in front of the passes: more of the one makes no room in the other."""
    preparing, passes = Demand(0.9, 1, 0.4), Demand(1.2, 2, 0.6)
    for one, other in ((preparing, passes), (passes, preparing)):
        both = one.behind(other)
        assert (both.work, both.able, both.of_cores) == (0.9, 1, 1.0)
        assert both.saturation() == 0.9


def test_replicas_are_not_rounded_so_that_their_sum_is_right() -> None:
    """Three replicas with half the work that each should have are one and a half too many."""
    assert sum(replicas(0.35, 0.7) for _ in range(3)) == pytest.approx(1.5)


class Busy(Bench):
    """One instance, passes of one row and 10 ms."""

    def __init__(self, slo_ns: int = 0) -> None:
        self.began_ns = 0
        super().__init__(1, cost=StillCost(PASS_NS), slo_ns=slo_ns, on_begin=self._begun)

    def _begun(self, _requests: object) -> None:
        self.began_ns = self.clock.now_ns

    def offered(self, every_ms: int, seconds: float = 8) -> float:
        """The saturation at the end of so long a time with a request every so often, which has 60 ms."""
        for _ in range(int(seconds * 1000 / every_ms)):
            self.submit(self.caller.request([1], deadline_ns=self.clock.now_ns + 60 * MS))
            self.loop.run()
            self.clock.now_ns += every_ms * MS
            if self.runner.job and self.clock.now_ns - self.began_ns >= PASS_NS:
                self.runner.complete()
            self.loop.run()
        return self.statistics.saturation(self.clock.now_ns)


def test_what_is_refused_counts() -> None:
    """Twice what can be done is 2, whoever is sent away; when it stops, the window forgets."""
    bench = Busy()
    assert bench.offered(10) == pytest.approx(1, rel=0.06)
    assert bench.offered(5) == pytest.approx(2, rel=0.06)
    assert sum(bench.statistics.refused.values()) + bench.statistics.expired > 0
    bench.clock.now_ns += 2 * WINDOW_NS
    assert bench.statistics.saturation(bench.clock.now_ns) == 0


def test_an_objective_makes_less_of_the_same_instances() -> None:
    """The same work is more of what can be done in time."""
    assert Busy(slo_ns=30 * MS).offered(20) > 1.2 * Busy().offered(20)


def test_processes_tell_what_they_know_of_the_instances() -> None:
    """The sum over processes has the demand of each, and a front where nothing arrives adds nothing."""
    one, idle = Busy(), Busy()
    one.offered(10)
    now_ns = one.clock.now_ns
    total = summed_counts([told(one.statistics, now_ns), told(idle.statistics, now_ns)])
    (model,) = total.values()
    assert model.demand(now_ns) == one.statistics.demand(now_ns)


def test_in_front_of_tritons_a_place_in_their_windows_is_an_instance() -> None:
    """As many answers a second as the window lets through are 1; who finds no Triton at all is counted, so that the
    first one is started for them."""
    bench = RelayBench(servers=1, window=4, seed_ns=40 * MS)
    for _ in range(200):
        requests = [bench.caller.request([1]) for _ in range(4)]
        bench.submit(*requests)
        bench.advance(40 * MS)
        for request in requests:
            bench.answer(request)
    assert bench.relay.statistics.saturation(bench.clock.now_ns) == pytest.approx(1, rel=0.3)
    bench.relay.serve_by([])
    bench.clock.now_ns += 2 * WINDOW_NS
    assert bench.relay.statistics.demand(bench.clock.now_ns).work == 0
    bench.submit(bench.caller.request([1]))
    bench.advance(MS)
    found = bench.relay.statistics.demand(bench.clock.now_ns)
    assert found.able == 0
    assert found.saturation() > 0


def test_counts_outlive_a_batcher_and_keep_nothing_of_it() -> None:
    """A version that is unloaded frees its engine: what is left says the living instances alone."""
    counts = ModelStatistics("m", "1")

    class Knows:
        def ability(self) -> Ability:
            return Ability(4)

    knows = Knows()
    counts.ability = WeakMethod(knows.ability)
    assert counts.demand(0).able == 4
    del knows
    gc.collect()
    assert counts.demand(0).able == 0
