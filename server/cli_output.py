"""What commands print besides their answers: tables, and errors with an exit code."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import NoReturn

import typer

FAILED = 1
MISUSED = 2


@contextmanager
def reported(code: int) -> Iterator[None]:
    """Turn what a command may meet into one line on standard error and that exit code."""
    from server.client import ClientError
    from server.errors import ServingError

    try:
        yield
    except ClientError as error:
        fail(code, str(error))
    except ServingError as error:
        fail(code, error.public_message)
    except OSError as error:
        fail(code, f"{error.filename}: {error.strerror}" if error.filename else str(error))


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [header, *rows]
    widths = [max(len(line[column]) for line in lines) for column in range(len(header))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines
    )


def fail(code: int, *problems: str) -> NoReturn:
    for problem in problems:
        typer.echo(f"error: {problem}", err=True)
    raise typer.Exit(code)
