"""`python -m server` is the command line `forwardpass`."""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import partial

from server import process


def main() -> None:
    """The entry point. Ends the process with the exit code."""
    with process.importing():
        run = _asked(sys.argv[1:])
    run()


def _asked(arguments: list[str]) -> Callable[[], None]:
    from server.cli_serve import end_with, plainly_asked

    settings = plainly_asked(arguments)
    if settings is not None:
        return partial(end_with, settings)
    from server.cli import main as command_line

    return command_line


if __name__ == "__main__":
    main()
