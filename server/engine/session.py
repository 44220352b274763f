"""From a model's config to ONNX Runtime's own terms: parameters, threads, execution providers. Pure.

Names are those of Triton's ONNX Runtime backend, so that one config.pbtxt means the same on both. What is
not in a table here is refused by name.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from server.engine.base import Accelerator, EngineSpec, InstanceGroup
from server.errors import ModelLoadFailed

CONFIG_FILE = "config.pbtxt"
CPU = "CPUExecutionProvider"
CUDA = "CUDAExecutionProvider"
TENSORRT = "TensorrtExecutionProvider"

Provider = tuple[str, dict[str, str]]


@dataclass(frozen=True, slots=True)
class Parameters:
    """`parameters` of config.pbtxt. Source: Triton's onnxruntime_backend, "Model Config Options"."""

    intra_op_thread_count: int = 0
    """0: the cores that the engine may use, shared out over the instances on the CPU."""
    inter_op_thread_count: int = 0
    execution_mode: int = 0
    """0 sequential, 1 parallel."""
    enable_mem_arena: bool = True
    enable_mem_pattern: bool = True
    share_session_between_instances: bool = False
    """One session, and so one copy of the weights, for all instances of a group on one device."""
    use_device_allocator_for_initializers: bool = False


@dataclass(frozen=True, slots=True)
class Placement:
    """One instance to be: its name, its device and the providers to try, best first."""

    name: str
    device: str
    """``cpu`` or ``gpu0``; part of the name."""
    group: int
    providers: tuple[Provider, ...] = field(default=((CPU, {}),))

    @property
    def on_gpu(self) -> bool:
        return self.device != "cpu"


def parse_parameters(spec: EngineSpec) -> Parameters:
    """Raises ModelLoadFailed for a key that is not honoured or a value that can't be read."""
    values: dict[str, Any] = {}
    for key, text in spec.parameters.items():
        where = f'{CONFIG_FILE}: parameters["{key}"]'
        if key not in _PARAMETERS:
            known = ", ".join(_PARAMETERS)
            raise ModelLoadFailed(spec.model_name, where, f"is not honoured; the engine knows {known}")
        name, parse = _PARAMETERS[key]
        try:
            values[name] = parse(text)
        except ValueError as error:
            raise ModelLoadFailed(spec.model_name, where, f"is '{text}', it must be {error}") from error
    return Parameters(**values)


def _count(text: str) -> int:
    if not text.strip().isdecimal() or int(text) > 1024:
        raise ValueError("a whole number from 0 to 1024")
    return int(text)


def _mode(text: str) -> int:
    if text.strip() not in ("0", "1"):
        raise ValueError("0 (sequential) or 1 (parallel)")
    return int(text)


def _flag(text: str) -> bool:
    if text.strip().lower() not in ("0", "1", "true", "false"):
        raise ValueError("0, 1, true or false")
    return text.strip().lower() in ("1", "true")


_PARAMETERS: Mapping[str, tuple[str, Callable[[str], Any]]] = {
    "intra_op_thread_count": ("intra_op_thread_count", _count),
    "inter_op_thread_count": ("inter_op_thread_count", _count),
    "execution_mode": ("execution_mode", _mode),
    "enable_mem_arena": ("enable_mem_arena", _flag),
    "enable_mem_pattern": ("enable_mem_pattern", _flag),
    "share_session_between_instances": ("share_session_between_instances", _flag),
    "session.use_device_allocator_for_initializers": ("use_device_allocator_for_initializers", _flag),
}


def place(spec: EngineSpec, available: Collection[str], gpus: Sequence[int]) -> list[Placement]:
    """Every instance of `spec`, on the devices that are there.

    `available` are the providers of this build of ONNX Runtime, `gpus` the CUDA devices of the machine. A
    group of KIND_AUTO goes to the GPUs if there are any, else to the CPU.

    Raises:
        ModelLoadFailed: a GPU or a provider that the config demands is missing, or an accelerator or one of
            its parameters is not known.
    """
    gpu_providers = _gpu_providers(spec)
    placements: list[Placement] = []
    for index, group in enumerate(spec.instance_groups):
        where = f"{CONFIG_FILE}: instance_group[{index}]"
        missing = no_gpu(available, gpus, group)
        if group.kind == "KIND_GPU" and missing:
            raise ModelLoadFailed(spec.model_name, where, f"KIND_GPU: {missing}")
        on_gpu = group.kind != "KIND_CPU" and not missing
        devices: Sequence[int | None] = (group.gpus or tuple(gpus)) if on_gpu else (None,)
        placements.extend(
            _placement(spec, index, group, device, copy, gpu_providers)
            for device in devices
            for copy in range(group.count)
        )
    if gpu_providers and all(group.kind == "KIND_CPU" for group in spec.instance_groups):
        raise ModelLoadFailed(
            spec.model_name,
            f"{CONFIG_FILE}: optimization.execution_accelerators.gpu_execution_accelerator",
            "is set, and every instance_group is KIND_CPU",
        )
    for name, _ in gpu_providers:
        if name not in available and any(placement.on_gpu for placement in placements):
            raise ModelLoadFailed(spec.model_name, _accelerators("gpu"), f"this build of ONNX Runtime has no {name}")
    return placements


def no_gpu(available: Collection[str], gpus: Sequence[int], group: InstanceGroup) -> str:
    """Why `group` can't run on its GPUs; empty if it can."""
    if CUDA not in available:
        return f"this build of ONNX Runtime has no {CUDA}; install forwardpass[gpu] instead of forwardpass[cpu]"
    if not gpus:
        return "this machine shows no CUDA device"
    absent = [str(gpu) for gpu in group.gpus if gpu not in gpus]
    return f"there is no GPU {', '.join(absent)}" if absent else ""


def _placement(
    spec: EngineSpec, index: int, group: InstanceGroup, gpu: int | None, copy: int, accelerators: Sequence[Provider]
) -> Placement:
    device = "cpu" if gpu is None else f"gpu{gpu}"
    # Triton's naming: model_group_copy, with the device, so that two devices of one group stay apart.
    name = f"{group.name or f'{spec.model_name}_{index}'}_{copy}_{device}"
    if gpu is None:
        return Placement(name, device, index)
    chosen = dict(accelerators)
    chosen.setdefault(CUDA, {})
    ordered = [
        (provider, {"device_id": str(gpu), **chosen[provider]}) for provider in (TENSORRT, CUDA) if provider in chosen
    ]
    return Placement(name, device, index, (*ordered, (CPU, {})))


def _accelerators(device: str) -> str:
    return f"{CONFIG_FILE}: optimization.execution_accelerators.{device}_execution_accelerator"


def _gpu_providers(spec: EngineSpec) -> list[Provider]:
    for accelerator in spec.cpu_accelerators:
        problem = f"'{accelerator.name}' is not served here; on the CPU ONNX Runtime's own kernels run"
        raise ModelLoadFailed(spec.model_name, _accelerators("cpu"), problem)
    found: dict[str, dict[str, str]] = {}
    for accelerator in spec.gpu_accelerators:
        if accelerator.name not in _ACCELERATORS:
            problem = f"'{accelerator.name}' is not served here; known are {', '.join(_ACCELERATORS)}"
            raise ModelLoadFailed(spec.model_name, _accelerators("gpu"), problem)
        provider, table = _ACCELERATORS[accelerator.name]
        if provider in found:
            raise ModelLoadFailed(spec.model_name, _accelerators("gpu"), f"'{accelerator.name}' is there twice")
        found[provider] = dict(_options(spec, accelerator, table))
    return list(found.items())


def _options(spec: EngineSpec, accelerator: Accelerator, table: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    for key, value in accelerator.parameters.items():
        where = f'{_accelerators("gpu")} "{accelerator.name}": parameters["{key}"]'
        if key == "precision_mode" and accelerator.name == "tensorrt":
            if value not in _PRECISION:
                raise ModelLoadFailed(spec.model_name, where, f"is '{value}', it must be {', '.join(_PRECISION)}")
            yield from _PRECISION[value].items()
        elif key in table:
            yield table[key], value
        else:
            known = ", ".join(["precision_mode", *table] if accelerator.name == "tensorrt" else table)
            raise ModelLoadFailed(spec.model_name, where, f"is not honoured; known are {known}")


_PRECISION: Mapping[str, Mapping[str, str]] = {
    "FP32": {},
    "FP16": {"trt_fp16_enable": "1"},
    "BF16": {"trt_bf16_enable": "1"},
    "INT8": {"trt_int8_enable": "1"},
}

_TENSORRT_RENAMED = {
    "max_workspace_size_bytes": "trt_max_workspace_size",
    "int8_calibration_table_name": "trt_int8_calibration_table_name",
    "int8_use_native_calibration_table": "trt_int8_use_native_calibration_table",
}
_TENSORRT_SAME = (
    "trt_max_partition_iterations",
    "trt_min_subgraph_size",
    "trt_engine_cache_enable",
    "trt_engine_cache_path",
    "trt_engine_cache_prefix",
    "trt_force_sequential_engine_build",
    "trt_context_memory_sharing_enable",
    "trt_layer_norm_fp32_fallback",
    "trt_timing_cache_enable",
    "trt_timing_cache_path",
    "trt_force_timing_cache",
    "trt_detailed_build_log",
    "trt_build_heuristics_enable",
    "trt_sparsity_enable",
    "trt_builder_optimization_level",
    "trt_auxiliary_streams",
    "trt_tactic_sources",
    "trt_profile_min_shapes",
    "trt_profile_max_shapes",
    "trt_profile_opt_shapes",
    "trt_cuda_graph_enable",
)
_CUDA_SAME = (
    "arena_extend_strategy",
    "cudnn_conv1d_pad_to_nc1d",
    "cudnn_conv_algo_search",
    "cudnn_conv_use_max_workspace",
    "do_copy_in_default_stream",
    "gpu_mem_limit",
    "prefer_nhwc",
    "use_ep_level_unified_stream",
    "use_tf32",
)
_ACCELERATORS: Mapping[str, tuple[str, Mapping[str, str]]] = {
    "tensorrt": (TENSORRT, {**_TENSORRT_RENAMED, **{name: name for name in _TENSORRT_SAME}}),
    "cuda": (CUDA, {name: name for name in _CUDA_SAME}),
}
"""Triton's name of an accelerator -> ONNX Runtime's provider, and its parameter names -> the provider's."""
