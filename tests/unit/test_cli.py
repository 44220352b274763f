"""The command line: what each command prints and with what it exits. The server is a scripted one."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import typer
from typer.testing import CliRunner, Result

import server
from server import cli
from server.environment import known_environment
from server.errors import ModelLoadFailed
from server.settings import Settings
from server.settings_doc import options, reference

ROOT = Path(__file__).parents[2]
BEST = [{"label": "benign", "score": 0.75}, {"label": "malignant", "score": 0.25}]
ANSWER = {
    "model_name": "cancer",
    "model_version": "1",
    "predictions": [{"label": "benign", "score": 0.75, "top_k": BEST}],
}


class Rest:
    def __init__(self) -> None:
        self.status = 200
        self.answer: Any = ANSWER
        self.asked: list[tuple[str, bytes]] = []
        rest = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                rest.asked.append((self.path, self.rfile.read(int(self.headers["Content-Length"]))))
                content = json.dumps(rest.answer).encode()
                self.send_response(rest.status)
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

            def log_message(self, *arguments: Any) -> None:
                """Say nothing."""

        self.server = HTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        self.thread = Thread(target=self.server.serve_forever, args=(0.01,))
        self.thread.start()

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()
        self.thread.join()


@pytest.fixture
def rest() -> Iterator[Rest]:
    scripted = Rest()
    yield scripted
    scripted.close()


@pytest.fixture(autouse=True)
def _no_settings_in_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in known_environment():
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def app(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """Stands in for the composition root, which these tests do not start."""
    module: Any = ModuleType("server.app")
    scripted = SimpleNamespace(settings=[], exit=0, entries=[], error=None)

    def run(settings: Settings) -> int:
        scripted.settings.append(settings)
        return scripted.exit

    def check(settings: Settings) -> list[Any]:
        scripted.settings.append(settings)
        if scripted.error:
            raise scripted.error
        return scripted.entries

    module.run, module.check = run, check
    monkeypatch.setitem(sys.modules, "server.app", module)
    monkeypatch.setattr("server.process.prepare", lambda: None)
    monkeypatch.setattr(server, "app", module, raising=False)
    return scripted


def forwardpass(*args: str, stdin: bytes = b"") -> Result:
    return CliRunner().invoke(cli.create_app(args), list(args), input=stdin, prog_name="forwardpass")


def without_exporter(monkeypatch: pytest.MonkeyPatch) -> None:
    find: Callable[[str], Any] = cli.importlib.util.find_spec
    monkeypatch.setattr(cli.importlib.util, "find_spec", lambda name: None if name == "torch" else find(name))


# --- serve and its flags -------------------------------------------------------------------------


def test_serve_without_flags_has_the_default_settings(app: SimpleNamespace) -> None:
    """The exit code is the server's."""
    app.exit = 3

    result = forwardpass("serve")

    assert (result.exit_code, app.settings) == (3, [Settings()])


def _companions(flag: str) -> list[str]:
    """The flags without which this one is refused."""
    engine, url = ["--engine", "triton"], ["--triton-url", "grpc://a:1"]
    pair = ["--triton-tls-certificate", "--triton-tls-key"]
    if flag in ("--engine", "--triton-url"):
        return url if flag == "--engine" else engine
    if flag.startswith("--triton-"):
        return [*engine, *url, *(word for other in pair if flag in pair and other != flag for word in (other, "a"))]
    if flag in ("--require-signed", "--trusted-keys"):
        return ["--trusted-keys", "a"] if flag == "--require-signed" else ["--require-signed"]
    tokens = ("--jwt-jwks", "--jwt-issuer", "--jwt-audience")
    if flag in tokens:
        return [word for other in tokens if other != flag for word in (other, "a")]
    return ["--model-control-mode", "explicit"] if flag == "--load-model" else []


def test_every_flag_sets_its_own_setting(app: SimpleNamespace) -> None:
    """A value by each flag of the settings arrives where it belongs, in its own type."""
    given = {
        bool: ([], True),
        int: (["7"], 7),
        float: (["0.375"], 0.375),
        str: (["::1"], "::1"),
        Path: (["elsewhere"], Path("elsewhere")),
    }
    for option in options():
        if not option.flag:
            continue
        flag = option.flag
        if option.annotation is bool and option.default:
            flag, words, expected = f"--no-{flag[2:]}", [], False
        elif option.flag == "--open-api":
            words, expected = ["trace", option.flag, "logging"], ("trace", "logging")
        elif option.repeatable:
            words, expected = ["a", option.flag, "b"], ("a", "b")
        elif option.flag == "--triton-forward-metadata":
            words, expected = ["a,b"], "a,b"
        elif option.annotation in given:
            words, expected = given[option.annotation]
        else:
            expected = next(choice for choice in option.value.split(" or ") if choice != option.default)
            words = [expected]

        result = forwardpass("serve", flag, *words, *_companions(option.flag))

        assert result.exit_code == 0, result.output
        section: Any = app.settings[-1]
        for name in option.path:
            section = getattr(section, name)
        assert (section, type(section)) == (expected, type(expected)), option.flag
        assert app.settings[-1] != Settings()


def test_a_flag_beats_the_environment_even_with_a_value_like_nothing(
    app: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Zero and "off" are given values; what is not given stays with the environment."""
    monkeypatch.setenv("FORWARDPASS_HTTP__PORT", "9000")
    monkeypatch.setenv("FORWARDPASS_GRPC__PORT", "9001")
    monkeypatch.setenv("FORWARDPASS_REPOSITORY__STRICT_READINESS", "true")

    forwardpass("serve", "--http-port", "0", "--no-strict-readiness")
    forwardpass("serve")

    first, second = app.settings
    assert (first.http.port, first.grpc.port, first.repository.strict_readiness) == (0, 9001, False)
    assert (second.http.port, second.repository.strict_readiness) == (9000, True)


def test_each_wrong_setting_has_its_line(app: SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> None:
    """A line names the flag and the variable, the limit and the value; nothing is started."""
    monkeypatch.setenv("FORWARDPASS_METRICS__PORT", "many")

    result = forwardpass("serve", "--http-port", "70000", "--repository-poll-secs", "0")

    lines = result.stderr.splitlines()
    assert (result.exit_code, result.stdout, app.settings) == (2, "", [])
    assert len(lines) == 3
    for name, value in (("--http-port / FORWARDPASS_HTTP__PORT", "70000"), ("--metrics-port", "'many'")):
        assert any(line.startswith(f"error: {name}") and line.endswith(value) for line in lines), lines


@pytest.mark.parametrize(
    ("variable", "value", "said"),
    [
        ("FORWARDPASS_HTTP_PORT", "1", "unknown environment variable: FORWARDPASS_HTTP_PORT"),
        ("FORWARDPASS_HTTP", '{"prot": 1}', "http.prot: Extra inputs are not permitted"),
        ("FORWARDPASS_REPOSITORY__LOAD_MODELS", "digits", "not a JSON list or object, as its value must be"),
        ("FORWARDPASS_REPOSITORY__LOAD_MODELS", "[7]", "--load-model / FORWARDPASS_REPOSITORY__LOAD_MODELS: "),
    ],
)
def test_a_wrong_environment_is_a_wrong_command(
    app: SimpleNamespace, monkeypatch: pytest.MonkeyPatch, variable: str, value: str, said: str
) -> None:
    """One line, exit code 2, by the name that the person wrote."""
    monkeypatch.setenv(variable, value)

    result = forwardpass("check")

    assert result.exit_code == 2
    assert len(result.stderr.splitlines()) == 1
    assert result.stderr.startswith(f"error: {said}")


@pytest.mark.parametrize("args", [("serve", "--nope"), ("serve", "--log-level", "loud"), ("nope",), ("predict", "m")])
def test_a_wrong_command_exits_2(app: SimpleNamespace, args: tuple[str, ...]) -> None:
    """What is no command, flag or choice is usage, and starts nothing."""
    result = forwardpass(*args)

    assert (result.exit_code, app.settings) == (2, [])
    assert "Usage" in result.stderr


@pytest.mark.parametrize(
    "args",
    [
        ("serve", "--nope"),
        ("serve", "--http-prt", "1"),
        ("serve", "--log-level", "loud"),
        ("serve", "--http-port", "x"),
        ("serve", "digits"),
        ("check", "--model-repository"),
        ("predict", "m"),
        ("plan", "-h"),
        ("version", "serve"),
        ("serve", "version", "--help"),
    ],
)
def test_a_command_that_is_alone_answers_as_among_the_others(args: tuple[str, ...]) -> None:
    """Where one is asked for only that one is made, and nobody can tell."""
    alone, among = (
        CliRunner().invoke(cli.create_app(known), args, prog_name="forwardpass", terminal_width=100)
        for known in (args, ())
    )

    assert (alone.exit_code, alone.stdout, alone.stderr) == (among.exit_code, among.stdout, among.stderr)


def test_the_flags_of_other_commands_are_not_made(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of `serve` there is only `serve`, and nothing explains its flags; they come of every start."""
    monkeypatch.setattr("server.settings_doc._meanings", None)
    monkeypatch.setattr(cli, "_mount_exporter", None)
    app = cli.create_app(["serve", "--http-port", "1"])

    assert [command.callback.__name__ for command in app.registered_commands] == ["serve"]  # type: ignore[union-attr]
    assert app.registered_groups == []


def test_help_shows_every_flag_with_its_meaning() -> None:
    """`serve --help` is complete: each flag, its meaning and its default."""
    text = " ".join(CliRunner().invoke(cli.create_app(), ["serve", "--help"], terminal_width=10_000).output.split())

    for option in options():
        if option.flag:
            assert option.flag in text
            assert f"{option.meaning} [default: {option.shown_default}]" in text


# --- check ---------------------------------------------------------------------------------------


def entry(name: str, state: str, reason: str = "") -> SimpleNamespace:
    return SimpleNamespace(name=name, version="1", state=state, reason=reason)


def test_check_is_content_when_every_model_is_ready(app: SimpleNamespace) -> None:
    """A line for each version, and exit code 0; the flags are those of serve."""
    app.entries = [entry("digits", "READY"), entry("fraud", "READY")]

    result = forwardpass("check", "--model-repository", "models")

    assert (result.exit_code, app.settings[0].repository.path) == (0, ("models",))
    assert [line.split() for line in result.stdout.splitlines()] == [
        ["MODEL", "VERSION", "STATE", "REASON"],
        ["digits", "1", "READY"],
        ["fraud", "1", "READY"],
    ]


def test_check_fails_with_one_broken_model(app: SimpleNamespace) -> None:
    """The reason is in the table, and the exit code is 1."""
    app.entries = [entry("digits", "READY"), entry("fraud", "UNAVAILABLE", "config.pbtxt: no platform")]

    result = forwardpass("check")

    assert result.exit_code == 1
    assert "UNAVAILABLE  config.pbtxt: no platform" in result.stdout


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (None, "there is no model in model_repository"),
        (FileNotFoundError(2, "No such file or directory", "models"), "models: No such file or directory"),
        (ModelLoadFailed("m", "config.pbtxt", "is empty"), "model 'm' can't be loaded: config.pbtxt: is empty"),
    ],
)
def test_check_says_why_there_is_nothing_to_serve(app: SimpleNamespace, error: Exception | None, said: str) -> None:
    """An empty or missing repository is not sound."""
    app.error = error

    result = forwardpass("check")

    assert (result.exit_code, result.stderr) == (1, f"error: {said}\n")


# --- predict -------------------------------------------------------------------------------------


def test_predict_prints_the_answer_for_people(rest: Rest) -> None:
    """The label first, then the best ones in a column."""
    result = forwardpass("predict", "cancer", '{"radius": 1.5}', "--url", rest.url, "--top-k", "2", "--version", "1")

    path, body = rest.asked[0]
    assert path == "/v2/models/cancer/versions/1/predict"
    assert json.loads(body) == {"inputs": [{"radius": 1.5}], "top_k": 2}
    assert (result.exit_code, result.stdout) == (0, "benign  0.7500\n  benign     0.7500\n  malignant  0.2500\n")


def test_predict_tells_several_inputs_apart(rest: Rest) -> None:
    """With more than one input each answer is under its number."""
    rest.answer = {**ANSWER, "predictions": [{"label": "a", "score": 1, "top_k": []}] * 2}

    result = forwardpass("predict", "cancer", "[[1, 2], [3, 4]]", "--url", rest.url)

    assert json.loads(rest.asked[0][1]) == {"inputs": [[1, 2], [3, 4]]}
    assert result.stdout == "input 0\na  1.0000\ninput 1\na  1.0000\n"


def test_predict_prints_json_for_programs(rest: Rest) -> None:
    """`--json` is the answer as the protocol has it."""
    result = forwardpass("predict", "cancer", "[1]", "--url", rest.url, "--json")

    assert json.loads(result.stdout) == {**ANSWER, "id": ""}


def test_predict_reads_files_and_standard_input(rest: Rest, tmp_path: Path) -> None:
    """A picture goes as it is, rows as JSON; standard input is what it begins like."""
    picture, rows = tmp_path / "a.png", tmp_path / "rows.json"
    picture.write_bytes(b"\x89PNG")
    rows.write_text('[{"a": 1}, {"a": 2}]')

    for source, stdin in ((str(picture), b""), (str(rows), b""), ("-", b' [{"a": 1}]'), ("-", b"\xff\xd8\xff")):
        assert forwardpass("predict", "m", source, "--url", rest.url, stdin=stdin).exit_code == 0

    bodies = [body for _, body in rest.asked]
    assert bodies[0] == b"\x89PNG"
    assert [json.loads(body)["inputs"] for body in bodies[1:]] == [
        [{"a": 1}, {"a": 2}],
        [{"a": 1}],
        [{"b64": "/9j/"}],
    ]


def test_an_error_of_the_server_exits_1(rest: Rest) -> None:
    """One line on standard error, nothing on standard output."""
    rest.status, rest.answer = 404, {"error": "unknown model: 'm'"}

    for args in (("predict", "m", "[1]"), ("models",)):
        result = forwardpass(*args, "--url", rest.url)

        assert (result.exit_code, result.stdout) == (1, "")
        assert result.stderr == "error: NOT_FOUND: unknown model: 'm'\n"


def test_a_server_that_is_not_there_exits_1(rest: Rest) -> None:
    """The line names the address that was tried."""
    rest.close()

    result = forwardpass("models", "--url", rest.url)

    assert result.exit_code == 1
    assert result.stderr.startswith(f"error: UNAVAILABLE: {rest.url}: ")


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (("predict", "m", '{"a": '), "INPUT: not JSON"),
        (("predict", "m", "no/such/file.png"), "no/such/file.png: No such file or directory"),
        (("predict", "m", "."), "Is a directory"),
        (("predict", "m", "-"), "there is nothing to read"),
        (("predict", "m", "[1]", "--url", "localhost"), "is not of the form http://HOST:PORT"),
        (("models", "--url", "ftp://h"), "is not of the form http://HOST:PORT"),
    ],
)
def test_what_can_not_be_asked_exits_2(args: tuple[str, ...], said: str) -> None:
    """A wrong input or address is found before anything is sent."""
    result = forwardpass(*args)

    assert (result.exit_code, result.stdout) == (2, "")
    assert said in result.stderr
    assert len(result.stderr.splitlines()) == 1


# --- models --------------------------------------------------------------------------------------


def test_models_is_a_table(rest: Rest) -> None:
    """Aligned columns for people; JSON for programs."""
    rest.answer = [
        {"name": "digits", "version": "10", "state": "READY", "reason": ""},
        {"name": "bad", "version": "1", "state": "UNAVAILABLE", "reason": "golden inputs: off by 0.5"},
    ]

    result = forwardpass("models", "--url", rest.url)
    machine = forwardpass("models", "--url", rest.url, "--json")

    assert result.exit_code == 0
    assert result.stdout.splitlines() == [
        "MODEL   VERSION  STATE        REASON",
        "digits  10       READY",
        "bad     1        UNAVAILABLE  golden inputs: off by 0.5",
    ]
    assert json.loads(machine.stdout) == rest.answer


# --- settings, version, the exporter's commands --------------------------------------------------


def test_settings_prints_the_reference() -> None:
    """The page in the repository is this output."""
    assert forwardpass("settings").stdout == reference()


def test_version_is_the_package_s() -> None:
    """One line with nothing around it."""
    assert forwardpass("version").stdout == f"{server.__version__}\n"


@pytest.mark.parametrize("name", ["train", "export", "verify", "publish"])
def test_without_the_exporter_its_commands_say_how_to_get_it(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """Whatever arguments follow, the answer is one sentence and exit code 2."""
    without_exporter(monkeypatch)

    result = forwardpass(name, "digits", "--seed", "7", "--anything")

    assert (result.exit_code, result.stdout) == (2, "")
    assert "pip install 'forwardpass[exporter]'" in result.stderr
    assert len(result.stderr.splitlines()) == 1


def test_with_the_exporter_its_commands_are_mounted(monkeypatch: pytest.MonkeyPatch) -> None:
    """They stand beside the server's own, and bring their own arguments."""
    commands = typer.Typer()

    @commands.command()
    def train(recipe: str) -> None:
        typer.echo(f"training {recipe}")

    @commands.command()
    def export() -> None:
        """A second one: a single command of Typer's would lose its name."""

    module: Any = ModuleType("exporter.cli")
    module.commands = commands
    monkeypatch.setitem(sys.modules, "exporter.cli", module)
    monkeypatch.setattr(cli.importlib.util, "find_spec", lambda name: object())

    assert forwardpass("train", "digits").stdout == "training digits\n"
    assert "Serve a folder of models" in forwardpass("--help").stdout


def test_the_module_is_the_command_line_and_starts_light() -> None:
    """`python -m server` works, and help imports neither PyTorch nor a wire nor the engine."""
    code = """
import runpy, sys
sys.argv = ["server", "version"]
try:
    runpy.run_module("server", run_name="__main__", alter_sys=True)
except SystemExit as end:
    heavy = {"torch", "lightning", "onnxruntime", "httptools", "grpc", "httpx", "numpy", "pandas"} & set(sys.modules)
    sys.exit(str(heavy) if heavy or end.code else 0)
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)

    assert (done.returncode, done.stdout) == (0, f"{server.__version__}\n"), done.stderr
