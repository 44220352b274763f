"""What the README shows is what happens: its commands run, its outputs are true, its figures are the manifests'."""

from __future__ import annotations

import json
import re
import subprocess
import sys

import pytest

from server.repository.certificate import read_manifest
from tests.e2e.conftest import REPOSITORY, ROOT, ServerProcess

pytestmark = pytest.mark.e2e

README = (ROOT / "README.md").read_text()


def block(name: str) -> str:
    """The fenced block behind ``<!-- checked: name -->``."""
    match = re.search(rf"<!-- checked: {name} -->\n```\w+\n(.*?)```", README, re.DOTALL)
    assert match, name
    return match[1]


def here(text: str, server: ServerProcess) -> str:
    """The block with the ports of the test's server in the place of the usual ones."""
    return text.replace("127.0.0.1:8000", f"127.0.0.1:{server.port('REST')}").replace("127.0.0.1:8001", server.grpc)


def rounded(text: str) -> str:
    """Floats to four places: the last digits differ from processor to processor."""
    return re.sub(r"\d+\.\d+", lambda match: f"{float(match[0]):.4f}", text.strip())


def test_the_curl_command_gives_the_output_that_is_shown(server: ServerProcess) -> None:
    """The first thing that a newcomer pastes."""
    command, shown = re.fullmatch(r"\$ (.*?[^\\])\n(.*)", block("curl"), re.DOTALL).groups()  # type: ignore[union-attr]

    result = subprocess.run(
        ["/bin/sh", "-c", here(command, server)], cwd=ROOT, capture_output=True, text=True, check=True, timeout=30
    )

    assert json.loads(rounded(result.stdout)) == json.loads(rounded(shown))


def test_the_python_lines_give_the_output_that_is_shown(server: ServerProcess) -> None:
    """The same by gRPC."""
    program = here(block("python"), server)

    result = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True, timeout=30
    )

    assert rounded(result.stdout) == rounded(block("output"))


def test_the_figures_of_the_models_are_those_of_their_manifests() -> None:
    """Each row of the table: the metric of the manifest to three places, and its baseline."""
    rows = re.findall(r"^\| `(\w+)` \|.*\| `(\w+)` (\S+) \| (\S+), (.+) \|$", README, re.MULTILINE)

    assert {row[0] for row in rows} == {"digits", "breast_cancer", "fraud"}
    for model, metric, value, baseline, name in rows:
        manifest = read_manifest(REPOSITORY / model)
        assert manifest
        version = manifest.versions["1"]
        assert value == f"{version.metrics[metric]:.3f}"
        assert baseline == f"{version.baseline[metric]:.3f}"
        assert name == version.baseline["name"]
