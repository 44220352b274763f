"""config.pbtxt: Triton's own ModelConfig, read into the fields that this server honours.

The text is parsed into the real protobuf message. A field that is set and not honoured is refused by name,
through one list of honoured paths: what the list does not have can't slip through, fields that a later
model_config.proto adds included. proto3 keeps no difference between a scalar's default and its absence, so
``count: 0`` reads as the default of 1, as it does in Triton.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path, PurePosixPath

from server.buckets import Buckets
from server.engine.base import Accelerator, EngineSpec, InstanceGroup
from server.ensembles import Ensemble
from server.errors import ModelLoadFailed
from server.proto.triton import model_config_pb2 as pb
from server.repository.batching import DynamicBatching, QueuePolicyConfig, read_dynamic_batching
from server.repository.config_text import CONFIG_FILE, parse_text, write_model_config
from server.repository.ensemble import PLATFORM as ENSEMBLE
from server.repository.ensemble import is_ensemble, read_ensemble
from server.repository.honoured import unhonoured
from server.repository.instance_groups import read_instance_groups
from server.repository.labels import read_labels
from server.repository.length_buckets import LENGTH_BUCKETS, PAD_VALUE, read_buckets
from server.repository.model_warmup import WarmupSample, read_model_warmup
from server.repository.refuse import Refuse, refuse_field
from server.repository.rollout import ROLLOUT, Rollout, read_rollout
from server.repository.sequence_batching import read_sequence_batching, with_initial_data
from server.repository.tensor_specs import read_tensors
from server.repository.version_policy import LATEST, All, Latest, Specific, VersionPolicy, read_version_policy
from server.sequences import Oldest, SequenceBatching
from server.tensor import TensorSpec

__all__ = [
    "CONFIG_FILE",
    "All",
    "DynamicBatching",
    "Latest",
    "ModelConfig",
    "QueuePolicyConfig",
    "Specific",
    "VersionPolicy",
    "from_message",
    "parse_text",
    "read_model_config",
    "write_model_config",
]

DEFAULT_MODEL_FILENAME = "model.onnx"
_PLATFORM = "onnxruntime_onnx"
_BACKEND = "onnxruntime"
TEXT_BACKEND = "onnxruntime-genai"
"""Of models that write text: folders of that library's model builder."""
_TEXT_FILENAME = "genai_config.json"
_CACHE = "response_cache.enable"
_SLO = "slo_ms"
_FAIR_BY = "fair_by"
_TENANT = "tenant"
_OURS = (_SLO, _FAIR_BY, LENGTH_BUCKETS, PAD_VALUE, *ROLLOUT)
"""Parameters that are the scheduler's and do not reach the engine."""
_LONGEST_SLO_MS = 86_400_000


@dataclass(frozen=True, slots=True)
class ModelConfig:
    """What is honoured of a config.pbtxt. `message` is the original, for the v2 model config call."""

    name: str
    platform: str
    backend: str
    max_batch_size: int
    """Rows of the largest batch; 0: the model has no batch dimension and `dims` are its whole shapes."""
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    message: pb.ModelConfig = field(compare=False, repr=False)
    instance_groups: tuple[InstanceGroup, ...] = (InstanceGroup(),)
    version_policy: VersionPolicy = LATEST
    dynamic_batching: DynamicBatching | None = None
    """None: requests are never merged, but for those of sequences."""
    sequence_batching: SequenceBatching | None = None
    """None: requests are independent of each other."""
    decoupled: bool = False
    """The model gives any number of responses to a request. Source: ModelTransactionPolicy."""
    ensemble: Ensemble | None = None
    """The other models that it is composed of; None: it has a file of its own."""
    gpu_accelerators: tuple[Accelerator, ...] = ()
    cpu_accelerators: tuple[Accelerator, ...] = ()
    graph_level: int = 0
    parameters: Mapping[str, str] = field(default_factory=dict)
    slo_ms: float = 0
    """The latency objective: no request is worth answering later than this after its receipt; 0: none."""
    fair_by_tenant: bool = False
    """Whether tenants share the queue equally; else who a request is of does not matter."""
    buckets: Buckets | None = None
    """The lengths to which requests are padded; None: only requests of equal shapes share a batch."""
    model_warmup: tuple[WarmupSample, ...] = ()
    """What is run on every instance before it serves, beside the batch sizes."""
    response_cache: bool = False
    """Whether answers are kept for equal requests, where the server has a cache."""
    rollout: Rollout | None = None
    """Which version is on trial beside the one that serves; None: none is."""
    default_model_filename: str = DEFAULT_MODEL_FILENAME
    label_filenames: Mapping[str, str] = field(default_factory=dict)
    """The file of labels by output name, relative to the model's folder."""
    labels: Mapping[str, Sequence[str]] = field(default_factory=dict)
    """What these files say, by output: the label of each class, some empty, maybe fewer or more than classes."""

    @property
    def text_is_utf8(self) -> bool:
        """BYTES are ONNX strings; other backends take any bytes."""
        return self.backend == _BACKEND

    @property
    def writes_text(self) -> bool:
        """A request runs for many passes, beside others that come and go."""
        return self.backend == TEXT_BACKEND

    @property
    def engine_inputs(self) -> tuple[TensorSpec, ...]:
        """Of the model's file: what clients send, and behind it what tells of sequences and their states."""
        return self.inputs + (self.sequence_batching.inputs if self.sequence_batching else ())

    @property
    def engine_outputs(self) -> tuple[TensorSpec, ...]:
        """Of the model's file: what clients get, and behind it states that they don't see."""
        states = self.sequence_batching.outputs if self.sequence_batching else ()
        return self.outputs + tuple(spec for spec in states if spec not in self.outputs)

    @property
    def preferred_batch_size(self) -> tuple[int, ...]:
        """Whichever way requests are merged."""
        if self.dynamic_batching is not None:
            return self.dynamic_batching.preferred_batch_size
        strategy = self.sequence_batching.strategy if self.sequence_batching is not None else None
        return strategy.preferred_batch_size if isinstance(strategy, Oldest) else ()

    def engine_spec(self, folder: Path, version: str) -> EngineSpec:
        """What an engine needs to load `version` of the model in `folder`."""
        return EngineSpec(
            model_name=self.name,
            model_version=version,
            path=folder / version / self.default_model_filename,
            max_batch_size=self.max_batch_size,
            inputs=tuple(map(_of_the_model, self.engine_inputs)),
            outputs=tuple(map(_of_the_model, self.engine_outputs)),
            instance_groups=self.instance_groups,
            gpu_accelerators=self.gpu_accelerators,
            cpu_accelerators=self.cpu_accelerators,
            graph_level=self.graph_level,
            parameters=self.parameters,
            backend=self.backend,
            decoupled=self.decoupled,
            fields=self.sequence_batching.fields if self.sequence_batching else {},
        )


def _of_the_model(spec: TensorSpec) -> TensorSpec:
    return spec if spec.reshape is None else replace(spec, dims=spec.reshape, reshape=None)


def read_model_config(folder: Path) -> ModelConfig:
    """The config of the model in `folder`.

    Raises:
        ModelLoadFailed: there is no config.pbtxt, it is not valid text format (the line and the column are
            named), a field is not honoured, or a value is out of range.
    """
    path = folder / CONFIG_FILE
    if not path.is_file():
        raise ModelLoadFailed(folder.name, CONFIG_FILE, "there is no such file in the model's folder")
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise ModelLoadFailed(folder.name, CONFIG_FILE, f"can't be read: {reason}") from error
    return with_files(from_message(parse_text(text, folder.name), folder.name), folder)


def with_files(config: ModelConfig, folder: Path) -> ModelConfig:
    """`config` with what files in its model's folder say: labels of classes, initial states of sequences.

    Raises:
        ModelLoadFailed: a file that the config names is not there, or is not what it must be.
    """
    batching = config.sequence_batching
    if batching is not None:
        batching = with_initial_data(batching, folder, partial(refuse_field, folder.name))
    return replace(config, sequence_batching=batching, labels=read_labels(folder, config.label_filenames))


def from_message(message: pb.ModelConfig, folder_name: str) -> ModelConfig:
    """The honoured fields of `message`; an empty name is the folder's.

    Raises:
        ModelLoadFailed: a field is set that is not honoured, or a value is out of range; `where` is the
            path of the field.
    """

    refuse: Refuse = partial(refuse_field, folder_name)
    for path, problem in unhonoured(message):
        refuse(path, problem)
    if message.name not in ("", folder_name):
        refuse("name", f"is '{message.name}', the folder is '{folder_name}'; they must be equal")
    if is_ensemble(message):
        _check_parameters(message, refuse)
    else:
        _check_backend(message, refuse)
    if message.max_batch_size < 0:
        refuse("max_batch_size", f"is {message.max_batch_size}, it must be 0 or more")
    if message.optimization.graph.level not in (-1, 0, 1, 2):
        refuse("optimization.graph.level", f"is {message.optimization.graph.level}, it must be -1, 0, 1 or 2")
    accelerators = message.optimization.execution_accelerators
    inputs, outputs = read_tensors("input", message.input, refuse), read_tensors("output", message.output, refuse)
    parameters = {key: value.string_value for key, value in message.parameters.items()}
    merges = message.max_batch_size > 0 and message.HasField("dynamic_batching")
    sequences = read_sequence_batching(message, inputs, outputs, refuse)
    return ModelConfig(
        name=folder_name,
        platform=_platform(message),
        backend=_backend(message),
        max_batch_size=message.max_batch_size,
        inputs=inputs,
        outputs=outputs,
        message=message,
        instance_groups=read_instance_groups(message, refuse),
        version_policy=read_version_policy(message, refuse),
        dynamic_batching=read_dynamic_batching(message, refuse),
        sequence_batching=sequences,
        decoupled=_decoupled(message, parameters, refuse),
        ensemble=read_ensemble(message, inputs, outputs, refuse),
        gpu_accelerators=tuple(Accelerator(a.name, dict(a.parameters)) for a in accelerators.gpu_execution_accelerator),
        cpu_accelerators=tuple(Accelerator(a.name, dict(a.parameters)) for a in accelerators.cpu_execution_accelerator),
        graph_level=message.optimization.graph.level,
        parameters={key: text for key, text in parameters.items() if key not in _OURS},
        slo_ms=read_slo_ms(message, refuse),
        buckets=read_buckets(parameters, inputs, outputs, merges=merges, refuse=refuse),
        fair_by_tenant=read_fair_by_tenant(message, refuse),
        model_warmup=read_model_warmup(message, inputs, sequences, refuse),
        response_cache=_response_cache(message, refuse),
        rollout=read_rollout(message, refuse),
        default_model_filename=_inside(
            "default_model_filename", message.default_model_filename or _filename(message), refuse
        ),
        label_filenames={
            output.name: _inside(f"output[{index}].label_filename", output.label_filename, refuse)
            for index, output in enumerate(message.output)
            if output.label_filename
        },
    )


def _backend(message: pb.ModelConfig) -> str:
    if is_ensemble(message):
        return ""
    return TEXT_BACKEND if message.backend == TEXT_BACKEND else _BACKEND


def _platform(message: pb.ModelConfig) -> str:
    if is_ensemble(message):
        return ENSEMBLE
    return TEXT_BACKEND if message.backend == TEXT_BACKEND else _PLATFORM


def _filename(message: pb.ModelConfig) -> str:
    return _TEXT_FILENAME if message.backend == TEXT_BACKEND else DEFAULT_MODEL_FILENAME


def _check_backend(message: pb.ModelConfig, refuse: Refuse) -> None:
    if message.backend == TEXT_BACKEND:
        if message.platform:
            refuse("platform", f"is '{message.platform}'; beside backend: \"{TEXT_BACKEND}\" there is none")
        return
    if message.platform not in ("", _PLATFORM):
        refuse("platform", _FOREIGN.get(message.platform, f"'{message.platform}' is not known here") + _ONLY_ONNX)
    if message.backend not in ("", _BACKEND):
        refuse("backend", _FOREIGN.get(message.backend, f"'{message.backend}' is not known here") + _ONLY_ONNX)
    if not message.platform and not message.backend:
        refuse("backend", f'is not set; write backend: "{_BACKEND}"')


_FOREIGN = {
    "tensorrt_plan": "a TensorRT plan needs Triton Inference Server on the GPU it was built for",
    "tensorrt": "a TensorRT plan needs Triton Inference Server on the GPU it was built for",
    "python": "a Python model needs Triton Inference Server; say it in processing.yaml here",
    "pytorch": "TorchScript needs Triton Inference Server",
    "pytorch_libtorch": "TorchScript needs Triton Inference Server",
    "tensorflow": "a TensorFlow model needs Triton Inference Server",
    "tensorflow_savedmodel": "a TensorFlow model needs Triton Inference Server",
    "tensorflow_graphdef": "a TensorFlow model needs Triton Inference Server",
    "openvino": "an OpenVINO model needs Triton Inference Server",
}
_ONLY_ONNX = (
    f'; the embedded engine serves ONNX files: backend "{_BACKEND}" (platform "{_PLATFORM}"), '
    f'and models that write text: backend "{TEXT_BACKEND}"'
)


def _decoupled(message: pb.ModelConfig, parameters: Mapping[str, str], refuse: Refuse) -> bool:
    """Several responses to a request go together with nothing that has one answer, or one pass, of many in mind."""
    if not message.model_transaction_policy.decoupled:
        return False
    others = {
        "sequence_batching": message.HasField("sequence_batching"),
        "dynamic_batching.preserve_ordering": message.dynamic_batching.preserve_ordering,
        "response_cache": message.response_cache.enable,
        LENGTH_BUCKETS: LENGTH_BUCKETS in parameters,
    }
    for other, there in others.items():
        if there:
            refuse("model_transaction_policy.decoupled", f"is true, which does not go together with {other}")
    return True


def _check_parameters(message: pb.ModelConfig, refuse: Refuse) -> None:
    """Of an ensemble, which has no engine that would refuse them."""
    for key in message.parameters:
        if key != _SLO:
            refuse(f'parameters["{key}"]', f"is not for an ensemble, which takes {_SLO}; its steps' models have theirs")


def read_slo_ms(message: pb.ModelConfig, refuse: Refuse) -> float:
    """The latency objective; 0: none."""
    if _SLO not in message.parameters:
        return 0
    text = message.parameters[_SLO].string_value
    try:
        value = float(text)
    except ValueError:
        value = 0
    if not 0 < value < _LONGEST_SLO_MS:
        refuse(f'parameters["{_SLO}"]', f"is '{text}', it must be a number of milliseconds above 0")
    return value


def read_fair_by_tenant(message: pb.ModelConfig, refuse: Refuse) -> bool:
    """Whether tenants share the queue."""
    if _FAIR_BY not in message.parameters:
        return False
    text = message.parameters[_FAIR_BY].string_value
    if text != _TENANT:
        refuse(f'parameters["{_FAIR_BY}"]', f"is '{text}', it must be '{_TENANT}'")
    if message.HasField("sequence_batching"):
        refuse(f'parameters["{_FAIR_BY}"]', "is for models without sequence_batching: sequences have slots, not places")
    return True


def _response_cache(message: pb.ModelConfig, refuse: Refuse) -> bool:
    if not message.response_cache.enable:
        return False
    if message.HasField("sequence_batching"):
        refuse(_CACHE, "is for models without sequence_batching: an answer depends on the requests before it")
    if message.dynamic_batching.preserve_ordering:
        refuse(
            _CACHE, "can't be had beside preserve_ordering: an answer that is kept does not wait for those before it"
        )
    return True


def _inside(path: str, filename: str, refuse: Refuse) -> str:
    """`filename` if it stays in its folder."""
    parts = PurePosixPath(filename)
    if parts.is_absolute() or ".." in parts.parts or parts.name in ("", ".") or "\x00" in filename:
        refuse(path, f"'{filename}' must be a file below the model's folder")
    return filename
