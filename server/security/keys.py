"""API keys: how one is made, what is kept of it, and the files in which that stands.

A key is `fp_ID_SECRET`. Its secret has 256 random bits, so that a plain SHA-256 of it can't be turned round by trying;
that hash alone is kept. A password would need a slow hash, and is no key here.
"""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
from collections.abc import Iterable, Mapping
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any

import yaml
from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, ValidationError

from server.errors import Unauthenticated
from server.security.caller import KEY_PREFIX, Grant
from server.security.roles import Role
from server.whole import replacing

_KEY = re.compile(r"fp_([0-9a-f]{12})_([A-Za-z0-9_-]{43})")
_SUFFIXES = (".yaml", ".yml")
_MAX_FILE_BYTES = 4 * 1024 * 1024
_NOBODY = "0" * 64


class BadKeys(ValueError):
    """A file of keys can't be used; the text names the file and the field, and shows nothing of a key."""


class KeyRecord(BaseModel):
    """What is kept of a key."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: Annotated[str, Field(min_length=1, max_length=128, pattern=r"^[A-Za-z0-9][A-Za-z0-9_.@-]*$")]
    id: Annotated[str, Field(pattern=r"^[0-9a-f]{12}$")]
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    roles: Annotated[tuple[Role, ...], Field(min_length=1)]
    models: tuple[str, ...] = ()
    tenant: Annotated[str, Field(max_length=128)] = ""
    rate_per_s: Annotated[float, Field(ge=0)] = 0.0
    burst: Annotated[float, Field(ge=0)] = 0.0
    max_concurrent: Annotated[int, Field(ge=0)] = 0
    created: AwareDatetime | None = None
    expires: AwareDatetime | None = None

    @property
    def grant(self) -> Grant:
        return Grant(
            self.name,
            frozenset(self.roles),
            self.models,
            self.tenant,
            self.rate_per_s,
            self.burst,
            self.max_concurrent,
        )


class KeyFile(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    keys: tuple[KeyRecord, ...] = ()


def new_key(**more: Any) -> tuple[str, KeyRecord]:
    """A new key, which is nowhere kept, and its record with `more`. Raises BadKeys for what is no record."""
    key_id, secret = secrets.token_hex(6), secrets.token_urlsafe(32)
    try:
        return f"{KEY_PREFIX}{key_id}_{secret}", KeyRecord(id=key_id, sha256=_hash(secret), **more)
    except ValidationError as error:
        raise BadKeys(_problems("key", error)) from error


class Keys:
    """The keys that are valid now."""

    def __init__(self, records: Iterable[KeyRecord]) -> None:
        """Raises BadKeys where two have one id."""
        self._by_id: dict[str, KeyRecord] = {}
        for record in records:
            if record.id in self._by_id:
                raise BadKeys(f"the key id {record.id} is there twice")
            self._by_id[record.id] = record

    def __len__(self) -> int:
        return len(self._by_id)

    def find(self, key: str, now: datetime) -> KeyRecord:
        """The record of a key. Raises Unauthenticated: there is none, or it has expired."""
        match = _KEY.fullmatch(key)
        if match is None:
            raise Unauthenticated("the key is not known")
        record = self._by_id.get(match[1])
        # As long for an id that is known as for one that is not, and for any part of a secret that is right.
        equal = hmac.compare_digest(_hash(match[2]), record.sha256 if record else _NOBODY)
        if record is None or not equal:
            raise Unauthenticated("the key is not known")
        if record.expires is not None and record.expires <= now:
            raise Unauthenticated("the key has expired")
        return record


def key_files(place: Path) -> list[Path]:
    """The files of keys: one, or all of a folder, as a secret is mounted. Raises OSError."""
    if not place.is_dir():
        return [place]
    # Kubernetes keeps what it swaps in entries that begin with two dots.
    return sorted(p for p in place.iterdir() if p.suffix in _SUFFIXES and not p.name.startswith("."))


def read_file(path: Path) -> KeyFile:
    """Raises BadKeys; OSError: it can't be read."""
    data = path.read_bytes()
    if len(data) > _MAX_FILE_BYTES:
        raise BadKeys(f"{path}: is larger than {_MAX_FILE_BYTES} bytes")
    try:
        document = yaml.safe_load(data)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        raise BadKeys(f"{path}: is no YAML{f', line {mark.line + 1}' if mark else ''}") from error
    try:
        return KeyFile.model_validate(document if document is not None else {})
    except ValidationError as error:
        raise BadKeys(_problems(str(path), error)) from error


def write_file(path: Path, file: KeyFile) -> None:
    """As a whole or not at all, for its owner's eyes. Raises OSError."""
    text = yaml.safe_dump(_plain(file.model_dump(mode="json", exclude_defaults=True)), sort_keys=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path, mode=0o600) as new:
        new.write_text(text)


def _plain(document: Mapping[str, Any]) -> dict[str, Any]:
    return {"keys": list(document.get("keys", ()))}


def _problems(where: str, error: ValidationError) -> str:
    """Without the values: one of them may be a key that somebody put in the wrong place."""
    return "; ".join(f"{where}: {'.'.join(map(str, each['loc']))}: {each['msg']}" for each in error.errors())


def _hash(secret: str) -> str:
    return hashlib.sha256(secret.encode()).hexdigest()
