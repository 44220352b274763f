"""Two servers, or the code of two checkouts, asked the same in turns: how much better B is, and how sure that is.

    python -m loadtests.compare ../before . --fail-below 0.95
    python -m loadtests.compare http://127.0.0.1:9000 http://127.0.0.1:8000 --kind "rest infer fraud"

A side is the URL of a server of the v2 protocol, or a folder with this repository's code, which is then served on the
first core. Windows go A B, B A, A B, ... so that a slow minute hits both. Each pair gives a ratio, above 1 where B is
better: answers a second of callers who wait; latencies of an open loop at a rate that both keep up with. Told are the
geometric mean and its 95 % interval.

With --fail-below the exit code is 1 where an interval lies below it, 2 where a mean does and the interval does not
tell, and 0 otherwise; the quantities of --judge count. A fault in an answer is 2 as well.
"""

from __future__ import annotations

import argparse
import math
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from loadtests.cores import cores, pinned
from loadtests.flags import positive
from loadtests.machine import describe
from loadtests.process import serving
from loadtests.report import as_json, publish, table
from loadtests.slo.objectives import Kind
from server.client.errors import ClientError
from server.load.drive import Leg, closed_loop, open_loop, poisson
from server.load.grpc import GrpcWire
from server.load.http1 import Http1Wire
from server.load.payloads import NoPayload, Payload, payloads
from server.load.samples import Samples, half_width
from server.load.wire import Wire

_ROOT = Path(__file__).parents[1]
_KINDS = ("grpc infer fraud", "rest infer breast_cancer", "rest predict digits")
_CALLERS = 16
QUANTITIES = ("answers/s", "p50", "p99")
LOWER, UNDECIDED = 1, 2


@dataclass(frozen=True)
class Ratio:
    """Of one quantity of one kind: above 1, B is better."""

    kind: str
    quantity: str
    a: float
    b: float
    """Geometric means of the windows."""
    ratio: float
    low: float
    high: float

    @classmethod
    def of(cls, kind: str, quantity: str, pairs: Sequence[tuple[float, float]]) -> Ratio:
        """`pairs`: of A and B, measured one after the other; at least two."""
        better = 1 if quantity == "answers/s" else -1
        logs = [better * math.log(b / a) for a, b in pairs]
        mean, half = sum(logs) / len(logs), half_width(logs)
        a, b = (math.exp(sum(math.log(pair[side]) for pair in pairs) / len(pairs)) for side in (0, 1))
        return cls(kind, quantity, a, b, math.exp(mean), math.exp(mean - half), math.exp(mean + half))


def verdict(ratios: Sequence[Ratio], judged: Sequence[str], fail_below: float) -> int:
    """The exit code."""
    counted = [one for one in ratios if one.quantity in judged]
    if any(one.high < fail_below for one in counted):
        return LOWER
    return 0 if all(one.ratio >= fail_below for one in counted) else UNDECIDED


class Fault(Exception):
    """A side can't be asked, or answered wrongly; the text says which and how."""


@contextmanager
def side(given: str, repository: Path) -> Iterator[dict[str, str]]:
    """URLs by transport. Raises Fault."""
    if "://" in given:
        yield {"grpc" if given.startswith("grpc://") else "rest": given}
        return
    if not (Path(given) / "server" / "cli.py").is_file():
        raise Fault(f"{given!r} is neither a URL nor a folder with the server's code")
    with (
        tempfile.TemporaryDirectory() as folder,
        serving(repository, Path(folder), cores()[0], checkout=Path(given).resolve()) as server,
    ):
        yield {"rest": f"http://{server.http}", "grpc": f"grpc://{server.grpc}"}


@dataclass(frozen=True)
class Sided:
    """One kind of request at one side."""

    name: str
    wire: Wire
    made: Sequence[Payload]

    def closed(self, seconds: float) -> Samples:
        return self._right(closed_loop(Leg(self.wire, self.made, ()), _CALLERS, seconds))

    def open(self, rate: float, seconds: float, seed: int) -> Samples:
        return self._right(open_loop([Leg(self.wire, self.made, poisson(rate, seconds, seed))]))

    def _right(self, samples: Samples) -> Samples:
        if not samples.share("right") == 1:
            raise Fault(f"{self.name}: {samples.fault() or 'no request was due in a window, which must be longer'}")
        return samples


def compare(kind: Kind, sides: Sequence[Sided], pairs: int, seconds: float, load: float) -> list[Ratio]:
    """Raises Fault where an answer is not right."""
    rate = load * min(one.closed(seconds).answers_per_s() for one in sides)
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in QUANTITIES}
    for number in range(pairs):
        measured: dict[int, dict[str, float]] = {}
        for index in (0, 1) if number % 2 == 0 else (1, 0):
            steady = sides[index].open(rate, seconds, number)
            measured[index] = {
                "answers/s": sides[index].closed(seconds).answers_per_s(),
                "p50": steady.latency_ms(50),
                "p99": steady.latency_ms(99),
            }
        for name in QUANTITIES:
            found[name].append((measured[0][name], measured[1][name]))
    return [Ratio.of(str(kind), name, values) for name, values in found.items()]


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("a", help="before: a URL or a folder with the code")
    parser.add_argument("b", help="after")
    parser.add_argument(
        "--kind", action="append", help='"transport call model", several times; default: the shipped ones'
    )
    parser.add_argument(
        "--model-repository", type=Path, default=_ROOT / "model_repository", help="golden inputs, answers"
    )
    parser.add_argument("--pairs", type=int, default=8, help="of windows (default: 8)")
    parser.add_argument("--seconds", type=positive, default=1.0, help="of a window (default: 1)")
    parser.add_argument(
        "--load", type=positive, default=0.5, help="of the closed loop's rate, for latencies (default: 0.5)"
    )
    parser.add_argument("--fail-below", type=positive, help="the ratio below which B is not good enough")
    parser.add_argument("--judge", default="answers/s,p50", help=f"of {', '.join(QUANTITIES)} (default: answers/s,p50)")
    parser.add_argument("--out", type=Path, help="a folder for compare.md and compare.json")
    options = parser.parse_args(arguments)
    judged = options.judge.split(",")
    if unknown := set(judged) - set(QUANTITIES):
        parser.error(f"--judge: {', '.join(sorted(unknown))} is not among {', '.join(QUANTITIES)}")
    if options.pairs < 2:
        parser.error("--pairs: an interval needs two or more")
    try:
        ratios = measured(options)
    except (Fault, NoPayload, ClientError, OSError, RuntimeError, ValueError) as error:
        sys.stderr.write(f"{error}\n")
        return UNDECIDED
    return report(ratios, options, judged)


def measured(options: argparse.Namespace) -> list[Ratio]:
    """Raises Fault, NoPayload, ClientError; RuntimeError where a server does not start, ValueError for a --kind."""
    with ExitStack() as stack:
        both = [stack.enter_context(side(given, options.model_repository)) for given in (options.a, options.b)]
        stack.enter_context(pinned(cores()[-1]))
        ratios: list[Ratio] = []
        for text in options.kind or [kind for kind in _KINDS if all(kind.split()[0] in urls for urls in both)]:
            kind = Kind.parse(text)
            sides = [
                _asked(kind, name, given, urls, options.model_repository)
                for name, given, urls in zip("AB", (options.a, options.b), both, strict=True)
            ]
            try:
                ratios += compare(kind, sides, options.pairs, options.seconds, options.load)
            finally:
                for one in sides:
                    one.wire.close()
    return ratios


def _asked(kind: Kind, name: str, given: str, urls: dict[str, str], repository: Path) -> Sided:
    if kind.wire not in urls:
        raise Fault(f"{kind}: {name} ({given}) is not asked by {kind.wire}")
    url = urls[kind.wire]
    wire = GrpcWire(url) if kind.wire == "grpc" else Http1Wire(url)
    return Sided(f"{name} ({given}), {kind}", wire, payloads(kind.transport, kind.call, kind.model, repository))


def report(ratios: Sequence[Ratio], options: argparse.Namespace, judged: Sequence[str]) -> int:
    rows = [
        (
            f"{one.kind}, {one.quantity}",
            *(f"{value:,.4g}" for value in (one.a, one.b)),
            f"{one.ratio:.3f}",
            f"{one.low:.3f} to {one.high:.3f}",
        )
        for one in ratios
    ]
    text = f"# A: {options.a}, B: {options.b}; {options.pairs} pairs of windows of {options.seconds:g} s\n\n"
    text += table(("kind, quantity (latencies in ms)", "A", "B", "B is better, times", "95 % interval"), rows)
    code = 0
    if options.fail_below is not None:
        code = verdict(ratios, judged, options.fail_below)
        said = (f"no less than {options.fail_below:g}", f"below {options.fail_below:g}", "not decided: more pairs")[
            code
        ]
        text += f"\n{', '.join(judged)}: {said}\n"
    publish(text, "compare.md", options.out)
    if options.out:
        told = {"machine": describe(), "a": options.a, "b": options.b, "ratios": [asdict(one) for one in ratios]}
        (options.out / "compare.json").write_text(as_json(told))
    return code


if __name__ == "__main__":
    sys.exit(main())
