"""What an ensemble demands of the models that it is composed of, and what a load must know of their order.

Source: Triton's rules for ensembles. Nothing here waits or reads a file: who asks brings the other models' configs.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from functools import partial

from server.ensembles import Step, like
from server.errors import ServingError
from server.repository.ensemble import at
from server.repository.model_config import ModelConfig
from server.repository.refuse import Refuse, refuse_field
from server.tensor import TensorSpec

InService = Callable[[str, str], ModelConfig]
"""The config of a model in service, by name and version (empty: the newest). Raises ServingError, which says why
there is none."""
StepsOf = Callable[[str], Collection[str]]
"""The models that a model is composed of; none where it is no ensemble, or unknown."""


@dataclass(frozen=True, slots=True)
class _Known:
    """What is said of one of the ensemble's tensors, and by whom."""

    datatype: str
    dims: tuple[int, ...]
    batched: bool
    by: str

    @property
    def whole(self) -> tuple[int, ...]:
        return (-1, *self.dims) if self.batched else self.dims


def check_composition(config: ModelConfig, in_service: InService, steps_of: StepsOf) -> None:
    """Hold an ensemble against the models of its steps.

    Raises:
        ModelLoadFailed: a model is not in service, contains the ensemble itself, takes smaller batches, or has
            other tensors; names the field. Nothing is wrong with a model that is no ensemble.
    """
    if config.ensemble is None:
        return
    refuse: Refuse = partial(refuse_field, config.name)
    around = find_circle(config.name, config.ensemble.model_names, steps_of)
    if around:
        index = next(i for i, step in enumerate(config.ensemble.steps) if step.model_name == around[1])
        refuse(at(index, "model_name"), f"the ensemble would contain itself: {' -> '.join(around)}")
    tensors = {spec.name: _known(spec, config, "the ensemble") for spec in (*config.inputs, *config.outputs)}
    for index, step in enumerate(config.ensemble.steps):
        model = _model(index, step, in_service, refuse)
        if model.decoupled:
            problem = "gives any number of responses to a request (model_transaction_policy.decoupled), an ensemble one"
            refuse(at(index, "model_name"), f"'{step.model_name}' {problem}")
        if 0 < model.max_batch_size < config.max_batch_size:
            problem = f"'{step.model_name}' takes batches of {model.max_batch_size} rows, the ensemble's max_batch_size"
            refuse(at(index, "model_name"), f"{problem} is {config.max_batch_size}")
        _check_inputs(index, step, model, tensors, refuse)
        _check_map(index, "output_map", step.output_map, model.outputs, model, tensors, refuse)


def _model(index: int, step: Step, in_service: InService, refuse: Refuse) -> ModelConfig:
    try:
        return in_service(step.model_name, step.version)
    except ServingError as error:
        refuse(at(index, "model_name"), f"is not in service: {error}")


def _check_inputs(index: int, step: Step, model: ModelConfig, tensors: dict[str, _Known], refuse: Refuse) -> None:
    _check_map(index, "input_map", step.input_map, model.inputs, model, tensors, refuse)
    for spec in model.inputs:
        if not spec.optional and spec.name not in step.input_map:
            refuse(at(index, "input_map"), f"input '{spec.name}' of model '{step.model_name}' is not mapped")


def _check_map(
    index: int,
    field: str,
    mapped: Mapping[str, str],
    specs: Iterable[TensorSpec],
    model: ModelConfig,
    tensors: dict[str, _Known],
    refuse: Refuse,
) -> None:
    by_name = {spec.name: spec for spec in specs}
    for key, tensor in mapped.items():
        path = at(index, field, key)
        if key not in by_name:
            kind = field.removesuffix("_map")
            refuse(path, f"model '{model.name}' has no such {kind}; it has {', '.join(by_name)}")
        here = _known(by_name[key], model, f"model '{model.name}'")
        before = tensors.setdefault(tensor, here)
        if before.datatype != here.datatype:
            problem = f"tensor '{tensor}' is {here.datatype} by {here.by}, and {before.datatype} by {before.by}"
            refuse(path, problem)
        if not like(before.dims, here.dims) and not like(before.whole, here.whole):
            problem = f"tensor '{tensor}' has the shape {list(here.whole)} by {here.by}"
            refuse(path, f"{problem}, and {list(before.whole)} by {before.by}")


def _known(spec: TensorSpec, config: ModelConfig, by: str) -> _Known:
    return _Known(spec.datatype, spec.dims, config.max_batch_size > 0, by)


# --- order -------------------------------------------------------------------------------------------


def find_circle(name: str, composed_of: Collection[str], steps_of: StepsOf) -> list[str]:
    """The way from a model through those that it is composed of back to itself; empty if there is none."""
    ways = [[name, other] for other in sorted(composed_of)]
    seen: set[str] = set()
    while ways:
        way = ways.pop(0)
        if way[-1] == name:
            return way
        if way[-1] not in seen:
            seen.add(way[-1])
            ways += [[*way, other] for other in sorted(steps_of(way[-1]))]
    return []


def in_order(names: Iterable[str], steps_of: StepsOf) -> list[str]:
    """`names` and all that they are composed of, each behind those that it is composed of; otherwise as they came.

    Of models that contain each other some come before what they contain.
    """
    order: dict[str, None] = {}
    begun: set[str] = set()

    def visit(name: str) -> None:
        if name not in begun:
            begun.add(name)
            for other in sorted(steps_of(name)):
                visit(other)
            order[name] = None

    for name in names:
        visit(name)
    return list(order)
