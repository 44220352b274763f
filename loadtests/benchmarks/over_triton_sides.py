"""The servers of `over_triton`: a Triton, the gateway in front of it, and the embedded engine, all on one core.

The one Triton has the picture model twice: for the gateway as a model of tensors, and as one that decodes pictures
itself (`apps/triton_pictures.py`, of the Python backend), once for each queue policy that is tried. All sides
decode with either of two decoders (`DECODERS`): the whole picture, or reduced while it is decoded.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import grpc

from loadtests.benchmarks.peers import ours
from loadtests.benchmarks.peers.calls import Call, v2_grpc
from loadtests.benchmarks.peers.environments import environment
from loadtests.benchmarks.peers.peer import APPS, Command, Setup
from loadtests.benchmarks.peers.running import ask
from loadtests.benchmarks.peers.workloads import MAX_BATCH_SIZE, Workload, agree
from loadtests.process_tree import ProcessTree
from server.local_triton.process import free_ports
from server.local_triton.program import find
from server.local_triton.repository import translate

WORKLOAD = "picture"
DEFAULT_QUEUE = "whole"
"""The model whose queue is Triton's default."""
DECODERS = ("pillow", "pillow-draft")
"""By the names that `processing.yaml` has for them."""
_DRAFT = f"{WORKLOAD}_draft"
_DRAFT_WHOLE = f"{DEFAULT_QUEUE}_draft"
POLICIES: Mapping[str, str] = {
    **{f"whole_t{ms}": f"timeout_action: REJECT default_timeout_microseconds: {ms * 1000}" for ms in (20, 40, 60, 80)},
    **{f"whole_q{size}": f"max_queue_size: {size}" for size in (4, 8, 16)},
}
"""The queue policies that are tried for the best, by the model that has each."""
_START_S = 120.0
_SOON_S = 30.0
_BUILD = Path(__file__).parents[2] / "build"
_CONFIG = """name: "{name}"
backend: "python"
max_batch_size: {rows}
input {{ name: "picture" data_type: TYPE_STRING dims: 1 }}
output {{ name: "label" data_type: TYPE_STRING dims: 1 }}
instance_group {{ kind: KIND_CPU count: 1 }}
dynamic_batching {{ {policy} }}
parameters {{ key: "onnx" value {{ string_value: "{onnx}" }} }}
{more}
"""
_DRAFTED = 'parameters { key: "draft" value { string_value: "1" } }'


@dataclass(frozen=True)
class Side:
    """One way to get the label of a picture."""

    title: str
    trees: Sequence[ProcessTree]
    """What runs for it."""
    held: Sequence[ProcessTree]
    """Those of them that are held still while another side is measured. A Triton is not: its Python backend's processes
    wait for each other's locks by the clock, and end with `lock_exception` after a pause. Idle, it takes next to
    nothing."""
    address: str
    call: Call

    @contextmanager
    def awake(self, workload: Workload) -> Iterator[None]:
        """Raises RuntimeError if it does not answer rightly within half a minute."""
        for tree in self.held:
            tree.thaw()
        try:
            self.wait_right(workload, _SOON_S)
            yield
        finally:
            for tree in self.held:
                tree.freeze()

    def wait_right(self, workload: Workload, seconds: float) -> None:
        until, problem = time.monotonic() + seconds, ""
        while time.monotonic() < until:
            try:
                answer = self.call.read(ask(self.call, self.address))
            except grpc.RpcError as error:
                problem = str(error)
                if dead := [tree for tree in self.trees if not tree.alive()]:
                    raise RuntimeError(f"{self.title}: it ended: {dead[0].log.read_text()[-500:]}") from error
                time.sleep(0.1)
                continue
            if agree(answer, workload.answer):
                return
            problem = f"{answer!r} is not {workload.answer!r}"
            break
        raise RuntimeError(f"{self.title}: {problem}")

    def of(self, title: str, model: str, workload: Workload) -> Side:
        """The same server's other model of whole pictures."""
        return replace(self, title=title, call=v2_grpc(workload, model))


@dataclass(frozen=True)
class Sides:
    """Each with the decoder of the whole picture."""

    gateway: Side
    triton: Side
    embedded: Side
    drafts: Sequence[Side]
    """The same, with the other decoder."""

    def __iter__(self) -> Iterator[Side]:
        return iter((self.gateway, self.triton, self.embedded, *self.drafts))


@contextmanager
def started(workload: Workload, folder: Path, core: int) -> Iterator[Sides]:
    """All of them, ended on the way out. `folder` has ``models``, as `workloads.write` writes it.

    Raises:
        TritonMissing: there is none.
        Unavailable: what its models need can't be installed.
        RuntimeError: one does not come up.
    """
    grpc_port, http_port, other_port = free_ports(3)
    _write_draft(folder / "models")
    draft = replace(workload, name=_DRAFT)
    setups = [_setup(folder, name, workload) for name in ("gateway", "embedded")]
    with ExitStack() as stack:

        def start(name: str, command: Command) -> ProcessTree:
            tree = ProcessTree(command.argv, folder / f"{name}.log", [core], env=command.env, cwd=command.cwd)
            stack.callback(tree.end)
            return tree

        triton = start("triton", _triton(workload, folder, grpc_port, http_port, other_port))
        behind = ["--engine", "triton", "--triton-url", f"grpc://127.0.0.1:{grpc_port}"]
        gateway = start("gateway", _with(_without(ours.command("http2", setups[0]), "--engine-threads"), *behind))
        only = ["--model-control-mode", "explicit", "--load-model", WORKLOAD, "--load-model", _DRAFT]
        embedded = start("embedded", _with(ours.command("http2", setups[1]), *only))
        predict, whole = ours.grpc(workload), v2_grpc(workload, DEFAULT_QUEUE)
        addresses = [f"127.0.0.1:{port}" for port in (setups[0].grpc_port, grpc_port, setups[1].grpc_port)]
        sides = Sides(
            Side("gateway in front of Triton", [triton, gateway], [gateway], addresses[0], predict),
            Side("Triton, pictures in its Python backend", [triton], [], addresses[1], whole),
            Side("embedded engine", [embedded], [embedded], addresses[2], predict),
            [],
        )
        reduced = (ours.grpc(draft), v2_grpc(workload, _DRAFT_WHOLE), ours.grpc(draft))
        drafts = [
            replace(side, title=f"{side.title}, {DECODERS[1]}", call=call)
            for side, call in zip(sides, reduced, strict=True)
        ]
        sides = replace(sides, drafts=drafts)
        for side in sides:
            side.wait_right(workload, _START_S)
        for tree in (gateway, embedded):
            tree.freeze()
        yield sides


def _setup(folder: Path, name: str, workload: Workload) -> Setup:
    own = folder / name
    own.mkdir()
    grpc_port, http_port, other_port = free_ports(3)
    return Setup(own, {WORKLOAD: workload}, folder / "models", grpc_port, http_port, other_port, 1, 1)


def _with(command: Command, *flags: str) -> Command:
    return replace(command, argv=[*command.argv, *flags])


def _without(command: Command, flag: str) -> Command:
    """Without that flag and its value."""
    at = list(command.argv).index(flag)
    return replace(command, argv=[*command.argv[:at], *command.argv[at + 2 :]])


def _triton(workload: Workload, folder: Path, grpc_port: int, http_port: int, metrics_port: int) -> Command:
    program = find(folder=_BUILD / "triton")
    repository, source = folder / "triton_models", folder / "tensors"
    repository.mkdir()
    source.mkdir()
    for name in (WORKLOAD, _DRAFT):
        (source / name).symlink_to(folder / "models" / name)
    pictures = next(environment("triton").parent.parent.glob("lib/python*/site-packages"))
    translate(source, repository, program.packages or pictures)
    for name, policy in {DEFAULT_QUEUE: "", **POLICIES}.items():
        _write_whole(repository / name, policy, workload, pictures)
    _write_whole(repository / _DRAFT_WHOLE, "", workload, pictures, _DRAFTED)
    argv = [str(program.path), "--backend-directory", str(program.backends), "--model-repository", str(repository)]
    for kind, port in (("grpc", grpc_port), ("http", http_port), ("metrics", metrics_port)):
        argv += [f"--{kind}-address", "127.0.0.1", f"--{kind}-port", str(port)]
    return Command([*argv, "--allow-gpu-metrics", "false", "--disable-auto-complete-config"], folder)


def _write_draft(models: Path) -> None:
    """The model of pictures once more, whose spec names the other decoder."""
    folder = models / _DRAFT
    shutil.copytree(models / WORKLOAD, folder)
    config, processing = folder / "config.pbtxt", folder / "processing.yaml"
    config.write_text(config.read_text().replace(f'"{WORKLOAD}"', f'"{_DRAFT}"'))
    processing.write_text(f"decode:\n  decoder: {DECODERS[1]}\n{processing.read_text()}")


def _write_whole(folder: Path, policy: str, workload: Workload, packages: Path, more: str = "") -> None:
    (folder / "1").mkdir(parents=True)
    default = f"default_queue_policy {{ {policy} }}" if policy else ""
    config = _CONFIG.format(name=folder.name, rows=MAX_BATCH_SIZE, policy=default, onnx=workload.onnx, more=more)
    (folder / "config.pbtxt").write_text(config)
    path = f"import sys\n\nsys.path[:0] = [{str(packages)!r}, {str(APPS)!r}]\n\n"
    (folder / "1" / "model.py").write_text(path + (APPS / "triton_pictures.py").read_text())
