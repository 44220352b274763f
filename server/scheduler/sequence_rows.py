"""The rows of a pass: what a request says, what the model is told of its sequence, and the states that it left.

A row is a request of its own to the worker, with control and state tensors behind the client's inputs; so passes of
sequences are merged, run and split like any others. A slot without a request is a row of zeros whose READY is false.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

from server.errors import EngineFailure
from server.scheduler.slots import END, START, Chain
from server.sequences import Control, ControlKind, SequenceBatching, SequenceId, State
from server.tensor import DATATYPES, Tensor, pack_bytes
from server.types import InferRequest, InferResponse, Outcome

_BYTES_OF_NOTHING = bytes(4)
"""An empty string in v2's raw form."""


class Rows:
    """Of one model version. What is the same for every row is made once."""

    def __init__(self, batching: SequenceBatching, *, batched: bool, outputs: Sequence[str]) -> None:
        """`outputs`: those that clients see, in the order of the config."""
        self._batched = batched
        self._visible = tuple(outputs)
        self._states = batching.states
        self._shape = (1, 1) if batched else (1,)
        self._correlation = batching.control(ControlKind.CORRID)
        flags = [control for control in batching.controls if control is not self._correlation]
        self._flags = {
            (start, end): tuple(self._flag(control, start, end) for control in flags)
            for start in (False, True)
            for end in (False, True)
        }
        self._absent = tuple(Tensor(c.name, c.datatype, self._shape, c.false) for c in flags)
        self._initial = tuple(self._first(state) for state in batching.states)

    def _flag(self, control: Control, start: bool, end: bool) -> Tensor:
        told = {ControlKind.START: start, ControlKind.END: end, ControlKind.READY: True}[control.kind]
        return Tensor(control.name, control.datatype, self._shape, control.true if told else control.false)

    def _first(self, state: State) -> Tensor:
        shape = (1, *state.initial.dims) if self._batched else state.initial.dims
        return Tensor(state.input_name, state.datatype, shape, state.initial.data)

    # --- into a pass ----------------------------------------------------------------------------------

    def key(self, chain: Chain) -> object:
        """Equal for sequences whose next requests can be stacked."""
        request = chain.waiting[0]
        if not self._states:
            return request.signature
        return request.signature, tuple([state.shape for state in self._met(chain, request)])

    def row(self, chain: Chain, request: InferRequest) -> InferRequest:
        """The request as the model gets it."""
        parameters = request.parameters
        flags = self._flags[bool(parameters.get(START)), bool(parameters.get(END))]
        correlation = () if self._correlation is None else (self._told(self._correlation, chain.id),)
        return _row(request, [*request.inputs, *flags, *correlation, *self._met(chain, request)], request.deadline_ns)

    def empty(self, beside: InferRequest) -> InferRequest:
        """The row of a slot that has nothing to run, in one pass with a row that has."""
        absent = {tensor.name: tensor for tensor in self._absent}
        return _row(beside, [absent.get(tensor.name) or _zeros(tensor) for tensor in beside.inputs])

    def _met(self, chain: Chain, request: InferRequest) -> Sequence[Tensor]:
        """The states that the request is run on."""
        return self._initial if chain.states is None or request.parameters.get(START) else chain.states

    def _told(self, control: Control, id: SequenceId) -> Tensor:
        if isinstance(id, str):
            return Tensor(control.name, "BYTES", self._shape, pack_bytes([id]))
        # As in Triton: the low bits, whatever their sign is taken to be.
        size = DATATYPES[control.datatype].size
        return Tensor(control.name, control.datatype, self._shape, id.to_bytes(8, "little")[:size])

    # --- out of a pass --------------------------------------------------------------------------------

    def states(self, response: InferResponse, *, alone: bool) -> Sequence[Tensor]:
        """What a row's answer leaves to the next request. `alone`: no other row was in the pass.

        Raises:
            EngineFailure: a state is not there, or its shape is not that of the config.
        """
        if not self._states:
            return ()
        names = [state.output_name for state in self._states]
        left = zip(self._states, _chosen(response, names), strict=True)
        return [self._kept(state, tensor, response.model_name, alone) for state, tensor in left]

    def _kept(self, state: State, tensor: Tensor, model_name: str, alone: bool) -> Tensor:
        dims = tensor.shape[1:] if self._batched else tensor.shape
        if len(dims) != len(state.dims) or any(w not in (-1, g) for w, g in zip(state.dims, dims, strict=True)):
            detail = f"state {state.output_name} has shape {list(dims)}, config.pbtxt says {list(state.dims)}"
            raise EngineFailure(model_name, detail)
        # A view would keep the states of all rows of the pass for as long as this sequence rests.
        data = tensor.data if alone else bytes(tensor.data)
        return Tensor(state.input_name, state.datatype, tensor.shape, data)

    def answer(self, response: InferResponse, request: InferRequest) -> InferResponse:
        """The same with the outputs that the client asked for. Raises EngineFailure: one is not there."""
        if self._states or request.outputs:
            response.outputs = _chosen(response, request.outputs or self._visible)
        return response


def _chosen(response: InferResponse, names: Sequence[str]) -> list[Tensor]:
    by_name = {tensor.name: tensor for tensor in response.outputs}
    try:
        return [by_name[name] for name in names]
    except KeyError as error:
        raise EngineFailure(response.model_name, f"the engine returned no output {error}") from error


def _row(of: InferRequest, inputs: Sequence[Tensor], deadline_ns: int | None = None) -> InferRequest:
    row = InferRequest(of.model_name, inputs, on_settle=_nobody, received_ns=of.received_ns, id=of.id)
    if deadline_ns is not None:
        row.deadline_ns = deadline_ns
    row.signature = of.signature
    row.enqueued_ns = of.enqueued_ns
    return row


def _nobody(_request: InferRequest, _outcome: Outcome) -> None:
    """Nobody waits for a row; whose it is, is told by the scheduler."""


def _zeros(tensor: Tensor) -> Tensor:
    size = DATATYPES[tensor.datatype].size
    count = prod(tensor.shape)
    data = bytes(count * size) if size else _BYTES_OF_NOTHING * count
    return Tensor(tensor.name, tensor.datatype, tensor.shape, data)
