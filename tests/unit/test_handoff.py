"""Which passes run on the event loop itself."""

from __future__ import annotations

from server.scheduler.handoff import HANDOFF_NS, Handoff


def test_what_is_expected_to_be_shorter_than_the_handoff_runs_on_the_loop() -> None:
    """At the bound, and where nothing is known, it goes to the thread."""
    handoff = Handoff()
    assert [handoff.inline(ns) for ns in (HANDOFF_NS - 1, HANDOFF_NS, None)] == [True, False, False]


def test_a_pass_that_takes_longer_on_the_loop_than_expected_goes_to_the_thread() -> None:
    """Not after one disturbance: after some."""
    handoff = Handoff()
    handoff.learn(HANDOFF_NS // 2, 3 * HANDOFF_NS)
    assert handoff.inline(HANDOFF_NS // 2)
    for _ in range(10):
        handoff.learn(HANDOFF_NS // 2, 3 * HANDOFF_NS)
    assert not handoff.inline(HANDOFF_NS // 2)


def test_a_short_pass_that_a_disturbance_sent_to_the_thread_comes_back() -> None:
    """On the thread it looks longer than it is; a trial now and then finds out."""
    handoff = Handoff()
    asked = [handoff.inline(2 * HANDOFF_NS) for _ in range(100)]
    assert asked.count(False) >= 60
    assert asked.index(True) > 50
    handoff.learn(2 * HANDOFF_NS, HANDOFF_NS // 2)
    assert handoff.inline(2 * HANDOFF_NS)


def test_a_long_pass_is_never_tried_on_the_loop() -> None:
    """The loop would stand still for it."""
    handoff = Handoff()
    assert not any(handoff.inline(5 * HANDOFF_NS) for _ in range(1000))
