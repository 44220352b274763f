"""`make capacity`: the highest rate that holds the SLO, for each kind of slo.yaml; and what the Helm chart makes of it.

    python -m loadtests.capacity --out build/bench
    python -m loadtests.capacity --rest http://HOST:8000 --grpc grpc://HOST:8001 --metrics http://HOST:8002/metrics

A bisection over steady windows of an open loop, one kind after the other, each alone on a server of one replica.
Written are capacity.md, capacity.svg (p99 against load), capacity.json, and capacity.yaml for `helm install -f`. With
--repeats all is measured so many times; the exit code is 1 where the rates of a kind differ by more than --agree, or
none holds, and 2 where a kind could not be asked, or was not answered rightly.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import httpx

from loadtests.capacity_report import Capacity, knees, table_of, values
from loadtests.cores import cores, pinned
from loadtests.flags import counted, positive
from loadtests.machine import describe
from loadtests.process import family, rss_bytes, samples, serving
from loadtests.report import as_json
from loadtests.slo.asked import asked
from loadtests.slo.objectives import STREAMS, Objective, Slo, SloFault, read_slo
from server.client.errors import ClientError
from server.load.drive import Leg, closed_loop, open_loop, poisson
from server.load.grpc import GrpcWire
from server.load.http1 import Http1Wire
from server.load.limits import Limits
from server.load.payloads import NoPayload, Payload
from server.load.search import Probe, highest, judged
from server.load.wire import Wire

_ROOT = Path(__file__).parents[1]
_IN_FLIGHT = 32
_GUESS = 0.8
"""Of the closed loop's rate, which is near the most that there is."""
_SWEEP = (0.2, 0.4, 0.6, 0.8, 0.9)
"""Of the capacity: where the plot has points beside those of the search."""
_WINDOW = 5
"""A window lasts so many times the highest latency that is allowed, at least."""
_PERCENTILES = (50.0, 99.0)
UNASKED = 2
"""The exit code where a kind could not be asked."""


@dataclass(frozen=True)
class Target:
    """The server that is asked."""

    urls: dict[str, str]
    """By transport."""
    metrics_url: str = ""
    pid: int = 0
    """0: of another machine, or not known."""

    def wire(self, transport: str) -> Wire:
        """Raises ClientError: there is no such URL."""
        return GrpcWire(self.urls["grpc"]) if transport == "grpc" else Http1Wire(self.urls["rest"])

    def saturation(self, model: str) -> float | None:
        """None: the server does not tell."""
        if not self.metrics_url:
            return None
        try:
            text = httpx.get(self.metrics_url).raise_for_status().text
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            sys.stderr.write(f"{self.metrics_url}: {error}\n")
            return None
        return samples(text, model).get("forwardpass_saturation")

    def rss_bytes(self) -> int:
        return sum(map(rss_bytes, family(self.pid))) if self.pid else 0


def measure(target: Target, objective: Objective, slo: Slo, options: argparse.Namespace, last: bool) -> Capacity:
    """The capacity of one kind; in the last repeat with what the plot and the chart want to know.

    Raises:
        NoPayload, ClientError, OSError: it can't be asked.
    """
    kind = objective.kind
    made = [one for one in asked(objective, options.model_repository).payloads if isinstance(one, Payload)]
    wire = target.wire(kind.wire)
    latency = {float(name[1:]): ms for name, ms in objective.latency_ms.items()}
    limits = Limits(latency, objective.max_error_rate, objective.max_refused_rate)
    # A queue that grows shows only in a window that is longer than what it may make a caller wait.
    window_s = max(options.window, _WINDOW * max(latency.values(), default=0) / 1e3)
    warm_s = window_s / 4
    tried: Counter[float] = Counter()

    def probe(rate: float, seconds: float = window_s) -> Probe:
        # The same arrivals at each rate, and more at a higher one: no rate is broken by its luck.
        tried[rate] += 1
        found = open_loop([Leg(wire, made, poisson(rate, warm_s + seconds, tried[rate]))])
        return judged(rate, found.between(warm_s, warm_s + seconds), limits, slo.max_lag_ms, _PERCENTILES)

    try:
        closed = closed_loop(Leg(wire, made, ()), _IN_FLIGHT, window_s)
        if closed.share("wrong", "failed") > limits.max_error_rate or not closed.answers_per_s():
            raise NoPayload(f"{kind}: {closed.fault()}")
        found = highest(probe, closed.answers_per_s() * _GUESS, options.precision)
        sweep: list[Probe] = []
        saturation = None
        if found.rate and last:
            sweep = [probe(found.rate * part) for part in _SWEEP]
            probe(found.rate, options.hold)
            saturation = target.saturation(kind.model)
    finally:
        wire.close()
    return Capacity(str(kind), limits, found, tuple(sweep), closed.answers_per_s(), saturation, target.rss_bytes())


@contextmanager
def served(options: argparse.Namespace) -> Iterator[Target]:
    if options.rest or options.grpc:
        yield Target({"rest": options.rest or "", "grpc": options.grpc or ""}, options.metrics or "")
        return
    with (
        tempfile.TemporaryDirectory() as folder,
        serving(options.model_repository, Path(folder), tuple(cores()[: options.cores])) as server,
    ):
        urls = {"rest": f"http://{server.http}", "grpc": f"grpc://{server.grpc}"}
        yield Target(urls, server.metrics_url, server.pid)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--slo", type=Path, default=_ROOT / "loadtests" / "slo.yaml")
    parser.add_argument("--model-repository", type=Path, default=_ROOT / "model_repository")
    parser.add_argument("--only", default="", help="kinds with this text in them")
    parser.add_argument(
        "--cores", type=counted, default=1, help="of the replica; the generator has the last one (default: 1)"
    )
    parser.add_argument("--window", type=positive, default=3.0, help="seconds at each rate, at least (default: 3)")
    parser.add_argument("--hold", type=positive, default=5.0, help="seconds at the rate that was found (default: 5)")
    parser.add_argument("--precision", type=positive, default=0.03, help="where the search ends (default: 0.03)")
    parser.add_argument(
        "--margin", type=positive, default=0.8, help="of the capacity, before replicas are added (default: 0.8)"
    )
    parser.add_argument("--repeats", type=counted, default=1)
    parser.add_argument("--agree", type=positive, default=0.1, help="how far repeats may differ (default: 0.1)")
    parser.add_argument("--rest", help="http://HOST:PORT of a server that runs")
    parser.add_argument("--grpc", help="grpc://HOST:PORT of the same server")
    parser.add_argument("--metrics", help="http://HOST:PORT/metrics of the same server")
    parser.add_argument("--out", type=Path, help="a folder for what is written")
    options = parser.parse_args(arguments)
    try:
        slo = read_slo(options.slo, options.model_repository)
        # Of streams there is no rate: they are as long as they are.
        objectives = [one for one in slo.objectives if options.only in str(one.kind) and one.kind.call not in STREAMS]
        if not objectives:
            parser.error(f"--only: {options.slo} has no kind with {options.only!r} in it that is no stream")
        with served(options) as target, pinned(cores()[-1]):
            for one in objectives:
                target.wire(one.kind.wire).close()
            # One kind after the other: what a machine has to give wanders over minutes, and is no kind's doing.
            measured = [found for one in objectives if (found := _repeated(target, one, slo, options))]
    except (SloFault, ClientError, OSError, RuntimeError) as error:
        sys.stderr.write(f"{error}\n")
        return UNASKED
    code = report(list(zip(*measured, strict=True)), options) if measured else UNASKED
    return code if len(measured) == len(objectives) else UNASKED


def _repeated(target: Target, objective: Objective, slo: Slo, options: argparse.Namespace) -> list[Capacity]:
    """Nothing where it can't be asked, which is said: what was measured of other kinds stays."""
    found: list[Capacity] = []
    try:
        for number in range(1, options.repeats + 1):
            found.append(measure(target, objective, slo, options, number == options.repeats))
            sys.stderr.write(f"{objective.kind}: {found[-1].found.rate:,.0f} requests/s\n")
    except (NoPayload, ClientError, OSError) as error:
        sys.stderr.write(f"{error}\n")
        return []
    return found


def report(repeats: Sequence[Sequence[Capacity]], options: argparse.Namespace) -> int:
    last = repeats[-1]
    text, agreed = table_of(repeats, options.agree)
    sys.stdout.write(text)
    if options.out:
        options.out.mkdir(parents=True, exist_ok=True)
        (options.out / "capacity.md").write_text(text)
        (options.out / "capacity.svg").write_text(knees(last))
        (options.out / "capacity.yaml").write_text(values(last, options.cores, options.margin))
        told = {"machine": describe(), "runs": [[asdict(one) for one in run] for run in repeats]}
        (options.out / "capacity.json").write_text(as_json(told))
    return 0 if agreed and all(one.found.rate for one in last) else 1


if __name__ == "__main__":
    sys.exit(main())
