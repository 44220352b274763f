"""Texts that are written together: throughput beside one after another and beside the library's own loop; first tokens.

    python -m loadtests.benchmarks.writing

Llamas of random weights, a toy and a bigger one, built by onnxruntime-genai's builder. Each side writes the same texts
greedily: as many tokens to each of as many prompts. `bare Engine` is onnxruntime-genai's `Engine` on the same folder,
all requests begun together, which is the best that it does on a CPU: it takes in nobody before a batch is over, and
makes no text of its tokens. Here each token is a response, taken up by a coroutine. `one after another` is the same
server in the same state, with the same mix of prompts. The sides take turns, a round is one turn of each: what is told
is the median of the rounds, of a ratio that of the rounds' own, with the least and the most. The garbage collector is
as the server has it, for all of them.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import shutil
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from multiprocessing import get_context
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import uvloop

from loadtests.flags import counted
from loadtests.report import table
from server.call import Responses, each
from server.engine.genai.engine import GenaiEngine
from server.engine.genai.instance import GenaiInstance
from server.process import settle
from server.repository.model_config import read_model_config
from server.scheduler.queue import QueuePolicy
from server.scheduler.statistics import ModelStatistics
from server.scheduler.writing import WritingBatcher
from server.tensor import Tensor
from server.types import NO_DEADLINE, InferRequest

PROMPT = "The quick brown fox jumps over the lazy dog and goes on. "
THREADS = 1
_LONGER = 128
_VOCABULARY = 4096
_MIX = 3
"""Prompts are of so many lengths, in turn."""
MODELS = ((64, 2), (512, 8))
"""A toy, whose pass takes less than what stands around it, and one whose weights do not fit into a core's caches."""


def make(folder: Path, width: int, layers: int, rows: int) -> Path:
    """A model's folder; its texts never end by themselves, for the end token has no weight worth it."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    from exporter.generation.build import build, save
    from exporter.generation.publish import stage

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.ByteLevel(), decoders.ByteLevel()
    trainer = trainers.BpeTrainer(vocab_size=260, special_tokens=["<|end|>"], show_progress=False)
    trainer.initial_alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokenizer.train_from_iterator([PROMPT], trainer)
    tokenizer = _filled(tokenizer)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=_VOCABULARY,
        hidden_size=width,
        intermediate_size=3 * width,
        num_hidden_layers=layers,
        num_attention_heads=width // 64,
        num_key_value_heads=max(1, width // 128),
        max_position_embeddings=1024,
        eos_token_id=0,
    )
    save(
        LlamaForCausalLM(config),
        PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|end|>"),  # type: ignore[no-untyped-call]
        folder / "trained",
    )
    build(folder / "trained", folder / "built", "fp32")
    model = folder / "writer"
    model.mkdir()
    stage(model, folder / "built", "writer")
    extra = {"max_num_seqs": rows, "intra_op_thread_count": THREADS}
    with (model / "config.pbtxt").open("a") as config_file:
        for key, value in extra.items():
            config_file.write(f'parameters {{ key: "{key}" value {{ string_value: "{value}" }} }}\n')
    return model


def _filled(tokenizer: Any) -> Any:
    """With a word for each token that the model knows, so that each is a response: a token without text is none."""
    from tokenizers import Tokenizer

    document = json.loads(tokenizer.to_str())
    vocabulary = document["model"]["vocab"]
    for token in range(len(vocabulary), _VOCABULARY):
        vocabulary[f"Ġ{token}"] = token
    return Tokenizer.from_str(json.dumps(document))


def library(model: Path, prompts: Sequence[Sequence[int]], tokens: int) -> Callable[[], int]:
    """The bare loop of onnxruntime-genai's Engine; returns how many tokens it wrote."""
    import onnxruntime_genai as og

    folder = model.parent / "library"
    shutil.copytree(model / "1", folder)
    config = json.loads((folder / "genai_config.json").read_text())
    config["model"]["decoder"]["session_options"]["intra_op_num_threads"] = THREADS
    config["engine"] = {"static_batching": {"max_batch_size": len(prompts)}}
    (folder / "genai_config.json").write_text(json.dumps(config))
    loaded = og.Model(str(folder))

    def write() -> int:
        engine = og.Engine(loaded)
        events, requests, written = engine.create_event_buffer(len(prompts)), [], 0
        for prompt in prompts:
            request = engine.create_request()
            options = og.TurnOptions(request)
            options.set_max_generated_tokens(tokens)
            options.set_min_generated_tokens(tokens)
            request.begin_turn(np.array(prompt, np.int32), options)
            requests.append(request)
        while engine.has_pending_requests():
            written += sum(bool(event.flags.value & og.EngineEventFlags.TOKEN.value) for event in engine.run(events))
        for request in requests:
            request.close()
        return written

    return write


class Ours:
    """The scheduler over the engine, as the server has them, in this process."""

    def __init__(self, instance: GenaiInstance) -> None:
        self.batcher = WritingBatcher(
            "writer", "1", instance, QueuePolicy(), ModelStatistics("writer", "1"), asyncio.get_running_loop()
        )

    async def write(
        self, prompt: str, tokens: int, seen: list[int] | None = None, deadline_ns: int = NO_DEADLINE
    ) -> InferRequest:
        """One stream to its end; `seen`: how many nanoseconds after its begin each response came."""
        arrived = asyncio.Event()
        responses = Responses(arrived.set)
        inputs = {"text_input": prompt.encode(), "sampling_parameters": _sampling(tokens)}
        request = InferRequest(
            "writer",
            [Tensor.from_numpy(name, np.array([value], object)) for name, value in inputs.items()]
            + [Tensor.from_numpy("stream", np.array([True]))],
            on_settle=responses.settle,
            received_ns=time.monotonic_ns(),
            deadline_ns=deadline_ns,
            caller=responses,
        )
        self.batcher.submit((request,))
        async for _ in each(request, responses, arrived, self.batcher.cancel):
            if seen is not None:
                seen.append(time.monotonic_ns() - request.received_ns)
        return request


def _sampling(tokens: int) -> bytes:
    return json.dumps({"max_tokens": tokens, "temperature": 0, "ignore_eos": True}).encode()


@dataclass
class Turns:
    """Of one side: seconds that each took, and those of the process's cores; for as many tokens."""

    took: list[float] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)

    async def take(self, write: Callable[[], Awaitable[int]], tokens: int) -> None:
        """`write` writes a part of them, and returns how many."""
        began, began_cpu = time.perf_counter(), time.process_time()
        part = tokens / await write()
        self.took.append((time.perf_counter() - began) * part)
        self.cpu.append((time.process_time() - began_cpu) * part)


async def measure(model: Path, streams: int, tokens: int, rounds: int) -> list[list[str]]:
    spec = read_model_config(model).engine_spec(model, "1")
    loaded = GenaiEngine(THREADS).load(spec)
    [instance] = loaded.instances
    prompts = [PROMPT * (1 + number % _MIX) for number in range(streams)]
    ids = [list(instance.prepare({"text_input": np.array([text.encode()], object)}, {}).prompt) for text in prompts]
    bare = library(model, ids, tokens)
    ours = Ours(instance)
    sides = {"bare": Turns(), "together": Turns(), "one by one": Turns()}
    first: dict[str, list[float]] = {"idle": [], "busy": []}
    total = streams * tokens

    async def together() -> int:
        before = ours.batcher.writing.tokens
        await asyncio.gather(*(ours.write(prompt, tokens) for prompt in prompts))
        return ours.batcher.writing.tokens - before

    async def one_by_one() -> int:
        before = ours.batcher.writing.tokens
        for prompt in prompts[: 2 * _MIX]:
            await ours.write(prompt, tokens)
        return ours.batcher.writing.tokens - before

    # Once each, to warm up.
    assert bare() == total
    assert await together() == total
    settle()
    for _ in range(rounds):
        await sides["bare"].take(lambda: asyncio.to_thread(bare), total)
        await sides["together"].take(together, total)
        await sides["one by one"].take(one_by_one, total)
        await newcomer(ours, prompts, tokens, first)
    await ours.batcher.close()
    loaded.close()
    return report(sides, total, first, streams)


async def newcomer(ours: Ours, prompts: Sequence[str], tokens: int, first: dict[str, list[float]]) -> None:
    """The first token of one that comes, to an idle engine and while all others run."""
    seen: list[int] = []
    await ours.write(prompts[0], 2, seen)
    first["idle"].append(seen[0] / 1e6)
    firsts: list[list[int]] = [[] for _ in prompts[1:]]
    # Longer, so that the first of them still runs when the last has begun.
    running = [
        asyncio.ensure_future(ours.write(prompt, tokens + _LONGER, one))
        for prompt, one in zip(prompts[1:], firsts, strict=True)
    ]
    while not all(firsts):  # noqa: ASYNC110 - what came makes no event
        await asyncio.sleep(0.005)
    seen = []
    await ours.write(prompts[0], 2, seen)
    first["busy"].append(seen[0] / 1e6)
    await asyncio.gather(*running)


def report(sides: Mapping[str, Turns], total: int, first: dict[str, list[float]], streams: int) -> list[list[str]]:
    def line(told: str, name: str) -> list[str]:
        took, cpu = sides[name].took, sides[name].cpu
        return [told, f"{total / median(took):.0f}", f"{median(cpu) / total * 1e6:.0f}", ratio("bare", name)]

    def ratio(over: str, name: str) -> str:
        values = sorted(one / other for one, other in zip(sides[over].took, sides[name].took, strict=True))
        return f"{median(values):.2f} ({values[0]:.2f} to {values[-1]:.2f})"

    return [
        line(f"bare Engine, {streams} at once", "bare"),
        line(f"here, {streams} streams", "together"),
        line("here, one after another", "one by one"),
        ["streams over one after another", "", "", ratio("one by one", "together")],
        ["first token, idle, ms", f"{median(first['idle']):.1f}", "", ""],
        [f"first token, {streams - 1} running, ms", f"{median(first['busy']):.1f}", "", ""],
    ]


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--streams", type=counted, default=16)
    parser.add_argument("--tokens", type=counted, default=64, help="of each text (default: 64)")
    parser.add_argument("--rounds", type=counted, default=5)
    parser.add_argument(
        "--models", nargs="+", type=size, default=MODELS, metavar="WIDTHxLAYERS", help="(default: 64x2 512x8)"
    )
    options = parser.parse_args(arguments)
    for width, layers in options.models:
        with tempfile.TemporaryDirectory() as folder:
            # Where it is made half a million objects of PyTorch stay behind, for the garbage collector to look through.
            with ProcessPoolExecutor(1, get_context("spawn")) as maker:
                model = maker.submit(make, Path(folder), width, layers, options.streams).result()
            # The server's loop, too.
            with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
                lines = runner.run(measure(model, options.streams, options.tokens, options.rounds))
        sys.stdout.write(
            table((f"{layers} layers of {width}", "tokens/s", "CPU µs a token", "over the bare Engine"), lines) + "\n"
        )
    return 0


def size(text: str) -> tuple[int, int]:
    width, layers = text.split("x")
    return int(width), int(layers)


if __name__ == "__main__":
    raise SystemExit(main())
