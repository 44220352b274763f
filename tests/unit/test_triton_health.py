"""When a Triton is ejected, and when it is probed next."""

from __future__ import annotations

from server.engine.triton.health import Health


def up() -> Health:
    health = Health(interval_s=1.0, longest_backoff_s=3.0)
    health.passed()
    return health


def test_nobody_is_sent_anything_before_its_first_probe() -> None:
    """It may be starting."""
    assert not Health(1.0, 3.0).up


def test_a_failure_ejects_at_once() -> None:
    """It is gone, or says that it stops."""
    health = up()
    health.failed()

    assert (health.up, health.ejections) == (False, 1)


def test_one_silence_does_not_eject_and_two_do() -> None:
    """The second probe comes soon."""
    health = up()
    health.silent()
    assert (health.up, health.next_s) == (True, 0.25)

    health.silent()

    assert not health.up


def test_a_silence_is_forgotten_with_the_next_answer() -> None:
    """Only those in a row count."""
    health = up()
    for _ in range(3):
        health.silent()
        health.passed()

    assert (health.up, health.next_s) == (True, 1.0)


def test_one_that_is_down_is_probed_after_twice_as_long_each_time() -> None:
    """Up to the longest; and soon again after the next ejection."""
    health = up()
    pauses = []
    for _ in range(6):
        health.failed()
        pauses.append(health.next_s)
    assert pauses == [0.25, 0.5, 1.0, 2.0, 3.0, 3.0]

    health.passed()
    health.failed()

    assert (health.next_s, health.ejections) == (0.25, 2)
