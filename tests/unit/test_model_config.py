"""config.pbtxt: what is read, what is refused, and in which words."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from google.protobuf import text_format
from google.protobuf.descriptor import Descriptor, FieldDescriptor
from tritonclient.grpc import model_config_pb2 as pb

from server.engine.base import Accelerator, InstanceGroup
from server.errors import ModelLoadFailed
from server.repository.completed import completed
from server.repository.honoured import HONOURED, unhonoured
from server.repository.model_config import (
    All,
    DynamicBatching,
    Latest,
    ModelConfig,
    QueuePolicyConfig,
    Specific,
    parse_text,
    read_model_config,
    write_model_config,
)
from server.tensor import TensorSpec

BASE = """
backend: "onnxruntime"
max_batch_size: 8
input { name: "x" data_type: TYPE_FP32 dims: [3] }
output { name: "y" data_type: TYPE_FP32 dims: [2] }
"""


def read(tmp_path: Path, text: str, name: str = "m") -> ModelConfig:
    folder = tmp_path / name
    folder.mkdir(exist_ok=True)
    (folder / "config.pbtxt").write_text(text)
    return read_model_config(folder)


def refusal(tmp_path: Path, text: str) -> ModelLoadFailed:
    with pytest.raises(ModelLoadFailed) as caught:
        read(tmp_path, text)
    return caught.value


def test_a_minimal_config_has_triton_s_defaults(tmp_path: Path) -> None:
    """Unset fields read as Triton's defaults: the latest version, one instance anywhere, no merging."""
    config = read(tmp_path, BASE)

    assert config.name == "m"
    assert config.inputs == (TensorSpec("x", "FP32", (3,)),)
    assert config.outputs == (TensorSpec("y", "FP32", (2,)),)
    assert config.version_policy == Latest(1)
    assert config.instance_groups == (InstanceGroup(),)
    assert config.dynamic_batching is None
    assert config.default_model_filename == "model.onnx"


def test_every_honoured_field_is_read(tmp_path: Path) -> None:
    """What the allow-list lets through arrives in the ModelConfig."""
    (tmp_path / "m").mkdir()
    (tmp_path / "m" / "labels.txt").write_text("a\nb\n")
    config = read(
        tmp_path,
        """
        name: "m" platform: "onnxruntime_onnx" max_batch_size: 8 default_model_filename: "net.onnx"
        input { name: "x" data_type: TYPE_STRING dims: [-1, 4, 4] format: FORMAT_NCHW }
        output { name: "y" data_type: TYPE_INT64 dims: 2 label_filename: "labels.txt" }
        version_policy { specific { versions: [3, 1] } }
        instance_group [ { count: 2 kind: KIND_GPU gpus: [0, 1] name: "g" }, { kind: KIND_CPU } ]
        dynamic_batching {
          preferred_batch_size: [4, 8] max_queue_delay_microseconds: 100
          default_queue_policy {
            timeout_action: DELAY default_timeout_microseconds: 9 allow_timeout_override: true max_queue_size: 7
          }
        }
        optimization {
          graph { level: -1 }
          execution_accelerators {
            gpu_execution_accelerator { name: "tensorrt" parameters { key: "precision_mode" value: "FP16" } }
            cpu_execution_accelerator { name: "openvino" }
          }
        }
        parameters { key: "intra_op_thread_count" value { string_value: "2" } }
        """,
    )

    assert config.inputs == (TensorSpec("x", "BYTES", (-1, 4, 4)),)
    assert config.label_filenames == {"y": "labels.txt"}
    assert config.version_policy == Specific((1, 3))
    assert config.instance_groups == (InstanceGroup("KIND_GPU", 2, (0, 1), "g"), InstanceGroup("KIND_CPU"))
    assert config.dynamic_batching == DynamicBatching((4, 8), 100, QueuePolicyConfig("DELAY", 9, True, 7))
    assert config.graph_level == -1
    assert config.gpu_accelerators == (Accelerator("tensorrt", {"precision_mode": "FP16"}),)
    assert config.cpu_accelerators == (Accelerator("openvino"),)
    assert config.parameters == {"intra_op_thread_count": "2"}
    spec = config.engine_spec(tmp_path / "m", "3")
    assert spec.path == tmp_path / "m" / "3" / "net.onnx"
    assert (spec.model_name, spec.model_version, spec.graph_level) == ("m", "3", -1)


@pytest.mark.parametrize(
    ("text", "policy"),
    [("version_policy { all {} }", All()), ("version_policy { latest { num_versions: 3 } }", Latest(3))],
)
def test_version_policies(tmp_path: Path, text: str, policy: object) -> None:
    """all and latest n are read as such."""
    assert read(tmp_path, BASE + text).version_policy == policy


UNHONOURED = [
    ('input { name: "z" data_type: TYPE_FP32 dims: 1 reshape { shape: [] } }', None),
    ('input { name: "z" data_type: TYPE_FP32 dims: 1 optional: true }', None),
    ('input { name: "z" data_type: TYPE_FP32 dims: 1 allow_ragged_batch: true }', "input[1].allow_ragged_batch"),
    ('input { name: "z" data_type: TYPE_FP32 dims: 1 is_shape_tensor: true }', "input[1].is_shape_tensor"),
    (
        'input { name: "z" data_type: TYPE_FP32 dims: 1 is_non_linear_format_io: true }',
        "input[1].is_non_linear_format_io",
    ),
    (
        'output { name: "z" data_type: TYPE_FP32 dims: 1 is_non_linear_format_io: true }',
        "output[1].is_non_linear_format_io",
    ),
    ('batch_input { kind: BATCH_ELEMENT_COUNT target_name: "n" data_type: TYPE_FP32 }', "batch_input"),
    ('batch_output { target_name: "y" kind: BATCH_SCATTER_WITH_INPUT_SHAPE source_input: "x" }', "batch_output"),
    ('output { name: "z" data_type: TYPE_FP32 dims: 1 is_shape_tensor: true }', "output[1].is_shape_tensor"),
    ("sequence_batching {}", None),
    ("sequence_batching { iterative_sequence: true }", "sequence_batching.iterative_sequence"),
    (
        'sequence_batching { state { input_name: "i" output_name: "o" data_type: TYPE_FP32 dims: 1 '
        "use_growable_memory: true } }",
        "sequence_batching.state[0].use_growable_memory",
    ),
    ("ensemble_scheduling {}", "platform"),
    ('ensemble_scheduling { step { model_namespace: "n" } }', "ensemble_scheduling.step[0].model_namespace"),
    ("ensemble_scheduling { max_inflight_requests: 1 }", "ensemble_scheduling.max_inflight_requests"),
    ("response_cache { enable: true }", None),
    ("response_cache { enable: false }", None),
    ("model_transaction_policy { decoupled: false }", None),
    ("model_warmup {}", "model_warmup[0].batch_size"),
    ("model_transaction_policy { decoupled: true }", None),
    ("model_transaction_policy { decoupled: true } sequence_batching { }", "model_transaction_policy.decoupled"),
    (
        "model_transaction_policy { decoupled: true } dynamic_batching { preserve_ordering: true }",
        "model_transaction_policy.decoupled",
    ),
    ("optimization { priority: PRIORITY_MAX }", "optimization.priority"),
    ("optimization { cuda { graphs: true } }", "optimization.cuda"),
    ("optimization { eager_batching: true }", "optimization.eager_batching"),
    ("instance_group { rate_limiter { priority: 1 } }", "instance_group[0].rate_limiter"),
    ("instance_group [ {}, { passive: true } ]", "instance_group[1].passive"),
    ('instance_group { host_policy: "h" }', "instance_group[0].host_policy"),
    ('metric_tags { key: "a" value: "b" }', "metric_tags"),
    ('cc_model_filenames { key: "7.5" value: "m" }', "cc_model_filenames"),
    ('runtime: "libx.so"', "runtime"),
]


@pytest.mark.parametrize(("text", "path"), UNHONOURED, ids=[text for text, _ in UNHONOURED])
def test_a_set_field_that_is_not_honoured_is_refused_by_name(tmp_path: Path, text: str, path: str | None) -> None:
    """Refused with its path; a message that says only defaults passes unless its presence is the choice."""
    if path is None:
        read(tmp_path, BASE + text)
    else:
        assert refusal(tmp_path, BASE + text).where == f"config.pbtxt: {path}"


def leaves(descriptor: Descriptor, path: tuple[FieldDescriptor, ...] = ()) -> Iterator[tuple[FieldDescriptor, ...]]:
    """Every way down to a field without fields of its own."""
    for field in descriptor.fields:
        if field.message_type is None or field.message_type.GetOptions().map_entry or not field.message_type.fields:
            yield (*path, field)
        else:
            yield from leaves(field.message_type, (*path, field))


def with_one_set(path: tuple[FieldDescriptor, ...]) -> pb.ModelConfig:
    """A config that says one thing only."""
    message = pb.ModelConfig()
    inner: Any = message
    for field in path[:-1]:
        inner = getattr(inner, field.name).add() if field.is_repeated else getattr(inner, field.name)
    last = path[-1]
    value: Any = "set" if last.type in (last.TYPE_STRING, last.TYPE_BYTES) else 1
    if last.message_type is not None and last.message_type.GetOptions().map_entry:
        entry = last.message_type.fields_by_name["value"]
        key: Any = "k" if last.message_type.fields_by_name["key"].type == last.TYPE_STRING else 1
        if entry.message_type is not None:
            getattr(inner, last.name)[key].SetInParent()
        else:
            getattr(inner, last.name)[key] = "set" if entry.type == entry.TYPE_STRING else 1
    elif last.message_type is not None:
        getattr(inner, last.name).SetInParent()
    elif last.is_repeated:
        getattr(inner, last.name).append(value)
    else:
        setattr(inner, last.name, value)
    return message


@pytest.mark.parametrize(
    "path", list(leaves(pb.ModelConfig.DESCRIPTOR)), ids=lambda path: ".".join(f.name for f in path)
)
def test_every_field_of_the_proto_is_either_honoured_or_refused(path: tuple[FieldDescriptor, ...]) -> None:
    """Nothing is dropped in silence: each field, set alone, is on the list of honoured ones or reported."""
    name = ".".join(field.name for field in path)
    reported = [re.sub(r"\[\d+\]", "", shown) for shown, _ in unhonoured(with_one_set(path))]

    if name in HONOURED:
        assert reported == []
    else:
        assert len(reported) == 1
        assert name.startswith(reported[0])


WRONG = [
    (BASE.replace("onnxruntime", "tensorrt_plan"), "backend", "Triton"),
    (BASE + 'platform: "tensorrt_plan"', "platform", "TensorRT plan needs Triton"),
    (BASE + 'platform: "caffe"', "platform", "'caffe' is not known"),
    (BASE.replace('backend: "onnxruntime"', ""), "backend", 'write backend: "onnxruntime"'),
    (BASE + 'name: "other"', "name", "the folder is 'm'"),
    (BASE.replace("max_batch_size: 8", "max_batch_size: -1"), "max_batch_size", "-1"),
    ('backend: "onnxruntime" output { name: "y" data_type: TYPE_FP32 dims: 1 }', "input", "at least one input"),
    ('backend: "onnxruntime" input { name: "y" data_type: TYPE_FP32 dims: 1 }', "output", "at least one output"),
    (BASE + 'input { name: "x" data_type: TYPE_FP32 dims: 1 }', "input[1].name", "'x' is there twice"),
    (BASE + "input { data_type: TYPE_FP32 dims: 1 }", "input[1].name", "empty"),
    (
        BASE + 'output { name: "z" data_type: TYPE_FP32 dims: 4 reshape { shape: 5 } }',
        "output[1].reshape.shape",
        "same",
    ),
    (BASE + 'input { name: "z" data_type: TYPE_FP32 dims: 2 reshape { shape: [] } }', "input[1].reshape.shape", "same"),
    (
        BASE + 'input { name: "z" data_type: TYPE_FP32 dims: [2, -1, 6] reshape { shape: [12, -1] } }',
        "input[1].reshape.shape",
        "between",
    ),
    (BASE + 'input { name: "z" data_type: TYPE_FP32 dims: 1 reshape { shape: 0 } }', "input[1].reshape.shape", "has 0"),
    (BASE.replace("dims: [3]", "dims: [3] optional: true"), "input", "all are optional"),
    (BASE + 'input { name: "z" data_type: TYPE_FP32 dims: 0 }', "input[1].dims", "has 0"),
    (BASE + 'input { name: "z" data_type: TYPE_FP32 dims: [3, -2] }', "input[1].dims", "has -2"),
    (BASE + 'input { name: "z" dims: 1 }', "input[1].data_type", "not set"),
    (BASE + 'input { name: "z" data_type: 77 dims: 1 }', "input[1].data_type", "77"),
    (BASE + 'input { name: "z" data_type: TYPE_FP32 dims: 1 format: FORMAT_NCHW }', "input[1].format", "3 dims"),
    (BASE + "dynamic_batching { preferred_batch_size: [4, 9] }", "dynamic_batching.preferred_batch_size[1]", "is 9"),
    (BASE + "dynamic_batching { priority_levels: 2 }", "dynamic_batching.default_priority_level", "is 0"),
    (BASE + "dynamic_batching { default_priority_level: 2 }", "dynamic_batching.default_priority_level", "is set"),
    (
        BASE + "dynamic_batching { priority_levels: 999 default_priority_level: 1 }",
        "dynamic_batching.priority_levels",
        "256",
    ),
    (
        BASE + "dynamic_batching { priority_queue_policy { key: 1 value {} } }",
        "dynamic_batching.priority_queue_policy[1]",
        "no level",
    ),
    (
        BASE + "dynamic_batching { priority_levels: 2 default_priority_level: 2 preserve_ordering: true }",
        "dynamic_batching.preserve_ordering",
        "contradicts",
    ),
    (BASE + 'parameters { key: "fair_by" value { string_value: "user" } }', 'parameters["fair_by"]', "'tenant'"),
    (BASE + 'parameters { key: "fair_by" value { } }', 'parameters["fair_by"]', "is ''"),
    (BASE + 'parameters { key: "slo_ms" value { string_value: "0" } }', 'parameters["slo_ms"]', "above 0"),
    (BASE + 'parameters { key: "slo_ms" value { string_value: "nan" } }', 'parameters["slo_ms"]', "above 0"),
    (BASE + 'parameters { key: "slo_ms" value { string_value: "soon" } }', 'parameters["slo_ms"]', "'soon'"),
    (BASE + "dynamic_batching { preferred_batch_size: 0 }", "dynamic_batching.preferred_batch_size[0]", "is 0"),
    (BASE + "instance_group { count: -1 }", "instance_group[0].count", "is -1"),
    (BASE + "instance_group { kind: KIND_MODEL }", "instance_group[0].kind", "KIND_MODEL"),
    (BASE + "instance_group { kind: KIND_CPU gpus: 0 }", "instance_group[0].gpus", "KIND_CPU"),
    (BASE + "instance_group { kind: KIND_GPU gpus: -1 }", "instance_group[0].gpus", "negative"),
    (BASE + "version_policy { specific {} }", "version_policy.specific.versions", "at least one"),
    (BASE + "version_policy { specific { versions: 0 } }", "version_policy.specific.versions", "at least one"),
    (BASE + "optimization { graph { level: 7 } }", "optimization.graph.level", "is 7"),
    (BASE + 'default_model_filename: "../../etc/passwd"', "default_model_filename", "below the model's folder"),
    (BASE + 'default_model_filename: "/etc/passwd"', "default_model_filename", "below the model's folder"),
    (
        BASE + 'output { name: "z" data_type: TYPE_FP32 dims: 1 label_filename: "../l" }',
        "output[1].label_filename",
        "below the model's folder",
    ),
]


@pytest.mark.parametrize(("text", "path", "words"), WRONG, ids=[f"{path} {words}" for _, path, words in WRONG])
def test_a_wrong_value_is_refused_with_its_path_and_the_reason(
    tmp_path: Path, text: str, path: str, words: str
) -> None:
    """Every refusal names the field and says what would be right."""
    error = refusal(tmp_path, text)

    assert error.where == f"config.pbtxt: {path}"
    assert words in error.problem


TEXTS = [
    ('name: "m"\nmax_batchsize: 3\n', "line 2, column 1", "did you mean 'max_batch_size'?"),
    ("input { nam: 3 }", "line 1, column 9", "'nam' is not a field of ModelInput; did you mean 'name'?"),
    ("input { data_type: TYPE_FP33 }", "line 1, column 20", "did you mean 'TYPE_FP32'?"),
    ('name: "m', "line 1, column 7", "quote"),
    ("max_batch_size: 99999999999999", "line 1, column 17", "out of range"),
    ('name: "a" name: "b"', "line 1, column 17", "'name' is set twice"),
    ('{"name": "m"}', "line 1, column 1", "brackets"),
    ("instance_group { kind: KIND_CPUS }", "line 1, column 24", "KIND_CPUS"),
    ("input [ { dims: [1", "line 1", "brackets"),
]


@pytest.mark.parametrize(("text", "place", "words"), TEXTS, ids=[text for text, _, _ in TEXTS])
def test_text_that_does_not_parse_names_its_place_and_gives_a_hint(
    tmp_path: Path, text: str, place: str, words: str
) -> None:
    """A person finds the spot without knowing protobuf."""
    error = refusal(tmp_path, text)

    assert place in error.where
    assert words in error.problem
    assert "\n" not in error.problem


def test_a_file_that_is_missing_or_no_text_is_refused(tmp_path: Path) -> None:
    """No config, a folder in its place, and bytes that are not UTF-8."""
    with pytest.raises(ModelLoadFailed, match="no such file"):
        read_model_config(tmp_path)
    (tmp_path / "config.pbtxt").mkdir()
    with pytest.raises(ModelLoadFailed, match="no such file"):
        read_model_config(tmp_path)
    (tmp_path / "m").mkdir()
    (tmp_path / "m" / "config.pbtxt").write_bytes(b'name: "\xff"')
    with pytest.raises(ModelLoadFailed, match="UTF-8"):
        read_model_config(tmp_path / "m")


def test_escapes_that_are_no_utf8_are_refused(tmp_path: Path) -> None:
    """Text may smuggle bytes in by escapes; they must not surface later as another error."""
    assert "config.pbtxt" in refusal(tmp_path, 'name: "\\377\\376"').where


def test_a_missing_label_file_is_refused(tmp_path: Path) -> None:
    """label_filename must be there."""
    text = BASE.replace("dims: [2]", 'dims: [2] label_filename: "labels.txt"')
    assert "'labels.txt' is not there" in refusal(tmp_path, text).problem


def test_max_batch_size_0_is_written_out(tmp_path: Path) -> None:
    """Triton guesses a batch size where the field is absent, which proto3's printer would make it."""
    path = tmp_path / "config.pbtxt"
    write_model_config(pb.ModelConfig(name="m", backend="onnxruntime"), path)

    assert "max_batch_size: 0\n" in path.read_text()
    assert text_format.Parse(path.read_text(), pb.ModelConfig()).name == "m"


def test_the_original_message_is_kept(tmp_path: Path) -> None:
    """The v2 model config call answers with what the file says."""
    text = BASE + "dynamic_batching { max_queue_delay_microseconds: 7 }"
    assert read(tmp_path, text).message == parse_text(text, "m")


def test_fairness_by_tenant_is_read(tmp_path: Path) -> None:
    """fair_by is the scheduler's and does not reach the engine."""
    config = read(tmp_path, BASE + 'parameters { key: "fair_by" value { string_value: "tenant" } }')
    assert (config.fair_by_tenant, dict(config.parameters)) == (True, {})


def test_priorities_ordering_and_the_objective_are_read(tmp_path: Path) -> None:
    """Each level's policy by its number; slo_ms is the scheduler's and does not reach the engine."""
    text = """
        dynamic_batching {
          priority_levels: 3 default_priority_level: 2
          priority_queue_policy { key: 1 value { max_queue_size: 5 timeout_action: DELAY } }
        }
        parameters { key: "slo_ms" value { string_value: "12.5" } }
    """
    config = read(tmp_path, BASE + text)
    assert config.dynamic_batching is not None
    assert (config.dynamic_batching.priority_levels, config.dynamic_batching.default_priority_level) == (3, 2)
    assert config.dynamic_batching.priority_queue_policy == {1: QueuePolicyConfig("DELAY", 0, False, 5)}
    assert (config.slo_ms, dict(config.parameters)) == (12.5, {})
    assert not config.fair_by_tenant
    ordered = read(tmp_path, BASE + "dynamic_batching { preserve_ordering: true }").dynamic_batching
    assert ordered is not None
    assert ordered.preserve_ordering


def test_a_rate_limiter_is_refused_with_what_to_do_instead() -> None:
    """Resources that passes wait for are not counted here; without any it says nothing, and passes."""
    message = parse_text("instance_group { count: 2 rate_limiter { resources { name: 'r' count: 1 } } }", "m")
    [(path, reason)] = unhonoured(message)
    assert path == "instance_group[0].rate_limiter"
    assert "instance_group.count" in reason
    assert "--rate-limit" in reason
    assert not list(unhonoured(parse_text("instance_group { count: 2 rate_limiter {} }", "m")))


LEFT_OUT = """
backend: "onnxruntime" max_batch_size: 8
input { name: "x" data_type: TYPE_FP32 dims: 2 } output { name: "y" data_type: TYPE_FP32 dims: 1 }
sequence_batching {
  control_input { name: "START" control { kind: CONTROL_SEQUENCE_START bool_false_true: [false, true] } }
}
"""


def test_the_config_that_is_told_says_what_is_so_where_the_file_says_nothing(tmp_path: Path) -> None:
    """As Triton completes it; the file's own message stays as it is, for those who write it again."""
    config = read(tmp_path, LEFT_OUT)
    told = completed(config, ["cpu"])

    assert told.name == config.name
    assert told.version_policy.latest.num_versions == 1
    assert told.sequence_batching.max_sequence_idle_microseconds == 1_000_000
    assert [(group.count, group.kind) for group in told.instance_group] == [(1, pb.ModelInstanceGroup.KIND_CPU)]
    assert config.message == parse_text(LEFT_OUT, "m")


def test_the_config_that_is_told_keeps_what_the_file_says(tmp_path: Path) -> None:
    """Other policies, counts and times are told as they are."""
    said = (
        LEFT_OUT.replace("sequence_batching {", "sequence_batching { max_sequence_idle_microseconds: 7")
        + "version_policy { latest { num_versions: 3 } } instance_group { count: 2 kind: KIND_CPU }"
    )
    told = completed(read(tmp_path, said), ["cpu", "cpu"])

    assert told.version_policy.latest.num_versions == 3
    assert told.sequence_batching.max_sequence_idle_microseconds == 7
    assert [(group.count, group.kind) for group in told.instance_group] == [(2, pb.ModelInstanceGroup.KIND_CPU)]
    assert completed(read(tmp_path, BASE + "version_policy { all {} }"), []).version_policy.HasField("all")


@pytest.mark.parametrize(
    ("group", "devices", "told"),
    [
        ("", ["cpu"], ("KIND_CPU", [])),
        ("", ["gpu1", "gpu0", "gpu0"], ("KIND_GPU", [0, 1])),
        ("kind: KIND_AUTO gpus: [1]", ["gpu1"], ("KIND_GPU", [1])),
        ("kind: KIND_AUTO gpus: [1]", ["cpu"], ("KIND_CPU", [])),
        ("kind: KIND_AUTO gpus: [1]", ["gpu0", "cpu"], ("KIND_CPU", [])),
        ("kind: KIND_GPU", ["gpu0"], ("KIND_GPU", [0])),
        ("kind: KIND_GPU gpus: [1]", ["gpu1"], ("KIND_GPU", [1])),
        ("kind: KIND_CPU", ["cpu"], ("KIND_CPU", [])),
    ],
)
def test_the_config_that_is_told_says_where_instances_run(
    tmp_path: Path, group: str, devices: list[str], told: tuple[str, list[int]]
) -> None:
    """Never KIND_AUTO, which has no kind in protobuf's JSON: PyTriton's client over gRPC fails at it."""
    [found] = completed(read(tmp_path, f"{BASE} instance_group {{ {group} }}"), devices).instance_group
    assert (pb.ModelInstanceGroup.Kind.Name(found.kind), list(found.gpus)) == told


TOLD_BY_TRITON = """
name: "m" backend: "onnxruntime" version_policy { latest { num_versions: 1 } } max_batch_size: 8
input { name: "x" data_type: TYPE_FP32 dims: 3 } output { name: "y" data_type: TYPE_FP32 dims: 2 }
optimization { priority: PRIORITY_DEFAULT input_pinned_memory { enable: true } output_pinned_memory { enable: true } }
dynamic_batching { preferred_batch_size: 8 }
instance_group { name: "m" kind: KIND_CPU count: 1 } default_model_filename: "model.onnx"
"""
"""Of a file that says the backend, the tensors and `dynamic_batching {}`."""


def test_the_config_that_a_triton_tells_is_taken(tmp_path: Path) -> None:
    """Clients load a model with the config that they were told, a field or two changed."""
    config = read(tmp_path, TOLD_BY_TRITON)

    assert (config.max_batch_size, config.instance_groups) == (8, (InstanceGroup("KIND_CPU", 1, (), "m"),))
