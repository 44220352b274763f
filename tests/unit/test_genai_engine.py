"""The engine that writes text: a text is the same in any company, and its memory is its own for as long as it runs."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import orjson
import pytest

from server.engine.genai.engine import GenaiEngine
from server.engine.genai.instance import GenaiInstance
from server.errors import InvalidRequest, ModelLoadFailed
from server.repository.config_text import parse_text
from server.repository.model_config import from_message
from tests.support.writing import FOLDER, PROMPTS, Written, alone, arrays, elements, loaded, said


@pytest.fixture(scope="module")
def instance() -> Iterator[GenaiInstance]:
    with loaded(prefill_chunk_tokens=16) as instance:
        yield instance


def test_texts_of_mixed_lengths_and_arrivals_are_those_that_each_is_alone(instance: GenaiInstance) -> None:
    """To the last character, greedy and drawn, whoever comes, goes or is held meanwhile."""
    chance = random.Random(3)
    asked = [
        said(
            chance.choice(PROMPTS)[: chance.randint(1, 200)],
            max_tokens=chance.randint(1, 40),
            seed=number,
            temperature=t,
        )
        for number in range(64)
        for t in [chance.choice((0, 0, 0.8, 1.5))]
    ]
    want = [alone(instance, inputs) for inputs in asked]
    written, waiting, held = Written(instance), list(asked), []
    while waiting or instance.busy or held:
        while waiting and instance._writer._rows.free and chance.random() < 0.7:
            written.begin(waiting.pop(0))
        if held and chance.random() < 0.3:
            instance.go_on(held.pop())
        if instance._writer._rows.active and chance.random() < 0.3:
            held.append(chance.choice(instance._writer._rows.active))
            instance.hold(held[-1])
        if instance.busy:
            written.step()
    assert list(written.told.values()) == want
    assert len({text for text in want if text}) > 30
    assert instance.tokens == 0


def test_whoever_leaves_gives_back_its_memory_and_changes_nobody(instance: GenaiInstance) -> None:
    """Cancelled at any moment: in the middle of its prompt, between tokens, while it is held."""
    chance = random.Random(4)
    want = {prompt: alone(instance, said(prompt, max_tokens=60)) for prompt in PROMPTS}
    empty = instance.resident_bytes()
    written = Written(instance)
    kept, doomed = [], []
    for _ in range(200):
        if instance._writer._rows.free:
            prompt = chance.choice(PROMPTS)
            text = written.begin(said(prompt, max_tokens=60))
            (kept if chance.random() < 0.2 else doomed).append((prompt, text))
        written.step()
        while doomed and chance.random() < 0.6:
            prompt, text = doomed.pop(chance.randrange(len(doomed)))
            instance.leave(text)
            assert want[prompt].startswith(written.told[text])
    for _, text in doomed:
        instance.leave(text)
    written.finish()
    assert [written.told[text] for prompt, text in kept] == [want[prompt] for prompt, _ in kept]
    assert len(kept) > 10
    assert (instance.tokens, instance.resident_bytes()) == (0, empty)


def test_a_long_prompt_is_taken_in_between_the_tokens_of_others(instance: GenaiInstance) -> None:
    """No step takes in more of it than a chunk where most run, and every step writes a token of who runs."""
    written = Written(instance)
    runs, *others = [written.begin(said("x", max_tokens=50)) for _ in range(3)]
    instance.step()
    comes = written.begin(said(PROMPTS[3], max_tokens=1))
    steps = -(-comes.prompt_tokens // 16)
    assert steps > 3
    for number in range(steps):
        step = instance.step()
        assert step.prefilled <= 16
        assert step.wrote[0] is runs
        assert (comes.finish != "") == (number == steps - 1)
    for text in (runs, *others):
        instance.leave(text)


def test_a_text_may_fill_a_context_of_any_size() -> None:
    """Up to its last token, also where that is no whole number of pages, or of what masks grow by."""
    inputs = said("x", max_tokens=96, ignore_eos=True)
    with loaded(max_model_len=97, max_num_seqs=2) as instance:
        assert instance.prepare(inputs, {}).prompt_tokens == 1
        told = alone(instance, inputs)
    with loaded() as instance:
        assert alone(instance, inputs) == told


def test_prompts_that_come_together_are_taken_in_together(instance: GenaiInstance) -> None:
    """Up to four pieces a step while nobody runs, of several prompts in one pass, and fewer the more texts run."""
    written = Written(instance)
    texts = [written.begin(said(PROMPTS[3][number : number + 30], max_tokens=30)) for number in range(7)]
    passes, run = [], instance._forward.prefill

    def prefill(row: int, pieces: Sequence[Sequence[int]], before: int) -> object:
        passes.append(len(pieces))
        return run(row, pieces, before)

    instance._forward.prefill = prefill  # type: ignore[method-assign,assignment]
    try:
        prefilled = []
        while not all(text.made for text in texts):
            running = sum(text.made > 0 for text in texts)
            prefilled.append((running, instance.step().prefilled))
    finally:
        instance._forward.prefill = run  # type: ignore[method-assign]
    assert max(passes) > 1
    assert prefilled[0][0] == 0
    assert 32 < prefilled[0][1] <= 64
    assert all(tokens <= 16 * 2 for running, tokens in prefilled if running >= 4)
    assert len({text.prompt_tokens for text in texts}) > 1
    for text in texts:
        instance.leave(text)


@pytest.mark.parametrize("stream", [True, False])
def test_what_is_asked_for_is_told(instance: GenaiInstance, stream: bool) -> None:
    """Reason, counts and probabilities, by Triton's vLLM backend's names; in a stream in parts that sum up."""
    inputs = said("The server", stream=stream, max_tokens=6, logprobs=2, ignore_eos=True)
    asks = ("finish_reason", "logprobs", "cumulative_logprob", "num_input_tokens", "num_output_tokens")
    inputs |= {f"return_{name}": elements(True, dtype=np.bool_) for name in asks}
    text = instance.prepare(inputs, {})
    instance.join(text)
    told = []
    while instance.busy:
        told += [arrays(outputs) for _, outputs in instance.step().pieces]
    assert len(told) > 1 if stream else len(told) == 1
    assert [outputs["finish_reason"][0] for outputs in told][-1] == b"length"
    assert all(outputs["num_input_tokens"][0] == text.prompt_tokens for outputs in told)
    assert sum(outputs["num_output_tokens"][0] for outputs in told) == 6
    logprobs = [one for outputs in told for one in orjson.loads(outputs["logprobs"][0])]
    assert len(logprobs) == 6
    chosen = [next(iter(one.values())) for one in logprobs]
    assert all(one["rank"] == 1 and -10 < one["logprob"] < 0 for one in chosen)
    assert all(len(one) == 2 for one in logprobs)
    assert told[-1]["cumulative_logprob"][0] == pytest.approx(sum(one["logprob"] for one in chosen))


def test_a_stop_string_that_spans_tokens_ends_the_text(instance: GenaiInstance) -> None:
    """What is told ends in front of it."""
    whole = alone(instance, said("The server", max_tokens=30))
    stop = whole[9:13]
    assert alone(instance, said("The server", max_tokens=30, stop=stop)) == whole[: whole.index(stop)]


def test_without_a_stream_the_text_comes_behind_its_prompt_as_a_whole(instance: GenaiInstance) -> None:
    """As Triton's vLLM backend tells it where nothing else is asked for."""
    inputs = said("The server", stream=False)
    del inputs["exclude_input_in_output"]
    assert alone(instance, inputs) == "The server" + alone(instance, said("The server"))


@pytest.mark.parametrize(
    ("inputs", "parameters", "field"),
    [
        (said("x" * 300), {}, "text_input"),
        (said("x" * 150, max_tokens=120), {}, "max_tokens"),
        (said(""), {}, "text_input"),
        (said("x", temperature=-1), {}, "sampling_parameters.temperature"),
        (said("x", top_p=0), {}, "sampling_parameters.top_p"),
        (said("x", max_tokens=0), {}, "sampling_parameters.max_tokens"),
        (said("x", max_tokens=1.5), {}, "sampling_parameters.max_tokens"),
        (said("x", stop=["", "a"]), {}, "sampling_parameters.stop"),
        (said("x", stop={"a": 1}), {}, "sampling_parameters.stop"),
        (said("x", logprobs=21), {}, "sampling_parameters.logprobs"),
        (said("x", n=2), {}, "sampling_parameters.n"),
        (said("x", min_tokens=30), {}, "min_tokens"),
        (said("x"), {"temprature": 1.0}, "parameters.temprature"),
        (said("x"), {"seed": "?"}, "parameters.seed"),
        (said("x"), {"max_tokens": 3}, "parameters.max_tokens"),
        ({**said("x"), "text_input": elements(b"\xff")}, {}, "text_input"),
        ({**said("x"), "sampling_parameters": elements(b"[")}, {}, "sampling_parameters"),
        ({**said("x"), "sampling_parameters": elements(b"[]")}, {}, "sampling_parameters"),
        ({**said("x"), "exclude_input_in_output": elements(False, dtype=np.bool_)}, {}, "exclude_input_in_output"),
    ],
)
def test_what_a_request_gets_wrong_is_named_before_anything_runs(
    instance: GenaiInstance, inputs: dict[str, object], parameters: dict[str, object], field: str
) -> None:
    """The field, and what it must be."""
    with pytest.raises(InvalidRequest) as refused:
        instance.prepare(inputs, parameters)
    assert refused.value.field == field
    assert not instance.busy


def test_what_can_not_fit_is_refused_before_its_tokens_are_counted(instance: GenaiInstance) -> None:
    """By its bytes: those of the longest token, or 64, for each of the context."""
    for count, unit in ((64 * 256, "tokens"), (64 * 256 + 1, "bytes")):
        with pytest.raises(InvalidRequest, match=f"has {count} {unit}") as refused:
            instance.prepare(said("x" * count), {})
        assert refused.value.field == "text_input"


@pytest.mark.parametrize(
    ("change", "where"),
    [
        ("model_transaction_policy { decoupled: false }", "model_transaction_policy.decoupled"),
        ("max_batch_size: 4", "max_batch_size"),
        ('input { name: "image" data_type: TYPE_STRING dims: [ 1 ] }', "input[9]"),
        ('parameters { key: "max_num_seqs" value { string_value: "0" } }', 'parameters["max_num_seqs"]'),
        ('parameters { key: "enable_mem_arena" value { string_value: "0" } }', 'parameters["enable_mem_arena"]'),
        ('parameters { key: "max_model_len" value { string_value: "257" } }', 'parameters["max_model_len"]'),
    ],
)
def test_a_config_that_can_not_be_served_is_refused_by_its_field(change: str, where: str) -> None:
    """As every field that is set and not honoured."""
    text = (FOLDER / "config.pbtxt").read_text()
    name = change.split()[0].rstrip(":")
    if name in ("model_transaction_policy", "max_batch_size"):
        text = "\n".join(line for line in text.splitlines() if not line.startswith(name))
    spec = from_message(parse_text(text + change, "writer"), "writer").engine_spec(FOLDER, "1")
    with pytest.raises(ModelLoadFailed) as refused:
        GenaiEngine().load(spec)
    assert refused.value.where == f"config.pbtxt: {where}"


@pytest.mark.parametrize(
    ("name", "content", "where"),
    [
        ("tokenizer.json", "{", "1/tokenizer.json"),
        ("genai_config.json", "{}", "1/genai_config.json: model"),
        ("genai_config.json", "[", "1/genai_config.json: "),
        ("model.onnx", "", "1/model.onnx"),
        ("model.onnx", None, "1/model.onnx"),
    ],
)
def test_a_folder_that_can_not_be_served_is_refused_by_its_file(
    tmp_path: Path, name: str, content: str | None, where: str
) -> None:
    """Broken or missing files are found out at load."""
    (tmp_path / "1").mkdir()
    for file in (FOLDER / "1").iterdir():
        if file.name != name:
            (tmp_path / "1" / file.name).write_bytes(file.read_bytes())
    if content is not None:
        (tmp_path / "1" / name).write_text(content)
    config = from_message(parse_text((FOLDER / "config.pbtxt").read_text(), "writer"), "writer")
    with pytest.raises(ModelLoadFailed) as refused:
        GenaiEngine().load(config.engine_spec(tmp_path, "1"))
    assert refused.value.where == where
