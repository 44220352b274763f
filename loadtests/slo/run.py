"""`make load`: the shipped models served on one core, asked by Locust from another, held to loadtests/slo.yaml.

    python -m loadtests.slo.run --seconds 120

With --tries N a run that broke, or told nothing, is made again, N runs at most, and one that holds is enough: what
disturbs a run makes it worse, never better. The reports are of the last one. With --rest and --grpc a server that runs
already is asked. The exit code: 0 held, 1 broken, 2 invalid, 3 where it can't be asked.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from loadtests.cores import cores, pinned
from loadtests.flags import counted, positive
from loadtests.process import end, serving, unwinding
from loadtests.slo import wire
from loadtests.slo.objectives import SloFault, read_slo
from loadtests.slo.verdict import HELD, INVALID, MISUSED
from server.client.errors import ClientError
from server.load.payloads import NoPayload

_ROOT = Path(__file__).parents[2]
_MARGIN_S = 5
"""After the last request is due, for its answer: Locust ends sooner where all are answered."""
_GRACE_S = 90


def locust(seconds: float, processes: int, core: int, environment: Mapping[str, str], extra: Sequence[str] = ()) -> int:
    """Run the users of the locustfile, without the web page; its exit code."""
    command = [sys.executable, "-m", "locust", "-f", "loadtests/locustfile.py", "--headless", "--only-summary"]
    command += ["--run-time", f"{seconds + _MARGIN_S:.0f}s", "--stop-timeout", "10"]
    if processes > 1:
        command += ["--processes", str(processes)]
    values = {**os.environ, "SECONDS": f"{seconds:g}", **environment, "PYTHONWARNINGS": "ignore"}
    with unwinding():
        with pinned(core):
            started = subprocess.Popen([*command, *extra], cwd=_ROOT, env=values)  # noqa: S603 - our own command
        try:
            return started.wait(seconds + _GRACE_S)
        except subprocess.TimeoutExpired:
            sys.stderr.write(f"Locust did not end within {_GRACE_S} s of what was due\n")
            return INVALID
        finally:
            end(started, 10)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=positive, default=120, help="how long requests are due (default: 120)")
    parser.add_argument("--slo", type=Path, default=_ROOT / "loadtests" / "slo.yaml")
    parser.add_argument("--model-repository", type=Path, default=_ROOT / "model_repository")
    parser.add_argument("--loop", choices=("open", "closed"), default="open")
    parser.add_argument("--processes", type=counted, default=1, help="of the generator; kinds are shared out over them")
    parser.add_argument("--tries", type=counted, default=1, help="runs at most, until one holds (default: 1)")
    parser.add_argument("--seed", type=int, default=0, help="of the arrivals")
    parser.add_argument("--rest", help="http://HOST:PORT of a server that runs")
    parser.add_argument("--grpc", help="grpc://HOST:PORT of the same server")
    parser.add_argument("--metrics", default="", help="http://HOST:PORT/metrics of the same server")
    parser.add_argument(
        "--generator", choices=("locust", "wire"), default="locust", help="wire: server/load, open loop"
    )
    parser.add_argument(
        "--price-per-hour", type=positive, help="of the machine: what 1,000 predictions cost is told then"
    )
    parser.add_argument("--out", type=Path, help="a folder for load.md, load.json, load.html and junit.xml")
    options = parser.parse_args(arguments)
    if options.generator == "wire" and options.loop == "closed":
        parser.error("--generator wire: it has the open loop alone")
    if options.generator == "wire" and options.processes > 1:
        parser.error("--generator wire: it is one process")
    if options.metrics and not (options.rest or options.grpc):
        parser.error("--metrics: it is of the server that --rest or --grpc names, and neither is given")
    environment = {
        "SLO": str(options.slo.resolve()),
        "REPOSITORY": str(options.model_repository.resolve()),
        "LOOP": options.loop,
        "SEED": str(options.seed),
        **({"REPORTS": str(options.out.resolve())} if options.out else {}),
        **({} if options.price_per_hour is None else {"PRICE_PER_HOUR": f"{options.price_per_hour:g}"}),
    }
    available = cores()
    served_on, sent_from = available[0], available[-1]
    if options.rest or options.grpc:
        given = {"REST": options.rest, "GRPC": options.grpc, "METRICS": options.metrics}
        return _until_held(options, {name: url for name, url in given.items() if url}, environment, sent_from)
    with (
        tempfile.TemporaryDirectory() as folder,
        serving(options.model_repository, Path(folder), served_on) as server,
    ):
        urls = {"REST": f"http://{server.http}", "GRPC": f"grpc://{server.grpc}", "METRICS": server.metrics_url}
        return _until_held(options, urls, environment, sent_from)


def _until_held(options: argparse.Namespace, urls: Mapping[str, str], environment: Mapping[str, str], core: int) -> int:
    for left in reversed(range(options.tries)):
        code = _ask(options, urls, environment, core)
        if code in (HELD, MISUSED) or not left:
            break
        sys.stdout.write(f"\nOnce more; {left} left.\n\n")
        sys.stdout.flush()
    return code


def _ask(options: argparse.Namespace, urls: Mapping[str, str], environment: Mapping[str, str], core: int) -> int:
    if options.generator == "locust":
        return locust(options.seconds, options.processes, core, {**environment, **urls})
    by_transport = {"rest": urls.get("REST", ""), "grpc": urls.get("GRPC", "")}
    try:
        with pinned(core):
            return wire.run(
                read_slo(options.slo, options.model_repository),
                by_transport,
                options.model_repository,
                options.seconds,
                options.seed,
                urls.get("METRICS", ""),
                options.price_per_hour,
                options.out,
            )
    except (SloFault, NoPayload, ClientError) as error:
        sys.stderr.write(f"{error}\n")
        return MISUSED


if __name__ == "__main__":
    sys.exit(main())
