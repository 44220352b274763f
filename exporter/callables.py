"""`export module:callable`: any PyTorch module, or a program of `torch.export`, with a free batch dimension.

The callable gives the module (or is it, or its class). Examples of its inputs are

    FILE.npz                            arrays by the names of the inputs
    module:function                     what gives a tensor, or several as a tuple or by name
    image=FP32[2,3,32,32],INT64[2,7]    seeded random ones; names are those of `forward`, where none stands

all with the batch in front. A batch of one is repeated: PyTorch takes a size of 1 for a constant.
"""

from __future__ import annotations

import inspect
import io
import logging
import re
import sys
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout
from importlib import import_module
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import onnx
import torch
from torch import nn

from exporter.brought import MAX_GOLDEN_ROWS, NO_PROCESSING, Brought, Processing, random_arrays
from exporter.errors import ExportError, UsageError
from exporter.onnx import IR_VERSION, OPSET, SAMPLE_ROWS, forget_origin
from exporter.recipes.base import Arrays
from server.tensor import DATATYPES, Array, TensorSpec, datatype_of

REFERENCE = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_][\w.]*")
_SPEC = re.compile(r"(?:(?P<name>[A-Za-z_]\w*)=)?(?P<datatype>[A-Z]+[0-9]*)\[(?P<dims>\d+(?:,\d+)*)\]")
DEFAULT_MAX_BATCH_SIZE = 64

Report = Callable[[str, Sequence[str]], None]
Program = torch.export.ExportedProgram


def export_callable(
    what: str,
    examples: str,
    name: str,
    repository: Path,
    report: Report,
    *,
    processing: Processing = NO_PROCESSING,
    max_batch_size: int = DEFAULT_MAX_BATCH_SIZE,
    replace: bool = False,
) -> None:
    """Export, verify and publish what `what` names, as the model `name`.

    Raises:
        UsageError: a reference or the examples can't be used.
        ExportError: PyTorch can't export it.
        VerifyError, PublishError: as for every model.
    """
    module = _module(what)
    given = _examples(examples, _input_names(module))
    rows = _rows(given)
    # A program knows its dimensions; PyTorch must not take those of a module's examples for constants.
    few = rows if isinstance(module, Program) else max(rows, SAMPLE_ROWS)
    sample = {name: _repeated(array, few) for name, array in given.items()}
    reference = _Reference(module, list(sample))
    names = list(reference(sample))
    with TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        path.write_bytes(_exported(module, sample, names).SerializeToString(deterministic=True))
        free = _free_batch(path)
        golden = {name: array[:MAX_GOLDEN_ROWS] for name, array in (sample if rows < 2 else given).items()}
        outputs = reference(golden)
        model = Brought(
            name=name,
            how="export",
            source=f"{what}, examples {examples}",
            file=path,
            inputs=_specs(golden, batched=free),
            outputs=_specs(outputs, batched=free),
            max_batch_size=max_batch_size if free else 0,
            examples=golden,
            reference=reference,
            framework="PyTorch",
            processing=processing,
        )
        report("export", [f"{what}: {path.stat().st_size:,} bytes, opset {OPSET}", _told(model)])
        published, measured = model.publish(repository, replace=replace)
    report(
        "verify", [f"{key}: PyTorch and ONNX Runtime differ by at most {e.max_abs:.2e}" for key, e in measured.items()]
    )
    report("publish", [f"{published.folder}, version {published.version}"])


def _told(model: Brought) -> str:
    inputs = ", ".join(f"{spec.name} {spec.datatype}{list(spec.dims)}" for spec in model.inputs)
    outputs = ", ".join(f"{spec.name} {spec.datatype}{list(spec.dims)}" for spec in model.outputs)
    batch = (
        f"batches up to {model.max_batch_size}" if model.max_batch_size else "no free batch dimension: one at a time"
    )
    return f"{inputs} -> {outputs}; {batch}"


class _Reference:
    """The module as a function on arrays, outputs by name."""

    def __init__(self, module: nn.Module | Program, inputs: Sequence[str]) -> None:
        self._call: Callable[..., Any] = module.module() if isinstance(module, Program) else module
        self._inputs = inputs

    def __call__(self, arrays: Arrays) -> Arrays:
        tensors = [torch.from_numpy(np.ascontiguousarray(arrays[name])) for name in self._inputs]
        try:
            with torch.inference_mode():
                found = self._call(*tensors)
        except Exception as error:
            raise UsageError(f"the module can't be run on the examples: {type(error).__name__}: {error}") from error
        return _by_name(found, "output")


def _by_name(found: object, word: str) -> Arrays:
    """A tensor or array, several of them, or several by name: arrays by name."""
    if isinstance(found, Mapping):
        several: Mapping[str, Any] = found
    elif isinstance(found, tuple | list):
        several = {f"{word}_{index}": one for index, one in enumerate(found)}
    else:
        several = {word: found}
    for name, one in several.items():
        if not isinstance(one, torch.Tensor | np.ndarray):
            raise UsageError(f"{word} {name!r} is a {type(one).__name__}, a tensor is wanted")
    return {name: one.detach().numpy() if isinstance(one, torch.Tensor) else one for name, one in several.items()}


def _module(what: str) -> nn.Module | Program:
    found = _named(what)
    if not isinstance(found, nn.Module | Program) and callable(found):
        try:
            found = found()
        except Exception as error:
            raise UsageError(f"{what} can't be called without arguments: {type(error).__name__}: {error}") from error
    if not isinstance(found, nn.Module | Program):
        raise UsageError(f"{what} gives a {type(found).__name__}, not an nn.Module or a program of torch.export")
    return found.eval() if isinstance(found, nn.Module) else found


def _named(reference: str) -> Any:
    """What ``module:attribute`` names; modules of the working directory are found. Raises UsageError."""
    if not REFERENCE.fullmatch(reference):
        raise UsageError(f"{reference!r}: module:callable is wanted, for example mypackage.models:build")
    module, _, path = reference.partition(":")
    with _beside():
        try:
            found: Any = import_module(module)
            for part in path.split("."):
                found = getattr(found, part)
        except Exception as error:
            raise UsageError(f"{reference} can't be imported: {type(error).__name__}: {error}") from error
    return found


@contextmanager
def _beside() -> Any:
    here = str(Path.cwd())
    added = here not in sys.path
    if added:
        sys.path.insert(0, here)
    try:
        yield
    finally:
        if added:
            sys.path.remove(here)


def _input_names(module: nn.Module | Program) -> list[str]:
    if isinstance(module, Program):
        return [str(name) for name in module.graph_signature.user_inputs]
    parameters = inspect.signature(module.forward).parameters.values()
    return [p.name for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]


def _examples(text: str, names: Sequence[str]) -> Arrays:
    if text.endswith(".npz"):
        try:
            with np.load(text, allow_pickle=False) as file:
                found: Arrays = dict(file)
        except (OSError, ValueError) as error:
            raise UsageError(f"--example-inputs: {text} can't be read: {error}") from error
        return _in_order(found, names)
    if REFERENCE.fullmatch(text):
        made = _named(text)
        found = _by_name(made() if callable(made) else made, "input")
    else:
        found = _random(text)
    if all(re.fullmatch(r"input(_\d+)?", name) for name in found) and len(found) <= len(names):
        found = dict(zip(names, found.values(), strict=False))
    return _in_order(found, names)


def _in_order(found: Arrays, names: Sequence[str]) -> Arrays:
    """The inputs as `forward` takes them, whatever order they were given in. Names of which it has none are the owner's
    own, by their places."""
    known = [name for name in names if name in found]
    if not known:
        return found
    if len(known) < len(found) or known != list(names[: len(known)]):
        told, wanted = ", ".join(found), ", ".join(names)
        raise UsageError(f"--example-inputs: there are {told}; the module takes {wanted}, from the first on")
    return {name: found[name] for name in known}


def _random(text: str) -> Arrays:
    """Of ``name=FP32[2,3],INT64[2]``."""
    matches = list(_SPEC.finditer(text))
    if not matches or ",".join(match[0] for match in matches) != text:
        raise UsageError(f"--example-inputs: {text!r} is no .npz, no module:function and not like image=FP32[2,3,8,8]")
    specs = []
    for index, match in enumerate(matches):
        if match["datatype"] not in DATATYPES or match["datatype"] in ("BYTES", "BF16"):
            raise UsageError(f"--example-inputs: {match['datatype']} is no datatype of a tensor in PyTorch")
        dims = tuple(int(size) for size in match["dims"].split(","))
        specs.append(TensorSpec(match["name"] or f"input_{index}", match["datatype"], dims))
    return random_arrays(specs, 0, 0)


def _rows(arrays: Arrays) -> int:
    sizes = {name: len(array) if array.ndim else 0 for name, array in arrays.items()}
    if not sizes or len(set(sizes.values())) != 1 or 0 in sizes.values():
        raise UsageError(f"--example-inputs: all must have the same batch in front, 1 or more; got {sizes}")
    return next(iter(sizes.values()))


def _repeated(array: Array, rows: int) -> Array:
    return array[np.arange(rows) % len(array)]


def _exported(module: nn.Module | Program, sample: Arrays, outputs: Sequence[str]) -> onnx.ModelProto:
    batch = torch.export.Dim("batch")
    tensors = tuple(torch.from_numpy(np.ascontiguousarray(array)) for array in sample.values())
    shapes = None if isinstance(module, Program) else tuple({0: batch} for _ in tensors)
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            program = torch.onnx.export(
                module,
                () if isinstance(module, Program) else tensors,
                dynamo=True,
                opset_version=OPSET,
                input_names=list(sample),
                output_names=list(outputs),
                dynamic_shapes=shapes,
                external_data=False,
                verbose=False,
            )
            assert program is not None
            model: onnx.ModelProto = program.model_proto
        model.ir_version = IR_VERSION
        forget_origin(model)
        onnx.checker.check_model(model, full_check=True)
    except Exception as error:  # torch.export, onnxscript and onnx each have exceptions of their own
        raise ExportError(f"it can't be exported with a free batch dimension: {error}") from error
    finally:
        logger.setLevel(level)
    return model


def _free_batch(path: Path) -> bool:
    """Whether the first dimension of every tensor is free in the file."""
    graph = onnx.load(path, load_external_data=False).graph
    firsts = [tensor.type.tensor_type.shape.dim for tensor in (*graph.input, *graph.output)]
    return all(len(dims) > 0 and not dims[0].HasField("dim_value") for dims in firsts)


def _specs(arrays: Arrays, *, batched: bool) -> tuple[TensorSpec, ...]:
    return tuple(
        TensorSpec(name, datatype_of(array), array.shape[1:] if batched else array.shape)
        for name, array in arrays.items()
    )
