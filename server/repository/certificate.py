"""The certificate of a model: `manifest.json` and the golden files, written by training, checked at each load.

What holds for the model stands at the top (recipe, task, whether its data is synthetic, the hash of every
file); what belongs to one training stands with its version, because a second version may have other data,
another seed and other results.
"""

from __future__ import annotations

import errno
import hashlib
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from server.errors import ModelLoadFailed
from server.repository.golden import Golden, golden_file, read_golden, read_raw, write_golden, write_raw
from server.repository.replay import (
    DEFAULT_TOLERANCE,
    Tolerance,
    compare,
    labels_of,
    replay,
    replay_answers,
    replay_preprocessing,
)
from server.security.signing import SIGNATURE_FILE
from server.whole import write_text

__all__ = [
    "DEFAULT_TOLERANCE",
    "FULL_PRECISION",
    "MANIFEST_FILE",
    "CheckRecord",
    "DataRecord",
    "ErrorRecord",
    "Golden",
    "Manifest",
    "RowCounts",
    "Tolerance",
    "VersionRecord",
    "compare",
    "golden_file",
    "hash_files",
    "labels_of",
    "read_golden",
    "read_manifest",
    "read_raw",
    "replay",
    "replay_answers",
    "replay_preprocessing",
    "verify_code",
    "verify_files",
    "write_golden",
    "write_manifest",
    "write_raw",
]

MANIFEST_FILE = "manifest.json"
FULL_PRECISION = "fp32"

Vouch = Callable[[Path, bytes | None], None]
"""Looks at who signed the manifest of a folder; None: there is none. Raises ModelLoadFailed."""

Sha256 = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
VersionName = Annotated[str, Field(pattern="^[1-9][0-9]*$")]


class Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, protected_namespaces=())


class RowCounts(Record):
    """Rows of each part after cleaning."""

    train: int = Field(ge=0)
    validation: int = Field(ge=0)
    test: int = Field(ge=0)


class DataRecord(Record):
    """What a version was trained on. `sha256` is over the prepared rows, so that it names the data itself."""

    source: str
    sha256: Sha256
    rows: RowCounts


class ErrorRecord(Record):
    """How far ONNX Runtime was from the trained model on the golden inputs."""

    max_abs: float
    mean_abs: float


class CheckRecord(Record):
    """The file against the trained model, by one execution provider on one kind of data."""

    provider: str
    """ONNX Runtime's name without its end: ``CPU``, ``CUDA``."""
    precision: str
    """Of the file: ``fp32``, ``fp32-optimized``, ``fp16``, ``int8-static``."""
    data: Literal["golden", "held-out"]
    rows: int
    errors: dict[str, ErrorRecord]
    """By output."""
    changed_top1: int | None = None
    """Rows whose best label is another; None for a model without labels."""
    limits: dict[str, Tolerance] = {}
    """That were demanded, by output; without them the errors were measured only."""
    metrics: dict[str, float] = {}
    """On the held-out test set, by the file; those of the trained model are the version's."""


class VersionRecord(Record):
    """One training and what came of it."""

    created: str
    """ISO 8601, UTC."""
    opset: int
    ir_version: int
    seed: int
    data: DataRecord
    metrics: dict[str, float]
    """On the held-out test set."""
    baseline: dict[str, float | str]
    """The same metrics of something simple, and its name."""
    environment: dict[str, str]
    """Versions of what made it: python, torch, onnxruntime, the machine."""
    tolerances: dict[str, Tolerance]
    """By output; what the replay at load allows."""
    errors: dict[str, ErrorRecord]
    """By output; measured when it was verified."""
    answers: tuple[str, ...] = ()
    """The labels that the raw golden inputs got, where the task gives labels: so that their order is certified too."""
    precision: str = FULL_PRECISION
    """Of the file, as in its checks. Anything else than `FULL_PRECISION` is a copy, with golden outputs of its own."""
    checks: tuple[CheckRecord, ...] = ()
    """By each provider that was there, on golden and on held-out data."""


class Manifest(Record):
    """manifest.json. `files` has the sha256 of every file of the model but the manifest itself."""

    format_version: Literal[1] = 1
    model_name: str
    recipe: str
    task: str
    synthetic: bool
    """The data was generated, whatever the metrics look like."""
    versions: dict[VersionName, VersionRecord]
    files: dict[str, Sha256]


def read_manifest(folder: Path, vouch: Vouch | None = None) -> Manifest | None:
    """The manifest of the model in `folder`, None where there is none (any plain Triton model).

    `vouch` is asked about the very bytes that are read.

    Raises:
        ModelLoadFailed: the file is damaged, has an unknown field, or is another model's; or nobody vouches for it.
    """
    path = folder / MANIFEST_FILE
    try:
        data = path.read_bytes() if path.exists() else None
        if vouch is not None:
            vouch(folder, data)
        if data is None:
            return None
        manifest = Manifest.model_validate_json(data)
    except OSError as error:
        raise ModelLoadFailed(folder.name, MANIFEST_FILE, f"can't be read: {error.strerror}") from error
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"]) or "the whole"
        raise ModelLoadFailed(folder.name, MANIFEST_FILE, f"{place}: {first['msg']}") from error
    if manifest.model_name != folder.name:
        raise ModelLoadFailed(folder.name, MANIFEST_FILE, f"is of model '{manifest.model_name}'")
    return manifest


def write_manifest(folder: Path, manifest: Manifest) -> Path:
    """Write manifest.json. Returns the file."""
    path = folder / MANIFEST_FILE
    write_text(path, manifest.model_dump_json(indent=2) + "\n")
    return path


def model_files(folder: Path) -> Iterator[Path]:
    """Every file that a model is made of, sorted, relative to its folder.

    Left out are the manifest and its signatures, hidden files, documents (*.md), what was tuned and is not served
    (*.tuned), and what TensorRT caches at run time. Links are followed: a repository may be put together from links.
    """
    seen: set[str] = set()
    found: list[Path] = []
    for top, folders, files in os.walk(folder, followlinks=True):
        real = os.path.realpath(top)
        if real in seen:  # a link back into the folder would never end
            folders.clear()
            continue
        seen.add(real)
        folders[:] = [name for name in folders if not passed_over(name)]
        found.extend(Path(top, name).relative_to(folder) for name in files if not passed_over(name))
    yield from sorted(path for path in found if path.as_posix() not in (MANIFEST_FILE, SIGNATURE_FILE))


def passed_over(name: str) -> bool:
    """Whether a file or folder of that name is no part of a model."""
    return (
        name.startswith(".")
        or name == "__pycache__"
        or name.endswith((".md", ".tuned", ".engine", ".profile", ".timing"))
    )


def hash_files(folder: Path, version: str | None = None) -> dict[str, str]:
    """sha256 by relative path: of all files, or of those that serving `version` reads."""
    return {
        path.as_posix(): _sha256(folder / path)
        for path in model_files(folder)
        if version is None or concerns(path.as_posix(), version)
    }


def _sha256(path: Path) -> str:
    if not path.is_file():  # a pipe would be waited on for ever
        raise FileNotFoundError(errno.ENOENT, "not a regular file", str(path))
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def concerns(relative: str, version: str) -> bool:
    """Whether serving `version` reads the file: another version's files are that version's own affair.

    With the version "" that no model has: whether it is read whatever version is served.
    """
    top = relative.partition("/")[0]
    if relative.startswith("golden/") and relative.endswith(".npz"):
        return relative == golden_file(version)
    return not (top.isdigit() and top != version and "/" in relative)


def verify_files(folder: Path, manifest: Manifest, version: str) -> None:
    """Hold the files that serving `version` reads against the manifest.

    Raises:
        ModelLoadFailed: the version is not certified, or a file differs, is missing, can't be read, or is
            not listed; `where` is the file.
    """
    if version not in manifest.versions:
        raise ModelLoadFailed(folder.name, MANIFEST_FILE, f"does not list version {version}")
    try:
        found = hash_files(folder, version)
    except OSError as error:
        where = os.path.relpath(error.filename, folder) if error.filename else MANIFEST_FILE
        raise ModelLoadFailed(folder.name, where, f"can't be read to be verified: {error.strerror}") from error
    listed = {path: digest for path, digest in manifest.files.items() if concerns(path, version)}
    _compare_hashes(folder.name, listed, found)
    if golden_file(version) not in listed:
        raise ModelLoadFailed(folder.name, MANIFEST_FILE, f"does not list {golden_file(version)}")


def verify_shared(folder: Path, manifest: Manifest) -> None:
    """Hold what all versions share against the manifest, before any of it is used. Raises as `verify_files`."""
    listed = {path: digest for path, digest in manifest.files.items() if concerns(path, "")}
    try:
        found = hash_files(folder, "")
    except OSError as error:
        where = os.path.relpath(error.filename, folder) if error.filename else MANIFEST_FILE
        raise ModelLoadFailed(folder.name, where, f"can't be read to be verified: {error.strerror}") from error
    _compare_hashes(folder.name, listed, found)


def verify_all(folder: Path, manifest: Manifest) -> None:
    """Hold all of a model's files against the manifest. Raises as `verify_files`."""
    try:
        found = hash_files(folder)
    except OSError as error:
        where = os.path.relpath(error.filename, folder) if error.filename else MANIFEST_FILE
        raise ModelLoadFailed(folder.name, where, f"can't be read to be verified: {error.strerror}") from error
    _compare_hashes(folder.name, manifest.files, found)


def verify_code(folder: Path, manifest: Manifest) -> None:
    """Hold the Python files of a model against the manifest: before its pipeline runs one.

    Raises:
        ModelLoadFailed: as `verify_files`.
    """
    code = {path: digest for path, digest in manifest.files.items() if path.endswith(".py") and "/" not in path}
    found = {path.name: _sha256(path) for path in sorted(folder.glob("*.py"))}
    _compare_hashes(folder.name, code, found)


def _compare_hashes(model_name: str, listed: Mapping[str, str], found: Mapping[str, str]) -> None:
    for path, digest in listed.items():
        if path not in found:
            raise ModelLoadFailed(model_name, path, "is missing, manifest.json lists it")
        if found[path] != digest:
            raise ModelLoadFailed(
                model_name, path, f"differs from manifest.json: sha256 {found[path][:12]}, certified {digest[:12]}"
            )
    for path in found:
        if path not in listed:
            raise ModelLoadFailed(model_name, path, "is not listed in manifest.json; publish the model anew")
