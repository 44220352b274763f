"""What is asked for an objective, and when: its payloads, and the schedule of a run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random

from loadtests.arrivals import PROCESSES
from loadtests.slo.chats import golden_chats
from loadtests.slo.objectives import STREAMS, TRACE, Objective
from loadtests.slo.replay import read_replay
from loadtests.slo.streams import AsksStream, golden_streams
from server.errors import ServingError
from server.load.payloads import NoPayload, Payload, newest_golden, payloads


@dataclass(frozen=True)
class Asked:
    objective: Objective
    payloads: Sequence[Payload | AsksStream]
    at_s: Sequence[float] = ()
    """When each payload is due, where the arrivals are a trace."""

    @property
    def kind(self) -> str:
        return str(self.objective.kind)

    def schedule(self, seconds: float, seed: int) -> list[tuple[int, int]]:
        """When requests are due, in nanoseconds from the start, and the place of what each one sends; the same for a
        seed."""
        if self.objective.arrivals == TRACE:
            return self._trace(seconds)
        due = PROCESSES[self.objective.arrivals](self.objective.rate, seconds, seed)
        weights = [payload.weight for payload in self.payloads]
        rng = Random(f"{seed} {self.kind}")
        return list(zip(due, rng.choices(range(len(weights)), weights, k=len(due)), strict=True))

    def _trace(self, seconds: float) -> list[tuple[int, int]]:
        """Again from its beginning when it has ended, a mean distance later."""
        count, last_s = len(self.at_s), self.at_s[-1]
        period_s = last_s * count / (count - 1) if count > 1 and last_s else last_s + 1.0
        found: list[tuple[int, int]] = []
        for turn in range(int(seconds / period_s) + 1):
            times = [(turn * period_s + at_s, place) for place, at_s in enumerate(self.at_s)]
            found += [(int(at_s * 1e9), place) for at_s, place in times if at_s < seconds]
        return found


def asked(objective: Objective, repository: Path) -> Asked:
    """Raises NoPayload where there is nothing to be asked with."""
    kind = objective.kind
    if objective.replay is not None:
        replay = read_replay(kind, objective.replay, repository)
        if objective.arrivals == TRACE and not replay.at_s:
            raise NoPayload(f"{kind}: {objective.replay} has no at_s, and the arrivals are a trace")
        return Asked(objective, replay.payloads, replay.at_s)
    if kind.call in STREAMS:
        try:
            golden = newest_golden(repository / kind.model)
        except ServingError as error:
            raise NoPayload(f"{kind}: {error.public_message}") from error
        if golden is None:
            raise NoPayload(f"{kind}: {repository / kind.model} has no golden file of its newest version")
        if kind.call == "stream":
            return Asked(objective, golden_streams(kind.model, golden))
        try:
            return Asked(objective, golden_chats(kind.model, golden))
        except KeyError as error:
            raise NoPayload(f"{kind}: the model takes no {error.args[0]}") from error
    return Asked(objective, payloads(kind.transport, kind.call, kind.model, repository, objective.rows or None))
