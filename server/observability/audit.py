"""The audit log: who changed what of the running server, and how it went. One line for each action, at level info.

Who acts is known where a caller is told by its key, and used deep below: it goes by a context variable.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

NAME = "server.audit"
logger = logging.getLogger(NAME)
logger.setLevel(logging.INFO)  # Whatever a client says of the severities that are written.

_actor: ContextVar[str] = ContextVar("actor", default="anyone")
_LONGEST = 200


@contextmanager
def acting(name: str) -> Iterator[None]:
    """What is done meanwhile is done by `name`."""
    token = _actor.set(name)
    try:
        yield
    finally:
        _actor.reset(token)


@contextmanager
def audited(action: str, **what: object) -> Iterator[None]:
    """Write down an action with its outcome: done, or the error that it ended with."""
    try:
        yield
    except BaseException as error:
        _write(action, what, f"refused: {getattr(error, 'code', type(error).__name__)}: {error}")
        raise
    _write(action, what, "done")


def _write(action: str, what: dict[str, object], outcome: str) -> None:
    details = " ".join(f"{name}={_quoted(value)}" for name, value in what.items())
    logger.info("audit: actor=%s action=%s %s outcome=%s", _quoted(_actor.get()), action, details, _quoted(outcome))


def _quoted(value: object) -> str:
    """One field of the line, whatever a client has put into it."""
    text = str(value)
    return ascii(text if len(text) <= _LONGEST else text[:_LONGEST] + "...")
