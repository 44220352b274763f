"""Tensors of every kind over sockets, by Triton's own clients: what goes in comes out, or is refused by name."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import ml_dtypes
import numpy as np
import pytest
import tritonclient.grpc as triton_grpc
import tritonclient.http as triton_http
from onnx import helper
from tritonclient.utils import InferenceServerException

from server.tensor import DATATYPES, Array
from tests.e2e.conftest import ServerProcess, end, start
from tests.support.onnx_models import echo_folder, folder_of, optional_folder, tensor

pytestmark = pytest.mark.e2e

TRANSPORTS = ["grpc", "http", "http JSON"]


def models(root: Path) -> Path:
    """For each datatype one model that gives back what it gets; and some of other shapes."""
    for datatype in DATATYPES:
        echo_folder(root, f"rows_{datatype}", datatype=datatype)
        echo_folder(root, f"whole_{datatype}", datatype=datatype, dims=(-1, 2), max_batch_size=0)
    for datatype in ("FP32", "BYTES"):
        echo_folder(root, f"scalar_{datatype}", datatype=datatype, dims=(), max_batch_size=0)
        echo_folder(root, f"scalars_{datatype}", datatype=datatype, dims=())
    optional_folder(root)
    folder_of(
        root,
        "reshaped",
        """max_batch_size: 4 dynamic_batching {}
        input { name: "x" data_type: TYPE_FP32 dims: [2, 3] reshape { shape: [6] } }
        output { name: "y" data_type: TYPE_FP32 dims: [3, 2] reshape { shape: [6] } }""",
        [helper.make_node("Add", ["x", "x"], ["y"])],
        [tensor("x", ["n", 6])],
        [tensor("y", ["n", 6])],
    )
    return root


@pytest.fixture(scope="module", params=["one process", "workers"])
def server(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    folder = tmp_path_factory.mktemp("tensors")
    flags = ["--workers", "2"] if request.param == "workers" else []
    running = start(folder / "server.log", *flags, repository=models(folder / "models"))
    yield running
    end(running)


@pytest.fixture(scope="module")
def clients(server: ServerProcess) -> Iterator[dict[str, Any]]:
    with (
        triton_grpc.InferenceServerClient(server.grpc) as over_grpc,
        triton_http.InferenceServerClient(server.http.removeprefix("http://")) as over_http,
    ):
        yield {"grpc": over_grpc, "http": over_http, "http JSON": over_http}


def infer(clients: dict[str, Any], transport: str, model: str, datatype: str, **inputs: Array) -> Array:
    """The output y, in the form that the transport names."""
    module: Any = triton_grpc if transport == "grpc" else triton_http
    how = {} if transport == "grpc" else {"binary_data": transport == "http"}
    given = [
        module.InferInput(name, list(array.shape), datatype).set_data_from_numpy(array, **how)
        for name, array in inputs.items()
    ]
    wanted = [module.InferRequestedOutput("y", **how)]
    found: Array = clients[transport].infer(model, given, outputs=wanted).as_numpy("y")
    # Of JSON the client makes text, of binary data bytes.
    return _as_bytes(found) if datatype == "BYTES" else found


def _as_bytes(array: Array) -> Array:
    elements = [element.encode() if isinstance(element, str) else element for element in array.ravel()]
    return np.array([*elements, None], object)[:-1].reshape(array.shape)


def sample(datatype: str, shape: tuple[int, ...]) -> Array:
    """Values of the datatype, its least and largest among them; of text also empty ones and such as are not ASCII."""
    size = int(np.prod(shape))
    if datatype == "BYTES":
        texts = [b"", "é☃".encode(), b"a", b'"\\', b"x" * 300]
        return np.array([texts[index % 5] for index in range(size)], object).reshape(shape)
    if datatype == "BF16":
        return np.linspace(-3, 3, size, dtype=np.float32).astype(ml_dtypes.bfloat16).reshape(shape)
    dtype = DATATYPES[datatype].numpy
    values = np.arange(size).astype(dtype)
    if size > 1 and dtype.kind in "iuf":
        limits = np.finfo(dtype) if dtype.kind == "f" else np.iinfo(dtype)
        values[:2] = limits.min, limits.max
    return values.reshape(shape)


def same(found: Array, sent: Array) -> None:
    assert (found.shape, found.dtype) == (sent.shape, sent.dtype)
    assert found.tolist() == sent.tolist()


@pytest.mark.parametrize("shape", [(1, 4), (3, 5), (2, 0)], ids=["a row", "rows", "rows of nothing"])
@pytest.mark.parametrize(
    ("transport", "datatype"),
    [(transport, name) for transport in TRANSPORTS for name in DATATYPES if (transport, name) != ("http JSON", "BF16")],
)
def test_rows(clients: dict[str, Any], transport: str, datatype: str, shape: tuple[int, ...]) -> None:
    """Every datatype, in rows, also where a row has no elements. BF16 is no JSON for this client: see below."""
    sent = sample(datatype, shape)
    same(infer(clients, transport, f"rows_{datatype}", datatype, x=sent), sent)


@pytest.mark.parametrize("datatype", ["FP16", "BF16"])
def test_short_floats_as_json(server: ServerProcess, datatype: str) -> None:
    """Numbers like others, both ways."""
    values = [0.5, -1.5, 2.0, 100.0]
    asked = {"inputs": [{"name": "x", "datatype": datatype, "shape": [2, 2], "data": values}]}
    answer = httpx.post(f"{server.http}/v2/models/rows_{datatype}/infer", json=asked)
    assert answer.json()["outputs"] == [{"name": "y", "datatype": datatype, "shape": [2, 2], "data": values}]


@pytest.mark.parametrize("shape", [(3, 2), (1, 2), (0, 2)], ids=["three", "one", "none"])
@pytest.mark.parametrize("datatype", ["FP32", "BF16", "INT64", "BOOL", "BYTES"])
@pytest.mark.parametrize("transport", ["grpc", "http"])
def test_without_a_batch_dimension(
    clients: dict[str, Any], transport: str, datatype: str, shape: tuple[int, ...]
) -> None:
    """`max_batch_size: 0`: the dims are the whole shape, and the first of them may be nothing."""
    sent = sample(datatype, shape)
    same(infer(clients, transport, f"whole_{datatype}", datatype, x=sent), sent)


@pytest.mark.parametrize("datatype", ["FP32", "BYTES"])
@pytest.mark.parametrize("transport", TRANSPORTS)
def test_scalars(clients: dict[str, Any], transport: str, datatype: str) -> None:
    """`dims: []`: one alone, whose shape has no dimensions, and one for each row."""
    rows = sample(datatype, (3,))
    same(infer(clients, transport, f"scalars_{datatype}", datatype, x=rows), rows)
    if datatype == "BYTES" and transport == "http":
        return  # tritonclient can't serialise a scalar of text.
    one = rows[1:2].reshape(())
    same(infer(clients, transport, f"scalar_{datatype}", datatype, x=one), one)


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_reshape(clients: dict[str, Any], transport: str) -> None:
    """The client's shapes, around a model that has others."""
    sent = np.arange(12, dtype=np.float32).reshape(2, 2, 3)
    same(infer(clients, transport, "reshaped", "FP32", x=sent), (sent * 2).reshape(2, 3, 2))
    with pytest.raises(InferenceServerException, match=r"Expected \[-1,2,3\], got \[2,6\]"):
        infer(clients, transport, "reshaped", "FP32", x=sent.reshape(2, 6))


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_inputs_that_may_be_left_out(clients: dict[str, Any], transport: str) -> None:
    """Left out it has the model's default; in whatever order they come."""
    x, bias = np.zeros((2, 2), np.float32), np.full((2, 2), 5, np.float32)
    same(infer(clients, transport, "optional", "FP32", x=x), x + 1)
    same(infer(clients, transport, "optional", "FP32", x=x, bias=bias), bias)
    same(infer(clients, transport, "optional", "FP32", bias=bias, x=x), bias)
    with pytest.raises(InferenceServerException, match=r"missing required input\(s\) \['x'\]"):
        infer(clients, transport, "optional", "FP32", bias=bias)


@pytest.mark.parametrize("transport", ["grpc", "http"])
def test_text_that_is_none(clients: dict[str, Any], transport: str) -> None:
    """An ONNX string is UTF-8: which element is not, is told, and who comes beside it is served."""
    with pytest.raises(InferenceServerException, match=r"inputs\[0\]\.data: element 1 of input 'x' is not UTF-8"):
        infer(clients, transport, "rows_BYTES", "BYTES", x=np.array([[b"a", b"\xff"]], object))
    good = np.array([[b"a", b"b"]], object)
    same(infer(clients, transport, "rows_BYTES", "BYTES", x=good), good)


@pytest.mark.parametrize("datatype", [name for name in DATATYPES if name not in ("FP32", "BYTES")])
@pytest.mark.parametrize("transport", ["grpc", "http"])
def test_another_datatype_is_refused(clients: dict[str, Any], transport: str, datatype: str) -> None:
    """By the input's name, with what came and what the model takes; nothing is converted in silence."""
    expected = f"inference input 'x' data-type is '{datatype}', but model 'rows_FP32' expects 'FP32'"
    with pytest.raises(InferenceServerException, match=expected):
        infer(clients, transport, "rows_FP32", datatype, x=sample(datatype, (1, 4)))
