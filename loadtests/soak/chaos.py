"""Clients that misbehave: they leave, cancel, run out of time, break frames and HTTP. Each act says how it ended.

An act is a connection of its own. What it sends to the model `spoilt` arrives whole, for the socket is closed only when
the server has closed its side; so the server must have counted every one of these requests, as a success or a failure.
What is sent to `abrupt` may be lost with its connection.
"""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from random import Random

import grpc

from loadtests.client import infer
from loadtests.soak import http
from loadtests.soak.broken import BROKEN_FRAMES, BROKEN_HTTP, WRONG_JSON, WRONG_MESSAGES
from loadtests.soak.h2 import GREETING, STREAM, call, frame_of, greeting, has_goaway, head, message, status_of
from loadtests.soak.models import ABRUPT, SPOILT
from loadtests.soak.sockets import closed, finish, opened, rest
from loadtests.soak.steady import Asked
from server.transport.http2 import frames

_PATIENCE_S = 30.0
_MOST_FAULTS = 20


@dataclass
class Chaos:
    """What was done, and how it ended."""

    asked: Asked
    rng: Random
    acts: Counter[str] = field(default_factory=Counter)
    ends: Counter[str] = field(default_factory=Counter)
    """By act and end."""
    sent: Counter[str] = field(default_factory=Counter)
    """Whole, sound infer requests, by model."""
    failed: int = 0
    faults: list[str] = field(default_factory=list)
    """The first acts that the server did not take as it must."""

    def fault(self, text: str) -> None:
        self.failed += 1
        if len(self.faults) < _MOST_FAULTS:
            self.faults.append(text)

    def soon(self) -> Awaitable[None]:
        """About the time of a pass."""
        return asyncio.sleep(self.rng.random() * 0.004)


Act = Callable[[Chaos], Awaitable[str]]
"""Returns how it ended. Raises Unexpected, or what the socket raises."""


class Unexpected(Exception):
    """The server did not do what it has to."""


async def cancels(chaos: Chaos) -> str:
    """Once the call is known to have been taken in."""
    reader, writer = await opened(chaos.asked.grpc)
    writer.write(GREETING + call(1, chaos.asked.message(SPOILT)) + frames.ping(bytes(8)))
    chaos.sent[SPOILT] += 1
    await frame_of(reader, frames.PING)
    await chaos.soon()
    writer.write(frames.rst_stream(1, frames.ErrorCode.CANCEL))
    await finish(reader, writer)
    return "cancelled"


async def cancels_at_once(chaos: Chaos) -> str:
    """A call that is cancelled in the same read is never asked of the model, and counted nowhere."""
    reader, writer = await opened(chaos.asked.grpc)
    writer.write(GREETING + call(1, chaos.asked.message(ABRUPT)) + frames.rst_stream(1, frames.ErrorCode.CANCEL))
    chaos.sent[ABRUPT] += 1
    await finish(reader, writer)
    return "cancelled"


async def runs_out_of_time(chaos: Chaos) -> str:
    timeout = f"{chaos.rng.randint(1, 3000)}u".encode()
    reader, writer = await opened(chaos.asked.grpc)
    writer.write(GREETING + call(1, chaos.asked.message(SPOILT), (b"grpc-timeout", timeout)))
    chaos.sent[SPOILT] += 1
    status = await status_of(reader)
    await finish(reader, writer)
    return _one_of(status, "0", "4", "8")


async def leaves(chaos: Chaos) -> str:
    reader, writer = await opened(chaos.asked.grpc)
    count = chaos.rng.randint(1, 8)
    writer.write(GREETING + b"".join(call(2 * i + 1, chaos.asked.message(SPOILT)) for i in range(count)))
    chaos.sent[SPOILT] += count
    await finish(reader, writer)
    return "left"


async def leaves_in_the_middle(chaos: Chaos) -> str:
    reader, writer = await opened(chaos.asked.grpc)
    whole = call(1, chaos.asked.message(SPOILT))
    writer.write(GREETING + whole[: chaos.rng.randrange(1, len(whole))])
    await finish(reader, writer)
    return "left"


async def tears(chaos: Chaos) -> str:
    _, writer = await opened(chaos.asked.grpc)
    count = chaos.rng.randint(1, 8)
    writer.write(GREETING + b"".join(call(2 * i + 1, chaos.asked.message(ABRUPT)) for i in range(count)))
    chaos.sent[ABRUPT] += count
    await chaos.soon()
    writer.transport.abort()
    await closed(writer)
    return "torn"


async def cuts_a_stream(chaos: Chaos) -> str:
    reader, writer = await opened(chaos.asked.grpc)
    count = chaos.rng.randint(1, 8)
    requests = b"".join(message(1, chaos.asked.message(ABRUPT)) for _ in range(count))
    writer.write(GREETING + head(1, path=STREAM) + requests)
    chaos.sent[ABRUPT] += count
    await chaos.soon()
    writer.write(frames.rst_stream(1, frames.ErrorCode.CANCEL))
    await finish(reader, writer)
    return "cut"


async def does_not_read(chaos: Chaos) -> str:
    reader, writer = await opened(chaos.asked.grpc)
    writer.write(greeting({frames.INITIAL_WINDOW_SIZE: 0}) + call(1, chaos.asked.message(SPOILT)))
    chaos.sent[SPOILT] += 1
    await asyncio.sleep(0.05)
    await finish(reader, writer)
    return "left"


async def resets(chaos: Chaos) -> str:
    reader, writer = await opened(chaos.asked.grpc)
    reset = frames.ErrorCode.CANCEL
    writer.write(GREETING + b"".join(head(2 * i + 1) + frames.rst_stream(2 * i + 1, reset) for i in range(20)))
    await finish(reader, writer)
    return "left"


async def breaks_frames(chaos: Chaos) -> str:
    name = chaos.rng.choice(list(BROKEN_FRAMES))
    reader, writer = await opened(chaos.asked.grpc)
    writer.write(BROKEN_FRAMES[name])
    received = await rest(reader)
    await closed(writer)
    if not has_goaway(received):
        raise Unexpected(f"{name}: no GOAWAY in {received[:200]!r}")
    return name


async def sends_wrong_messages(chaos: Chaos) -> str:
    name = chaos.rng.choice(list(WRONG_MESSAGES))
    wrong, status = WRONG_MESSAGES[name]
    reader, writer = await opened(chaos.asked.grpc)
    writer.write(GREETING + call(1, wrong))
    found = await status_of(reader)
    await finish(reader, writer)
    return f"{name}: {_one_of(found, status)}"


async def gives_up(chaos: Chaos) -> str:
    """By grpcio, as clients do it."""
    options = [("grpc.use_local_subchannel_pool", 1)]
    async with grpc.aio.insecure_channel(chaos.asked.grpc, options=options) as channel:
        calls = [infer(channel)(chaos.asked.message(ABRUPT), timeout=0.001 * chaos.rng.randint(1, 8)) for _ in range(4)]
        chaos.sent[ABRUPT] += len(calls)
        await chaos.soon()
        calls[0].cancel()
        codes = {str(await each.code()).removeprefix("StatusCode.") for each in calls}
    return "/".join(
        _one_of(code, "OK", "CANCELLED", "DEADLINE_EXCEEDED", "RESOURCE_EXHAUSTED") for code in sorted(codes)
    )


# --- REST ---------------------------------------------------------------------------------------------


def _infer(chaos: Chaos, model: str, **headers: str) -> bytes:
    row = chaos.asked.row
    data = {"name": "x", "datatype": "FP32", "shape": row.shape, "data": row.ravel().tolist()}
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return http.request(f"/v2/models/{model}/infer", json.dumps({"inputs": [data]}).encode(), named)


async def leaves_rest(chaos: Chaos) -> str:
    reader, writer = await opened(chaos.asked.http)
    writer.write(_infer(chaos, SPOILT))
    chaos.sent[SPOILT] += 1
    await finish(reader, writer)
    return "left"


async def pipelines(chaos: Chaos) -> str:
    """And reads not all of the answers."""
    reader, writer = await opened(chaos.asked.http)
    writer.write(_infer(chaos, SPOILT) * 4)
    chaos.sent[SPOILT] += 4
    statuses = [(await http.answer(reader))[0] for _ in range(2)]
    await finish(reader, writer)
    return _one_of(statuses, [200, 200])


async def runs_out_of_time_rest(chaos: Chaos) -> str:
    async with await http.Connection.open(chaos.asked.http) as connection:
        chaos.sent[SPOILT] += 1
        status, _ = await connection.post(_infer(chaos, SPOILT, X_Request_Timeout="1"))
    return _one_of(status, 200, 429, 504)


async def cuts_a_body(chaos: Chaos) -> str:
    reader, writer = await opened(chaos.asked.http)
    whole = _infer(chaos, SPOILT)
    writer.write(whole[: chaos.rng.randrange(1, len(whole))])
    await finish(reader, writer)
    return "left"


async def breaks_http(chaos: Chaos) -> str:
    name = chaos.rng.choice(list(BROKEN_HTTP))
    broken, wanted = BROKEN_HTTP[name]
    reader, writer = await opened(chaos.asked.http)
    writer.write(broken)
    status, _ = await http.answer(reader)
    await rest(reader)
    await closed(writer)
    return f"{name}: {_one_of(status, wanted)}"


async def sends_wrong_json(chaos: Chaos) -> str:
    name = chaos.rng.choice(list(WRONG_JSON))
    path, body, wanted = WRONG_JSON[name]
    async with await http.Connection.open(chaos.asked.http) as connection:
        status, _ = await connection.post(http.request(path, body, {}))
    return f"{name}: {_one_of(status, wanted)}"


async def tears_rest(chaos: Chaos) -> str:
    _, writer = await opened(chaos.asked.http)
    writer.write(_infer(chaos, ABRUPT))
    chaos.sent[ABRUPT] += 1
    await chaos.soon()
    writer.transport.abort()
    await closed(writer)
    return "torn"


async def says_nothing(chaos: Chaos) -> str:
    reader, writer = await opened(chaos.rng.choice([chaos.asked.http, chaos.asked.grpc]))
    await chaos.soon()
    await finish(reader, writer)
    return "left"


def _one_of(found: object, *allowed: object) -> str:
    if found not in allowed:
        raise Unexpected(f"{found}, and not one of {allowed}")
    return str(found)


ACTS: dict[str, Act] = {
    "gRPC: cancels": cancels,
    "gRPC: cancels at once": cancels_at_once,
    "gRPC: runs out of time": runs_out_of_time,
    "gRPC: leaves": leaves,
    "gRPC: leaves in the middle of a request": leaves_in_the_middle,
    "gRPC: tears the connection": tears,
    "gRPC: cuts a stream": cuts_a_stream,
    "gRPC: does not read": does_not_read,
    "gRPC: resets all that it opens": resets,
    "gRPC: breaks frames": breaks_frames,
    "gRPC: sends wrong messages": sends_wrong_messages,
    "gRPC: gives up (grpcio)": gives_up,
    "REST: leaves": leaves_rest,
    "REST: pipelines and leaves": pipelines,
    "REST: runs out of time": runs_out_of_time_rest,
    "REST: cuts a body": cuts_a_body,
    "REST: breaks HTTP": breaks_http,
    "REST: sends wrong JSON": sends_wrong_json,
    "REST: tears the connection": tears_rest,
    "says nothing": says_nothing,
}


async def misbehave(chaos: Chaos, until: float, per_s: float) -> None:
    """Acts, one begun every `1 / per_s` seconds, in turn, until a time of the loop's clock; then waits for all."""
    loop = asyncio.get_running_loop()
    tasks: set[asyncio.Task[None]] = set()
    names = list(ACTS)
    while loop.time() < until:
        task = asyncio.create_task(_act(chaos, names[chaos.acts.total() % len(names)]))
        tasks.add(task)
        task.add_done_callback(tasks.discard)
        await asyncio.sleep(1 / per_s)
    if tasks:
        await asyncio.wait(tasks)


async def _act(chaos: Chaos, name: str) -> None:
    chaos.acts[name] += 1
    try:
        async with asyncio.timeout(_PATIENCE_S):
            chaos.ends[f"{name}: {await ACTS[name](chaos)}"] += 1
    except (Unexpected, OSError, EOFError, TimeoutError) as error:
        chaos.fault(f"{name}: {error!r}")
