"""How the readers of config.pbtxt's sections refuse what can't be served."""

from __future__ import annotations

from typing import NoReturn, Protocol

from server.errors import ModelLoadFailed
from server.repository.config_text import CONFIG_FILE


class Refuse(Protocol):
    """Raises ModelLoadFailed. `path` is that of the field, with indices (``input[1].dims``)."""

    def __call__(self, path: str, problem: str) -> NoReturn: ...


def refuse_field(model_name: str, path: str, problem: str) -> NoReturn:
    """Of a model's config.pbtxt."""
    raise ModelLoadFailed(model_name, f"{CONFIG_FILE}: {path}", problem)
