"""Requests into a batch, outputs into answers."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pytest

from server.errors import EngineFailure
from server.scheduler.merge import merge, split
from server.tensor import DATATYPES, Array, Tensor, datatype_of
from server.types import Batch, InferRequest, InferResponse


def request(
    rows: int, *tensors: Tensor, outputs: Sequence[str] = (), id: str = "", deadline_ns: int = 10
) -> InferRequest:
    made = InferRequest(
        "m", tensors, on_settle=lambda _, __: None, received_ns=0, outputs=outputs, id=id, deadline_ns=deadline_ns
    )
    made.rows = rows
    return made


def tensor(name: str, values: Any, dtype: str = "<f4") -> Tensor:
    return Tensor.from_numpy(name, np.array(values, dtype=dtype))


def batch_of(rows: int, inputs: Mapping[str, Array] | None = None) -> Batch:
    return Batch("m", "1", rows, inputs or {})


def cut(outputs: Mapping[str, Array], requests: Sequence[InferRequest], *, batched: bool = True) -> list[InferResponse]:
    return split(outputs, requests, batch_of(sum(r.rows for r in requests)), batched=batched)


def test_rows_are_stacked_in_order() -> None:
    """The batch holds the requests' rows one after the other, of every input."""
    batch = merge(
        [
            request(1, tensor("x", [[1, 2]]), tensor("k", [[7]], "<i8")),
            request(2, tensor("x", [[3, 4], [5, 6]]), tensor("k", [[8], [9]], "<i8")),
        ],
        "m",
        "3",
    )
    assert (batch.model_name, batch.model_version, batch.rows) == ("m", "3", 3)
    assert batch.inputs["x"].tolist() == [[1, 2], [3, 4], [5, 6]]
    assert batch.inputs["x"].dtype == np.float32
    assert batch.inputs["k"].tolist() == [[7], [8], [9]]


def test_a_scalar_per_row() -> None:
    """An input that has no dimension but the batch's is stacked too."""
    batch = merge([request(1, tensor("x", [1])), request(2, tensor("x", [2, 3]))], "m", "1")
    assert batch.inputs["x"].tolist() == [1, 2, 3]


def test_strings_are_stacked() -> None:
    """BYTES elements of any length, empty and not UTF-8 too, keep their places."""
    first = Tensor.from_numpy("s", np.array([[b"a", b""]], dtype=object))
    second = Tensor.from_numpy("s", np.array([[b"\xff\x00", "é"], [b"b", b"c"]], dtype=object))
    batch = merge([request(1, first), request(2, second)], "m", "1")
    assert batch.inputs["s"].tolist() == [[b"a", b""], [b"\xff\x00", "é".encode()], [b"b", b"c"]]


def test_inputs_are_matched_by_name() -> None:
    """Callers may send their tensors in any order; rows never move to another input."""
    batch = merge(
        [
            request(1, tensor("a", [[1]]), tensor("b", [[2]])),
            request(1, tensor("b", [[4]]), tensor("a", [[3]])),
        ],
        "m",
        "1",
    )
    assert {name: array.tolist() for name, array in batch.inputs.items()} == {"a": [[1], [3]], "b": [[2], [4]]}


def test_the_batch_lives_until_its_last_caller_gives_up() -> None:
    """A batch's deadline is the latest of its requests'."""
    requests = [request(1, tensor("x", [[1]]), deadline_ns=deadline) for deadline in (5, 9, 7)]
    assert merge(requests, "m", "1").deadline_ns == 9
    assert merge(requests[:1], "m", "1").deadline_ns == 5


@pytest.mark.parametrize(
    "tensors",
    [
        [Tensor("x", "FP32", (1, 1), bytes(8)), Tensor("x", "FP32", (1, 1), b"")],
        [tensor("x", [[1]]), tensor("y", [[1]])],
        [Tensor("x", "BYTES", (1, 1), bytes(4)), Tensor("x", "BYTES", (1, 1), bytes(8))],
    ],
    ids=["lengths that make up for each other", "another name", "another number of strings"],
)
def test_what_would_move_a_neighbours_rows_is_refused(tensors: list[Tensor]) -> None:
    """Bytes that are not what rows and shape say raise; they never shift somebody else's rows."""
    with pytest.raises(ValueError, match=r"x|element|bytes"):
        merge([request(1, one) for one in tensors], "m", "1")


def test_one_request_is_not_copied() -> None:
    """A single request's input is a view on the received bytes."""
    received = np.arange(4, dtype=np.float32)
    batch = merge([request(2, Tensor("x", "FP32", (2, 2), received.data.cast("B")))], "m", "1")
    assert np.shares_memory(batch.inputs["x"], received)


def test_several_requests_are_copied() -> None:
    """A merged batch does not change when a received buffer does."""
    received = bytearray(np.array([1, 2], dtype=np.float32).tobytes())
    batch = merge([request(1, Tensor("x", "FP32", (1, 2), received)), request(1, tensor("x", [[3, 4]]))], "m", "1")
    received[:] = bytes(8)
    assert batch.inputs["x"].tolist() == [[1, 2], [3, 4]]


def test_engines_get_aligned_elements() -> None:
    """Bytes received at an odd address are moved to a natural one."""
    message = bytearray(9)
    message[1:] = np.array([1.5, 2.5], dtype=np.float32).tobytes()
    batch = merge([request(1, Tensor("x", "FP32", (1, 2), memoryview(message)[1:]))], "m", "1")
    assert batch.inputs["x"].flags.aligned
    assert batch.inputs["x"].tolist() == [[1.5, 2.5]]


def test_each_gets_its_own_rows() -> None:
    """Answers come in the requests' order, with their rows, their id and their batch's model."""
    outputs = {"y": np.arange(12, dtype=np.int32).reshape(3, 2, 2), "z": np.array([b"a", "b", b"c"], dtype=object)}
    first, second = cut(outputs, [request(1, id="one"), request(2, id="two")])
    assert (first.id, first.model_name, first.model_version) == ("one", "m", "1")
    assert [t.name for t in second.outputs] == ["y", "z"]
    assert second.id == "two"
    assert first.outputs[0].numpy().tolist() == [[[0, 1], [2, 3]]]
    assert second.outputs[0].shape == (2, 2, 2)
    assert second.outputs[0].numpy().tolist() == [[[4, 5], [6, 7]], [[8, 9], [10, 11]]]
    assert second.outputs[1].numpy().tolist() == [b"b", b"c"]


def test_outputs_as_asked_for() -> None:
    """A request gets the outputs that it named, in that order; one that names none gets all."""
    outputs = {"a": np.array([[1.0], [2.0], [3.0]]), "b": np.array([True, False, True])}
    named, one, rest = cut(outputs, [request(1, outputs=["b", "a"]), request(1, outputs=["b"]), request(1)])
    assert [t.name for t in named.outputs] == ["b", "a"]
    assert [t.name for t in one.outputs] == ["b"]
    assert [t.name for t in rest.outputs] == ["a", "b"]
    assert one.outputs[0].numpy().tolist() == [False]
    assert rest.outputs[0].numpy().tolist() == [[3.0]]


def test_slices_are_views() -> None:
    """No large output is copied to be cut."""
    output = np.arange(6000, dtype=np.float32).reshape(3, 2000)
    answers = cut({"y": output}, [request(1), request(2)])
    assert all(np.shares_memory(answer.outputs[0].numpy(), output) for answer in answers)


@pytest.mark.parametrize("columns", [2, 20_000], ids=["small", "large"])
@pytest.mark.parametrize(
    "laid_out",
    [lambda whole: whole.astype(">i4"), np.asfortranarray, lambda whole: np.repeat(whole, 2, axis=1)[:, ::2]],
    ids=["big endian", "column major", "strided"],
)
def test_outputs_in_any_layout(laid_out: Callable[[Array], Array], columns: int) -> None:
    """Whatever the engine's memory looks like, an answer is little endian and row major."""
    whole = np.arange(3 * columns, dtype=np.int32).reshape(3, columns)
    answers = cut({"y": laid_out(whole)}, [request(1), request(2)])
    assert [row for answer in answers for row in answer.outputs[0].numpy().tolist()] == whole.tolist()
    assert answers[0].outputs[0].datatype == "INT32"


@pytest.mark.parametrize("shape", [(2, 4), (4, 3), (), (1, 3)], ids=str)
def test_an_output_without_the_batchs_rows_is_a_failure(shape: tuple[int, ...]) -> None:
    """An output whose first dimension is not the batch's rows fails the pass: no slice of it is anybody's."""
    with pytest.raises(EngineFailure) as caught:
        cut({"y": np.zeros(shape)}, [request(1), request(2)])
    assert "3 rows" in caught.value.detail


def test_one_request_is_held_to_its_rows_too() -> None:
    """Also a batch of one request gets no output of another size."""
    with pytest.raises(EngineFailure):
        cut({"y": np.zeros((2, 1))}, [request(1)])


def test_unknown_outputs_and_types_are_failures() -> None:
    """An output that v2 has no datatype for, or that the engine did not return, is the engine's failure."""
    with pytest.raises(EngineFailure, match="failed") as caught:
        cut({"y": np.zeros(1, dtype=np.complex64)}, [request(1)])
    assert "complex64" in caught.value.detail
    with pytest.raises(EngineFailure) as caught:
        cut({"y": np.zeros(1)}, [request(1, outputs=["w"])])
    assert "'w'" in caught.value.detail


def test_rows_without_elements() -> None:
    """An output with an empty dimension is cut into empty tensors of the right shapes."""
    first, second = cut({"y": np.zeros((3, 0, 2), dtype=np.float32)}, [request(1), request(2)])
    assert [first.outputs[0].shape, second.outputs[0].shape] == [(1, 0, 2), (2, 0, 2)]
    assert bytes(second.outputs[0].data) == b""


def test_a_model_without_rows_gives_its_outputs_whole() -> None:
    """With max_batch_size 0 outputs of any shape belong to the one request, scalars and strings too."""
    outputs = {
        "y": np.zeros((7, 2)),
        "n": np.array(5, dtype=np.int64),
        "s": np.array([[b"p"], [b"q"]], dtype=object),
    }
    (answer,) = cut(outputs, [request(1)], batched=False)
    assert [t.shape for t in answer.outputs] == [(7, 2), (), (2, 1)]
    assert answer.outputs[1].numpy().tolist() == 5
    assert answer.outputs[2].numpy().tolist() == [[b"p"], [b"q"]]


@pytest.mark.parametrize("columns", [2, 20_000], ids=["small", "large"])
@pytest.mark.parametrize("batched", [True, False])
def test_an_answer_does_not_change_with_the_received_buffer(batched: bool, columns: int) -> None:
    """Where an engine returns its input, the answer is copied off the bytes that the transport may reuse."""
    sent = np.arange(columns, dtype=np.float32)
    received = bytearray(sent.tobytes())
    single = request(1, Tensor("x", "FP32", (1, columns), received))
    batch = merge([single], "m", "1")
    (answer,) = split({"y": batch.inputs["x"]}, [single], batch, batched=batched)
    received[:] = bytes(len(received))
    assert answer.outputs[0].numpy().tolist() == [sent.tolist()]


def test_answers_are_whole_although_no_class_was_called() -> None:
    """Answers and their tensors, made in one go, have every field that the class itself would have set."""
    requests = [request(rows, tensor("x", [[0]] * rows), id=str(rows)) for rows in (1, 1, 2, 1)]
    outputs = {"y": np.arange(10, dtype="<f4").reshape(5, 2)}
    starts = (0, 1, 2, 4)
    for made, of, start in zip(cut(outputs, requests), requests, starts, strict=True):
        rows = outputs["y"][start : start + of.rows]
        same = InferResponse("m", "1", (Tensor.from_numpy("y", rows),), of.id)
        assert {name: getattr(made, name) for name in InferResponse.__slots__} == {
            name: getattr(same, name) for name in InferResponse.__slots__
        }


def test_rows_without_elements_are_cut_to_nothing() -> None:
    """An output that has a dimension of 0 gives each request its rows of it, of no bytes."""
    parts = cut({"y": np.zeros((3, 0), "<f4")}, [request(1, tensor("x", [[0]])), request(2, tensor("x", [[0], [0]]))])
    assert [(part.outputs[0].shape, len(part.outputs[0].data)) for part in parts] == [((1, 0), 0), ((2, 0), 0)]


@pytest.mark.parametrize("name", [name for name in DATATYPES if name != "BYTES"])
def test_a_datatype_is_found_in_either_byte_order(name: str) -> None:
    """What an array holds does not hang on how the machine that made it lays bytes."""
    dtype = DATATYPES[name].numpy
    assert [datatype_of(np.zeros(1, kind)) for kind in (dtype, dtype.newbyteorder(">"))] == [name, name]


@pytest.mark.parametrize("array", [np.array(["a"]), np.array([b"a"]), np.array([b"a"], object)], ids=["U", "S", "O"])
def test_any_array_of_strings_is_bytes(array: Array) -> None:
    """Whether numpy keeps them as text, as bytes of a fixed length, or as objects."""
    assert datatype_of(array) == "BYTES"
