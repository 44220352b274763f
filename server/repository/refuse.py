"""How the readers of config.pbtxt's sections refuse what can't be served."""

from __future__ import annotations

from typing import NoReturn, Protocol


class Refuse(Protocol):
    """Raises ModelLoadFailed. `path` is that of the field, with indices (``input[1].dims``)."""

    def __call__(self, path: str, problem: str) -> NoReturn: ...
