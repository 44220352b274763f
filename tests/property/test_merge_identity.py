"""Merging requests and splitting the batch again gives everybody back their own."""

from __future__ import annotations

from math import prod

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from server.scheduler.merge import merge, split
from server.tensor import DATATYPES, Tensor, pack_bytes
from server.types import InferRequest

dims = st.lists(st.integers(0, 3), max_size=3).map(tuple)


@st.composite
def inputs(draw: st.DrawFn) -> dict[str, tuple[str, tuple[int, ...]]]:
    """Datatype and dimensions of each input of a model."""
    names = draw(st.lists(st.sampled_from("abcd"), min_size=1, max_size=3, unique=True))
    return {name: (draw(st.sampled_from(sorted(DATATYPES))), draw(dims)) for name in names}


@st.composite
def tensors(draw: st.DrawFn, name: str, datatype: str, shape: tuple[int, ...]) -> Tensor:
    """A tensor of any bytes, in any kind of buffer, at any address."""
    count = prod(shape)
    if datatype == "BYTES":
        data = pack_bytes(draw(st.lists(st.binary(max_size=5), min_size=count, max_size=count)))
    elif datatype == "BOOL":
        data = bytes(draw(st.lists(st.booleans(), min_size=count, max_size=count)))
    else:
        size = count * DATATYPES[datatype].size
        data = draw(st.binary(min_size=size, max_size=size))
    shift = draw(st.integers(0, 3))
    moved = memoryview(bytes(shift) + data)[shift:]
    return Tensor(name, datatype, shape, draw(st.sampled_from([data, bytearray(data), moved])))


@st.composite
def requests(draw: st.DrawFn) -> list[InferRequest]:
    """Requests of one signature, each with its inputs and wanted outputs in an order of its own."""
    signature = draw(inputs())
    made = []
    for rows in draw(st.lists(st.integers(1, 4), min_size=1, max_size=5)):
        sent = [draw(tensors(name, datatype, (rows, *tail))) for name, (datatype, tail) in signature.items()]
        wanted = draw(st.lists(st.sampled_from(sorted(signature)), unique=True))
        request = InferRequest(
            "m", draw(st.permutations(sent)), on_settle=lambda _, __: None, received_ns=0, outputs=wanted
        )
        request.rows = rows
        made.append(request)
    return made


@given(requests())
def test_merge_then_split_is_the_identity(asked: list[InferRequest]) -> None:
    """A model that returns its inputs answers each request with its own bytes, of the outputs it wanted."""
    batch = merge(asked, "m", "1")
    assert batch.rows == sum(request.rows for request in asked)
    assert all(array.shape[0] == batch.rows and array.flags.aligned for array in batch.inputs.values())
    outputs = {name: np.array(array) for name, array in batch.inputs.items()}
    for request, answer in zip(asked, split(outputs, asked, batch, batched=True), strict=True):
        sent = {tensor.name: tensor for tensor in request.inputs}
        assert [tensor.name for tensor in answer.outputs] == (list(request.outputs) or list(batch.inputs))
        for tensor in answer.outputs:
            own = sent[tensor.name]
            assert (tensor.datatype, tensor.shape, bytes(tensor.data)) == (own.datatype, own.shape, bytes(own.data))
