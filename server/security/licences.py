"""The licences of what an installed server brings along: `python -m server.security.licences` writes LICENCES.md.

Every package that the server or one of its extras for serving needs, and what those need in turn, as it is installed
here. A licence is what the package says of itself: its expression, else its classifiers, else its text's first words.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterable, Iterator
from importlib.metadata import Distribution, PackageNotFoundError, distribution
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
PAGE = Path(__file__).with_name("LICENCES.md")
EXTRAS = ("cpu", "tracing", "text", "genai", "auth", "s3", "gs", "az", "http")
"""For serving; what trains and what tests is in nobody's image."""
_NAME = re.compile(r"[A-Za-z0-9._-]+")
_EXTRAS_OF = re.compile(r"\[([^\]]+)\]")
_LONGEST = 60
TITLE = """\
# Licences of what the server needs

Made by `python -m server.security.licences`, of what is installed: the server with its extras for serving, and all
that those need. Versions stand in `constraints.txt`, and in the SBOM of `make audit`.

"""


def packages() -> dict[str, str]:
    """The licence of each package, by name."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = [*project["dependencies"], *(line for extra in EXTRAS for line in project["optional-dependencies"][extra])]
    found: dict[str, str] = {}
    left = [line for line in wanted if not line.startswith("forwardpass")]
    while left:
        line = left.pop()
        match = _NAME.match(line)
        assert match is not None
        name = re.sub(r"[-_.]+", "-", match[0]).lower()
        if name in found:
            continue
        try:
            package = distribution(name)
        except PackageNotFoundError:
            continue  # Of another platform, or not wanted with what is installed.
        found[name] = licence(package)
        extras = {extra.strip() for part in _EXTRAS_OF.findall(line.partition(";")[0]) for extra in part.split(",")}
        left += _needed(package.requires or (), extras)
    return dict(sorted(found.items()))


def _needed(requirements: Iterable[str], extras: set[str]) -> Iterator[str]:
    for requirement in requirements:
        _, _, marker = requirement.partition(";")
        wanted = re.search(r"extra\s*==\s*['\"]([^'\"]+)['\"]", marker)
        if wanted is None or wanted[1] in extras:
            yield requirement


def licence(package: Distribution) -> str:
    said: Any = package.metadata  # A message of email's, whatever its protocol leaves out.
    expression: str | None = said.get("License-Expression")
    if expression:
        return expression
    classified = [line.rpartition("::")[2].strip() for line in said.get_all("Classifier") or () if "License ::" in line]
    text = " ".join((said.get("License") or "").split())
    return ", ".join(classified) or text[:_LONGEST] or "not said"


def page() -> str:
    rows = [f"| {name} | {terms} |" for name, terms in packages().items()]
    return TITLE + "\n".join(["| package | licence |", "|---|---|", *rows]) + "\n"


if __name__ == "__main__":
    PAGE.write_text(page())
