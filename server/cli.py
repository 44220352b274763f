"""The command line `forwardpass`.

The flags of `serve` and `check` are generated from the settings. What a command needs is imported when it
runs, so that help comes at once. Exit codes: 0 it went well, 1 the answer is an error, 2 it was asked wrongly.
"""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

from server.environment import load_settings
from server.security.cli import key_commands, sign
from server.settings import Settings, without_secrets
from server.settings_doc import Option, options, reference

if TYPE_CHECKING:
    from server.client import Client
    from server.types import PredictResponse, RawInput

FAILED = 1
MISUSED = 2

EXPORTER_COMMANDS = {
    "train": "Train a recipe on data, evaluate it and publish the model.",
    "export": "Export a trained checkpoint to ONNX.",
    "verify": "Compare an exported model with its golden inputs.",
    "publish": "Publish a verified model into the model repository.",
    "import": "Publish a model that was made elsewhere.",
    "quantize": "Make smaller and faster copies of a model, measured beside it.",
    "tensorrt": "Build a TensorRT plan of a model.",
}
EXPORTER_NEEDS = ("torch", "lightning", "exporter", "exporter.cli")
INSTALL_EXPORTER = "install the exporter with: pip install 'forwardpass[exporter]'"

HELP = """\
Serve trained models with low latency, and ask them for predictions.

Start with `forwardpass serve` on a folder of models, then ask it with `forwardpass predict MODEL FILE`.

Exit codes: 0 it went well, 1 the answer is an error, 2 the command or a setting is wrong.
The training commands have more of them; see their own help.
"""

Url = Annotated[str, typer.Option(help="The server: http://HOST:PORT (REST) or grpc://HOST:PORT.")]
Timeout = Annotated[float, typer.Option(min=0.001, help="Seconds to wait for the answer.")]
KeyFile = Annotated[Path | None, typer.Option("--api-key-file", help="A file with the key to show, and nothing else.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON, for programs.")]
DEFAULT_URL = "http://127.0.0.1:8000"
DEFAULT_TIMEOUT_S = 30.0


def main() -> None:
    """The entry point. Ends the process with the exit code."""
    create_app()(prog_name="forwardpass")


def create_app() -> typer.Typer:
    """The whole command line; the exporter's commands are its own if it is installed, else they say how to."""
    app = typer.Typer(
        help=HELP, no_args_is_help=True, rich_markup_mode=None, add_completion=False, pretty_exceptions_enable=False
    )
    app.command()(with_settings(serve))
    app.command()(with_settings(check))
    for command in (predict, models, triton, diff, sign, tune, plan, settings, version):
        app.command()(command)
    app.add_typer(key_commands, name="keys")
    _mount_exporter(app)
    return app


# --- serve, check: their flags are the settings ----------------------------------------------------


def serve(settings: Settings) -> int:
    """Serve a folder of models until SIGTERM or Ctrl-C.

    Every flag can be given by the environment too, and some settings only so: see `forwardpass settings`.
    """
    from server import process

    process.prepare()
    from server.app import run

    return run(settings)


def check(settings: Settings) -> int:
    """Load every model as `serve` would, and say what is wrong.

    Exit code 1 if any model is not ready, or if there is none.
    """
    from server.app import check as check_repository
    from server.security.gate import BadAuth

    with _reported(FAILED):
        try:
            entries = check_repository(settings)
        except BadAuth as error:
            _fail(MISUSED, str(error))
    if not entries:
        where = settings.triton.url or ", ".join(map(without_secrets, settings.repository.path))
        _fail(FAILED, f"there is no model in {where}")
    typer.echo(
        _table(("MODEL", "VERSION", "STATE", "REASON"), [(e.name, e.version, e.state, e.reason) for e in entries])
    )
    return FAILED if any(entry.state != "READY" for entry in entries) else 0


def with_settings(command: Callable[[Settings], int]) -> Callable[..., None]:
    """A Typer command with one option for each setting that has a flag; its exit code is what `command` returns."""
    flags = {"__".join(option.path): option for option in options() if option.flag}

    def run(**given: Any) -> None:
        raise typer.Exit(
            command(_settings({flags[name].path: value for name, value in given.items() if value not in (None, [])}))
        )

    parameters = [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=_annotation(option))
        for name, option in flags.items()
    ]
    vars(run)["__signature__"] = inspect.Signature(parameters)
    run.__name__, run.__doc__ = command.__name__, command.__doc__
    return run


def _annotation(option: Option) -> Any:
    kind = list[str] if option.repeatable else option.annotation
    declaration = f"{option.flag}/--no-{option.flag[2:]}" if kind is bool else option.flag
    meaning = f"{option.meaning}  [default: {option.shown_default}]"
    return Annotated[
        kind | None, typer.Option(declaration, help=meaning, metavar="<str>" if option.repeatable else None)
    ]


def _settings(given: dict[tuple[str, ...], Any]) -> Settings:
    overrides: dict[str, Any] = {}
    for path, value in given.items():
        section = overrides
        for name in path[:-1]:
            section = section.setdefault(name, {})
        section[path[-1]] = value
    try:
        return load_settings(overrides)
    except ValueError as error:
        _fail(MISUSED, *_problems(error))


def _problems(error: ValueError) -> list[str]:
    """One line for each setting that is wrong, by its flag and its variable."""
    from pydantic import ValidationError

    if not isinstance(error, ValidationError):
        return [str(error)]
    known = {option.path: option for option in options()}
    return [_problem(known, problem) for problem in error.errors()]


def _problem(known: dict[tuple[str, ...], Option], problem: Any) -> str:
    path = tuple(str(step) for step in problem["loc"])
    if not path:  # What settings contradict each other says which.
        return str(problem["msg"]).removeprefix("Value error, ")
    option = known.get(path) or known.get(path[:-1])
    names = ".".join(path) if option is None else " / ".join(filter(None, (option.flag, option.variable)))
    return f"{names}: {problem['msg']}, and it is {problem['input']!r}"


# --- predict, models: a client of a running server -------------------------------------------------


def predict(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="The model's name, as `forwardpass models` shows it.")],
    input: Annotated[
        str,
        typer.Argument(
            metavar="INPUT",
            help="A picture's file, a .txt file, a .json file of rows, - for standard input, or JSON itself: "
            """'{"age": 41, "city": "Oslo"}' is a row, '[[5.1, 3.5], [4.9, 3.0]]' are two, '"fine"' is a text.""",
        ),
    ],
    url: Url = DEFAULT_URL,
    top_k: Annotated[int, typer.Option(min=0, help="How many labels to name; 0: as many as the model says.")] = 0,
    version: Annotated[str, typer.Option(help="The version to ask; the newest if left out.")] = "",
    timeout: Timeout = DEFAULT_TIMEOUT_S,
    as_json: AsJson = False,
    api_key_file: KeyFile = None,
) -> None:
    """Ask a running server about a picture, a text or rows."""
    with _reported(MISUSED):
        inputs, client = _read(input), _client(url, api_key_file)
    with _reported(FAILED), client:
        answer = client.predict(model, inputs, version=version, top_k=top_k, timeout_s=timeout)
    typer.echo(json.dumps(asdict(answer)) if as_json else _readable(answer))


def models(
    url: Url = DEFAULT_URL,
    timeout: Timeout = DEFAULT_TIMEOUT_S,
    as_json: AsJson = False,
    api_key_file: KeyFile = None,
) -> None:
    """List a running server's models, and why one is not served."""
    with _reported(MISUSED):
        client = _client(url, api_key_file)
    with _reported(FAILED), client:
        entries = client.models(timeout_s=timeout)
    if as_json:
        typer.echo(json.dumps([asdict(entry) for entry in entries]))
    else:
        rows = [(entry.name, entry.version, entry.state, entry.reason) for entry in entries]
        typer.echo(_table(("MODEL", "VERSION", "STATE", "REASON"), rows))


def _client(url: str, api_key_file: Path | None) -> Client:
    from server.client import Client

    return Client(url, api_key=api_key_file.read_text().strip() if api_key_file else "")


def _read(text: str) -> list[RawInput]:
    from server.client import inputs_of_bytes, inputs_of_json
    from server.client.inputs import raw_inputs

    if text == "-":
        return inputs_of_bytes(sys.stdin.buffer.read())
    if text.lstrip()[:1] in ("{", "[", '"'):
        return inputs_of_json(text, "INPUT")
    return raw_inputs(Path(text))


@contextmanager
def _reported(code: int) -> Iterator[None]:
    """Turn what a command may meet into one line on standard error and that exit code."""
    from server.client import ClientError
    from server.errors import ServingError

    try:
        yield
    except ClientError as error:
        _fail(code, str(error))
    except ServingError as error:
        _fail(code, error.public_message)
    except OSError as error:
        _fail(code, f"{error.filename}: {error.strerror}" if error.filename else str(error))


def _readable(answer: PredictResponse) -> str:
    """A block for each input: the chosen label with its probability, and below it the best ones; other kinds alike."""
    from server.client.answers import readable

    lines: list[str] = []
    for index, one in enumerate(answer.predictions):
        if len(answer.predictions) > 1:
            lines.append(f"input {index}")
        lines += readable(one)
    return "\n".join(lines)


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [header, *rows]
    widths = [max(len(line[column]) for line in lines) for column in range(len(header))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines
    )


def _fail(code: int, *problems: str) -> NoReturn:
    for problem in problems:
        typer.echo(f"error: {problem}", err=True)
    raise typer.Exit(code)


# --- triton: a real one on this machine ------------------------------------------------------------


def triton(
    model_repository: Annotated[Path, typer.Option(help="The folder of models.")] = Path("model_repository"),
    tritonserver: Annotated[
        Path | None,
        typer.Option(help="The program; without it that on PATH, in /opt/tritonserver, or of `make triton`."),
    ] = None,
    http_port: Annotated[int, typer.Option(help="REST.")] = 9000,
    grpc_port: Annotated[int, typer.Option(help="gRPC.")] = 9001,
    metrics_port: Annotated[int, typer.Option(help="Prometheus metrics.")] = 9002,
) -> None:
    """Run a Triton Inference Server on a folder of models, for development, until Ctrl-C.

    A build without the ONNX Runtime backend runs the models in its Python backend. Exit code: Triton's own.
    """
    from server.local_triton.process import LocalTriton, Ports
    from server.local_triton.program import TritonMissing, find

    with _reported(FAILED):
        try:
            program = find(tritonserver)
        except TritonMissing as error:
            _fail(FAILED, str(error))
        with LocalTriton(program, model_repository, Ports(http_port, grpc_port, metrics_port)) as server:
            if server.translated:
                typer.echo(
                    f"{program.path.name} has no ONNX Runtime backend: its Python backend runs "
                    f"{', '.join(server.translated)}, from a temporary copy of the repository",
                    err=True,
                )
            status = server.foreground()
    raise typer.Exit(status)


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

    tolerance = None if atol is None else Tolerance(atol=atol, rtol=rtol)
    if rtol and atol is None:
        _fail(MISUSED, "--rtol goes with --atol")
    with _reported(FAILED):
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
            _fail(FAILED, str(error))
    typer.echo(_table(HEADER, cells(lines)))
    found = differences(lines)
    typer.echo(f"\ndifferences: {found or 'none'}")
    raise typer.Exit(FAILED if found else 0)


# --- tune: the best configuration of a model -------------------------------------------------------


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
        _fail(MISUSED, f"--slo: {error}")
    try:
        held = planning.read_capacity(capacity)
        asked = planning.read_peak(peak, held)
        if limits is not None:
            planning.check_slo(limits, asked, held)
        made = planning.make_plan(asked, held, planning.Fleet(machine_cores, price_per_hour, watts), least)
    except planning.BadPlan as error:
        _fail(FAILED, str(error))
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
    nothing holds the SLO.
    """
    from server.load.limits import Limits
    from server.load.payloads import NoPayload
    from server.tuning import run
    from server.tuning.search import Failed

    if call not in ("", "infer", "predict"):
        _fail(MISUSED, f"--call: it is infer or predict, and not {call!r}")
    try:
        limits = Limits.parse(slo)
    except ValueError as error:
        _fail(MISUSED, f"--slo: {error}")
    served_on, asked_from = run.split(cores)
    asked = run.Asked(model_repository / model, limits, budget, call, window, served_on, asked_from, apply)
    with _reported(FAILED):
        try:
            found = run.tune_model(asked, sys.stderr)
        except (NoPayload, Failed) as error:
            _fail(FAILED, f"{model}: {error}")
    typer.echo(_table(run.HEADER, run.rows(found)))
    typer.echo(f"\n{run.verdict(found)}")
    raise typer.Exit(0 if run.best_of(found) else FAILED)


# --- settings, version, and the exporter's commands ------------------------------------------------


def settings() -> None:
    """Print every setting of the server as a Markdown table."""
    typer.echo(reference(), nl=False)


def version() -> None:
    """Print the version."""
    from server import __version__

    typer.echo(__version__)


def _mount_exporter(app: typer.Typer) -> None:
    if all(importlib.util.find_spec(package) for package in EXPORTER_NEEDS):
        app.add_typer(importlib.import_module("exporter.cli").commands)
        return
    for name, summary in EXPORTER_COMMANDS.items():
        anything = {"allow_extra_args": True, "ignore_unknown_options": True}
        app.command(name, help=f"{summary} To have it, {INSTALL_EXPORTER}", context_settings=anything)(_not_installed)


def _not_installed() -> None:
    _fail(MISUSED, f"this command trains or exports models: {INSTALL_EXPORTER}")
