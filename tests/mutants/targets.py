"""What is mutated, and which tests may notice it."""

from __future__ import annotations

from pathlib import Path

ROOT = Path(__file__).parents[2]


def _modules(folder: str) -> dict[str, Path]:
    paths = sorted((ROOT / folder).glob("*.py"))
    return {".".join((*folder.split("/"), path.stem)): path for path in paths if path.stem != "__init__"}


MODULES: dict[str, Path] = {
    **_modules("server/scheduler"),
    **_modules("server/transport/codec"),
    "server.transport.status": ROOT / "server/transport/status.py",
}

_SPEAKS_OF = ("server.", "tests.support")


def test_files() -> list[str]:
    """All unit and property tests that import something of the server, by their paths from the root."""
    found = [*(ROOT / "tests/unit").glob("test_*.py"), *(ROOT / "tests/property").glob("test_*.py")]
    return sorted(str(path.relative_to(ROOT)) for path in found if any(word in path.read_text() for word in _SPEAKS_OF))
