"""Signatures of models: who vouches for a manifest, which has the sha256 of every file.

`manifest.sig` lies beside `manifest.json` and has a line for each who signed: `ed25519 KEY SIGNATURE`, where KEY says
which key it was. What is signed is a prefix and the manifest's bytes. Needs the extra `auth`.

Source: RFC 8032 (Ed25519); the prefix, so that a signature means nothing anywhere else, is minisign's idea.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from server.errors import ModelLoadFailed

SIGNATURE_FILE = "manifest.sig"
_MANIFEST_FILE = "manifest.json"
_PREFIX = b"forwardpass manifest 1\n"
_ALGORITHM = "ed25519"
_MOST_BYTES = 64 * 1024


class BadKey(ValueError):
    """A key can't be used; the text says which file, and why."""


def new_pair(path: Path) -> Path:
    """Write a new private key to `path`, for its owner's eyes, and the public one beside it; returns the latter.

    Raises:
        FileExistsError: there is a key already.
    """
    ed25519, serialization = _cryptography()
    private = ed25519.Ed25519PrivateKey.generate()
    pem, none = serialization.Encoding.PEM, serialization.NoEncryption()
    path.touch(mode=0o600, exist_ok=False)
    path.write_bytes(private.private_bytes(pem, serialization.PrivateFormat.PKCS8, none))
    public = path.with_name(f"{path.stem}.pub.pem")
    public.write_bytes(private.public_key().public_bytes(pem, serialization.PublicFormat.SubjectPublicKeyInfo))
    return public


def sign(folder: Path, key: Path) -> str:
    """Sign the manifest of the model in `folder`, beside what others signed; the id of the key.

    Raises:
        BadKey: the file holds no private key of Ed25519.
        OSError: the manifest can't be read, or the signature not written.
    """
    private = _private(key)
    key_id = _id_of(private.public_key())
    signature = private.sign(_PREFIX + (folder / _MANIFEST_FILE).read_bytes())
    file = folder / SIGNATURE_FILE
    known = file.read_text().splitlines() if file.exists() else []
    others = [line for line in known if line.split()[1:2] != [key_id]]
    text = "\n".join([*others, f"{_ALGORITHM} {key_id} {base64.b64encode(signature).decode()}", ""])
    new = file.with_name(f".{file.name}.new")
    new.write_text(text)
    new.replace(file)
    return key_id


class Trusted:
    """The public keys that may vouch for models."""

    def __init__(self, place: Path) -> None:
        """`place`: a PEM file, or a folder of them. Raises BadKey, OSError."""
        files = sorted(place.glob("*.pem")) if place.is_dir() else [place]
        self._keys: Mapping[str, Any] = {_id_of(key): key for key in map(_public, files)}
        if not self._keys:
            raise BadKey(f"{place}: has no public key (*.pem)")

    def vouch(self, folder: Path, manifest: bytes | None) -> None:
        """Raises ModelLoadFailed: nobody who is trusted signed the manifest, or there is none."""
        if manifest is None:
            raise ModelLoadFailed(folder.name, _MANIFEST_FILE, "is missing; only signed models are loaded here")
        try:
            with (folder / SIGNATURE_FILE).open("rb") as file:
                lines = file.read(_MOST_BYTES).decode("ascii", "replace").splitlines()
        except FileNotFoundError:
            raise ModelLoadFailed(
                folder.name, SIGNATURE_FILE, "is missing; only signed models are loaded here"
            ) from None
        if not any(self._holds(line, manifest) for line in lines):
            raise ModelLoadFailed(folder.name, SIGNATURE_FILE, "has no signature of manifest.json by a trusted key")

    def _holds(self, line: str, manifest: bytes) -> bool:
        words = line.split()
        if len(words) != 3 or words[0] != _ALGORITHM or words[1] not in self._keys:
            return False
        from cryptography.exceptions import InvalidSignature

        try:
            self._keys[words[1]].verify(base64.b64decode(words[2], validate=True), _PREFIX + manifest)
        except (InvalidSignature, ValueError):
            return False
        return True


def _private(path: Path) -> Any:
    ed25519, serialization = _cryptography()
    try:
        key = serialization.load_pem_private_key(path.read_bytes(), None)
    except (ValueError, TypeError) as error:
        raise BadKey(f"{path}: is no private key in PEM, or is encrypted") from error
    if not isinstance(key, ed25519.Ed25519PrivateKey):
        raise BadKey(f"{path}: is no private key of Ed25519")
    return key


def _public(path: Path) -> Any:
    ed25519, serialization = _cryptography()
    try:
        key = serialization.load_pem_public_key(path.read_bytes())
    except ValueError as error:
        raise BadKey(f"{path}: is no public key in PEM") from error
    if not isinstance(key, ed25519.Ed25519PublicKey):
        raise BadKey(f"{path}: is no public key of Ed25519")
    return key


def _id_of(public: Any) -> str:
    return hashlib.sha256(public.public_bytes_raw()).hexdigest()[:16]


def _cryptography() -> tuple[Any, Any]:
    try:
        from cryptography.hazmat.primitives import serialization
        from cryptography.hazmat.primitives.asymmetric import ed25519
    except ImportError as error:
        raise BadKey("signatures: pip install 'forwardpass[auth]' to check them") from error
    return ed25519, serialization
