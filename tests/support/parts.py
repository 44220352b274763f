"""Real parts that a machine may lack: a test that needs one is skipped with the reason; under CI it fails."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path
from typing import NoReturn

import pytest

from server.settings import TlsSettings


def lacking(reason: str) -> NoReturn:
    """End the test: a part is not there."""
    if os.environ.get("CI"):
        pytest.fail(f"{reason}, and this is CI")
    pytest.skip(reason)


def tool(name: str) -> str:
    """The path of a program."""
    # Daemons lie where not everybody looks.
    path = shutil.which(name, path=f"{os.environ.get('PATH', os.defpath)}:/usr/sbin")
    if path is None:
        lacking(f"{name} is not installed")
    return path


def self_signed(folder: Path) -> TlsSettings:
    """A certificate for the loopback, by its addresses and as `localhost`, that is its own authority; and its key."""
    certificate, key = folder / "certificate.pem", folder / "key.pem"
    subject = ["-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1", "-days", "1"]
    made = [tool("openssl"), "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"]
    command = [*made, "-keyout", str(key), "-out", str(certificate), *subject]
    subprocess.run(command, check=True, capture_output=True)
    return TlsSettings(certificate=str(certificate), key=str(key))
