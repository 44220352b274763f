"""Text from a real server: the openai client, curl, tritonclient's streaming, httpx; and what goes wrong."""

from __future__ import annotations

import asyncio
import json
import queue
import re
import subprocess
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import numpy as np
import openai
import pytest
import tritonclient.grpc as triton

from loadtests.process import Server
from loadtests.proofs.hangups import hang_up, report
from tests.e2e.conftest import ServerProcess, end, start
from tests.e2e.test_console import browser, choose, opened, until, way  # noqa: F401 - browser is a fixture
from tests.support.parts import tool
from tests.support.writing_plane import parameter, write_model

pytestmark = pytest.mark.e2e

ASK = {"model": "writer", "max_tokens": 12, "temperature": 0}
CHAT = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Where does a request wait?"}]


@pytest.fixture(scope="module")
def writer(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    """One server of the tiny model, and the same without a template."""
    models = tmp_path_factory.mktemp("openai") / "models"
    models.mkdir()
    write_model(models, parameter("max_num_seqs", 8))
    write_model(models, name="plain")
    (models / "plain" / "1" / "chat_template.jinja").write_text("{{ raise_exception('no ' + messages[0].role) }}")
    running = start(tmp_path_factory.mktemp("server") / "server.log", repository=models)
    yield running
    alive = running.process.poll() is None
    end(running)
    assert alive, running.log.read_text()


@pytest.fixture(scope="module")
def client(writer: ServerProcess) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{writer.http}/v1", api_key="none", max_retries=0) as client:
        yield client


def test_the_models_that_write_text_are_listed(client: openai.OpenAI) -> None:
    """And each is there by its name."""
    assert {model.id for model in client.models.list()} == {"writer", "plain"}
    assert client.models.retrieve("writer").object == "model"
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("nobody")


def test_a_completion_is_the_same_whole_and_in_pieces(client: openai.OpenAI) -> None:
    """With its reason and its counts; the stream tells them where it is asked to."""
    whole = client.completions.create(prompt="The server", **ASK)
    [choice] = whole.choices
    assert choice.finish_reason == "length"
    assert whole.usage is not None
    assert whole.usage.completion_tokens == 12
    assert whole.usage.total_tokens == whole.usage.prompt_tokens + 12
    chunks = list(
        client.completions.create(prompt="The server", stream=True, stream_options={"include_usage": True}, **ASK)
    )
    assert "".join(chunk.choices[0].text for chunk in chunks if chunk.choices) == choice.text
    assert len(chunks) > 4
    assert [chunk.choices[0].finish_reason for chunk in chunks if chunk.choices][-1] == "length"
    assert chunks[-1].usage == whole.usage


def test_several_prompts_and_choices_come_by_their_numbers(client: openai.OpenAI) -> None:
    """Each choice has the next seed, and a prompt is counted once."""
    asked = {**ASK, "temperature": 1.0, "seed": 5}
    whole = client.completions.create(prompt=["The server", "A queue"], n=2, **asked)
    assert [choice.index for choice in whole.choices] == [0, 1, 2, 3]
    texts = [choice.text for choice in whole.choices]
    assert len(set(texts)) == 4
    alone = [
        client.completions.create(prompt=prompt, **{**asked, "seed": seed}).choices[0].text
        for prompt in ("The server", "A queue")
        for seed in (5, 6)
    ]
    assert texts == alone
    assert whole.usage is not None
    assert whole.usage.completion_tokens == 48
    streamed = ["", "", "", ""]
    for chunk in client.completions.create(prompt=["The server", "A queue"], n=2, stream=True, **asked):
        streamed[chunk.choices[0].index] += chunk.choices[0].text
    assert streamed == texts


def test_a_chat_goes_through_the_models_template(client: openai.OpenAI, writer: ServerProcess) -> None:
    """Its message is the text behind the prompt that the template makes."""
    prompt = "<|start|>system: Be brief.\n<|start|>user: Where does a request wait?\n<|start|>assistant: "
    message = client.chat.completions.create(messages=CHAT, **ASK).choices[0].message
    document = httpx.post(
        f"{writer.http}/v2/models/writer/generate",
        json={
            "text_input": prompt,
            "exclude_input_in_output": True,
            "parameters": {"max_tokens": 12, "temperature": 0, "add_special_tokens": False},
        },
    ).json()
    assert (message.role, message.content) == ("assistant", document["text_output"])
    stream = client.chat.completions.create(messages=CHAT, stream=True, **ASK)
    deltas = [chunk.choices[0].delta for chunk in stream]
    assert deltas[0].role == "assistant"
    assert "".join(delta.content or "" for delta in deltas) == message.content


def test_probabilities_are_told_with_the_likeliest(client: openai.OpenAI) -> None:
    """In either form, whole and streamed alike."""
    asked = {**ASK, "messages": CHAT, "logprobs": True, "top_logprobs": 3}
    whole = client.chat.completions.create(**asked).choices[0].logprobs
    assert whole is not None
    assert whole.content is not None
    assert len(whole.content) == 12
    for token in whole.content:
        assert len(token.top_logprobs) == 3
        assert token.logprob == token.top_logprobs[0].logprob <= 0
    streamed = []
    for chunk in client.chat.completions.create(stream=True, **asked):
        if chunk.choices[0].logprobs:
            streamed += chunk.choices[0].logprobs.content or []
    assert streamed == whole.content
    told = client.completions.create(prompt="The server", logprobs=2, **ASK).choices[0].logprobs
    assert told is not None
    assert told.token_logprobs is not None
    assert len(told.tokens or []) == len(told.token_logprobs) == len(told.text_offset or []) == 12


def test_a_character_over_several_tokens_is_told_by_its_bytes(client: openai.OpenAI) -> None:
    """Those of all tokens make the text, and each token stands where its text begins."""
    more = {"ignore_eos": True, "skip_special_tokens": False}
    ask: dict[str, Any] = {"model": "writer", "max_tokens": 200, "seed": 5, "extra_body": more}
    chat = client.chat.completions.create(messages=CHAT, logprobs=True, top_logprobs=20, **ask).choices[0]
    assert chat.logprobs is not None
    tokens = chat.logprobs.content or []
    assert all(one.bytes for token in tokens for one in (token, *token.top_logprobs))
    told = b"".join(bytes(token.bytes or ()) for token in tokens)
    assert chat.message.content is not None
    assert told.decode(errors="replace").startswith(chat.message.content)
    assert sum("\ufffd" in token.token for token in tokens) > 10
    choice = client.completions.create(prompt="x", logprobs=5, **ask).choices[0]
    told_of = choice.logprobs
    assert told_of is not None
    names, offsets, logprobs = told_of.tokens or [], told_of.text_offset or [], told_of.token_logprobs or []
    assert all(best[name] == own for best, name, own in zip(told_of.top_logprobs or [], names, logprobs, strict=True))
    assert all(len(best) in (5, 6) for best in told_of.top_logprobs or [])
    whole = [(name, at) for name, at in zip(names, offsets, strict=True) if name.isascii() and name.isalpha()]
    assert len(whole) > 20
    # Half a character behind it is told with the next token.
    assert all(choice.text[at:].lstrip("\ufffd").startswith(name) for name, at in whole)


@pytest.mark.parametrize(
    ("path", "body", "status", "param"),
    [
        ("completions", {"prompt": "x", "model": "nobody"}, 404, None),
        ("completions", {"prompt": ""}, 400, "prompt"),
        ("completions", {"prompt": "x " * 300}, 400, "prompt"),
        ("completions", {"prompt": "x " * 300, "stream": True}, 400, "prompt"),
        ("completions", {"prompt": "x" * 20_000}, 400, "prompt"),
        ("completions", {"prompt": "x", "stop": {"a": 1}}, 400, "stop"),
        ("chat/completions", {"messages": [{"role": "user", "content": "x " * 300}]}, 400, "messages"),
        ("completions", {"prompt": "x", "max_tokens": 1000}, 400, "max_tokens"),
        ("completions", {"prompt": [1, 2]}, 400, "prompt"),
        ("completions", {"prompt": "x", "temperature": 3}, 400, "temperature"),
        ("completions", {"prompt": "x", "temprature": 1}, 400, "temprature"),
        ("completions", {"prompt": "x", "echo": True}, 501, "echo"),
        ("completions", {"prompt": "x", "n": 17}, 400, "n"),
        ("completions", {"prompt": "x", "stream_options": {"include_usage": True}}, 400, "stream_options"),
        ("chat/completions", {"messages": []}, 400, "messages"),
        ("chat/completions", {"messages": "x"}, 400, "messages"),
        ("chat/completions", {"messages": [{"role": "king", "content": "x"}]}, 400, "messages[0].role"),
        ("chat/completions", {"messages": [{"role": "user"}]}, 400, "messages[0].content"),
        (
            "chat/completions",
            {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]},
            501,
            "messages[0].content[0]",
        ),
        ("chat/completions", {"messages": CHAT, "tools": [{"type": "function"}]}, 501, "tools"),
        ("chat/completions", {"messages": CHAT, "model": "plain"}, 400, "messages"),
        ("chat/completions", {"messages": CHAT, "stream": True, "stop": [""]}, 400, "stop"),
    ],
)
def test_what_is_wrong_is_named(
    writer: ServerProcess, path: str, body: dict[str, Any], status: int, param: str
) -> None:
    """In OpenAI's form, before anything runs."""
    reply = httpx.post(f"{writer.http}/v1/{path}", json={"model": "writer", **body})
    error = reply.json()["error"]
    assert (reply.status_code, error["param"]) == (status, param), error
    assert error["message"].startswith(param or "")


def test_bytes_that_are_no_text_are_refused(writer: ServerProcess) -> None:
    """Invalid UTF-8, and what is no JSON."""
    for body in (b'{"model": "writer", "prompt": "\xff"}', b"{", b"[]"):
        reply = httpx.post(f"{writer.http}/v1/completions", content=body)
        assert reply.status_code == 400
        assert reply.json()["error"]["type"] == "invalid_request_error"


def test_the_printed_command_can_be_pasted(writer: ServerProcess) -> None:
    """It shows a text as it is written."""
    match = re.search(r"^# writer\n(.+)$", writer.banner, re.MULTILINE)
    assert match, writer.banner
    told = subprocess.run(["/bin/sh", "-c", match[1]], capture_output=True, text=True, check=True, timeout=30).stdout
    events = told.split("\n\n")
    assert json.loads(events[0].removeprefix("data: "))["choices"], told
    assert events[-2:] == ["data: [DONE]", ""]


def test_curl_streams(writer: ServerProcess) -> None:
    """Events as they are shown in the pages, the last one [DONE]."""
    body = json.dumps({**ASK, "prompt": "The server", "stream": True})
    command = [tool("curl"), "-sS", "-N", "-m", "20", f"{writer.http}/v1/completions", "-d", body]
    lines = subprocess.run(command, check=True, capture_output=True, text=True).stdout.split("\n\n")
    assert lines[-2:] == ["data: [DONE]", ""]
    assert json.loads(lines[0].removeprefix("data: "))["object"] == "text_completion"


def test_generate_and_generate_stream_are_tritons(writer: ServerProcess) -> None:
    """With the parameters of its vLLM backend; the pieces make the whole."""
    url = f"{writer.http}/v2/models/writer"
    ask = {"text_input": "The server", "parameters": {"max_tokens": 12, "temperature": 0}}
    whole = httpx.post(f"{url}/generate", json=ask).json()["text_output"]
    assert whole.startswith("The server")
    streamed = httpx.post(f"{url}/generate_stream", json={**ask, "stream": True}).text
    pieces = [json.loads(line[6:])["text_output"] for line in streamed.splitlines() if line]
    assert "The server" + "".join(pieces) == whole
    reply = httpx.post(f"{url}/generate", json={"text_input": "x", "parameters": {"max_token": 3}})
    assert reply.status_code == 400
    assert "max_token" in reply.json()["error"]


def test_tritonclient_streams_over_grpc(writer: ServerProcess) -> None:
    """ModelStreamInfer with decoupled answers; several at once, each with its own text."""
    answers: queue.Queue[Any] = queue.Queue()
    prompts = ["The server", "A queue", "Every model"]
    with triton.InferenceServerClient(writer.grpc) as client:
        client.start_stream(lambda result, error: answers.put((result, error)))
        for number, prompt in enumerate(prompts):
            text = triton.InferInput("text_input", [1], "BYTES")
            text.set_data_from_numpy(np.array([prompt.encode()], dtype=object))
            stream = triton.InferInput("stream", [1], "BOOL")
            stream.set_data_from_numpy(np.array([True]))
            client.async_stream_infer(
                "writer", [text, stream], request_id=str(number), parameters={"max_tokens": 12, "temperature": 0}
            )
        told, over = dict.fromkeys(range(3), ""), 0
        while over < 3:
            result, error = answers.get(timeout=20)
            assert error is None
            response = result.get_response()
            told[int(response.id)] += result.as_numpy("text_output")[0].decode()
            over += response.parameters["triton_final_response"].bool_param
        client.stop_stream()
    for number, prompt in enumerate(prompts):
        body = {"text_input": prompt, "parameters": {"max_tokens": 12, "temperature": 0}}
        whole = httpx.post(f"{writer.http}/v2/models/writer/generate", json=body).json()["text_output"]
        assert prompt + told[number] == whole


def test_who_hangs_up_frees_its_place(writer: ServerProcess, client: openai.OpenAI) -> None:
    """Many clients that go away in the middle: the gauges are back, and the next one is served."""

    def hang_up() -> None:
        body = {**ASK, "prompt": "x", "max_tokens": 250, "ignore_eos": True, "stream": True}
        with httpx.stream("POST", f"{writer.http}/v1/completions", json=body) as reply:
            next(reply.iter_lines())

    threads = [threading.Thread(target=hang_up) for _ in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert client.completions.create(prompt="The server", **ASK).choices[0].text
    metrics = httpx.get(writer.metrics).text
    assert 'forwardpass_text_running{model="writer",version="1"} 0.0' in metrics
    assert 'forwardpass_text_kv_reserved_ratio{model="writer",version="1"} 0.0' in metrics
    counts = dict(line.rsplit(" ", 1) for line in metrics.splitlines() if not line.startswith("#"))
    labels = 'model="writer",version="1"'
    assert float(counts['forwardpass_text_finished_total{model="writer",reason="cancelled",version="1"}']) > 0
    assert float(counts[f"forwardpass_text_first_token_seconds_count{{{labels}}}"]) > 0
    assert float(counts[f"forwardpass_text_tokens_total{{{labels}}}"]) > 12


def test_the_chat_box_writes_word_by_word(writer: ServerProcess, browser: Any) -> None:  # noqa: F811 - the fixture
    """A conversation that goes on, is stopped and cleared; what goes wrong is a sentence; a text that goes on."""
    with opened(browser, f"{writer.http}/") as page:
        choose(page, "writer")
        way(page, "Chat")
        page.fill("#temperature", "0")
        page.fill("#say", "Hello there")
        page.click("button:has-text('Send')")
        until(page, "document.querySelector('#written').textContent.startsWith('First words')")
        assert page.locator("#turns li").count() == 2
        first = page.locator("#turns .assistant p").inner_text()
        assert first
        page.fill("#say", "And now?")
        page.press("#say", "Control+Enter")
        until(page, "document.querySelectorAll('#turns .assistant p')[1]?.textContent.length > 3")
        until(page, "!document.querySelector('.chat .main').disabled")
        page.fill("#most", "1000")
        page.fill("#say", "Too much")
        page.click("button:has-text('Send')")
        until(page, "!document.querySelector('.chat [role=alert]').hidden")
        assert "tokens" in page.locator(".chat [role=alert]").inner_text()
        assert page.locator("#turns li").count() == 4
        assert page.input_value("#say") == "Too much"
        page.click("button:has-text('Clear')")
        assert page.locator("#turns li").count() == 0
        way(page, "Go on with a text")
        page.fill("#say", "The server")
        page.click("button.main")
        until(page, "document.querySelector('#say').value.length > 15")


ENDLESS = """() => {
  const real = window.fetch;
  const event = new TextEncoder().encode('data: {"choices": [{"index": 0, "delta": {"content": "Half a"}}]}\\n\\n');
  const endless = (signal) => new ReadableStream({
    start(controller) {
      controller.enqueue(event);
      signal.addEventListener("abort", () => controller.error(new DOMException("", "AbortError")));
    },
  });
  window.fetch = async (url, how) => String(url).includes("v1/") ? new Response(endless(how.signal)) : real(url, how);
}"""
"""An answer that begins and goes on for ever."""


def test_a_chat_is_stopped_or_cleared_in_the_middle(writer: ServerProcess, browser: Any) -> None:  # noqa: F811
    """What was written by then stays where it is stopped; where it is cleared nothing does, and nothing went wrong."""
    with opened(browser, f"{writer.http}/") as page:
        choose(page, "writer")
        way(page, "Chat")
        page.evaluate(ENDLESS)
        for number, (press, left) in enumerate((("Stop", ["One", "Half a"]), ("Clear", []))):
            page.fill("#say", ("One", "Two")[number])
            page.click("button:has-text('Send')")
            until(page, f"document.querySelectorAll('#turns .assistant p')[{number}]?.textContent === 'Half a'")
            page.click(f"button:has-text('{press}')")
            until(page, "!document.querySelector('.chat .main').disabled")
            assert page.locator("#turns li p").all_inner_texts() == left
            assert page.input_value("#say") == ""
            assert page.locator(".chat [role=alert]").is_hidden()


def test_a_hundred_callers_who_hang_up_leave_nothing_behind(writer: ServerProcess) -> None:
    """By events, by PredictStream, by connections that are cut: a text so far is what its prompt gets alone."""
    where = [f"127.0.0.1:{writer.port(listener)}" for listener in ("REST", "gRPC", "metrics")]
    server = Server(writer.process.pid, where[0], where[1], f"http://{where[2]}/metrics")
    with ThreadPoolExecutor(1) as apart:  # the browser's loop runs on this thread
        seen = apart.submit(lambda: asyncio.run(hang_up(server, 120, seed=0))).result()
    assert seen.shown(), report(seen)
    assert seen.ended.total() == 120
