"""A relay with servers that answer when a test says so, on a manual clock."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from server.errors import Cancelled
from server.scheduler.cost import CostModel
from server.scheduler.flights import Done
from server.scheduler.queue import QueuePolicy
from server.scheduler.relay import Relay
from server.scheduler.statistics import ModelStatistics
from server.scheduler.window import Bounds
from server.tensor import Tensor
from server.types import InferRequest, InferResponse, Outcome
from tests.support.scheduler import Caller, ManualClock, ManualLoop


class ManualServer:
    """Has requests until `answer` or `fail`; a call that is given up ends as Cancelled."""

    def __init__(self, name: str, loop: ManualLoop) -> None:
        self.name = name
        self.work_ns = 0
        self.asked: list[InferRequest] = []
        """All that it ever got."""
        self.waiting: dict[InferRequest, Done] = {}
        self._loop = loop

    def ask(self, request: InferRequest, done: Done) -> Callable[[], None]:
        self.asked.append(request)
        self.waiting[request] = done
        return lambda: self._loop.call_soon(self._given_up, request)

    def _given_up(self, request: InferRequest) -> None:
        if request in self.waiting:
            self.end(request, Cancelled())

    def end(self, request: InferRequest, outcome: Outcome) -> None:
        self.waiting.pop(request)(outcome)

    def answer(self, request: InferRequest) -> None:
        """Twice its input."""
        values = request.inputs[0].numpy() * 2
        self.end(request, InferResponse("doubler", "1", [Tensor.from_numpy("y", values)], request.id))


class RelayBench:
    """A relay to `servers` servers, each with a window of just `window`."""

    def __init__(self, servers: int = 1, window: int = 2, seed_ns: int = 0, **rest: Any) -> None:
        self.clock = ManualClock()
        self.loop = ManualLoop(self.clock)
        self.caller = Caller(self.clock)
        self.statistics = ModelStatistics("doubler", "1", wall=lambda: 1_700_000_000.5)
        self.servers = [ManualServer(f"server{index}", self.loop) for index in range(servers)]
        self.relay = Relay(
            "doubler",
            Bounds(window, window, window),
            rest.pop("policy", QueuePolicy()),
            CostModel({1: seed_ns} if seed_ns else None),
            self.statistics,
            self.loop,  # type: ignore[arg-type]
            self.clock,
            **rest,
        )
        self.relay.serve_by(self.servers)

    @property
    def server(self) -> ManualServer:
        return self.servers[0]

    def submit(self, *requests: InferRequest) -> None:
        self.relay.submit(requests)
        self.loop.run()

    def answer(self, request: InferRequest) -> None:
        """By whichever server has it."""
        next(server for server in self.servers if request in server.waiting).answer(request)
        self.loop.run()

    def fail(self, request: InferRequest, error: Exception) -> None:
        next(server for server in self.servers if request in server.waiting).end(request, error)
        self.loop.run()

    def advance(self, by_ns: int) -> None:
        self.loop.run()
        self.clock.now_ns += by_ns
        self.loop.run()
