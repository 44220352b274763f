"""The way to Tritons, over real gRPC to servers scripted in this process: faults that a real one rarely has."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from shutil import copy
from typing import Any

import grpc
import httpx
import numpy as np
import pytest
import tritonclient.grpc.aio as grpc_aio
from prometheus_client.parser import text_string_to_metric_families

from server.call import Settled, answer, settle_into
from server.engine.triton.addresses import Endpoint, Target, parse
from server.engine.triton.channel import Channels
from server.engine.triton.pool import Pool
from server.engine.triton.server import TritonServer
from server.errors import (
    CallExpired,
    Cancelled,
    DeadlineExceeded,
    EngineFailure,
    InvalidRequest,
    ModelNotReady,
    TritonLost,
    TritonQueueFull,
    TritonRefused,
    TritonUnreached,
    UnknownModel,
    UnknownRepository,
    Unsupported,
)
from server.observability.exposition import written
from server.over_triton.compose import check
from server.over_triton.metrics import TritonMetrics
from server.over_triton.models import TritonModels
from server.over_triton.pipelines import Pipelines
from server.pipeline.load import load_pipeline
from server.proto.triton import service_pb2 as pb
from server.settings import Settings, TritonSettings
from server.tensor import Array, Tensor
from server.types import NO_DEADLINE, InferRequest, InferResponse
from tests.e2e.conftest import REPOSITORY, ServerProcess, end, start
from tests.support import fake_triton
from tests.support.fake_triton import CONFIG, FakeTriton, Model, never, refusing, response
from tests.support.parts import self_signed

X = np.arange(6, dtype=np.float32).reshape(2, 3)
UNAVAILABLE = grpc.StatusCode.UNAVAILABLE


def settings(**more: Any) -> TritonSettings:
    return TritonSettings(
        url="grpc://a:1", health_interval_s=0.1, probe_timeout_s=5.0, max_backoff_s=0.3, poll_s=0.2, resolve_s=0.1
    ).model_copy(update=more)


@asynccontextmanager
async def over(
    *tritons: FakeTriton,
    folders: Sequence[Path] = (),
    url: str = "",
    look_up: Callable[[Target], Awaitable[Sequence[Endpoint]]] | None = None,
    **more: Any,
) -> AsyncIterator[TritonModels]:
    """Models in front of these, which are started if they are not."""
    for triton in tritons:
        if not triton.port:
            await triton.start()
    targets = parse(url or ",".join(f"grpc://127.0.0.1:{triton.port}" for triton in tritons), tls=False)
    own = settings(**more)
    channels = Channels(own, 1 << 26, tls=any(target.tls for target in targets))
    pool = Pool(targets, own, channels, look_up) if look_up else Pool(targets, own, channels)
    models = TritonModels(
        pool, Pipelines(folders, load_pipeline), own, default_max_queue_size=1000, max_override_bytes=1 << 20
    )
    try:
        await models.load_all([])
        yield models
    finally:
        await models.close()
        for triton in tritons:
            await triton.stop()


async def ask(models: TritonModels, x: Array = X, *, within_s: float = 0, name: str = "double", **more: Any) -> Array:
    """The answer of the model. Raises as the request was settled."""
    settled: Settled = asyncio.get_running_loop().create_future()
    now_ns = time.monotonic_ns()
    request = InferRequest(
        name,
        [Tensor.from_numpy("x", x)],
        on_settle=settle_into(settled),
        received_ns=now_ns,
        deadline_ns=now_ns + int(within_s * 1e9) if within_s else NO_DEADLINE,
        **more,
    )
    served = models.resolve(name)
    served.submit([request])

    def cancel(request: InferRequest) -> None:
        assert request.holder is not None
        request.holder.cancel(request)

    found: InferResponse = await answer(request, settled, cancel)
    return found.outputs[0].numpy()


async def until(true: Callable[[], bool], seconds: float = 20) -> None:
    async with asyncio.timeout(seconds):
        while not true():  # noqa: ASYNC110 - of plain state
            await asyncio.sleep(0.01)


# --- requests ----------------------------------------------------------------------------------------


async def test_a_request_goes_to_triton_and_its_answer_comes_back() -> None:
    """With the version meant, the id and the parameters."""
    triton = FakeTriton()
    async with over(triton) as models:
        found = await ask(models, id="seven", parameters={"a": 1})

    assert np.array_equal(found, X * 2)
    message = triton.requests[0]
    assert (message.model_version, message.id, message.parameters["a"].int64_param) == ("1", "seven", 1)


async def test_what_triton_refuses_is_told_in_its_words() -> None:
    """And is not asked again."""
    triton = FakeTriton()
    triton.script = refusing(grpc.StatusCode.INVALID_ARGUMENT, "the third column is odd")
    async with over(triton, FakeTriton()) as models:
        with pytest.raises(TritonRefused, match="the third column is odd"):
            await ask(models)

    assert len(triton.requests) <= 1


async def test_a_failure_of_the_model_is_told_without_its_text() -> None:
    """It may hold paths."""
    triton = FakeTriton()
    triton.script = refusing(grpc.StatusCode.INTERNAL, "at /secret/path")
    async with over(triton) as models:
        with pytest.raises(EngineFailure) as caught:
            await ask(models)

    assert "secret" not in caught.value.public_message
    assert "/secret/path" in caught.value.detail


async def test_the_queue_of_triton_may_be_full() -> None:
    """Nothing is wrong with the server then."""
    triton = FakeTriton()
    triton.script = refusing(UNAVAILABLE, "[request id: x] Exceeds maximum queue size", 1)
    async with over(triton) as models:
        with pytest.raises(TritonQueueFull):
            await ask(models)
        assert models.pool.up
        await ask(models)


async def test_what_triton_dropped_in_its_queue_is_a_deadline_missed() -> None:
    """It was not executed."""
    triton = FakeTriton()
    triton.script = refusing(UNAVAILABLE, "[request id: x] Request timeout expired")
    async with over(triton) as models:
        with pytest.raises(DeadlineExceeded):
            await ask(models)


async def test_a_deadline_ends_a_call_that_is_not_answered() -> None:
    """Triton was told it, as the call's and as `timeout`, and hears of the end."""
    triton = FakeTriton()
    triton.script = never
    async with over(triton) as models:
        began = time.monotonic()
        with pytest.raises(CallExpired):
            await ask(models, within_s=0.3)
        assert time.monotonic() - began < 2
        await until(lambda: triton.cancelled == 1)

    assert 0 < triton.requests[0].parameters["timeout"].int64_param <= 300_000


async def test_a_caller_who_goes_away_cancels_the_call() -> None:
    """Whatever Triton does with it."""
    triton = FakeTriton()
    triton.script = never
    async with over(triton) as models:
        task = asyncio.create_task(ask(models))
        await until(lambda: len(triton.requests) == 1)
        task.cancel()
        with pytest.raises((asyncio.CancelledError, Cancelled)):
            await task
        await until(lambda: triton.cancelled == 1)

    assert models.statistics_of("double", "1").cancelled == 1


async def test_a_bad_request_never_reaches_triton() -> None:
    """It is checked against Triton's config."""
    triton = FakeTriton()
    async with over(triton) as models:
        with pytest.raises(InvalidRequest, match="unexpected shape"):
            await ask(models, X[:, :2])

    assert triton.requests == []


async def test_many_at_a_time_are_all_answered() -> None:
    """Each with its own answer, over both servers."""
    tritons = FakeTriton(), FakeTriton()
    async with over(*tritons) as models:
        answers = await asyncio.gather(*(ask(models, X + number) for number in range(200)))

    assert all(np.array_equal(found, (X + number) * 2) for number, found in enumerate(answers))
    assert min(len(triton.requests) for triton in tritons) > 40


# --- failures of servers -----------------------------------------------------------------------------


async def test_a_server_that_is_gone_costs_nobody_anything() -> None:
    """A refused connection is no execution: the other one answers."""
    gone, there = FakeTriton(), FakeTriton()
    async with over(gone, there, health_interval_s=60.0) as models:
        await gone.stop()
        for _ in range(10):
            assert np.array_equal(await ask(models), X * 2)

    assert len(there.requests) >= 9


async def test_a_stopping_server_costs_nobody_anything() -> None:
    """It says that it takes nothing more; it is asked nothing more before it is ready again."""
    stopping, there = FakeTriton(), FakeTriton()
    stopping.script = refusing(UNAVAILABLE, "Server is stopping to serve requests.")
    async with over(stopping, there, health_interval_s=60.0) as models:
        stopping.ready = False
        for _ in range(10):
            await ask(models)

    assert len(stopping.requests) == 1
    assert len(there.requests) == 10


@pytest.mark.parametrize("details", ["Socket closed", "Stream removed (Socket closed)", "keepalive watchdog timeout"])
async def test_what_may_have_been_executed_is_not_sent_again(details: str) -> None:
    """The connection broke under it: its caller is told, and the server is probed before it is used again."""
    breaking, there = FakeTriton(), FakeTriton()
    breaking.script = refusing(UNAVAILABLE, details)
    outcomes = []
    async with over(breaking, there, health_interval_s=60.0) as models:
        for _ in range(4):
            try:
                outcomes.append(await ask(models))
            except TritonLost as error:
                outcomes.append(error)
            await until(lambda: len(models.pool.up) == 2)

    lost = [outcome for outcome in outcomes if isinstance(outcome, TritonLost)]
    assert len(lost) == len(breaking.requests) >= 1
    assert len(lost) + len(there.requests) == 4


async def test_a_server_that_dies_with_a_request_is_told_of() -> None:
    """A real end of a connection, with the call under way."""
    triton, other = FakeTriton(), FakeTriton()
    triton.script = other.script = never
    async with over(triton, other, health_interval_s=60.0) as models:
        task = asyncio.create_task(ask(models))
        await until(lambda: len(triton.requests) + len(other.requests) == 1)
        asked, idle = (triton, other) if triton.requests else (other, triton)
        await asked.stop()
        with pytest.raises(TritonLost):
            await task

    assert idle.requests == []


class Raw:
    """A server of bytes: once the client's first call is here it says `answer`, and closes."""

    def __init__(self, answer: bytes) -> None:
        self._answer = answer
        self.talks: list[asyncio.Task[Any]] = []

    async def __call__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        talk = asyncio.current_task()
        assert talk is not None
        self.talks.append(talk)
        with contextlib.suppress(ConnectionError):
            writer.write(b"\0\0\0\4\0\0\0\0\0")
            await reader.readuntil(X.tobytes())
            writer.write(self._answer)
            writer.close()
            await writer.wait_closed()


class OfGrpcio(Channels):
    """All calls go by grpcio's connection, as with TLS."""

    def link(self, endpoint: Endpoint) -> None:
        return None


REFUSED_STREAM = b"\0\0\4\3\0\0\0\0\1\0\0\0\7"
GOAWAY_BEFORE_IT = b"\0\0\x08\7\0\0\0\0\0\0\0\0\0\0\0\0\0"
GOAWAY_BEHIND_IT = b"\0\0\x08\7\0\0\0\0\0\0\0\0\1\0\0\0\0"
RESET = b"\0\0\4\3\0\0\0\0\1\0\0\0\2"


@pytest.mark.parametrize(
    ("said", "executed"),
    [(REFUSED_STREAM, False), (GOAWAY_BEFORE_IT, False), (GOAWAY_BEHIND_IT, True), (RESET, True), (b"", True)],
    ids=["a refused stream", "a farewell before it", "a farewell behind it", "a reset", "the end"],
)
@pytest.mark.parametrize("make", [Channels, OfGrpcio])
async def test_what_was_executed_is_told_by_the_protocol_and_by_the_words_of_grpcio(
    said: bytes, executed: bool, make: type[Channels]
) -> None:
    """Those texts are the installed library's: with another one this test says so."""
    raw = Raw(said)
    server = await asyncio.start_server(raw, "127.0.0.1", 0)
    target = Target("127.0.0.1", server.sockets[0].getsockname()[1], False)
    own = settings()
    triton = TritonServer(Endpoint(target, "127.0.0.1"), own, make(own, 1 << 20, tls=False), lambda _: None)
    outcome: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
    request = InferRequest("double", [Tensor.from_numpy("x", X)], on_settle=lambda *_: None, received_ns=0)
    triton.ask(request, "1", ["y"], outcome.set_result)
    try:
        found = await asyncio.wait_for(outcome, 30)
    finally:
        await triton.close(0)
        server.close()
        await asyncio.wait(raw.talks)

    assert isinstance(found, TritonLost if executed else TritonUnreached), repr(found)


async def test_a_server_that_does_not_answer_probes_is_ejected_and_comes_back() -> None:
    """After two of them; those who ask meanwhile are told at once."""
    triton = FakeTriton()
    async with over(triton, probe_timeout_s=0.3) as models:
        triton.silent = True
        await until(lambda: not models.pool.up)
        with pytest.raises(TritonUnreached):
            await ask(models)
        assert models.index()[0].state == "UNAVAILABLE"
        triton.silent = False
        # It is up, and was asked what it has.
        await until(lambda: models.resolve("double").healthy())
        await ask(models)


async def test_a_server_is_not_ejected_because_this_process_was_late() -> None:
    """A loop that hangs hears of no answer in time, and would eject everybody at once."""
    triton = FakeTriton()
    async with over(triton, probe_timeout_s=0.2) as models:
        for _ in range(3):
            await asyncio.sleep(0.15)
            time.sleep(0.6)  # noqa: ASYNC251 - it is the fault
        assert models.pool.servers[0].health.ejections == 0


async def test_a_server_that_stops_is_ejected_by_its_own_word() -> None:
    """Not ready, with nothing wrong with its models."""
    triton = FakeTriton()
    async with over(triton) as models:
        triton.ready = False
        await until(lambda: not models.pool.up)


async def test_a_model_that_can_not_be_loaded_leaves_the_others_theirs() -> None:
    """Under its strict readiness such a Triton says that it is not ready; what it serves is served."""
    broken = Model(CONFIG.replace('"double"', '"broken"'))
    broken.state, broken.reason = "UNAVAILABLE", "no such file"
    triton = FakeTriton(Model(), broken)
    triton.ready = False
    async with over(triton) as models:
        assert np.array_equal(await ask(models), X * 2)
        assert not any(server.ready for server in models.pool.up)
        with pytest.raises(ModelNotReady, match="no such file"):
            models.resolve("broken")


async def test_a_server_that_was_never_there_is_used_when_it_comes() -> None:
    """This server starts without any."""
    triton = FakeTriton()
    await triton.start()
    await triton.stop()
    async with over(triton) as models:
        with pytest.raises(UnknownModel):
            models.resolve("double")
        await triton.start()
        await until(lambda: bool(list(models)))
        await ask(models)


async def test_what_is_known_of_the_servers_is_told_as_metrics() -> None:
    """Of each by its address: up or not, how often it was ejected, what it may have and what it has."""
    gone, there = FakeTriton(), FakeTriton()
    async with over(gone, there, health_interval_s=60.0) as models:
        await gone.stop()
        for _ in range(4):
            await ask(models)
        await until(lambda: len(models.pool.up) == 1)
        text = written(TritonMetrics(models).collect(), openmetrics=False).decode()
        samples = {
            (sample.name, sample.labels.get("triton", "")): sample.value
            for family in text_string_to_metric_families(text)
            for sample in family.samples
        }

    names = [f"127.0.0.1:{triton.port}" for triton in (gone, there)]
    assert [samples["forwardpass_triton_up", name] for name in names] == [0, 1]
    assert [samples["forwardpass_triton_ejections_total", name] for name in names] == [1, 0]
    assert ("forwardpass_triton_window", names[0]) not in samples
    assert samples["forwardpass_triton_window", names[1]] == 32
    assert samples["forwardpass_triton_in_flight", names[1]] == 0
    assert samples["forwardpass_triton_retries_total", ""] == 1


# --- models ------------------------------------------------------------------------------------------


async def test_models_come_and_go_with_tritons() -> None:
    """What appears there appears here; what vanishes there vanishes here, and what it had admitted is answered."""
    triton = FakeTriton()
    async with over(triton) as models:
        new = Model(CONFIG, "2")
        triton.models[new.key] = new
        await until(lambda: len(models.versions("double")) == 2)
        await ask(models)
        assert triton.requests[-1].model_version == "2"

        del triton.models[new.key]
        await until(lambda: len(models.versions("double")) == 1)
        await ask(models)
        assert triton.requests[-1].model_version == "1"

        triton.models.clear()
        await until(lambda: not list(models))
        with pytest.raises(UnknownModel):
            models.resolve("double")


async def test_a_model_of_a_server_that_is_down_is_not_gone() -> None:
    """It is not ready, which is another thing to a client."""
    only, other = FakeTriton(), FakeTriton(Model(CONFIG.replace('"double"', '"other"')))
    async with over(only, other) as models:
        assert len(list(models)) == 2
        await only.stop()
        await until(lambda: len(models.pool.up) == 1)
        await asyncio.sleep(0.5)
        with pytest.raises(TritonUnreached):
            await ask(models)
        assert {entry.name: entry.state for entry in models.index()} == {"double": "UNAVAILABLE", "other": "READY"}


async def test_a_model_that_was_loaded_anew_is_served_by_its_new_config() -> None:
    """It is looked at again and again."""
    triton = FakeTriton()
    async with over(triton) as models:
        changed = Model(CONFIG.replace("dims: 3", "dims: 2"))
        triton.models[changed.key] = changed
        await until(lambda: models.version("double").config.inputs[0].dims == (2,))
        assert np.array_equal(await ask(models, X[:, :2]), X[:, :2] * 2)
        assert [statistics.success.count for statistics in [models.statistics_of("double", "1")]] == [1]


async def test_servers_that_say_different_things_of_a_model_are_not_mixed() -> None:
    """Whose config is in service goes on; the other one gets nothing of it."""
    one, other = FakeTriton(), FakeTriton(Model(CONFIG.replace("max_batch_size: 8", "max_batch_size: 4")))
    async with over(one, other) as models:
        for _ in range(6):
            await ask(models)

    assert sorted([len(one.requests), len(other.requests)]) == [0, 6]


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ("input { name: 's' data_type: TYPE_INT32 is_shape_tensor: true }", "shape"),
        ("input { name: 's' dims: 1 }", "data_type"),
    ],
    ids=["shape tensors", "a datatype that is not known"],
)
async def test_what_is_not_passed_through_is_said(more: str, words: str) -> None:
    """In the index, and to who asks; the others serve."""
    triton = FakeTriton(Model(), Model((CONFIG + more).replace('"double"', '"odd"')))
    async with over(triton) as models:
        with pytest.raises(ModelNotReady, match=words):
            models.resolve("odd")
        assert [entry.state for entry in models.index()] == ["READY", "UNAVAILABLE"]
        await ask(models)


@pytest.mark.parametrize("first", [True, False])
async def test_a_config_that_is_not_passed_through_leaves_others_of_the_version_theirs(first: bool) -> None:
    """Whichever Triton is asked first."""
    odd = FakeTriton(Model(CONFIG + "input { name: 's' dims: 1 }"))
    good = FakeTriton()
    async with over(*((odd, good) if first else (good, odd))) as models:
        assert np.array_equal(await ask(models), X * 2)
        assert [entry.state for entry in models.index()] == ["READY"]

    assert (len(odd.requests), len(good.requests)) == (0, 1)


async def test_a_version_that_becomes_one_that_is_not_passed_through_goes_out_of_service(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """It is said why, and once; and it comes back."""
    triton = FakeTriton()
    async with over(triton) as models:
        await ask(models)
        changed = Model(CONFIG + "input { name: 's' dims: 1 }")
        triton.models[changed.key] = changed
        await until(lambda: not models.placed())
        for _ in range(2):
            await models._follow(anew=True)
        with pytest.raises(ModelNotReady, match="data_type"):
            models.resolve("double")
        assert [record.levelname for record in caplog.records].count("ERROR") == 1
        triton.models[changed.key] = Model()
        await until(lambda: bool(models.placed()) and models.resolve("double").healthy())
        assert np.array_equal(await ask(models), X * 2)


async def test_a_server_that_comes_back_with_another_config_gets_nothing_of_the_old_one() -> None:
    """It is asked what it has before it is sent anything; the other one goes on."""
    one, other = FakeTriton(), FakeTriton()
    async with over(one, other) as models:
        await ask(models)
        await one.stop()
        await until(lambda: len(models.pool.up) == 1)
        changed = Model(CONFIG.replace("max_batch_size: 8", "max_batch_size: 4"))
        one.models[changed.key], before = changed, len(one.requests)
        await one.start()
        await until(lambda: len(models.pool.up) == 2)
        for _ in range(6):
            await ask(models)

    assert len(one.requests) == before


async def test_a_server_that_is_up_is_ready_when_it_has_said_what_it_has(monkeypatch: pytest.MonkeyPatch) -> None:
    """Until then nothing is sent to it, and the index does not say READY."""
    triton, told = FakeTriton(), asyncio.Event()
    async with over(triton) as models:
        await triton.stop()
        await until(lambda: not models.pool.up)
        request, config = fake_triton._METHODS["ModelConfig"]

        async def later(fake: FakeTriton, message: Any, context: Any) -> Any:
            await told.wait()
            return await config(fake, message, context)

        monkeypatch.setitem(fake_triton._METHODS, "ModelConfig", (request, later))
        await triton.start()
        await until(lambda: bool(models.pool.up))
        assert [entry.state for entry in models.index()] == ["UNAVAILABLE"]
        told.set()
        await until(lambda: [entry.state for entry in models.index()] == ["READY"])
        await ask(models)


async def test_a_server_that_did_not_say_what_it_has_is_asked_again_soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """As often as it is probed, and not only when configs are looked at anew."""
    triton, asked = FakeTriton(), 0
    request, config = fake_triton._METHODS["ModelConfig"]

    async def broken_at_first(fake: FakeTriton, message: Any, context: Any) -> Any:
        nonlocal asked
        asked += 1
        if asked <= 2:
            await context.abort(UNAVAILABLE, "not now")
        return await config(fake, message, context)

    monkeypatch.setitem(fake_triton._METHODS, "ModelConfig", (request, broken_at_first))
    async with over(triton, poll_s=3600.0) as models:
        assert [entry.reason for entry in models.index()] == ["not looked at yet"]
        await until(lambda: [entry.state for entry in models.index()] == ["READY"])
        assert np.array_equal(await ask(models), X * 2)


async def test_a_name_is_looked_up_again_and_again() -> None:
    """A replica that comes is used, one that goes is not, and a name that can't be looked up stays where it was."""
    first, second = FakeTriton(), FakeTriton()
    await first.start()
    await second.start()
    ports: list[int] | None = [first.port]

    async def look_up(target: Target) -> list[Endpoint]:
        if ports is None:
            raise OSError("no DNS")
        return [Endpoint(Target(target.host, port, False), "127.0.0.1") for port in ports]

    async with over(first, second, url="dns:///tritons:1", look_up=look_up) as models:
        assert len(models.pool.servers) == 1
        ports = [first.port, second.port]
        await until(lambda: len(models.pool.up) == 2)
        ports = [second.port]
        await until(lambda: len(models.pool.servers) == 1)
        ports = None
        await asyncio.sleep(0.3)
        before = len(first.requests)
        assert np.array_equal(await ask(models), X * 2)

    assert len(first.requests) == before
    assert len(second.requests) == 1


# --- control -----------------------------------------------------------------------------------------


async def test_loads_and_unloads_reach_every_triton() -> None:
    """With their parameters."""
    tritons = FakeTriton(), FakeTriton()
    async with over(*tritons) as models:
        await models.load("double", {"config": '{"name": "double"}', "file:1/model.onnx": b"bytes"})
        await models.unload("double", with_composing=True)

    for triton in tritons:
        load, unload = triton.controlled
        assert load.parameters["config"].string_param == '{"name": "double"}'
        assert load.parameters["file:1/model.onnx"].bytes_param == b"bytes"
        assert unload.parameters["unload_dependents"].bool_param


async def test_models_may_be_named_to_be_loaded_at_start(caplog: pytest.LogCaptureFixture) -> None:
    """By every Triton; what can't be is said, and the others serve."""
    triton = FakeTriton()
    await triton.start()
    triton.refuses_control = "no such model"
    own = settings()
    pool = Pool(parse(f"grpc://127.0.0.1:{triton.port}", tls=False), own, Channels(own, 1 << 20, tls=False))
    models = TritonModels(pool, Pipelines([], load_pipeline), own, default_max_queue_size=10, max_override_bytes=0)
    await models.load_all(["other"])
    assert [load.model_name for load in triton.controlled] == ["other"]
    assert "model 'other' is not loaded: no such model" in caplog.text
    assert np.array_equal(await ask(models), X * 2)
    await models.close()
    await triton.stop()


async def test_what_triton_says_to_a_load_is_told() -> None:
    """And what is wrong with it by itself, before it is asked."""
    triton = FakeTriton()
    triton.refuses_control = "failed to load 'double', no such file"
    async with over(triton) as models:
        with pytest.raises(TritonRefused, match="no such file"):
            await models.load("double")
        with pytest.raises(InvalidRequest, match=r"parameters\.nothing"):
            await models.load("double", {"nothing": "1"})
        with pytest.raises(UnknownRepository):
            await models.load("double", repository_name="models")
        await triton.stop()
        await until(lambda: not models.pool.up)
        with pytest.raises(TritonUnreached):
            await models.load("double")


# --- sequences ---------------------------------------------------------------------------------------

SEQUENCES = CONFIG.replace("dynamic_batching {}", "sequence_batching {}")


async def test_a_sequence_stays_with_one_triton_in_its_order() -> None:
    """However many come at a time; and several sequences are spread over the servers."""
    tritons = FakeTriton(Model(SEQUENCES)), FakeTriton(Model(SEQUENCES))
    flags: list[dict[str, bool]] = [{"sequence_start": True}, {}, {}, {"sequence_end": True}]
    async with over(*tritons) as models:
        await asyncio.gather(
            *(
                ask(models, X[:1] + step, parameters={"sequence_id": name, **flags[step]})
                for step in range(4)
                for name in range(1, 33)
            )
        )

    for triton in tritons:
        names = [message.parameters["sequence_id"].int64_param for message in triton.requests]
        assert len(set(names)) >= 4
        for name in set(names):
            values = [
                np.frombuffer(message.raw_input_contents[0], np.float32)[0]
                for message in triton.requests
                if message.parameters["sequence_id"].int64_param == name
            ]
            assert values == [0, 1, 2, 3]


async def test_a_sequence_whose_triton_dies_is_over_and_begins_anew_elsewhere() -> None:
    """Nobody else's state is touched."""
    tritons = FakeTriton(Model(SEQUENCES)), FakeTriton(Model(SEQUENCES))
    async with over(*tritons) as models:
        await ask(models, X[:1], parameters={"sequence_id": "s", "sequence_start": True})
        home, other = tritons if tritons[0].requests else tritons[::-1]
        home.script = never
        request = asyncio.create_task(ask(models, X[:1], parameters={"sequence_id": "s"}))
        await until(lambda: len(home.requests) == 2)
        await home.stop()
        with pytest.raises(TritonLost):
            await request
        await until(lambda: len(models.pool.up) == 1)
        await ask(models, X[:1], parameters={"sequence_id": "s", "sequence_start": True, "sequence_end": True})

    assert len(other.requests) == 1


# --- several responses -------------------------------------------------------------------------------

SEVERAL = CONFIG + "model_transaction_policy { decoupled: true }"


class Told:
    """Takes the responses to one request, with their end."""

    def __init__(self) -> None:
        self.rows: list[float] = []
        self.end: Any = None
        self.over = asyncio.Event()

    def take(self, response: InferResponse, go_on: Callable[[], None]) -> None:
        assert "triton_final_response" not in response.parameters
        self.rows.append(float(response.outputs[0].numpy()[0, 0]))
        go_on()

    def settle(self, _request: InferRequest, outcome: Any) -> None:
        self.end = outcome
        self.over.set()


def stream(models: TritonModels, told: Told) -> InferRequest:
    request = InferRequest(
        "double", [Tensor.from_numpy("x", X[:1])], on_settle=told.settle, received_ns=time.monotonic_ns(), caller=told
    )
    models.resolve("double").stream(request)
    return request


@pytest.mark.parametrize("empty", [True, False], ids=["a last one without outputs", "a last one with outputs"])
async def test_several_responses_come_as_triton_sends_them(empty: bool) -> None:
    """And their end is told once, whatever is in it."""
    triton = FakeTriton(Model(SEVERAL))
    last = response(None if empty else 3.0, final=True)
    triton.responses = [response(1.0, final=False), response(2.0, final=False), last]
    async with over(triton) as models:
        told = Told()
        stream(models, told)
        await told.over.wait()

    assert told.rows == [1.0, 2.0] + ([] if empty else [3.0])
    assert isinstance(told.end, InferResponse)
    assert list(told.end.outputs) == []
    assert triton.requests[0].parameters["triton_enable_empty_final_response"].bool_param


async def test_whoever_takes_one_answer_is_refused_by_a_model_that_gives_several() -> None:
    """As over the embedded engine; Triton does not hear of it."""
    triton = FakeTriton(Model(SEVERAL))
    async with over(triton) as models:
        with pytest.raises(Unsupported, match="decoupled"):
            await ask(models)

    assert triton.requests == []


async def test_an_error_ends_several_responses_behind_those_that_came() -> None:
    """Its text stays in the log."""
    triton = FakeTriton(Model(SEVERAL))
    triton.responses = [response(1.0, final=False), pb.ModelStreamInferResponse(error_message="at /a/path")]
    async with over(triton) as models:
        told = Told()
        stream(models, told)
        await told.over.wait()

    assert told.rows == [1.0]
    assert isinstance(told.end, EngineFailure)


async def test_a_caller_who_goes_away_ends_the_stream() -> None:
    """Triton hears of it."""
    triton = FakeTriton(Model(SEVERAL))
    triton.responses = [response(1.0, final=False), 3600.0]
    async with over(triton) as models:
        told = Told()
        request = stream(models, told)
        await until(lambda: told.rows == [1.0])
        assert request.holder is not None
        request.holder.cancel(request)
        await until(lambda: triton.cancelled == 1)

    assert isinstance(told.end, Cancelled)


async def test_responses_that_came_are_no_ground_to_ask_again() -> None:
    """The server goes in their midst: their caller is told, and nobody else is asked."""
    tritons = FakeTriton(Model(SEVERAL)), FakeTriton(Model(SEVERAL))
    for triton in tritons:
        triton.responses = [response(1.0, final=False), 3600.0]
    async with over(*tritons) as models:
        told = Told()
        stream(models, told)
        await until(lambda: told.rows == [1.0])
        await next(triton for triton in tritons if triton.requests).stop()
        await told.over.wait()

    assert isinstance(told.end, TritonLost)
    assert sum(len(triton.requests) for triton in tritons) == 1


# --- TLS ---------------------------------------------------------------------------------------------


def certified(folder: Path) -> tuple[grpc.ServerCredentials, grpc.ServerCredentials, dict[str, str]]:
    """A server's credentials, those that ask the client for a certificate too, and the settings that satisfy both."""
    files = self_signed(folder)
    pair = Path(files.key).read_bytes(), Path(files.certificate).read_bytes()
    asking = grpc.ssl_server_credentials([pair], root_certificates=pair[1], require_client_auth=True)
    own = {"tls_ca": files.certificate, "tls_certificate": files.certificate, "tls_key": files.key}
    return grpc.ssl_server_credentials([pair]), asking, own


async def test_tritons_may_speak_tls_and_ask_for_a_certificate(tmp_path: Path) -> None:
    """Each address of a name is dialled by itself, and certified by the name."""
    plain, asking, own = certified(tmp_path)
    one, other = FakeTriton(), FakeTriton()
    await one.start(plain)
    await other.start(asking)
    async with over(one, other, url=f"grpcs://localhost:{one.port},grpcs://127.0.0.1:{other.port}", **own) as models:
        assert len(models.pool.up) == 2
        assert np.array_equal(await ask(models), X * 2)


@pytest.mark.parametrize("lacking", ["tls_ca", "tls_certificate"])
async def test_who_is_not_certified_is_not_spoken_to(
    tmp_path: Path, lacking: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Neither a Triton of another authority, nor one that asks for a certificate that is not there. The log says what
    gRPC does of it."""
    _, asking, own = certified(tmp_path)
    triton = FakeTriton()
    await triton.start(asking)
    given = {name: path for name, path in own.items() if not name.startswith(lacking)}
    given.pop("tls_key" if lacking == "tls_certificate" else "", None)
    async with over(triton, url=f"grpcs://localhost:{triton.port}", **given) as models:
        assert models.pool.up == []
        assert "is not up: failed to connect" in caplog.text


async def test_certificates_that_change_are_read_anew(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Those of either side, while the server runs; what can't be read changes nothing."""
    one, other = tmp_path / "one", tmp_path / "other"
    for folder in (one, other):
        folder.mkdir()
    _, asking, own = certified(one)
    _, asking_anew, changed = certified(other)
    triton = FakeTriton()
    await triton.start(asking)
    async with over(triton, url=f"grpcs://localhost:{triton.port}", **own) as models:
        await ask(models)
        copy(changed["tls_key"], own["tls_key"])
        await until(lambda: "what was read before stays" in caplog.text)
        await ask(models)
        await triton.stop()
        await until(lambda: not models.pool.up)
        await triton.start(asking_anew)
        copy(changed["tls_ca"], own["tls_ca"])
        await until(lambda: bool(models.pool.up) and models.resolve("double").healthy())
        assert np.array_equal(await ask(models), X * 2)


async def test_a_stream_goes_on_while_certificates_change(tmp_path: Path) -> None:
    """By the connection that it has; the next call goes by a new one."""
    _, asking, own = certified(tmp_path)
    triton = FakeTriton(Model(SEVERAL))
    triton.responses = [response(1.0, final=False), 0.3, response(2.0, final=True)]
    await triton.start(asking)
    async with over(triton, url=f"grpcs://localhost:{triton.port}", **own) as models:
        told = Told()
        stream(models, told)
        await until(lambda: told.rows == [1.0])
        (server,) = models.pool.servers
        server.reconnect()
        await told.over.wait()
        assert told.rows == [1.0, 2.0]
        await until(lambda: not server._line._left)
        again = Told()
        stream(models, again)
        await again.over.wait()
        assert again.rows == [1.0, 2.0]


@pytest.mark.parametrize("which", ["tls_ca", "tls_certificate", "tls_key"])
def test_files_of_tls_that_are_none_are_said_at_the_start(tmp_path: Path, which: str) -> None:
    """gRPC would say nothing before a handshake fails."""
    *_, own = certified(tmp_path)
    bad = tmp_path / "bad.pem"
    bad.write_text("nothing")
    told = "bad.pem" if which != "tls_key" else "does not go with its key"
    with pytest.raises(OSError, match=told):
        Channels(settings(**{**own, which: str(bad)}), 1000, tls=True)


async def test_a_certificate_may_be_for_another_name(tmp_path: Path) -> None:
    """Which is told then."""
    plain, _, own = certified(tmp_path)
    triton = FakeTriton()
    await triton.start(plain)

    async def look_up(target: Target) -> list[Endpoint]:
        return [Endpoint(target, "127.0.0.1")]

    for name, up in (("", 0), ("localhost", 1)):
        url = f"grpcs://triton.example:{triton.port}"
        pool = Pool(
            parse(url, tls=False), settings(), Channels(settings(**own, tls_server_name=name), 1000, tls=True), look_up
        )
        await pool.start()
        assert len(pool.up) == up
        await pool.close()
    await triton.stop()


# --- a whole server over it --------------------------------------------------------------------------


@asynccontextmanager
async def gateway(folder: Path, *flags: str) -> AsyncIterator[ServerProcess]:
    server = await asyncio.to_thread(start, folder / "gateway.log", "--engine", "triton", *flags, repository=folder)
    try:
        yield server
    finally:
        await asyncio.to_thread(end, server)


@pytest.mark.e2e
@pytest.mark.parametrize("transport", ["http2", "grpcio"])
async def test_metadata_on_the_list_goes_along_and_no_other(tmp_path: Path, transport: str) -> None:
    """Of gRPC calls, of streams, and of REST requests."""
    triton = FakeTriton()
    await triton.start()
    names = ["--triton-forward-metadata", "traceparent, x-customer", "--grpc-transport", transport]
    given = {"traceparent": "00-1-2-01", "x-other": "no", "x-tenant": "me"}
    body = {"inputs": [{"name": "x", "datatype": "FP32", "shape": [2, 3], "data": X.ravel().tolist()}]}
    async with gateway(tmp_path, "--triton-url", f"grpc://127.0.0.1:{triton.port}", *names) as server:
        tensor = grpc_aio.InferInput("x", [2, 3], "FP32")
        tensor.set_data_from_numpy(X)
        async with grpc_aio.InferenceServerClient(server.grpc) as client:
            for customer in ("a", "b"):
                await client.infer("double", [tensor], headers={**given, "x-customer": customer})
            await client.infer("double", [tensor])

            async def one() -> AsyncIterator[dict[str, Any]]:
                yield {"model_name": "double", "inputs": [tensor]}

            async for _ in client.stream_infer(one(), headers={**given, "x-customer": "s"}):
                pass
        async with httpx.AsyncClient() as rest:
            url = f"{server.http}/v2/models/double/infer"
            for more in ({**given, "X-Customer": "c"}, {}, {"X-Customer": "\xe9"}):
                (await rest.post(url, json=body, headers=httpx.Headers(more, encoding="latin-1"))).raise_for_status()
    await triton.stop()

    seen = [{name: each[name] for name in ("traceparent", "x-customer") if name in each} for each in triton.metadata]
    trace = {"traceparent": "00-1-2-01"}
    assert seen == [
        *({**trace, "x-customer": customer} for customer in ("a", "b")),
        {},
        {**trace, "x-customer": "s"},
        {**trace, "x-customer": "c"},
        {},
        {},
    ]
    assert not any(name in each for each in triton.metadata for name in ("x-other", "x-tenant"))


@pytest.mark.e2e
async def test_control_over_the_wire_reaches_triton(tmp_path: Path) -> None:
    """Where the mode is explicit; else it is refused as ever, and Triton does not hear of it."""
    triton = FakeTriton()
    await triton.start()
    for mode, status in (("explicit", 200), ("none", 503)):
        triton.controlled.clear()
        flags = ["--triton-url", f"grpc://127.0.0.1:{triton.port}", "--model-control-mode", mode]
        async with gateway(tmp_path, *flags) as server, httpx.AsyncClient() as rest:
            answer = await rest.post(f"{server.http}/v2/repository/models/double/load", json={})
        assert (answer.status_code, len(triton.controlled)) == (status, status == 200)
    await triton.stop()


@pytest.mark.e2e
async def test_a_server_without_a_triton_is_live_and_not_ready(tmp_path: Path) -> None:
    """And is ready when one comes; SIGTERM ends it well."""
    triton = FakeTriton()
    await triton.start()
    await triton.stop()
    async with gateway(tmp_path, "--triton-url", f"grpc://127.0.0.1:{triton.port}") as server:
        async with httpx.AsyncClient() as rest:

            async def status(path: str) -> int:
                return (await rest.get(f"{server.http}/v2/{path}")).status_code

            async def becomes(path: str, wanted: int) -> None:
                async with asyncio.timeout(20):
                    while await status(path) != wanted:  # noqa: ASYNC110 - of another process
                        await asyncio.sleep(0.05)

            assert [await status(path) for path in ("health/live", "health/ready")] == [200, 503]
            await triton.start()
            await becomes("health/ready", 200)
            await becomes("models/double/ready", 200)
            await triton.stop()
            await becomes("health/ready", 503)
            assert await status("models/double/ready") == 503
            assert await status("health/live") == 200
        assert await asyncio.to_thread(server.terminate) == 0


# --- pipelines ---------------------------------------------------------------------------------------

DIGITS = """
name: "digits" backend: "python" max_batch_size: 8
input { name: "image" data_type: TYPE_FP32 dims: [ 1, 20, 20 ] }
output { name: "logits" data_type: TYPE_FP32 dims: 10 }
"""


async def sevens(message: Any, context: Any) -> Any:
    """Whatever the picture."""
    logits = np.zeros((1, 9 if context is None else 10), np.float32)
    logits[0, 7] = 9
    answer = pb.ModelInferResponse(model_name="digits", model_version="1")
    answer.outputs.add(name="logits", datatype="FP32", shape=logits.shape)
    answer.raw_output_contents.append(logits.tobytes())
    return answer


async def too_few(message: Any, _context: Any) -> Any:
    """One label less than the pipeline has."""
    return await sevens(message, None)


async def test_the_pipeline_of_the_folder_here_goes_round_triton() -> None:
    """By the model's name; its example was tried when the model came."""
    triton = FakeTriton(Model(DIGITS))
    triton.script = sevens
    async with over(triton, folders=[REPOSITORY]) as models:
        pipeline = models.resolve("digits").model.pipeline
        assert pipeline is not None
        assert models.index()[0].reason == ""
        assert pipeline.describe()["task"] == "image-classification"
        assert len(triton.requests) == 1


@pytest.mark.parametrize(
    ("config", "script", "words"),
    [
        (DIGITS.replace("20, 20", "28, 28"), sevens, "tensor 'image' is FP32 of shape"),
        (DIGITS.replace('"image"', '"picture"'), sevens, "makes the tensors image; the model takes picture"),
        (DIGITS, too_few, "can't make an answer of the model's outputs"),
        (DIGITS, refusing(grpc.StatusCode.INVALID_ARGUMENT, "no"), "its example is not answered: no"),
    ],
    ids=["another shape", "another name", "too few outputs", "an example that is refused"],
)
async def test_a_pipeline_that_does_not_fit_is_refused_and_infer_goes_on(config: str, script: Any, words: str) -> None:
    """With the reason in the index, and to who asks for a prediction."""
    triton = FakeTriton(Model(config))
    triton.script = script
    async with over(triton, folders=[REPOSITORY]) as models:
        assert models.resolve("digits").model.pipeline is None
        assert words in models.version("digits").problem
        entry = models.index()[0]
        assert entry.state == "READY"
        assert words in entry.reason


async def test_an_example_that_triton_has_no_time_for_says_nothing_of_the_pipeline(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The first pass of a model may take minutes."""
    monkeypatch.setattr("server.over_triton.version._EXAMPLE_NS", 100_000_000)
    triton = FakeTriton(Model(DIGITS))
    triton.script = never
    async with over(triton, folders=[REPOSITORY]) as models:
        assert models.resolve("digits").model.pipeline is not None
        assert models.version("digits").problem == ""


async def test_no_model_waits_for_the_example_of_another(tmp_path: Path) -> None:
    """They come into service together, or one whose first pass takes long would hold up all behind it."""
    for name in ("one", "other"):
        (tmp_path / name).symlink_to(REPOSITORY / "digits")
    triton = FakeTriton(*(Model(DIGITS.replace('"digits"', f'"{name}"')) for name in ("one", "other")))
    both = asyncio.Event()

    async def once_both_are_here(message: Any, context: Any) -> Any:
        if len(triton.requests) == 2:
            both.set()
        await both.wait()
        return await sevens(message, context)

    triton.script = once_both_are_here
    async with over(triton, folders=[tmp_path]) as models:
        assert all(models.resolve(name).model.pipeline is not None for name in ("one", "other"))
    assert not triton.cancelled


async def test_a_pipeline_that_was_changed_is_loaded_anew(tmp_path: Path) -> None:
    """As a model that was loaded anew is."""
    (tmp_path / "digits").symlink_to(REPOSITORY / "digits")
    triton = FakeTriton(Model(DIGITS))
    triton.script = sevens
    async with over(triton, folders=[tmp_path]) as models:
        assert models.resolve("digits").model.pipeline is not None
        (tmp_path / "digits").unlink()
        await until(lambda: models.resolve("digits").model.pipeline is None)


# --- check -------------------------------------------------------------------------------------------


async def test_check_tells_what_tritons_have() -> None:
    """And that none is there, where none is."""
    odd = Model((CONFIG + "input { name: 's' dims: 1 }").replace('"double"', '"odd"'))
    triton = FakeTriton(Model(), odd)
    await triton.start()
    own = Settings.model_validate(
        {"engine": {"kind": "triton"}, "triton": {"url": f"grpc://127.0.0.1:{triton.port}", "connect_timeout_s": 0.5}}
    )
    assert [(entry.name, entry.state) for entry in await check(own)] == [("double", "READY"), ("odd", "UNAVAILABLE")]
    await triton.stop()

    with pytest.raises(TritonUnreached):
        await check(own)
