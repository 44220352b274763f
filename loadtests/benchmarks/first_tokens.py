"""How well the time to a text's first token is foreseen, and whether a refusal by it is right.

    python -m loadtests.benchmarks.first_tokens

So many callers, each of whom asks again as soon as its text is over, for prompts and texts of unequal length; the model
writes sixteen texts at the same time, of more the others wait. Nobody is refused: what was foreseen as a request came
is put beside what came. For an objective at the median of the times that came it is told how many would have been
refused, and how many of them wrongly; and how many would have been let in and come too late.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import NamedTuple

import uvloop

from loadtests.benchmarks.writing import MODELS, PROMPT, THREADS, Ours, make, size
from loadtests.flags import counted
from loadtests.report import table
from server.engine.genai.engine import GenaiEngine
from server.repository.model_config import read_model_config

_ROWS = 16
_STREAMS = (1, 8, 16, 32)
_PROMPTS, _TEXTS = (1, 3), (16, 96)
_FAR_NS = 3600 * 10**9
HEADER = (
    "streams",
    "first token, ms",
    "foreseen, ms",
    "median error",
    "error, 10 to 90 %",
    "refused",
    "of them wrongly",
    "too late",
)


class Seen(NamedTuple):
    foreseen_ms: float
    came_ms: float

    @property
    def error(self) -> float:
        """Above 0: foreseen too late."""
        return (self.foreseen_ms - self.came_ms) / self.came_ms


async def ask(ours: Ours, streams: int, texts: int) -> list[Seen]:
    seen: list[Seen] = []

    async def caller(number: int) -> None:
        chance = random.Random(number)
        for _ in range(texts):
            came: list[int] = []
            began_ns = time.monotonic_ns()
            prompt, tokens = PROMPT * chance.randint(*_PROMPTS), chance.randint(*_TEXTS)
            request = await ours.write(prompt, tokens, came, began_ns + _FAR_NS)
            if request.predicted_ns:
                seen.append(Seen((request.predicted_ns - request.received_ns) / 1e6, came[0] / 1e6))

    await asyncio.gather(*(caller(number) for number in range(streams)))
    # The first ones come together, into a server that has learned another load.
    return seen[min(len(seen) // 4, streams) :]


def line(streams: int, seen: Sequence[Seen]) -> list[str]:
    objective = median(one.came_ms for one in seen)
    refused = [one for one in seen if one.foreseen_ms > objective]
    late = sum(one.came_ms > objective >= one.foreseen_ms for one in seen)
    errors = sorted(one.error for one in seen)
    tenth = len(errors) // 10
    return [
        str(streams),
        f"{objective:.1f}",
        f"{median(one.foreseen_ms for one in seen):.1f}",
        f"{median(abs(error) for error in errors):.0%}",
        f"{errors[tenth]:+.0%} to {errors[-1 - tenth]:+.0%}",
        f"{len(refused)} of {len(seen)}",
        str(sum(one.came_ms <= objective for one in refused)),
        str(late),
    ]


async def measure(model: Path, texts: int) -> list[list[str]]:
    loaded = GenaiEngine(THREADS).load(read_model_config(model).engine_spec(model, "1"))
    ours = Ours(loaded.instances[0])
    lines = [line(streams, await ask(ours, streams, max(texts, 24 // streams))) for streams in _STREAMS]
    await ours.batcher.close()
    loaded.close()
    return lines


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--texts", type=counted, default=6, help="of each caller (default: 6)")
    parser.add_argument(
        "--models", nargs="+", type=size, default=MODELS, metavar="WIDTHxLAYERS", help="(default: 64x2 512x8)"
    )
    options = parser.parse_args(arguments)
    for width, layers in options.models:
        with tempfile.TemporaryDirectory() as folder:
            model = make(Path(folder), width, layers, _ROWS)
            with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
                lines = runner.run(measure(model, options.texts))
        sys.stdout.write(f"{layers} layers of {width}\n\n{table(HEADER, lines)}\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
