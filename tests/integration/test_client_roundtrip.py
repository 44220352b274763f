"""The client against the real transports, over a scripted data plane: what is asked arrives, the answer returns."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from server.client import AsyncClient, Client, ClientError, IndexEntry
from server.errors import Code, DeadlineExceeded, PayloadTooLarge, QueueFull
from server.settings import GrpcSettings, HttpSettings, TlsSettings
from server.tensor import Tensor, TensorSpec
from server.transport.http2.server import Http2Server
from server.transport.rest import RestServer
from server.types import (
    NO_DEADLINE,
    Classification,
    Embedding,
    Entities,
    Entity,
    ImageInput,
    RowInput,
    Score,
    TextInput,
)
from tests.support.fake_dataplane import MODEL, FakeDataPlane

Ask = Callable[..., Awaitable[Any]]
LIMIT = 1 << 20


@pytest.fixture
def dataplane() -> FakeDataPlane:
    return FakeDataPlane()


@pytest.fixture(params=["http", "grpc"])
async def url(request: pytest.FixtureRequest, dataplane: FakeDataPlane) -> AsyncIterator[str]:
    server: RestServer | Http2Server
    if request.param == "http":
        server = RestServer(dataplane, "127.0.0.1", HttpSettings(port=0, max_body_bytes=LIMIT))
    else:
        server = Http2Server(dataplane, "127.0.0.1", GrpcSettings(port=0, max_message_bytes=LIMIT), TlsSettings())
    yield f"{request.param}://127.0.0.1:{await server.start()}"
    await server.stop(1.0)


@pytest.fixture(params=["sync", "asyncio"])
def ask(request: pytest.FixtureRequest, url: str) -> Ask:
    def sync(method: str, *args: Any, **kwargs: Any) -> Any:
        with Client(url) as client:
            return getattr(client, method)(*args, **kwargs)

    async def awaited(method: str, *args: Any, **kwargs: Any) -> Any:
        async with AsyncClient(url) as client:
            return await getattr(client, method)(*args, **kwargs)

    async def in_a_thread(method: str, *args: Any, **kwargs: Any) -> Any:
        return await asyncio.to_thread(sync, method, *args, **kwargs)

    return in_a_thread if request.param == "sync" else awaited


async def test_infer_there_and_back(ask: Ask, dataplane: FakeDataPlane) -> None:
    """The server sees the arrays that were given, the caller the sum that was made of them."""
    a = np.arange(8, dtype=np.float32).reshape(2, 4)

    out = await ask("infer", MODEL, {"a": a, "b": a.astype(">f4")}, ["sum"], version="1", timeout_s=30)

    request = dataplane.requests[0]
    assert (request.model_name, request.model_version, list(request.outputs)) == (MODEL, "1", ["sum"])
    assert request.deadline_ns != NO_DEADLINE
    assert [tensor.name for tensor in request.inputs] == ["a", "b"]
    assert np.array_equal(out["sum"], a + a)
    assert out["sum"].dtype == np.float32


async def test_every_datatype_returns_as_it_left(ask: Ask, dataplane: FakeDataPlane) -> None:
    """All outputs are read where none is named, strings and empty tensors among them."""
    arrays: dict[str, Any] = {
        "half": np.array([[0.5, -2]], np.float16),
        "flags": np.array([True, False]),
        "big": np.array([2**64 - 1], np.uint64),
        "none": np.zeros((0, 3), np.int32),
        "words": np.array([[b"a", b"\xc3\xa9"], [b"", b"x" * 300]], dtype=object),
    }
    dataplane.answers = [Tensor.from_numpy(name, array) for name, array in arrays.items()]

    out = await ask("infer", MODEL, {"a": [[1.0]], "words": ["é", b"\xff\0"], "scalar": np.float64(1)})

    assert list(out) == list(arrays)
    for name, array in arrays.items():
        assert out[name].dtype == array.dtype
        assert out[name].tolist() == array.tolist()
    _, words, scalar = dataplane.requests[0].inputs
    assert (words.datatype, words.numpy().tolist()) == ("BYTES", ["é".encode(), b"\xff\0"])
    assert (scalar.shape, scalar.numpy().item()) == ((), 1.0)
    assert dataplane.requests[0].deadline_ns == NO_DEADLINE


async def test_predict_there_and_back(ask: Ask, dataplane: FakeDataPlane, tmp_path: Path) -> None:
    """Rows, texts and pictures are the same raw inputs at the server, by whichever way they came."""
    file = tmp_path / "a.png"
    file.write_bytes(b"\x89PNG")
    rows = [{"n": 3, "x": 0.5, "s": "é", "none": None, "yes": True}, [3, "b", -1.25]]

    answer = await ask("predict", MODEL, [*rows, "text", b"\x00\xff", file], version="1", top_k=1, timeout_s=30)

    request = dataplane.predicts[0]
    assert (request.model_name, request.model_version, request.top_k) == (MODEL, "1", 1)
    assert list(request.inputs) == [
        *map(RowInput, rows),
        TextInput("text"),
        ImageInput(b"\x00\xff"),
        ImageInput(b"\x89PNG", "image/png"),
    ]
    assert request.deadline_ns != NO_DEADLINE
    assert type(request.inputs[0].values["n"]) is int
    assert answer.predictions == [Classification("yes", 0.75, (Score("yes", 0.75),))] * 5


async def test_every_kind_of_answer_comes_as_it_left(ask: Ask, dataplane: FakeDataPlane) -> None:
    """Vectors and entities, empty ones too, are the same at the client by every way."""
    kinds = [
        Embedding((0.1, -1e-30, 3.0)),
        Entities((Entity("LOC", 0.75, 2, 6, "Oslé"), Entity("PER", 1.0, 7, 9, "Al"))),
        Entities(()),
        Classification("a", 0.5, ()),
    ]
    dataplane.predictions = kinds

    answer = await ask("predict", MODEL, "text")

    assert answer.predictions == kinds


async def test_one_picture_alone(ask: Ask, dataplane: FakeDataPlane, tmp_path: Path) -> None:
    """A single picture of known type takes the short way over REST, and is the same at the server."""
    file = tmp_path / "a.jpeg"
    file.write_bytes(b"\xff\xd8\xff")

    answer = await ask("predict", MODEL, file, top_k=2)

    assert list(dataplane.predicts[0].inputs) == [ImageInput(b"\xff\xd8\xff", "image/jpeg")]
    assert dataplane.predicts[0].top_k == 2
    assert answer.predictions[0].label == "image"


async def test_health_index_and_metadata(ask: Ask, dataplane: FakeDataPlane) -> None:
    """What the data plane says of itself is what the client gets."""
    assert await ask("server_ready") is True
    dataplane.ready_now = False
    assert await ask("server_ready") is False
    assert await ask("models") == [
        IndexEntry(MODEL, "1", "READY", ""),
        IndexEntry("broken", "", "UNAVAILABLE", "no model file"),
    ]
    metadata = await ask("model_metadata", MODEL)
    assert metadata.outputs == (TensorSpec("sum", "FP32", (-1, 4)),)
    assert metadata.predict in ({"task": "adding"}, None)


@pytest.mark.parametrize(
    ("outcome", "code", "retry_after_s"),
    [
        (QueueFull(MODEL, 4, retry_after_ms=2000), Code.EXHAUSTED, 2.0),
        (QueueFull(MODEL, 4), Code.EXHAUSTED, None),
        (DeadlineExceeded(MODEL, 7), Code.DEADLINE, None),
        (PayloadTooLarge("inputs[0]", 4), None, None),
        (ZeroDivisionError("secret"), Code.INTERNAL, None),
    ],
    ids=lambda value: type(value).__name__,
)
async def test_an_error_arrives_with_its_code_and_words(
    ask: Ask, url: str, dataplane: FakeDataPlane, outcome: Exception, code: Code | None, retry_after_s: float | None
) -> None:
    """The code, the message and the hint are the server's; a foreign error says nothing of itself."""
    dataplane.outcome = outcome
    expected = code or (Code.EXHAUSTED if url.startswith("grpc") else Code.TOO_LARGE)

    for call in (("infer", MODEL, {"a": [[1.0]]}), ("predict", MODEL, "text")):
        with pytest.raises(ClientError) as caught:
            await ask(*call)

        error = caught.value
        assert (error.code, error.retry_after_s) == (expected, retry_after_s)
        assert error.message == getattr(outcome, "public_message", "internal error")


async def test_an_unknown_model_is_not_found(ask: Ask) -> None:
    """A name with characters of a path is a name like any other."""
    for name in ("nope", "a/b?c=é %2F"):
        for method, rest in (("infer", ({"a": [[1.0]]},)), ("model_metadata", ())):
            with pytest.raises(ClientError, match="NOT_FOUND") as caught:
                await ask(method, name, *rest)
            assert f"'{name}'" in caught.value.message


async def test_a_body_over_the_limit_is_refused_as_such(ask: Ask, url: str) -> None:
    """The server's limit is reported as the server's, and not as a lost connection."""
    with pytest.raises(ClientError) as caught:
        await ask("infer", MODEL, {"a": np.zeros(LIMIT, np.float32)})

    assert caught.value.code is (Code.EXHAUSTED if url.startswith("grpc") else Code.TOO_LARGE)


async def test_a_deadline_ends_the_call(ask: Ask, dataplane: FakeDataPlane) -> None:
    """A server that does not answer costs no more than the deadline, and the request is cancelled there."""
    dataplane.held = True

    with pytest.raises(ClientError) as caught:
        await ask("predict", MODEL, "text", timeout_s=0.2)

    assert caught.value.code is Code.DEADLINE
    await dataplane.gone.wait()
    assert dataplane.cancelled_predicts == 1


async def test_a_cancelled_task_cancels_its_call(url: str, dataplane: FakeDataPlane) -> None:
    """Whoever stops waiting for an AsyncClient frees the server of the work."""
    dataplane.held = True
    async with AsyncClient(url) as client:
        task = asyncio.create_task(client.infer(MODEL, {"a": [[1.0]]}))
        await dataplane.arrived.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    await dataplane.gone.wait()
    assert dataplane.cancelled == dataplane.requests
