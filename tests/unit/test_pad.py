"""Requests of one bucket into a padded batch, and its outputs cut back."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest

from server.buckets import Buckets
from server.errors import EngineFailure
from server.scheduler.merge import merge, split
from server.scheduler.pad import Padding, elements, padding_of
from server.tensor import Array, Tensor
from server.types import Batch, InferRequest

BUCKETS = Buckets((4, 8), {"ids": 0}, {"tokens": (0,), "pairs": (0, 1)}, {"ids": 9})


def request(ids: Sequence[Sequence[int]], outputs: Sequence[str] = ()) -> InferRequest:
    array = np.array(ids, np.int32).reshape(len(ids), -1)
    rows = len(array)
    tensors = [Tensor.from_numpy("ids", array), Tensor.from_numpy("k", np.full((rows, 1), rows, np.float32))]
    made = InferRequest("m", tensors, on_settle=lambda *_: None, received_ns=0, outputs=outputs)
    made.rows = rows
    return made


def merged(requests: Sequence[InferRequest], *, fixed: bool = True) -> tuple[Batch, Padding | None]:
    padding = padding_of(requests, BUCKETS, fixed=fixed)
    return merge(requests, "m", "1", padding), padding


def test_rows_are_filled_up_with_the_pad_value() -> None:
    """Each request's rows keep their places, and what is missing to the bucket is the pad value."""
    batch, _ = merged([request([[1, 2, 3]]), request([[4], [5]])])
    assert batch.inputs["ids"].tolist() == [[1, 2, 3, 9], [4, 9, 9, 9], [5, 9, 9, 9]]
    assert batch.inputs["ids"].dtype == np.int32
    assert batch.inputs["k"].tolist() == [[1], [2], [2]]


def test_a_pass_may_be_as_long_as_its_longest_request_only() -> None:
    """Where shapes need not be fixed, nobody pays for more padding than the batch needs."""
    batch, _ = merged([request([[1, 2, 3]]), request([[4]])], fixed=False)
    assert batch.inputs["ids"].tolist() == [[1, 2, 3], [4, 9, 9]]


@pytest.mark.parametrize("fixed", [True, False])
def test_requests_of_full_length_are_not_padded(fixed: bool) -> None:
    """Then a batch is merged as without buckets, and a single request is a view on what was received."""
    full = request([[1, 2, 3, 4]])
    batch, padding = merged([full], fixed=fixed)
    assert padding is None
    assert np.shares_memory(batch.inputs["ids"], np.frombuffer(full.inputs[0].data, np.uint8))
    assert merged([full, request([[5, 6, 7, 8]])], fixed=fixed)[1] is None


def test_a_single_request_is_padded_where_shapes_are_fixed() -> None:
    """Its pass has the shape of its bucket; elsewhere it is left as it is."""
    alone = request([[1, 2, 3, 4, 5]])
    assert merged([alone])[0].inputs["ids"].tolist() == [[1, 2, 3, 4, 5, 9, 9, 9]]
    assert merged([alone], fixed=False)[1] is None


def test_lengths_beyond_the_buckets_are_never_padded() -> None:
    """They share a batch with their equals only."""
    assert merged([request([list(range(11))])] * 2)[1] is None


def test_rows_without_elements_are_all_padding() -> None:
    """A length of 0 is one like any other."""
    batch, padding = merged([request([[], []]), request([[1]])])
    assert batch.inputs["ids"].tolist() == [[9] * 4, [9] * 4, [1, 9, 9, 9]]
    assert padding is not None
    assert elements(batch, BUCKETS, padding, [request([[], []]), request([[1]])]) == (12, 11)


def test_the_share_of_padding_is_counted_over_inputs_with_a_length() -> None:
    """Without padding there is none; inputs without a length do not count."""
    requests = [request([[1, 2, 3]]), request([[4], [5]])]
    batch, padding = merged(requests)
    assert elements(batch, BUCKETS, padding, requests) == (12, 7)
    assert elements(merged([requests[0]], fixed=False)[0], BUCKETS, None, requests[:1]) == (3, 0)


def outputs_of(rows: int, length: int) -> dict[str, Array]:
    tokens = np.arange(rows * length * 2, dtype=np.float32).reshape(rows, length, 2)
    pairs = np.arange(rows * length * length, dtype=np.int64).reshape(rows, length, length)
    return {"tokens": tokens, "pairs": pairs, "pooled": np.arange(rows * 8).reshape(rows, 8)}


def test_outputs_that_follow_the_length_are_cut_back() -> None:
    """Each request gets its own length, in every dim that follows it; other outputs are left."""
    requests = [request([[1, 2, 3]]), request([[4], [5]])]
    batch, padding = merged(requests)
    outputs = outputs_of(3, 4)
    first, second = split(outputs, requests, batch, batched=True, padding=padding)
    assert [tensor.shape for tensor in first.outputs] == [(1, 3, 2), (1, 3, 3), (1, 8)]
    assert [tensor.shape for tensor in second.outputs] == [(2, 1, 2), (2, 1, 1), (2, 8)]
    assert second.outputs[0].numpy().tolist() == outputs["tokens"][1:, :1].tolist()
    assert first.outputs[1].numpy().tolist() == outputs["pairs"][:1, :3, :3].tolist()


def test_outputs_of_strings_are_cut_back_too() -> None:
    """Elements without a fixed size keep their places."""
    requests = [request([[1, 2]]), request([[4]])]
    batch, padding = merged(requests)
    tokens = np.array([[b"a", b"bb", b"-", b"-"], [b"c", b"-", b"-", b"-"]], dtype=object)
    answers = split({"tokens": tokens}, requests, batch, batched=True, padding=padding)
    assert [answer.outputs[0].numpy().tolist() for answer in answers] == [[[b"a", b"bb"]], [[b"c"]]]


def test_requested_outputs_keep_their_order() -> None:
    """Cutting back changes nothing of what was asked for."""
    requests = [request([[1, 2, 3]], outputs=["pooled", "tokens"]), request([[4]])]
    batch, padding = merged(requests)
    first, _ = split(outputs_of(2, 4), requests, batch, batched=True, padding=padding)
    assert [tensor.name for tensor in first.outputs] == ["pooled", "tokens"]


@pytest.mark.parametrize("length", [3, 5])
def test_an_output_that_does_not_follow_the_length_fails_the_pass(length: int) -> None:
    """Nobody could say which part of it is padding."""
    requests = [request([[1, 2, 3]]), request([[4]])]
    batch, padding = merged(requests)
    with pytest.raises(EngineFailure) as caught:
        split(outputs_of(2, length), requests, batch, batched=True, padding=padding)
    assert "does not follow the length 4" in caught.value.detail


def test_a_neighbours_rows_are_never_moved() -> None:
    """Bytes that are not what a shape says raise."""
    bad = request([[1, 2, 3]])
    bad.inputs = [Tensor("ids", "INT32", (1, 3), bytes(8)), *bad.inputs[1:]]
    with pytest.raises(ValueError, match="reshape"):
        merged([bad, request([[4]])])
