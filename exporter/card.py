"""`README.md` of a published model: its manifest and its spec in words. The same files give the same text."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from server.errors import ModelLoadFailed, ServingError
from server.pipeline.base import PROCESSING_FILE
from server.pipeline.load import load_pipeline
from server.repository.certificate import FULL_PRECISION, Manifest, VersionRecord, read_manifest
from server.repository.model_config import read_model_config
from server.types import ImageInput, RowInput, TextInput
from server.whole import write_text

CARD_FILE = "README.md"
MOST_LISTED = 12

WHAT = {
    "image-classification": "names what a picture shows",
    "tabular-classification": "puts rows of a table into classes",
    "tabular-regression": "estimates a number for rows of a table, between bounds",
    "recommendation": "tells which items a user takes next, from those before",
    "text-classification": "puts texts into classes",
    "text-embedding": "turns texts into vectors",
    "token-classification": "finds stretches of a text",
    "custom": "answers by code of its own",
    "infer": "takes and gives tensors; there is no processing of raw inputs",
}


def write_card(folder: Path) -> Path:
    """Write the card of the model in `folder`, and return it. Raises ModelLoadFailed where it can't be read."""
    path = folder / CARD_FILE
    write_text(path, card(folder))
    return path


def card(folder: Path) -> str:
    """The text. Raises ModelLoadFailed: no manifest, or a file that can't be read."""
    manifest = read_manifest(folder)
    if manifest is None:
        raise ModelLoadFailed(folder.name, "manifest.json", "is not there, and there is nothing to tell without it")
    lines = [f"# {manifest.model_name}", "", f"A model that {WHAT.get(manifest.task, manifest.task)}."]
    lines += [f"Task `{manifest.task}`, made by the recipe `{manifest.recipe}`."]
    if manifest.synthetic:
        lines += ["", "**The data are synthetic: no figure here says anything about the real thing.**"]
    lines += ["", "## Asking it", "", *_asking(folder, manifest), "", "## Tensors", "", *_tensors(folder)]
    for version, record in sorted(manifest.versions.items(), key=lambda one: int(one[0])):
        lines += ["", f"## Version {version}", "", *_version(record, manifest)]
    lines += [
        "",
        f"`manifest.json` has the SHA-256 of all {len(manifest.files)} files; a server checks them at each load.",
    ]
    lines += ["This page is made from it: `python -m exporter card FOLDER`."]
    return "\n".join(lines) + "\n"


def _asking(folder: Path, manifest: Manifest) -> list[str]:
    """The commands, and what the pipeline says of itself where it can be built here."""
    if not (folder / PROCESSING_FILE).exists():
        return ["By `infer` alone, with the tensors below."]
    if manifest.task == "custom":
        return [f"The server must allow its code: `forwardpass serve --custom-code {manifest.model_name}`."]
    try:
        pipeline = load_pipeline(folder)
    except ServingError as error:
        return [f"Its pipeline can't be read here: {error}"]
    told, example = pipeline.describe(), pipeline.example()
    given = asked_with(folder) if not isinstance(example, ImageInput) else f"model_repository/{_picture(folder)}"
    lines = ["```", f"forwardpass predict {manifest.model_name} {shlex.quote(given)}", "```"]
    labels = told.get("labels")
    if isinstance(labels, Sequence) and labels:
        lines += ["", f"Labels: {_listed([str(label) for label in labels])}."]
    decision = told.get("decision")
    if isinstance(decision, Mapping):
        lines += [f"`{decision['positive_label']}` is answered from a probability of {decision['threshold']:.4g}."]
    if "level" in told:
        lines += ["", f"`low` and `high` are made for {told['level']:.0%} of rows to lie between them."]
    given_input = told.get("input")
    if isinstance(example, RowInput) and isinstance(given_input, Mapping) and "columns" in given_input:
        lines += ["", "| column | kind | may be missing |", "|---|---|---|"]
        lines += [
            f"| {one['name']} | {'true or false' if one.get('boolean') else one['kind']} | "
            f"{'yes' if one['nullable'] else 'no'} |"
            for one in given_input["columns"]
        ]
    return lines


def asked_with(folder: Path) -> str:
    """What `forwardpass predict` takes for the example of a model: JSON, or a picture's path. Raises ServingError."""
    example = load_pipeline(folder).example()
    if isinstance(example, ImageInput):
        return str(folder.parent / _picture(folder))
    value: Any = example.text if isinstance(example, TextInput) else example.values
    return json.dumps(dict(value) if isinstance(value, Mapping) else value, ensure_ascii=False)


def _picture(folder: Path) -> str:
    return f"{folder.name}/{next((path.name for path in sorted(folder.glob('example.*'))), 'PICTURE')}"


def _tensors(folder: Path) -> list[str]:
    config = read_model_config(folder)
    lines = ["| | name | datatype | dims |", "|---|---|---|---|"]
    for kind, specs in (("input", config.inputs), ("output", config.outputs)):
        lines += [f"| {kind} | `{spec.name}` | {spec.datatype} | {list(spec.dims)} |" for spec in specs]
    batch = f"Batches of up to {config.max_batch_size} rows." if config.max_batch_size else "One request at a time."
    return [*lines, "", batch]


def _version(record: VersionRecord, manifest: Manifest) -> list[str]:
    rows = record.data.rows
    made = f"Made on {record.created[:10]}, {record.precision}, opset {record.opset}, IR version {record.ir_version}."
    lines = [made]
    if rows.train + rows.validation + rows.test:
        lines += [
            f"Data: {record.data.source}; {rows.train:,} rows to learn from, {rows.validation:,} to choose by, "
            f"{rows.test:,} to measure on. Seed {record.seed}."
        ]
    else:
        lines += [f"Brought as it is: {record.data.source}."]
    if record.metrics:
        simple = record.baseline.get("name", "baseline")
        lines += ["", f"| on the test rows | model | {simple} |", "|---|---|---|"]
        lines += [
            f"| {name} | {value:.4f} | {_figure(record.baseline.get(name, ''))} |"
            for name, value in record.metrics.items()
        ]
        more = {k: v for k, v in record.baseline.items() if k != "name" and k not in record.metrics}
        lines += [f"| {name} | | {_figure(value)} |" for name, value in more.items()]
    lines += _errors(record)
    versions = ", ".join(f"{name} {value}" for name, value in record.environment.items())
    return [*lines, "", f"Made with {versions}."]


def _errors(record: VersionRecord) -> list[str]:
    """Of a copy they are its distance from the model, and no limit is set to them: it is held to its own answers."""
    if not record.errors:
        return []
    copy = record.precision != FULL_PRECISION
    lines = ["", "| output | largest error | mean error | allowed |", "|---|---|---|---|"]
    lines += [
        f"| `{name}` | {error.max_abs:.2e} | {error.mean_abs:.2e} | {'' if copy else _allowed(record, name)} |"
        for name, error in record.errors.items()
    ]
    told = "Errors are those of ONNX Runtime against what trained it, on the golden inputs."
    more = f" This is a copy in {record.precision}: its golden outputs are its own, and those a server holds it to."
    return [*lines, "", told + (more if copy else "")]


def _allowed(record: VersionRecord, name: str) -> str:
    limit = record.tolerances.get(name)
    return "" if limit is None else f"{limit.atol:g} + {limit.rtol:g} of the value"


def _figure(value: float | str) -> str:
    return f"{value:.4f}" if isinstance(value, float | int) else value


def _listed(names: Sequence[str]) -> str:
    shown = ", ".join(f"`{name}`" for name in names[:MOST_LISTED])
    more = len(names) - MOST_LISTED
    return f"{shown} and {more} more" if more > 0 else shown
