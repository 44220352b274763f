"""`ensemble_scheduling` of config.pbtxt, as far as it can be understood without the models that it names.

What those must be is in `composition.py`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from server.ensembles import NEWEST, Ensemble, Step
from server.proto.triton import model_config_pb2 as pb
from server.repository.refuse import Refuse
from server.tensor import TensorSpec

PLATFORM = "ensemble"

_OF_FILES = ("instance_group", "optimization", "default_model_filename", "model_warmup", "response_cache")
"""Fields that say how a model's own file is run, or its answers kept."""


def is_ensemble(message: pb.ModelConfig) -> bool:
    return message.platform == PLATFORM or bool(message.HasField("ensemble_scheduling"))


def read_ensemble(
    message: pb.ModelConfig, inputs: tuple[TensorSpec, ...], outputs: tuple[TensorSpec, ...], refuse: Refuse
) -> Ensemble | None:
    """None for a model that has a file of its own. Every tensor must come from somewhere, and be there for somebody."""
    if not is_ensemble(message):
        return None
    _check_alone(message, refuse)
    steps = tuple(_step(index, step, refuse) for index, step in enumerate(message.ensemble_scheduling.step))
    if not steps:
        refuse("ensemble_scheduling.step", "is empty; an ensemble needs at least one")
    sources = _sources(steps, {spec.name for spec in inputs}, refuse)
    _check_used(steps, inputs, outputs, sources, refuse)
    _check_order(steps, sources, refuse)
    return Ensemble(steps)


def at(index: int, field: str, key: str = "") -> str:
    """The path of a step's field, as errors name it; `key` of a map."""
    return f"ensemble_scheduling.step[{index}].{field}" + (f'["{key}"]' if key else "")


def _check_alone(message: pb.ModelConfig, refuse: Refuse) -> None:
    if message.platform != PLATFORM:
        refuse("platform", f"is '{message.platform}', it must be '{PLATFORM}' where ensemble_scheduling is set")
    if message.backend:
        refuse("backend", f"is '{message.backend}'; an ensemble has none")
    for field, _ in message.ListFields():
        if field.name in _OF_FILES:
            refuse(field.name, "an ensemble runs no file of its own; say it in the configs of its steps' models")
    if message.model_transaction_policy.decoupled:
        refuse("model_transaction_policy.decoupled", "is true; an ensemble gives one response to a request")
    for kind, tensors in (("input", message.input), ("output", message.output)):
        for index, tensor in enumerate(tensors):
            if tensor.HasField("reshape"):
                refuse(
                    f"{kind}[{index}].reshape", "an ensemble hands tensors on as they are; a step's model may reshape"
                )


def _step(index: int, step: Any, refuse: Refuse) -> Step:
    if not step.model_name:
        refuse(at(index, "model_name"), "is empty")
    if step.model_version < 1 and step.model_version != NEWEST:
        problem = f"is {step.model_version}, it must be a version, or {NEWEST} for the newest one in service"
        refuse(at(index, "model_version"), problem)
    for field in ("input_map", "output_map"):
        tensors = getattr(step, field)
        if not tensors:
            refuse(at(index, field), "is empty")
        for key, tensor in tensors.items():
            if not key or not tensor:
                refuse(at(index, field, key), "maps an empty name")
    return Step(step.model_name, step.model_version, dict(step.input_map), dict(step.output_map))


def _sources(steps: tuple[Step, ...], inputs: set[str], refuse: Refuse) -> Mapping[str, int]:
    """The step that each tensor comes from, where it is no input of the ensemble."""
    sources: dict[str, int] = {}
    for index, key, tensor in _mapped(steps, "output_map"):
        if tensor in inputs:
            refuse(at(index, "output_map", key), f"tensor '{tensor}' is an input of the ensemble")
        if tensor in sources:
            problem = f"tensor '{tensor}' comes from step[{sources[tensor]}] already, and can have one source"
            refuse(at(index, "output_map", key), problem)
        sources[tensor] = index
    for index, key, tensor in _mapped(steps, "input_map"):
        if tensor not in inputs and tensor not in sources:
            problem = f"tensor '{tensor}' is neither an input of the ensemble nor an output of a step"
            refuse(at(index, "input_map", key), problem)
    return sources


def _check_used(
    steps: tuple[Step, ...],
    inputs: tuple[TensorSpec, ...],
    outputs: tuple[TensorSpec, ...],
    sources: Mapping[str, int],
    refuse: Refuse,
) -> None:
    read = {tensor for _, _, tensor in _mapped(steps, "input_map")}
    given = {spec.name for spec in outputs}
    for index, spec in enumerate(inputs):
        if spec.name not in read:
            refuse(f"input[{index}].name", f"no step takes '{spec.name}'")
    for index, spec in enumerate(outputs):
        if spec.name not in sources:
            refuse(f"output[{index}].name", f"no step gives '{spec.name}'")
    for step, key, tensor in _mapped(steps, "output_map"):
        if tensor not in read and tensor not in given:
            refuse(at(step, "output_map", key), f"nobody takes tensor '{tensor}'; remove it, or make it an output")


def _check_order(steps: tuple[Step, ...], sources: Mapping[str, int], refuse: Refuse) -> None:
    """Refuse steps that wait for each other."""
    left = set(range(len(steps)))
    while left:
        ready = {i for i in left if not any(sources.get(tensor) in left for tensor in steps[i].input_map.values())}
        if not ready:
            index = min(left)
            key, tensor = next((k, t) for k, t in steps[index].input_map.items() if sources.get(t) in left)
            among = ", ".join(f"step[{i}]" for i in sorted(left))
            refuse(at(index, "input_map", key), f"tensor '{tensor}' never comes: {among} wait for each other")
        left -= ready


def _mapped(steps: tuple[Step, ...], field: str) -> Iterator[tuple[int, str, str]]:
    for index, step in enumerate(steps):
        for key, tensor in getattr(step, field).items():
            yield index, key, tensor
