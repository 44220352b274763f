"""OpenAI's routes over decoupled models of a real Triton, with the tensors of its vLLM and TensorRT-LLM backends."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import httpx
import openai
import pytest

from server.local_triton.program import TritonMissing, find
from tests.e2e.conftest import ROOT, ServerProcess
from tests.support.parts import lacking
from tests.support.tritons import in_front_of, triton

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

import numpy as np
import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    '''Says the words of its prompt backwards: no more than max_tokens of them, and none from a stop word on.'''

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
def over(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    """A Triton with both, and this server in front of it, which has a chat template for one."""
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
        behind = triton(stack, folder, folder / "models")
        yield stack.enter_context(in_front_of(folder, behind, repository=folder / "here"))


def write(folder: Path, config: str, packages: str) -> None:
    (folder / "1").mkdir(parents=True)
    (folder / "config.pbtxt").write_text(config)
    (folder / "1" / "model.py").write_text(MODEL.format(packages=packages))


@pytest.fixture(scope="module")
def client(over: ServerProcess) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{over.http}/v1", api_key="none", max_retries=0) as client:
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
