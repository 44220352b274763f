"""Traces to files, as Triton writes them: JSON arrays, one whole file for each `log_frequency` traces, or one in all.

With a log frequency of 0 traces are kept in memory by Triton until it ends. Here they are appended as they come, and
the array is closed at the end: a file is complete once the server has stopped.
"""

from __future__ import annotations

import logging
from pathlib import Path

from server.offload import Offload

log = logging.getLogger(__name__)

_AT_ONCE = 100
"""Traces that are appended together."""
_MOST_WAITING = 10_000
"""Traces that may wait for a slow disk; more are dropped, and their number is logged."""


class TraceFile:
    """The files with `path` as their name, or as its beginning. All methods are called on the event loop."""

    def __init__(self, path: str) -> None:
        self.path = path
        self._writer = Offload(1, "trace")
        self._index = 0
        self._appended: list[str] = []
        self._begun = False
        self._waiting = 0
        self._dropped = 0

    def append(self, trace: str) -> None:
        """To the one file of a log frequency of 0."""
        self._appended.append(trace)
        if len(self._appended) >= _AT_ONCE:
            self.flush()

    def flush(self) -> None:
        """Let what was appended be written."""
        traces, self._appended = self._appended, []
        if traces:
            start = ",\n" if self._begun else "["
            self._write(self.path, start + ",\n".join(traces), len(traces), "a" if self._begun else "w")
            self._begun = True

    def write(self, traces: list[str]) -> None:
        """A file of their own, the next by number."""
        if traces:
            self._write(f"{self.path}.{self._index}", "[" + ",\n".join(traces) + "]", len(traces), "w")
            self._index += 1

    def _write(self, path: str, text: str, count: int, mode: str) -> None:
        if self._waiting + count > _MOST_WAITING:
            self._dropped += count
            log.warning("the disk is slow: %d traces were dropped so far", self._dropped)
            return
        self._waiting += count

        def written(_: object) -> None:
            self._waiting -= count

        self._writer.run(lambda _: _to_disk(path, text, mode), None).add_done_callback(written)

    async def close(self) -> None:
        """Write what is left, and end the array."""
        self.flush()
        if self._begun:
            await self._writer.run(lambda _: _to_disk(self.path, "]", "a"), None)
        else:
            await self._writer.run(lambda _: None, None)
        self._writer.close()


def _to_disk(path: str, text: str, mode: str) -> None:
    try:
        with Path(path).open(mode) as file:
            file.write(text)
    except OSError as error:
        log.error("traces can't be written: %s", error)
