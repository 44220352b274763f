"""PyTorch to ONNX, in a form that ONNX Runtime 1.19 reads (Triton 24.10 has that one)."""

from __future__ import annotations

import inspect
import io
import logging
import warnings
from collections.abc import Sequence
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from torch import nn

from exporter.errors import ExportError
from exporter.recipes.base import Arrays, Split, Task
from exporter.run import predictor, tensors_of
from server.tensor import TensorSpec

OPSET = 18
IR_VERSION = 10
"""The newest that ONNX Runtime 1.19 reads. Source: onnxruntime's docs/Versioning.md."""

SAMPLE_ROWS = 3
"""Neither 0 nor 1, which `torch.export` would take for a constant."""


def export(task: Task, network: nn.Module, path: Path) -> None:
    """Write the network (in evaluation mode) to `path`, its batch dimension dynamic, its tensors named by the task.

    The weights are in the file itself. The same network gives the same bytes.

    Raises:
        ExportError: PyTorch can't export the network, or what it wrote is not valid ONNX.
    """
    rows = np.arange(SAMPLE_ROWS) % task.size(Split.TEST)
    arrays, _ = task.batch(Split.TEST, rows, 0)
    try:
        model = _exported(task, network, tensors_of(task, arrays))
        onnx.checker.check_model(model, full_check=True)
    except Exception as error:  # torch.export, onnxscript and onnx each have exceptions of their own
        raise ExportError(f"the network can't be exported: {error}") from error
    path.write_bytes(model.SerializeToString(deterministic=True))


class TrainedNetwork:
    """`exporter.recipes.base.Trained` of PyTorch: a task's network in evaluation mode."""

    framework = "PyTorch"

    def __init__(self, task: Task, network: nn.Module) -> None:
        self.network = network
        self._task = task
        self._predict = predictor(task, network)

    @property
    def size(self) -> str:
        return f"{sum(parameter.numel() for parameter in self.network.parameters()):,} parameters"

    def predict(self, arrays: Arrays) -> Arrays:
        return self._predict(arrays)

    def export(self, path: Path) -> None:
        export(self._task, self.network, path)


def _exported(task: Task, network: nn.Module, sample: tuple[torch.Tensor, ...]) -> onnx.ModelProto:
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            program = torch.onnx.export(
                network,
                sample,
                dynamo=True,
                opset_version=OPSET,
                input_names=[spec.name for spec in task.inputs],
                output_names=[spec.name for spec in task.outputs],
                dynamic_shapes=_dynamic_shapes(network, task.inputs),
                external_data=False,
                verbose=False,
            )
    finally:
        logger.setLevel(level)
    if program is None:
        raise ExportError("PyTorch gave no program")
    model: onnx.ModelProto = program.model_proto
    model.ir_version = IR_VERSION
    forget_origin(model)
    return model


def _dynamic_shapes(network: nn.Module, inputs: Sequence[TensorSpec]) -> tuple[Any, ...]:
    """The first dimension of each input is one and the same free one, and those of -1 are another.

    `*inputs` is one argument to PyTorch.
    """
    batch, length = torch.export.Dim("batch"), torch.export.Dim("length")
    shapes = tuple(
        {0: batch} | {place: length for place, size in enumerate(spec.dims, start=1) if size == -1} for spec in inputs
    )
    parameters = inspect.signature(network.forward).parameters.values()
    return (shapes,) if any(p.kind is inspect.Parameter.VAR_POSITIONAL for p in parameters) else shapes


def forget_origin(model: onnx.ModelProto) -> None:
    """Drop the notes of PyTorch's exporter: they hold paths and stack traces of this machine."""
    graph = model.graph
    parts: tuple[Any, ...] = (
        model,
        graph,
        *graph.node,
        *graph.value_info,
        *graph.input,
        *graph.output,
        *graph.initializer,
    )
    for part in parts:
        del part.metadata_props[:]
        part.doc_string = ""


def versions_of(path: Path) -> tuple[int, int]:
    """Opset and IR version of a model file. Raises ExportError if it is no ONNX."""
    try:
        model = onnx.load(path, load_external_data=False)
    except Exception as error:  # protobuf's DecodeError, OSError
        raise ExportError(f"{path} can't be read as ONNX: {error}") from error
    opset = next((entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")), 0)
    return opset, model.ir_version
