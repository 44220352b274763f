"""Remote repositories through fsspec: buckets (S3, Google Cloud Storage, Azure), and the index pages of HTTP servers.

fsspec's libraries run in one event loop, on a thread of theirs. What is asked there is waited for as long as it makes
progress; it is cancelled when it makes none, or when the server stops.
"""

from __future__ import annotations

import asyncio
import base64
import threading
import time
from collections.abc import Awaitable, Callable, Coroutine
from concurrent.futures import wait
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import unquote

from server.repository.certificate import passed_over
from server.repository.remote.address import Address
from server.repository.remote.store import Mark, Store

T = TypeVar("T")

_SLICE_S = 0.1
"""How soon a stop, or a want of progress, is noticed."""
_MOST_FILES = 100_000
_DEEPEST = 16
"""Folders in folders of an HTTP server: a page may link to itself under ever longer names."""
_AT_A_TIME = 16
"""Requests to an HTTP server that are under way for one look at it."""

_TAGS = ("ETag", "etag", "Last-Modified", "LastModified", "last_modified", "updated", "mtime")
"""What the libraries call what changes with a file's content, the surest first."""


def open_store(address: Address, timeout_s: float) -> Store:
    """Nothing is asked, and no thread started, before the first question."""
    return (HttpStore if address.protocol == "http" else BucketStore)(address, timeout_s)


class BucketStore:
    """A bucket, or a prefix in one: folders are what the slashes in keys make of them."""

    def __init__(self, address: Address, timeout_s: float) -> None:
        self._address = address
        self._root = address.root
        self._timeout_s = timeout_s
        self._opened: Any = None
        self._opening = threading.Lock()
        self._stopped = threading.Event()

    def folders(self) -> list[str]:
        found = self._run(lambda fs: fs._ls(self._root, detail=True))
        return [self._below(each["name"]).strip("/") for each in found if each["type"] == "directory"]

    def files(self, folder: str) -> dict[str, Mark]:
        found = self._run(lambda fs: fs._find(self._path(folder), detail=True))
        named = ((self._below(path), each) for path, each in found.items() if each["type"] == "file")
        return {path: mark_of(each) for path, each in named if path and not path.endswith("/")}

    def mark(self, path: str) -> Mark:
        return mark_of(self._run(lambda fs: fs._info(self._path(path))))

    def fetch(self, path: str, to: Path) -> None:
        self._run(lambda fs: fs._get_file(self._path(path), str(to)), lambda: _written(to))

    def stop(self) -> None:
        self._stopped.set()

    def _path(self, relative: str) -> str:
        return f"{self._root}/{relative}" if relative else self._root

    def _below(self, path: str) -> str:
        """Relative to the root; empty where it is not below it."""
        start = f"{self._root}/"
        return path[len(start) :] if path.startswith(start) else ""

    def _options(self) -> dict[str, Any]:
        options = dict(self._address.options)
        if self._address.protocol == "s3":
            # Who asks again, and how often, is settled elsewhere: tries of tries would be many.
            given = options.get("config_kwargs", {})
            limits = {"connect_timeout": self._timeout_s, "read_timeout": self._timeout_s}
            options["config_kwargs"] = {**given, **limits, "retries": {"max_attempts": 1}}
        return options

    def _fs(self) -> Any:
        with self._opening:
            if self._opened is None:
                import fsspec

                self._opened = fsspec.filesystem(
                    self._address.protocol, skip_instance_cache=True, use_listings_cache=False, **self._options()
                )
                self._opened.retries = 1  # s3fs's own tries; the others have no such attribute
            return self._opened

    def _run(self, work: Callable[[Any], Coroutine[Any, Any, T]], progress: Callable[[], object] = lambda: None) -> T:
        """The result of `work` in fsspec's loop. Raises TimeoutError once `progress` tells the same for too long."""
        fs = self._fs()
        future = asyncio.run_coroutine_threadsafe(work(fs), fs.loop)
        before, since_s = progress(), time.monotonic()
        while not wait((future,), _SLICE_S).done:
            now = progress()
            if now != before:
                before, since_s = now, time.monotonic()
            elif self._stopped.is_set() or time.monotonic() - since_s > self._timeout_s:
                future.cancel()
                stops = self._stopped.is_set()
                raise TimeoutError("the server stops" if stops else f"nothing for {self._timeout_s:g} s")
        return future.result()


class HttpStore(BucketStore):
    """A folder of an HTTP server that answers it with a page of links, as nginx's autoindex does.

    Files have the size, and the ETag or else the time, that HEAD tells of them.
    """

    def folders(self) -> list[str]:
        links = self._run(lambda fs: self._links(fs, self._root))
        return [unquote(link[:-1]) for link in links if link.endswith("/")]

    def files(self, folder: str) -> dict[str, Mark]:
        asked = [0]
        return self._run(lambda fs: self._walk(fs, folder, asked), lambda: asked[0])

    def _path(self, relative: str) -> str:
        from yarl import URL

        return str(URL(self._root, encoded=True) / relative) if relative else self._root

    def _options(self) -> dict[str, Any]:
        from aiohttp import ClientTimeout

        timeout = ClientTimeout(total=None, sock_connect=self._timeout_s, sock_read=self._timeout_s)
        login = base64.b64encode(":".join(self._address.login).encode()).decode() if self._address.login else ""
        headers = {"Authorization": f"Basic {login}"} if login else {}
        return {"encoded": True, "simple_links": False, "client_kwargs": {"timeout": timeout, "headers": headers}}

    async def _links(self, fs: Any, url: str) -> list[str]:
        """Where a page leads to directly below itself, as it is spelled there."""
        start = f"{url}/"
        found = await fs._ls(start, detail=False)
        links = {link.removeprefix(start) for link in found if link.startswith(start)}
        return sorted(link for link in links if _is_direct(link))

    async def _walk(self, fs: Any, folder: str, asked: list[int]) -> dict[str, Mark]:
        top = self._path(folder)
        marks: dict[str, Mark] = {}
        pages = {top: await self._links(fs, top)}
        for _ in range(_DEEPEST):
            found = [f"{url}/{link}" for url, links in pages.items() for link in links]
            infos = await _all([url for url in found if not url.endswith("/")], fs._info, asked)
            marks.update({unquote(self._below(url)): mark_of(info) for url, info in infos.items()})
            level = [url[:-1] for url in found if url.endswith("/")]
            pages = await _all(level, lambda url: self._links(fs, url), asked)
            if not level:
                return marks
            if len(marks) > _MOST_FILES:
                break
        raise OSError(f"more than {_DEEPEST} folders in each other, or {_MOST_FILES} files")


async def _all(given: list[str], ask: Callable[[str], Awaitable[T]], asked: list[int]) -> dict[str, T]:
    """What `ask` answers for each, a bounded number at a time; counted in `asked`.

    Left out is what is not there: a link that leads nowhere, or what was removed since its page was read.
    """
    places = asyncio.Semaphore(_AT_A_TIME)
    answers: dict[str, T] = {}

    async def one(each: str) -> None:
        async with places:
            with suppress(FileNotFoundError):
                answers[each] = await ask(each)
        asked[0] += 1

    try:
        async with asyncio.TaskGroup() as group:
            for each in given:
                group.create_task(one(each))
    except BaseExceptionGroup as several:
        raise several.exceptions[0] from None
    return answers


def _is_direct(link: str) -> bool:
    """One step down: no page of another order (`?C=N`), and nothing that is no part of a model anyway."""
    name = link.removesuffix("/")
    return bool(name) and not any(c in name for c in "/?#") and not passed_over(unquote(name))


def mark_of(info: dict[str, Any]) -> Mark:
    """Of what a library tells of a file. Raises OSError: too little."""
    size = info.get("size")
    if size is None:
        raise OSError(f"no size is told of {info.get('name', 'a file')}")
    return Mark(int(size), next((str(info[tag]) for tag in _TAGS if info.get(tag)), ""))


def _written(path: Path) -> object:
    """What grows while a file is written, in parts of any order too."""
    try:
        stat = path.stat()
    except FileNotFoundError:
        return None
    return stat.st_size, stat.st_blocks
