"""The scheduler of models that write text, over the real engine and a tiny model."""

from __future__ import annotations

import asyncio
import random
import time
from contextlib import aclosing, suppress
from pathlib import Path

import pytest

from server.engine.genai.instance import GenaiInstance
from server.engine.genai.parameters import LONGEST_STOP
from server.engine.genai.writer import Step
from server.errors import (
    Cancelled,
    DeadlineExceeded,
    Draining,
    EngineFailure,
    InvalidRequest,
    ModelLoadFailed,
    Overloaded,
    QueueFull,
)
from server.repository.model_config import read_model_config
from server.scheduler.cost import CostModel
from server.scheduler.writing_foresight import Lengths, Part, Room, WritingCosts, done_ns, first_token_ns
from server.scheduler.writing_statistics import Finish
from server.types import NO_DEADLINE
from tests.support.writing import PROMPTS
from tests.support.writing_plane import parameter, text_of, write_model, writing_plane

SLOW = parameter("max_num_seqs", 1)


async def test_64_streams_of_mixed_lengths_and_arrivals_are_those_that_each_is_alone(tmp_path: Path) -> None:
    """To the last character, through the data plane, with long prompts made into tokens on a thread."""
    chance = random.Random(1)
    asked = [(chance.choice(PROMPTS)[: chance.randint(1, 200)], chance.randint(1, 40)) for _ in range(64)]
    async with writing_plane(tmp_path, parameter("max_num_seqs", 8)) as plane:
        alone = {one: await plane.text(one[0], max_tokens=one[1]) for one in set(asked)}

        async def late(prompt: str, most: int) -> str:
            await asyncio.sleep(chance.random() * 0.2)
            return await plane.text(prompt, max_tokens=most)

        together = await asyncio.gather(*(late(*one) for one in asked))
        assert together == [alone[one] for one in asked]
        writing = plane.batcher.writing
        assert writing.finished[Finish.LENGTH] + writing.finished[Finish.STOP] == 64 + len(alone)
        assert writing.first_token.count == 64 + len(alone)
        assert writing.tokens == writing.first_token.count + writing.between_tokens.count
        [counts] = plane.dataplane.statistics("writer")
        assert counts.success.count == 64 + len(alone)
        assert (writing.running, writing.reserved_tokens, writing.held, counts.pending) == (0, 0, 0, 0)


async def test_a_thousand_cancelled_streams_leave_nothing_behind(tmp_path: Path) -> None:
    """Waiting, in their prompts, in their texts: memory is back at its start, and the others' texts are whole."""
    chance = random.Random(2)
    async with writing_plane(tmp_path, parameter("max_num_seqs", 12)) as plane:
        want = {prompt: await plane.text(prompt, max_tokens=40) for prompt in PROMPTS}
        await plane.settled()
        before = plane.instance.resident_bytes()

        async def go_away(number: int) -> None:
            prompt = chance.choice(PROMPTS)
            _, stream = plane.ask(prompt, max_tokens=40)
            taken, told = 0, ""
            most = chance.choice((0, 0, 1, 2, 5, 10))
            async with aclosing(stream):
                if not most:
                    waiting = asyncio.ensure_future(anext(stream))
                    await asyncio.sleep(chance.random() * 0.01)
                    waiting.cancel()
                    with suppress(asyncio.CancelledError):
                        await waiting
                    return
                async for response in stream:
                    told += response.outputs[0].numpy()[0].decode()
                    if (taken := taken + 1) >= most:
                        break
            assert want[prompt].startswith(told), number

        async def stay(prompt: str) -> None:
            assert await plane.text(prompt, max_tokens=40) == want[prompt]

        for round_ in range(10):
            leaving = [go_away(100 * round_ + number) for number in range(100)]
            staying = [stay(prompt) for prompt in PROMPTS]
            await asyncio.wait_for(asyncio.gather(*leaving, *staying), 30)
        await plane.settled()
        assert plane.instance.resident_bytes() == before == 0
        assert plane.batcher.writing.reserved_tokens == 0


async def test_a_slow_reader_holds_up_its_own_text_alone(tmp_path: Path) -> None:
    """What waits for it is bounded; meanwhile others are written to their ends, and it may go on."""
    async with writing_plane(tmp_path, parameter("max_num_seqs", 2)) as plane:
        whole = await plane.text("x", max_tokens=250, ignore_eos=True)
        plane_bytes = 600  # of what may wait for one reader
        import server.call

        before, server.call.MOST_WAITING_BYTES = server.call.MOST_WAITING_BYTES, plane_bytes
        try:
            _, slow = plane.ask("x", max_tokens=250, ignore_eos=True)
            told = (await anext(slow)).outputs[0].numpy()[0].decode()
            for _ in range(3):
                assert len(await plane.text("x", max_tokens=60, ignore_eos=True)) > 10
            assert plane.batcher.writing.held == 1
            [run] = plane.batcher._runs.values()
            assert run.job.made < 20
            assert told + await text_of(slow) == whole
        finally:
            server.call.MOST_WAITING_BYTES = before


async def test_who_runs_too_long_is_ended_at_its_deadline(tmp_path: Path) -> None:
    """In the middle of its text, and its memory is given back."""
    async with writing_plane(tmp_path) as plane:
        plane.batcher._door.costs.prefill_ns = 0.0
        request, stream = plane.ask("x", max_tokens=250, ignore_eos=True)
        await anext(stream)
        [run] = plane.batcher._runs.values()
        run.deadline_ns = time.monotonic_ns()
        plane.batcher._tick_soon()
        with pytest.raises(DeadlineExceeded, match=r"the text of model 'writer' had [1-9]\d* tokens after"):
            await text_of(stream)
        await plane.settled()
        assert request.settled
        assert plane.batcher.writing.finished[Finish.EXPIRED] == 1


async def test_whoever_would_come_too_late_is_refused_at_once(tmp_path: Path) -> None:
    """By the time to its first token that is foreseen; an idle model refuses nobody."""
    async with writing_plane(tmp_path, SLOW) as plane:
        costs = plane.batcher._door.costs
        costs.steps, costs.prefill_ns = CostModel({1: 50_000_000}), 1_000_000.0
        _, running = plane.ask("x", max_tokens=250, ignore_eos=True)
        await anext(running)
        _, late = plane.ask("x", deadline_ns=time.monotonic_ns() + 500_000_000)
        with pytest.raises(Overloaded) as refused:
            await text_of(late)
        assert refused.value.predicted_ms > 500
        assert refused.value.retry_after_ms > 0
        await running.aclose()
        await plane.settled()
        assert await plane.text("x", deadline_ns=time.monotonic_ns() + 5_000_000_000)


async def test_a_models_objective_is_for_the_first_token(tmp_path: Path) -> None:
    """Who waits longer for it expires; who has it, may take longer for the rest."""
    async with writing_plane(tmp_path, SLOW + parameter("slo_ms", 300)) as plane:
        first = asyncio.ensure_future(plane.text("x", max_tokens=255 - 1, ignore_eos=True))
        step = plane.instance.step

        def slow() -> object:
            time.sleep(0.002)
            return step()

        plane.instance.step = slow  # type: ignore[method-assign]
        await asyncio.sleep(0.005)
        plane.batcher._door.costs.prefill_ns = 0.0
        with pytest.raises((DeadlineExceeded, Overloaded)):
            await plane.text("y")
        assert len(await first) > 100


async def test_the_more_urgent_begins_first(tmp_path: Path) -> None:
    """By priority level; within one in the order of their arrival."""
    levels = "dynamic_batching { priority_levels: 2 default_priority_level: 2 }"
    async with writing_plane(tmp_path, SLOW + levels) as plane:
        order: list[str] = []

        async def ask(name: str, priority: int) -> None:
            _, stream = plane.ask(name, priority=priority, max_tokens=5)
            await anext(stream)
            order.append(name)
            await text_of(stream)

        await asyncio.gather(ask("first", 2), ask("second", 2), ask("third", 2), ask("urgent", 1))
        assert order.index("urgent") < order.index("third")
        assert order.index("second") < order.index("third")


async def test_the_budget_of_tokens_is_kept(tmp_path: Path) -> None:
    """Prompts and all that may be written: never more, though there are rows."""
    async with writing_plane(tmp_path, parameter("kv_cache_tokens", 300)) as plane:
        most = 0

        async def ask() -> None:
            nonlocal most
            _, stream = plane.ask("x", max_tokens=99, ignore_eos=True)
            async for _ in stream:
                most = max(most, len(plane.batcher._runs))
                assert plane.batcher.writing.reserved_tokens <= 300

        await asyncio.gather(*(ask() for _ in range(6)))
        assert most == 3


async def test_a_full_queue_refuses(tmp_path: Path) -> None:
    """With the limit of the config."""
    extra = SLOW + "dynamic_batching { default_queue_policy { max_queue_size: 1 } }"
    async with writing_plane(tmp_path, extra) as plane:
        _, running = plane.ask("x", max_tokens=250, ignore_eos=True)
        await anext(running)
        _, waiting = plane.ask("The server", max_tokens=9)
        await asyncio.sleep(0)
        with pytest.raises(QueueFull):
            await plane.text("x")
        await running.aclose()
        assert await text_of(waiting)


async def test_a_step_that_fails_ends_those_who_ran_and_nobody_else(tmp_path: Path) -> None:
    """They are told of an engine that failed, and the next ones are served."""
    async with writing_plane(tmp_path) as plane:
        whole = await plane.text("x")
        decode = plane.instance._forward.decode
        plane.instance._forward.decode = lambda *_: 1 / 0  # type: ignore[method-assign,assignment,return-value]
        with pytest.raises(EngineFailure):
            await plane.text("x")
        plane.instance._forward.decode = decode  # type: ignore[method-assign]
        assert await plane.text("x") == whole
        assert plane.dataplane.live()


async def test_what_is_no_number_fails_its_own_text_alone(tmp_path: Path) -> None:
    """The others of the step are as they are alone."""
    async with writing_plane(tmp_path) as plane:
        whole = await plane.text("x", max_tokens=30)
        forward = plane.instance._forward
        decode = forward.decode

        def broken(tokens, lengths):  # type: ignore[no-untyped-def]
            logits = decode(tokens, lengths).copy()
            if len(lengths) > 1:
                logits[lengths > 100] = float("nan")
            return logits

        forward.decode = broken  # type: ignore[method-assign]
        good = asyncio.ensure_future(plane.text("x", max_tokens=30))
        with pytest.raises(EngineFailure):
            await plane.text("y" * 101, max_tokens=30)
        assert await good == whole


async def test_a_drain_answers_who_was_there_until_its_end(tmp_path: Path) -> None:
    """Also who was not made into tokens yet; then the rest is told that the server goes."""
    async with writing_plane(tmp_path) as plane:
        texts = [asyncio.ensure_future(plane.text(prompt * 12, max_tokens=3)) for prompt in ("word ", "text ")]
        await asyncio.sleep(0)
        await plane.models.drain(time.monotonic_ns() + 10_000_000_000)
        assert all([await text for text in texts])
    (tmp_path / "again").mkdir()
    async with writing_plane(tmp_path / "again", SLOW) as plane:
        _, running = plane.ask("x", max_tokens=250, ignore_eos=True)
        await anext(running)
        await plane.models.drain(time.monotonic_ns())
        with pytest.raises(Draining):
            await text_of(running)


async def test_what_is_wrong_is_said_before_anything_runs(tmp_path: Path) -> None:
    """And counted nowhere, as anything that contradicts a model."""
    async with writing_plane(tmp_path) as plane:
        for prompt in ("x" * 2000, "x" * 250):
            with pytest.raises(InvalidRequest):
                await plane.text(prompt, max_tokens=100)
        request, stream = plane.ask("y" * 2000)
        plane.dataplane.cancel(request)
        with pytest.raises(Cancelled):
            await text_of(stream)
        [counts] = plane.dataplane.statistics("writer")
        assert (counts.success.count, counts.admitted, plane.batcher.writing.tokens) == (0, 0, 0)


def test_the_first_token_is_foreseen_by_who_goes_before() -> None:
    """Rows and the budget become free as texts end; prompts ahead take their time; steps cost by who takes part."""
    costs, room, own = WritingCosts(), Room(2, 1000, lambda waiting, running: 100), Part(20, 50, 70)
    assert first_token_ns([], [], own, room, costs) is None
    costs.steps, costs.prefill_ns = CostModel({1: 10, 2: 14}), 1.0
    one, other = Part(0, 30, 50), Part(0, 10, 50)
    assert first_token_ns([], [], own, room, costs) == 20
    # The rest of the step under way, and the one in which its prompt is taken in.
    assert first_token_ns([one], [], own, room, costs) == 5 + 10 + 20
    assert first_token_ns([one, other], [], own, room, costs) == 7 + 10 * 14 + 10 + 20
    assert first_token_ns([one, other], [Part(100, 19, 50)], own, room, costs) == 7 + 10 * 14 + 110 + 19 * 14 + 20
    # Rows are free, the budget is not.
    assert first_token_ns([Part(0, 30, 950)], [], own, room, costs) == 5 + 30 * 10 + 20
    # Who has a row and not all of its prompt goes before those who wait.
    assert first_token_ns([Part(200, 30, 50)], [], own, room, costs) == 200 + 0.2 * 10 + 20 + 0.8 * 10
    assert done_ns([one], [own], room, costs) == int(5 + 2 + 20 + 29.8 * 14 + 20.2 * 10)
    assert done_ns([], [], room, costs) == 0


def test_steps_of_one_size_alone_refuse_nobody() -> None:
    """What more texts would cost is not known, and not made up; then it is learned."""
    costs = WritingCosts()
    costs.learn_step(100, ran=1, prefilled=0, prefill_ns=0)
    assert [costs.step_ns(running) for running in (0, 1, 16)] == [0, 100, 100]
    for _ in range(30):
        costs.learn_step(500, ran=16, prefilled=50, prefill_ns=250)
    assert costs.step_ns(16) == pytest.approx(250, rel=0.1)
    assert 100 < costs.step_ns(8) < costs.step_ns(16)
    assert costs.prefill_ns == 5


def test_texts_are_expected_to_be_as_long_as_those_of_late() -> None:
    """Each as another one of those that were longer than it is by now; one that was cut says no more than that."""
    lengths = Lengths()
    assert lengths.left(10, 100, 0.5) == 90
    for tokens in (40, 20, 30, 10):
        lengths.learn(tokens, by_itself=True)
    assert [lengths.left(0, 100, place) for place in (0, 0.3, 0.6, 0.9)] == [10, 20, 30, 40]
    assert [lengths.left(20, 100, place) for place in (0, 0.6)] == [10, 20]
    assert lengths.left(0, 15, 0.9) == 15
    assert lengths.left(40, 100, 0.5) == 60
    lengths.learn(50, by_itself=False)
    assert lengths.left(40, 100, 0.5) == 60
    for _ in range(64):
        lengths.learn(7, by_itself=True)
    assert {lengths.left(0, 100, place) for place in (0, 0.5, 0.99)} == {7}


def test_a_config_with_fields_for_other_models_is_refused(tmp_path: Path) -> None:
    """What text can't have: sequences, kept answers, a platform."""
    for number, extra in enumerate(("sequence_batching { }", "response_cache { enable: true }", 'platform: "x"')):
        write_model(tmp_path, extra, name=f"m{number}")
        with pytest.raises(ModelLoadFailed):
            read_model_config(tmp_path / f"m{number}")


# --- what is counted, and the ends ------------------------------------------------------------------------------------

LONG = {"stop": [letter * LONGEST_STOP for letter in "abcdefgh"]}
"""So much that a prompt with it is made into tokens on a thread."""


async def test_everything_of_a_text_is_counted_once(tmp_path: Path) -> None:
    """Its prompt, its tokens, the times between them, and the time of the engine."""
    async with writing_plane(tmp_path) as plane:
        await plane.text("x" * 9, max_tokens=5, ignore_eos=True)
        await plane.settled()
        counts, writing = plane.batcher.statistics, plane.batcher.writing
        assert (counts.admitted, counts.success.count, counts.inference_count) == (1, 1, 1)
        assert (writing.tokens, writing.first_token.count, writing.between_tokens.count) == (5, 1, 4)
        assert writing.prompt_tokens == 9
        assert 0 < counts.busy_ns <= counts.compute_infer.ns <= counts.success.ns
        assert counts.compute_infer.count == 1
        assert counts.predicted_ns == 0
        assert writing.finished[Finish.LENGTH] == 1
        assert (counts.instances, plane.batcher.healthy()) == (1, True)


async def test_a_drain_of_who_has_nothing_to_do_is_over_at_once(tmp_path: Path) -> None:
    """It does not wait for its time."""
    async with writing_plane(tmp_path) as plane:
        await plane.text("x")
        async with asyncio.timeout(30):
            await plane.batcher.drain(time.monotonic_ns() + 3_600_000_000_000)
        with pytest.raises(Draining):
            await plane.text("x")


async def test_who_is_made_into_tokens_as_a_drain_begins_is_answered(tmp_path: Path) -> None:
    """It came before; who comes later is told so, however its prompt is made into tokens."""
    async with writing_plane(tmp_path) as plane:
        before = asyncio.ensure_future(plane.text("x", max_tokens=3, ignore_eos=True, **LONG))
        await asyncio.sleep(0)
        [request] = plane.batcher._preparing
        draining = asyncio.ensure_future(plane.batcher.drain(time.monotonic_ns() + 3_600_000_000_000))
        await asyncio.sleep(0)
        for more in ({}, LONG):
            with pytest.raises(Draining):
                await plane.text("x", max_tokens=3, **more)
        assert await before
        assert request.settled
        async with asyncio.timeout(30):
            await draining


async def test_who_goes_while_it_is_made_into_tokens_never_runs(tmp_path: Path) -> None:
    """Nor does one whose prompt turns out to be wrong there."""
    async with writing_plane(tmp_path) as plane:
        request, stream = plane.ask("x", **LONG)
        plane.dataplane.cancel(request)
        with pytest.raises(Cancelled):
            await text_of(stream)
        with pytest.raises(InvalidRequest):
            await plane.text("x" * 2000, **LONG)
        assert not plane.batcher._preparing
        assert await plane.text("y", max_tokens=2, ignore_eos=True)
        assert plane.batcher.writing.first_token.count == 1


async def test_it_is_ill_where_texts_run_and_have_no_token_for_a_minute(tmp_path: Path) -> None:
    """Not where their reader holds them, and not where nobody runs."""
    async with writing_plane(tmp_path) as plane:
        batcher = plane.batcher
        _, stream = plane.ask("x", max_tokens=250, ignore_eos=True)
        await anext(stream)
        [run] = batcher._runs.values()
        batcher._hold(run, held=True)
        batcher._moved_ns = time.monotonic_ns() - 61_000_000_000
        assert batcher.healthy()
        run.held = False
        assert not batcher.healthy()
        batcher._moved_ns = time.monotonic_ns() - 50_000_000_000
        assert batcher.healthy()
        run.held = True
        await stream.aclose()
        await plane.settled()
        batcher._moved_ns = 0
        assert batcher.healthy()


async def test_who_expires_tells_how_long_it_waited(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Since it was admitted; it is counted as expired."""
    step = GenaiInstance.step

    def slow(instance: GenaiInstance) -> Step:
        time.sleep(0.002)  # Or the text of `x` may be whole before it is held.
        return step(instance)

    monkeypatch.setattr(GenaiInstance, "step", slow)
    async with writing_plane(tmp_path, SLOW) as plane:
        _, running = plane.ask("x", max_tokens=250, ignore_eos=True)
        await anext(running)
        [run] = plane.batcher._runs.values()
        plane.batcher._hold(run, held=True)
        plane.batcher._door.costs.prefill_ns = 0.0
        began_ns = time.monotonic_ns()
        request, waiting = plane.ask("y", deadline_ns=began_ns + 20_000_000)
        with pytest.raises(DeadlineExceeded) as told:
            await text_of(waiting)
        assert told.value.waited_us <= (time.monotonic_ns() - began_ns) // 1000
        assert plane.batcher.statistics.expired == 1
        assert request not in plane.batcher._jobs
        await running.aclose()


async def test_why_a_text_is_gone_is_told_by_the_time(tmp_path: Path) -> None:
    """At the nanosecond of its deadline it expired; at that of the drain's end it failed; else its caller went away."""
    async with writing_plane(tmp_path) as plane:
        batcher, now_ns = plane.batcher, 10**18
        _, stream = plane.ask("x", max_tokens=250, ignore_eos=True)
        await anext(stream)
        [run] = batcher._runs.values()
        clock, batcher._clock = batcher._clock, lambda: now_ns
        told = []
        for run.deadline_ns, batcher._drain_until_ns in (
            (now_ns, now_ns),
            (now_ns + 1, now_ns),
            (now_ns + 1, now_ns + 1),
        ):
            told.append(batcher._why_gone(run))
        assert told == [Finish.EXPIRED, Finish.FAILED, Finish.CANCELLED]
        batcher._clock, run.deadline_ns, batcher._drain_until_ns = clock, NO_DEADLINE, NO_DEADLINE
        await stream.aclose()


async def test_who_comes_as_another_expires_has_its_row(tmp_path: Path) -> None:
    """It is not refused for a text that is over by then."""
    async with writing_plane(tmp_path, SLOW) as plane:
        _, running = plane.ask("x", max_tokens=250, ignore_eos=True)
        await anext(running)
        [run] = plane.batcher._runs.values()
        plane.batcher._hold(run, held=True)
        costs = plane.batcher._door.costs
        costs.steps, costs.prefill_ns = CostModel({1: 50_000_000}), 1_000_000.0
        run.deadline_ns = time.monotonic_ns()
        plane.batcher._door.margin.ns = 0.0
        _, after = plane.ask("y", max_tokens=2, ignore_eos=True, deadline_ns=time.monotonic_ns() + 9_000_000_000)
        assert await text_of(after)
        with pytest.raises(DeadlineExceeded):
            await text_of(running)
