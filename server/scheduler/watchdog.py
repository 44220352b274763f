"""Passes that take longer than they may, and devices that are lost: callers are answered, the instance is replaced.

A pass may take twenty times what the model of costs foresaw, and never less than a bound that is set; one of unknown
cost ten times that bound. Counted is the time in which this process ran: after it was stopped, or the machine asleep,
nobody is given up for it.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence

from server.errors import DeviceLost
from server.observability.whose import about
from server.scheduler.instances import Instances, Run
from server.scheduler.worker import Runner, Worker
from server.types import InferRequest

log = logging.getLogger(__name__)

_LOOK_S = 1.0
_TIMES = 20
_UNKNOWN_TIMES = 10


class Watchdog:
    """Of one model version, from when it is made until `close`."""

    def __init__(
        self,
        model_name: str,
        instances: Instances,
        loop: asyncio.AbstractEventLoop,
        hang_s: float,
        give_up: Callable[[Runner, Run], None],
        back: Callable[[Runner], None],
    ) -> None:
        """`give_up` answers the callers of a pass; `back` hears that the instance can be used again."""
        self._model_name = model_name
        self._instances = instances
        self._loop = loop
        self._hang_s = hang_s
        self._give_up = give_up
        self._back = back
        self._look_s = min(_LOOK_S, hang_s / 4)
        self._seen_s: dict[Run, float] = {}
        """How long each pass has run, as far as this has seen."""
        self._looked_s = loop.time()
        self._replacing: set[asyncio.Task[None]] = set()
        self._timer = loop.call_later(self._look_s, self._look)

    def close(self) -> None:
        self._timer.cancel()

    def _look(self) -> None:
        now_s = self._loop.time()
        passed_s = min(now_s - self._looked_s, 2 * self._look_s)
        self._looked_s = now_s
        self._timer = self._loop.call_later(self._look_s, self._look)
        running = dict(self._instances.running)
        self._seen_s = {run: self._seen_s.get(run, -passed_s) + passed_s for run in running.values()}
        for runner, run in running.items():
            if isinstance(runner, Worker) and self._seen_s[run] > self.budget_s(run):
                self._end(runner, run)

    def budget_s(self, run: Run) -> float:
        if not run.predicted_ns:
            return _UNKNOWN_TIMES * self._hang_s
        return max(self._hang_s, _TIMES * run.predicted_ns / 1e9)

    def _end(self, runner: Worker, run: Run) -> None:
        log.error(
            "model '%s': a pass of %d rows has taken %.1f s, and %.1f was expected of it: its instance is replaced",
            *(self._model_name, run.rows, self._seen_s[run], (run.predicted_ns or 0) / 1e9),
            extra=about(*run.requests),
        )
        runner.give_up()
        self._give_up(runner, run)
        self._renew(runner)

    def lost(self, runner: Runner, requests: Sequence[InferRequest], error: DeviceLost) -> None:
        """A pass has ended so: none of this instance would go well any more. It is not alive when this returns."""
        if isinstance(runner, Worker):
            told = "model '%s': an instance has lost its device and is replaced: %s"
            log.error(told, self._model_name, error.detail, extra=about(*requests))
            runner.give_up()
            self._renew(runner)

    def _renew(self, runner: Worker) -> None:
        task = self._loop.create_task(self._replace(runner))
        self._replacing.add(task)
        task.add_done_callback(self._replacing.discard)

    async def _replace(self, runner: Worker) -> None:
        try:
            await runner.renew()
        except Exception as error:  # noqa: BLE001 - the model is not well from here on, and says so
            log.error("model '%s': an instance can't be replaced: %r", self._model_name, error)
        else:
            log.info("model '%s': an instance was replaced", self._model_name)
            self._back(runner)
