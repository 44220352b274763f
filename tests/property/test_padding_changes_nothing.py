"""Batched and padded, a model that honours its mask answers each request as it does alone."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from server.buckets import Buckets
from server.engine.base import Instance
from server.engine.onnxruntime import OnnxRuntimeEngine
from server.repository.model_config import ModelConfig, read_model_config
from server.request_check import RequestCheck
from server.scheduler.worker import Model, forward
from server.tensor import Array, Tensor
from server.types import InferRequest, InferResponse
from tests.support.onnx_models import masked_folder


class OnDevice:
    """An instance that says it runs elsewhere: passes have the shapes of the buckets there."""

    def __init__(self, instance: Instance, device: str) -> None:
        self.name = instance.name
        self.run = instance.run
        self.device = device


@cache
def model() -> tuple[Instance, ModelConfig]:
    with tempfile.TemporaryDirectory() as root:
        folder = masked_folder(Path(root), "m")
        config = read_model_config(folder)
        return OnnxRuntimeEngine(1).load(config.engine_spec(folder, "1")).instances[0], config


def request(x: Array, mask: Array, outputs: Sequence[str]) -> InferRequest:
    tensors = [Tensor.from_numpy("mask", mask), Tensor.from_numpy("x", x)]
    return InferRequest("m", tensors, on_settle=lambda _, __: None, received_ns=0, outputs=outputs)


def answers(requests: Sequence[InferRequest], buckets: Buckets | None, device: str) -> Sequence[InferResponse]:
    instance, _ = model()
    result = forward(OnDevice(instance, device), requests, Model("m", "1", True, buckets), lambda: 0)
    assert result.error is None, result.error
    return result.responses


sizes = st.lists(st.tuples(st.integers(1, 3), st.integers(0, 11)), min_size=1, max_size=7)
lengths = st.lists(st.integers(1, 12), min_size=1, max_size=4, unique=True).map(sorted).map(tuple)


@given(sizes, lengths, st.sampled_from(["cpu", "gpu0"]), st.randoms(use_true_random=False))
def test_padding_and_batching_change_no_answer(
    sizes: list[tuple[int, int]], lengths: tuple[int, ...], device: str, random: object
) -> None:
    """Any rows, lengths (none too) and buckets: outputs have each request's own length and values."""
    rng = np.random.default_rng(random.getrandbits(32))  # type: ignore[attr-defined]
    _, config = model()
    assert config.buckets is not None
    # What is padded with must not matter to a model that masks it.
    buckets = Buckets(lengths, config.buckets.inputs, config.buckets.outputs, {"x": 7.5})
    check = RequestCheck(config)
    check._buckets = buckets
    by_signature: dict[object, list[InferRequest]] = {}
    for rows, length in sizes:
        x = rng.normal(size=(rows, length, 3)).astype(np.float32)
        mask = rng.integers(0, 2, size=(rows, length))
        made = request(x, mask, [["mean", "tokens"], ["tokens"], []][int(rng.integers(3))])
        check(made)
        by_signature.setdefault(made.signature, []).append(made)
    for group in by_signature.values():
        for asked, together in zip(group, answers(group, buckets, device), strict=True):
            (alone,) = answers([asked], None, device)
            assert [tensor.name for tensor in together.outputs] == [tensor.name for tensor in alone.outputs]
            for ours, expected in zip(together.outputs, alone.outputs, strict=True):
                assert ours.shape == expected.shape
                np.testing.assert_allclose(ours.numpy(), expected.numpy(), rtol=1e-5, atol=1e-6)
