"""Sections of config.pbtxt, on one repository, by a real Triton and by our server: `response_cache`, by the numbers
that are told after each request, with Triton's `local` cache; `model_warmup`.

A Triton that is missing (`make triton` installs one) skips these tests; under CI they fail.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import httpx
import numpy as np
import pytest
import tritonclient.grpc as triton_grpc

from server.local_triton.process import LocalTriton, Ports, free_ports
from server.local_triton.program import TritonMissing, find
from tests.e2e.conftest import ROOT, end, start
from tests.support.onnx_models import linear_folder
from tests.support.parts import lacking

pytestmark = pytest.mark.e2e

SIZE = 1 << 20
PATIENCE_S = 30
CACHED = "response_cache { enable: true }"
SAMPLE = """
model_warmup {{
  name: "sample {}" batch_size: 2 count: 2 inputs {{ key: "x" value {{ data_type: TYPE_FP32 dims: 3 {} }} }}
}}
"""
SOURCES = ("zero_data: true", "random_data: true", 'input_data_file: "row.bin"')


@pytest.fixture(scope="module")
def sides(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Ports, Ports]]:
    """Triton's ports and ours. Both serve `merged` and `alone` with a cache, `plain` without, and `warmed`."""
    try:
        program = find(folder=ROOT / "build" / "triton")
    except TritonMissing as missing:
        lacking(str(missing))
    caches = program.path.parent.parent / "caches"
    if not (caches / "local").is_dir():
        lacking("this tritonserver has no local cache")
    folder = tmp_path_factory.mktemp("caches")
    repository = folder / "models"
    linear_folder(repository, "merged", more=f"{CACHED}\ndynamic_batching {{}}")
    linear_folder(repository, "alone", more=CACHED)
    linear_folder(repository, "plain", more="dynamic_batching {}")
    warmed = linear_folder(repository, "warmed", more="".join(map(SAMPLE.format, range(3), SOURCES)))
    (warmed / "warmup").mkdir()
    (warmed / "warmup" / "row.bin").write_bytes(np.ones(3, "<f4").tobytes())
    with ExitStack() as stack:
        output = stack.enter_context((folder / "triton.log").open("wb"))
        flags = [f"--cache-config=local,size={SIZE}", f"--cache-directory={caches}"]
        theirs = LocalTriton(program, repository, Ports(*free_ports(3)), flags=flags, output=output)
        stack.enter_context(theirs)
        ours = start(folder / "server.log", "--cache-size-bytes", str(SIZE), repository=repository)
        stack.callback(end, ours)
        try:
            theirs.wait_ready(60)
        except Exception as error:
            error.add_note((folder / "triton.log").read_text())
            raise
        yield theirs.ports, Ports(ours.port("REST"), ours.port("gRPC"), ours.port("metrics"))


def x(*values: float) -> np.ndarray[Any, Any]:
    return np.repeat(np.array(values, np.float32)[:, None], 3, axis=1)


ASKED: list[tuple[str, np.ndarray[Any, Any], dict[str, Any]]] = [
    ("merged", x(1), {}),
    ("merged", x(1), {"request_id": "its own"}),
    ("merged", x(1), {"priority": 1}),
    ("merged", x(1), {"timeout": 60_000_000}),
    ("merged", x(1), {"parameters": {"mine": "x"}}),
    ("merged", x(2), {}),
    ("merged", x(1, 2), {}),
    ("merged", x(2, 1), {}),
    ("merged", x(1, 2), {}),
    ("alone", x(1, 2, 3), {}),
    ("alone", x(1, 2, 3), {}),
    ("plain", x(1), {}),
    ("plain", x(1), {}),
]
WRONG = ("merged", np.zeros((1, 4), np.float32), {})


def counts(client: Any, model: str) -> dict[str, int]:
    [told] = client.get_inference_statistics(model, as_json=True)["model_stats"]
    found = {name: int(told.get(name, 0)) for name in ("inference_count", "execution_count")}
    return found | {name: int(one.get("count", 0)) for name, one in told["inference_stats"].items()}


def ask(client: Any, model: str, array: np.ndarray[Any, Any], more: dict[str, Any]) -> tuple[str, np.ndarray[Any, Any]]:
    tensor = triton_grpc.InferInput("x", list(array.shape), "FP32")
    tensor.set_data_from_numpy(array)
    result = client.infer(model, [tensor], **more)
    return result.get_response().id, result.as_numpy("y")


def test_after_each_request_both_tell_the_same(sides: tuple[Ports, Ports]) -> None:
    """Answers, ids, and every count of the statistics: what is a hit, what is a miss, and in which counts they are."""
    theirs, ours = (triton_grpc.InferenceServerClient(f"127.0.0.1:{ports.grpc}") for ports in sides)
    for number, (model, array, more) in enumerate(ASKED):
        (their_id, their_y), (our_id, our_y) = (ask(client, model, array, more) for client in (theirs, ours))
        assert our_id == their_id
        np.testing.assert_allclose(our_y, their_y, rtol=1e-5)
        assert_alike(theirs, ours, model, f"after request {number}")
    for client in (theirs, ours):
        with pytest.raises(triton_grpc.InferenceServerException):
            ask(client, *WRONG)
    for model in ("merged", "alone", "plain"):
        assert_alike(theirs, ours, model, "after those that were refused")
    told = counts(ours, "merged")
    assert (told["cache_hit"], told["cache_miss"]) == (5, 4)


def assert_alike(theirs: Any, ours: Any, model: str, when: str) -> None:
    """Here a request is counted when it is answered; Triton counts some of a pass a while later."""
    expected = counts(ours, model)
    assert found_in_time(theirs, model, lambda found: found == expected) == expected, when


def found_in_time(client: Any, model: str, met: Callable[[dict[str, int]], bool]) -> dict[str, int]:
    """The counts, once they are that or it has taken too long."""
    until = time.monotonic() + PATIENCE_S
    while not met(found := counts(client, model)) and time.monotonic() < until:
        time.sleep(0.02)
    return found


def test_both_have_the_same_metrics_of_the_cache(sides: tuple[Ports, Ports]) -> None:
    """Names and types; and the numbers of the models that have a cache."""
    texts = [httpx.get(f"http://127.0.0.1:{ports.metrics}/metrics").text for ports in sides]
    theirs, ours = (dict(re.findall(r"^# TYPE (nv_cache_\w+) (\w+)$", text, re.MULTILINE)) for text in texts)
    assert ours == theirs
    sample = r'^(nv_cache_num_\w+_per_model)\{model="(merged|alone)",version="1"\} (\d+)'
    theirs_told, ours_told = (
        {(name, model): float(value) for name, model, value in re.findall(sample, text, re.MULTILINE)} for text in texts
    )
    assert ours_told == theirs_told
    assert len(ours_told) == 4


def test_samples_to_warm_up_with_are_run_by_both(sides: tuple[Ports, Ports]) -> None:
    """The model that has one of each kind is ready on both, and answers its first request alike. Triton counts what
    nobody asked for: 3 samples of 2 rows, twice each."""
    theirs, ours = (triton_grpc.InferenceServerClient(f"127.0.0.1:{ports.grpc}") for ports in sides)
    assert theirs.is_model_ready("warmed")
    assert ours.is_model_ready("warmed")
    (_, their_y), (_, our_y) = (ask(client, "warmed", x(1), {}) for client in (theirs, ours))
    np.testing.assert_allclose(our_y, their_y, rtol=1e-5)
    assert counts(ours, "warmed")["success"] == 1
    expected = 1 + 3 * 2 * 2
    assert found_in_time(theirs, "warmed", lambda found: found["success"] >= expected)["success"] == expected
