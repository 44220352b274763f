"""The command line `forwardpass`.

The flags of `serve` and `check` are generated from the settings. What a command needs is imported when it
runs, so that help comes at once; and the flags of the others are not made where one is asked for, so that it runs at
once. Exit codes: 0 it went well, 1 the answer is an error, 2 it was asked wrongly.
"""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from server.cli_output import FAILED, MISUSED, fail, reported, table
from server.cli_tools import diff, fetch, plan, triton, tune
from server.environment import load_settings
from server.security.cli import key_commands, sign
from server.settings import Settings, without_secrets
from server.settings_doc import Option, options, reference

if TYPE_CHECKING:
    from server.client import Client
    from server.types import PredictResponse, RawInput

EXPORTER_COMMANDS = {
    "train": "Train a recipe on data, evaluate it and publish the model.",
    "export": "Export a trained checkpoint to ONNX.",
    "verify": "Compare an exported model with its golden inputs.",
    "publish": "Publish a verified model into the model repository.",
    "import": "Publish a model that was made elsewhere.",
    "card": "Write README.md of a published model anew.",
    "text-generation": "Train a model that writes text, or fine-tune one.",
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
    create_app(sys.argv[1:])(prog_name="forwardpass")


def create_app(arguments: Sequence[str] = ()) -> typer.Typer:
    """The whole command line; the exporter's commands are its own if it is installed, else they say how to.

    Where `arguments` ask a server's command for anything but help, there is only that command: Typer takes 60 ms to
    make them all.
    """
    app = typer.Typer(
        help=HELP, no_args_is_help=True, rich_markup_mode=None, add_completion=False, pretty_exceptions_enable=False
    )
    app.callback()(_nothing)  # Else Typer would take a command that is alone for the whole.
    asked = _asked(arguments)
    for command in (serve, check):
        if asked in ("", command.__name__):
            app.command()(with_settings(command, explained=not asked))
    for other in _OTHERS:
        if asked in ("", other.__name__):
            app.command()(other)
    if not asked:
        app.add_typer(key_commands, name="keys")
        _mount_exporter(app)
    return app


def _asked(arguments: Sequence[str]) -> str:
    """The command that is all that is needed of the command line; empty: it is not known, or help is asked for."""
    known = {command.__name__ for command in (serve, check, *_OTHERS)}
    return arguments[0] if arguments and arguments[0] in known and "--help" not in arguments else ""


def _nothing() -> None: ...


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

    with reported(FAILED):
        try:
            entries = check_repository(settings)
        except BadAuth as error:
            fail(MISUSED, str(error))
    if not entries:
        where = settings.triton.url or ", ".join(map(without_secrets, settings.repository.path))
        fail(FAILED, f"there is no model in {where}")
    typer.echo(
        table(("MODEL", "VERSION", "STATE", "REASON"), [(e.name, e.version, e.state, e.reason) for e in entries])
    )
    return FAILED if any(entry.state != "READY" for entry in entries) else 0


def with_settings(command: Callable[[Settings], int], *, explained: bool = True) -> Callable[..., None]:
    """A Typer command with one option for each setting that has a flag; its exit code is what `command` returns.

    `explained`: the options have their help.
    """
    flags = {"__".join(option.path): option for option in options() if option.flag}

    def run(**given: Any) -> None:
        raise typer.Exit(
            command(_settings({flags[name].path: value for name, value in given.items() if value not in (None, [])}))
        )

    parameters = [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=_annotation(option, explained))
        for name, option in flags.items()
    ]
    vars(run)["__signature__"] = inspect.Signature(parameters)
    run.__name__, run.__doc__ = command.__name__, command.__doc__
    return run


def _annotation(option: Option, explained: bool) -> Any:
    kind = list[str] if option.repeatable else option.annotation
    declaration = f"{option.flag}/--no-{option.flag[2:]}" if kind is bool else option.flag
    meaning = f"{option.meaning}  [default: {option.shown_default}]" if explained else None
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
        fail(MISUSED, *_problems(error))


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
    with reported(MISUSED):
        inputs, client = _read(input), _client(url, api_key_file)
    with reported(FAILED), client:
        answer = client.predict(model, inputs, version=version, top_k=top_k, timeout_s=timeout)
    typer.echo(json.dumps(asdict(answer)) if as_json else _readable(answer))


def models(
    url: Url = DEFAULT_URL,
    timeout: Timeout = DEFAULT_TIMEOUT_S,
    as_json: AsJson = False,
    api_key_file: KeyFile = None,
) -> None:
    """List a running server's models, and why one is not served."""
    with reported(MISUSED):
        client = _client(url, api_key_file)
    with reported(FAILED), client:
        entries = client.models(timeout_s=timeout)
    if as_json:
        typer.echo(json.dumps([asdict(entry) for entry in entries]))
    else:
        rows = [(entry.name, entry.version, entry.state, entry.reason) for entry in entries]
        typer.echo(table(("MODEL", "VERSION", "STATE", "REASON"), rows))


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


def _readable(answer: PredictResponse) -> str:
    """A block for each input: the chosen label with its probability, and below it the best ones; other kinds alike."""
    from server.client.answers import readable

    lines: list[str] = []
    for index, one in enumerate(answer.predictions):
        if len(answer.predictions) > 1:
            lines.append(f"input {index}")
        lines += readable(one)
    return "\n".join(lines)


# --- settings, version, and the exporter's commands ------------------------------------------------


def settings() -> None:
    """Print every setting of the server as a Markdown table."""
    typer.echo(reference(), nl=False)


def version() -> None:
    """Print the version."""
    from server import __version__

    typer.echo(__version__)


_OTHERS: Sequence[Callable[..., None]] = (
    predict,
    models,
    triton,
    fetch,
    diff,
    sign,
    tune,
    plan,
    settings,
    version,
)
"""The commands without the flags of the settings."""


def _mount_exporter(app: typer.Typer) -> None:
    if all(importlib.util.find_spec(package) for package in EXPORTER_NEEDS):
        app.add_typer(importlib.import_module("exporter.cli").commands)
        return
    for name, summary in EXPORTER_COMMANDS.items():
        anything = {"allow_extra_args": True, "ignore_unknown_options": True}
        app.command(name, help=f"{summary} To have it, {INSTALL_EXPORTER}", context_settings=anything)(_not_installed)


def _not_installed() -> None:
    fail(MISUSED, f"this command trains or exports models: {INSTALL_EXPORTER}")
