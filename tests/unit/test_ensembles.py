"""Ensembles in the data plane, over the scripted engine: answers, errors, ends, and changes of the models."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from server.call import answer, settle_into
from server.engine.base import EngineSpec
from server.engine.fake import Script, row_sums
from server.errors import (
    Cancelled,
    DeadlineExceeded,
    Draining,
    EngineFailure,
    InvalidRequest,
    ModelLoadFailed,
    ModelNotReady,
    ServingError,
    Unsupported,
)
from server.explain import Explanation
from server.lifecycle import State
from server.tensor import Array, Tensor
from server.types import Batch, InferRequest, InferResponse, Outcome, PredictRequest, RowInput
from tests.support.ensembles import EnsembleText, StepText, model_text
from tests.support.plane import Plane, Rows

ADDER = model_text({"x": (2,)}, {"y": (1,)})
SPLITTER = model_text({"x": (1,)}, {"y": (2,), "z": (1,)})
CHAIN = EnsembleText(
    {"raw": (2,)},
    {"sum": (1,), "twice": (1,)},
    [
        StepText("adder", {"x": "raw"}, {"y": "sum"}),
        StepText("splitter", {"x": "sum"}, {"y": "pair"}),
        StepText("adder", {"x": "pair"}, {"y": "twice"}),
    ],
)
"""`sum` of the two numbers, and `twice` that: the splitter gives its number two times."""


class Ensembles(Plane):
    """The plane with ways to ask an ensemble."""

    def add(self, name: str, text: str, *versions: str) -> None:
        self.write(name, *(versions or ("1",)), config=text)

    def request(self, *values: float, model: str = "e", **rest: object) -> tuple[InferRequest, list[Outcome]]:
        """One row; the list has every outcome that it gets."""
        outcomes: list[Outcome] = []
        request = InferRequest(
            model,
            [Tensor.from_numpy("raw", np.asarray([values], dtype=np.float32))],
            on_settle=lambda _, outcome: outcomes.append(outcome),
            received_ns=time.monotonic_ns(),
            **rest,  # type: ignore[arg-type]
        )
        return request, outcomes

    async def outcome(self, *values: float, **rest: object) -> Outcome:
        request, outcomes = self.request(*values, **rest)
        self.dataplane.submit([request])
        await self.until(lambda: bool(outcomes))
        assert len(outcomes) == 1
        return outcomes[0]

    async def until(self, condition: object) -> None:
        async with asyncio.timeout(10):
            while not condition():  # type: ignore[operator]  # noqa: ASYNC110 - of the scripted engine
                await asyncio.sleep(0)

    def ran(self, model: str = "") -> int:
        return sum(batch.model_name == model or not model for batch in self.engine.batches)


@asynccontextmanager
async def opened(root: Path, control_mode: str = "explicit") -> AsyncIterator[Ensembles]:
    """Nothing is loaded yet. Passes are long enough for threads of their own."""
    Rows.gate.set()
    plane = Ensembles(root, Script(latency_s=lambda rows: 0.0005), control_mode)
    try:
        yield plane
    finally:
        plane.script.release.set()
        await plane.models.close()
        plane.dataplane.close()


@pytest.fixture
async def plane(tmp_path: Path) -> AsyncIterator[Ensembles]:
    """Models adder and splitter, and the chain `e` of them, all in service; explicit mode."""
    async with opened(tmp_path) as plane:
        plane.add("adder", ADDER)
        plane.add("splitter", SPLITTER)
        CHAIN.write(tmp_path, "e")
        await plane.start()
        plane.engine.batches.clear()
        yield plane


def values(outcome: Outcome) -> dict[str, list[float]]:
    assert isinstance(outcome, InferResponse), outcome
    return {tensor.name: tensor.numpy().ravel().tolist() for tensor in outcome.outputs}


def refused(outcome: Outcome, kind: type[ServingError]) -> str:
    assert isinstance(outcome, kind), outcome
    return outcome.public_message


def state(plane: Plane, name: str) -> tuple[str, str]:
    entry = next(entry for entry in plane.dataplane.repository_index() if entry.name == name)
    return entry.state, entry.reason


# --- answers -------------------------------------------------------------------------------------------


async def test_tensors_go_from_step_to_step(plane: Ensembles) -> None:
    """The answer has the ensemble's outputs, by its names, its version and the caller's id."""
    outcome = await plane.outcome(3, 4, id="seven")
    assert values(outcome) == {"sum": [7], "twice": [14]}
    assert isinstance(outcome, InferResponse)
    assert (outcome.model_name, outcome.model_version, outcome.id) == ("e", "1", "seven")


async def test_requests_that_arrive_together_share_the_passes_of_every_step(plane: Ensembles) -> None:
    """Each step is batched as its model's own requests are; each caller gets its own rows."""
    pairs = [plane.request(index, 1) for index in range(4)]
    plane.dataplane.submit([request for request, _ in pairs])
    await plane.until(lambda: all(outcomes for _, outcomes in pairs))
    assert [values(outcomes[0])["twice"] for _, outcomes in pairs] == [[2], [4], [6], [8]]
    rows = {name: sum(b.rows for b in plane.engine.batches if b.model_name == name) for name in ("adder", "splitter")}
    assert rows == {"adder": 8, "splitter": 4}
    assert len(plane.engine.batches) < 12  # How large a batch is worth its time is measured.


async def test_only_steps_that_lead_to_a_wanted_output_run(plane: Ensembles) -> None:
    """And of those that run only the outputs that somebody takes are asked for."""
    assert values(await plane.outcome(3, 4, outputs=("sum",))) == {"sum": [7]}
    assert [batch.model_name for batch in plane.engine.batches] == ["adder"]
    assert list(values(await plane.outcome(3, 4, outputs=("twice", "sum")))) == ["twice", "sum"]


async def test_steps_run_beside_each_other_as_soon_as_their_inputs_are_there(plane: Ensembles) -> None:
    """Two steps that wait for the same tensor are under way at once; a third waits for both."""
    plane.add("left", model_text({"x": (1,)}, {"y": (1,)}))
    plane.add("right", model_text({"x": (1,)}, {"y": (1,)}))
    plane.add("join", model_text({"a": (1,), "b": (1,)}, {"y": (1,)}))
    EnsembleText(
        {"raw": (2,)},
        {"out": (1,)},
        [
            StepText("join", {"a": "l", "b": "r"}, {"y": "out"}),
            StepText("left", {"x": "s"}, {"y": "l"}),
            StepText("right", {"x": "s"}, {"y": "r"}),
            StepText("adder", {"x": "raw"}, {"y": "s"}),
        ],
    ).write(plane.root, "diamond")
    await plane.dataplane.load_model("diamond")
    plane.engine.batches.clear()
    plane.engine.play(["answer", "hang", "hang"])

    request, outcomes = plane.request(1, 2, model="diamond")
    plane.dataplane.submit([request])
    await plane.until(lambda: plane.ran("left") and plane.ran("right"))
    assert not plane.ran("join")
    plane.script.release.set()
    await plane.until(lambda: bool(outcomes))
    assert values(outcomes[0]) == {"out": [6]}


async def test_an_ensemble_may_contain_ensembles(plane: Ensembles) -> None:
    """Its steps are theirs, and so are its errors."""
    EnsembleText(
        {"raw": (2,)},
        {"four": (1,)},
        [
            StepText("e", {"raw": "raw"}, {"twice": "t"}),
            StepText("splitter", {"x": "t"}, {"y": "p"}),
            StepText("adder", {"x": "p"}, {"y": "four"}),
        ],
    ).write(plane.root, "outer")
    await plane.dataplane.load_model("outer")
    assert values(await plane.outcome(1, 2, model="outer")) == {"four": [12]}
    plane.engine.play(["answer", "fail"])
    assert "splitter" in refused(await plane.outcome(1, 2, model="outer"), EngineFailure)


async def test_an_input_that_is_left_out_is_left_out_of_its_step(plane: Ensembles) -> None:
    """If the step's model takes it as optional; else the step says that it is missing."""
    plane.add("some", model_text({"x": (1,), "t": (1,)}, {"y": (1,)}, optional=["t"]))
    plane.add("both", model_text({"x": (1,), "t": (1,)}, {"y": (1,)}))
    for model in ("some", "both"):
        EnsembleText(
            {"raw": (1,), "extra": (1,)},
            {"out": (1,)},
            [StepText(model, {"x": "raw", "t": "extra"}, {"y": "out"})],
            optional=["extra"],
        ).write(plane.root, f"e-{model}")
        await plane.dataplane.load_model(f"e-{model}")
    assert values(await plane.outcome(5, model="e-some")) == {"out": [5]}
    told = refused(await plane.outcome(5, model="e-both"), InvalidRequest)
    assert told.startswith("ensemble 'e-both', step[0], inputs: ")
    assert "missing required input(s) ['t']" in told


async def test_a_batch_dimension_is_given_and_taken_as_triton_does(plane: Ensembles) -> None:
    """A model without batches gets a single row without the dimension, or the whole shape where its dims have one."""
    plane.add("alone", model_text({"x": (2,)}, {"y": (1,)}, max_batch_size=0, more=""))
    plane.add("whole", model_text({"x": (-1, 2)}, {"y": (1, 1)}, max_batch_size=0, more=""))
    for model in ("alone", "whole"):
        EnsembleText(
            {"raw": (2,)},
            {"out": (1,)},
            [StepText(model, {"x": "raw"}, {"y": "m"}), StepText("copy", {"x": "m"}, {"y": "out"})],
        ).write(plane.root, f"e-{model}")
    plane.add("copy", model_text({"x": (1,)}, {"y": (1,)}))
    for model in ("alone", "whole"):
        await plane.dataplane.load_model(f"e-{model}")
        plane.engine.batches.clear()
        outcome = await plane.outcome(3, 4, model=f"e-{model}")
        assert values(outcome) == {"out": [7]}
        assert isinstance(outcome, InferResponse)
        assert outcome.outputs[0].shape == (1, 1)
    assert plane.engine.batches[0].inputs["x"].shape == (1, 2)


# --- errors and ends -----------------------------------------------------------------------------------


async def test_a_failed_step_is_the_requests_one_error(plane: Ensembles) -> None:
    """With the step's own error, once; what would have followed does not run."""
    plane.engine.play(["answer", "fail"])
    assert "'splitter'" in refused(await plane.outcome(3, 4), EngineFailure)
    assert plane.ran("adder") == 1
    assert values(await plane.outcome(3, 4)) == {"sum": [7], "twice": [14]}


async def test_a_failed_step_cancels_those_beside_it(plane: Ensembles) -> None:
    """One that waits is never run."""
    plane.add("slow", model_text({"x": (2,)}, {"y": (1,)}))
    EnsembleText(
        {"raw": (2,)},
        {"a": (1,), "b": (1,)},
        [StepText("adder", {"x": "raw"}, {"y": "a"}), StepText("slow", {"x": "raw"}, {"y": "b"})],
    ).write(plane.root, "wide")
    await plane.dataplane.load_model("wide")
    plane.engine.batches.clear()
    plane.engine.play(["hang"])
    busy, busy_outcomes = plane.request(1, 1, model="slow")
    busy.inputs[0].name = "x"
    plane.dataplane.submit([busy])
    await plane.until(lambda: plane.ran("slow") == 1)
    plane.engine.play(["fail"])

    refused(await plane.outcome(3, 4, model="wide"), EngineFailure)

    plane.script.release.set()
    await plane.until(lambda: bool(busy_outcomes))
    await asyncio.sleep(0.01)
    assert plane.ran("slow") == 1
    assert plane.dataplane.statistics("slow")[0].cancelled == 1


async def test_what_a_step_finds_wrong_is_told_with_the_step(plane: Ensembles) -> None:
    """Sizes of -1 that turn out not to fit: the client's error, with the ensemble and the step."""
    plane.add("loose", model_text({"x": (-1,)}, {"y": (1,)}))
    EnsembleText({"raw": (-1,)}, {"out": (1,)}, [StepText("adder", {"x": "raw"}, {"y": "out"})]).write(
        plane.root, "e-loose"
    )
    await plane.dataplane.load_model("e-loose")
    told = refused(await plane.outcome(1, 2, 3, model="e-loose"), InvalidRequest)
    assert told.startswith("ensemble 'e-loose', step[0], inputs[0].shape: unexpected shape for input 'x' for model")


async def test_the_ensembles_own_config_is_checked_before_any_step(plane: Ensembles) -> None:
    """As of every model; nothing is counted."""
    refused(await plane.outcome(1, 2, 3), InvalidRequest)
    refused(await plane.outcome(1, 2, outputs=("nothing",)), InvalidRequest)
    assert plane.ran() == 0
    assert plane.dataplane.statistics("e")[0].fail.count == 0


async def test_nothing_runs_for_an_expired_request(plane: Ensembles) -> None:
    """At the beginning, and between two steps."""
    refused(await plane.outcome(3, 4, deadline_ns=1), DeadlineExceeded)
    assert plane.ran() == 0
    plane.script.latency_s = lambda rows: 0.4
    refused(await plane.outcome(3, 4, deadline_ns=time.monotonic_ns() + 200_000_000), DeadlineExceeded)
    assert [batch.model_name for batch in plane.engine.batches] == ["adder"]


async def test_a_latency_objective_is_a_deadline_of_the_whole(plane: Ensembles) -> None:
    """From the request's receipt, over all steps."""
    more = 'parameters { key: "slo_ms" value { string_value: "200" } }'
    replace(CHAIN, more=more).write(plane.root, "e")
    await plane.dataplane.load_model("e")
    plane.engine.batches.clear()
    plane.script.latency_s = lambda rows: 0.4
    refused(await plane.outcome(3, 4), DeadlineExceeded)
    assert plane.ran() == 1


async def test_a_cancelled_request_is_over_in_every_step(plane: Ensembles) -> None:
    """The step that waits never runs, and neither do those behind it."""
    plane.engine.play(["hang"])
    busy, _ = plane.request(1, 1)
    plane.dataplane.submit([busy])
    await plane.until(lambda: plane.ran("adder") == 1)
    request, outcomes = plane.request(3, 4)
    plane.dataplane.submit([request])
    await asyncio.sleep(0)
    plane.dataplane.cancel(request)
    assert len(outcomes) == 1
    refused(outcomes[0], Cancelled)
    plane.dataplane.cancel(request)
    plane.script.release.set()
    await plane.until(lambda: plane.ran("splitter") == 1)
    assert all(batch.rows == 1 for batch in plane.engine.batches)
    assert plane.dataplane.statistics("adder")[0].cancelled == 1


async def test_a_sequence_needs_a_step_that_keeps_it(plane: Ensembles) -> None:
    """Whoever says that there is one believes that something is remembered."""
    refused(await plane.outcome(3, 4, parameters={"sequence_id": 7, "sequence_start": True}), Unsupported)


async def test_a_caller_that_raises_harms_nobody(plane: Ensembles) -> None:
    """Its neighbour is answered, and the ensemble is idle again."""

    def fail(*_: object) -> None:
        raise RuntimeError("the connection is gone")

    raising, _ = plane.request(1, 2)
    raising._on_settle = fail
    request, outcomes = plane.request(3, 4)
    plane.dataplane.submit([raising, request])
    await plane.until(lambda: bool(outcomes))
    assert values(outcomes[0])["sum"] == [7]
    served = plane.models.resolve("e")
    await served.drain(time.monotonic_ns() + 10**10)


# --- counts --------------------------------------------------------------------------------------------


async def test_the_ensemble_and_its_models_count(plane: Ensembles) -> None:
    """The ensemble a request, its rows and one execution; each model what its steps were."""
    await plane.outcome(3, 4)
    plane.engine.play(["fail"])
    await plane.outcome(3, 4)
    counts = {
        name: (s.success.count, s.fail.count, s.inference_count, s.execution_count)
        for name in ("e", "adder", "splitter")
        for s in plane.dataplane.statistics(name)
    }
    assert counts == {"e": (1, 1, 1, 1), "adder": (2, 1, 2, 2), "splitter": (1, 0, 1, 1)}
    whole, adder, splitter = (plane.dataplane.statistics(name)[0] for name in ("e", "adder", "splitter"))
    assert whole.compute_infer.ns == adder.compute_infer.ns + splitter.compute_infer.ns
    assert whole.admitted == 2


async def test_an_explanation_tells_the_steps_as_one_pass(plane: Ensembles) -> None:
    """Its parts are without a gap, and the compute is that of all steps."""
    plane.script.latency_s = lambda rows: 0.003
    explanation = Explanation(time.monotonic_ns())
    future: asyncio.Future[Outcome] = asyncio.get_running_loop().create_future()
    request, _ = plane.request(3, 4, explanation=explanation)
    request.divert(settle_into(future))
    plane.dataplane.submit([request])
    await answer(request, future, plane.dataplane.cancel)
    parts = explanation.parts_ns()
    assert parts["compute"] >= 9_000_000
    assert parts["total"] == sum(ns for part, ns in parts.items() if part != "total")
    assert explanation.batch_rows == 1


async def test_metadata_are_those_of_the_config(plane: Ensembles) -> None:
    """With Triton's platform; the config is told as it is."""
    told = plane.dataplane.model_metadata("e")
    assert (told.platform, told.versions) == ("ensemble", ("1",))
    assert [(spec.name, spec.dims) for spec in told.inputs] == [("raw", (-1, 2))]
    assert len(plane.dataplane.model_config("e").ensemble_scheduling.step) == 3


# --- loading and changing ------------------------------------------------------------------------------


async def test_loading_an_ensemble_loads_what_it_is_composed_of(tmp_path: Path) -> None:
    """Ensembles in it first, and theirs; what serves already is left as it is unless its files changed."""
    async with opened(tmp_path) as plane:
        plane.add("adder", ADDER)
        plane.add("splitter", SPLITTER)
        CHAIN.write(tmp_path, "e")
        step = StepText("e", {"raw": "raw"}, {"twice": "t"})
        EnsembleText({"raw": (2,)}, {"t": (1,)}, [step]).write(tmp_path, "outer")
        plane.lifecycle.advance(State.READY)
        await plane.dataplane.load_model("outer")
        assert [model.spec.model_name for model in plane.engine.loaded] == ["adder", "splitter"]
        assert {served.model.name for served in plane.models} == {"adder", "splitter", "e", "outer"}
        plane.add("splitter", SPLITTER + "\n# changed")
        await plane.dataplane.load_model("outer")
        assert [model.spec.model_name for model in plane.engine.loaded] == ["adder", "splitter", "splitter"]
        assert values(await plane.outcome(1, 2, model="outer")) == {"t": [6]}


async def test_a_model_that_can_not_be_loaded_keeps_its_ensembles_out(plane: Ensembles) -> None:
    """The load fails with the step, the model and its reason; what served goes on."""
    plane.add("broken", "max_batch_size: 1")
    old = CHAIN
    replace(old, steps=[*old.steps[:2], replace(old.steps[2], model="broken")]).write(plane.root, "e")
    with pytest.raises(ModelLoadFailed) as failed:
        await plane.dataplane.load_model("e")
    assert failed.value.where == "config.pbtxt: ensemble_scheduling.step[2].model_name"
    assert "model 'broken' is not ready: config.pbtxt: backend: is not set" in failed.value.problem
    assert values(await plane.outcome(3, 4))["twice"] == [14]
    assert state(plane, "e")[0] == "READY"


async def test_ensembles_that_contain_each_other_are_refused_by_name(plane: Ensembles) -> None:
    """Whichever is loaded."""
    for name, other in (("one", "two"), ("two", "one")):
        EnsembleText({"raw": (2,)}, {"r": (2,)}, [StepText(other, {"raw": "raw"}, {"r": "r"})]).write(plane.root, name)
    for name, around in (("one", "one -> two -> one"), ("two", "two -> one -> two")):
        with pytest.raises(ModelLoadFailed, match=f"would contain itself: {around}"):
            await plane.dataplane.load_model(name)


async def test_swapping_a_model_fails_no_request_of_the_ensemble(plane: Ensembles) -> None:
    """Requests that have begun end on the version that they began with, those that come go to the new one."""
    plane.script.latency_s = lambda rows: 0.001
    results: list[Outcome] = []
    stop = False

    async def ask() -> None:
        while not stop:
            results.append(await plane.outcome(3, 4))

    asking = [asyncio.ensure_future(ask()) for _ in range(4)]
    for version in ("2", "3", "4"):
        plane.add("splitter", SPLITTER, version)
        await plane.dataplane.load_model("splitter")
        await plane.dataplane.load_model("adder")
        await plane.dataplane.load_model("e")
    stop = True
    await asyncio.gather(*asking)
    assert len(results) > 10
    assert all(values(outcome) == {"sum": [7], "twice": [14]} for outcome in results)
    await plane.models.settled()
    assert [(s.model.name, s.model.version) for s in plane.models if s.model.name == "splitter"] == [("splitter", "4")]
    assert [m.closed for m in plane.engine.loaded if m.spec.model_name == "splitter"] == [True, True, True, False]


async def test_a_request_that_has_begun_is_answered_though_its_model_is_unloaded(plane: Ensembles) -> None:
    """A version is held for as long as somebody may need it."""
    plane.engine.play(["hang"])
    request, outcomes = plane.request(3, 4)
    plane.dataplane.submit([request])
    await plane.until(lambda: plane.ran("adder") == 1)
    await plane.dataplane.unload_model("splitter")
    await plane.dataplane.unload_model("adder")
    assert not outcomes
    plane.script.release.set()
    await plane.until(lambda: bool(outcomes))
    assert values(outcomes[0]) == {"sum": [7], "twice": [14]}
    await plane.models.settled()
    assert all(model.closed for model in plane.engine.loaded)


async def test_an_ensemble_serves_while_its_models_do(plane: Ensembles) -> None:
    """Without one it is UNAVAILABLE, with the reason, and not ready; with it again it serves again."""
    await plane.dataplane.unload_model("splitter")
    await plane.models.settled()
    why = (
        "config.pbtxt: ensemble_scheduling.step[1].model_name: is not in service: "
        "model 'splitter' is not ready: unloaded"
    )
    assert state(plane, "e") == ("UNAVAILABLE", why)
    assert not plane.dataplane.model_ready("e")
    assert refused(await plane.outcome(3, 4), ModelNotReady) == f"model 'e' is not ready: {why}"
    with pytest.raises(ModelNotReady):
        plane.dataplane.model_metadata("e")
    await plane.dataplane.load_model("splitter")
    assert state(plane, "e") == ("READY", "")
    assert plane.dataplane.model_ready("e")
    assert values(await plane.outcome(3, 4))["twice"] == [14]


async def test_a_model_whose_tensors_change_takes_its_ensembles_out(plane: Ensembles) -> None:
    """The model serves; the ensemble says what does not fit, until it does again."""
    EnsembleText({"raw": (2,)}, {"t": (1,)}, [StepText("e", {"raw": "raw"}, {"twice": "t"})]).write(plane.root, "outer")
    await plane.dataplane.load_model("outer")
    plane.add("splitter", model_text({"x": (1,)}, {"y": (3,), "z": (1,)}))
    await plane.dataplane.load_model("splitter")
    status, why = state(plane, "e")
    assert status == "UNAVAILABLE"
    assert why.startswith("config.pbtxt: ensemble_scheduling.step[2].input_map[\"x\"]: tensor 'pair' has the shape")
    assert state(plane, "outer")[0] == "UNAVAILABLE"
    plane.add("splitter", SPLITTER)
    await plane.dataplane.load_model("splitter")
    assert [state(plane, name)[0] for name in ("e", "outer")] == ["READY", "READY"]
    assert values(await plane.outcome(3, 4, model="outer")) == {"t": [14]}


async def test_an_ensemble_whose_reload_failed_while_it_could_not_serve_comes_back_as_it_was(plane: Ensembles) -> None:
    """And the index says so, once."""
    await plane.dataplane.unload_model("splitter")
    (plane.root / "e" / "config.pbtxt").write_text("nonsense")
    with pytest.raises(ModelLoadFailed):
        await plane.dataplane.load_model("e")
    await plane.dataplane.load_model("splitter")
    assert [(e.version, e.state) for e in plane.dataplane.repository_index() if e.name == "e"] == [("1", "READY")]
    assert values(await plane.outcome(3, 4))["twice"] == [14]


async def test_unload_dependents_unloads_what_an_ensemble_is_composed_of(plane: Ensembles) -> None:
    """But for what another ensemble is composed of too; an unload without it leaves all of them."""
    EnsembleText({"raw": (2,)}, {"s": (1,)}, [StepText("adder", {"x": "raw"}, {"y": "s"})]).write(plane.root, "two")
    await plane.dataplane.load_model("two")
    await plane.dataplane.unload_model("e", unload_dependents=True)
    assert {served.model.name for served in plane.models} == {"adder", "two"}
    await plane.dataplane.unload_model("two")
    assert {served.model.name for served in plane.models} == {"adder"}


@pytest.mark.parametrize("more", ["", "version_policy { specific { versions: 1 } }"])
async def test_an_ensemble_without_a_version_folder_is_version_1(plane: Ensembles, more: str) -> None:
    """Its version folder would be empty, and git keeps no empty folders."""
    replace(CHAIN, more=more).write(plane.root, "bare", version="")
    await plane.dataplane.load_model("bare")
    assert plane.dataplane.model_metadata("bare").versions == ("1",)


async def test_an_ensembles_versions_are_its_folders(plane: Ensembles) -> None:
    """As the policy says; one that it names and that is not there is not served."""
    text = replace(CHAIN, more="version_policy { specific { versions: [1, 3] } }")
    text.write(plane.root, "v", version="3")
    await plane.dataplane.load_model("v")
    assert plane.dataplane.model_metadata("v").versions == ("3",)
    assert [(e.version, e.state) for e in plane.dataplane.repository_index() if e.name == "v"] == [
        ("1", "UNAVAILABLE"),
        ("3", "READY"),
    ]


async def test_a_step_takes_the_version_that_it_names(plane: Ensembles) -> None:
    """Which must be in service; -1 is the newest."""
    plane.script.answer = versioned
    plane.add("adder", ADDER + "\nversion_policy { all {} }", "1", "2")
    await plane.dataplane.load_model("adder")
    for version in (1, 2, -1):
        EnsembleText({"raw": (2,)}, {"s": (1,)}, [StepText("adder", {"x": "raw"}, {"y": "s"}, version=version)]).write(
            plane.root, f"v{version}"
        )
        await plane.dataplane.load_model(f"v{version}")
        assert values(await plane.outcome(1, 2, model=f"v{version}")) == {"s": [3 + (2 if version < 0 else version)]}
    plane.add("adder", ADDER, "2")
    await plane.dataplane.load_model("adder")
    assert [state(plane, f"v{version}")[0] for version in (1, 2, -1)] == ["UNAVAILABLE", "READY", "READY"]


def versioned(spec: EngineSpec, batch: Batch) -> Mapping[str, Array]:
    """The sums, and the version on top."""
    return {name: array + int(spec.model_version) for name, array in row_sums(spec, batch).items()}


@pytest.mark.parametrize("file", ["manifest.json", "golden/1.npz"])
async def test_certificates_of_an_ensemble_are_refused(plane: Ensembles, file: str) -> None:
    """Nothing would hold them against anything."""
    folder = CHAIN.write(plane.root, "certified")
    (folder / file).parent.mkdir(exist_ok=True)
    (folder / file).write_text('{"format": 1}')
    with pytest.raises(ModelLoadFailed):
        await plane.dataplane.load_model("certified")


async def test_poll_mode_tries_an_ensemble_again_when_its_models_have_changed(tmp_path: Path) -> None:
    """It could not be loaded, and nothing of its own files changes."""
    async with opened(tmp_path, "poll") as plane:
        plane.add("adder", ADDER)
        plane.add("splitter", "max_batch_size: 1")
        CHAIN.write(tmp_path, "e")
        step = StepText("e", {"raw": "raw"}, {"twice": "t"})
        EnsembleText({"raw": (2,)}, {"t": (1,)}, [step]).write(tmp_path, "a-first")
        await plane.start()
        assert {served.model.name for served in plane.models} == {"adder"}
        poll = asyncio.ensure_future(plane.models.poll(0.01))
        plane.add("splitter", SPLITTER)
        await plane.until(lambda: len({served.model.name for served in plane.models}) == 4)
        poll.cancel()


async def test_a_prediction_goes_through_an_ensemble(plane: Ensembles) -> None:
    """Its processing.yaml is its own; its tensors are held against the ensemble's inputs at load."""
    folder = EnsembleText({"x": (2,)}, {"y": (1,)}, [StepText("adder", {"x": "x"}, {"y": "y"})]).write(
        plane.root, "raw"
    )
    (folder / "processing.yaml").write_text("task: test\n")
    await plane.dataplane.load_model("raw")
    response = await plane.dataplane.predict(PredictRequest("raw", [RowInput([3, 4]), RowInput([1, 1])]))
    assert [prediction.label for prediction in response.predictions] == ["7", "2"]
    (CHAIN.write(plane.root, "other") / "processing.yaml").write_text("task: test\n")
    with pytest.raises(ModelLoadFailed, match="makes the tensors x; the model takes raw"):
        await plane.dataplane.load_model("other")


async def test_a_drain_answers_what_has_begun(plane: Ensembles) -> None:
    """All steps of it, whatever is drained first; what comes later is refused."""
    plane.script.latency_s = lambda rows: 0.02
    request, outcomes = plane.request(3, 4)
    plane.dataplane.submit([request])
    await plane.until(lambda: plane.ran("adder") == 1)
    await plane.models.drain(time.monotonic_ns() + 10**10)
    assert values(outcomes[0]) == {"sum": [7], "twice": [14]}
    refused(await plane.outcome(3, 4), Draining)


async def test_a_drain_settles_what_is_left_at_its_end(plane: Ensembles) -> None:
    """Once, as UNAVAILABLE."""
    plane.engine.play(["hang"])
    request, outcomes = plane.request(3, 4)
    plane.dataplane.submit([request])
    await plane.until(lambda: plane.ran("adder") == 1)
    await plane.models.resolve("e").drain(time.monotonic_ns())
    refused(outcomes[0], Draining)
    plane.script.release.set()
    assert len(outcomes) == 1
