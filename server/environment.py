"""Where settings come from: a flag, else the environment (``FORWARDPASS_GRPC__PORT``), else the default of the tree.

An unknown name is an error, in the environment as on the command line.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from typing import Any, NamedTuple, TypeGuard, get_origin

from server.settings import Section, Settings

ENV_PREFIX = "FORWARDPASS_"
ENV_NESTED = "__"


class Variable(NamedTuple):
    """What an environment variable sets: the way to it in the tree, and its type."""

    path: tuple[str, ...]
    kind: Any

    def parse(self, text: str) -> Any:
        """Sections and lists are JSON in the environment, anything else is plain text. Raises ValueError."""
        wanted = dict if _is_section(self.kind) else list if get_origin(self.kind) is tuple else None
        if wanted is None:
            return text
        value = json.loads(text)
        if not isinstance(value, wanted):
            raise ValueError(text)
        return value


def known_environment() -> dict[str, Variable]:
    """Every environment variable that sets something, a section before its settings."""
    known: dict[str, Variable] = {}
    for name, field in Settings.model_fields.items():
        variable, section = f"{ENV_PREFIX}{name}".upper(), field.annotation
        known[variable] = Variable((name,), section)
        if _is_section(section):
            for key, inner in section.model_fields.items():
                known[f"{variable}{ENV_NESTED}{key}".upper()] = Variable((name, key), inner.annotation)
    return known


def load_settings(overrides: Mapping[str, Any] | None = None) -> Settings:
    """Settings from the environment under `overrides` (nested by section, as flags give them).

    Raises:
        ValueError: a value is out of range, or a FORWARDPASS_ variable is unknown or not the JSON that it must be.
    """
    return Settings.model_validate(_merged(_from_environment(), overrides or {}))


def _from_environment() -> dict[str, Any]:
    """What the environment sets, nested by section; a variable of a setting beats that of its section."""
    known = known_environment()
    given = {name.upper(): value for name, value in os.environ.items() if name.upper().startswith(ENV_PREFIX)}
    stray = sorted(name for name in os.environ if name.upper() in given.keys() - known.keys())
    if stray:
        raise ValueError(f"unknown environment variable: {', '.join(stray)}")
    settings: dict[str, Any] = {}
    broken = []
    for name, variable in known.items():
        if name in given:
            try:
                value = variable.parse(given[name])
            except ValueError:
                broken.append(name)
            else:
                settings = _merged(settings, _nested(variable.path, value))
    if broken:
        raise ValueError(f"not a JSON list or object, as its value must be: {', '.join(broken)}")
    return settings


def _nested(path: tuple[str, ...], value: Any) -> dict[str, Any]:
    return {path[0]: _nested(path[1:], value) if path[1:] else value}


def _merged(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """Both trees in one; where both have a value, that of `above`."""
    merged = dict(below)
    for name, value in above.items():
        known = merged.get(name)
        if isinstance(known, Mapping) and isinstance(value, Mapping):
            merged[name] = _merged(known, value)
        else:
            merged[name] = value
    return merged


def _is_section(kind: Any) -> TypeGuard[type[Section]]:
    return isinstance(kind, type) and issubclass(kind, Section)
