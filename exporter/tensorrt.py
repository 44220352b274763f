"""An exported model as a TensorRT plan, for Triton's tensorrt_plan: an optimisation profile for each length bucket.

It takes the package `tensorrt` and an NVIDIA GPU of the kind that will serve: a plan runs on no other kind. Where
either is missing, that is what is said. The build follows TensorRT's documentation; it has not been run on a GPU yet.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from exporter.errors import ExportError, UsageError
from server.errors import ServingError
from server.repository.model_config import ModelConfig, read_model_config

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

    `half` lets TensorRT compute in FP16 where that is quicker.

    Raises:
        UsageError: TensorRT or a GPU is missing; names which.
        ExportError: TensorRT can't read the model, or builds no engine for these profiles.
    """
    lacking = missing()
    if lacking:
        raise UsageError(f"a TensorRT plan takes {lacking}, which this machine does not have")
    trt: Any = import_module("tensorrt")  # no stubs, and seldom here

    logger = trt.Logger(trt.Logger.WARNING)
    builder = trt.Builder(logger)
    network = builder.create_network(0)
    parser = trt.OnnxParser(network, logger)
    if not parser.parse(model.read_bytes()):
        problems = "; ".join(str(parser.get_error(index)) for index in range(parser.num_errors))
        raise ExportError(f"TensorRT can't read {model.name}: {problems}")
    settings = builder.create_builder_config()
    settings.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, workspace_mib << 20)
    if half:
        settings.set_flag(trt.BuilderFlag.FP16)
    for each in profiles(config):
        profile = builder.create_optimization_profile()
        for name, (least, usual, largest) in each.shapes.items():
            profile.set_shape(name, least, usual, largest)
        settings.add_optimization_profile(profile)
    folder.mkdir(parents=True, exist_ok=True)
    cache = _timing_cache(settings, folder / TIMING_CACHE_FILE)
    serialized = builder.build_serialized_network(network, settings)
    if serialized is None:
        raise ExportError(f"TensorRT built no engine of {model.name}; its log above says why")
    (folder / TIMING_CACHE_FILE).write_bytes(bytes(cache.serialize()))
    plan = folder / PLAN_FILE
    plan.write_bytes(bytes(serialized))
    return plan


def build_for(run: Path, model: Path, *, half: bool = False, workspace_mib: int = 2048) -> Path:
    """Build the plan of a run's exported model, by the config of the published one, into the run's folder.

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
    return build(source, config, run / "tensorrt", half=half, workspace_mib=workspace_mib)


def _timing_cache(settings: Any, path: Path) -> Any:
    cache = settings.create_timing_cache(path.read_bytes() if path.exists() else b"")
    settings.set_timing_cache(cache, ignore_mismatch=False)
    return cache
