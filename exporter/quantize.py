"""Smaller and faster copies of an exported model: INT8 (dynamic or static), FP16, and the graph optimised beforehand.

What a copy is worth is measured, not promised (`exporter.variants`). By ONNX Runtime's own tools:

    optimized     ONNX Runtime's graph optimisations, saved: what each load would do again
    int8-dynamic  weights INT8 for good, activations anew in each pass, by the range that they have there: no data is
                  needed, and a row's answer moves a little with the rows that share its batch
    int8-static   activations too by ranges that training rows have shown: the same whatever the batch
    fp16          half of the bytes; for GPUs, a CPU computes it by way of FP32
"""

from __future__ import annotations

import io
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort

from exporter.errors import ExportError
from exporter.onnx import IR_VERSION
from exporter.recipes.base import Arrays, Split, Task

CALIBRATION_ROWS = 256
_CALIBRATION_BATCH = 16
_CONTRIBUTED = "com.microsoft"
"""ONNX Runtime's own operators, GELU among them."""
_LINEAR = ("MatMul", "Gemm")
"""What a transformer spends its time on."""


@dataclass(frozen=True, slots=True)
class Variant:
    """One way to make a copy."""

    name: str
    precision: str
    """As in the manifest."""
    make: Callable[[Path, Path, Sequence[Arrays]], None]
    """From a model's file to another, with inputs of training rows to look at."""


def make(variant: Variant, source: Path, target: Path, batches: Sequence[Arrays] = ()) -> None:
    """Write the copy. `batches` as `calibration` gives them, for a variant that looks at them.

    Raises:
        ExportError: ONNX Runtime's tools can't, or what they write does not load.
    """
    try:
        with _quiet():
            variant.make(source, target, batches)
            model = onnx.load(target)
            model.ir_version = min(model.ir_version, IR_VERSION)
            target.write_bytes(model.SerializeToString(deterministic=True))
    except Exception as error:  # the tools raise whatever they like
        target.unlink(missing_ok=True)
        raise ExportError(f"{variant.name}: no copy of {source.name} can be made: {error}") from error


def is_optimized(file: Path) -> bool:
    """Whether ONNX Runtime's optimiser has written it: such a file names the domains of all that it may hold."""
    return any(
        entry.domain == f"{_CONTRIBUTED}.nchwc" for entry in onnx.load(file, load_external_data=False).opset_import
    )


def calibration(task: Task) -> list[Arrays]:
    """Inputs of training rows, spread over the split, in batches; the same each time."""
    size = task.size(Split.TRAIN)
    rows = np.unique(np.linspace(0, size - 1, min(size, CALIBRATION_ROWS)).astype(np.int64))
    parts = np.array_split(rows, -(-len(rows) // _CALIBRATION_BATCH))
    return [task.batch(Split.TRAIN, part, 0)[0] for part in parts]


def _optimized(source: Path, target: Path, _: Sequence[Arrays]) -> None:
    with _prepared(source) as prepared:
        _save_optimized(prepared, target)


def _save_optimized(source: Path, target: Path) -> None:
    options = ort.SessionOptions()
    options.log_severity_level = 4
    # Not all of them: the last level lays memory out for this very CPU.
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    options.optimized_model_filepath = str(target)
    ort.InferenceSession(source, options, providers=["CPUExecutionProvider"])


def _dynamic(source: Path, target: Path, _: Sequence[Arrays]) -> None:
    from onnxruntime.quantization import QuantType, quantize_dynamic

    # The tables of embeddings too: most of a small encoder's bytes.
    operators = [*_quantized(source), *(["Gather"] if _is_transformer(source) else [])]
    with _prepared(source, approximate=True) as prepared:
        quantize_dynamic(
            prepared, target, op_types_to_quantize=operators, weight_type=QuantType.QInt8, per_channel=True
        )


def _static(source: Path, target: Path, batches: Sequence[Arrays]) -> None:
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

    class Reader(CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self._batches = iter(batches)

        def get_next(self) -> Arrays | None:
            return next(self._batches, None)

    with _prepared(source, approximate=True) as prepared:
        quantize_static(
            prepared,
            target,
            Reader(),
            quant_format=QuantFormat.QDQ,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            per_channel=True,
            op_types_to_quantize=_quantized(source),
            # Of attention's products both sides are activations; to round them costs accuracy.
            extra_options={"MatMulConstBOnly": True},
        )


def _half(source: Path, target: Path, _: Sequence[Arrays]) -> None:
    from onnxruntime.transformers.float16 import convert_float_to_float16

    onnx.save(convert_float_to_float16(onnx.load(source), keep_io_types=True), target)


VARIANTS: Mapping[str, Variant] = {
    variant.name: variant
    for variant in (
        Variant("optimized", "fp32-optimized", _optimized),
        Variant("int8-dynamic", "int8-dynamic", _dynamic),
        Variant("int8-static", "int8-static", _static),
        Variant("fp16", "fp16", _half),
    )
}


def _quantized(source: Path) -> list[str]:
    """The operators that are quantised: convolutions too, where a model has them."""
    graph = onnx.load(source, load_external_data=False).graph
    has_convolutions = any(node.op_type == "Conv" for node in graph.node)
    return ["Conv", *_LINEAR] if has_convolutions else list(_LINEAR)


@contextmanager
def _prepared(source: Path, *, approximate: bool = False) -> Iterator[Path]:
    """The model with shapes inferred and folded where it can be, as the tools ask for; a transformer rewritten."""
    from onnxruntime.quantization.shape_inference import quant_pre_process

    with TemporaryDirectory() as folder:
        prepared = Path(folder) / source.name
        if _is_transformer(source):
            _rewrite_transformer(source, prepared, approximate=approximate)
        else:
            quant_pre_process(source, prepared, skip_symbolic_shape=True)
        yield prepared


def _is_transformer(source: Path) -> bool:
    graph = onnx.load(source, load_external_data=False).graph
    return {"LayerNormalization", "Softmax"} <= {node.op_type for node in graph.node}


def _rewrite_transformer(source: Path, target: Path, *, approximate: bool) -> None:
    """GELU as one operator, and sums before a norm that stay apart from it.

    `approximate`: GELU by tanh, which is off by less than what INT8 rounds. On CPUs ONNX Runtime's
    SkipLayerNormalization, which it makes of an Add and a norm at each load, takes longer than the two; of a Sum it
    makes none. `loadtests.benchmarks.minilm` shows what both are worth.
    """
    from onnxruntime.transformers.fusion_options import FusionOptions
    from onnxruntime.transformers.optimizer import optimize_model

    options = FusionOptions("bert")
    options.enable_skip_layer_norm = options.enable_attention = options.enable_embed_layer_norm = False
    options.enable_gelu_approximation = approximate
    optimized = optimize_model(
        str(source), model_type="bert", num_heads=0, hidden_size=0, opt_level=0, optimization_options=options
    )
    model: onnx.ModelProto = optimized.model
    makers = {name: node for node in model.graph.node for name in node.output}
    for node in model.graph.node:
        maker = makers.get(node.input[0]) if node.op_type == "LayerNormalization" else None
        if maker is not None and maker.op_type == "Add":
            maker.op_type = "Sum"
    if all(entry.domain != _CONTRIBUTED for entry in model.opset_import):
        model.opset_import.append(onnx.helper.make_opsetid(_CONTRIBUTED, 1))
    onnx.save(model, target)


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the tools' advice on what was just done."""
    before: Any = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with redirect_stdout(io.StringIO()):
            yield
    finally:
        logging.disable(before)
