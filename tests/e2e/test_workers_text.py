"""`serve --workers 2` with a model that writes text: the fronts stream what the engine process writes."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import openai
import pytest

from tests.e2e.conftest import ServerProcess, end, start
from tests.e2e.test_workers import children
from tests.support.writing_plane import parameter, write_model

pytestmark = pytest.mark.e2e

ASK = {"model": "writer", "max_tokens": 40, "temperature": 0, "extra_body": {"ignore_eos": True}}
PROMPTS = [f"{who} {what}" for who in ("A queue", "The server", "x", "Every") for what in ("waits", "is")]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    root = tmp_path_factory.mktemp("workers_text")
    (root / "models").mkdir()
    write_model(root / "models", parameter("max_num_seqs", 8))
    running = start(root / "server.log", "--workers", "2", repository=root / "models")
    yield running
    assert running.terminate() == 0, running.log.read_text()
    end(running)


def client(server: ServerProcess) -> openai.OpenAI:
    """A connection of its own, and so its own front."""
    return openai.OpenAI(base_url=f"{server.http}/v1", api_key="none", max_retries=0, timeout=60)


def counted(server: ServerProcess) -> dict[str, float]:
    lines = httpx.get(f"http://127.0.0.1:{server.port('metrics')}/metrics", timeout=30).text.splitlines()
    told = (line.rsplit(" ", 1) for line in lines if line.startswith("forwardpass_text_"))
    return {name: float(value) for name, value in told}


def until(server: ServerProcess, holds: Callable[[dict[str, float]], bool]) -> dict[str, float]:
    ends = time.monotonic() + 60
    while not holds(told := counted(server)):
        assert time.monotonic() < ends, told
        time.sleep(0.05)
    return told


def label(name: str, **more: str) -> str:
    labels = {"model": "writer", "version": "1", **more}
    told = ",".join(f'{key}="{value}"' for key, value in sorted(labels.items()))
    return f"{name}{{{told}}}"


RUNNING, RESERVED = label("forwardpass_text_running"), label("forwardpass_text_kv_reserved_ratio")


def idle(told: dict[str, float]) -> bool:
    return told[RUNNING] == 0 and told[RESERVED] == 0


def test_texts_of_both_fronts_are_those_that_each_is_alone(server: ServerProcess) -> None:
    """Streams and chats too; what they cost is in the sums of the metrics."""
    before = counted(server)[label("forwardpass_text_tokens_total")]
    with client(server) as one:
        alone = [one.completions.create(prompt=prompt, **ASK).choices[0].text for prompt in PROMPTS]

    def streamed(prompt: str) -> str:
        with client(server) as own:
            return "".join(chunk.choices[0].text for chunk in own.completions.create(prompt=prompt, stream=True, **ASK))

    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(streamed, PROMPTS)) == alone
    with client(server) as one:
        chat = one.chat.completions.create(messages=[{"role": "user", "content": "x"}], **ASK)
        assert chat.choices[0].message.content
    told = until(server, idle)
    assert told[label("forwardpass_text_tokens_total")] - before == 40 * (2 * len(PROMPTS) + 1)
    assert told.get(label("forwardpass_text_finished_total", reason="length"), 0) >= 2 * len(PROMPTS)


def test_whoever_hangs_up_frees_its_row_in_the_engine_process(server: ServerProcess) -> None:
    """More than there are rows, one after another: each but for the last in the middle of its text."""
    name = label("forwardpass_text_finished_total", reason="cancelled")
    before = counted(server)[name]
    ask: dict[str, Any] = {"model": "writer", "prompt": "x", "max_tokens": 200, "temperature": 0, "ignore_eos": True}
    for _ in range(10):
        with httpx.stream("POST", f"{server.http}/v1/completions", json={**ask, "stream": True}, timeout=60) as told:
            assert told.status_code == 200
            next(told.iter_lines())
    told_counts = until(server, idle)
    # A fast one may be over before it is known that nobody reads it.
    assert told_counts[name] - before > 0
    with client(server) as one:
        assert one.completions.create(prompt="x", **ASK).choices[0].finish_reason == "length"


def test_a_text_that_is_not_done_by_its_deadline_ends_with_it(server: ServerProcess) -> None:
    """As in a single process: where it has begun the error comes behind what was written."""
    ask = {"model": "writer", "prompt": "x", "max_tokens": 250, "temperature": 0, "ignore_eos": True, "stream": True}
    ended = httpx.post(f"{server.http}/v1/completions", json=ask, headers={"X-Request-Timeout": "5"}, timeout=60)
    last = ended.text.strip().rsplit("data: ", 1)[-1]
    assert json.loads(last)["error"]["code"] in ("DEADLINE", "DEADLINE_EXCEEDED", "EXHAUSTED"), last
    until(server, idle)


def test_streams_end_with_an_error_where_the_engine_process_dies(server: ServerProcess) -> None:
    """And there are texts again as soon as another one has loaded the model."""
    ask = {"model": "writer", "prompt": "x", "max_tokens": 250, "temperature": 0, "ignore_eos": True, "n": 8}
    engine = children(server)["engine"]
    with httpx.stream("POST", f"{server.http}/v1/completions", json={**ask, "stream": True}, timeout=60) as told:
        lines = told.iter_lines()
        next(lines)
        os.kill(engine, signal.SIGKILL)
        rest = [line for line in lines if line]
    assert rest[-1] == "data: [DONE]" or "error" in json.loads(rest[-1].removeprefix("data: "))
    ends = time.monotonic() + 60
    while httpx.get(f"{server.http}/v2/models/writer/ready", timeout=30).status_code != 200:
        assert time.monotonic() < ends
        time.sleep(0.1)
    with client(server) as one:
        assert one.completions.create(prompt="x", **ASK).usage.completion_tokens == 40
