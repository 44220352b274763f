"""Models that read text, over every way there is to ask: REST, gRPC, the command line, a browser."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest

from server.client import Client, ClientError
from server.errors import Code
from server.types import Classification, Embedding, Entities, TextInput
from tests.e2e.conftest import ROOT, ServerProcess, end, start
from tests.e2e.test_console import browser as browser  # a fixture
from tests.e2e.test_console import choose, complaint, label, opened
from tests.support.text_models import word_folder

pytestmark = pytest.mark.e2e

TASKS = ("text-classification", "text-embedding", "token-classification")


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    root = tmp_path_factory.mktemp("texts")
    for task in TASKS:
        word_folder(root / "models", task)
    running = start(root / "server.log", repository=root / "models")
    yield running
    end(running)


@pytest.fixture(params=["http", "grpc"])
def client(request: pytest.FixtureRequest, texts: ServerProcess) -> Iterator[Client]:
    with Client(texts.http if request.param == "http" else f"grpc://{texts.grpc}") as client:
        yield client


def test_each_task_answers_texts(client: Client) -> None:
    """A label, a vector, entities with their places in the text, by REST and by gRPC."""
    [good, bad] = client.predict("text-classification", ["the film was good", "bad bad"]).predictions
    assert isinstance(good, Classification)
    assert isinstance(bad, Classification)
    assert (good.label, bad.label) == ("good", "bad")
    [vector] = client.predict("text-embedding", "good bad and good").predictions
    assert vector == Embedding((0.5, -0.25, 2.0))
    [found] = client.predict("token-classification", "In Oslo lives Anna.").predictions
    assert isinstance(found, Entities)
    assert [(one.label, one.start, one.end, one.text) for one in found.entities] == [
        ("LOC", 3, 7, "Oslo"),
        ("PER", 14, 18, "Anna"),
    ]


def test_texts_of_many_lengths_at_once_get_each_its_own_answer(texts: ServerProcess) -> None:
    """Padded to a bucket with others, a text is answered as alone."""
    asked = [("good " if number % 3 else "bad ") * (1 + number % 12) for number in range(60)]
    with Client(f"grpc://{texts.grpc}") as client, ThreadPoolExecutor(12) as pool:
        found = list(pool.map(lambda text: client.predict("text-embedding", text).predictions[0], asked))
    for text, answer in zip(asked, found, strict=True):
        words = text.split()
        sign = 1 if words[0] == "good" else -1
        assert answer == Embedding((0.5 * sign * len(words), -0.25 * sign * len(words), float(len(words)) * (sign > 0)))


@pytest.mark.parametrize(
    ("text", "top_k", "code", "problem"),
    [
        ("", 0, Code.INVALID_ARG, "inputs[0]: is empty, the model takes texts of 1 or more"),
        ("x" * 20_001, 0, Code.TOO_LARGE, "inputs[0]: 20001 characters, over the limit of 20000 characters"),
        ("good", 2, Code.INVALID_ARG, "top_k: the model's answers are no labels"),
    ],
)
def test_what_is_refused_is_told_with_its_limit(
    client: Client, text: str, top_k: int, code: Code, problem: str
) -> None:
    """By the same words on both wires; gRPC has one code for what is too large and what is too much."""
    with pytest.raises(ClientError) as caught:
        client.predict("text-embedding", TextInput(text), top_k=top_k)
    assert caught.value.code in (code, Code.EXHAUSTED if code is Code.TOO_LARGE else code)
    assert problem in str(caught.value)


def test_the_metadata_states_what_a_text_may_be(texts: ServerProcess) -> None:
    """The most tokens, and that what is over them is cut."""
    told = httpx.get(f"{texts.http}/v2/models/text-classification").json()["predict"]
    assert told["input"]["max_tokens"] == 16
    assert told["input"]["truncation"] == "cut"


def test_the_command_line_takes_a_text_and_a_file_of_it(texts: ServerProcess, tmp_path: Path) -> None:
    """A JSON string is a text, and so is a .txt file."""
    file = tmp_path / "a.txt"
    file.write_text("Anna lives in Oslo\n")
    for model, given, words in (
        ("text-embedding", '"good"', ["3 numbers: 0.5000 -0.2500 1.0000"]),
        ("token-classification", str(file), ["2 entities", "  PER  0.99", "  Anna", "  LOC  0.99"]),
    ):
        command = [sys.executable, "-m", "server", "predict", model, given, "--url", texts.http]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
        assert all(word in done.stdout for word in words), done.stdout


def test_the_console_has_a_box_for_a_text(texts: ServerProcess, browser: Any) -> None:
    """It has the example in it and the limits below; the answer is a label, a vector or what was found."""
    with opened(browser, f"{texts.http}/") as page:
        choose(page, "text-classification")
        page.wait_for_selector("#text-limits:has-text('Up to 16 tokens')")
        page.fill("#text", "bad film")
        page.click("button:text-is('Predict')")
        page.wait_for_selector("#label")
        assert label(page) == "bad"
        page.fill("#text", "  ")
        page.click("button:text-is('Predict')")
        page.wait_for_selector("#answer [role=alert]")
        assert "texts of 1 character or more" in complaint(page)
        choose(page, "text-embedding")
        page.fill("#text", "good")
        page.press("#text", "Control+Enter")
        page.wait_for_selector("#outputs:has-text('0.5, -0.25, 1')")
        choose(page, "token-classification")
        page.fill("#text", "anna")
        page.press("#text", "Control+Enter")
        page.wait_for_selector("#answer li:has-text('anna (PER)')")
