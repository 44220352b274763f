"""Inputs padded to the length of their batch, and outputs cut back to what is each request's own.

What was added lies behind each request's own elements, and the answers do not show it. How long a batch is stands in
`server.buckets`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from server.bfloat16 import BF16, narrowed
from server.buckets import Buckets
from server.errors import EngineFailure
from server.tensor import DATATYPES, Array, Tensor
from server.types import Batch, InferRequest


@dataclass(frozen=True, slots=True)
class Padding:
    """The lengths of the requests of one batch, some of them below the batch's own."""

    buckets: Buckets
    lengths: Sequence[int]
    """In the order of the requests."""
    padded: int
    """Of the batch."""

    def pads(self, name: str) -> bool:
        """Whether the input of that name has the length."""
        return name in self.buckets.inputs


def padding_of(requests: Sequence[InferRequest], buckets: Buckets | None, *, fixed: bool) -> Padding | None:
    """How the requests of a batch are padded; None if all have its length by themselves.

    `fixed`: to the length of their bucket, else to that of the longest of them.
    """
    if buckets is None:
        return None
    lengths = [_length(request, buckets) for request in requests]
    padded = buckets.padded(lengths[0]) if fixed else max(lengths)
    return None if lengths.count(padded) == len(lengths) else Padding(buckets, lengths, padded)


def _length(request: InferRequest, buckets: Buckets) -> int:
    for tensor in request.inputs:
        length = buckets.length(tensor)
        if length is not None:
            return length
    raise ValueError("no input has a length")


def elements(
    batch: Batch, buckets: Buckets, padding: Padding | None, requests: Sequence[InferRequest]
) -> tuple[int, int]:
    """Of a batch's inputs with a length: their elements, and how many of these are padding."""
    whole = sum([batch.inputs[name].size for name in buckets.inputs])
    if padding is None or not whole:
        return whole, 0
    own = sum([request.rows * length for request, length in zip(requests, padding.lengths, strict=True)])
    # All inputs have the same share of padding, that of the lengths.
    return whole, whole - whole * own // (batch.rows * padding.padded)


def _padded_dims(tensor: Tensor, padding: Padding) -> tuple[int, ...]:
    """The dims that an input has in the batch."""
    position = padding.buckets.inputs[tensor.name]
    dims = tensor.shape[1:]
    return (*dims[:position], padding.padded, *dims[position + 1 :])


def join_padded(column: Sequence[Tensor], requests: Sequence[InferRequest], rows: int, padding: Padding) -> Array:
    """One input of all requests, stacked along the first dimension and filled up to the batch's length.

    Raises:
        ValueError: a tensor's bytes are not what its shape says, or its shape is not that of its neighbours.
    """
    head = column[0]
    position = padding.buckets.inputs[head.name]
    value = padding.buckets.pad_values.get(head.name, 0)
    dims = _padded_dims(head, padding)
    datatype = DATATYPES[head.datatype].numpy
    filling = narrowed(np.array(value)) if datatype == BF16 else value
    joined = np.full((rows, *dims), filling, datatype)
    start = 0
    for tensor, request, length in zip(column, requests, padding.lengths, strict=True):
        own = (request.rows, *dims[:position], length, *dims[position + 1 :])
        if tensor.shape != own:
            raise ValueError(f"input {head.name}: shape {tensor.shape}, not {own}")
        stop = start + request.rows
        joined[(slice(start, stop), *_first(position, length))] = tensor.numpy()
        start = stop
    return joined


def cut_back(
    name: str, array: Array, requests: Sequence[InferRequest], padding: Padding, model_name: str
) -> Iterator[Array]:
    """Each request's rows of an output, without what belongs to the padding; in row-major order.

    Raises:
        EngineFailure: the output does not have the batch's length where the config says that it follows it.
    """
    positions = padding.buckets.outputs.get(name, ())
    for position in positions:
        if array.ndim <= position + 1 or array.shape[position + 1] != padding.padded:
            detail = f"output {name} has shape {array.shape}, which does not follow the length {padding.padded}"
            raise EngineFailure(model_name, detail)
    start = 0
    for request, length in zip(requests, padding.lengths, strict=True):
        part = array[start : start + request.rows]
        for position in positions:
            part = part[(slice(None), *_first(position, length))]
        yield np.ascontiguousarray(part)
        start += request.rows


def _first(position: int, length: int) -> tuple[slice, ...]:
    """An index of the first `length` at `position` of the dims."""
    return (*[slice(None)] * position, slice(length))
