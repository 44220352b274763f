"""What a run is asked to do: made of options and a recipe's own defaults, and refused by name where it can't be."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError

from exporter.errors import UsageError
from exporter.recipes import find
from exporter.recipes.base import OPTIONAL, RunConfig


def make_config(changes: Mapping[str, Any], training: Mapping[str, Any]) -> RunConfig:
    """A configuration with the recipe's own hyperparameters, but for those in `training`.

    Raises:
        UsageError: a value is out of range, or the recipe is unknown.
    """
    recipe = find(changes["recipe"])
    defaults = recipe.hyperparameters(changes["data"])
    if changes.get("text") is not None and "text" not in recipe.options:
        told = ", ".join(f"--{name.replace('_', '-')}" for name in changes["text"])
        raise UsageError(f"{told}: for recipes that read texts, and {recipe.name} reads none")
    try:
        hyperparameters = type(defaults).model_validate({**defaults.model_dump(), **training})
        config = RunConfig.model_validate({**changes, "training": hyperparameters})
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        raise UsageError(f"{'.'.join(str(part) for part in first['loc'])}: {first['msg']}") from error
    given = [name for name in OPTIONAL if getattr(config, name) != RunConfig.model_fields[name].default]
    given += ["class_weights"] if config.training.class_weights != "none" else []
    for name in given:
        if name not in recipe.options:
            raise UsageError(f"--{name.replace('_', '-')}: the recipe {recipe.name} has no such option")
    if config.threads > 1 and config.training.devices > 1:
        raise UsageError("--threads: goes with one device; each of several processes has one thread")
    if (config.split == "random") != (not config.split_column):
        raise UsageError("--split-column: goes together with --split time or --split group, which need it")
    return config


def difference(found: RunConfig, wanted: RunConfig) -> str:
    """In words."""
    before, after = _flat(found.model_dump()), _flat(wanted.model_dump())
    names = [name for name in (before | after) if before.get(name) != after.get(name)]
    return ", ".join(f"{name} was {before.get(name)!r}, now {after.get(name)!r}" for name in names)


def _flat(values: Mapping[str, Any], above: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in values.items():
        found |= _flat(value, f"{above}{name}.") if isinstance(value, dict) else {f"{above}{name}": value}
    return found
