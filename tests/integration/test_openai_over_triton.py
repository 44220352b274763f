"""OpenAI's routes, generate and PredictStream over decoupled models of a real Triton, with the tensors of its vLLM and
TensorRT-LLM backends."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import AsyncGenerator, Iterator
from contextlib import ExitStack, aclosing
from pathlib import Path

import httpx
import openai
import pytest

from server.client import AsyncClient, Client, ClientError
from server.errors import Code
from server.local_triton.program import TritonMissing, find
from server.types import Written
from tests.e2e.conftest import ROOT, ServerProcess
from tests.support.parts import lacking
from tests.support.tritons import in_front_of, triton

TRANSPORTS = ("http2", "grpcio")
_POLICY = 'backend: "python" model_transaction_policy { decoupled: true } instance_group { kind: KIND_CPU count: 1 }\n'


def _inputs(shape: str, **kinds: str) -> str:
    return "".join(
        f'input {{ name: "{name}" data_type: TYPE_{kind} dims: {shape} optional: {_optional(name)} }}\n'
        for name, kind in kinds.items()
    )


def _optional(name: str) -> str:
    return str(name != "text_input").lower()


VLLM = (
    _POLICY
    + "max_batch_size: 0\n"
    + _inputs(
        "[ 1 ]",
        text_input="STRING",
        stream="BOOL",
        sampling_parameters="STRING",
        exclude_input_in_output="BOOL",
        return_finish_reason="BOOL",
        return_num_input_tokens="BOOL",
        return_num_output_tokens="BOOL",
    )
    + 'output { name: "text_output" data_type: TYPE_STRING dims: [ -1 ] }\n'
    + 'output { name: "finish_reason" data_type: TYPE_STRING dims: [ -1 ] }\n'
    + 'output { name: "num_input_tokens" data_type: TYPE_UINT32 dims: [ 1 ] }\n'
    + 'output { name: "num_output_tokens" data_type: TYPE_UINT32 dims: [ -1 ] }\n'
)
TENSORRT_LLM = (
    _POLICY
    + "max_batch_size: 4\n"
    + _inputs("[ 1 ]", text_input="STRING", stream="BOOL", max_tokens="INT32", temperature="FP32", random_seed="UINT64")
    + 'input { name: "stop_words" data_type: TYPE_STRING dims: [ -1 ] optional: true }\n'
    + 'output { name: "text_output" data_type: TYPE_STRING dims: [ -1 ] }\n'
)
MODEL = """import sys

sys.path[:0] = [{packages!r}]

import json
import time

import numpy as np
import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    '''Says the words of its prompt backwards: no more than max_tokens of them, and none from a stop word on. Takes its
    time for "well", breaks down at "fail", and says no more to a caller who went away.'''

    def initialize(self, args):
        self.batched = json.loads(args["model_config"])["max_batch_size"] > 0

    def execute(self, requests):
        for request in requests:
            def given(name, default=None):
                tensor = pb_utils.get_input_tensor_by_name(request, name)
                return default if tensor is None else tensor.as_numpy().ravel()

            said = json.loads(given("sampling_parameters", [b"{{}}"])[0])
            most = said.get("max_tokens") or int(given("max_tokens", [16])[0])
            stops = [said["stop"]] if "stop" in said else [one.decode() for one in given("stop_words", [])]
            prompt = given("text_input")[0].decode()
            words = prompt.split()[::-1]
            stop = next((at for at, word in enumerate(words) if word in stops), len(words))
            told = words[: min(stop, most)]
            reason = b"length" if most < min(stop, len(words)) else b"stop"
            pieces = [word + " " for word in told] if bool(given("stream", [False])[0]) else [" ".join(told) + " "]
            sender = request.get_response_sender()
            for number, piece in enumerate(pieces):
                if sender.is_cancelled():
                    break
                if piece == "well ":
                    time.sleep(0.02)
                if piece == "fail ":
                    sender.send(pb_utils.InferenceResponse([], pb_utils.TritonError("no word comes to mind")))
                    break
                last = number == len(pieces) - 1
                tensors = [self.tensor("text_output", piece.encode(), object)]
                if given("return_finish_reason") is not None:
                    tensors.append(self.tensor("finish_reason", reason if last else b"None", object))
                    tensors.append(self.tensor("num_input_tokens", len(words), np.uint32))
                    tensors.append(self.tensor("num_output_tokens", len(piece.split()), np.uint32))
                sender.send(pb_utils.InferenceResponse(tensors))
            sender.send(flags=pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL)

    def tensor(self, name, value, kind):
        return pb_utils.Tensor(name, np.array([value], kind).reshape((1, 1) if self.batched else (1,)))
"""


@pytest.fixture(scope="module")
def gateways(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, ServerProcess]]:
    """A Triton with both, and this server in front of it by each gRPC transport. It has a chat template for one."""
    folder = tmp_path_factory.mktemp("openai_over_triton")
    try:
        packages = find(folder=ROOT / "build" / "triton").packages
    except TritonMissing as missing:
        lacking(str(missing))
    for name, config in (("vllm", VLLM), ("trtllm", TENSORRT_LLM)):
        write(folder / "models" / name, config, str(packages))
    (folder / "here" / "vllm").mkdir(parents=True)
    template = "{% for m in messages %}{{ m.content }} {% endfor %}"
    (folder / "here" / "vllm" / "tokenizer_config.json").write_text(json.dumps({"chat_template": template}))
    with ExitStack() as stack:
        # Its Python backend does not always let go of a model that told an error and saw a caller go.
        behind = triton(stack, folder, folder / "models", flags=("--exit-timeout-secs=1",))
        yield {
            transport: stack.enter_context(
                in_front_of(folder, behind, flags=("--grpc-transport", transport), repository=folder / "here")
            )
            for transport in TRANSPORTS
        }


@pytest.fixture
def over(gateways: dict[str, ServerProcess]) -> ServerProcess:
    return gateways["http2"]


def write(folder: Path, config: str, packages: str) -> None:
    (folder / "1").mkdir(parents=True)
    (folder / "config.pbtxt").write_text(config)
    (folder / "1" / "model.py").write_text(MODEL.format(packages=packages))


@pytest.fixture(scope="module")
def client(gateways: dict[str, ServerProcess]) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{gateways['http2'].http}/v1", api_key="none", max_retries=0) as client:
        yield client


@pytest.mark.parametrize("model", ["vllm", "trtllm"])
def test_a_completion_comes_whole_and_in_pieces(client: openai.OpenAI, model: str) -> None:
    """Whatever tensors the backend has for it: the prompt, the limit, the stop."""
    asked = {"model": model, "prompt": "one two three four", "max_tokens": 9, "stop": "one", "seed": 3}
    whole = client.completions.create(**asked)  # type: ignore[call-overload]
    assert whole.choices[0].text == "four three two "
    assert whole.choices[0].finish_reason == "stop"
    stream = client.completions.create(**asked, stream=True)  # type: ignore[call-overload]
    pieces = [chunk.choices[0] for chunk in stream]
    assert [piece.text for piece in pieces] == ["four ", "three ", "two ", ""]
    assert pieces[-1].finish_reason == "stop"


def test_what_the_backend_counts_is_told(client: openai.OpenAI) -> None:
    """And of one that counts nothing, nothing."""
    asked = {"prompt": ["one two", "three four five"], "max_tokens": 2}
    whole = client.completions.create(model="vllm", **asked)  # type: ignore[call-overload]
    assert [choice.text for choice in whole.choices] == ["two one ", "five four "]
    assert [choice.finish_reason for choice in whole.choices] == ["stop", "length"]
    assert (whole.usage.prompt_tokens, whole.usage.completion_tokens) == (5, 4)
    assert client.completions.create(model="trtllm", **asked).usage is None  # type: ignore[call-overload]


def test_a_chat_goes_through_a_template_that_is_here(client: openai.OpenAI) -> None:
    """In the folder of the model's name; a model without one is refused by name."""
    messages = [{"role": "user", "content": "one two"}, {"role": "assistant", "content": "three"}]
    told = client.chat.completions.create(model="vllm", messages=messages, max_tokens=5)  # type: ignore[arg-type]
    assert told.choices[0].message.content == "three two one "
    with pytest.raises(openai.APIStatusError, match="chat template"):
        client.chat.completions.create(model="trtllm", messages=messages)  # type: ignore[arg-type]


def test_what_the_backend_can_not_do_is_refused_by_name(over: ServerProcess, client: openai.OpenAI) -> None:
    """An option without an input, probabilities that it does not tell; and its models are listed."""
    assert {model.id for model in client.models.list()} == {"vllm", "trtllm"}
    for said, param in (
        ({"top_p": 0.5}, "top_p"),
        ({"logprobs": 1}, "logprobs"),
        ({"temperature": "x"}, "temperature"),
    ):
        reply = httpx.post(f"{over.http}/v1/completions", json={"model": "trtllm", "prompt": "one", **said})
        assert reply.json()["error"]["param"] == param
        assert reply.status_code in (400, 501)


def test_generate_and_generate_stream_pass_it_on(over: ServerProcess) -> None:
    """As Triton's own routes."""
    ask = {"text_input": "one two three", "sampling_parameters": '{"max_tokens": 2}', "stream": True}
    lines = httpx.post(f"{over.http}/v2/models/vllm/generate_stream", json=ask).text.split("\n\n")
    assert [json.loads(line[6:])["text_output"] for line in lines if line] == ["three ", "two "]
    told = httpx.post(f"{over.http}/v2/models/vllm/generate", json={**ask, "stream": False}).json()
    assert told["text_output"] == "three two "


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_predict_stream_tells_a_text_piece_by_piece(gateways: dict[str, ServerProcess], transport: str) -> None:
    """With what the backend counts; of one that tells no reason the end is told as OpenAI's routes do."""
    with Client(f"grpc://{gateways[transport].grpc}") as client:
        pieces = list(client.predict_stream("vllm", "one two three", max_tokens=2, temperature=0.5, seed=3))
        assert pieces == [Written("three ", "", 3, 1), Written("two ", "length", 3, 1)]
        pieces = list(client.predict_stream("trtllm", "one two three", max_tokens=9, stop="one", timeout_s=60))
        assert pieces == [Written("three ", "", 0, 0), Written("two ", "", 0, 0), Written("", "stop", 0, 0)]
        many = " ".join(map(str, range(300)))
        told = [piece.text for piece in client.predict_stream("vllm", many, max_tokens=300)]
        assert told == [f"{number} " for number in reversed(range(300))]


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_predict_stream_ends_as_the_backend_does(gateways: dict[str, ServerProcess], transport: str) -> None:
    """An error after a piece, an option that it has no input for, a version or a model that there is not."""
    with Client(f"grpc://{gateways[transport].grpc}") as client:
        told: list[str] = []
        with pytest.raises(ClientError) as broken:
            told.extend(piece.text for piece in client.predict_stream("vllm", "one fail three"))
        assert told == ["three "]
        assert broken.value.code is Code.INTERNAL
        for model, said, code, problem in (
            ("trtllm", {"logprobs": 2}, Code.UNSUPPORTED, "logprobs"),
            ("trtllm", {"max_tokens": "many"}, Code.INVALID_ARG, "max_tokens"),
            ("vllm", {"version": "7"}, Code.NOT_FOUND, "vllm"),
            ("nobody", {}, Code.NOT_FOUND, "nobody"),
        ):
            with pytest.raises(ClientError, match=problem) as refused:
                list(client.predict_stream(model, "one", **said))  # type: ignore[arg-type]
            assert refused.value.code is code


@pytest.mark.parametrize("transport", TRANSPORTS)
async def test_a_caller_of_predict_stream_that_goes_away_ends_its_call(
    gateways: dict[str, ServerProcess], transport: str
) -> None:
    """Triton hears of it, and is free for others long before the text would have been over. Also where time is up."""
    server = gateways[transport]
    endless = "well " * 100_000
    async with httpx.AsyncClient() as http, AsyncClient(f"grpc://{server.grpc}") as client:
        before = await _failed(http, server, "CANCELED")
        async with aclosing(client.predict_stream("vllm", endless, max_tokens=100_000)) as pieces:
            await anext(pieces)
            other = [piece.text async for piece in client.predict_stream("trtllm", "one two", max_tokens=5)]
            assert other == ["two ", "one ", ""]
        async with asyncio.timeout(30):
            while await _failed(http, server, "CANCELED") == before:  # noqa: ASYNC110 - counts make no event
                await asyncio.sleep(0.05)
            assert [piece.text async for piece in client.predict_stream("vllm", "one")] == ["one "]
            with pytest.raises(ClientError) as late:
                await _read(client.predict_stream("vllm", endless, max_tokens=100_000, timeout_s=0.3))
            assert late.value.code is Code.DEADLINE
            assert [piece.text async for piece in client.predict_stream("vllm", "one")] == ["one "]


async def _read(pieces: AsyncGenerator[Written]) -> None:
    async for _ in pieces:
        pass


async def _failed(http: httpx.AsyncClient, server: ServerProcess, reason: str) -> float:
    text = (await http.get(server.metrics)).text
    counts = re.findall(
        rf'^nv_inference_request_failure{{model="vllm",reason="{reason}",.*}} (\S+)$', text, re.MULTILINE
    )
    return sum(map(float, counts))
