"""TensorRT plans: the shapes that are built for, and what is said where none can be built."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from exporter import tensorrt
from exporter.cli import commands
from exporter.errors import UsageError
from server.repository.model_config import ModelConfig, read_model_config

PICTURES = """
input { name: "image" data_type: TYPE_FP32 dims: [ 3, 8, 8 ] } output { name: "y" data_type: TYPE_FP32 dims: [ 2 ] }
"""
TEXTS = """
input { name: "ids" data_type: TYPE_INT64 dims: [ -1 ] } input { name: "mask" data_type: TYPE_INT64 dims: [ -1 ] }
output { name: "y" data_type: TYPE_FP32 dims: [ 2 ] }
dynamic_batching { } parameters { key: "length_buckets" value { string_value: "16,40" } }
"""


def config(folder: Path, text: str, head: str = "max_batch_size: 32") -> ModelConfig:
    (folder / "m").mkdir(exist_ok=True)
    (folder / "m" / "config.pbtxt").write_text(f'name: "m" platform: "onnxruntime_onnx" {head} {text}')
    return read_model_config(folder / "m")


def test_a_profile_has_the_batches_that_the_config_lets_come(tmp_path: Path) -> None:
    """One row, the largest preferred size or else the most, and the most."""
    [alone] = tensorrt.profiles(config(tmp_path, PICTURES))
    assert alone.shapes == {"image": ((1, 3, 8, 8), (32, 3, 8, 8), (32, 3, 8, 8))}
    preferred = "dynamic_batching { preferred_batch_size: [ 4, 8 ] }"
    [usual] = tensorrt.profiles(config(tmp_path, PICTURES + preferred))
    assert usual.shapes["image"][1] == (8, 3, 8, 8)
    [single] = tensorrt.profiles(config(tmp_path, PICTURES, "max_batch_size: 0"))
    assert single.shapes == {"image": ((3, 8, 8),) * 3}


def test_each_length_bucket_has_a_profile(tmp_path: Path) -> None:
    """From just above the bucket before it up to its own length, for all inputs alike."""
    short, long = tensorrt.profiles(config(tmp_path, TEXTS))
    assert short.shapes["ids"] == short.shapes["mask"] == ((1, 1), (32, 16), (32, 16))
    assert long.shapes["ids"] == ((1, 17), (32, 40), (32, 40))


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_what_is_missing_is_named(tmp_path: Path) -> None:
    """The package, the GPU, or both; nothing is written."""
    found = config(tmp_path, PICTURES)
    with pytest.raises(UsageError, match="an NVIDIA GPU that PyTorch sees, which this machine does not have"):
        tensorrt.build(tmp_path / "model.onnx", found, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_the_command_says_which_file_it_lacks(tmp_path: Path) -> None:
    """A run without an exported model, and a model that is not published."""
    with pytest.raises(UsageError, match=r"model\.onnx is not there; write it with: export"):
        tensorrt.build_for(tmp_path, tmp_path / "m")
    (tmp_path / "model.onnx").write_bytes(b"")
    with pytest.raises(UsageError, match="has no config that can be read"):
        tensorrt.build_for(tmp_path, tmp_path / "m")
    assert CliRunner().invoke(commands, ["tensorrt", str(tmp_path)]).exit_code == 4
