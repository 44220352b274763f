"""1,000 callers of a model that writes text cancel, hang up or read to the end: no text is another's, nothing stays.

    python -m loadtests.proofs.hangups              # --workers 2: of a server of several processes

A real server of a tiny model. Callers come by OpenAI's events, by PredictStream, and by connections that are cut at any
byte. What each has read by then must be the beginning of the text that its prompt gets alone. At the end nobody runs,
waits or holds memory of the cache, the process is as large as after the first quarter, and a text is written as before.
The exit code is 1 where that is not so.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from pathlib import Path
from random import Random

from loadtests.cores import cores
from loadtests.flags import counted
from loadtests.process import Server, family, rss_bytes, serving
from loadtests.report import table
from server.client import AsyncClient

_MODEL = Path(__file__).parents[2] / "tests" / "golden" / "writer"
_NAME = "writer"
_ROWS = 8
_PROMPTS = ("The server", "A request that waits", "x", "Every model has a queue, and every queue has an end", "No")
_TOKENS = 100
_CALLERS = 24
_EMPTY_S = 30.0
_MIB = 2**20
_MOST_GROWN = 24 * _MIB
"""Of its processes, between the first quarter and the end: what an allocator keeps differs from run to run."""


@dataclass
class Seen:
    ended: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)
    after: Mapping[str, float] = field(default_factory=dict)
    """The metrics' samples, when everybody had gone."""
    early_bytes: int = 0
    late_bytes: int = 0
    took_s: float = 0.0

    def left(self) -> dict[str, float]:
        """What should be 0."""
        names = ("forwardpass_text_running", "forwardpass_text_held", "forwardpass_text_kv_reserved_ratio")
        return {name: self.after[name] for name in (*names, "nv_inference_pending_request_count")}

    def shown(self) -> bool:
        grown = self.late_bytes - self.early_bytes
        return not self.wrong and not any(self.left().values()) and grown <= _MOST_GROWN


class Callers:
    def __init__(self, server: Server, client: AsyncClient, seed: int) -> None:
        self._server = server
        self._client = client
        self._chance = Random(seed)
        self._alone: dict[str, str] = {}
        self.seen = Seen()

    async def write_alone(self) -> None:
        for prompt in _PROMPTS:
            text = "".join([piece.text async for piece in self._pieces(prompt)])
            if self._alone.setdefault(prompt, text) != text:
                self.seen.wrong.append(f"{prompt!r} alone is not what it was")

    def _pieces(self, prompt: str):  # type: ignore[no-untyped-def]  # as of the client
        return self._client.predict_stream(_NAME, prompt, max_tokens=_TOKENS, temperature=0, ignore_eos=True)

    async def call(self, count: int) -> None:
        """So many, one after another."""
        for _ in range(count):
            prompt = self._chance.choice(_PROMPTS)
            pieces = self._chance.choice((0, 1, self._chance.randint(2, 60), _TOKENS * 2))
            way = self._chance.choice(("events", "grpc", "cut"))
            read = {"events": self._events, "grpc": self._grpc, "cut": self._cut}[way]
            try:
                text, whole = await asyncio.wait_for(read(prompt, pieces), 60)
            except Exception as error:  # noqa: BLE001 - whatever it is, it is what is looked for
                self.seen.wrong.append(f"{way}: {error!r}")
                continue
            alone = self._alone[prompt]
            if text != alone if whole else not alone.startswith(text):
                self.seen.wrong.append(f"{way}: {text!r} to {prompt!r}, alone {alone!r}")
            self.seen.ended[f"{way}, {'to its end' if whole else 'in the middle' if text else 'at its beginning'}"] += 1

    async def _grpc(self, prompt: str, most: int) -> tuple[str, bool]:
        """Cancelled after `most` pieces."""
        text, finish = "", ""
        async with aclosing(self._pieces(prompt)) as pieces:
            while most and not finish:
                piece = await anext(pieces)
                text, finish, most = text + piece.text, piece.finish_reason, most - 1
        return text, bool(finish)

    async def _events(self, prompt: str, most: int) -> tuple[str, bool]:
        """The connection is closed after `most` events."""
        reader, writer = await self._connect()
        try:
            writer.write(self._request(prompt))
            text, finish = "", ""
            while most and not finish:
                line = await reader.readline()
                if not line:
                    raise ConnectionError("it was closed by the server")
                if not line.startswith(b"data: "):
                    continue
                [choice] = json.loads(line[6:])["choices"]
                text, finish, most = text + choice["text"], choice["finish_reason"] or "", most - 1
            return text, bool(finish)
        finally:
            writer.transport.abort()

    async def _cut(self, prompt: str, _most: int) -> tuple[str, bool]:
        """At any byte of the request, or soon behind it."""
        _, writer = await self._connect()
        request = self._request(prompt)
        writer.write(request[: self._chance.randint(1, 2 * len(request))])
        await asyncio.sleep(self._chance.random() * 0.02)
        writer.transport.abort()
        return "", False

    async def _connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        host, _, port = self._server.http.rpartition(":")
        return await asyncio.open_connection(host, int(port))

    def _request(self, prompt: str) -> bytes:
        said = {"model": _NAME, "prompt": prompt, "max_tokens": _TOKENS, "temperature": 0, "ignore_eos": True}
        body = json.dumps({**said, "stream": True}).encode()
        head = f"POST /v1/completions HTTP/1.1\r\nhost: here\r\ncontent-length: {len(body)}\r\n\r\n"
        return head.encode() + body


async def hang_up(server: Server, calls: int, seed: int) -> Seen:
    async with AsyncClient(f"grpc://{server.grpc}") as client:
        callers = Callers(server, client, seed)
        seen = callers.seen
        await callers.write_alone()
        began = time.monotonic()
        for part in (calls // 4, calls - calls // 4):
            each, more = divmod(part, _CALLERS)
            await asyncio.gather(*(callers.call(each + (number < more)) for number in range(_CALLERS)))
            seen.after = await _emptied(server, seen)
            seen.early_bytes, seen.late_bytes = seen.late_bytes, sum(map(rss_bytes, family(server.pid)))
        seen.took_s = time.monotonic() - began
        await callers.write_alone()
        return seen


async def _emptied(server: Server, seen: Seen) -> Mapping[str, float]:
    """The metrics, when everybody has gone, or a while later."""
    ends = time.monotonic() + _EMPTY_S
    while True:
        seen.after = await asyncio.to_thread(server.metrics, _NAME)
        if not any(seen.left().values()) or time.monotonic() > ends:
            return seen.after
        await asyncio.sleep(0.05)


def run(calls: int, seed: int, workers: int = 1) -> Seen:
    with tempfile.TemporaryDirectory() as folder:
        models = Path(folder) / "models"
        shutil.copytree(_MODEL, models / _NAME)
        with (models / _NAME / "config.pbtxt").open("a") as config:
            config.write(f'parameters {{ key: "max_num_seqs" value {{ string_value: "{_ROWS}" }} }}\n')
        with serving(models, Path(folder), tuple(cores()), "--workers", str(workers)) as server:
            return asyncio.run(hang_up(server, calls, seed))


def report(seen: Seen) -> str:
    rows = [(how, f"{count:,}") for how, count in sorted(seen.ended.items())]
    finished = {name.partition("=")[2]: value for name, value in seen.after.items() if "finished_total" in name}
    rows += [(f"ended there: {reason}", f"{count:,.0f}") for reason, count in sorted(finished.items())]
    rows += [(f"left: {name}", f"{value:g}") for name, value in seen.left().items()]
    rows += [("memory grown, MiB", f"{(seen.late_bytes - seen.early_bytes) / _MIB:.1f}")]
    rows += [("wrong", f"{len(seen.wrong):,}"), ("seconds", f"{seen.took_s:.1f}")]
    return table(("", ""), rows) + "".join(f"\n{line}\n" for line in seen.wrong[:5])


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--calls", type=counted, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=counted, default=1, help="of the server (default: 1)")
    options = parser.parse_args(arguments)
    seen = run(options.calls, options.seed, options.workers)
    sys.stdout.write(report(seen))
    return 0 if seen.shown() else 1


if __name__ == "__main__":
    sys.exit(main())
