"""Whatever can be said in the honoured fields is read back as it was written."""

from __future__ import annotations

import tempfile
from dataclasses import replace
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st
from tritonclient.grpc import model_config_pb2 as pb

from server.repository.completed import completed
from server.repository.model_config import from_message, parse_text, write_model_config

names = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=12)
datatypes = st.sampled_from([t for t in pb.DataType.values() if t != pb.TYPE_INVALID])
dims = st.lists(st.one_of(st.just(-1), st.integers(1, 2**62)), min_size=1, max_size=4)


@st.composite
def configs(draw: st.DrawFn) -> pb.ModelConfig:
    """A message that uses honoured fields only, with valid values."""
    largest = draw(st.integers(0, 2**31 - 1))
    message = pb.ModelConfig(name="m", max_batch_size=largest)
    message.backend = draw(st.sampled_from(["onnxruntime", ""]))
    message.platform = "onnxruntime_onnx" if not message.backend else draw(st.sampled_from(["onnxruntime_onnx", ""]))
    for name in draw(st.lists(names, min_size=1, max_size=3, unique=True)):
        message.input.add(name=name, data_type=draw(datatypes), dims=draw(dims))
    for name in draw(st.lists(names, min_size=1, max_size=3, unique=True)):
        message.output.add(name=name, data_type=draw(datatypes), dims=draw(dims))
    for _ in range(draw(st.integers(0, 2))):
        message.instance_group.add(name=draw(names), count=draw(st.integers(0, 9)), kind=draw(st.integers(0, 2)))
    if draw(st.booleans()):
        batching = message.dynamic_batching
        batching.SetInParent()
        batching.max_queue_delay_microseconds = draw(st.integers(0, 2**64 - 1))
        if largest:
            batching.preferred_batch_size.extend(draw(st.lists(st.integers(1, largest), max_size=3)))
        policy = batching.default_queue_policy
        policy.timeout_action = draw(st.sampled_from([0, 1]))
        policy.max_queue_size = draw(st.integers(0, 2**32 - 1))
        policy.default_timeout_microseconds = draw(st.integers(0, 2**64 - 1))
        policy.allow_timeout_override = draw(st.booleans())
    for key, value in draw(st.dictionaries(names, names, max_size=3)).items():
        message.parameters[key].string_value = value
    return message


@given(configs())
@settings(max_examples=80)
def test_written_then_read_is_the_same_message_and_config(message: pb.ModelConfig) -> None:
    """write_model_config then parse_text is the identity, on the message and on the honoured view of it."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "config.pbtxt"
        write_model_config(message, path)
        text = path.read_text(encoding="utf-8")
    again = parse_text(text, "m")

    assert again == message
    assert from_message(again, "m") == from_message(message, "m")
    assert f"max_batch_size: {message.max_batch_size}\n" in text


@given(configs(), st.sampled_from([("cpu",), ("gpu0", "gpu1"), ("cpu", "gpu0")]))
@settings(max_examples=80)
def test_the_config_that_is_told_means_the_same(message: pb.ModelConfig, devices: tuple[str, ...]) -> None:
    """A client may load a model with the config that it was told of it; where its instances run is said."""
    config = from_message(message, "m")

    told = completed(config, devices)
    again = from_message(told, "m")

    assert replace(again, instance_groups=config.instance_groups) == config
    for was, now in zip(config.instance_groups, again.instance_groups, strict=True):
        assert (now.name, now.count) == (was.name, was.count)
        assert now.kind == (was.kind if was.kind != "KIND_AUTO" else "KIND_GPU" if "gpu0" in devices else "KIND_CPU")
    assert completed(again, devices) == told
