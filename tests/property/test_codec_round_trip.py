"""Tensors survive every way over the wire, and no bytes make a codec fail otherwise than by refusing them."""

from __future__ import annotations

import contextlib
import json
from typing import Any

import numpy as np
from google.protobuf.message import DecodeError
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from tritonclient.grpc import service_pb2 as pb

from server.bfloat16 import BF16
from server.client.arrays import array_of
from server.errors import ServingError
from server.tensor import DATATYPES, Tensor
from server.transport.codec import predict_rest, v2_grpc, v2_rest
from server.types import InferRequest, InferResponse, Outcome

"""A busy machine is no failure of a codec."""

SHAPES = hnp.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=4)


def _ignore(_request: InferRequest, _outcome: Outcome) -> None:
    """Nobody waits in these tests."""


CALL = v2_rest.Call("m", "1", _ignore, 0)


@st.composite
def tensors(draw: st.DrawFn, *, json_only: bool = False) -> Tensor:
    """A tensor of any datatype, or of any that JSON can carry."""
    datatype = draw(st.sampled_from(sorted(DATATYPES)))
    shape = draw(SHAPES)
    if datatype == "BYTES":
        element: Any = st.text(max_size=5).map(str.encode) if json_only else st.binary(max_size=5)
        flat = np.empty(int(np.prod(shape)), object)
        flat[:] = draw(st.lists(element, min_size=flat.size, max_size=flat.size))
        return Tensor.from_numpy("t", flat.reshape(shape))
    special = {"allow_nan": False, "allow_infinity": False} if json_only and datatype.startswith("FP") else {}
    if datatype == "BF16":
        word = st.integers(0, 2**16 - 1)
        finite = word.filter(lambda bits: bits & 0x7F80 != 0x7F80)
        words = draw(hnp.arrays(np.dtype("<u2"), shape, elements=finite if json_only else word))
        return Tensor.from_numpy("t", words.view(BF16))
    dtype = DATATYPES[datatype].numpy
    array = draw(hnp.arrays(dtype, shape, elements=hnp.from_dtype(dtype, **special)))
    return Tensor.from_numpy("t", array)


def same(left: Tensor, right: Tensor) -> bool:
    return (left.datatype, left.shape, bytes(left.data)) == (right.datatype, right.shape, bytes(right.data))


@given(st.lists(tensors(), min_size=1, max_size=3))
def test_grpc_round_trip_is_the_identity(sent: list[Tensor]) -> None:
    """An answer in raw contents, sent back as a request, holds the same tensors bit by bit."""
    answer = v2_grpc.encode_infer(InferResponse("m", "1", sent, "i"))
    message = pb.ModelInferRequest(model_name="m", raw_input_contents=answer.raw_output_contents)
    for output in answer.outputs:
        message.inputs.add(name=output.name, datatype=output.datatype, shape=output.shape)
    received = v2_grpc.decode_infer(message, on_settle=_ignore, received_ns=0).inputs
    assert all(same(left, right) for left, right in zip(sent, received, strict=True))


@given(st.lists(st.tuples(tensors(json_only=True), st.booleans()), min_size=1, max_size=4))
def test_rest_round_trip_is_the_identity(sent: list[tuple[Tensor, bool]]) -> None:
    """An answer with JSON and binary tensors in any mix, sent back as a request, holds the same tensors bit by bit."""
    outputs = [Tensor(f"t{i}", t.datatype, t.shape, t.data) for i, (t, _) in enumerate(sent)]
    formats = v2_rest.OutputFormat(False, {f"t{i}": binary for i, (_, binary) in enumerate(sent)})
    parts, header = v2_rest.encode_infer(InferResponse("m", "1", outputs), formats)
    document = json.loads(parts[0])
    document["inputs"] = document.pop("outputs")
    rewritten = json.dumps(document).encode()
    body = b"".join([rewritten, *parts[1:]])
    request, _ = v2_rest.decode_infer(CALL, body, None if header is None else len(rewritten))
    assert all(same(left, right) for left, right in zip(outputs, request.inputs, strict=True))


@given(tensors(json_only=True))
def test_nested_data_is_flat_data(tensor: Tensor) -> None:
    """Data nested as the shape says and flat data make the same tensor."""
    array = array_of(tensor)
    texts = np.vectorize(bytes.decode, otypes=[object])(array) if array.dtype == object and array.size else array
    if not texts.shape:
        return
    entries = [
        {"name": "t", "datatype": tensor.datatype, "shape": list(tensor.shape), "data": data}
        for data in (texts.tolist(), texts.reshape(-1).tolist())
    ]
    request, _ = v2_rest.decode_infer(CALL, json.dumps({"inputs": entries}).encode())
    assert same(request.inputs[0], request.inputs[1])


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)
ENTRIES = st.fixed_dictionaries(
    {},
    optional={
        "name": st.just("t") | JSON,
        "datatype": st.sampled_from(sorted(DATATYPES)) | JSON,
        "shape": st.lists(st.integers(-1, 3), max_size=3) | JSON,
        "data": st.lists(st.integers(-1, 300) | st.booleans() | st.text(max_size=2), max_size=4) | JSON,
        "parameters": st.fixed_dictionaries({}, optional={"binary_data_size": st.integers(-1, 9) | JSON}) | JSON,
        "b64": JSON,
    },
)
BODIES = st.fixed_dictionaries(
    {},
    optional={"inputs": st.lists(ENTRIES | JSON, max_size=3) | JSON, "outputs": JSON, "parameters": JSON, "id": JSON},
)


@given(BODIES, st.binary(max_size=12), st.booleans())
def test_any_json_is_answered_or_refused(document: dict[str, Any], raw: bytes, header: bool) -> None:
    """A body near to a request is a request or the client's error: never a failure of ours."""
    text = json.dumps(document).encode()
    with contextlib.suppress(ServingError):
        v2_rest.decode_infer(CALL, text + raw, len(text) if header else None)
    with contextlib.suppress(ServingError):
        predict_rest.decode_predict("m", "", text)


@given(st.binary(max_size=64))
def test_any_message_is_answered_or_refused(data: bytes) -> None:
    """Whatever protobuf accepts as a request is a request or the client's error."""
    try:
        message = pb.ModelInferRequest.FromString(b"\x0a\x01m" + data)
    except DecodeError:
        return
    with contextlib.suppress(ServingError):
        v2_grpc.decode_infer(message, on_settle=_ignore, received_ns=0)
