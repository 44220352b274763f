"""What a remote repository must be able to do, and the patience with which it is asked."""

from __future__ import annotations

import logging
import random
import threading
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple, Protocol, TypeVar

from server.settings import RemoteSettings, without_secrets

log = logging.getLogger(__name__)

T = TypeVar("T")

_LONGEST_BACKOFF_S = 30.0
_CLIENT_ERRORS = range(400, 500)
_WORTH_A_RETRY = (408, 429)


class Mark(NamedTuple):
    """What tells one content of a file from another, as the store has it: its size and its ETag, else its time."""

    size: int
    tag: str


class Unreachable(OSError):
    """A remote repository can't be asked now; it may be there at a later time.

    `problem` is for clients too, `detail` for the log alone: what libraries say has addresses in it.
    """

    def __init__(self, problem: str, detail: str = "") -> None:
        super().__init__(problem)
        self.problem = problem
        self.detail = detail or problem


class Store(Protocol):
    """A remote folder. Paths are relative to it, with slashes, as the store has them: nobody has checked them.

    All methods block, and may be called from any thread. They raise what their library raises.
    """

    def folders(self) -> list[str]:
        """The names of the folders in it."""

    def files(self, folder: str) -> dict[str, Mark]:
        """All files below one of its folders, or with "" all that there are."""

    def mark(self, path: str) -> Mark:
        """Of one file."""

    def fetch(self, path: str, to: Path) -> None:
        """Write the content of a file to `to`."""

    def stop(self) -> None:
        """Give up on what is under way, soon, and on what is asked from now on."""


class Patience:
    """Asks again, a bounded number of times, what may go well the next time."""

    def __init__(self, settings: RemoteSettings) -> None:
        self._settings = settings
        self._stopped = threading.Event()

    def stop(self) -> None:
        self._stopped.set()

    def ask(self, what: str, question: Callable[[], T]) -> T:
        """The answer of `question`. `what`: how the log calls it.

        Raises:
            Unreachable: there is none, or there was none in time.
        """
        for tried in range(1, self._settings.tries + 1):
            try:
                return question()
            except Exception as error:  # each library has a tree of its own
                final = _is_final(error) or tried == self._settings.tries or self._stopped.is_set()
                if final:
                    raise Unreachable(_problem(error), f"{what}: {_detail(error)}") from error
                log.debug("%s: try %d of %d: %s", what, tried, self._settings.tries, _detail(error))
            self._stopped.wait(self._backoff_s(tried))
        raise AssertionError("the last try returns or raises")

    def _backoff_s(self, tried: int) -> float:
        """Doubled each time, and spread by half: those who failed together do not come back together."""
        longest = min(self._settings.backoff_s * 2.0 ** (tried - 1), _LONGEST_BACKOFF_S)
        return longest * random.uniform(0.5, 1.0)


def _status(error: BaseException) -> int:
    """Of an HTTP answer, as aiohttp, Google's and Azure's libraries tell it; 0: none."""
    for name in ("status", "code", "status_code"):
        value = getattr(error, name, None)
        if isinstance(value, int | str) and str(value).isdecimal():
            return int(value)
    return 0


def _is_final(error: BaseException) -> bool:
    """Whether it would be the same the next time."""
    if isinstance(error, FileNotFoundError | PermissionError | NotADirectoryError):
        return True
    status = _status(error)
    return status in _CLIENT_ERRORS and status not in _WORTH_A_RETRY


def _problem(error: BaseException) -> str:
    """In words for whoever asked."""
    status = _status(error)
    if isinstance(error, FileNotFoundError) or status == 404:
        return "it is not there"
    if isinstance(error, PermissionError) or status in (401, 403):
        return "access is denied"
    if isinstance(error, TimeoutError):
        return "it does not answer in time"
    if status:
        return f"it answers with HTTP status {status}"
    return f"it can't be reached ({type(error).__name__})"


def _detail(error: BaseException) -> str:
    return f"{type(error).__name__}: {' '.join(without_secrets(str(error)).split())[:300]}"
