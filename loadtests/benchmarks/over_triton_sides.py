"""The servers of `over_triton`: a Triton, the gateway in front of it, and the embedded engine, all on one core.

The one Triton has the picture model for the gateway, as a model of tensors, and three ways of its own from a picture to
its label, with Python models that decode it: an ensemble of one and that model of tensors, one that asks that model
(business logic scripting), and one that runs the ONNX file itself, so that no tensor leaves it. The last also with each
queue policy that is tried. All sides decode with either of two decoders (`DECODERS`): the whole picture, or reduced
while it is decoded.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import grpc
from tritonclient.grpc import service_pb2 as pb

from loadtests.benchmarks.peers import ours
from loadtests.benchmarks.peers.calls import Call, read_v2_grpc, v2_grpc
from loadtests.benchmarks.peers.environments import environment
from loadtests.benchmarks.peers.peer import APPS, Command, Setup
from loadtests.benchmarks.peers.running import ask
from loadtests.benchmarks.peers.workloads import DRAFT, DRAFT_DECODER, MAX_BATCH_SIZE, Answer, Workload, agree
from loadtests.process_tree import ProcessTree
from server.local_triton.process import free_ports
from server.local_triton.program import find
from server.local_triton.repository import translate
from server.repository.config_text import CONFIG_FILE, parse_text, write_model_config

WORKLOAD = "picture"
DEFAULT_QUEUE = "whole"
"""The model whose queue is Triton's default."""
DECODERS = ("pillow", DRAFT_DECODER)
"""By the names that `processing.yaml` has for them."""
POLICIES: Mapping[str, str] = {
    **{f"whole_t{ms}": f"timeout_action: REJECT default_timeout_microseconds: {ms * 1000}" for ms in (20, 40, 60, 80)},
    **{f"whole_q{size}": f"max_queue_size: {size}" for size in (4, 8, 16)},
}
"""The queue policies that are tried for the best, by the model that has each."""
_MARKS = {DECODERS[0]: "", DECODERS[1]: DRAFT.removeprefix(WORKLOAD)}
"""Behind the names of a decoder's models."""
_START_S = 120.0
_SOON_S = 30.0
_BUILD = Path(__file__).parents[2] / "build"
_PICTURES = """name: "{name}"
backend: "python"
max_batch_size: {rows}
input {{ name: "picture" data_type: TYPE_STRING dims: 1 }}
output {{ {output} }}
instance_group {{ kind: KIND_CPU count: 1 }}
dynamic_batching {{ {policy} }}
parameters {{ key: "onnx" value {{ string_value: "{onnx}" }} }}
parameters {{ key: "next" value {{ string_value: "{next}" }} }}
{more}
"""
_LABEL = 'name: "label" data_type: TYPE_STRING dims: 1'
_ENSEMBLE = """name: "{name}"
platform: "ensemble"
max_batch_size: {rows}
input {{ name: "picture" data_type: TYPE_STRING dims: 1 }}
output {{ name: "y" data_type: TYPE_FP32 dims: {classes} }}
ensemble_scheduling {{
  step {{
    model_name: "{decode}" model_version: -1
    input_map {{ key: "picture" value: "picture" }} output_map {{ key: "x" value: "x" }}
  }}
  step {{
    model_name: "{model}" model_version: -1
    input_map {{ key: "x" value: "x" }} output_map {{ key: "y" value: "y" }}
  }}
}}
"""
_DRAFTED = 'parameters { key: "draft" value { string_value: "1" } }'


@dataclass(frozen=True)
class Side:
    """One way to get the label of a picture."""

    name: str
    decoder: str
    trees: Sequence[ProcessTree]
    """What runs for it."""
    held: Sequence[ProcessTree]
    """Those of them that are held still while another side is measured. A Triton is not: its Python backend's processes
    wait for each other's locks by the clock, and end with `lock_exception` after a pause. Idle, it takes next to
    nothing."""
    address: str
    call: Call

    @property
    def title(self) -> str:
        return f"{self.name}, {self.decoder}"

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

    def of(self, name: str, model: str, workload: Workload) -> Side:
        """The same server's other model of pictures."""
        return replace(self, name=name, call=v2_grpc(workload, model))


@dataclass(frozen=True)
class Sides:
    """With one decoder."""

    gateway: Side
    embedded: Side
    ensemble: Side
    scripted: Side
    """Triton, whose Python model asks the model of tensors."""
    alone: Side
    """Triton, whose Python model does everything."""

    @property
    def ours(self) -> Sequence[Side]:
        return self.gateway, self.embedded

    @property
    def tritons(self) -> Sequence[Side]:
        return self.ensemble, self.scripted, self.alone


@contextmanager
def started(workload: Workload, folder: Path, core: int) -> Iterator[Mapping[str, Sides]]:
    """All of them, by decoder, ended on the way out. `folder` has ``models``, as `workloads.write` writes it.

    Raises:
        TritonMissing: there is none.
        Unavailable: what its models need can't be installed.
        RuntimeError: one does not come up.
    """
    grpc_port, http_port, other_port = free_ports(3)
    setups = [_setup(folder, name, workload) for name in ("gateway", "embedded")]
    with ExitStack() as stack:

        def start(name: str, command: Command) -> ProcessTree:
            log = folder / f"{name}.log"
            return stack.enter_context(ProcessTree.running(command.argv, log, [core], env=command.env, cwd=command.cwd))

        triton = start("triton", _triton(workload, folder, grpc_port, http_port, other_port))
        behind = ["--engine", "triton", "--triton-url", f"grpc://127.0.0.1:{grpc_port}"]
        gateway = start("gateway", _with(_without(ours.command("http2", setups[0]), "--engine-threads"), *behind))
        only = [flag for mark in _MARKS.values() for flag in ("--load-model", f"{WORKLOAD}{mark}")]
        explicit = ["--model-control-mode", "explicit", *only]
        embedded = start("embedded", _with(ours.command("http2", setups[1]), *explicit))
        addresses = [f"127.0.0.1:{port}" for port in (setups[0].grpc_port, setups[1].grpc_port, grpc_port)]

        def sides_of(decoder: str) -> Sides:
            mark = _MARKS[decoder]
            predict = ours.grpc(replace(workload, name=f"{WORKLOAD}{mark}"))
            beside = partial(Side, decoder=decoder, trees=[triton], held=[], address=addresses[2])
            return Sides(
                Side("gateway in front of Triton", decoder, [triton, gateway], [gateway], addresses[0], predict),
                Side("embedded engine", decoder, [embedded], [embedded], addresses[1], predict),
                beside("Triton's ensemble", call=_classified(workload, f"ensemble{mark}")),
                beside("Triton's BLS", call=v2_grpc(workload, f"scripted{mark}")),
                beside("Triton, all in one Python model", call=v2_grpc(workload, f"{DEFAULT_QUEUE}{mark}")),
            )

        sides = {decoder: sides_of(decoder) for decoder in DECODERS}
        for each in sides.values():
            for side in (*each.ours, *each.tritons):
                side.wait_right(workload, _START_S)
        for tree in (gateway, embedded):
            tree.freeze()
        yield sides


def _classified(workload: Workload, model: str) -> Call:
    """The label by Triton's classification extension: the one text of the output is "score:index:label"."""
    call = v2_grpc(workload, model)
    request = pb.ModelInferRequest.FromString(call.body)
    request.outputs.add(name="y").parameters["classification"].int64_param = 1

    def read(message: bytes) -> Answer:
        text = read_v2_grpc(message)
        if not isinstance(text, str):
            raise TypeError(f"no label: {text}")
        return text.split(":", 2)[2]

    return replace(call, body=request.SerializeToString(), read=read)


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
    for mark in _MARKS.values():
        (source / f"{WORKLOAD}{mark}").symlink_to(folder / "models" / f"{WORKLOAD}{mark}")
    packages = next(environment("triton").parent.parent.glob("lib/python*/site-packages"))
    translate(source, repository, program.packages or packages)
    _name_labels(repository / WORKLOAD / CONFIG_FILE)
    write = partial(_write_pictures, repository, workload, packages)
    dims = ", ".join(map(str, workload.network.dims))
    for mark in _MARKS.values():
        more = _DRAFTED if mark else ""
        write(f"{DEFAULT_QUEUE}{mark}", "triton_pictures.py", more=more)
        write(f"scripted{mark}", "triton_bls.py", more=more)
        write(f"decode{mark}", "triton_decode.py", output=f'name: "x" data_type: TYPE_FP32 dims: [{dims}]', more=more)
        ensemble = repository / f"ensemble{mark}"
        (ensemble / "1").mkdir(parents=True)
        names = {"name": ensemble.name, "decode": f"decode{mark}", "model": WORKLOAD}
        text = _ENSEMBLE.format(rows=MAX_BATCH_SIZE, classes=workload.network.classes, **names)
        (ensemble / CONFIG_FILE).write_text(text)
    for name, policy in POLICIES.items():
        write(name, "triton_pictures.py", policy=f"default_queue_policy {{ {policy} }}")
    argv = [str(program.path), "--backend-directory", str(program.backends), "--model-repository", str(repository)]
    for kind, port in (("grpc", grpc_port), ("http", http_port), ("metrics", metrics_port)):
        argv += [f"--{kind}-address", "127.0.0.1", f"--{kind}-port", str(port)]
    return Command([*argv, "--allow-gpu-metrics", "false", "--disable-auto-complete-config"], folder)


def _name_labels(path: Path) -> None:
    """So that Triton's classification extension tells labels, not only indices."""
    config = parse_text(path.read_text(), path.parent.name)
    config.output[0].label_filename = "labels.txt"
    path.unlink()
    write_model_config(config, path)


def _write_pictures(
    repository: Path,
    workload: Workload,
    packages: Path,
    name: str,
    app: str,
    *,
    output: str = _LABEL,
    policy: str = "",
    more: str = "",
) -> None:
    """A model of the Python backend that takes pictures."""
    folder = repository / name
    (folder / "1").mkdir(parents=True)
    names = {"name": name, "onnx": workload.onnx, "next": WORKLOAD}
    config = _PICTURES.format(rows=MAX_BATCH_SIZE, output=output, policy=policy, more=more, **names)
    (folder / CONFIG_FILE).write_text(config)
    path = f"import sys\n\nsys.path[:0] = [{str(packages)!r}, {str(APPS)!r}]\n\n"
    (folder / "1" / "model.py").write_text(path + (APPS / app).read_text())
