"""The generator of server/load in Locust's place: one thread, several times the rate, no web page and no streams."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from loadtests.slo.around import Around, Meter
from loadtests.slo.asked import asked
from loadtests.slo.objectives import Slo
from loadtests.slo.record import Record
from loadtests.slo.report import publish
from loadtests.slo.streams import AsksStream
from loadtests.slo.verdict import judge
from server.load.drive import Leg, open_loop
from server.load.grpc import GrpcWire
from server.load.http1 import Http1Wire
from server.load.payloads import NoPayload, Payload
from server.load.wire import Wire


def run(
    slo: Slo,
    urls: Mapping[str, str],
    repository: Path,
    seconds: float,
    seed: int,
    metrics_url: str,
    price_per_hour: float | None,
    out: Path | None,
) -> int:
    """All objectives together in an open loop; the exit code.

    Raises:
        NoPayload: there is nothing to be asked with, or a stream is asked for.
        ClientError: a URL is of another form.
    """
    legs: list[Leg] = []
    schedules: dict[str, Sequence[tuple[int, int]]] = {}
    for objective in slo.objectives:
        one = asked(objective, repository)
        schedule = schedules[one.kind] = one.schedule(seconds, seed)
        sent = _unary(one.kind, one.payloads)
        legs.append(
            Leg(
                _wire(urls, objective.kind.wire),
                sent,
                [at_ns for at_ns, _ in schedule],
                chosen=[place for _, place in schedule],
            )
        )
    meter = Meter(metrics_url, tuple({objective.kind.model for objective in slo.objectives}))
    try:
        samples = open_loop(legs)
    finally:
        for leg in legs:
            leg.wire.close()
    record = Record.of(samples, [str(objective.kind) for objective in slo.objectives], slo.window_s)
    verdict = judge(slo, record, seconds, schedules)
    around = Around("open", seconds, 1, "server/load", meter.served(), meter.joules(), price_per_hour)
    publish(verdict, slo, record, around, out)
    return verdict.exit_code


def _unary(kind: str, payloads: Sequence[Payload | AsksStream]) -> list[Payload]:
    found = [one for one in payloads if isinstance(one, Payload)]
    if len(found) < len(payloads):
        raise NoPayload(f"{kind}: this generator asks no streams; Locust does")
    return found


def _wire(urls: Mapping[str, str], name: str) -> Wire:
    return GrpcWire(urls["grpc"]) if name == "grpc" else Http1Wire(urls["rest"])
