"""`response_cache` of config.pbtxt: what asks for a cache, and beside what it is refused."""

from __future__ import annotations

import pytest

from server.errors import ModelLoadFailed
from server.proto.triton import model_config_pb2 as pb
from server.repository.config_text import parse_text
from server.repository.model_config import ModelConfig, from_message

BASE = """
backend: "onnxruntime" max_batch_size: 4
input { name: "x" data_type: TYPE_FP32 dims: 3 } output { name: "y" data_type: TYPE_FP32 dims: 2 }
"""


def read(text: str) -> ModelConfig:
    message: pb.ModelConfig = parse_text(BASE + text, "m")
    return from_message(message, "m")


@pytest.mark.parametrize(
    ("text", "asks"),
    [("", False), ("response_cache {}", False), ("response_cache { enable: true }", True)],
)
def test_it_is_asked_for_by_its_field(text: str, asks: bool) -> None:
    """A message alone asks for nothing."""
    assert read(text).response_cache is asks
    assert read(text + " dynamic_batching {}").response_cache is asks


@pytest.mark.parametrize(
    ("beside", "reason"),
    [
        ("sequence_batching {}", "sequence_batching"),
        ("dynamic_batching { preserve_ordering: true }", "preserve_ordering"),
    ],
)
def test_beside_what_an_answer_can_not_be_kept(beside: str, reason: str) -> None:
    """The field is named, and what it can't be had with."""
    with pytest.raises(ModelLoadFailed) as failed:
        read(f"{beside} response_cache {{ enable: true }}")
    assert failed.value.where == "config.pbtxt: response_cache.enable"
    assert reason in failed.value.problem
    assert not read(f"{beside} response_cache {{ enable: false }}").response_cache
