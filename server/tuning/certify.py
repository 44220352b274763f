"""A config that is changed belongs to its model's certificate: its hash in manifest.json, or the model isn't served."""

from __future__ import annotations

import hashlib
from pathlib import Path

from server.repository.certificate import MANIFEST_FILE, read_manifest, write_manifest
from server.repository.config_text import CONFIG_FILE


def recertify(folder: Path) -> bool:
    """Bring the manifest in `folder` up to the config that is there, and nothing else; whether there is a manifest.

    A signature of the manifest does not hold any more then. Raises ModelLoadFailed where the manifest is damaged.
    """
    manifest = read_manifest(folder)
    if manifest is None:
        return False
    digest = hashlib.sha256((folder / CONFIG_FILE).read_bytes()).hexdigest()
    # The file may have another name elsewhere, by a hard link: that one stays what it is.
    (folder / MANIFEST_FILE).unlink()
    write_manifest(folder, manifest.model_copy(update={"files": {**manifest.files, CONFIG_FILE: digest}}))
    return True
