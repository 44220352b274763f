"""Calls on threads, awaited on the loop."""

from __future__ import annotations

import asyncio
import gc
import threading
import weakref
from collections.abc import Iterator

import pytest

from server.offload import Offload


@pytest.fixture
def offload() -> Iterator[Offload]:
    made = Offload(2, "test")
    yield made
    made.close()


async def test_a_call_runs_on_a_thread_and_its_result_comes_back(offload: Offload) -> None:
    """The loop's own thread is not the one that works."""
    name = await offload.run(lambda _: threading.current_thread().name, None)

    assert name == "test_0"


async def test_many_calls_all_come_back_each_to_its_own_caller(offload: Offload) -> None:
    """However many end before the loop looks, none is lost and none is mixed up."""
    results = await asyncio.gather(*(offload.run(lambda number: number * 2, number) for number in range(500)))

    assert results == [number * 2 for number in range(500)]


async def test_no_more_threads_are_started_than_calls_are_under_way() -> None:
    """A server of many cores and few pictures does not start a thread for each core."""
    offload = Offload(8, "few")
    for _ in range(5):
        await offload.run(str, 1)

    assert [thread.name for thread in threading.enumerate() if thread.name.startswith("few")] == ["few_0"]
    offload.close()


@pytest.mark.parametrize("error", [ValueError("bad"), KeyError("k"), StopIteration(3), SystemExit(1)], ids=repr)
async def test_a_failure_is_its_callers_and_nobody_elses(offload: Offload, error: BaseException) -> None:
    """Whatever a call raises, its neighbours are answered, and the thread goes on."""

    def fail(_: object) -> None:
        raise error

    failed, good = offload.run(fail, None), offload.run(str, 7)

    assert await good == "7"
    outcome = (await asyncio.gather(failed, return_exceptions=True))[0]
    expected = RuntimeError if isinstance(error, StopIteration) else type(error)
    assert isinstance(outcome, expected)
    assert await offload.run(str, 8) == "8"


async def test_who_fails_on_hearing_of_an_end_keeps_it_from_nobody_else(
    offload: Offload, caplog: pytest.LogCaptureFixture
) -> None:
    """Ends that come to the loop together are each told, whatever one who hears of his raises; it is logged."""
    heard: list[int] = []
    everybody = asyncio.Event()

    def hear(number: int) -> None:
        if number == 1:
            raise ValueError("of the first")
        heard.append(number)
        if len(heard) == 48:
            everybody.set()

    for number in range(1, 50):
        offload.post(lambda given: given, number, hear)
    assert await offload.run(str, 7) == "7"
    await asyncio.wait_for(everybody.wait(), 30)

    assert sorted(heard) == list(range(2, 50))
    assert "of the first" in caplog.text


async def test_a_cancelled_call_that_no_thread_has_begun_is_spared() -> None:
    """Nobody waits for it any more; a call under way is finished, and its result forgotten."""
    offload, gate, seen = Offload(1, "one"), threading.Event(), []
    begun = offload.run(lambda _: gate.wait(10), None)
    waiting, last = offload.run(seen.append, "spared"), offload.run(seen.append, "last")
    waiting.cancel()
    begun.cancel()
    gate.set()
    await last

    assert seen == ["last"]
    offload.close()


async def test_closing_cancels_what_waits_and_ends_the_threads() -> None:
    """What a thread has begun is finished; there is no call that nobody ever answers."""
    offload, gate = Offload(1, "one"), threading.Event()
    begun, waiting = offload.run(lambda _: gate.wait(10), None), offload.run(str, 1)
    offload.close()
    gate.set()

    assert await begun is True
    assert waiting.cancelled()
    threads = [thread for thread in threading.enumerate() if thread.name == "one_0"]
    for thread in threads:
        await asyncio.to_thread(thread.join, 10)
        assert not thread.is_alive()


async def test_an_idle_thread_keeps_nothing_of_its_last_call(offload: Offload) -> None:
    """A decoded picture is megabytes: it goes when its caller is done with it, not when the next one comes."""

    class Picture:
        pass

    picture = Picture()
    gone = weakref.ref(picture)
    assert await offload.run(lambda given: given, picture) is picture
    # The thread has let go of its own references once it takes up another job.
    await offload.run(str, 1)
    del picture
    gc.collect()

    assert gone() is None
