"""Calls that nobody waits for any more: Tritons that survive hearing of it do, others never hear of it."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from server.errors import CallExpired, Cancelled, ModelNotReady, TritonUnreached
from tests.integration.test_triton_engine import X, ask, certified, over, until
from tests.support.fake_triton import FakeTriton, doubled, never


class Late:
    """Answers once it may."""

    def __init__(self) -> None:
        self.may = asyncio.Event()
        self.answered = 0

    async def __call__(self, message: Any, _context: Any) -> Any:
        await self.may.wait()
        self.answered += 1
        return doubled(message)


async def started(transport: str, folder: Path, version: str) -> tuple[FakeTriton, dict[str, Any]]:
    """In plain text or with TLS: our own connection, or grpcio's. And what reaches it."""
    triton = FakeTriton()
    triton.version = version
    if transport == "plain":
        await triton.start()
        return triton, {}
    plain, _, own = certified(folder)
    await triton.start(plain)
    return triton, {"url": f"grpcs://localhost:{triton.port}", "tls_ca": own["tls_ca"]}


async def gone(models: Any, triton: FakeTriton) -> None:
    """A caller who goes away once his request is there."""
    before = len(triton.requests)
    task = asyncio.create_task(ask(models))
    await until(lambda: len(triton.requests) > before)
    task.cancel()
    with pytest.raises((asyncio.CancelledError, Cancelled)):
        await task


async def served_again(models: Any) -> None:
    """By a Triton that is back."""
    async with asyncio.timeout(20):
        while True:
            try:
                await ask(models)
            except (ModelNotReady, TritonUnreached):
                await asyncio.sleep(0.01)
            else:
                return


@pytest.mark.parametrize("transport", ["plain", "tls"])
async def test_a_triton_that_it_may_end_never_hears_of_it(tmp_path: Path, transport: str) -> None:
    """Its callers are answered in time all the same; what comes too late is thrown away, and the next is answered."""
    triton, more = await started(transport, tmp_path, "2.51.0")
    triton.script = late = Late()
    async with over(triton, **more) as models:
        with pytest.raises(CallExpired):
            await ask(models, within_s=0.2)
        await gone(models, triton)
        late.may.set()
        assert np.array_equal(await ask(models), X * 2)
        await until(lambda: late.answered == 3)

    assert triton.cancelled == 0
    assert triton.timeouts == [None, None, None]
    assert 0 < triton.requests[0].parameters["timeout"].int64_param <= 200_000


@pytest.mark.parametrize("transport", ["plain", "tls"])
async def test_its_late_answers_are_waited_for_at_the_end(tmp_path: Path, transport: str) -> None:
    """A connection that ends under a call cancels it, too."""
    triton, more = await started(transport, tmp_path, "2.51.0")
    triton.script = late = Late()
    async with over(triton, **more) as models:
        await gone(models, triton)
        closing = asyncio.create_task(models.close())
        await asyncio.wait([closing], timeout=0.1)
        assert not closing.done()
        late.may.set()
        await closing

    assert (triton.cancelled, late.answered) == (0, 1)


@pytest.mark.parametrize(("version", "cancellation"), [("2.60.0", "auto"), ("2.51.0", "always")])
@pytest.mark.parametrize("transport", ["plain", "tls"])
async def test_another_hears_of_it(tmp_path: Path, transport: str, version: str, cancellation: str) -> None:
    """By its version, or because the operator knows better."""
    triton, more = await started(transport, tmp_path, version)
    triton.script = never
    async with over(triton, cancellation=cancellation, **more) as models:
        with pytest.raises(CallExpired):
            await ask(models, within_s=0.2)
        await until(lambda: triton.cancelled == 1)
        await gone(models, triton)
        await until(lambda: triton.cancelled == 2)

    assert triton.timeouts[0] is not None


async def test_none_hears_of_it_where_the_operator_says_so() -> None:
    """Whatever its version."""
    triton = FakeTriton()
    triton.script = late = Late()
    async with over(triton, cancellation="never") as models:
        await gone(models, triton)
        late.may.set()
        await until(lambda: late.answered == 1)

    assert triton.cancelled == 0


async def test_another_version_at_the_same_address_is_met_anew() -> None:
    """Each time that it comes up."""
    triton = FakeTriton()
    async with over(triton) as models:
        await ask(models)
        await triton.stop()
        await until(lambda: not models.pool.up)
        triton.version = "2.51.0"
        await triton.start()
        await served_again(models)
        triton.script = late = Late()
        await gone(models, triton)
        late.may.set()
        await until(lambda: late.answered == 1)

    assert triton.cancelled == 0
