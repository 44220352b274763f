"""The embedded engine: ONNX Runtime sessions in this process.

Threads. Each session has its own intra-op pool; the cores that the process may use are shared out over the
instances on the CPU, since two pools of all cores would fight for them. The calling thread is one of a
pool's threads, so a pool of 1 starts none. Pool threads may spin between two operators (saves a wake-up of
some microseconds) only while all pools together leave a core free: a spinning thread would otherwise take
it from the event loop, which is where requests wait.

Weights. A session has its own copy (ONNX Runtime packs them for its kernels). With Triton's parameter
`share_session_between_instances` the instances of a group on one device run in one session: one copy, one
pool, and still one batch each, as a session may be run from several threads.
"""

from __future__ import annotations

import importlib
import logging
import os
import re
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from server.engine.base import EngineSpec
from server.engine.cores import available_cores, visible_gpus
from server.engine.ort_values import BFloat16Session, has_bfloat16
from server.engine.session import CONFIG_FILE, Parameters, Placement, no_gpu, parse_parameters, place
from server.engine.tensors import check_tensors
from server.errors import DeviceLost, EngineFailure, ModelLoadFailed, ServingError
from server.security.onnx_files import check_onnx
from server.tensor import Array
from server.types import Batch

__all__ = ["OnnxRuntimeEngine", "available_cores"]

log = logging.getLogger(__name__)

_SILENT = 4
"""Only fatal messages of ONNX Runtime's own logger: an error is raised as well, and logged where it is mapped."""

_NOISE = (
    (re.compile(r"\[ONNXRuntimeError\] : \d+ : \w+ : "), ""),
    (re.compile(r"Load model from .*? failed:"), ""),
    # A C++ source position, with the signature or the name of its function.
    (re.compile(r"\S+\.(?:cc|h|cpp):\d+ (?:.*?\) (?=[A-Z])|\w+ )"), ""),
    (re.compile(r"\s+"), " "),
)


def _sentence(error: Exception) -> str:
    """What ONNX Runtime says is wrong. Its classes derive from Exception directly, and bad feeds raise ValueError or
    RuntimeError: so whoever calls it takes every Exception but our own for one of its."""
    return _clean(str(error) or type(error).__name__)


def _clean(text: str) -> str:
    for pattern, replacement in _NOISE:
        text = pattern.sub(replacement, text)
    return text.strip().rstrip(".")


class OnnxRuntimeEngine:
    """`threads` of one forward pass where a config sets none; 0: the available cores, shared out.

    Raises ImportError with what to install where there is no ONNX Runtime.
    """

    def __init__(self, threads: int = 0) -> None:
        try:
            self._ort: Any = importlib.import_module("onnxruntime")
        except ImportError as error:
            raise ImportError("there is no ONNX Runtime: install forwardpass[cpu] or forwardpass[gpu]") from error
        self._ort.set_default_logger_severity(_SILENT)
        self._threads = threads
        self._cores = available_cores()

    @property
    def name(self) -> str:
        return "onnxruntime"

    def load(self, spec: EngineSpec) -> OnnxRuntimeModel:
        """Load one version: a session for each instance, its tensors checked against the spec.

        Raises:
            ModelLoadFailed: see `server.engine.base.Engine.load`.
        """
        if spec.decoupled:
            where = f"{CONFIG_FILE}: model_transaction_policy.decoupled"
            raise ModelLoadFailed(spec.model_name, where, "is true, and an ONNX file gives one response to a request")
        parameters = parse_parameters(spec)
        available, gpus = self._ort.get_available_providers(), visible_gpus()
        placements = place(spec, available, gpus)
        _check_file(spec)
        for group in spec.instance_groups:
            if group.kind == "KIND_AUTO" and (reason := no_gpu(available, gpus, group)):
                log.info("model '%s': KIND_AUTO runs on the CPU: %s", spec.model_name, reason)
        instances: list[OnnxRuntimeInstance] = []
        shared: dict[tuple[int, str], Any] = {}
        for placement in placements:
            key = (placement.group, placement.device)
            session = shared.get(key) if parameters.share_session_between_instances else None
            if session is None:
                session = shared[key] = self._session(spec, placement, self._options(spec, parameters, placements))
            options = partial(self._options, spec, parameters, placements)
            instances.append(self._instance(spec, placement, session, options))
        return OnnxRuntimeModel(instances)

    def _instance(
        self, spec: EngineSpec, placement: Placement, session: Any, options: Callable[[], Any]
    ) -> OnnxRuntimeInstance:
        threads = 0 if placement.on_gpu else session.get_session_options().intra_op_num_threads
        seen = _mark(spec.path)

        def renew() -> OnnxRuntimeInstance:
            if _mark(spec.path) != seen:
                raise EngineFailure(spec.model_name, f"{placement.name}: its file has changed since it was loaded")
            return self._instance(spec, placement, self._session(spec, placement, options()), options)

        runs = self._runs(spec, session)
        return OnnxRuntimeInstance(spec, placement.name, placement.device, runs, threads, renew, self._ort.RunOptions())

    def _options(self, spec: EngineSpec, parameters: Parameters, placements: Sequence[Placement]) -> Any:
        on_cpu = [placement for placement in placements if not placement.on_gpu]
        pools = (
            len({placement.group for placement in on_cpu})
            if parameters.share_session_between_instances
            else len(on_cpu)
        )
        threads = parameters.intra_op_thread_count or self._threads or max(1, self._cores // max(1, pools))
        options = self._ort.SessionOptions()
        options.log_severity_level = _SILENT
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = parameters.inter_op_thread_count or (threads if parameters.execution_mode else 1)
        options.execution_mode = (self._ort.ExecutionMode.ORT_SEQUENTIAL, self._ort.ExecutionMode.ORT_PARALLEL)[
            parameters.execution_mode
        ]
        options.enable_cpu_mem_arena = parameters.enable_mem_arena
        options.enable_mem_pattern = parameters.enable_mem_pattern
        options.graph_optimization_level = self._graph_level(spec.graph_level)
        spin = threads * max(1, pools) < self._cores
        options.add_session_config_entry("session.intra_op.allow_spinning", "1" if spin else "0")
        options.add_session_config_entry("session.inter_op.allow_spinning", "1" if spin else "0")
        if parameters.use_device_allocator_for_initializers:
            options.add_session_config_entry("session.use_device_allocator_for_initializers", "1")
        return options

    def _graph_level(self, level: int) -> Any:
        levels = self._ort.GraphOptimizationLevel
        return {0: levels.ORT_ENABLE_ALL, 1: levels.ORT_ENABLE_EXTENDED, -1: levels.ORT_ENABLE_BASIC}.get(
            level, levels.ORT_DISABLE_ALL
        )

    def _session(self, spec: EngineSpec, placement: Placement, options: Any) -> Any:
        try:
            # Its fallback would try again on the CPU, and move a session there in the middle of serving.
            providers = list(placement.providers)
            session = self._ort.InferenceSession(str(spec.path), options, providers=providers, enable_fallback=0)
            check_tensors(
                spec, session.get_inputs(), session.get_outputs(), defaults=session.get_overridable_initializers()
            )
        except ServingError:
            raise
        except Exception as error:
            problem = _sentence(error).replace(f"{spec.path.parent}{os.sep}", "")
            detail = f"is no model that ONNX Runtime can load: {problem}"
            raise ModelLoadFailed(spec.model_name, _relative(spec), detail) from error
        # ONNX Runtime goes on without a provider that can't start (no driver, wrong CUDA) and says nothing.
        started = session.get_providers()
        absent = [name for name, _ in placement.providers if name not in started]
        if absent:
            self._without(spec, placement, absent)
        return session

    def _runs(self, spec: EngineSpec, session: Any) -> Any:
        """What runs the passes of `session`: itself, but where numpy's arrays do not do."""
        if not has_bfloat16(spec.inputs, spec.outputs):
            return session
        try:
            return BFloat16Session(self._ort.OrtValue, session)
        except AttributeError as error:
            problem = f"ONNX Runtime {self._ort.__version__} takes no BF16 tensors; install a later one"
            raise ModelLoadFailed(spec.model_name, _relative(spec), problem) from error

    def _without(self, spec: EngineSpec, placement: Placement, absent: Sequence[str]) -> None:
        group = spec.instance_groups[placement.group]
        problem = f"{', '.join(absent)} could not start on {placement.device}: check the driver and the CUDA libraries"
        if group.kind == "KIND_GPU":
            where = f"{CONFIG_FILE}: instance_group[{placement.group}]"
            raise ModelLoadFailed(spec.model_name, where, f"KIND_GPU: {problem}")
        log.warning("model '%s': %s; instance %s runs on what is left", spec.model_name, problem, placement.name)


class OnnxRuntimeInstance:
    """One session, or one share in a session, run by one thread at a time."""

    __slots__ = (
        "_encoded",
        "_model_name",
        "_options",
        "_rows_first",
        "_session",
        "_wanted",
        "device",
        "name",
        "renew",
        "threads",
    )

    def __init__(
        self,
        spec: EngineSpec,
        name: str,
        device: str,
        session: Any,
        threads: int,
        renew: Callable[[], OnnxRuntimeInstance],
        options: Any,
    ) -> None:
        """`threads`: of the session's pool, the caller's own included; 0 on a GPU. `renew` makes one for the place of
        this, which hangs. `options`: of its passes."""
        self.renew = renew
        self._options = options
        self.name = name
        self.device = device
        self.threads = threads
        self._model_name = spec.model_name
        self._session = session
        self._wanted = [output.name for output in spec.outputs]
        self._encoded = [tensor.name for tensor in spec.inputs if tensor.datatype == "BYTES"]
        self._rows_first = spec.max_batch_size > 0

    def interrupt(self) -> None:
        """Let the pass under way end at its next operator. From any thread; it runs nothing any more."""
        self._options.terminate = True

    def run(self, batch: Batch) -> Mapping[str, Array]:
        """See `server.engine.base.Instance.run`. BYTES outputs are object arrays of bytes."""
        feeds = batch.inputs
        try:
            if self._encoded:
                feeds = {**feeds, **{name: _to_text(feeds[name]) for name in self._encoded if name in feeds}}
            outputs = dict(zip(self._wanted, self._session.run(self._wanted, feeds, self._options), strict=True))
        except ServingError:
            raise
        except Exception as error:
            raise _failure(self._model_name, self.name, _sentence(error)) from error
        for name, array in outputs.items():
            if self._rows_first and (not array.ndim or array.shape[0] != batch.rows):
                detail = f"output '{name}' has shape {list(array.shape)} for a batch of {batch.rows} rows"
                raise EngineFailure(self._model_name, f"{self.name}: {detail}")
            if array.dtype.kind in "OU":
                outputs[name] = _to_bytes(array)
        return outputs


class OnnxRuntimeModel:
    """The sessions of one version."""

    def __init__(self, instances: Sequence[OnnxRuntimeInstance]) -> None:
        self._instances = list(instances)

    @property
    def instances(self) -> Sequence[OnnxRuntimeInstance]:
        return self._instances

    def close(self) -> None:
        """Let go of the sessions; ONNX Runtime frees each with its last reference."""
        self._instances.clear()


_LOST = re.compile(
    r"(CUDA failure|CUDA error|cudaError)[ :]*(4|46|79|100|101|214|700|701|702|709|710|71[4-9]|721|999)\b"
    r"|(CUBLAS|CUDNN) failure \d+: \w*(EXECUTION_FAILED|INTERNAL_ERROR|NOT_INITIALIZED)"
)
"""What CUDA says from the moment on that its context is broken, or its device gone; not that memory is short (2).
Source: the CUDA runtime's cudaError_t, "the process must be terminated and relaunched" and "no device"; the form is
that of ONNX Runtime's cuda_call.cc: ``CUDA failure 700: an illegal memory access was encountered ; GPU=0 ; ...``"""


def _failure(model_name: str, instance: str, detail: str) -> EngineFailure:
    kind = DeviceLost if _LOST.search(detail) else EngineFailure
    return kind(model_name, f"{instance}: {detail}")


def _to_text(array: Array) -> Array:
    """Elements as str, which is all that ONNX Runtime takes: bytes it would turn into their repr.

    ONNX strings are UTF-8, and a request whose BYTES are not is refused before it joins a batch; here, where
    neighbours share the batch, it is nobody's single fault any more and fails as the engine's.
    """
    text = np.empty(array.size, dtype=object)
    text[:] = [item if isinstance(item, str) else bytes(item).decode() for item in array.reshape(-1).tolist()]
    return text.reshape(array.shape)


def _to_bytes(array: Array) -> Array:
    packed = np.empty(array.size, dtype=object)
    packed[:] = [item if isinstance(item, bytes) else str(item).encode() for item in array.reshape(-1).tolist()]
    return packed.reshape(array.shape)


def _relative(spec: EngineSpec) -> str:
    return f"{spec.model_version}/{spec.path.name}"


def _mark(path: Path) -> tuple[int, int, int]:
    """Which file it is, and of when."""
    found = path.stat()
    return found.st_ino, found.st_mtime_ns, found.st_size


def _check_file(spec: EngineSpec) -> None:
    path: Path = spec.path
    problem = ""
    if path.is_dir():
        problem = "is a folder, not a model file"
    elif not path.is_file():
        problem = "there is no such file"
    elif not os.access(path, os.R_OK):
        problem = "can't be read: permission denied"
    elif not path.stat().st_size:
        problem = "is empty"
    if problem:
        raise ModelLoadFailed(spec.model_name, _relative(spec), problem)
    if path.suffix != ".ort":  # ONNX Runtime's own format, which names no files.
        check_onnx(spec.model_name, path, _relative(spec))
