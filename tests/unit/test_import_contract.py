"""The floors of the architecture: an import never runs up, and each part knows only what it may."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

FLOORS = {
    "server.cli": 8,
    "server.cli_tools": 7,
    "server.cli_output": 7,
    "server.app": 7,
    "server.workers": 7,
    "server.banner": 6,
    "server.transport": 6,
    "server.client": 6,
    "server.observability.metrics": 6,
    "server.observability.cache_metrics": 6,
    "server.observability.catalog": 4,
    "server.observability.definitions": 1,
    "server.observability.exposition": 4,
    "server.observability.metrics_page": 1,
    "server.observability.sequence_metrics": 6,
    "server.observability.rollout_metrics": 6,
    "server.transport.http2.flow": 1,
    "server.transport.http2.frames": 1,
    "server.transport.http2.hpack": 1,
    "server.transport.http2.hpack_encode": 1,
    "server.transport.http2.huffman": 1,
    "server.transport.http2.prefix": 1,
    "server.transport.http2.static_table": 1,
    "server.observability.writing_metrics": 6,
    "server.dataplane": 5,
    "server.predictions": 5,
    "server.scaling": 5,
    "server.rollout": 5,
    "server.rollout_verdict": 4,
    "server.model_control": 5,
    "server.served": 5,
    "server.queueing": 4,
    "server.serving": 5,
    "server.in_service": 5,
    "server.request_check": 4,
    "server.sequence_check": 4,
    "server.scheduler": 3,
    "server.repository": 3,
    "server.engine": 2,
    "server.pipeline": 2,
    "server.call": 2,
    "server.answering": 3,
    "server.classification": 2,
    "server.security": 2,
    "server.security.cli": 7,
    "server.security.watched": 1,
    "server.security.addresses": 0,
    "server.security.roles": 0,
    "server.observability.audit": 1,
    "server.shared_memory": 2,
    "server.shared_memory.references": 1,
    "server.lifecycle": 1,
    "server.observability.stages": 4,
    "server.observability.machine": 4,
    "server.observability.energy": 4,
    "server.observability.gpu": 4,
    "server.observability.logging": 1,
    "server.observability.log_control": 1,
    "server.observability.access": 1,
    "server.observability.certificates": 4,
    "server.observability.following": 4,
    "server.observability.otel": 1,
    "server.observability.spans": 1,
    "server.observability.trace_context": 1,
    "server.observability.way": 1,
    "server.observability.whose": 1,
    "server.observability.trace_file": 1,
    "server.observability.trace_settings": 1,
    "server.observability.tracing": 4,
    "server.settings_doc": 1,
    "server.proto": 1,
    "server.local_triton": 4,
    "server.comparison": 7,
    "server.load": 6,
    "server.tuning": 7,
    "server.planning": 7,
    "server.offload": 1,
    "server.chat": 1,
    "server.tasks": 1,
    "server.over_triton": 5,
    "server.process": 1,
    "server.environment": 1,
    "server.settings": 1,
    "server.bfloat16": 1,
    "server.tensor": 1,
    "server.types": 1,
    "server.answers": 1,
    "server.buckets": 1,
    "server.sequences": 1,
    "server.ensembles": 1,
    "server.explain": 1,
    "server.afterwards": 0,
    "server.whole": 0,
    "server.errors": 0,
}
"""A module imports from its own floor or below. The longest matching name counts."""

SIBLINGS_APART = ["server.scheduler", "server.repository", "server.engine", "server.pipeline"]
"""Packages that do not know each other even where the floors would let them, but for these doors:"""

DOORS = {
    ("server.scheduler", "server.engine"): "server.engine.base",
    ("server.repository", "server.engine"): "server.engine.base",
    ("server.repository", "server.pipeline"): "server.pipeline.base",
}

HEAVY = {"torch", "lightning", "sklearn", "skl2onnx", "pandas", "onnx", "onnxscript", "pyarrow"}


def modules(top: str) -> list[Path]:
    return sorted(p for p in (ROOT / top).rglob("*.py") if not p.stem.endswith(("_pb2", "_pb2_grpc")))


def dotted(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports(path: Path) -> set[str]:
    """Every module that `path` imports, at the top, in functions or for typing."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            found.add(node.module)
            found.update(f"{node.module}.{alias.name}" for alias in node.names)
    return {name for name in found if name.split(".")[0] in {"server", "exporter"} | HEAVY}


def floor(name: str) -> int | None:
    while name:
        if name in FLOORS:
            return FLOORS[name]
        name = name.rpartition(".")[0]
    return None


SERVER = [p for p in modules("server") if dotted(p) not in ("server", "server.__main__", "server.observability")]


@pytest.mark.parametrize("path", SERVER, ids=dotted)
def test_every_module_stands_on_a_floor(path: Path) -> None:
    """A module without a floor would escape the contract."""
    assert floor(dotted(path)) is not None


@pytest.mark.parametrize("path", SERVER, ids=dotted)
def test_no_import_runs_up(path: Path) -> None:
    """From the top: app, transport, dataplane, scheduler and repository, engine and pipeline, types, errors."""
    own = floor(dotted(path))
    assert own is not None
    above = [name for name in imports(path) if (level := floor(name)) is not None and level > own]
    if dotted(path) == "server.cli":
        above = [name for name in above if not name.startswith("exporter")]

    assert above == []


@pytest.mark.parametrize("path", SERVER, ids=dotted)
def test_siblings_meet_only_at_their_doors(path: Path) -> None:
    """The scheduler knows the engine's protocol and no engine; the repository likewise, and pipelines."""
    name = dotted(path)
    own = next((package for package in SIBLINGS_APART if name.startswith(package)), None)
    if own is None:
        return
    others = [package for package in SIBLINGS_APART if package != own]
    trespass = [
        imported
        for imported in imports(path)
        for other in others
        if imported.startswith(other + ".") and not imported.startswith(DOORS.get((own, other), "-"))
    ]

    assert trespass == []


@pytest.mark.parametrize("path", modules("server"), ids=dotted)
def test_the_server_knows_neither_the_exporter_nor_its_packages(path: Path) -> None:
    """`server` installs and runs without PyTorch; only the command line may mount the exporter's commands."""
    trespass = {name for name in imports(path) if name.split(".")[0] in HEAVY | {"exporter"}}
    if dotted(path) == "server.cli":
        trespass = {name for name in trespass if not name.startswith("exporter")}

    assert trespass == set()


@pytest.mark.parametrize("path", modules("exporter"), ids=dotted)
def test_the_exporter_reads_only_what_the_server_reads(path: Path) -> None:
    """Training shares the repository's formats and the pipelines with serving, what a config means to the engine, and
    the engine that writes text, which certifies what is built; nothing else."""
    allowed = (
        "server.repository",
        "server.pipeline",
        "server.tensor",
        "server.types",
        "server.errors",
        "server.whole",
        "server.engine.base",
        "server.engine.session",
        "server.engine.genai",
    )
    trespass = [n for n in imports(path) if n.startswith("server.") and not n.startswith(allowed)]

    assert trespass == []


WALL_CLOCK = {
    "chat.py",  # the date that a template of a conversation may name
    "observability/otel.py",  # when a span was, for a collector
    "scheduler/histogram.py",  # when an exemplar was seen
    "scheduler/statistics.py",  # when a model was last asked
    "security/cli.py",  # when a key was made, and ends
    "security/gate.py",  # whether it has ended
    "transport/openai/answers.py",  # `created`
}


def test_only_what_tells_the_day_reads_the_clock_that_may_jump() -> None:
    """Deadlines, queues, probes and waits go by the monotonic clock: an hour back or ahead is nothing to them."""
    readers = set()
    for path in (ROOT / "server").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            name = ast.unparse(node) if isinstance(node, ast.Attribute) else ""
            if name in ("time.time", "time.time_ns", "datetime.now", "datetime.utcnow", "date.today"):
                readers.add(path.relative_to(ROOT / "server").as_posix())

    assert readers == WALL_CLOCK
