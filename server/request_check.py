"""Everything that a request can get wrong about a model, checked before it joins a batch.

The wire (JSON, byte lengths, framing) was checked by the transport; here the request's tensors are held
against the model's config, its rows are counted, and the signature is made by which the scheduler knows
what may share a batch.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from math import prod
from operator import is_

from server.buckets import Buckets
from server.classification import refuse_datatype
from server.errors import InvalidRequest, ServingError
from server.repository.model_config import ModelConfig
from server.sequence_check import SequenceCheck, refuse_sequence
from server.tensor import Tensor, TensorSpec, unpack_bytes
from server.types import InferRequest, Parameter

ENABLE_EMPTY_FINAL_RESPONSE = "triton_enable_empty_final_response"
"""The parameter by which a request asks to be told of its end even where no tensors come with it."""
_RESERVED = "triton_"
LONGEST_TENANT = 128
"""Characters of a tenant's name, where tenants share the queue, which keeps the names of those who wait."""


class RequestCheck:
    """The check of one version of a model, prepared once when it is loaded."""

    def __init__(self, config: ModelConfig, *, takes_sequences: bool = False) -> None:
        """`takes_sequences`: it is an ensemble, and a model of one of its steps checks what is said of them."""
        self._model_name = config.name
        self._inputs = {spec.name: spec for spec in config.inputs}
        self._outputs = {spec.name: spec.datatype for spec in config.outputs}
        self._max_batch_size = config.max_batch_size
        self._batched = config.max_batch_size > 0
        self._variable = any(-1 in spec.dims or spec.optional for spec in config.inputs)
        self._fair_by_tenant = config.fair_by_tenant
        self._buckets = config.buckets
        sequences = config.sequence_batching
        self._sequences = SequenceCheck(config.name, sequences) if sequences is not None else None
        self._takes_sequences = takes_sequences
        self._has_text = config.text_is_utf8 and any(spec.datatype == "BYTES" for spec in config.inputs)

    def __call__(self, request: InferRequest) -> None:
        """Set the request's `rows` and `signature`, with its inputs in the order of the config.

        What a request's form says was checked before, by this very check, is not looked at again: only what is
        the same for every request of the form is checked here, but for text, which is in the data.

        Raises:
            InvalidRequest: a tensor is missing, unknown, there twice, of another datatype or shape, or text that is
                not UTF-8; the batch is empty or too large; a requested output is unknown, or wanted as classes that its
                datatype does not have; `timeout` or `priority` is no whole number; the tenant's name is too long; of a
                model that batches sequences also what `server.sequence_check` says.
            Unsupported: the request belongs to a sequence, and the model keeps none.
        """
        if self._fair_by_tenant and len(request.tenant) > LONGEST_TENANT:
            raise InvalidRequest("X-Tenant", f"{len(request.tenant)} characters, at most {LONGEST_TENANT}")
        form = request.form
        if form is not None and form.checked_by is self:
            request.rows, request.signature = form.rows, form.signature
            return
        positions = self._positions(request.inputs)
        rows = -1
        ordered: list[Tensor] = []
        for name, spec in self._inputs.items():
            index = positions.get(name)
            if index is None:
                if spec.optional:
                    continue
                raise InvalidRequest("inputs", self._missing(positions))
            tensor = request.inputs[index]
            rows = self._check_tensor(tensor, spec, f"inputs[{index}]", rows)
            if self._has_text and spec.datatype == "BYTES":
                _check_text(tensor, f"inputs[{index}].data")
            ordered.append(tensor)
        request.rows = rows if self._batched else 1
        in_order = all(map(is_, request.inputs, ordered))
        request.inputs = ordered
        request.signature = self._signature(ordered)
        if request.outputs:
            self._check_outputs(request.outputs, request.special.classes if request.special is not None else {})
        if request.parameters or self._sequences is not None:
            _check_parameters(request)
            self._check_sequence(request)
        if form is not None and in_order and not self._has_text:
            form.checked_by, form.rows, form.signature = self, request.rows, request.signature

    def passing(
        self, requests: Sequence[InferRequest], refuse: Callable[[InferRequest, ServingError], None]
    ) -> list[InferRequest]:
        """Those with which nothing is wrong; `refuse` hears of the others. Without a call for each of a known form."""
        good: list[InferRequest] = []
        for request in requests:
            form = request.form
            if form is not None and form.checked_by is self and not self._fair_by_tenant:
                request.rows, request.signature = form.rows, form.signature
            else:
                try:
                    self(request)
                except ServingError as error:
                    refuse(request, error)
                    continue
            good.append(request)
        return good

    def _check_sequence(self, request: InferRequest) -> None:
        if self._sequences is not None:
            self._sequences(request)
        elif not self._takes_sequences:
            refuse_sequence(request)

    def _missing(self, given: Collection[str]) -> str:
        """Triton's words, as those of the other errors that its clients may look for."""
        got, required = list(given), [name for name, spec in self._inputs.items() if not spec.optional]
        missing = [name for name in required if name not in given]
        most = len(self._inputs)
        expected = f"{most} inputs" if len(required) == most else f"number of inputs between {len(required)} and {most}"
        return (
            f"expected {expected} but got {len(got)} inputs for model '{self._model_name}'. "
            f"Got input(s) {_listed(got)}, but missing required input(s) {_listed(missing)}"
        )

    def _positions(self, inputs: Sequence[Tensor]) -> dict[str, int]:
        positions: dict[str, int] = {}
        for index, tensor in enumerate(inputs):
            if tensor.name not in self._inputs:
                known = ", ".join(self._inputs)
                raise InvalidRequest(
                    f"inputs[{index}].name",
                    f"unexpected inference input '{tensor.name}' for model '{self._model_name}', which takes {known}",
                )
            if tensor.name in positions:
                raise InvalidRequest(f"inputs[{index}].name", f"input '{tensor.name}' already exists in request")
            positions[tensor.name] = index
        return positions

    def _check_tensor(self, tensor: Tensor, spec: TensorSpec, field: str, rows: int) -> int:
        """The tensor's rows, which must be those of the inputs before it (`rows`, -1 for the first)."""
        if tensor.datatype != spec.datatype:
            raise InvalidRequest(
                f"{field}.datatype",
                f"inference input '{spec.name}' data-type is '{tensor.datatype}', "
                f"but model '{self._model_name}' expects '{spec.datatype}'",
            )
        shape = tensor.shape
        dims = shape[1:] if self._batched else shape
        if len(shape) != len(spec.dims) + self._batched or (
            dims != spec.dims and any(want not in (-1, got) for want, got in zip(spec.dims, dims, strict=True))
        ):
            want = [-1, *spec.dims] if self._batched else list(spec.dims)
            raise InvalidRequest(
                f"{field}.shape",
                f"unexpected shape for input '{spec.name}' for model '{self._model_name}'. "
                f"Expected {_listed(want)}, got {_listed(shape)}",
            )
        if not self._batched:
            return 1
        if not 1 <= shape[0] <= self._max_batch_size:
            raise InvalidRequest(
                f"{field}.shape",
                f"inference request batch-size must be <= {self._max_batch_size} for '{self._model_name}' "
                f"(its max_batch_size), and at least 1, got {shape[0]}",
            )
        if rows not in (-1, shape[0]):
            raise InvalidRequest(f"{field}.shape", f"{shape[0]} rows, the inputs before it have {rows}")
        return shape[0]

    def _signature(self, inputs: Sequence[Tensor]) -> object:
        """Equal for requests whose rows can be stacked: the bucket, else the shapes; None where nothing varies."""
        if not self._variable:
            return None
        if self._buckets is not None:
            return self._buckets.padded(_length(inputs, self._buckets))
        skip = 1 if self._batched else 0
        if len(inputs) == len(self._inputs):
            return tuple(tensor.shape[skip:] for tensor in inputs)
        shapes = {tensor.name: tensor.shape[skip:] for tensor in inputs}
        # What was left out is told from what is there by its rank.
        return tuple(shapes.get(name, (0,) * (len(spec.dims) + 1)) for name, spec in self._inputs.items())

    def _check_outputs(self, outputs: Sequence[str], classes: Collection[str]) -> None:
        for index, name in enumerate(outputs):
            if name not in self._outputs:
                known = ", ".join(sorted(self._outputs))
                raise InvalidRequest(
                    f"outputs[{index}].name",
                    f"unexpected inference output '{name}' for model '{self._model_name}', which gives {known}",
                )
            if name in outputs[:index]:
                raise InvalidRequest(f"outputs[{index}].name", f"output '{name}' is requested twice")
            if name in classes:
                refuse_datatype(f"outputs[{index}]", self._outputs[name])


def _listed(values: Iterable[object]) -> str:
    """As Triton writes lists: ['a','b'], [-1,3]."""
    return f"[{','.join([repr(value) for value in values])}]"


def _length(inputs: Sequence[Tensor], buckets: Buckets) -> int:
    """The one length of a request's inputs."""
    first, length = "", -1
    for tensor in inputs:
        own = buckets.length(tensor)
        if own is None or own == length:
            continue
        if first:
            problem = f"input '{tensor.name}' has length {own}, '{first}' has {length}; they must be equal"
            raise InvalidRequest("inputs", problem)
        first, length = tensor.name, own
    return length


def _check_text(tensor: Tensor, field: str) -> None:
    """An ONNX string is UTF-8; found out in the engine, a bad one would be a failure of its whole batch."""
    for index, element in enumerate(unpack_bytes(tensor.data, prod(tensor.shape))):
        try:
            element.decode()
        except UnicodeDecodeError as error:
            raise InvalidRequest(field, f"element {index} of input '{tensor.name}' is not UTF-8") from error


def _check_parameters(request: InferRequest) -> None:
    """The parameters that the server acts on; others are the caller's own and pass."""
    timeout = request.parameters.get("timeout")
    if timeout is not None and (isinstance(timeout, bool) or not isinstance(timeout, int) or timeout < 0):
        raise InvalidRequest("parameters.timeout", f"must be a whole number of microseconds, got {timeout!r}")
    priority = request.parameters.get("priority")
    if priority is not None and (isinstance(priority, bool) or not isinstance(priority, int) or priority < 0):
        raise InvalidRequest("parameters.priority", f"must be a whole number, 0 for the default, got {priority!r}")
    if any(name.startswith(_RESERVED) for name in request.parameters):
        _check_reserved(request.parameters)


def _check_reserved(parameters: Mapping[str, Parameter]) -> None:
    """Triton's own keys, in its words: of a request it knows but one."""
    for name, value in parameters.items():
        if not name.startswith(_RESERVED):
            continue
        if name != ENABLE_EMPTY_FINAL_RESPONSE:
            raise InvalidRequest(
                f"parameters.{name[:64]}",
                "parameter keys starting with 'triton_' are reserved for Triton usage. Only the following keys "
                f"starting with 'triton_' are allowed: {ENABLE_EMPTY_FINAL_RESPONSE}",
            )
        if not isinstance(value, bool):
            raise InvalidRequest(f"parameters.{name}", f"must be true or false, got {value!r}")
