"""`ensemble_scheduling` of config.pbtxt, alone and beside the models that it names."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from server.errors import ModelLoadFailed, ModelNotReady
from server.repository.composition import check_composition, find_circle, in_order
from server.repository.config_text import parse_text
from server.repository.model_config import ModelConfig, from_message, read_model_config
from tests.support.ensembles import EnsembleText, StepText, model_text

FIRST = StepText("a", {"x": "raw"}, {"y": "middle"})
SECOND = StepText("b", {"u": "middle"}, {"v": "result"})
CHAIN = EnsembleText({"raw": (2,)}, {"result": (1,)}, [FIRST, SECOND])


def config(text: object, name: str = "e") -> ModelConfig:
    return from_message(parse_text(str(text), name), name)


def test_an_ensemble_is_read_as_it_stands() -> None:
    """Steps in their order, with their maps; its platform is Triton's, it has no backend."""
    read = config(CHAIN)
    assert read.ensemble is not None
    assert (read.platform, read.backend) == ("ensemble", "")
    assert [(step.model_name, step.version) for step in read.ensemble.steps] == [("a", ""), ("b", "")]
    assert read.ensemble.steps[1].input_map == {"u": "middle"}
    assert read.ensemble.model_names == {"a", "b"}


ALONE: list[tuple[str, EnsembleText | str, str, str]] = [
    ("no step", replace(CHAIN, steps=[]), "ensemble_scheduling.step", "at least one"),
    (
        "a platform without its scheduling",
        'platform: "ensemble" input { name: "x" data_type: TYPE_FP32 dims: 1 } '
        'output { name: "y" data_type: TYPE_FP32 dims: 1 }',
        "ensemble_scheduling.step",
        "at least one",
    ),
    (
        "scheduling without its platform",
        str(CHAIN).replace('platform: "ensemble"', 'platform: "onnxruntime_onnx"'),
        "platform",
        "'ensemble'",
    ),
    ("a backend", replace(CHAIN, more='backend: "onnxruntime"'), "backend", "has none"),
    ("instances", replace(CHAIN, more="instance_group { count: 1 }"), "instance_group", "no file of its own"),
    ("an optimization", replace(CHAIN, more="optimization { graph { level: 1 } }"), "optimization", "no file"),
    ("a file", replace(CHAIN, more='default_model_filename: "m"'), "default_model_filename", "no file"),
    ("a cache", replace(CHAIN, more="response_cache { enable: true }"), "response_cache", "no file"),
    ("a warm-up", replace(CHAIN, more='model_warmup { name: "w" batch_size: 1 }'), "model_warmup", "no file"),
    (
        "several responses",
        replace(CHAIN, more="model_transaction_policy { decoupled: true }"),
        "model_transaction_policy.decoupled",
        "one response",
    ),
    (
        "an engine's parameter",
        replace(CHAIN, more='parameters { key: "threads" value { string_value: "1" } }'),
        'parameters["threads"]',
        "slo_ms",
    ),
    (
        "a reshape",
        str(CHAIN).replace("dims: [2]", "dims: [2] reshape { shape: [1, 2] }"),
        "input[0].reshape",
        "a step's model may",
    ),
    (
        "a step without a model",
        replace(CHAIN, steps=[FIRST, replace(SECOND, model="")]),
        "ensemble_scheduling.step[1].model_name",
        "is empty",
    ),
    (
        "a version of 0, which is none",
        replace(CHAIN, steps=[replace(FIRST, version=0), SECOND]),
        "ensemble_scheduling.step[0].model_version",
        "-1 for the newest",
    ),
    (
        "a step without inputs",
        replace(CHAIN, steps=[FIRST, replace(SECOND, inputs={})]),
        "ensemble_scheduling.step[1].input_map",
        "is empty",
    ),
    (
        "a step without outputs",
        replace(CHAIN, steps=[FIRST, replace(SECOND, outputs={})]),
        "ensemble_scheduling.step[1].output_map",
        "is empty",
    ),
    (
        "an input that is mapped to nothing",
        replace(CHAIN, steps=[replace(FIRST, inputs={"x": ""}), SECOND]),
        'ensemble_scheduling.step[0].input_map["x"]',
        "an empty name",
    ),
    (
        "a tensor from nowhere",
        replace(CHAIN, steps=[FIRST, replace(SECOND, inputs={"u": "middel"})]),
        'ensemble_scheduling.step[1].input_map["u"]',
        "'middel' is neither an input of the ensemble nor an output of a step",
    ),
    (
        "a tensor from two places",
        replace(CHAIN, steps=[FIRST, replace(SECOND, outputs={"v": "result", "w": "middle"})]),
        'ensemble_scheduling.step[1].output_map["w"]',
        "comes from step[0] already",
    ),
    (
        "an output onto an input",
        replace(CHAIN, steps=[FIRST, replace(SECOND, outputs={"v": "result", "w": "raw"})]),
        'ensemble_scheduling.step[1].output_map["w"]',
        "is an input of the ensemble",
    ),
    (
        "an input that no step takes",
        replace(CHAIN, inputs={"raw": (2,), "idle": (1,)}),
        "input[1].name",
        "no step takes 'idle'",
    ),
    (
        "an output that no step gives",
        replace(CHAIN, outputs={"result": (1,), "never": (1,)}),
        "output[1].name",
        "no step gives 'never'",
    ),
    (
        "a tensor that nobody takes",
        replace(CHAIN, steps=[replace(FIRST, outputs={"y": "middle", "z": "spare"}), SECOND]),
        'ensemble_scheduling.step[0].output_map["z"]',
        "nobody takes tensor 'spare'",
    ),
    (
        "steps that wait for each other",
        replace(
            CHAIN,
            steps=[
                StepText("a", {"x": "raw", "back": "late"}, {"y": "middle"}),
                StepText("b", {"u": "middle"}, {"v": "result", "w": "late"}),
            ],
        ),
        'ensemble_scheduling.step[0].input_map["back"]',
        "step[0], step[1] wait for each other",
    ),
]


@pytest.mark.parametrize(("text", "path", "problem"), [case[1:] for case in ALONE], ids=[case[0] for case in ALONE])
def test_what_is_wrong_with_an_ensemble_alone_is_refused_by_its_field(text: object, path: str, problem: str) -> None:
    """As it is read, whatever the models are; the field is named with its indices and keys."""
    with pytest.raises(ModelLoadFailed) as refused:
        config(text)
    assert refused.value.where == f"config.pbtxt: {path}"
    assert problem in refused.value.problem


A = model_text({"x": (2,)}, {"y": (-1,)})
B = model_text({"u": (3,)}, {"v": (1,)})


def check(text: object, **models: str) -> None:
    """Raises ModelLoadFailed."""
    there = {name: config(text, name) for name, text in models.items()}

    def in_service(name: str, version: str) -> ModelConfig:
        if name not in there or version:
            raise ModelNotReady(name, version, "not loaded")
        return there[name]

    def steps_of(name: str) -> set[str]:
        ensemble = there[name].ensemble if name in there else None
        return ensemble.model_names if ensemble is not None else set()

    check_composition(config(text), in_service, steps_of)


def with_steps(*steps: StepText, **rest: Any) -> EnsembleText:
    return replace(CHAIN, steps=steps, **rest)


def step(index: int, field: str) -> str:
    return f"ensemble_scheduling.step[{index}].{field}"


BESIDE: list[tuple[str, object, dict[str, str], str, str]] = [
    ("a model that does not serve", CHAIN, {"a": A}, step(1, "model_name"), "model 'b' is not ready: not loaded"),
    (
        "a version that does not serve",
        with_steps(replace(FIRST, version=7), SECOND),
        {"a": A, "b": B},
        step(0, "model_name"),
        "model 'a' version 7 is not ready",
    ),
    (
        "a model that gives several responses",
        CHAIN,
        {"a": A, "b": model_text({"u": (3,)}, {"v": (1,)}, more="model_transaction_policy { decoupled: true }")},
        step(1, "model_name"),
        "gives any number of responses",
    ),
    (
        "a model that takes smaller batches",
        CHAIN,
        {"a": A, "b": model_text({"u": (3,)}, {"v": (1,)}, max_batch_size=3)},
        step(1, "model_name"),
        "'b' takes batches of 3 rows, the ensemble's max_batch_size is 4",
    ),
    (
        "an input that the model lacks",
        with_steps(replace(FIRST, inputs={"x": "raw", "q": "raw"}), SECOND),
        {"a": A, "b": B},
        step(0, 'input_map["q"]'),
        "model 'a' has no such input; it has x",
    ),
    (
        "an output that the model lacks",
        with_steps(FIRST, replace(SECOND, outputs={"w": "result"})),
        {"a": A, "b": B},
        step(1, 'output_map["w"]'),
        "model 'b' has no such output; it has v",
    ),
    (
        "an input of the model that nothing is mapped to",
        CHAIN,
        {"a": A, "b": model_text({"u": (3,), "t": (1,)}, {"v": (1,)})},
        step(1, "input_map"),
        "input 't' of model 'b' is not mapped",
    ),
    (
        "another datatype than the ensemble's",
        replace(CHAIN, inputs={"raw": ("INT32", (2,))}),
        {"a": A, "b": B},
        step(0, 'input_map["x"]'),
        "tensor 'raw' is FP32 by model 'a', and INT32 by the ensemble",
    ),
    (
        "another datatype than the step's before",
        CHAIN,
        {"a": A, "b": model_text({"u": ("FP64", (3,))}, {"v": (1,)})},
        step(1, 'input_map["u"]'),
        "tensor 'middle' is FP64 by model 'b', and FP32 by model 'a'",
    ),
    (
        "another shape than the ensemble's",
        replace(CHAIN, outputs={"result": (2,)}),
        {"a": A, "b": B},
        step(1, 'output_map["v"]'),
        "tensor 'result' has the shape [-1, 1] by model 'b', and [-1, 2] by the ensemble",
    ),
    (
        "another number of dims than the step's before",
        CHAIN,
        {"a": A, "b": model_text({"u": (3, 1)}, {"v": (1,)})},
        step(1, 'input_map["u"]'),
        "tensor 'middle' has the shape [-1, 3, 1] by model 'b', and [-1, -1] by model 'a'",
    ),
    (
        "itself among its models",
        with_steps(FIRST, replace(SECOND, model="c")),
        {"a": A, "c": str(with_steps(FIRST, replace(SECOND, model="e")))},
        step(1, "model_name"),
        "the ensemble would contain itself: e -> c -> e",
    ),
]


@pytest.mark.parametrize(
    ("text", "models", "path", "problem"), [case[1:] for case in BESIDE], ids=[case[0] for case in BESIDE]
)
def test_what_does_not_fit_its_models_is_refused_by_its_field(
    text: object, models: dict[str, str], path: str, problem: str
) -> None:
    """Names the step, the map and its key, and both sides of what does not agree."""
    with pytest.raises(ModelLoadFailed) as refused:
        check(text, **models)
    assert refused.value.where == f"config.pbtxt: {path}"
    assert problem in refused.value.problem


FITTING: list[tuple[str, object, dict[str, str]]] = [
    ("a size of -1 on either side", CHAIN, {"a": A, "b": B}),
    ("a model that takes larger batches", CHAIN, {"a": A, "b": model_text({"u": (3,)}, {"v": (1,)}, max_batch_size=9)}),
    (
        "a model without batches whose dims agree",
        CHAIN,
        {"a": A, "b": model_text({"u": (3,)}, {"v": (1,)}, max_batch_size=0, more="")},
    ),
    (
        "a model without batches whose whole shape agrees",
        CHAIN,
        {"a": A, "b": model_text({"u": (-1, 3)}, {"v": (-1, 1)}, max_batch_size=0, more="")},
    ),
    (
        "an optional input that nothing is mapped to",
        CHAIN,
        {"a": A, "b": model_text({"u": (3,), "t": (1,)}, {"v": (1,)}, optional=["t"])},
    ),
    (
        "a step that comes before the one that it waits for",
        with_steps(SECOND, FIRST),
        {"a": A, "b": B},
    ),
    (
        "the same model in two steps",
        with_steps(FIRST, replace(FIRST, outputs={"y": "other"}), outputs={"middle": (3,), "other": (3,)}),
        {"a": A},
    ),
    (
        "an ensemble in an ensemble",
        with_steps(replace(FIRST, model="c"), SECOND),
        {
            "b": B,
            "c": str(
                replace(CHAIN, inputs={"x": (2,)}, outputs={"y": (3,)}, steps=[StepText("d", {"i": "x"}, {"o": "y"})])
            ),
        },
    ),
]


@pytest.mark.parametrize(("text", "models"), [case[1:] for case in FITTING], ids=[case[0] for case in FITTING])
def test_what_agrees_is_taken(text: object, models: dict[str, str]) -> None:
    """As Triton takes it."""
    check(text, **models)


def test_models_come_before_the_ensembles_that_they_are_in() -> None:
    """And what they are composed of too, if nobody named it; circles end."""
    steps = {"outer": {"inner", "z"}, "inner": {"a"}, "left": {"right"}, "right": {"left"}}
    of = lambda name: steps.get(name, set())  # noqa: E731
    assert in_order(["outer", "inner", "b"], of) == ["a", "inner", "z", "outer", "b"]
    assert set(in_order(["left"], of)) == {"left", "right"}
    assert find_circle("left", {"right"}, of) == ["left", "right", "left"]
    assert find_circle("outer", {"inner", "z"}, of) == []


def test_a_config_file_of_an_ensemble_is_read_as_any_other(tmp_path: Path) -> None:
    """With the folder's name."""
    folder = CHAIN.write(tmp_path, "e", version="")
    assert read_model_config(folder).ensemble == config(CHAIN).ensemble
