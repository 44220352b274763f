"""The data plane over the scripted engine: ways in, swaps, drains, health."""

from __future__ import annotations

import asyncio
import gc
import threading
import time
import weakref
from collections.abc import AsyncIterator
from pathlib import Path

import numpy as np
import pytest

from server.engine.fake import Script
from server.errors import (
    Cancelled,
    ControlNotAllowed,
    DeadlineExceeded,
    Draining,
    InvalidRequest,
    ModelLoadFailed,
    ModelNotReady,
    ServingError,
    UnknownModel,
    Unsupported,
)
from server.explain import Explanation, WaitReason
from server.lifecycle import State
from server.observability.whose import asker_of
from server.tensor import Tensor
from server.types import InferRequest, Outcome, PredictRequest, PredictResponse, RowInput
from tests.support.plane import CONFIG, Plane, Rows


@pytest.fixture
async def plane(tmp_path: Path) -> AsyncIterator[Plane]:
    """Model m, version 1, on the scripted engine, in explicit mode."""
    Rows.gate.set()
    plane = Plane(tmp_path, Script())
    plane.write("m", "1")
    yield plane
    plane.script.release.set()
    Rows.gate.set()
    await plane.models.close()
    plane.dataplane.close()


class Values(list[float]):
    """That can be told to be gone."""


def value(outcome: Outcome) -> float:
    assert not isinstance(outcome, BaseException), outcome
    return float(outcome.outputs[0].numpy()[0, 0])


async def test_infer_answers_with_the_callers_own_rows(plane: Plane) -> None:
    """Requests that arrive together run together, and each gets its own sum."""
    await plane.start()

    outcomes = await asyncio.gather(*(plane.ask(index, 1) for index in range(3)))

    assert [value(outcome) for outcome in outcomes] == [1, 2, 3]


@pytest.mark.parametrize(
    ("model", "version", "error"),
    [("nope", "", UnknownModel), ("m", "7", UnknownModel), ("../m", "", UnknownModel), ("", "", UnknownModel)],
)
async def test_an_unknown_model_or_version_settles_as_unknown(
    plane: Plane, model: str, version: str, error: type[ServingError]
) -> None:
    """Nothing raises out of submit: the outcome says what is wrong."""
    await plane.start()

    assert isinstance(await plane.ask(1, 2, model=model, version=version), error)


async def test_a_broken_model_is_not_ready_and_says_why(plane: Plane) -> None:
    """A model whose config can't be read is UNAVAILABLE with its reason, not unknown."""
    plane.write("broken", "1", config="frobnicate: 1")
    await plane.start()

    outcome = await plane.ask(1, 2, model="broken")

    assert isinstance(outcome, ModelNotReady)
    assert "config.pbtxt" in outcome.public_message
    assert not plane.dataplane.model_ready("broken")
    assert plane.dataplane.ready()


async def test_predict_goes_through_the_pipeline_and_back(plane: Plane) -> None:
    """Raw rows in, named answers out, one for each, in order."""
    (plane.root / "m").mkdir(exist_ok=True)
    (plane.root / "m" / "processing.yaml").write_text("task: test")
    await plane.start()

    answer = await plane.dataplane.predict(PredictRequest("m", [RowInput([1, 2]), RowInput([3, 4])], id="7"))

    assert [prediction.label for prediction in answer.predictions] == ["3", "7"]
    assert (answer.model_name, answer.model_version, answer.id) == ("m", "1", "7")


def fail(*_: object) -> None:
    """A step of a pipeline."""
    raise InvalidRequest("inputs[0]", "is wrong")


async def test_a_prediction_begins_by_a_plain_call(plane: Plane) -> None:
    """And its answer is that of `predict`; of what can't be taken in nobody hears later."""
    (plane.root / "m" / "processing.yaml").write_text("task: test")
    await plane.start()
    asked, heard = PredictRequest("m", [RowInput([1, 2]), RowInput([3, 4])], id="7"), asyncio.Queue[object]()
    assert plane.dataplane.begin(asked, heard.put_nowait) is not None
    assert await heard.get() == await plane.dataplane.predict(asked)
    with pytest.raises(UnknownModel):
        plane.dataplane.begin(PredictRequest("none", asked.inputs), heard.put_nowait)
    assert heard.empty()


async def test_a_prediction_that_does_not_begin_holds_no_version(plane: Plane, monkeypatch: pytest.MonkeyPatch) -> None:
    (plane.root / "m" / "processing.yaml").write_text("task: test")
    await plane.start()
    monkeypatch.setattr(plane.dataplane._predictions, "begin", fail)
    with pytest.raises(InvalidRequest):
        plane.dataplane.begin(PredictRequest("m", [RowInput([1, 2])]), fail)
    assert not plane.models.resolve("m")._held


@pytest.mark.parametrize("fails", ["preprocess", "postprocess"])
async def test_a_prediction_without_a_task_hears_its_error(
    plane: Plane, fails: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The error, which knows whose it is; the version is held by nobody then."""
    (plane.root / "m" / "processing.yaml").write_text("task: test")
    await plane.start()
    monkeypatch.setattr(Rows, fails, fail)
    asked, heard = PredictRequest("m", [RowInput([1, 2])]), asyncio.Queue[object]()
    plane.dataplane.begin(asked, heard.put_nowait)
    error = await heard.get()
    assert isinstance(error, InvalidRequest)
    assert asker_of(error) is asked
    assert not plane.models.resolve("m")._held


async def test_a_prediction_without_a_task_keeps_its_version_until_it_is_answered_or_cancelled(plane: Plane) -> None:
    (plane.root / "m" / "processing.yaml").write_text("task: test")
    await plane.start()
    served, heard = plane.models.resolve("m"), asyncio.Queue[object]()
    for cancelled in (False, True):
        Rows.gate.clear()
        request = plane.dataplane.begin(PredictRequest("m", [RowInput([1, 2])]), heard.put_nowait)
        assert (request is not None, served._held) == (True, 1)
        if cancelled and request is not None:
            plane.dataplane.cancel(request)
        Rows.gate.set()
        assert isinstance(await heard.get(), Cancelled if cancelled else PredictResponse)
        assert not served._held


async def test_what_plain_calls_do_not_do_is_left_to_predict(plane: Plane, monkeypatch: pytest.MonkeyPatch) -> None:
    """Answers that a thread makes of the inputs, and predictions that somebody follows."""
    (plane.root / "m" / "processing.yaml").write_text("task: test")
    await plane.start()
    asked, heard = PredictRequest("m", [RowInput([1, 2])]), asyncio.Queue[object]()
    with monkeypatch.context() as patched:
        patched.setattr(Rows, "postprocess_inputs", lambda *_: [], raising=False)
        assert plane.dataplane.begin(asked, heard.put_nowait) is None
    monkeypatch.setattr(plane.dataplane.tracing, "following", object())
    assert plane.dataplane.begin(asked, heard.put_nowait) is None
    assert heard.empty()


@pytest.mark.parametrize("fails", ["preprocess", "postprocess"])
async def test_a_prediction_that_fails_leaves_nothing_to_the_collector(
    plane: Plane, fails: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its error knows the frames that it came through, and none of them holds the error: the inputs go at once."""
    (plane.root / "m" / "processing.yaml").write_text("task: test")
    await plane.start()
    monkeypatch.setattr(Rows, fails, fail)
    gc.collect()
    gc.disable()
    try:
        values = Values([1, 2])
        gone = weakref.ref(values)
        with pytest.raises(InvalidRequest) as raised:
            await plane.dataplane.predict(PredictRequest("m", [RowInput(values)]))
        del raised, values
        await asyncio.sleep(0.01)
        assert gone() is None
    finally:
        gc.enable()


async def test_what_is_not_known_of_a_model_refuses_nobody_unread(plane: Plane) -> None:
    """Neither a model that there is not, nor one that was never asked, nor one that is idle."""
    (plane.root / "m" / "processing.yaml").write_text("task: test")
    await plane.start()
    now_ns = time.monotonic_ns()
    for name in ("nobody", "m"):
        assert plane.dataplane.hopeless(name, 1000, now_ns, now_ns + 1) is None
    await plane.dataplane.predict(PredictRequest("m", [RowInput([1, 2])]))
    assert plane.dataplane.hopeless("m", 1000, now_ns, now_ns + 1) is None


async def test_a_prediction_is_explained_from_its_preprocessing_to_its_answer(plane: Plane) -> None:
    """Every step marks its part; they sum to the total, and the pass's rows are told."""
    (plane.root / "m" / "processing.yaml").write_text("task: test")
    await plane.start()
    explanation = Explanation(time.monotonic_ns())
    request = PredictRequest("m", [RowInput([1, 2]), RowInput([3, 4])], explanation=explanation)
    await plane.dataplane.predict(request)
    parts = explanation.parts_ns()
    total = parts.pop("total")
    steps = ["preprocess", "queue", "compute_input", "compute", "compute_output", "postprocess", "loop"]
    assert list(parts) == steps
    assert (sum(parts.values()), min(parts.values()) >= 0) == (total, True)
    assert (explanation.batch_rows, explanation.waited) == (2, WaitReason.NONE)


async def test_predict_without_a_pipeline_is_unsupported(plane: Plane) -> None:
    """A plain Triton model has no processing.yaml: the caller is told to use infer."""
    await plane.start()

    with pytest.raises(Unsupported, match="infer"):
        await plane.dataplane.predict(PredictRequest("m", [RowInput([1, 2])]))


@pytest.mark.parametrize("rows", [0, 5])
async def test_predict_holds_max_batch_size(plane: Plane, rows: int) -> None:
    """Neither an empty list nor more inputs than max_batch_size gets as far as preprocessing."""
    (plane.root / "m" / "processing.yaml").write_text("task: test")
    await plane.start()

    with pytest.raises(InvalidRequest, match=f"1 to 4 .*got {rows}"):
        await plane.dataplane.predict(PredictRequest("m", [RowInput([1, 2])] * rows))


async def test_a_deadline_that_is_over_is_not_executed(plane: Plane) -> None:
    """The engine never sees a request whose caller has stopped waiting."""
    await plane.start()
    passes = len(plane.engine.batches)

    outcome = await plane.ask(1, 2, deadline_ns=time.monotonic_ns() - 1)

    assert isinstance(outcome, DeadlineExceeded)
    assert len(plane.engine.batches) == passes


async def test_cancelling_a_prediction_cancels_its_request(plane: Plane, caplog: pytest.LogCaptureFixture) -> None:
    """The task of a client that went away ends, and the statistics count one CANCELED."""
    (plane.root / "m" / "processing.yaml").write_text("task: test")
    plane.script.latency_s = lambda rows: 0.001  # long enough to run on a thread of its own
    await plane.start()
    plane.engine.play(["hang"])
    passes = len(plane.engine.batches)
    task = asyncio.create_task(plane.dataplane.predict(PredictRequest("m", [RowInput([1, 2])])))
    while len(plane.engine.batches) == passes:  # noqa: ASYNC110 - the engine runs on a thread
        await asyncio.sleep(0.001)
    task.cancel()

    with pytest.raises(asyncio.CancelledError):
        await task
    assert plane.dataplane.statistics("m")[0].failures["CANCELED"] == 1
    assert caplog.text == "", "what became of it is told to nobody any more"
    plane.script.release.set()


async def test_a_swap_keeps_the_version_that_preprocesses(plane: Plane) -> None:
    """A picture is being decoded while its model is reloaded: the prediction is answered all the same."""
    (plane.root / "m" / "processing.yaml").write_text("task: test")
    await plane.start()
    Rows.gate.clear()
    task = asyncio.create_task(plane.dataplane.predict(PredictRequest("m", [RowInput([1, 2])])))
    await asyncio.sleep(0)
    (plane.root / "m" / "processing.yaml").unlink()
    await plane.dataplane.load_model("m")
    assert not plane.engine.loaded[0].closed
    Rows.gate.set()

    assert (await task).predictions[0].label == "3"


async def test_a_failed_reload_leaves_the_old_version_serving(plane: Plane) -> None:
    """What served goes on serving, and the caller of load gets the reason."""
    await plane.start()
    plane.script.load_problem = "the file is corrupt"

    with pytest.raises(ModelLoadFailed, match="corrupt"):
        await plane.dataplane.load_model("m")

    assert value(await plane.ask(1, 2)) == 3


async def test_an_old_version_is_closed_once_it_is_drained(plane: Plane) -> None:
    """A swap frees the memory of what it replaced, and only that."""
    await plane.start()
    await plane.dataplane.load_model("m")
    async with asyncio.timeout(30):
        while not plane.engine.loaded[0].closed:  # noqa: ASYNC110 - of a thread's work
            await asyncio.sleep(0.01)

    assert [model.closed for model in plane.engine.loaded] == [True, False]
    assert value(await plane.ask(2, 2)) == 4


async def test_versions_serve_side_by_side_and_the_newest_is_the_default(plane: Plane) -> None:
    """version_policy all: each version by its number, the highest where none is named."""
    plane.write("m", "1", "2", "10", config=CONFIG + "version_policy { all {} }")
    await plane.start()

    for asked, served in (("1", "1"), ("2", "2"), ("", "10")):
        outcome = await plane.ask(1, 2, version=asked)
        assert not isinstance(outcome, BaseException)
        assert outcome.model_version == served
    assert plane.dataplane.model_metadata("m").versions == ("1", "2", "10")
    assert plane.dataplane.model_metadata("m", "2").versions == ("2",)


async def test_unload_takes_out_of_service_and_load_brings_back(plane: Plane) -> None:
    """Between the two the model is known and not ready."""
    await plane.start()
    await plane.dataplane.unload_model("m")

    assert isinstance(await plane.ask(1, 2), ModelNotReady)
    await plane.dataplane.load_model("m")
    assert value(await plane.ask(1, 2)) == 3


async def test_control_needs_explicit_mode(tmp_path: Path) -> None:
    """In any other mode load and unload are refused, with the flag that allows them."""
    plane = Plane(tmp_path, Script(), control_mode="none")

    for action in (plane.dataplane.load_model, plane.dataplane.unload_model):
        with pytest.raises(ControlNotAllowed, match=r"explicit model load / unload is not allowed.*mode is none"):
            await action("m")
    await plane.models.close()
    plane.dataplane.close()


async def test_a_load_holds_up_no_other_models(plane: Plane) -> None:
    """While one model loads another is loaded and unloaded, and a third answers; loads of one model take turns."""
    plane.write("slow", "1")
    plane.write("quick", "1")
    await plane.models.load("m")
    gate, begun = threading.Event(), threading.Event()

    def hold() -> None:
        plane.script.on_load = lambda: None
        begun.set()
        assert gate.wait(10)

    plane.script.on_load = hold
    slow = asyncio.ensure_future(plane.dataplane.load_model("slow"))
    assert await asyncio.to_thread(begun.wait, 10)
    again = asyncio.ensure_future(plane.dataplane.load_model("slow"))

    await plane.dataplane.load_model("quick")
    await plane.dataplane.unload_model("quick")
    assert value(await plane.ask(1, 2)) == 3
    assert not slow.done()
    assert [e.state for e in plane.dataplane.repository_index() if e.name == "slow"] == ["LOADING"]
    gate.set()
    await asyncio.gather(slow, again)
    assert [e.state for e in plane.dataplane.repository_index() if e.name == "slow"] == ["READY"]


async def test_a_load_whose_caller_goes_away_is_finished(plane: Plane) -> None:
    """What is loaded must come into service or be closed; the next load waits for it."""
    gate, begun = threading.Event(), threading.Event()
    plane.script.on_load = lambda: (begun.set(), gate.wait(10))[0]
    load = asyncio.ensure_future(plane.dataplane.load_model("m"))
    assert await asyncio.to_thread(begun.wait, 10)
    load.cancel()
    await asyncio.wait((load,))
    gate.set()

    await plane.dataplane.unload_model("m")

    assert [entry.state for entry in plane.dataplane.repository_index()] != ["READY"]
    await plane.models.close()
    assert [model.closed for model in plane.engine.loaded] == [True]


async def test_an_unloaded_model_is_unloading_until_it_has_answered(plane: Plane) -> None:
    """The index says so, and the version is closed only then."""
    await plane.start()
    with plane.models.resolve("m"):
        await plane.dataplane.unload_model("m")
        assert [entry.state for entry in plane.dataplane.repository_index()] == ["UNLOADING"]
        assert not plane.engine.loaded[0].closed
    await plane.models.settled()
    assert [(e.state, e.reason) for e in plane.dataplane.repository_index()] == [("UNAVAILABLE", "unloaded")]


async def test_a_version_that_was_replaced_leaves_nothing_behind(plane: Plane) -> None:
    """Neither in the index nor in the statistics."""
    await plane.start()
    for version in ("2", "3"):
        plane.write("m", version)
        await plane.dataplane.load_model("m")
    await plane.models.settled()

    assert [entry.version for entry in plane.dataplane.repository_index()] == ["3"]
    assert list(plane.models._statistics) == [("m", "3")]


async def test_drain_settles_what_is_left_as_unavailable(plane: Plane) -> None:
    """At the end of the grace nobody is left waiting."""
    await plane.start()
    await plane.models.drain(time.monotonic_ns())

    assert isinstance(await plane.ask(1, 2), Draining)


async def test_ready_is_false_before_start_and_while_draining(plane: Plane) -> None:
    """Readiness follows the lifecycle."""
    assert not plane.dataplane.ready()
    await plane.start()
    assert plane.dataplane.ready()
    assert plane.dataplane.model_ready("m")
    plane.lifecycle.advance(State.DRAINING)
    assert not plane.dataplane.ready()
    assert not plane.dataplane.model_ready("m")


async def test_statistics_survive_a_reload(plane: Plane) -> None:
    """A counter never goes backwards while the process lives."""
    await plane.start()
    await plane.ask(1, 2)
    await plane.dataplane.load_model("m")
    await plane.ask(1, 2)

    assert plane.dataplane.statistics("m", "1")[0].success.count == 2


async def test_a_caller_that_raises_harms_nobody(plane: Plane) -> None:
    """A transport's callback that fails is its own trouble; the neighbour in the batch is answered."""
    await plane.start()

    def fail(*_: object) -> None:
        raise RuntimeError("the connection is gone")

    bad = InferRequest(
        "m", [Tensor.from_numpy("x", np.ones((1, 2), np.float32))], on_settle=fail, received_ns=time.monotonic_ns()
    )
    plane.dataplane.submit([bad])

    assert value(await plane.ask(1, 2)) == 3
    assert bad.settled
