"""What is generated and committed is what its source generates today."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

from server.observability.metrics_page import page

ROOT = Path(__file__).parents[2]
PROTOS = ("server/proto/forwardpass/v1/prediction.proto", "server/proto/keda/externalscaler.proto")


def test_the_stubs_are_those_of_the_proto(tmp_path: Path) -> None:
    """`make proto` changes nothing."""
    out = tmp_path.as_posix()
    command = ["-I", ".", f"--python_out={out}", f"--pyi_out={out}", f"--grpc_python_out={out}", *PROTOS]
    subprocess.run([sys.executable, "-m", "grpc_tools.protoc", *command], cwd=ROOT, check=True)

    made = sorted(path.relative_to(tmp_path) for path in tmp_path.rglob("*") if path.is_file())

    assert [path.name for path in made] == [
        f"{name}{ending}"
        for name in ("prediction", "externalscaler")
        for ending in ("_pb2.py", "_pb2.pyi", "_pb2_grpc.py")
    ]
    for path in made:
        assert (tmp_path / path).read_text() == (ROOT / path).read_text(), f"{path}: run make proto"


def test_every_target_of_the_makefile_is_there_once_and_declared() -> None:
    """make has nothing to complain of, and a file of a target's name would not hide it."""
    text = (ROOT / "Makefile").read_text()
    done = subprocess.run(["make", "-n", "help"], cwd=ROOT, capture_output=True, text=True, check=True)
    documented = re.findall(r"^([a-z-]+):.*## ", text, re.MULTILINE)
    declared = re.search(r"^\.PHONY: (.*)$", text, re.MULTILINE)

    assert done.stderr == ""
    assert len(documented) == len(set(documented))
    assert declared is not None
    assert set(documented) <= set(declared[1].split())


def test_every_benchmark_has_its_line_in_the_table_of_the_load_tests() -> None:
    """By its module, or by the target that runs it."""
    readme, makefile = ((ROOT / name).read_text() for name in ("loadtests/README.md", "Makefile"))
    told = "".join(line.split("|")[1] for line in readme.splitlines() if line.startswith("| `"))
    targets = re.findall(r"^([a-z-]+):.*## .*\n\t.*loadtests\.benchmarks\.(\w+) ", makefile, re.MULTILINE)
    named = {module for target, module in targets if f"`make {target}`" in told}

    paths = (ROOT / "loadtests" / "benchmarks").glob("*.py")
    benchmarks = {path.stem for path in paths if "\ndef main(" in path.read_text()}

    assert {one for one in benchmarks - named if f"loadtests.benchmarks.{one}`" not in told} == set()


def test_the_charts_schema_has_the_servers_settings() -> None:
    """`python helm/schema.py` changes nothing."""
    command = [sys.executable, "-c", "import schema; print(schema.text(), end='')"]
    made = subprocess.run(command, cwd=ROOT / "helm", check=True, capture_output=True, text=True).stdout

    assert made == (ROOT / "helm" / "forwardpass" / "values.schema.json").read_text(), "run make chart"


def test_the_page_of_metrics_is_that_of_the_catalog() -> None:
    """`make metrics` changes nothing."""
    assert page() == (ROOT / "server" / "observability" / "METRICS.md").read_text(), "run make metrics"


def test_the_licences_are_those_of_what_is_installed() -> None:
    """`python -m server.security.licences` changes nothing."""
    from server.security.licences import PAGE, page

    assert page() == PAGE.read_text()
