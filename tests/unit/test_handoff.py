"""Which passes run on the event loop itself."""

from __future__ import annotations

from server.scheduler.cost import CostModel
from server.scheduler.handoff import HANDOFF_NS, Handoff


def test_what_is_shorter_than_the_handoff_runs_on_the_loop() -> None:
    """At the bound, and where nothing is known, it goes to the thread."""
    handoff, costs = Handoff(), [CostModel({1: HANDOFF_NS - 1}), CostModel({1: HANDOFF_NS}), CostModel()]
    assert [handoff.inline(cost, 1) for cost in costs] == [True, False, False]


def test_each_size_is_looked_at_for_itself() -> None:
    """A model whose single rows are short may have long batches."""
    handoff, cost = Handoff(), CostModel({1: HANDOFF_NS // 5, 32: 10 * HANDOFF_NS})
    assert [handoff.inline(cost, rows) for rows in (1, 32)] == [True, False]


def test_passes_on_the_thread_do_not_make_a_model_long() -> None:
    """There it waits for the interpreter's lock: what is learned of that does not count."""
    handoff, cost = Handoff(), CostModel({1: HANDOFF_NS // 2})
    assert handoff.inline(cost, 1)
    for _ in range(100):
        cost.observe(1, 40 * HANDOFF_NS)
    assert cost.compute_ns(1) > HANDOFF_NS
    assert handoff.inline(cost, 1)


def test_an_engine_that_takes_longer_on_the_loop_goes_to_the_thread() -> None:
    """Not after one disturbance: after some."""
    handoff, cost = Handoff(), CostModel({1: HANDOFF_NS // 2})
    assert handoff.inline(cost, 1)
    handoff.learn(cost, 1, 3 * HANDOFF_NS)
    assert handoff.inline(cost, 1)
    for _ in range(10):
        handoff.learn(cost, 1, 3 * HANDOFF_NS)
    assert not handoff.inline(cost, 1)


def test_a_short_engine_that_disturbances_sent_to_the_thread_comes_back() -> None:
    """A trial now and then finds out."""
    handoff, cost = Handoff(), CostModel({1: 2 * HANDOFF_NS})
    asked = [handoff.inline(cost, 1) for _ in range(100)]
    assert asked.count(False) >= 60
    assert asked.index(True) > 50
    handoff.learn(cost, 1, HANDOFF_NS // 2)
    assert handoff.inline(cost, 1)


def test_a_long_pass_is_never_tried_on_the_loop() -> None:
    """The loop would stand still for it."""
    handoff, cost = Handoff(), CostModel({1: 5 * HANDOFF_NS})
    assert not any(handoff.inline(cost, 1) for _ in range(1000))


def test_where_there_is_one_core_three_times_as_long_is_short() -> None:
    """A thread brings no second one."""
    costs = [CostModel({1: 3 * HANDOFF_NS - 1}), CostModel({1: 3 * HANDOFF_NS})]
    assert [Handoff(one_core=True).inline(cost, 1) for cost in costs] == [True, False]


def test_each_sixty_fourth_candidate_is_a_trial() -> None:
    """Until one was; four times the bound is no candidate."""
    handoff, cost = Handoff(), CostModel({1: 4 * HANDOFF_NS - 1, 2: 4 * HANDOFF_NS})
    assert not any(handoff.inline(cost, 2) for _ in range(100))
    assert [handoff.inline(cost, 1) for _ in range(65)] == [False] * 63 + [True] * 2
    handoff.learn(cost, 1, 4 * HANDOFF_NS)
    assert [handoff.inline(cost, 1) for _ in range(64)] == [False] * 63 + [True]


def test_a_longer_time_is_believed_by_an_eighth_and_a_shorter_one_at_once() -> None:
    """In parts of what was expected before the first pass."""
    handoff, cost = Handoff(), CostModel({1: HANDOFF_NS // 2})
    handoff.inline(cost, 1)
    known = handoff._known[cost]
    handoff.learn(cost, 1, HANDOFF_NS)
    assert known.share == 1 + 1 / 8
    handoff.learn(cost, 1, HANDOFF_NS // 4)
    assert known.share == 0.5
    handoff.learn(cost, 1, HANDOFF_NS // 4)
    assert known.share == 0.5
