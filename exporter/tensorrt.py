"""An exported model as a TensorRT plan, for Triton's tensorrt_plan: an optimisation profile for each length bucket.

It takes the package `tensorrt` and an NVIDIA GPU of the kind that will serve: a plan runs on no other kind. Where
either is missing, that is what is said. It calls TensorRT as the Python bindings of 10.16 and 11.4 declare; it has not
been run on a GPU yet.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from exporter import quantize
from exporter.errors import ExportError, UsageError
from server.errors import ServingError
from server.repository.model_config import ModelConfig, read_model_config
from server.whole import replacing

PLAN_FILE = "model.plan"
TIMING_CACHE_FILE = "timing.cache"
"""What TensorRT measured of its kernels: the next build on the same kind of GPU takes seconds instead of minutes."""
_LONGEST = 512
"""Of a dim without a length bucket."""

Shape = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Profile:
    """The smallest, the most usual and the largest shape of each input."""

    shapes: Mapping[str, tuple[Shape, Shape, Shape]]


def profiles(config: ModelConfig) -> list[Profile]:
    """The batches that the config lets come: rows from 1, usually the largest preferred size, at most max_batch_size.

    With length buckets a profile for each of them: a kernel for rows of 16 is not the one for rows of 512.
    """
    most = max(config.max_batch_size, 1)
    batching = config.dynamic_batching
    usual = max((*(batching.preferred_batch_size if batching is not None else ()), 1))
    usual = usual if usual > 1 else most
    lengths = config.buckets.lengths if config.buckets is not None else (_LONGEST,)
    found = []
    for before, length in zip((0, *lengths), lengths, strict=False):
        shapes = {}
        for spec in config.inputs:
            least, largest = (tuple(size if d == -1 else d for d in spec.dims) for size in (before + 1, length))
            rows = ((1,), (usual,), (most,)) if config.max_batch_size else ((), (), ())
            shapes[spec.name] = (rows[0] + least, rows[1] + largest, rows[2] + largest)
        found.append(Profile(shapes))
        if all(-1 not in spec.dims for spec in config.inputs):
            break
    return found


def served_by(config: ModelConfig) -> str:
    """What config.pbtxt says of the plan in Triton, which uses the first profile alone unless all are named."""
    names = ", ".join(f'"{index}"' for index in range(len(profiles(config))))
    return f'platform: "tensorrt_plan" instance_group {{ kind: KIND_GPU profile: [ {names} ] }}'


def missing() -> str:
    """What a plan can't be built without here; empty where nothing is missing."""
    lacking = []
    if find_spec("tensorrt") is None:
        lacking.append("the package tensorrt (pip install tensorrt)")
    if not torch.cuda.is_available():
        lacking.append("an NVIDIA GPU that PyTorch sees")
    return " and ".join(lacking)


def build(model: Path, config: ModelConfig, folder: Path, *, half: bool = False, workspace_mib: int = 2048) -> Path:
    """Build `folder`/model.plan of an ONNX file, with a timing cache beside it, and return its path.

    `half`: of the model's FP16 copy (`exporter.quantize`). Types are those of the file in either case: since version 11
    TensorRT chooses none by itself. A build that fails leaves plan and cache as they were.

    Raises:
        UsageError: TensorRT or a GPU is missing; names which.
        ExportError: TensorRT refuses the model, a profile, the cache or the whole; names which, and why if it says so.
    """
    lacking = missing()
    if lacking:
        raise UsageError(f"a TensorRT plan takes {lacking}, which this machine does not have")
    trt: Any = import_module("tensorrt")  # no stubs, and seldom here

    logger = trt.Logger(trt.Logger.WARNING)
    builder = _asked("to start: driver and GPU must be known to it", None, trt.Builder, logger)
    typed = 1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED)
    network = _asked("a network", None, builder.create_network, typed)
    with _source(model, half) as source:
        _parse(trt.OnnxParser(network, logger), source)
    settings = _asked("a configuration", None, builder.create_builder_config)
    workspace = workspace_mib << 20
    _asked("the workspace", False, settings.set_memory_pool_limit, trt.MemoryPoolType.WORKSPACE, workspace)
    for each in profiles(config):
        _add(settings, each, _asked("a profile", None, builder.create_optimization_profile))
    folder.mkdir(parents=True, exist_ok=True)
    cache = _timing_cache(settings, folder / TIMING_CACHE_FILE)
    plan = _asked(f"to build {model.name}", None, builder.build_serialized_network, network, settings)
    _write(folder / TIMING_CACHE_FILE, _asked("to give its timing cache", None, cache.serialize))
    return _write(folder / PLAN_FILE, plan)


def build_for(run: Path, model: Path, *, half: bool = False, workspace_mib: int = 2048) -> tuple[Path, str]:
    """Build the plan of a run's exported model, by the config of the published one, into the run's folder.

    Returns its path, and what config.pbtxt says of it.

    Raises:
        UsageError, ExportError: as `build`; or the run has no model, or it is not published.
    """
    source = run / "model.onnx"
    if not source.is_file():
        raise UsageError(f"{source} is not there; write it with: export")
    try:
        config = read_model_config(model)
    except ServingError as error:
        raise UsageError(f"{model} has no config that can be read: {error}") from error
    plan = build(source, config, run / "tensorrt", half=half, workspace_mib=workspace_mib)
    return plan, served_by(config)


def _asked(what: str, refusal: object, call: Callable[..., Any], *arguments: object) -> Any:
    """What TensorRT answers. Raises ExportError where it raises, or where `refusal` is its answer."""
    try:
        found = call(*arguments)
    except Exception as error:  # of C++, by way of the bindings: TypeError, ValueError, RuntimeError
        raise ExportError(f"TensorRT refuses {what}: {error}") from error
    if type(found) is type(refusal) and found == refusal:
        raise ExportError(f"TensorRT refuses {what}; its log above says why")
    return found


@contextmanager
def _source(model: Path, half: bool) -> Iterator[Path]:
    with TemporaryDirectory() as folder:
        if half:
            target = Path(folder) / model.name
            quantize.make(quantize.VARIANTS["fp16"], model, target)
            model = target
        yield model


def _parse(parser: Any, model: Path) -> None:
    try:
        _asked(f"to read {model.name}", False, parser.parse, model.read_bytes())
    except ExportError as error:
        problems = "; ".join(str(parser.get_error(index)) for index in range(parser.num_errors))
        raise ExportError(f"TensorRT can't read {model.name}: {problems}" if problems else str(error)) from error


def _add(settings: Any, wanted: Profile, profile: Any) -> None:
    for name, shapes in wanted.shapes.items():
        least, usual, largest = shapes
        told = f"for input {name!r} the shapes {least} to {largest}, usually {usual}"
        # It answers nothing, and raises; bindings of older versions answered whether they took it.
        _asked(told, False, profile.set_shape, name, least, usual, largest)
    told = ", ".join(f"{name} {least} to {largest}" for name, (least, _, largest) in wanted.shapes.items())
    _asked(f"the profile of {told}", -1, settings.add_optimization_profile, profile)


def _timing_cache(settings: Any, path: Path) -> Any:
    kept = path.read_bytes() if path.exists() else b""
    told = f"{path}: it is damaged, or of another GPU or version; remove it" if kept else "an empty timing cache"
    cache = _asked(told, None, settings.create_timing_cache, kept)
    _asked(told, False, settings.set_timing_cache, cache, False)
    return cache


def _write(path: Path, content: Any) -> Path:
    with replacing(path) as partial:
        partial.write_bytes(memoryview(content))
    return path
