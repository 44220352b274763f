"""A ready model in a local folder of Hugging Face's form, by the task of its architecture, into the repository.

    *ForSequenceClassification   text-classification       *ForTokenClassification   token-classification
    *ForImageClassification      image-classification      an encoder                text-embedding

Its own processor's settings become processing.yaml: the tokenizer's file as it is, its length and padding; of pictures
the size, the filter, the crop, mean and deviation. What processing.yaml can't say is refused by name.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image
from torch import nn

from exporter import checks, onnx
from exporter.environment import environment
from exporter.errors import DataError
from exporter.publish import Certificate, Model, Published, publish
from exporter.recipes.base import Arrays, Split, Tolerance
from exporter.text.hub import HubFolder
from exporter.text.rows import bucket_parameters
from exporter.text.sentence import MODULES_FILE
from exporter.verify import verify
from server.pipeline.classification import LABELS, ClassificationSpec
from server.pipeline.image_spec import Filter, ImageSpec, Normalize, Resize
from server.pipeline.load import load_pipeline, write_spec
from server.pipeline.text_spec import TextClassificationSpec, TextEmbeddingSpec, TokenClassificationSpec
from server.repository import certificate
from server.tensor import Array, TensorSpec
from server.types import ImageInput, RawInput, TextInput

if TYPE_CHECKING:
    from server.pipeline.load import Spec

RECIPE = "import"
MAX_BATCH_SIZE = 32
LOGITS, EMBEDDING, PIXELS = "logits", "sentence_embedding", "pixel_values"
TEXTS = (
    "Where is my parcel?",
    "The film was far better than I had hoped, and the music was wonderful.",
    "Anna Berg moved from Oslo to Lisbon in March 2019 to work for the United Nations.",
    "I do not recommend this product to anybody.",
    "?",
    "Ünïcode, 名前 and 🙂 in one line",
    "It is raining. " * 12,
)
"""Golden texts: short ones, long ones, names, and signs that few tokenizers know."""
_CLOSE = Tolerance(absolute=1e-4, relative=1e-3)
_FILTERS: Mapping[int, Filter] = {1: "lanczos", 2: "bilinear", 3: "bicubic", 4: "box", 5: "hamming"}
"""By Pillow's numbers, which a processor's `resample` is."""
_WHOLE_FROM = 384
"""Pixels, from which on ConvNeXT's processor crops nothing. Source: transformers' image_processing_convnext.py."""


@dataclass(frozen=True)
class Imported:
    """As much of `exporter.recipes.base.Task` as exporting and verifying ask for; its rows are the golden ones."""

    folder: HubFolder
    spec: Spec
    labels: tuple[str, ...]
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    golden: Sequence[RawInput]
    network_of: Callable[[], nn.Module]
    parameters: Mapping[str, str]
    max_batch_size: int = MAX_BATCH_SIZE

    @property
    def tolerances(self) -> Mapping[str, Tolerance]:
        return {spec.name: _CLOSE for spec in self.outputs}

    def write_processing(self, folder: Path) -> None:
        write_spec(self.spec, folder)
        if self.labels:
            LABELS.write(folder, self.labels)
        if isinstance(self.spec, ImageSpec):
            example = self.golden[0]
            assert isinstance(example, ImageInput)
            (folder / self.spec.example).write_bytes(example.data)
        else:
            (folder / "tokenizer.json").write_bytes(self.folder.tokenizer_json)


class _Rows:
    """`Imported` with its golden tensors, where `Task` is asked for: it has no other rows."""

    def __init__(self, imported: Imported, arrays: Arrays) -> None:
        self._arrays = arrays
        self.labels, self.inputs, self.outputs = imported.labels, imported.inputs, imported.outputs
        self.tolerances, self.max_batch_size = imported.tolerances, imported.max_batch_size

    def size(self, split: Split) -> int:
        return len(next(iter(self._arrays.values())))

    def batch(self, split: Split, rows: Array, epoch: int) -> tuple[Arrays, Array]:
        return {name: array[rows] for name, array in self._arrays.items()}, np.zeros(len(rows), np.int64)


def import_folder(
    path: Path, name: str, repository: Path, report: Callable[[str, Sequence[str]], None], *, replace: bool
) -> Published:
    """Export, verify and publish the model in the folder.

    Raises:
        DataError: there is no model, or of no task that is known, or its processor does what processing.yaml can't say.
        ExportError, VerifyError, PublishError: as of a recipe's model.
    """
    imported = read(HubFolder(path))
    report("import", [f"{imported.folder.name}, sha256 {imported.folder.sha256[:12]}: {imported.spec.task}"])
    with TemporaryDirectory() as scratch:
        model_file = Path(scratch) / "model.onnx"
        network = imported.network_of().eval()

        def certify(folder: Path, raw: Sequence[RawInput]) -> Certificate:
            pipeline = load_pipeline(folder)
            arrays = pipeline.preprocess(raw)
            task: Any = _Rows(imported, arrays)
            trained = onnx.TrainedNetwork(task, network)
            verified = verify(task, trained.predict, model_file, arrays)
            limits = checks.Limits(
                {
                    name: certificate.Tolerance(atol=limit.absolute, rtol=limit.relative)
                    for name, limit in task.tolerances.items()
                }
            )
            records = checks.check(task, trained.predict, model_file, arrays, limits, held_out=False)
            report("check", [checks.told(record, {}, trained.framework) for record in records])
            answers = certificate.labels_of(pipeline, raw, verified.outputs)
            record = _record(imported, model_file, limits, records, answers)
            return Certificate(verified.inputs, verified.outputs, record)

        _export(imported, network, model_file)
        published = publish(_model(imported, name, model_file, certify), repository, replace=replace)
    report("publish", [f"{published.folder}, version {published.version}"])
    return published


def read(folder: HubFolder) -> Imported:
    """What the folder's architecture is. Raises DataError."""
    architectures = folder.config.get("architectures") or ["none"]
    kind = str(architectures[0])
    if kind.endswith("ForSequenceClassification"):
        return _texts(folder, "AutoModelForSequenceClassification", per_token=False)
    if kind.endswith("ForTokenClassification"):
        return _texts(folder, "AutoModelForTokenClassification", per_token=True)
    if kind.endswith("ForImageClassification"):
        return _pictures(folder)
    if kind.endswith("Model") or (folder.path / MODULES_FILE).is_file():
        return _sentences(folder)
    raise DataError(
        f"{folder.path}: no task for the architecture {kind}; known are models for sequence, token and image "
        "classification, and encoders"
    )


def _texts(folder: HubFolder, kind: str, *, per_token: bool) -> Imported:
    labels, tokens = _labels(folder), folder.tokens()
    example = TEXTS[2]
    spec: Spec = (
        TokenClassificationSpec(tokens=tokens, output=LOGITS, outside=_outside(folder, labels), example=example)
        if per_token
        else TextClassificationSpec(
            tokens=tokens, classification=ClassificationSpec(output=LOGITS, top_k=min(5, len(labels))), example=example
        )
    )
    dims = (-1, len(labels)) if per_token else (len(labels),)
    inputs = tuple(TensorSpec(name, "INT64", (-1,)) for name in tokens.tensors)
    outputs = (TensorSpec(LOGITS, "FP32", dims),)
    golden = [TextInput(text) for text in TEXTS]

    def network() -> nn.Module:
        return _Logits(folder.head(kind), tokens.tensors)

    return Imported(folder, spec, labels, inputs, outputs, golden, network, bucket_parameters(tokens))


def _sentences(folder: HubFolder) -> Imported:
    tokens, dimensions = folder.tokens(), folder.dimensions
    spec = TextEmbeddingSpec(
        tokens=tokens, output=EMBEDDING, dimensions=dimensions, normalized=folder.modules.normalized, example=TEXTS[0]
    )
    inputs = tuple(TensorSpec(name, "INT64", (-1,)) for name in tokens.tensors)
    golden = [TextInput(text) for text in TEXTS]

    def network() -> nn.Module:
        return folder.sentences()

    outputs = (TensorSpec(EMBEDDING, "FP32", (dimensions,)),)
    return Imported(folder, spec, (), inputs, outputs, golden, network, bucket_parameters(tokens))


def _pictures(folder: HubFolder) -> Imported:
    labels = _labels(folder)
    spec = picture_spec(folder, len(labels))
    size = (len(spec.mode), spec.resize.height, spec.resize.width)

    def network() -> nn.Module:
        return _Logits(folder.head("AutoModelForImageClassification"), (PIXELS,))

    inputs, outputs = (TensorSpec(PIXELS, "FP32", size),), (TensorSpec(LOGITS, "FP32", (len(labels),)),)
    golden = [ImageInput(data, "image/png") for data in drawn_pictures()]
    return Imported(folder, spec, labels, inputs, outputs, golden, network, {})


def picture_spec(folder: HubFolder, num_labels: int) -> ImageSpec:
    """preprocessor_config.json as a spec. Raises DataError for what a spec can't say."""
    try:
        return _picture_spec(folder, num_labels)
    except (KeyError, TypeError, ValueError) as error:
        problem = f"{error} is not there" if isinstance(error, KeyError) else error
        raise DataError(f"{folder.path}: preprocessor_config.json can't be used: {problem}") from error


def _picture_spec(folder: HubFolder, num_labels: int) -> ImageSpec:
    told = folder.processor()
    if not told.get("do_resize", True):
        raise DataError(f"{folder.path}: preprocessor_config.json has do_resize false; pictures must have one size")
    size, crop = _size_and_crop(told)
    filter_number = told.get("resample", 2)
    if filter_number not in _FILTERS:
        raise DataError(f"{folder.path}: preprocessor_config.json has the unknown resample {filter_number!r}")
    filter_name = _FILTERS[filter_number]
    if "shortest_edge" in size and crop:
        edge = int(size["shortest_edge"])
        resize = Resize(height=crop["height"], width=crop["width"], filter=filter_name, fit="crop", shortest_edge=edge)
    elif {"height", "width"} <= set(size) and (crop is None or crop == size):
        resize = Resize(height=size["height"], width=size["width"], filter=filter_name, fit="stretch")
    else:
        raise DataError(
            f"{folder.path}: preprocessor_config.json resizes to {size} and crops to {crop}: not known here"
        )
    scale = float(told.get("rescale_factor", 1 / 255)) if told.get("do_rescale", True) else 1.0
    normal = told.get("do_normalize", True)
    mean = tuple(float(value) for value in told["image_mean"]) if normal else (0.0, 0.0, 0.0)
    std = tuple(float(value) for value in told["image_std"]) if normal else (1.0, 1.0, 1.0)
    return ImageSpec(
        input=PIXELS,
        mode="RGB",
        resize=resize,
        normalize=Normalize(scale=scale, mean=mean, std=std),
        classification=ClassificationSpec(output=LOGITS, top_k=min(5, num_labels)),
    )


def _size_and_crop(told: Mapping[str, Any]) -> tuple[Mapping[str, int], Mapping[str, int] | None]:
    size = told.get("size", {})
    if (
        "crop_pct" in told
    ):  # ConvNeXT's kind, ResNet's too: a share of the picture's middle, all of it where it is large
        edge = size if isinstance(size, int) else int(size["shortest_edge"])
        square = {"height": edge, "width": edge}
        if edge >= _WHOLE_FROM:
            return square, None
        return {"shortest_edge": int(edge / float(told["crop_pct"]))}, square
    size = {"height": size, "width": size} if isinstance(size, int) else size
    crop = told.get("crop_size") if told.get("do_center_crop") else None
    return size, {"height": crop, "width": crop} if isinstance(crop, int) else crop


def drawn_pictures() -> list[bytes]:
    """PNGs of several shapes, with edges, ramps and grain: what tells one resize from another."""
    generator = np.random.default_rng(0)
    found = []
    for height, width in ((96, 128), (200, 90), (64, 64), (301, 257)):
        ramp = np.linspace(0, 255, width)[None, :, None] * np.ones((height, 1, 3))
        ramp[: height // 2, :, 1] = 255 - ramp[: height // 2, :, 1]
        grain = generator.normal(0, 30, (height, width, 3))
        buffer = io.BytesIO()
        Image.fromarray((ramp + grain).clip(0, 255).astype(np.uint8)).save(buffer, "PNG")
        found.append(buffer.getvalue())
    return found


class _Logits(nn.Module):
    """A model of transformers by the places of its inputs, to its logits."""

    def __init__(self, model: nn.Module, names: Sequence[str]) -> None:
        super().__init__()
        self.model = model
        self._names = tuple(names)

    def forward(self, *inputs: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.model(**dict(zip(self._names, inputs, strict=True))).logits
        return logits


def _labels(folder: HubFolder) -> tuple[str, ...]:
    named = {int(key): str(value) for key, value in (folder.config.get("id2label") or {}).items()}
    labels = tuple(named[index].strip() for index in sorted(named))
    if sorted(named) != list(range(len(named))) or len(set(labels)) != len(labels) or len(labels) < 2:
        raise DataError(f"{folder.path}: config.json has no id2label with two or more different labels from 0 on")
    if folder.config.get("problem_type") not in (None, "single_label_classification"):
        raise DataError(f"{folder.path}: problem_type {folder.config['problem_type']}: here an answer is one label")
    return labels


def _outside(folder: HubFolder, labels: Sequence[str]) -> str:
    if "O" not in labels:
        raise DataError(f"{folder.path}: none of its labels is O, that of tokens in no entity")
    return "O"


def _export(imported: Imported, network: nn.Module, target: Path) -> None:
    with TemporaryDirectory() as scratch:
        folder = Path(scratch) / "model"
        folder.mkdir()
        imported.write_processing(folder)
        task: Any = _Rows(imported, load_pipeline(folder).preprocess(imported.golden))
    onnx.export(task, network, target)


def _model(imported: Imported, name: str, model_file: Path, certify: Any) -> Model:
    return Model(
        name=name,
        recipe=RECIPE,
        synthetic=False,
        inputs=imported.inputs,
        outputs=imported.outputs,
        max_batch_size=imported.max_batch_size,
        model_file=model_file,
        write_processing=imported.write_processing,
        golden_inputs=imported.golden,
        certify=certify,
        parameters=imported.parameters,
    )


def _record(
    imported: Imported,
    model_file: Path,
    limits: checks.Limits,
    records: Sequence[certificate.CheckRecord],
    answers: tuple[str, ...],
) -> certificate.VersionRecord:
    opset, ir_version = onnx.versions_of(model_file)
    source = f"the folder {imported.folder.name} of Hugging Face's form, as it was trained elsewhere"
    rows = certificate.RowCounts(train=0, validation=0, test=0)
    return certificate.VersionRecord(
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        opset=opset,
        ir_version=ir_version,
        seed=0,
        data=certificate.DataRecord(source=source, sha256=imported.folder.sha256, rows=rows),
        metrics={},
        baseline={},
        environment=environment(),
        tolerances=dict(limits.tolerances or {}),
        errors=dict(records[0].errors),
        answers=answers,
        checks=tuple(records),
    )
