"""From what `--model-repository` names to sources of models."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from server.errors import InvalidRequest
from server.repository.remote.address import demand_library, read_address
from server.repository.remote.cache import Cache
from server.repository.remote.fsspec_store import open_store
from server.repository.remote.source import RemoteSource
from server.repository.sources import LocalSource, Source
from server.settings import RemoteSettings


def open_sources(places: Sequence[str], settings: RemoteSettings) -> list[Source]:
    """A source for each place. Nothing is asked of any yet.

    Raises:
        InvalidRequest: a place is none, or what it needs is not installed, or there is no place for the cache.
    """
    cache: Cache | None = None
    sources: list[Source] = []
    for place in places:
        address = read_address(place)
        if isinstance(address, Path):
            sources.append(LocalSource(address))
            continue
        demand_library(address)
        cache = cache or Cache(_folder(settings), settings.cache_max_bytes)
        store = open_store(address, settings.timeout_s)
        sources.append(RemoteSource(address.name, address.url, store, cache, settings))
    return sources


def _folder(settings: RemoteSettings) -> Path:
    if settings.cache_folder:
        return Path(settings.cache_folder)
    try:
        # Source: the XDG Base Directory Specification.
        return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "forwardpass"
    except RuntimeError as error:
        raise InvalidRequest("--repository-cache-folder", "must be given: this user has no home") from error
