"""Fuzz our HTTP/2 with coverage, for as long as one likes: ``python -m tests.fuzz.http2 -max_total_time=60``.

Needs the package atheris, which is no dependency; the suite runs seeded mutations instead (test_http2_fuzz.py).
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["server.transport.http2"]):
    from tests.support.http2_fuzz import SEEDS, converse


def one(received: bytes) -> None:
    """The first byte says how the rest is cut."""
    converse(received[1:], [received[0]] if received and received[0] else [])


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        for index, seed in enumerate(SEEDS):
            (Path(folder) / str(index)).write_bytes(b"\0" + seed)
        atheris.Setup([*sys.argv, folder], one)
        atheris.Fuzz()


if __name__ == "__main__":
    main()
