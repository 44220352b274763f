"""Outputs as their best classes: `value:index[:label]`, as Triton's classification extension writes them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import numpy as np
import pytest

from server.classification import CLASSIFIED, Classes, classified, classify
from server.errors import Cancelled, InvalidRequest, ModelLoadFailed, QueueFull
from server.explain import Explanation
from server.offload import Offload
from server.repository.labels import read_labels
from server.tensor import DATATYPES, Array, Tensor
from server.types import InferRequest, InferResponse, Outcome, Timing

LABELS = ["cat", "", "dog"]


def texts(array: Array, classes: int, *, batched: bool = True, labels: list[str] | None = None) -> list[object]:
    tensor = classified(Tensor.from_numpy("y", array), classes, labels or [], batched=batched)
    assert (tensor.name, tensor.datatype) == ("y", "BYTES")
    found: list[object] = np.char.decode(tensor.numpy().astype("S"), "utf-8").tolist()
    return found


def test_the_best_of_each_row_with_their_labels() -> None:
    """Largest first; a class without a label, or with an empty one, has none."""
    array = np.float32([[0.5, 2, 1, 3], [9, 0, -1.5, 4]])

    assert texts(array, 3, labels=LABELS) == [
        ["3.000000:3", "2.000000:1", "1.000000:2:dog"],
        ["9.000000:0:cat", "4.000000:3", "0.000000:1"],
    ]


@pytest.mark.parametrize("datatype", sorted(CLASSIFIED))
def test_whole_numbers_are_written_as_such(datatype: str) -> None:
    """Floats have six decimals; the largest of each type of integers comes first, also where it can't be negated."""
    dtype = DATATYPES[datatype].numpy
    limits = np.finfo(dtype) if dtype.kind == "f" else np.iinfo(dtype)
    array = np.array([[0, limits.min, limits.max]], dtype)
    first, second, third = texts(array, 3)[0]  # type: ignore[misc]
    form = "%f:%d" if dtype.kind == "f" else "%d:%d"

    assert first == form % (limits.max, 2)
    assert {second, third} == {form % (0, 0), form % (limits.min, 1)}
    assert second == form % ((0, 0) if limits.min < 0 else (limits.min, 1)) or dtype.kind == "u"


@pytest.mark.parametrize("count", [3, 16, 17, 1000])
@pytest.mark.parametrize("classes", [1, 2, 5000])
def test_of_equal_values_the_lower_index_comes_first(count: int, classes: int) -> None:
    """However many there are, and however few are asked for."""
    row = np.zeros((1, count), np.float32)
    row[0, 1:] = 7

    found = [text.split(":")[1] for text in texts(row, classes)[0]]  # type: ignore[attr-defined]

    assert found == [str(index) for index in [*range(1, count), 0][:classes]]


def test_nan_comes_last_and_infinity_where_it_belongs() -> None:
    """What is no number is never the best class."""
    row = np.float32([[np.nan, 1, np.inf, -np.inf]])

    assert texts(row, 2) == [["inf:2", "1.000000:1"]]
    assert sorted(texts(row, 4)[0][2:]) == ["-inf:3", "nan:0"]  # type: ignore[index]


@pytest.mark.parametrize(
    ("shape", "batched", "expected"),
    [
        ((2, 5), True, (2, 3)),
        ((2, 2), True, (2, 2)),
        ((2, 2, 3), True, (2, 3)),
        ((2, 0), True, (2, 0)),
        ((2,), True, (2, 1)),
        ((5,), False, (3,)),
        ((2, 3), False, (3,)),
        ((), False, (1,)),
    ],
)
def test_the_shape_is_the_rows_and_the_classes(
    shape: tuple[int, ...], batched: bool, expected: tuple[int, ...]
) -> None:
    """Never more classes than a row has elements; without a batch dimension all elements are one row."""
    tensor = classified(Tensor.from_numpy("y", np.ones(shape, np.float32)), 3, [], batched=batched)

    assert tensor.shape == expected
    assert tensor.numpy().shape == expected


def test_labels_are_the_lines_of_their_file(tmp_path: Path) -> None:
    """Empty lines count, the end of the last one does not."""
    (tmp_path / "names.txt").write_text("cat\n\nzebra é\n", encoding="utf-8")

    assert read_labels(tmp_path, {"y": "names.txt"}) == {"y": ["cat", "", "zebra é"]}


@pytest.mark.parametrize(("content", "problem"), [(None, "'l.txt' is not there"), (b"\xff\n", "is not UTF-8 text")])
def test_a_file_of_labels_that_can_not_be_read_keeps_the_model_out(
    tmp_path: Path, content: bytes | None, problem: str
) -> None:
    """As with Triton, which does not load it either."""
    if content is not None:
        (tmp_path / "l.txt").write_bytes(content)

    with pytest.raises(ModelLoadFailed, match=problem):
        read_labels(tmp_path, {"y": "l.txt"})


# --- requests -----------------------------------------------------------------------------------------


@pytest.fixture
async def threads() -> AsyncIterator[Offload]:
    made = Offload(1, "test")
    yield made
    made.close()


class Asked:
    """A request that wants the best two classes of y."""

    def __init__(self, threads: Offload, *, explained: bool = False) -> None:
        self.outcome: asyncio.Future[Outcome] = asyncio.get_running_loop().create_future()
        self.request = InferRequest(
            "m", [], on_settle=lambda _, outcome: self.outcome.set_result(outcome), received_ns=0, id="7"
        )
        self.request.explanation = Explanation(0) if explained else None
        classify(self.request, Classes({"y": 2}, {"y": ["a", "b"]}, True), threads)

    def answer(self, array: Array) -> InferResponse:
        outputs = [Tensor.from_numpy("z", np.int8([[1]])), Tensor.from_numpy("y", array)]
        response = InferResponse("m", "3", outputs, "7", timing=Timing(1, 2, 3, 4, 1))
        self.request.settle(response)
        return response


@pytest.mark.parametrize("count", [3, 100_000], ids=["on the loop", "on a thread"])
async def test_an_answer_is_classified_when_it_settles(threads: Offload, count: int) -> None:
    """The outputs asked for, and no other; all else of the answer is as it was."""
    asked = Asked(threads)
    row = np.zeros((1, count), np.float32)
    row[0, 1] = 2

    before = asked.answer(row)

    assert asked.outcome.done() == (count == 3)
    answer = await asked.outcome
    assert isinstance(answer, InferResponse)
    assert (answer.model_name, answer.model_version, answer.id, answer.timing) == ("m", "3", "7", before.timing)
    plain, classes = answer.outputs
    assert (plain.name, plain.datatype) == ("z", "INT8")
    assert (classes.shape, classes.numpy().tolist()) == ((1, 2), [[b"2.000000:1:b", b"0.000000:0:a"]])


async def test_an_error_stays_what_it_is(threads: Offload) -> None:
    asked = Asked(threads)
    error = QueueFull("m", 1)
    asked.request.settle(error)

    assert await asked.outcome is error


async def test_a_datatype_without_classes_that_nobody_looked_at_is_refused_at_the_end(threads: Offload) -> None:
    """A front of several processes leaves the check of a request of a sequence to the engine's process."""
    asked = Asked(threads)
    asked.answer(np.array([[b"text"]], object))

    outcome = await asked.outcome
    assert isinstance(outcome, InvalidRequest)
    assert outcome.public_message == (
        "outputs[1].parameters.classification: class result not available for output due to unsupported type 'BYTES'"
    )


async def test_whoever_goes_while_a_thread_is_at_it_is_told_so_once(threads: Offload) -> None:
    """The answer that comes later is nobody's."""
    asked = Asked(threads)
    asked.answer(np.zeros((1, 100_000), np.float32))
    assert asked.request.holder is not None
    asked.request.holder.cancel(asked.request)

    assert isinstance(await asked.outcome, Cancelled)
    await threads.run(str, 1)


async def test_an_explanation_tells_of_it_as_postprocess(threads: Offload) -> None:
    """Behind the pass, whose parts are told once."""
    asked = Asked(threads, explained=True)
    asked.answer(np.zeros((1, 3), np.float32))
    answer = await asked.outcome
    explanation = asked.request.explanation

    assert isinstance(answer, InferResponse)
    assert explanation is not None
    explanation.mark_pass(0, answer.timing)
    parts = explanation.parts_ns()
    assert (parts["queue"], parts["compute_input"], parts["compute"], parts["compute_output"]) == (1, 2, 3, 4)
    assert "postprocess" in parts
