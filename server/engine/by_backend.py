"""Several engines as one: each model is loaded by the one that its config's ``backend`` names."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from server.engine.base import Engine, EngineModel, EngineSpec
from server.errors import ModelLoadFailed


class ByBackend:
    """`others`: by backend, how to make the engine, once it is wanted; ImportError says why it can not be had."""

    def __init__(self, default: Engine, others: Mapping[str, Callable[[], Engine]]) -> None:
        self._default = default
        self._others = others
        self._made: dict[str, Engine] = {}

    @property
    def name(self) -> str:
        return self._default.name

    def load(self, spec: EngineSpec) -> EngineModel:
        """See `Engine.load`. Raises ModelLoadFailed also where the engine is not installed."""
        make = self._others.get(spec.backend)
        if make is None:
            return self._default.load(spec)
        engine = self._made.get(spec.backend)
        if engine is None:
            try:
                engine = self._made[spec.backend] = make()
            except ImportError as error:
                raise ModelLoadFailed(spec.model_name, "config.pbtxt: backend", str(error)) from error
        return engine.load(spec)
