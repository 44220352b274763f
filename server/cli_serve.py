"""`forwardpass serve` without Typer, where it is asked plainly: known flags, each with its value.

Typer, and what it makes of 70 flags, would take a tenth of every start and 6 MB of every server. It still has the word
wherever there is something to say: help, and what is wrong.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NoReturn

from server.environment import load_settings
from server.settings import Settings
from server.settings_doc import Option, options

_ANY = re.compile(".*", re.DOTALL)
_USUAL: Mapping[Any, re.Pattern[str]] = {int: re.compile("-?[0-9]+"), float: re.compile(r"[0-9]+(\.[0-9]+)?")}
"""How values of a kind are written; numbers that are not are for Typer to understand, or not."""


def plainly_asked(arguments: Sequence[str]) -> Settings | None:
    """The settings of a `serve` that is asked so, the same as Typer's; None: Typer is to look at it."""
    given = _given(arguments[1:]) if arguments and arguments[0] == "serve" else None
    try:
        return None if given is None else settings_of(given)
    except ValueError:
        return None


def settings_of(given: Mapping[tuple[str, ...], Any]) -> Settings:
    """Settings from the environment under those that are given by their paths. Raises ValueError."""
    overrides: dict[str, Any] = {}
    for path, value in given.items():
        section = overrides
        for name in path[:-1]:
            section = section.setdefault(name, {})
        section[path[-1]] = value
    return load_settings(overrides)


def _given(words: Sequence[str]) -> dict[tuple[str, ...], Any] | None:
    """By the paths of their settings, as texts; None: something is not plain."""
    spelled = dict(_spelled())
    given: dict[tuple[str, ...], Any] = {}
    left = list(words)
    while left:
        flag, equals, value = left.pop(0).partition("=")
        if flag not in spelled:
            return None
        option, meant = spelled[flag]
        if meant is not None:
            if equals:
                return None
            given[option.path] = meant
        elif equals or left:
            value = value if equals else left.pop(0)
            if not _USUAL.get(option.annotation, _ANY).fullmatch(value):
                return None
            given[option.path] = [*given.get(option.path, ()), value] if option.repeatable else value
        else:
            return None
    return given


def _spelled() -> Iterator[tuple[str, tuple[Option, Any]]]:
    """Each flag, and what it means without a value, if it takes none."""
    for option in (option for option in options() if option.flag):
        if option.annotation is bool:
            yield option.flag, (option, True)
            yield f"--no-{option.flag[2:]}", (option, False)
        else:
            yield option.flag, (option, None)


def run(settings: Settings) -> int:
    """Serve until SIGTERM or Ctrl-C; the exit status."""
    from server import process

    process.prepare()
    from server.app import run as serve

    return serve(settings)


def end_with(settings: Settings) -> NoReturn:
    """Serve, and end the process as Typer would."""
    try:
        sys.exit(run(settings))
    except KeyboardInterrupt:
        sys.exit(130)
    except BrokenPipeError:
        sys.exit(1)
