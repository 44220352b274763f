"""`serve` that is asked plainly has the settings that Typer would have made of it, and nothing of Typer."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import pytest
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from server import cli, cli_serve
from server.cli_serve import plainly_asked
from server.environment import known_environment
from server.settings import Settings
from server.settings_doc import Option, options

ROOT = Path(__file__).parents[2]
FLAGS = [option for option in options() if option.flag]
PLAIN = [
    [],
    ["--http-port", "8000", "--grpc-port", "0"],
    ["--http-port=7", "--http-port=8"],
    ["--model-repository", "a", "--model-repository=b"],
    ["--model-control-mode", "explicit", "--load-model", "m", "--load-model", "n"],
    ["--no-console", "--drain-delay-secs", "1.5"],
    ["--console", "--no-console", "--console"],
    ["--trusted-keys="],
    ["--repository-cache-folder", "--no-console"],
    ["--trace-count", "-1"],
    ["--model-repository", "s3://bucket/a=b"],
]
NOT_PLAIN = [
    ["--help"],
    ["digits"],
    ["console"],
    ["http-port", "1"],
    ["--", "--http-port", "1"],
    ["--nope"],
    ["--http-por", "1"],
    ["--no-http-port"],
    ["--no-http-port", "1"],
    ["--console=true"],
    ["--http-port"],
    ["--http-port", "--no-console"],
    ["--http-port", "-1"],
    ["--http-port=x"],
    ["--http-port", "1.5"],
    ["--http-port", "99999"],
    ["--http-port", "1_0"],
    ["--http-port", "\N{ARABIC-INDIC DIGIT SEVEN}"],
    ["--http-port="],
    ["--drain-delay-secs", "inf"],
    ["--drain-delay-secs", "1e1"],
    ["--log-level", "LOUD"],
    ["--load-model", "m"],
]


@pytest.fixture(autouse=True)
def _no_settings_in_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in known_environment():
        monkeypatch.delenv(name, raising=False)


def by_typer(words: list[str]) -> Settings | None:
    """None: it did not serve."""
    served: list[Settings] = []

    def run(settings: Settings) -> int:
        served.append(settings)
        return 0

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(cli_serve, "run", run)
        CliRunner().invoke(cli.create_app(["serve"]), ["serve", *words])
    return served[0] if served else None


@pytest.mark.parametrize("words", PLAIN, ids=" ".join)
def test_what_is_plain_is_what_typer_makes_of_it(words: list[str]) -> None:
    """Flags by a blank or =, repeated or not, on and off."""
    assert plainly_asked(["serve", *words]) == by_typer(words) is not None


@pytest.mark.parametrize("words", NOT_PLAIN, ids=" ".join)
def test_what_is_not_plain_is_typers(words: list[str]) -> None:
    """Help, mistakes, and whatever is written as few would: Typer says what it is."""
    assert plainly_asked(["serve", *words]) is None


@pytest.mark.parametrize("arguments", [[], ["check"], ["version"], ["--help", "serve"], ["Serve"]], ids=" ".join)
def test_other_commands_are_typers(arguments: list[str]) -> None:
    """Only `serve` is asked plainly."""
    assert plainly_asked(arguments) is None


def values(option: Option) -> st.SearchStrategy[str]:
    if get_origin(option.annotation) is Literal:
        return st.sampled_from([*get_args(option.annotation), "other"])
    texts = st.sampled_from(["", "a", "m", "*", "127.0.0.1", "0", "1", "2", "07", "0.5", "-1", "x=y", "true", " 1"])
    return texts | st.integers(0, 70_000).map(str)


def written(option: Option, value: str, form: bool) -> list[str]:
    if option.annotation is bool:
        return [option.flag if form else f"--no-{option.flag[2:]}"]
    return [f"{option.flag}={value}"] if form else [option.flag, value]


WORDS = st.sampled_from(FLAGS).flatmap(
    lambda option: st.builds(written, st.just(option), values(option), st.booleans())
)


@given(st.lists(WORDS, max_size=3))
def test_nothing_is_understood_in_another_way_than_typers(parts: list[list[str]]) -> None:
    """Of any flags: either the same settings, or Typer is to look."""
    words = [word for part in parts for word in part]
    plain = plainly_asked(["serve", *words])
    assert plain is None or plain == by_typer(words)


@pytest.mark.parametrize("option", FLAGS, ids=lambda option: option.flag)
def test_every_flag_can_be_given_plainly(option: Option) -> None:
    """With its default, or what is near it."""
    default: Any = option.default[0] if option.repeatable and option.default else option.default
    value = option.shown_default if not option.repeatable else str(default or "statistics")
    words = written(option, value, True)
    assert (plainly_asked(["serve", *words]) is None) == (by_typer(words) is None)


def test_a_setting_of_the_environment_that_is_wrong_is_typers(monkeypatch: pytest.MonkeyPatch) -> None:
    """It has the words for it."""
    monkeypatch.setenv("FORWARDPASS_HTTP__PORT", "x")
    assert plainly_asked(["serve"]) is None


@pytest.mark.parametrize(
    ("outcome", "status"), [("0", 0), ("3", 3), ("KeyboardInterrupt", 130), ("BrokenPipeError", 1)]
)
def test_a_server_runs_without_typer_and_ends_as_with_it(outcome: str, status: int) -> None:
    """The command line imports neither Typer nor the commands, and its exit status is the server's."""
    code = (
        "import sys, types\napp = sys.modules['server.app'] = types.ModuleType('server.app')\n"
        "def run(settings):\n"
        "    print(settings.http.port, [n for n in ('typer', 'server.cli', 'server.cli_output') if n in sys.modules])\n"
        f"    if {outcome[-1].isalpha()}:\n        raise {outcome}\n    return {outcome}\n"
        "app.run = run\nsys.argv = ['forwardpass', 'serve', '--http-port', '7']\n"
        "from server.__main__ import main\nmain()"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (status, "7 []\n", "")
