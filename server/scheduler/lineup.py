"""The models that an ensemble is composed of now: which version of each, and what a tensor must look like to it.

A lineup holds its versions in service, so that a request which has begun ends on the versions that it began with,
whatever is swapped or unloaded meanwhile. One lineup serves all requests until the next change of models.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from server.ensembles import like
from server.tensor import Tensor
from server.types import Form, InferRequest

_MOST_FORMS = 64


class StepModel(Protocol):
    """One version in service, as an ensemble knows it."""

    @property
    def keeps_sequences(self) -> bool:
        """It takes requests that belong to sequences."""

    def submit(self, requests: Sequence[InferRequest]) -> None:
        """Check and queue requests; each is settled in any case."""

    def lost(self, request: InferRequest) -> None:
        """A request that is settled was meant to come, and never will: a gap in its sequence, if it is of one."""

    def healthy(self) -> bool: ...
    def __enter__(self) -> object: ...
    def __exit__(self, *_: object) -> None: ...


@dataclass(frozen=True, slots=True)
class Member:
    """Of a lineup: what runs one step."""

    name: str
    version: str
    model: StepModel
    batched: bool
    """Its tensors have a batch dimension."""
    inputs: Mapping[str, tuple[int, ...]]
    """Their dims, without the batch dimension."""
    _forms: dict[tuple[tuple[int, ...], ...], Form] = field(default_factory=dict)

    def form(self, inputs: Sequence[Tensor]) -> Form:
        """What requests with inputs of these shapes, all that there are, have in common: the next need no check."""
        shapes = tuple([tensor.shape for tensor in inputs])
        form = self._forms.get(shapes)
        if form is None:
            if len(self._forms) == _MOST_FORMS:
                self._forms.clear()
            form = self._forms[shapes] = Form()
        return form


class Lineup:
    """One member for each step."""

    def __init__(self, members: Sequence[Member]) -> None:
        self.members = members
        self.keeps_sequences = any(member.model.keeps_sequences for member in members)
        self._requests = 0
        self._dropped = False
        for member in members:
            member.model.__enter__()

    def join(self) -> None:
        """A request begins."""
        self._requests += 1

    def leave(self) -> None:
        """One that began is over."""
        self._requests -= 1
        self._release()

    def drop(self) -> None:
        """No request will begin any more."""
        self._dropped = True
        self._release()

    def _release(self) -> None:
        if self._dropped and not self._requests:
            for member in self.members:
                member.model.__exit__()


def converted(name: str, tensor: Tensor, dims: tuple[int, ...], *, batched: bool) -> Tensor:
    """`tensor` by another name, from a side without a batch dimension to one that has one, if `batched`, or back.

    A shape that is as the other side wants it is handed on whole. Else it is given a batch dimension of one row, if
    behind it `dims` fit; or the one that it has is taken away, if it is of one row. Whether the shape then is right is
    for the check of whoever gets it. Source: Triton, ensembles of models that batch and models that do not.
    """
    shape = tensor.shape
    if batched and like(dims, shape):
        shape = (1, *shape)
    elif not batched and not like(dims, shape) and shape[:1] == (1,):
        shape = shape[1:]
    return Tensor(name, tensor.datatype, shape, tensor.data)
