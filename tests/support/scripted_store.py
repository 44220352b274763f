"""A remote store in memory, with the faults that a test scripts."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path

from server.repository.remote.store import Mark


class ScriptedStore:
    """`content` by path; `faults` are raised by the next questions, one by each; `fetched` are the paths downloaded.

    `on_fetch` is called with the path before a file is written.
    """

    def __init__(self, content: dict[str, bytes] | None = None) -> None:
        self.content = dict(content or {})
        self.faults: list[BaseException] = []
        self.fetched: list[str] = []
        self.on_fetch: Callable[[str], None] = lambda _: None
        self.stopped = threading.Event()
        self.asked = 0

    def _ask(self) -> None:
        self.asked += 1
        if self.faults:
            raise self.faults.pop(0)

    def folders(self) -> list[str]:
        self._ask()
        return sorted({path.partition("/")[0] for path in self.content if "/" in path})

    def files(self, folder: str) -> dict[str, Mark]:
        self._ask()
        return {path: self._mark(path) for path in self.content if not folder or path.startswith(f"{folder}/")}

    def mark(self, path: str) -> Mark:
        self._ask()
        return self._mark(path)

    def fetch(self, path: str, to: Path) -> None:
        self.on_fetch(path)
        self._ask()
        to.write_bytes(self.content[path])
        self.fetched.append(path)

    def stop(self) -> None:
        self.stopped.set()

    def _mark(self, path: str) -> Mark:
        return Mark(len(self.content[path]), str(hash(self.content[path])))
