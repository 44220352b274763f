"""What a command prints: each step as it ends, and an error of ours as one line."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import typer

from exporter.errors import ExporterError

INTERRUPTED = 130


def report(step: str, lines: Sequence[str]) -> None:
    for index, line in enumerate(lines):
        typer.echo(f"{step if index == 0 else '':<10}{line}")


@contextmanager
def reported() -> Iterator[None]:
    """An error of ours becomes one line and its exit code; Ctrl-C leaves a run that can be resumed."""
    try:
        yield
    except ExporterError as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(error.exit_code) from error
    except KeyboardInterrupt:
        typer.echo("interrupted; go on with the same command and --resume", err=True)
        raise typer.Exit(INTERRUPTED) from None
