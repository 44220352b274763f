"""What a command prints: each step as it ends, and an error of ours as one line."""

from __future__ import annotations

import errno
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import typer

from exporter.errors import ExporterError, RunError

INTERRUPTED = 130
_UNWRITABLE = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES})
"""What no code is to blame for: a full disk, or one that is not ours to write on."""


def report(step: str, lines: Sequence[str]) -> None:
    for index, line in enumerate(lines):
        typer.echo(f"{step if index == 0 else '':<10}{line}")


@contextmanager
def reported() -> Iterator[None]:
    """An error of ours, or a full disk, becomes one line and its exit code; Ctrl-C leaves a run that can be resumed."""
    try:
        yield
    except ExporterError as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(error.exit_code) from error
    except OSError as error:
        if error.errno not in _UNWRITABLE:
            raise
        where = f"{error.filename}: " if error.filename else ""
        told = f"error: {where}{error.strerror}; a training goes on with the same command and --resume"
        typer.echo(told, err=True)
        raise typer.Exit(RunError.exit_code) from error
    except KeyboardInterrupt:
        typer.echo("interrupted; go on with the same command and --resume", err=True)
        raise typer.Exit(INTERRUPTED) from None
