"""Rows in, slices out: requests become one batch, and its outputs become one answer each.

Requests of one batch have equal signatures: the same inputs by name, datatype and dimensions behind the
first. Rows of a batch lie in the order of its requests, so request i owns the rows from the sum of the rows
before it. A model without a batch dimension gets one request a pass and its tensors as they are.

Memory: the inputs of several requests are copied once, into the batch. The input of a single request is a
view on the bytes that were received, unless it is padded. Answers are views on the engine's outputs, which are
theirs alone, except where an output is small, for to copy it is one step and the way to a view several; where it is a
view on a received input: that is copied, because the transport may reuse its buffer; and where padding is cut off,
which leaves no single piece of memory.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from math import prod

import numpy as np

from server.errors import EngineFailure
from server.scheduler.pad import Padding, cut_back, join_padded
from server.tensor import DATATYPES, Array, Buffer, Tensor, datatype_of, pack_bytes, unpack_bytes
from server.types import Batch, InferRequest, InferResponse

_SMALL_BYTES = 16 * 1024
"""An output of so many bytes is copied within a microsecond or two."""
_NOTHING: Mapping[str, Array] = {}


def merge(
    requests: Sequence[InferRequest],
    model_name: str,
    model_version: str,
    padding: Padding | None = None,
    together: Mapping[str, Array] | None = None,
) -> Batch:
    """The batch of these requests: inputs of shape (sum of rows, *dims), read-only but where they are padded, or were
    `together` before: then these arrays, of all their rows, are not copied.

    Its deadline is the latest of theirs: until then somebody still wants the result.

    Raises:
        ValueError: a tensor's bytes or names are not what its request's shape and signature say. It was checked
            at the door; here it would move a neighbour's rows.
    """
    head = requests[0]
    if len(requests) == 1 and padding is None and together is None:
        inputs: dict[str, Array] = {}
        for tensor in head.inputs:
            array = tensor.numpy()
            # Received bytes may begin anywhere in a message; engines load elements from their natural addresses.
            inputs[tensor.name] = array if array.flags.aligned else array.copy()
        return Batch(model_name, model_version, head.rows, inputs, head.deadline_ns)
    rows = sum([request.rows for request in requests])
    if together is not None:
        return Batch(model_name, model_version, rows, together, max([request.deadline_ns for request in requests]))
    inputs = {tensor.name: _join(tensor, index, requests, rows, padding) for index, tensor in enumerate(head.inputs)}
    return Batch(model_name, model_version, rows, inputs, max([request.deadline_ns for request in requests]))


def _join(head: Tensor, index: int, requests: Sequence[InferRequest], rows: int, padding: Padding | None) -> Array:
    """One input of all requests, stacked along the first dimension."""
    column = [request.inputs[index] for request in requests]
    names = [tensor.name for tensor in column]
    if names.count(head.name) != len(names):
        column = [_named(request, head.name) for request in requests]
    if padding is not None and padding.pads(head.name):
        return join_padded(column, requests, rows, padding)
    shape = (rows, *head.shape[1:])
    datatype = DATATYPES[head.datatype]
    row_elements = prod(head.shape[1:])
    if not datatype.size:
        return _join_bytes(column, requests, row_elements, shape)
    row_bytes = row_elements * datatype.size
    parts = [tensor.data for tensor in column]
    sizes = [request.rows * row_bytes for request in requests]
    if list(map(len, parts)) != sizes:
        found, wanted = next(pair for pair in zip(map(len, parts), sizes, strict=True) if pair[0] != pair[1])
        raise ValueError(f"input {head.name}: {found} bytes where {wanted} are due, in rows of {row_bytes}")
    return np.frombuffer(b"".join(parts), datatype.numpy).reshape(shape)


def _join_bytes(
    column: Sequence[Tensor], requests: Sequence[InferRequest], row_elements: int, shape: tuple[int, ...]
) -> Array:
    elements: list[bytes] = []
    for tensor, request in zip(column, requests, strict=True):
        elements += unpack_bytes(tensor.data, request.rows * row_elements)
    joined = np.empty(len(elements), dtype=object)
    joined[:] = elements
    return joined.reshape(shape)


def _named(request: InferRequest, name: str) -> Tensor:
    """The input of that name; callers may send theirs in any order."""
    for tensor in request.inputs:
        if tensor.name == name:
            return tensor
    raise ValueError(f"input {name} is missing")


def joined(outputs: Sequence[Mapping[str, Array]]) -> Mapping[str, Array]:
    """The outputs of a pass that the engine ran in pieces, as of one batch; copied where there are several."""
    if len(outputs) == 1:
        return outputs[0]
    return {name: np.concatenate([piece[name] for piece in outputs]) for name in outputs[0]}


def split(
    outputs: Mapping[str, Array],
    requests: Sequence[InferRequest],
    batch: Batch,
    *,
    batched: bool,
    padding: Padding | None = None,
) -> list[InferResponse]:
    """One answer for each request, in their order, with the outputs that it asked for in the order it asked.

    `batched`: the model has a batch dimension, so the outputs are cut by rows; else there is one request,
    and it gets the outputs whole.

    Raises:
        EngineFailure: an output does not have one row for each of the batch's, or does not follow its length, is of
            a type that v2 does not know, or a requested one is missing.
    """
    if len(requests) == 1 and padding is None:
        return [_whole(outputs, requests[0], batch, batched)]
    rows = [request.rows for request in requests]
    cuts: dict[str, list[Tensor]] = {}
    for name, array in outputs.items():
        datatype = _datatype(name, array, batch, batched)
        if padding is not None and name in padding.buckets.outputs:
            whole = cut_back(name, _plain(array, datatype), requests, padding, batch.model_name)
            cuts[name] = [Tensor.from_numpy(name, part) for part in whole]
        elif datatype == "BYTES":
            cuts[name] = _cut_bytes(name, array, requests)
        else:
            cuts[name] = Tensor.cut(name, datatype, array.shape[1:], _data(array, datatype), rows)
    parts: Iterable[Sequence[Tensor]] = zip(*cuts.values(), strict=True)
    wanted = [request.outputs for request in requests]
    if any(wanted):
        parts = [
            _chosen(batch, {name: cut[index] for name, cut in cuts.items()}, request)
            for index, request in enumerate(requests)
        ]
    return InferResponse.each(batch.model_name, batch.model_version, parts, requests)


def _whole(outputs: Mapping[str, Array], request: InferRequest, batch: Batch, batched: bool) -> InferResponse:
    """The answer to a request that was alone in its pass."""
    whole: dict[str, Tensor] = {}
    for name, array in outputs.items():
        datatype = _datatype(name, array, batch, batched)
        if datatype == "BYTES":
            whole[name] = Tensor.from_numpy(name, array)
        else:
            whole[name] = Tensor(name, datatype, array.shape, _data(array, datatype, batch.inputs))
    tensors = _chosen(batch, whole, request) if request.outputs else list(whole.values())
    return InferResponse(batch.model_name, batch.model_version, tensors, request.id)


def _chosen(batch: Batch, tensors: Mapping[str, Tensor], request: InferRequest) -> list[Tensor]:
    try:
        return [tensors[name] for name in request.outputs or tensors]
    except KeyError as error:
        raise EngineFailure(batch.model_name, f"the engine returned no output {error}") from error


def _datatype(name: str, array: Array, batch: Batch, batched: bool) -> str:
    """The v2 datatype of an output, which has the rows that it must have."""
    if batched and array.shape[:1] != (batch.rows,):
        detail = f"output {name} has shape {array.shape} for a batch of {batch.rows} rows"
        raise EngineFailure(batch.model_name, detail)
    try:
        return datatype_of(array)
    except KeyError as error:
        raise EngineFailure(batch.model_name, f"output {name} has no v2 datatype: {array.dtype}") from error


def _data(array: Array, datatype: str, received: Mapping[str, Array] = _NOTHING) -> Buffer:
    """An output's elements as v2 wants them, in memory that none of the `received` inputs has a part in."""
    if array.nbytes <= _SMALL_BYTES and array.dtype is DATATYPES[datatype].numpy:
        return array.tobytes()
    array = _plain(array, datatype)
    if not array.flags.owndata and any(np.may_share_memory(array, value) for value in received.values()):
        array = array.copy()
    return array.reshape(-1).view(np.uint8).data


def _plain(array: Array, datatype: str) -> Array:
    """An output with its elements as v2 wants them in memory."""
    return array if datatype == "BYTES" else np.asarray(array, dtype=DATATYPES[datatype].numpy, order="C")


def _cut_bytes(name: str, array: Array, requests: Sequence[InferRequest]) -> list[Tensor]:
    tail = array.shape[1:]
    cuts: list[Tensor] = []
    start = 0
    for request in requests:
        stop = start + request.rows
        part = pack_bytes(array[start:stop].reshape(-1).tolist())
        cuts.append(Tensor(name, "BYTES", (request.rows, *tail), part))
        start = stop
    return cuts
