"""Forwardpass and its peers, side by side: the same models, one core for the server, one for the generator.

    python -m loadtests.benchmarks.peers.run --out build/bench
    python -m loadtests.benchmarks.peers.run --only ours,triton --models tiny_mlp --in-flight 1,32 --seconds 2
    python -m loadtests.benchmarks.peers.run --cores 2

Every server is started once and held still (SIGSTOP) while another one is measured, so that the cells can be
measured in any order: seeded, and another one in each repeat. Medians count. Writes peers.md, peers.json and
peers.svg (with --cores 2: cores.md, cores.json).
"""

from __future__ import annotations

import argparse
import json
import signal
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from types import FrameType

from loadtests.benchmarks.peers import alone, headers, two_cores, workloads
from loadtests.benchmarks.peers.registry import chosen, versions
from loadtests.benchmarks.peers.results import (
    Sample,
    as_json,
    chart,
    interleaved,
    plot,
    summarise,
    workload_table,
)
from loadtests.benchmarks.peers.running import ENDINGS, Running, end_all, start_all
from loadtests.benchmarks.peers.sampling import cells_of, problems_of, sample
from loadtests.cores import cores, pinned
from loadtests.fitting import fitting_cnn
from loadtests.flags import counted
from loadtests.generators import Load, missing
from loadtests.machine import describe

IN_FLIGHT = "1,8,32,64"


def tell(text: str) -> None:
    sys.stderr.write(f"{time.strftime('%H:%M:%S')} {text}\n")
    sys.stderr.flush()


def measure(servers: Sequence[Running], in_flight: Sequence[int], options: argparse.Namespace) -> list[Sample]:
    """All cells of all servers, interleaved."""
    by_name = {server.peer.name: server for server in servers}
    cells = [cell for server in servers for cell in cells_of(server, in_flight)]
    order = interleaved(cells, options.repeats, options.seed)
    samples = []
    for done, (repeat, cell) in enumerate(order, 1):
        load = Load(1, cell.in_flight, options.seconds, options.generator_cores)
        found = sample(by_name[cell.server], cell, repeat, load, tell)
        samples.append(found)
        tell(f"{done}/{len(order)} {cell.line}, {cell.workload}, {cell.in_flight} in flight: {found.figures()}")
    return samples


def arguments_of(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", help="names of servers, separated by commas (default: all)")
    parser.add_argument("--models", default=",".join(workloads.NAMES), help="(default: %(default)s)")
    parser.add_argument("--in-flight", default=IN_FLIGHT, help="requests in flight (default: %(default)s)")
    parser.add_argument("--seconds", type=counted, default=3, help="of each measurement, whole (default: 3)")
    parser.add_argument("--repeats", type=counted, default=3, help="of each cell (default: 3)")
    parser.add_argument("--seed", type=int, default=0, help="of the order")
    parser.add_argument("--window-ms", type=int, default=1, help="how long peers wait for a batch (default: 1)")
    parser.add_argument(
        "--calls",
        type=int,
        default=headers.CALLS,
        help="most calls of a variant of headers; 0: leave them out (default: %(default)s)",
    )
    parser.add_argument(
        "--cores", type=int, choices=(1, 2), default=1, help="2: compare two cores with one, on the CNN"
    )
    parser.add_argument("--out", type=Path, help="the folder of the report")
    options = parser.parse_args(arguments)
    try:
        options.peers = chosen(options.only)
        options.counts = sorted({int(count) for count in options.in_flight.split(",")})
    except ValueError as error:
        parser.error(str(error))
    if options.counts[0] < 1 or options.seconds < 1 or options.repeats < 1 or options.window_ms < 1:
        parser.error("--in-flight, --seconds, --repeats and --window-ms: at least 1")
    options.names = options.models.split(",")
    if unknown := set(options.names) - set(workloads.NAMES):
        parser.error(f"--models: {', '.join(sorted(unknown))}: none of {', '.join(workloads.NAMES)}")
    options.cores_here = cores()[:2]
    options.server_cores, options.generator_cores = options.cores_here[:1], options.cores_here[1:]
    options.machine = describe()
    return options


def side_by_side(folder: Path, options: argparse.Namespace) -> tuple[str, dict[str, object], str]:
    """The report as Markdown, as data, and its plot."""
    written = workloads.write(folder, fitted=fitting_cnn(options.server_cores[0]) if "cnn" in options.names else None)
    given = {name: written[name] for name in options.names}
    servers, reasons = start_all(options.peers, given, folder, options.server_cores, options.window_ms, tell)
    try:
        limits = alone.limits(given, folder, options)
        generators = alone.generators(folder, options)
        samples = measure(servers, options.counts, options) + problems_of(servers, options.counts)
        varied = headers.measure(servers, options, tell) if options.calls and "tiny_mlp" in given else []
    finally:
        end_all(servers)
    summary = summarise(samples)
    lines = [(peer.name, line.title) for peer in options.peers.values() for line in peer.lines]
    batching = {peer.name: peer.batching for peer in options.peers.values()}
    parts = [heading(options)]
    for name, workload in given.items():
        parts.append(f"## {workload.title}\n\n{alone.limit_text(limits[name])}\n")
        parts.append(workload_table(name, lines, options.counts, summary, batching, reasons))
    parts += [alone.generators_text(generators), headers.text(varied)]
    charts = [chart(workload.title, name, lines, options.counts, summary) for name, workload in given.items()]
    data = {
        "machine": options.machine,
        "peers": versions(),
        "not_measured": reasons,
        "limits": limits,
        "generators": generators,
        "samples": as_json(samples),
        "headers": varied,
    }
    return "\n".join(part for part in parts if part), data, plot(charts)


def heading(options: argparse.Namespace) -> str:
    machine = "".join(f"| {name} | {value} |\n" for name, value in {**options.machine, **versions()}.items())
    return (
        "# Forwardpass and its peers\n\n"
        f"Server on core {options.server_cores[0]}, generator on core {options.generator_cores[0]}; "
        f"{options.repeats} x {options.seconds} s a cell, interleaved, seed {options.seed}; medians, and in brackets "
        f"the lowest and the highest. Peers that wait for a batch wait {options.window_ms} ms.\n\n"
        f"| | |\n| --- | --- |\n{machine}"
    )


def write(out: Path, name: str, text: str, data: dict[str, object], svg: str = "") -> None:
    out.mkdir(parents=True, exist_ok=True)
    (out / f"{name}.md").write_text(text)
    (out / f"{name}.json").write_text(json.dumps(data, indent=1) + "\n")
    if svg:
        (out / f"{name}.svg").write_text(svg)


def main(arguments: Sequence[str] | None = None) -> int:
    options = arguments_of(arguments)
    if not options.generator_cores:
        sys.stderr.write("two cores are needed: one for the server, one for the generator\n")
        return 2
    if lacking := missing():
        sys.stderr.write("".join(f"{line}\n" for line in lacking))
        return 2
    # Whoever ends this ends the servers too: as an exception it passes every `finally`.
    for number in ENDINGS:
        signal.signal(number, _interrupt)
    temporary = tempfile.TemporaryDirectory(prefix="peers-", ignore_cleanup_errors=True)
    try:
        with temporary as name, pinned(*options.generator_cores):
            if options.cores == 2:
                report, text, data, svg = "cores", *two_cores.compare(Path(name), options, tell), ""
            else:
                report, (text, data, svg) = "peers", side_by_side(Path(name), options)
    except KeyboardInterrupt:
        sys.stderr.write("interrupted; all servers are ended\n")
        return 130
    sys.stdout.write(text)
    if options.out:
        write(options.out, report, text, data, svg)
    return 0


def _interrupt(number: int, _frame: FrameType | None) -> None:
    raise KeyboardInterrupt


if __name__ == "__main__":
    sys.exit(main())
