"""Canaries and shadows: who gets which requests, what is compared, and when a candidate is rolled back."""

from __future__ import annotations

import asyncio
import shutil
import threading
from collections import Counter
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from google.protobuf import text_format
from google.protobuf.json_format import MessageToJson
from hypothesis import given
from hypothesis import strategies as st

from server.dataplane import DataPlane
from server.engine.base import EngineSpec
from server.engine.fake import FakeEngine, Script
from server.errors import Cancelled, EngineFailure, ModelLoadFailed, ModelNotReady, UnknownModel
from server.lifecycle import Lifecycle, State
from server.model_control import ModelControl
from server.proto.triton import model_config_pb2
from server.repository.foreign import read_foreign
from server.repository.repository import Repository
from server.repository.rollout import Rollout, read_rollout
from server.rollout import RolloutServed
from server.rollout_verdict import Cause, Verdict, at_least, differ
from server.settings import RepositorySettings
from server.tensor import Array, Tensor
from server.types import Batch, InferRequest, InferResponse, Outcome

CONFIG = """
backend: "onnxruntime" max_batch_size: 4
input {{ name: "x" data_type: TYPE_FP32 dims: [ 2 ] }}
output {{ name: "y" data_type: TYPE_FP32 dims: [ 2 ] }}
version_policy {{ all {{}} }}
dynamic_batching {{}}
{more}
"""


def parameters(**values: str) -> str:
    return "\n".join(
        f'parameters {{ key: "{key}" value {{ string_value: "{value}" }} }}' for key, value in values.items()
    )


class Versions:
    """Two versions: 1 says the first of two classes, and 2 does as it is told."""

    def __init__(self) -> None:
        self.second = "right"
        self.release = threading.Event()
        """Set it to let a version 2 that hangs go on; it then answers."""
        self.asked: Counter[str] = Counter()

    def answer(self, spec: EngineSpec, batch: Batch) -> Mapping[str, Array]:
        self.asked[spec.model_version] += batch.rows
        if spec.model_version == "2" and self.second == f"{spec.model_name} hangs":
            self.release.wait()
        wrong = spec.model_version == "2" and self.second == "wrong"
        if spec.model_version == "2" and self.second == "fails":
            raise EngineFailure(spec.model_name, "scripted")
        return {"y": np.tile(np.float32([[0.2, 0.8] if wrong else [0.8, 0.2]]), (batch.rows, 1))}


class Served:
    def __init__(self, dataplane: DataPlane, models: ModelControl, versions: Versions) -> None:
        self.dataplane = dataplane
        self.models = models
        self.versions = versions

    @property
    def rollout(self) -> RolloutServed:
        (found,) = self.models.rollouts()
        return found

    def begin(self, version: str = "", model: str = "m") -> asyncio.Future[Outcome]:
        done: asyncio.Future[Outcome] = asyncio.get_running_loop().create_future()
        x = Tensor.from_numpy("x", np.ones((1, 2), np.float32))
        request = InferRequest(
            model,
            [x],
            on_settle=lambda _, outcome: done.set_result(outcome),
            received_ns=0,
            model_version=version,
        )
        self.dataplane.submit([request])
        return done

    async def ask(self, count: int = 1, version: str = "") -> list[Outcome]:
        asked: list[asyncio.Future[Outcome]] = []
        for _ in range(count):
            asked.append(self.begin(version))
            await asyncio.sleep(0)
        outcomes = list(await asyncio.gather(*asked))
        for _ in range(200):
            if not self.models.rollouts() or not self.rollout._copies:
                break
            await asyncio.sleep(0.001)
        return outcomes


@asynccontextmanager
async def serving(
    root: Path, *, versions: tuple[int, ...] = (1, 2), latency_s: float = 0, **rollout: str
) -> AsyncIterator[Served]:
    """`latency_s`: of a pass. One that takes no time has no thread of its own."""
    folder = root / "m"
    for version in versions:
        (folder / str(version)).mkdir(parents=True)
        (folder / str(version) / "model.onnx").write_bytes(b"")
    if rollout:
        # Versions that answer in microseconds are as slow as the machine is busy.
        rollout = {"rollout_max_latency_ratio": "1000", **rollout}
    (folder / "config.pbtxt").write_text(CONFIG.format(more=parameters(**rollout)))
    both = Versions()
    repository = Repository(
        root,
        FakeEngine(Script(answer=both.answer, latency_s=lambda _: latency_s)),
        load_pipeline=lambda _: None,
        warmup_s=0.1,  # type: ignore[arg-type,return-value]
    )
    models = ModelControl(repository, default_max_queue_size=1000)
    lifecycle = Lifecycle()
    dataplane = DataPlane(models, lifecycle, RepositorySettings(), 1)
    await models.load("m")
    lifecycle.advance(State.READY)
    both.asked.clear()
    try:
        yield Served(dataplane, models, both)
    finally:
        both.release.set()
        await models.close()
        dataplane.close()


def said(outcomes: list[Outcome]) -> Counter[tuple[str, int]]:
    """Version and class of each answer."""
    return Counter(
        (outcome.model_version, int(outcome.outputs[0].numpy().argmax()))
        for outcome in outcomes
        if isinstance(outcome, InferResponse)
    )


async def test_a_canary_gets_its_part_of_those_that_name_no_version(tmp_path: Path) -> None:
    """Every tenth; whoever names a version gets it; the answer says of which version it is."""
    async with serving(tmp_path, canary_version="2", canary_weight="0.1") as served:
        assert said(await served.ask(100)) == {("1", 0): 90, ("2", 0): 10}
        assert said(await served.ask(3, version="2")) == {("2", 0): 3}
        assert served.rollout.counts == {"answered": 10}


async def test_a_load_request_changes_the_weight(tmp_path: Path) -> None:
    """With a config of its own, under load as any swap; without the keys the newest version has all."""
    async with serving(tmp_path, canary_version="2", canary_weight="0.1") as served:
        config = model_config_pb2.ModelConfig()
        config.CopyFrom(served.models.resolve("m").model.config.message)
        config.parameters["canary_weight"].string_value = "0.5"
        await served.models.load("m", {"config": MessageToJson(config)})
        assert said(await served.ask(100)) == {("1", 0): 50, ("2", 0): 50}
        config.ClearField("parameters")
        await served.models.load("m", {"config": MessageToJson(config)})
        assert said(await served.ask(10)) == {("2", 0): 10}


async def test_a_canary_that_fails_is_rolled_back(tmp_path: Path) -> None:
    """After as many requests as are needed to know it; from then on nobody meets it."""
    async with serving(tmp_path, canary_version="2", canary_weight="0.5", rollout_min_requests="20") as served:
        served.versions.second = "fails"
        outcomes = await served.ask(200)
        failed = sum(isinstance(outcome, EngineFailure) for outcome in outcomes)
        assert served.rollout.cause is Cause.ERRORS
        assert 20 <= failed <= 60
        assert said(await served.ask(50)) == {("1", 0): 50}
        # Loaded anew it gets another chance.
        served.versions.second = "right"
        await served.models.load("m")
        assert served.rollout.cause is None


async def test_a_shadow_is_asked_and_never_heard(tmp_path: Path) -> None:
    """All answers are of version 1, and agree with the shadow's."""
    async with serving(tmp_path, shadow_version="2", shadow_share="0.5") as served:
        assert said(await served.ask(100)) == {("1", 0): 100}
        assert served.versions.asked == {"1": 100, "2": 50}
        assert served.rollout.counts == {"answered": 50, "agreed": 50}
        assert served.rollout.cause is None


@pytest.mark.parametrize(("second", "cause"), [("wrong", Cause.DISAGREEMENT), ("fails", Cause.ERRORS)])
async def test_a_worse_shadow_is_rolled_back_and_nobody_saw_it(tmp_path: Path, second: str, cause: Cause) -> None:
    """Not one wrong answer, not one error."""
    async with serving(tmp_path, shadow_version="2", rollout_min_requests="20") as served:
        served.versions.second = second
        outcomes = [outcome for _ in range(20) for outcome in await served.ask(10)]
        assert said(outcomes) == {("1", 0): 200}
        assert served.rollout.cause is cause
        asked = served.versions.asked["2"]
        assert 20 <= asked < 100
        await served.ask(50)
        assert served.versions.asked["2"] == asked


@pytest.mark.parametrize("kind", ["canary", "shadow"])
async def test_a_candidate_that_hangs_is_rolled_back_before_it_answers(tmp_path: Path, kind: str) -> None:
    """By those that wait for it: it settles nothing, and nobody would know until its passes are given up. Those that
    wait get its answers still, if it has any; another model's trial goes on."""
    more = {"canary_version": "2", "canary_weight": "0.5"} if kind == "canary" else {"shadow_version": "2"}
    limits = {"rollout_min_requests": "20", "rollout_max_latency_ratio": "3"}
    async with serving(tmp_path, latency_s=0.0005, **more, **limits) as served, asyncio.timeout(60):
        shutil.copytree(tmp_path / "m", tmp_path / "n")
        await served.models.load("n")
        served.versions.second = "m hangs"
        asked = []
        this, other = served.models.rollouts()
        while this.cause is None:
            asked.append(served.begin())
            await served.begin(model="n")
            await asyncio.sleep(0.001)
        assert this.cause is Cause.LATENCY
        assert this.counts["answered"] == this.counts["failed"] == 0
        assert other.counts["answered"] > 0
        assert said([await served.begin() for _ in range(10)]) == {("1", 0): 10}
        waiting = sum(not done.done() for done in asked)
        assert (waiting >= 20) is (kind == "canary")
        served.versions.release.set()
        by_version = said(await asyncio.gather(*asked))
        assert by_version.total() == len(asked)
        assert by_version["2", 0] == waiting


@pytest.mark.parametrize("then", ["unloaded", "loaded anew"])
async def test_a_trial_that_ends_in_its_midst_leaves_nobody_without_an_answer(tmp_path: Path, then: str) -> None:
    """Whose candidate hangs just then: what comes of it later is no matter of the next trial's."""
    rollout = {"canary_version": "2", "canary_weight": "0.5"}
    async with serving(tmp_path, latency_s=0.0005, **rollout) as served, asyncio.timeout(60):
        served.versions.second = "m hangs"
        asked = [served.begin() for _ in range(10)]
        while sum(done.done() for done in asked) < 5:  # noqa: ASYNC110 - of the scripted engine
            await asyncio.sleep(0.001)
        served.versions.second = "right"
        if then == "unloaded":
            await served.models.unload("m")
            assert served.models.rollouts() == []
            with pytest.raises(ModelNotReady):
                served.models.resolve("m")
        else:
            await served.models.load("m")
            assert said(await served.ask(10)) == {("1", 0): 5, ("2", 0): 5}
        served.versions.release.set()
        assert said(await asyncio.gather(*asked)) == {("1", 0): 5, ("2", 0): 5}
        if then == "loaded anew":
            assert served.rollout.counts == {"answered": 5}


async def test_a_newer_stable_version_is_the_one_beside_the_candidate(tmp_path: Path) -> None:
    """The newest of the others serves, also where the candidate is the older one."""
    async with serving(tmp_path, versions=(1, 2, 3), canary_version="2", canary_weight="0.5") as served:
        assert set(said(await served.ask(10))) == {("2", 0), ("3", 0)}


async def test_a_candidate_that_is_not_there_is_no_rollout(tmp_path: Path) -> None:
    """The newest has all."""
    async with serving(tmp_path, canary_version="7") as served:
        assert served.models.rollouts() == []
        assert said(await served.ask(10)) == {("2", 0): 10}
        with pytest.raises(UnknownModel):
            served.models.resolve("m", "7")


async def test_a_model_without_a_rollout_is_served_by_its_version_itself(tmp_path: Path) -> None:
    """Nothing stands before it."""
    async with serving(tmp_path) as served:
        assert served.models.resolve("m") is served.models.resolve("m", "2")


# --- the verdict -------------------------------------------------------------------------------------


def verdict(**limits: Any) -> Verdict:
    return Verdict(Rollout("2", shadow=False, part=0.5, **limits))


GOOD = InferResponse("m", "2", ())
BAD = EngineFailure("m", "x")


def test_slowness_is_judged_by_both_sides_quantiles() -> None:
    """Four times as slow at the 95 % quantile is over three; twice is not, nor are microseconds."""
    for ns, cause in ((8_000_000, None), (17_000_000, Cause.LATENCY)):
        judged = verdict()
        found = None
        for _ in range(200):
            judged.stable.count(GOOD, 4_000_000)
            judged.candidate.count(GOOD, ns)
            found = found or judged.judge()
        assert found is cause
    judged = verdict()
    for _ in range(200):
        judged.stable.count(GOOD, 10_000)
        judged.candidate.count(GOOD, 900_000)
        assert judged.judge() is None


def test_a_few_slow_answers_are_chance() -> None:
    """Of fifty, three say nothing yet; one of five does."""
    for every, cause in ((17, None), (5, Cause.LATENCY)):
        judged = verdict()
        found = None
        for index in range(56):
            judged.stable.count(GOOD, 4_000_000)
            judged.candidate.count(GOOD, 50_000_000 if index % every == 0 else 4_000_000)
            found = found or judged.judge()
        assert found is cause


def test_those_that_wait_count_once_they_have_waited_too_long() -> None:
    """As slow answers; a few are chance, and so are all that began just now."""
    for waited_ns, waiting, cause in ((11_000_000, 60, None), (13_000_000, 1, None), (13_000_000, 60, Cause.LATENCY)):
        judged = verdict()
        for _ in range(60):
            judged.stable.count(GOOD, 4_000_000)
            judged.candidate.count(GOOD, 4_000_000)
        assert {judged.judge([0] * waiting, waited_ns) for _ in range(8)} - {None} == ({cause} - {None})


def test_errors_of_both_are_nobodys_fault() -> None:
    """A candidate is not blamed for what the version that serves has as well, nor for callers that went away."""
    judged = verdict()
    for index in range(300):
        judged.stable.count(BAD if index % 3 == 0 else GOOD, 1)
        judged.candidate.count(BAD if index % 3 == 0 else GOOD, 1)
        judged.candidate.count(Cancelled(), 1)
        assert judged.judge() is None


@given(st.integers(0, 400), st.integers(0, 400))
def test_the_lower_end_of_a_rate_is_below_it_and_grows_with_it(hits: int, more: int) -> None:
    """And with the trials, for the same rate."""
    trials = hits + more
    low = at_least(hits, trials)
    assert 0 <= low <= (hits / trials if trials else 0)
    assert at_least(10 * hits, 10 * trials) >= low - 1e-12
    assert at_least(hits, trials + 1) <= low + 1e-12


@given(st.lists(st.booleans(), min_size=50, max_size=500))
def test_a_rate_at_the_limit_is_not_over_it(outcomes: list[bool]) -> None:
    """Whatever the order, a candidate with at most 2 % of errors stays."""
    judged, failed = verdict(), 0
    for index, bad in enumerate(outcomes):
        failing = bad and failed + 1 <= 0.02 * (index + 1)
        failed += failing
        judged.candidate.count(BAD if failing else GOOD, 1)
        assert judged.judge() is None


def response(*tensors: tuple[str, Array]) -> InferResponse:
    return InferResponse("m", "1", tuple(Tensor.from_numpy(name, array) for name, array in tensors))


SCORES = np.float32([[0.1, 0.9], [0.7, 0.3]])


@pytest.mark.parametrize(
    ("other", "compare", "differs"),
    [
        (SCORES + np.float32(0.01), "top", False),
        (SCORES + np.float32(0.01), "values", True),
        (SCORES[::-1].copy(), "top", True),
        (SCORES.astype(np.float64), "top", True),
        (SCORES[:1], "values", True),
        (np.float32([[np.nan, 0.9], [0.7, 0.3]]), "top", True),
        (SCORES.copy(), "values", False),
    ],
    ids=["near", "near, by values", "another class", "another type", "another shape", "NaN", "equal"],
)
def test_what_differs(other: Array, compare: Any, differs: bool) -> None:
    """By the best class or by values; a type, a shape and a NaN always count."""
    assert differ(response(("y", SCORES)), response(("y", other)), compare, 1e-3) is differs
    assert differ(response(("y", SCORES)), response(("z", SCORES)), compare, 1e-3)


def test_texts_and_numbers_are_compared_exactly() -> None:
    """A label is another or the same."""
    one, other = (response(("y", np.array([text], object))) for text in (b"a", b"b"))
    assert differ(one, other, "top", 1.0)
    assert not differ(one, one, "top", 0.0)


# --- the config ----------------------------------------------------------------------------------------


def refuse(path: str, problem: str) -> Any:
    raise ModelLoadFailed("m", path, problem)


def config(parameters: Mapping[str, str]) -> Any:
    message = text_format.Parse(CONFIG.format(more='name: "m"'), model_config_pb2.ModelConfig())
    message.ClearField("dynamic_batching")
    for key, value in parameters.items():
        message.parameters[key].string_value = value
    return message


@pytest.mark.parametrize(
    ("given", "named"),
    [
        ({"canary_version": "2", "shadow_version": "3"}, "canary_version"),
        ({"canary_weight": "0.5"}, "canary_weight"),
        ({"rollout_min_requests": "5"}, "rollout_min_requests"),
        ({"canary_version": "two"}, "canary_version"),
        ({"canary_version": "02"}, "canary_version"),
        ({"canary_version": "2", "canary_weight": "2"}, "canary_weight"),
        ({"canary_version": "2", "shadow_share": "1"}, "shadow_share"),
        ({"shadow_version": "2", "rollout_compare": "some"}, "rollout_compare"),
        ({"shadow_version": "2", "rollout_tolerance": "nan"}, "rollout_tolerance"),
    ],
)
def test_a_rollout_that_makes_no_sense_is_refused_by_its_key(given: dict[str, str], named: str) -> None:
    """At load, with the key of the parameter."""
    with pytest.raises(ModelLoadFailed, match=named):
        read_rollout(config(given), refuse)


@pytest.mark.parametrize(
    "read", [read_foreign, lambda message: read_rollout(message, refuse)], ids=["Triton's", "ours"]
)
@pytest.mark.parametrize(
    ("alone", "named"),
    [
        ("sequence_batching { direct {} }", "sequence_batching"),
        ("model_transaction_policy { decoupled: true }", "decoupled"),
    ],
    ids=["sequences", "several responses"],
)
def test_what_is_between_a_version_and_its_callers_has_no_rollout(alone: str, named: str, read: Any) -> None:
    """Here, and in front of a Triton."""
    message = config({"canary_version": "2"})
    with pytest.raises(ModelLoadFailed, match=f"canary_version.*{named}"):
        read(text_format.Merge(alone, message))
