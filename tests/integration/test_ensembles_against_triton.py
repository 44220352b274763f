"""The same ensembles on a real Triton and on our server: answers, metadata, counts, errors, and what unloading does.

What differs is listed in scheduler/ensembles.md, and held here where it can be.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from google.protobuf import json_format
from onnx import helper, numpy_helper
from tritonclient.utils import InferenceServerException

from server.local_triton.process import LocalTriton, Ports, free_ports
from server.local_triton.program import TritonMissing, find
from tests.e2e.conftest import ROOT, end, start
from tests.e2e.test_ensembles import X, write
from tests.integration.test_against_triton import Client, Sides, clients, infer, outcome, same
from tests.support.ensembles import EnsembleText, StepText
from tests.support.onnx_models import WEIGHTS, linear, save, tensor
from tests.support.parts import lacking

pytestmark = pytest.mark.e2e


def unbatched(root: Path) -> None:
    """`alone` takes a row, `whole` any number of rows as one; neither has a batch dimension. And ensembles of them."""
    nodes = [helper.make_node("MatMul", ["x", "W"], ["y"])]
    save(
        root / "alone" / "1" / "model.onnx",
        nodes,
        [tensor("x", [3])],
        [tensor("y", [2])],
        [numpy_helper.from_array(WEIGHTS, "W")],
    )
    linear(root / "whole" / "1" / "model.onnx")
    for name, dims, given in (("alone", "3", "2"), ("whole", "[-1, 3]", "[-1, 2]")):
        (root / name / "config.pbtxt").write_text(
            f'name: "{name}" backend: "onnxruntime" max_batch_size: 0 '
            f'input {{ name: "x" data_type: TYPE_FP32 dims: {dims} }} '
            f'output {{ name: "y" data_type: TYPE_FP32 dims: {given} }}'
        )
        steps = [StepText(name, {"x": "raw"}, {"y": "middle"}), StepText("back", {"x": "middle"}, {"y": "out"})]
        EnsembleText({"raw": (3,)}, {"out": (3,)}, steps, max_batch_size=8).write(root, f"e-{name}")


@pytest.fixture(scope="module")
def sides(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sides]:
    """Both servers on one repository, in explicit mode with everything loaded."""
    try:
        program = find(folder=ROOT / "build" / "triton")
    except TritonMissing as missing:
        lacking(str(missing))
    folder = tmp_path_factory.mktemp("ensembles")
    repository = write(folder / "models")
    unbatched(repository)
    loose = [StepText("there", {"x": "raw"}, {"y": "out"})]
    EnsembleText({"raw": (-1,)}, {"out": (2,)}, loose, max_batch_size=8).write(repository, "loose")
    flags = ["--model-control-mode", "explicit", "--load-model", "*"]
    log = folder / "triton.log"
    with ExitStack() as stack:
        output = stack.enter_context(log.open("wb"))
        theirs = LocalTriton(program, repository, Ports(*free_ports(3)), flags=flags, output=output)
        stack.enter_context(theirs)
        ours = start(folder / "server.log", *flags, repository=repository)
        stack.callback(end, ours)
        try:
            theirs.wait_ready(60)
        except Exception as error:
            error.add_note(log.read_text())
            raise
        yield Sides(theirs.ports, Ports(ours.port("REST"), ours.port("gRPC"), ours.port("metrics")))


def both(sides: Sides) -> tuple[Client, Client]:
    return clients(sides, "grpc")


ASKED: dict[str, Callable[[Client, str], Any]] = {
    "it is ready": lambda client, _: client.is_model_ready("e"),
    "its version is ready": lambda client, _: client.is_model_ready("e", "1"),
    "all outputs": lambda client, kind: infer(client, kind, "e", {"raw": X}),
    "one row": lambda client, kind: infer(client, kind, "e", {"raw": X[:1]}),
    "an id": lambda client, kind: infer(client, kind, "e", {"raw": X}, request_id="seven"),
    "an ensemble of an ensemble": lambda client, kind: infer(client, kind, "outer", {"raw": X}),
    "a step that takes a row, of one row": lambda client, kind: infer(client, kind, "e-alone", {"raw": X[:1]}),
    "a step that takes a row, of two": lambda client, kind: infer(client, kind, "e-alone", {"raw": X}),
    "a step that takes all rows as one": lambda client, kind: infer(client, kind, "e-whole", {"raw": X}),
    "a size that a step refuses": lambda client, kind: infer(client, kind, "loose", {"raw": X[:, :2]}),
    "a size that it takes": lambda client, kind: infer(client, kind, "loose", {"raw": X}),
    "an unknown version": lambda client, kind: infer(client, kind, "e", {"raw": X}, model_version="2"),
    "an unknown input": lambda client, kind: infer(client, kind, "e", {"x": X}),
    "an unknown output": lambda client, kind: infer(client, kind, "e", {"raw": X}, ("again",)),
    "a missing input": lambda client, kind: infer(client, kind, "e", {}),
    "a wrong shape": lambda client, kind: infer(client, kind, "e", {"raw": X[:, :2]}),
    "too many rows": lambda client, kind: infer(client, kind, "e", {"raw": np.zeros((9, 3), np.float32)}),
    "more rows than the outer ensemble takes": lambda client, kind: infer(
        client, kind, "outer", {"raw": np.zeros((5, 3), np.float32)}
    ),
    "a wrong datatype": lambda client, kind: infer(client, kind, "e", {"raw": X.astype(np.int32)}, datatype="INT32"),
}


@pytest.mark.parametrize("transport", ["grpc", "http"])
@pytest.mark.parametrize("asked", ASKED)
def test_an_ensembles_answer_is_that_of_triton(sides: Sides, asked: str, transport: str) -> None:
    """Values, shapes, datatypes and status codes."""
    theirs, ours = (outcome(partial(ASKED[asked], client, transport)) for client in clients(sides, transport))
    same(theirs, ours)


@pytest.mark.parametrize("model", ["e", "outer", "loose", "e-alone", "e-whole"])
def test_metadata_and_steps_are_those_of_triton(sides: Sides, model: str) -> None:
    """The platform too; and the config's steps are told as they are."""
    theirs, ours = (client.get_model_metadata(model, as_json=True) for client in both(sides))
    assert theirs == ours
    steps = [
        json_format.MessageToDict(client.get_model_config(model).config.ensemble_scheduling) for client in both(sides)
    ]
    assert steps[0] == steps[1]


@pytest.mark.parametrize("model", ["outer", "e-whole"])
def test_an_ensemble_and_its_models_count_as_in_triton(sides: Sides, model: str) -> None:
    """Requests, rows, executions and the sizes of batches, of every model that had a part in it."""
    theirs, ours = both(sides)
    before = [counts(client) for client in (theirs, ours)]
    for client in (theirs, ours):
        for rows in (1, 2, 2):
            infer(client, "grpc", model, {"raw": X[:rows]})
    expected = grown(counts(ours), before[1])
    assert expected[model][:3] == (3, 5, 3)
    # Triton counts a request, and those of the steps, after it has answered.
    until = time.monotonic() + 30
    while (found := grown(counts(theirs), before[0])) != expected and time.monotonic() < until:
        time.sleep(0.02)
    assert found == expected


Counts = tuple[int, int, int, dict[int, int]]


def grown(late: dict[str, Counts], early: dict[str, Counts]) -> dict[str, Counts]:
    return {name: minus(late[name], early[name]) for name in late}


def counts(client: Client) -> dict[str, Counts]:
    """By model: successes, rows, executions, and executions by rows."""
    found: dict[str, Counts] = {}
    for one in client.get_inference_statistics().model_stats:
        sizes = {batch.batch_size: batch.compute_infer.count for batch in one.batch_stats}
        found[one.name] = (one.inference_stats.success.count, one.inference_count, one.execution_count, sizes)
    return found


def minus(late: Counts, early: Counts) -> Counts:
    sizes = {rows: n - early[3].get(rows, 0) for rows, n in late[3].items() if n > early[3].get(rows, 0)}
    return late[0] - early[0], late[1] - early[1], late[2] - early[2], sizes


@pytest.mark.parametrize("wanted", ["middle", "end"])
def test_some_outputs_can_be_asked_for_where_one_of_them_is_a_steps_input(sides: Sides, wanted: str) -> None:
    """Triton prunes too, and then finds no end of it: an error there, an answer here."""
    theirs, ours = (outcome(partial(infer, client, "grpc", "e", {"raw": X}, (wanted,))) for client in both(sides))
    assert theirs == "error StatusCode.INVALID_ARGUMENT"
    every = infer(both(sides)[0], "grpc", "e", {"raw": X})
    np.testing.assert_allclose(ours[2][wanted], every[2][wanted], rtol=1e-5)


def test_a_model_that_goes_takes_its_ensembles_out_and_brings_them_back(sides: Sides) -> None:
    """Of both servers the same ensembles serve after each step."""
    for call in ("unload_model", "load_model"):
        serving = []
        for client in both(sides):
            getattr(client, call)("back")
            serving.append({name: client.is_model_ready(name) for name in ("there", "e", "outer", "loose", "e-whole")})
        assert serving[0] == serving[1]
        assert serving[1]["loose"]
        assert serving[1]["outer"] is (call == "load_model")
    for client in both(sides):
        with pytest.raises(InferenceServerException):
            client.load_model("nobody")
