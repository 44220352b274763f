"""What a step on the event loop leaves to be done."""

from __future__ import annotations

import asyncio
import logging
import sys
import threading
import time

import pytest

from server.afterwards import afterwards, as_step, idle_since_ns


def test_it_is_done_behind_the_step_in_the_order_in_which_it_was_left() -> None:
    """Without a turn of the loop between."""
    done: list[str] = []

    def take() -> None:
        afterwards(lambda: done.append("first"))
        afterwards(lambda: done.append("second"))
        done.append("step")

    as_step(take)
    assert done == ["step", "first", "second"]


def test_a_step_within_a_step_is_a_part_of_it() -> None:
    """What it leaves waits for the whole."""
    done: list[str] = []

    def outer() -> None:
        as_step(lambda: afterwards(lambda: done.append("left")))
        done.append("outer")

    as_step(outer)
    assert done == ["outer", "left"]


async def test_without_a_step_it_is_done_in_the_next_turn() -> None:
    """Also what is left by what a step had left: that is no step any more."""
    done: list[str] = []
    afterwards(lambda: done.append("soon"))
    as_step(lambda: afterwards(lambda: afterwards(lambda: done.append("later"))))
    assert done == []
    await asyncio.sleep(0)
    assert done == ["soon", "later"]


def test_a_step_that_raises_leaves_nothing_undone() -> None:
    """And the next one is a step again."""
    done: list[str] = []

    def take() -> None:
        afterwards(lambda: done.append("left"))
        raise KeyboardInterrupt

    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            as_step(take)
    assert done == ["left", "left"]


def test_what_fails_keeps_nothing_else_from_being_done(caplog: pytest.LogCaptureFixture) -> None:
    """It is logged: there is nobody to whom it could be raised."""
    done: list[str] = []

    def take() -> None:
        afterwards(lambda: done.remove("nothing"))
        afterwards(lambda: done.append("left"))

    with caplog.at_level(logging.ERROR):
        as_step(take)
    assert done == ["left"]
    assert [record.exc_info is not None for record in caplog.records] == [True]


def test_a_step_is_a_step_on_its_own_thread_only() -> None:
    """Another loop's thread has to do its own."""
    refused: list[RuntimeError] = []

    def elsewhere() -> None:
        try:
            afterwards(lambda: None)
        except RuntimeError as error:  # no loop runs there
            refused.append(error)

    def take() -> None:
        thread = threading.Thread(target=elsewhere)
        thread.start()
        thread.join()

    as_step(take)
    assert len(refused) == 1


def test_it_is_idle_from_the_end_of_what_a_step_has_left() -> None:
    """Of this thread's loop; before its first step there is no telling."""
    seen: list[int] = []

    def look() -> None:
        seen.append(idle_since_ns())
        as_step(lambda: afterwards(lambda: seen.append(time.monotonic_ns())))
        seen.append(idle_since_ns())
        seen.append(time.monotonic_ns())

    thread = threading.Thread(target=look)
    thread.start()
    thread.join()
    before, left, since, after = seen
    assert before == sys.maxsize
    assert left <= since <= after
