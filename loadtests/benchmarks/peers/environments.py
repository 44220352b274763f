"""An environment of its own for each peer, made on first use from its requirements file."""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

FOLDER = Path(__file__).parents[3] / "build" / "peers"
REQUIREMENTS = Path(__file__).parent / "requirements"
_LONGEST_S = 1800


class Unavailable(Exception):
    """A peer can't be installed or started here; the text is what its line in the table says."""


def environment(name: str) -> Path:
    """The interpreter of the environment `name`, with what ``requirements/<name>.txt`` lists.

    Raises:
        Unavailable: it can't be made.
    """
    folder = FOLDER / name
    requirements = REQUIREMENTS / f"{name}.txt"

    def make() -> None:
        run([sys.executable, "-m", "venv", str(folder)])
        pip(folder / "bin" / "python", "-r", str(requirements))

    _once(folder, requirements, make)
    return folder / "bin" / "python"


def unpacked(name: str, requirements: Path) -> Path:
    """A folder `name` with the files of the packages in `requirements`, without what they depend on.

    Raises:
        Unavailable: it can't be made.
    """
    folder = FOLDER / name
    _once(
        folder,
        requirements,
        lambda: pip(Path(sys.executable), "--no-deps", "--target", str(folder), "-r", str(requirements)),
    )
    return folder


def pip(python: Path, *arguments: str) -> None:
    run([str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *arguments])


def run(command: list[str]) -> None:
    """Raises Unavailable, with the last line of what the command said, where it fails."""
    try:
        done = subprocess.run(  # noqa: S603 - our own command
            command, capture_output=True, text=True, timeout=_LONGEST_S, check=False
        )
    except subprocess.TimeoutExpired as error:
        raise Unavailable(f"can't be installed: took over {_LONGEST_S} s") from error
    if done.returncode:
        said = (done.stderr.strip() or done.stdout.strip() or "no reason given").splitlines()
        errors = [line for line in said if line.startswith("ERROR")] or said
        raise Unavailable(f"can't be installed: {errors[-1]}")


def _once(folder: Path, requirements: Path, make: Callable[[], None]) -> None:
    """Run `make` unless it already ran to its end for these very requirements."""
    digest = hashlib.sha256(requirements.read_bytes()).hexdigest()
    stamp = folder / ".requirements"
    if stamp.exists() and stamp.read_text() == digest:
        return
    shutil.rmtree(folder, ignore_errors=True)
    folder.parent.mkdir(parents=True, exist_ok=True)
    make()
    stamp.write_text(digest)
