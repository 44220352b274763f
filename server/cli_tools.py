"""Commands around a server: a Triton on the same models, what differs, the plan of a fleet, tuning."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from server.cli_output import FAILED, MISUSED, fail, reported, table


def triton(
    model_repository: Annotated[Path, typer.Option(help="The folder of models.")] = Path("model_repository"),
    tritonserver: Annotated[
        Path | None,
        typer.Option(help="The program; without it that on PATH, in /opt/tritonserver, or of `make triton`."),
    ] = None,
    http_port: Annotated[int, typer.Option(min=1, max=65535, help="REST.")] = 9000,
    grpc_port: Annotated[int, typer.Option(min=1, max=65535, help="gRPC.")] = 9001,
    metrics_port: Annotated[int, typer.Option(min=1, max=65535, help="Prometheus metrics.")] = 9002,
) -> None:
    """Run a Triton Inference Server on a folder of models, for development, until Ctrl-C.

    A build without the ONNX Runtime backend runs the models in its Python backend. Exit code: Triton's own.
    """
    from server.local_triton.process import LocalTriton, Ports
    from server.local_triton.program import TritonMissing, find

    with reported(FAILED):
        try:
            program = find(tritonserver)
        except TritonMissing as error:
            fail(FAILED, str(error))
        with LocalTriton(program, model_repository, Ports(http_port, grpc_port, metrics_port)) as server:
            if server.translated:
                typer.echo(
                    f"{program.path.name} has no ONNX Runtime backend: its Python backend runs "
                    f"{', '.join(server.translated)}, from a temporary copy of the repository",
                    err=True,
                )
            status = server.foreground()
    raise typer.Exit(status)


def fetch(
    to: Annotated[
        Path, typer.Argument(metavar="FOLDER", help="Where the models are put, each in the place of its old.")
    ],
    model_repository: Annotated[
        list[str],
        typer.Option(metavar="<str>", help="As of `serve`: s3://, gs://, az://, http(s)://; may be repeated."),
    ],
) -> None:
    """Bring the models of remote repositories here, for a Triton, which reads a folder.

    Each is held against its manifest, if it has one. How they are asked is said by FORWARDPASS_REMOTE__ variables.
    """
    from server.environment import load_settings
    from server.repository.fetching import fetch as fetch_models

    try:
        # Nobody is let in: the address that an image listens on is no matter.
        settings = load_settings({"host": "127.0.0.1"})
    except ValueError as error:
        fail(MISUSED, str(error))
    with reported(FAILED):
        typer.echo("\n".join(fetch_models(model_repository, to, settings.remote)))


def diff(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="The model's name: its folder in the repository.")],
    model_repository: Annotated[Path, typer.Option(help="The folder of models.")] = Path("model_repository"),
    triton_url: Annotated[
        str, typer.Option(help="A Triton that serves the model: grpc://HOST:PORT. Without it one is started.")
    ] = "",
    tritonserver: Annotated[Path | None, typer.Option(help="The program to start, as of `forwardpass triton`.")] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of the random requests.")] = 0,
    num_random: Annotated[int, typer.Option(min=0, help="Random requests for each version.")] = 20,
    atol: Annotated[
        float | None, typer.Option(min=0, help="How far a value may be off; without it, as the manifest says.")
    ] = None,
    rtol: Annotated[float, typer.Option(min=0, help="The same in parts of the value, beside --atol.")] = 0.0,
) -> None:
    """Ask the embedded engine and a Triton the same about a model, and show their answers side by side.

    Golden inputs, seeded random ones, faulty ones; outputs, metadata, errors, statistics. Exit code 1 if they differ.
    """
    from server.comparison.lines import HEADER, cells, differences
    from server.comparison.run import compare_model
    from server.comparison.servers import NotServed
    from server.local_triton.program import TritonMissing
    from server.repository.certificate import Tolerance

    if rtol and atol is None:
        fail(MISUSED, "--rtol goes with --atol")
    try:
        tolerance = None if atol is None else Tolerance(atol=atol, rtol=rtol)
    except ValueError:
        # What is below 0 the options refuse themselves.
        fail(MISUSED, "--atol and --rtol must be finite numbers")
    with reported(FAILED):
        try:
            lines = compare_model(
                model_repository / model,
                triton_url,
                tritonserver,
                seed=seed,
                num_random=num_random,
                tolerance=tolerance,
            )
        except (NotServed, TritonMissing) as error:
            fail(FAILED, str(error))
    typer.echo(table(HEADER, cells(lines)))
    found = differences(lines)
    typer.echo(f"\ndifferences: {found or 'none'}")
    raise typer.Exit(FAILED if found else 0)


def plan(
    peak: Annotated[
        list[str], typer.Option(help="Requests a second: 5000rps, or 'grpc infer fraud=5000rps' for each kind.")
    ],
    slo: Annotated[str, typer.Option(help="What is to be held, as p99=20ms; empty: what the capacity holds.")] = "",
    capacity: Annotated[Path, typer.Option(help="What `make capacity` wrote.")] = Path("build/bench/capacity.yaml"),
    machine_cores: Annotated[float, typer.Option(min=0.001, help="Of a machine, for replicas.")] = 16,
    price_per_hour: Annotated[float, typer.Option(min=0, help="Of a machine.")] = 0.0,
    watts: Annotated[float, typer.Option(min=0, help="That a machine draws at work.")] = 0.0,
    least: Annotated[int, typer.Option(min=1, help="Replicas, so that one may fail.")] = 2,
) -> None:
    """How many replicas and machines a peak takes, their energy and price, by what one replica was measured to hold.

    Exit code 1 where that does not say it: another limit, another kind.
    """
    from server import planning
    from server.load.limits import Limits

    try:
        limits = Limits.parse(slo) if slo else None
    except ValueError as error:
        fail(MISUSED, f"--slo: {error}")
    try:
        held = planning.read_capacity(capacity)
        asked = planning.read_peak(peak, held)
        if limits is not None:
            planning.check_slo(limits, asked, held)
        made = planning.make_plan(asked, held, planning.Fleet(machine_cores, price_per_hour, watts), least)
    except planning.BadPlan as error:
        fail(FAILED, str(error))
    typer.echo("\n".join(made.lines()))


def tune(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="The model's name: its folder in the repository.")],
    slo: Annotated[
        str, typer.Option(help="What it is held to: p99=20ms, or p50=5ms,p99=20ms,errors=0.1%,refused=0.")
    ] = "p99=20ms",
    model_repository: Annotated[Path, typer.Option(help="The folder of models.")] = Path("model_repository"),
    budget: Annotated[float, typer.Option(min=1, help="Seconds; what runs then is ended.")] = 180.0,
    call: Annotated[str, typer.Option(help="infer or predict; without it, predict where the model takes it.")] = "",
    cores: Annotated[
        int, typer.Option(min=0, help="That the server gets; 0: all but one, which the generator has.")
    ] = 0,
    window: Annotated[float, typer.Option(min=0.1, help="Seconds at each rate, at least.")] = 1.5,
    apply: Annotated[
        bool, typer.Option("--apply", help="Put the best config in the old one's place, and its hash in manifest.json.")
    ] = False,
) -> None:
    """Search the instances, threads, batch size, delay and workers that answer most requests a second within an SLO.

    Each configuration is served by a process of its own and asked with the model's golden inputs, every answer checked.
    The best one is written beside the old as config.pbtxt.tuned, with what was tried in tuning.md. Exit code 1 where
    nothing holds the SLO. Ctrl-C and SIGTERM end it: the config stays as it is, and what was tried so far is written.
    """
    import signal

    from server.load.limits import Limits
    from server.load.payloads import NoPayload
    from server.tuning import run
    from server.tuning.search import Failed

    if call not in ("", "infer", "predict"):
        fail(MISUSED, f"--call: it is infer or predict, and not {call!r}")
    try:
        limits = Limits.parse(slo)
    except ValueError as error:
        fail(MISUSED, f"--slo: {error}")
    served_on, asked_from = run.split(cores)
    asked = run.Asked(model_repository / model, limits, budget, call, window, served_on, asked_from, apply)
    # Else the server that is measured would outlive the command.
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    with reported(FAILED):
        try:
            found = run.tune_model(asked, sys.stderr)
        except (NoPayload, Failed) as error:
            fail(FAILED, f"{model}: {error}")
        finally:
            signal.signal(signal.SIGTERM, before)
    typer.echo(table(run.HEADER, run.rows(found)))
    typer.echo(f"\n{run.verdict(found)}")
    raise typer.Exit(0 if run.best_of(found) else FAILED)
