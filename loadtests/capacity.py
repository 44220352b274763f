"""`make capacity`: the highest rate that holds the SLO, for each kind of slo.yaml; and what the Helm chart makes of it.

    python -m loadtests.capacity --out build/bench
    python -m loadtests.capacity --rest http://HOST:8000 --grpc grpc://HOST:8001 --metrics http://HOST:8002/metrics

Steady windows of an open loop, each at the rate that tells most after those before it, one kind after the other, each
alone on a server of one replica. Written are capacity.md, capacity.svg (p99 against load), capacity.json, and
capacity.yaml for `helm install -f`.

With --repeats each kind is searched so many times side by side, a window of each search in turn, until all are
through: how far their rates are apart is how far a search can be trusted. How far the machine itself wandered meanwhile
is told beside it, by a closed loop, which searches nothing: runs at other times differ by as much as the machine does.

The exit code is 1 where the rates of a kind differ by more than --agree, or none holds, and 2 where a kind could not
be asked, or was not answered rightly.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import httpx

from loadtests.capacity_report import Capacity, knees, table_of, values
from loadtests.cores import cores, pinned
from loadtests.flags import counted, positive
from loadtests.machine import describe
from loadtests.process import family, rss_bytes, samples, serving
from loadtests.report import as_json
from loadtests.slo.asked import asked
from loadtests.slo.objectives import STREAMS, Kind, Objective, Slo, SloFault, read_slo
from server.client.errors import ClientError
from server.load.drive import Leg, closed_loop, open_loop, poisson
from server.load.grpc import GrpcWire
from server.load.http1 import Http1Wire
from server.load.limits import Limits
from server.load.payloads import NoPayload, Payload
from server.load.samples import Samples
from server.load.search import PRECISION, WINDOWS, Probe, Search, judged, side_by_side
from server.load.wire import Wire

_ROOT = Path(__file__).parents[1]
_IN_FLIGHT = 32
_GUESS = 0.8
"""Of the closed loop's rate, which is near the most that there is."""
_LOOK = 10
"""After so many windows the closed loop is measured again, which tells how the machine itself wanders."""
_SWEEP = (0.2, 0.4, 0.6, 0.8, 0.9)
"""Of the capacity: where the plot has points beside those of the search."""
_OVERLOAD = 0.03
"""A rate that is above what can be served by so much breaks a window, at least."""
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


@dataclass(frozen=True)
class Asked:
    """One kind of request, and how it is asked."""

    kind: Kind
    limits: Limits
    wire: Wire
    payloads: Sequence[Payload]
    window_s: float
    max_lag_ms: float

    @classmethod
    def of(cls, target: Target, objective: Objective, slo: Slo, options: argparse.Namespace) -> Asked:
        """Raises NoPayload, ClientError, OSError: it can't be asked."""
        made = [one for one in asked(objective, options.model_repository).payloads if isinstance(one, Payload)]
        latency = {float(name[1:]): ms for name, ms in objective.latency_ms.items()}
        limits = Limits(latency, objective.max_error_rate, objective.max_refused_rate)
        window_s = max(options.window, limits.window_s(_OVERLOAD))
        return cls(objective.kind, limits, target.wire(objective.kind.wire), made, window_s, slo.max_lag_ms)

    def closed(self) -> Samples:
        """A window of callers who wait."""
        return closed_loop(Leg(self.wire, self.payloads, ()), _IN_FLIGHT, self.window_s)

    def begin(self) -> float:
        """Answers a second to callers who wait. Raises NoPayload where they are not right."""
        found = self.closed()
        if found.share("wrong", "failed") > self.limits.max_error_rate or not found.answers_per_s():
            raise NoPayload(f"{self.kind}: {found.fault()}")
        return found.answers_per_s()

    def open(self, rate: float, seconds: float, seed: int) -> Probe:
        """A steady window of callers who do not."""
        warm_s = self.window_s / 4
        found = open_loop([Leg(self.wire, self.payloads, poisson(rate, warm_s + seconds, seed))])
        return judged(rate, found.between(warm_s, warm_s + seconds), self.limits, self.max_lag_ms, _PERCENTILES)


def measure(target: Target, objective: Objective, slo: Slo, options: argparse.Namespace, place: str) -> list[Capacity]:
    """The capacity of one kind by each repeat; the last one has what the plot and the chart want to know.

    Raises:
        NoPayload, ClientError, OSError: it can't be asked.
    """
    kind = Asked.of(target, objective, slo, options)
    made: Counter[int] = Counter()
    between: list[float] = []

    def window(search: int, rate: float, seconds: float = kind.window_s) -> Probe:
        made[search] += 1
        return kind.open(rate, seconds, made.total())

    def probe(search: int, rate: float) -> Probe:
        one = window(search, rate)
        sys.stderr.write(f"{place}, search {search + 1} of {options.repeats}, window {made[search]}: {_said(one)}\n")
        if made.total() % _LOOK == 0:
            between.append(kind.closed().answers_per_s())
        return one

    try:
        begun = [kind.begin() for _ in range(options.repeats)]
        found = side_by_side([Search(rate * _GUESS, options.precision, options.windows) for rate in begun], probe)
        machine = (*begun, *between, kind.closed().answers_per_s())
        sweep: list[Probe] = []
        saturation = None
        if rate := found[-1].rate:
            sweep = [window(-1, rate * part) for part in _SWEEP]
            window(-1, rate, options.hold)
            saturation = target.saturation(objective.kind.model)
    finally:
        kind.wire.close()
    each = [
        Capacity(str(kind.kind), kind.limits, one, (), closed, None, target.rss_bytes(), machine)
        for one, closed in zip(found, begun, strict=True)
    ]
    return [*each[:-1], replace(each[-1], sweep=tuple(sweep), saturation=saturation)]


def _said(made: Probe) -> str:
    """Of one window, for who waits."""
    if made.held:
        came = ", ".join(f"p{q:g} {made.latency_ms[q]:.3g} ms" for q in made.latency_ms)
        return f"{made.rate:,.0f} requests/s held, {came}"
    return f"{made.rate:,.0f} requests/s broken: {made.late or ', '.join(made.broken)}"


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
    parser.add_argument("--window", type=positive, default=1.0, help="seconds of a window, at least (default: 1)")
    parser.add_argument("--hold", type=positive, default=5.0, help="seconds at the rate that was found (default: 5)")
    parser.add_argument(
        "--precision",
        type=positive,
        default=PRECISION,
        help=f"a search ends where its rate is known to that, with nine chances of ten (default: {PRECISION})",
    )
    parser.add_argument("--windows", type=counted, default=WINDOWS, help=f"of a search, at most (default: {WINDOWS})")
    parser.add_argument(
        "--margin", type=positive, default=0.8, help="of the capacity, before replicas are added (default: 0.8)"
    )
    parser.add_argument("--repeats", type=counted, default=1, help="searches of each kind, side by side (default: 1)")
    parser.add_argument("--agree", type=positive, default=0.1, help="how far repeats may differ (default: 0.1)")
    parser.add_argument("--rest", help="http://HOST:PORT of a server that runs")
    parser.add_argument("--grpc", help="grpc://HOST:PORT of the same server")
    parser.add_argument("--metrics", help="http://HOST:PORT/metrics of the same server")
    parser.add_argument("--out", type=Path, help="a folder for what is written")
    options = parser.parse_args(arguments)
    given = options.rest or options.grpc
    if options.metrics and not given:
        parser.error("--metrics: it is of the server that --rest or --grpc names, and neither is given")
    if options.cores > len(cores()) and not given:
        parser.error(f"--cores: there are {len(cores())}")
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
            measured = [
                found
                for number, one in enumerate(objectives, 1)
                if (found := _measured(target, one, slo, options, f"{one.kind} ({number} of {len(objectives)})"))
            ]
    except (SloFault, ClientError, OSError, RuntimeError) as error:
        sys.stderr.write(f"{error}\n")
        return UNASKED
    code = report(list(zip(*measured, strict=True)), options) if measured else UNASKED
    return code if len(measured) == len(objectives) else UNASKED


def _measured(
    target: Target, objective: Objective, slo: Slo, options: argparse.Namespace, place: str
) -> list[Capacity]:
    """Nothing where it can't be asked, which is said: what was measured of other kinds stays."""
    try:
        found = measure(target, objective, slo, options, place)
    except (NoPayload, ClientError, OSError) as error:
        sys.stderr.write(f"{error}\n")
        return []
    rates = ", ".join(f"{one.found.rate:,.0f}" for one in found)
    sys.stderr.write(f"{place}: {rates} requests/s\n")
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
