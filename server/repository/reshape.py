"""`reshape` of config.pbtxt: the shapes that clients see, around a model that has others for the same elements.

Inputs are given their model's dims before a pass and outputs the clients' dims behind it; no element moves. A model
without reshape is left as it is.
Source: Triton, model_configuration.md, "Reshape".
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from server.engine.base import EngineModel, Instance
from server.errors import EngineFailure
from server.tensor import Array, TensorSpec
from server.types import Batch

_Dims = tuple[int, ...]
_Reshapes = Mapping[str, tuple[_Dims, _Dims]]
"""By tensor: the dims that it has, and those that it gets. Sizes of -1 are the same in both, in their order."""


def reshaped(model: EngineModel, inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec]) -> EngineModel:
    """`model` with the clients' dims of `inputs` and `outputs`; itself where they are the model's."""
    into = {spec.name: (spec.dims, spec.reshape) for spec in inputs if spec.reshape is not None}
    back = {spec.name: (spec.reshape, spec.dims) for spec in outputs if spec.reshape is not None}
    return _ReshapedModel(model, into, back) if into or back else model


class _ReshapedModel:
    def __init__(self, model: EngineModel, into: _Reshapes, back: _Reshapes) -> None:
        self._model = model
        self._instances = [_ReshapedInstance(instance, into, back) for instance in model.instances]

    @property
    def instances(self) -> Sequence[Instance]:
        return self._instances

    def close(self) -> None:
        self._instances.clear()
        self._model.close()


class _ReshapedInstance:
    __slots__ = ("_back", "_instance", "_into", "device", "name", "threads")

    def __init__(self, instance: Instance, into: _Reshapes, back: _Reshapes) -> None:
        self.name = instance.name
        self.device = instance.device
        self.threads = instance.threads
        self._instance = instance
        self._into = into
        self._back = back

    def renew(self) -> _ReshapedInstance:
        """Raises EngineFailure: its engine makes no second one."""
        renew = getattr(self._instance, "renew", None)
        if renew is None:
            raise EngineFailure("", f"{self.name}: its engine makes no second one")
        return _ReshapedInstance(renew(), self._into, self._back)

    def interrupt(self) -> None:
        interrupt = getattr(self._instance, "interrupt", None)
        if interrupt is not None:
            interrupt()

    def run(self, batch: Batch) -> Mapping[str, Array]:
        """See `server.engine.base.Instance.run`."""
        inputs = {name: _given(array, self._into.get(name)) for name, array in batch.inputs.items()}
        outputs = self._instance.run(batch._replace(inputs=inputs))
        try:
            return {name: _given(array, self._back.get(name)) for name, array in outputs.items()}
        except ValueError as error:
            detail = f"{self.name}: an output is not what its reshape says: {error}"
            raise EngineFailure(batch.model_name, detail) from error


def _given(array: Array, dims: tuple[_Dims, _Dims] | None) -> Array:
    """`array` with its new dims; what stands before the dims that it has, the rows if there are any, stays."""
    if dims is None:
        return array
    has, gets = dims
    rows = array.ndim - len(has)
    own = array.shape[rows:]
    if rows < 0 or any(want not in (-1, got) for want, got in zip(has, own, strict=True)):
        raise ValueError(f"shape {list(array.shape)}, expected {list(has)} at its end")
    free = iter([got for want, got in zip(has, own, strict=True) if want == -1])
    return array.reshape((*array.shape[:rows], *(next(free) if size == -1 else size for size in gets)))
