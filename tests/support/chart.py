"""The Helm chart, rendered: by Helm 3's program and by Helm 4's library, both of `make helm-tools`."""

from __future__ import annotations

import functools
import json
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from tests.support.parts import lacking

ROOT = Path(__file__).parents[2]
CHART = ROOT / "helm" / "forwardpass"
TOOLS = ROOT / "build" / "helm"
KUBERNETES = ("1.25", "1.28", "1.31", "1.34", "1.37")

Document = dict[str, Any]
# The one in C gives the same, ten times as fast.
LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


class Refused(Exception):
    """Helm would not render it; the text is what it said."""


def render(values: Mapping[str, Any] | None = None, kubernetes: str = "1.31", name: str = "r") -> list[Document]:
    """What `helm template` gives for a release of that name, anew for each caller. Raises Refused."""
    return [one for one in yaml.load_all(_text(json.dumps(values or {}), kubernetes, name), LOADER) if one]


@functools.cache
def _text(values: str, kubernetes: str, name: str) -> str:
    version = ("--kube-version", f"{kubernetes}.0")
    return _helm("template", name, CHART, "--namespace", "ns", *version, "--values", "-", values=values)


def lint(values: Mapping[str, Any]) -> None:
    """`helm lint`, warnings as errors. Raises Refused."""
    _helm("lint", CHART, "--strict", "--values", "-", values=json.dumps(values))


def _helm(*arguments: str | Path, values: str) -> str:
    program = TOOLS / "helm"
    if not program.is_file():
        lacking("Helm is not there: make helm-tools installs it")
    done = subprocess.run([program, *arguments], input=values, capture_output=True, text=True)
    if done.returncode:
        raise Refused(done.stderr or done.stdout)
    return done.stdout


def render_by_helm4(cases: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """Of each case its ``documents``, and the ``problems`` that Kubernetes' schemas have with them."""
    python = TOOLS / "python" / "bin" / "python"
    if not python.is_file():
        lacking("Helm 4's library is not there: make helm-tools installs it")
    asked = {"chart": str(CHART), "cases": cases, "versions": KUBERNETES}
    command = [python, Path(__file__).with_name("helm4.py")]
    done = subprocess.run(command, input=json.dumps(asked), capture_output=True, text=True, check=True)
    answer: dict[str, dict[str, Any]] = json.loads(done.stdout)
    return answer


def one(documents: list[Document], kind: str, name: str = "r-forwardpass") -> Document:
    """The document of that kind and name; there must be just one."""
    (found,) = [each for each in documents if each["kind"] == kind and each["metadata"]["name"] == name]
    return found


def kinds(documents: list[Document]) -> list[str]:
    return sorted(each["kind"] for each in documents)
