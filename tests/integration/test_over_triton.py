"""In front of real tritonservers: the same answers as the embedded engine gives, and what becomes of a Triton that
dies, or hangs, under load.

A Triton that is missing (`make triton` installs one) skips these tests; under CI they fail.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import tritonclient.grpc.aio as grpc_aio
from tritonclient.utils import InferenceServerException

from server.client import Client
from server.local_triton.process import LocalTriton
from server.repository.golden import read_golden, read_raw
from tests.e2e.conftest import REPOSITORY, ROOT, ServerProcess, end, start
from tests.support.tritons import in_front_of, triton

pytestmark = pytest.mark.e2e

MODELS = ("breast_cancer", "digits", "fraud")
ABSOLUTE = 1e-5
NOTICED_S = 20.0
"""On a busy machine it takes longer to be told; on a quiet one a fraction of it."""
REPAIRED_S = 60.0
"""Likewise; on a quiet machine within 5 s."""


@dataclass(frozen=True)
class Sides:
    """The same models over Triton, and embedded."""

    tritons: tuple[LocalTriton, LocalTriton]
    over: ServerProcess
    embedded: ServerProcess


@pytest.fixture(scope="module")
def sides(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sides]:
    folder = tmp_path_factory.mktemp("over_triton")
    with ExitStack() as stack:
        first, second = (triton(stack, folder) for _ in range(2))
        over = stack.enter_context(in_front_of(folder, first, second))
        embedded = start(folder / "embedded.log")
        stack.callback(end, embedded)
        yield Sides((first, second), over, embedded)


def test_dashboards_ask_a_triton_for_what_it_tells(sides: Sides) -> None:
    """Every metric in a query of Tritons' jobs, and in the choice of them, is one of its own."""
    text = httpx.get(f"http://127.0.0.1:{sides.tritons[0].ports.metrics}/metrics").text
    told = set(re.findall(r"^# TYPE (\w+) ", text, re.MULTILINE))
    asked: set[str] = set()
    for file in (ROOT / "helm" / "forwardpass" / "dashboards").glob("*.json"):
        document = json.loads(file.read_text())
        queries = [target["expr"] for panel in document["panels"] for target in panel["targets"]]
        queries = [query for query in queries if "$triton" in query]
        queries += [each["query"] for each in document["templating"]["list"] if each["name"] == "triton"]
        asked |= {name for query in queries for name in re.findall(r"\bnv_\w+", query)}
    assert {"nv_inference_request_success", "nv_inference_queue_duration_us"} < asked <= told


@pytest.mark.parametrize("wire", ["grpc", "http"])
@pytest.mark.parametrize("model", MODELS)
def test_infer_answers_alike_on_both_engines(sides: Sides, model: str, wire: str) -> None:
    """The golden inputs, over both wires; and the golden outputs are what is answered."""
    golden = read_golden(REPOSITORY / model, "1")
    assert golden is not None
    inputs = {name: array[:8] for name, array in golden.inputs.items()}
    answers = []
    for side in (sides.over, sides.embedded):
        with Client(f"grpc://{side.grpc}" if wire == "grpc" else side.http) as client:
            answers.append(client.infer(model, inputs))

    assert list(answers[0]) == list(answers[1])
    for name, array in answers[0].items():
        np.testing.assert_allclose(array, answers[1][name], atol=ABSOLUTE, rtol=1e-4)
        np.testing.assert_allclose(array, golden.outputs[name][:8], atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("wire", ["grpc", "http"])
@pytest.mark.parametrize("model", MODELS)
def test_predict_answers_alike_on_both_engines(sides: Sides, model: str, wire: str) -> None:
    """The raw inputs of the model's certificate: the same labels, the scores within a tolerance."""
    raw = read_raw(REPOSITORY / model)[:4]
    answers = []
    for side in (sides.over, sides.embedded):
        with Client(f"grpc://{side.grpc}" if wire == "grpc" else side.http) as client:
            answers.append(client.predict(model, raw).predictions)

    assert [one.label for one in answers[0]] == [one.label for one in answers[1]]
    assert [one.score for one in answers[0]] == pytest.approx([one.score for one in answers[1]], abs=1e-4)


@pytest.mark.parametrize("model", MODELS)
def test_metadata_are_alike_but_for_the_platform(sides: Sides, model: str) -> None:
    """The platform is what runs the model there; `predict` is described by the pipeline here."""
    over, embedded = (httpx.get(f"{side.http}/v2/models/{model}").json() for side in (sides.over, sides.embedded))

    assert over.pop("platform") == "python"
    assert embedded.pop("platform") == "onnxruntime_onnx"
    assert over == embedded


def test_the_config_is_tritons_own(sides: Sides) -> None:
    """As it told it, to the last field."""
    over = httpx.get(f"{sides.over.http}/v2/models/digits/config").json()
    told = httpx.get(f"http://127.0.0.1:{sides.tritons[0].ports.http}/v2/models/digits/config").json()

    assert {
        name: over[name] for name in ("name", "backend", "max_batch_size", "dynamic_batching", "instance_group")
    } == {name: told[name] for name in ("name", "backend", "max_batch_size", "dynamic_batching", "instance_group")}


@pytest.mark.parametrize(
    "body",
    [
        {"inputs": []},
        {"inputs": [{"name": "nobody", "datatype": "FP32", "shape": [1], "data": [1]}]},
        {"inputs": [{"name": "image", "datatype": "FP32", "shape": [1, 1], "data": [1]}]},
        {"inputs": [{"name": "image", "datatype": "INT32", "shape": [1, 1, 20, 20], "data": [0] * 400}]},
        {"inputs": [{"name": "image", "datatype": "FP32", "shape": [99, 1, 20, 20], "data": [0] * 99 * 400}]},
    ],
    ids=["no inputs", "an unknown input", "a wrong shape", "a wrong datatype", "too many rows"],
)
def test_bad_requests_are_refused_alike(sides: Sides, body: dict[str, Any]) -> None:
    """Here, before they reach a Triton."""
    over, embedded = (
        httpx.post(f"{side.http}/v2/models/digits/infer", json=body) for side in (sides.over, sides.embedded)
    )

    assert (over.status_code, over.json()) == (embedded.status_code, embedded.json())


def test_an_unknown_model_is_unknown_alike(sides: Sides) -> None:
    """And an unknown version."""
    for path in ("nobody/infer", "digits/versions/9/infer"):
        over, embedded = (
            httpx.post(f"{side.http}/v2/models/{path}", json={"inputs": []}) for side in (sides.over, sides.embedded)
        )
        assert (over.status_code, over.json()) == (embedded.status_code, embedded.json())


def test_statistics_count_every_request_once(sides: Sides) -> None:
    """What is answered, and what fails, as this server counts it."""
    golden = read_golden(REPOSITORY / "fraud", "1")
    assert golden is not None

    def counts() -> list[int]:
        stats = httpx.get(f"{sides.over.http}/v2/models/fraud/stats").json()["model_stats"][0]
        return [stats["inference_stats"]["success"]["count"], stats["inference_count"], stats["execution_count"]]

    before = counts()
    with Client(sides.over.http) as client:
        for _ in range(5):
            client.infer("fraud", {name: array[:2] for name, array in golden.inputs.items()})

    assert [late - early for early, late in zip(before, counts(), strict=True)] == [5, 10, 5]


def test_both_tritons_are_used(sides: Sides) -> None:
    """Least work first: of many at a time each has its part."""

    async def counts() -> list[int]:
        return [await requests_at(one) for one in sides.tritons]

    async def each_has_some(_: Told) -> None:
        before = await counts()

        async def both() -> bool:
            return min(late - early for early, late in zip(before, await counts(), strict=True)) >= 50

        await wait_until(both, REPAIRED_S)

    asyncio.run(load(sides.over, seconds=0, deed=each_has_some))


# --- a Triton that dies or hangs -------------------------------------------------------------------


@dataclass
class Told:
    """What callers were told, and when."""

    outcomes: list[tuple[float, str]] = field(default_factory=list)
    wrong: int = 0
    slowest_s: float = 0.0

    def counts(self, since: float = 0.0, until: float = 1e18) -> Counter[str]:
        return Counter(outcome for at, outcome in self.outcomes if since <= at < until)

    async def all_are_answered(self) -> None:
        """Wait until so many in a row were answered that nobody is refused, or not any more."""
        since = len(self.outcomes)

        async def all_right() -> bool:
            lately = self.outcomes[since:][-_IN_A_ROW:]
            return len(lately) == _IN_A_ROW and all(outcome == "ok" for _, outcome in lately)

        await wait_until(all_right, REPAIRED_S)


Deed = Callable[["Told"], Awaitable[None]]
_IN_A_ROW = 200


async def load(
    server: ServerProcess,
    *,
    seconds: float,
    callers: int = 8,
    deadline_s: float | None = None,
    deed: Deed | None = None,
) -> Told:
    """So many callers at a time, each with its next request when it is answered, for so long; or, where there is a
    `deed`, until so long after it is done."""
    golden = read_golden(REPOSITORY / "digits", "1")
    assert golden is not None
    told, over = Told(), asyncio.Event()
    client = grpc_aio.InferenceServerClient(server.grpc)

    async def call(row: int) -> None:
        given = grpc_aio.InferInput("image", [1, *golden.inputs["image"].shape[1:]], "FP32")
        given.set_data_from_numpy(golden.inputs["image"][row : row + 1])
        began = time.monotonic()
        try:
            answer = await client.infer("digits", [given], client_timeout=deadline_s)
        except InferenceServerException as error:
            told.outcomes.append((time.monotonic(), str(error.status())))
            await asyncio.sleep(0.01)
        else:
            told.outcomes.append((time.monotonic(), "ok"))
            same = np.allclose(answer.as_numpy("logits"), golden.outputs["logits"][row], atol=1e-3, rtol=1e-3)
            told.wrong += not same
        told.slowest_s = max(told.slowest_s, time.monotonic() - began)

    async def caller(number: int) -> None:
        while not over.is_set():
            await call(number % len(golden.inputs["image"]))

    async def whole() -> None:
        try:
            if deed is not None:
                await deed(told)
            await asyncio.sleep(seconds)
        finally:
            over.set()

    await asyncio.gather(*(caller(number) for number in range(callers)), whole())
    await client.close()
    return told


async def wait_until(true: Callable[[], Awaitable[bool]], seconds: float) -> float:
    """Returns after how many seconds it was."""
    began = time.monotonic()
    while not await true():
        assert time.monotonic() < began + seconds, f"not within {seconds} s"
        await asyncio.sleep(0.05)
    return time.monotonic() - began


async def ready(url: str) -> bool:
    async with httpx.AsyncClient() as client:
        with suppress(httpx.HTTPError):
            return (await client.get(f"{url}/v2/health/ready", timeout=2)).status_code == 200
    return False


async def requests_at(one: LocalTriton) -> int:
    """Successes that a Triton counts."""
    async with httpx.AsyncClient() as client:
        answer = await client.get(f"http://127.0.0.1:{one.ports.http}/v2/models/digits/stats", timeout=5)
    count: int = answer.json()["model_stats"][0]["inference_stats"]["success"]["count"]
    return count


def test_a_triton_that_is_killed_costs_what_it_had_in_flight_and_nothing_else(tmp_path: Path) -> None:
    """Every request is answered, none wrongly; errors are those of requests that it had; and once it is there again
    it is used within seconds."""
    with ExitStack() as stack:
        first, second = (triton(stack, tmp_path) for _ in range(2))
        over = stack.enter_context(in_front_of(tmp_path, first, second))
        killed: list[float] = []

        async def kill_and_restart(told: Told) -> None:
            await told.all_are_answered()
            killed.append(time.monotonic())
            second.kill()
            await asyncio.sleep(1)
            second.stop()
            second.start()
            await asyncio.to_thread(second.wait_ready, 90)
            killed.append(time.monotonic())

            async def used() -> bool:
                return await requests_at(second) > 0

            await wait_until(used, REPAIRED_S)
            await told.all_are_answered()

        told = asyncio.run(load(over, seconds=0, deed=kill_and_restart))

    errors = {kind: count for kind, count in told.counts().items() if kind != "ok"}
    assert told.wrong == 0
    assert set(errors) <= {"StatusCode.UNAVAILABLE"}
    assert sum(errors.values()) <= 8, "more than were in flight"
    assert told.counts(until=killed[0]).keys() == {"ok"}
    assert told.slowest_s < NOTICED_S


def test_a_triton_that_hangs_costs_its_callers_their_deadline(tmp_path: Path) -> None:
    """It is ejected, readiness says so, and it is back when it goes on. Whoever has a deadline is answered by then."""
    with ExitStack() as stack:
        only = triton(stack, tmp_path)
        over = stack.enter_context(in_front_of(tmp_path, only, probe_timeout_s=1.0))
        stack.callback(lambda: os.kill(only.pid, signal.SIGCONT))

        async def stop_and_go_on(told: Told) -> None:
            await told.all_are_answered()
            os.kill(only.pid, signal.SIGSTOP)

            async def unready() -> bool:
                return not await ready(over.http)

            await wait_until(unready, NOTICED_S)
            await asyncio.sleep(1)
            os.kill(only.pid, signal.SIGCONT)
            await wait_until(lambda: ready(over.http), REPAIRED_S)
            await told.all_are_answered()

        told = asyncio.run(load(over, seconds=0, deadline_s=1.0, deed=stop_and_go_on))

    assert told.wrong == 0
    assert told.slowest_s < NOTICED_S
    # Who comes while others wait for it is told at once that an answer would be too late.
    refusals = {"StatusCode.DEADLINE_EXCEEDED", "StatusCode.UNAVAILABLE", "StatusCode.RESOURCE_EXHAUSTED"}
    assert told.counts().keys() <= {"ok", *refusals}


def test_whoever_has_no_deadline_is_told_when_a_connection_is_dead(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A Triton that hangs answers no ping; its requests may have been executed, and are not sent again."""
    monkeypatch.setenv("FORWARDPASS_TRITON__KEEPALIVE_S", "1")
    monkeypatch.setenv("FORWARDPASS_TRITON__KEEPALIVE_TIMEOUT_S", "1")
    with ExitStack() as stack:
        only = triton(stack, tmp_path)
        over = stack.enter_context(in_front_of(tmp_path, only, probe_timeout_s=1.0))
        stack.callback(lambda: os.kill(only.pid, signal.SIGCONT))

        async def stop(told: Told) -> None:
            await told.all_are_answered()
            os.kill(only.pid, signal.SIGSTOP)

            async def unready() -> bool:
                return not await ready(over.http)

            await wait_until(unready, NOTICED_S)

        told = asyncio.run(load(over, seconds=1, deed=stop))

    assert told.counts().keys() == {"ok", "StatusCode.UNAVAILABLE"}
    assert told.slowest_s < NOTICED_S + 4


def test_a_shutdown_answers_what_was_admitted(tmp_path: Path) -> None:
    """SIGTERM under load: whoever was taken in is answered; the exit status is 0."""
    with ExitStack() as stack:
        first, second = (triton(stack, tmp_path) for _ in range(2))
        over = stack.enter_context(in_front_of(tmp_path, first, second))
        at: list[float] = []

        async def end_it(told: Told) -> None:
            await told.all_are_answered()
            at.append(time.monotonic())
            assert await asyncio.to_thread(over.terminate) == 0

        told = asyncio.run(load(over, seconds=0, deed=end_it))

    assert told.wrong == 0
    assert told.counts(until=at[0]).keys() == {"ok"}
    # Without deadlines nobody is foreseen to be late: none is refused but for the drain.
    assert told.counts().keys() <= {"ok", "StatusCode.UNAVAILABLE"}
    log = (tmp_path / "gateway.log").read_text()
    assert "ERROR" not in log, log
    assert "Traceback" not in log, log
