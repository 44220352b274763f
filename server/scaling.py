"""What all replicas of the server are asked together: the sum of what each tells in its metrics."""

from __future__ import annotations

import asyncio
import logging
import socket
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, NamedTuple

from prometheus_client.parser import text_string_to_metric_families

from server.errors import ReplicasUnreached
from server.settings import ScalingSettings

log = logging.getLogger(__name__)

_SATURATION, _TRITON_UP = "forwardpass_saturation", "forwardpass_triton_up"
_ANSWER_S = 1.0
"""For which a replica is waited for."""
_MOST_BYTES = 64 * 1024 * 1024
"""Of one replica's metrics."""

OwnMetrics = Callable[[], Awaitable[bytes]]


class Told(NamedTuple):
    """By one replica."""

    saturation: Mapping[tuple[str, str], float]
    """By model and version."""
    tritons: int
    """Those behind it that take requests."""


def read(text: bytes) -> Told:
    """Of a replica's metrics. What is no line of the format is passed over."""
    lines = [line for line in text.decode(errors="replace").split("\n") if line.startswith((_SATURATION, _TRITON_UP))]
    saturation: dict[tuple[str, str], float] = {}
    tritons = 0
    try:
        for family in text_string_to_metric_families("\n".join([*lines, ""])):
            for sample in family.samples:
                if sample.name == _TRITON_UP:
                    tritons += int(sample.value)
                else:
                    saturation[sample.labels["model"], sample.labels["version"]] = sample.value
    except (ValueError, KeyError) as error:
        log.warning("the metrics of a replica can't be read: %r", error)
    return Told(saturation, tritons)


class Asked:
    """What is asked of all replicas, in replicas' worth of work."""

    def __init__(self, told: Sequence[Told], replicas: int) -> None:
        """`replicas`: that there are. Those that told nothing are taken to be like the others."""
        total: dict[tuple[str, str], float] = {}
        for one in told:
            for key, value in one.saturation.items():
                total[key] = total.get(key, 0.0) + value
        self._saturation = {key: value * replicas / len(told) for key, value in total.items()}
        self._replicas = replicas
        self._tritons = max([one.tritons for one in told])

    def of_replicas(self, model: str = "") -> float:
        """Of one model, or of the hottest: how many replicas would be just busy."""
        return max([v for (name, _), v in self._saturation.items() if model in ("", name)], default=0.0)

    def of_tritons(self, model: str = "") -> float:
        """How many of the Tritons behind the replicas would be just busy. Without any, as if there were one."""
        return self.of_replicas(model) / self._replicas * max(1, self._tritons)


class Replicas:
    """Asks them, at most once in a while."""

    def __init__(self, settings: ScalingSettings, own: OwnMetrics, clock: Callable[[], float] = time.monotonic) -> None:
        """`own`: the metrics of this one."""
        self._settings = settings
        self._own = own
        self._clock = clock
        self._asking: asyncio.Task[Asked] | None = None
        self._until = 0.0

    async def asked(self) -> Asked:
        """Raises ReplicasUnreached: none of them answers."""
        if self._asking is None or (self._asking.done() and self._clock() >= self._until):
            self._until = self._clock() + self._settings.poll_s
            self._asking = asyncio.get_running_loop().create_task(self._ask())
        # Whoever goes away must not take the answer from the others.
        return await asyncio.shield(self._asking)

    async def _ask(self) -> Asked:
        if not self._settings.peers:
            return Asked([read(await self._own())], 1)
        host, _, port = self._settings.peers.rpartition(":")
        try:
            found = await asyncio.get_running_loop().getaddrinfo(host.strip("[]"), int(port), type=socket.SOCK_STREAM)
        except OSError as error:
            raise ReplicasUnreached(f"{host}: {error}") from error
        addresses = one_each(found)
        told = await asyncio.gather(*(_metrics_of(address, int(port)) for address in addresses))
        answers = [read(text) for text in told if text is not None]
        if not answers:
            raise ReplicasUnreached(f"none of the {len(addresses)} at {self._settings.peers} answers")
        return Asked(answers, len(addresses))


def one_each(found: Sequence[tuple[Any, ...]]) -> list[str]:
    """The addresses of `getaddrinfo`, of one family: where a replica has an address of each, it is not asked, and
    counted, twice."""
    addresses = {family: {str(at[0]) for each, *_, at in found if each == family} for family, *_ in found}
    return sorted(addresses.get(socket.AF_INET) or addresses.get(socket.AF_INET6) or ())


async def _metrics_of(address: str, port: int) -> bytes | None:
    """None: it does not answer in time, or not with metrics."""
    try:
        async with asyncio.timeout(_ANSWER_S):
            reader, writer = await asyncio.open_connection(address, port)
            try:
                writer.write(b"GET /metrics HTTP/1.1\r\nhost: replica\r\nconnection: close\r\n\r\n")
                head = await reader.readuntil(b"\r\n\r\n")
                body = await reader.read(_MOST_BYTES) if head.startswith(b"HTTP/1.1 200 ") else None
                while body is not None and (more := await reader.read(_MOST_BYTES)):
                    body += more
                return body
            finally:
                writer.close()
    except (OSError, EOFError, asyncio.LimitOverrunError, TimeoutError) as error:
        log.warning("the replica at %s does not tell its metrics: %r", address, error)
        return None
