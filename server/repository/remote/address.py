"""What `--model-repository` names: a folder of this machine, or a place that a library of fsspec's reaches."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from server.errors import InvalidRequest
from server.settings import without_secrets

_WHERE = "--model-repository"


@dataclass(frozen=True, slots=True)
class Address:
    """`root` is what the library calls the folder: `bucket/prefix`, or for HTTP its URL, without a slash behind it."""

    url: str
    """As people are told it: without a user's name or password."""
    protocol: str
    """What fsspec calls the library."""
    root: str
    options: Mapping[str, Any] = field(default_factory=dict, repr=False)
    """For the library."""
    login: tuple[str, str] | None = field(default=None, repr=False)
    """User and password of an HTTP server."""
    extra: str = ""
    """Of this package, by which the library is installed."""
    module: str = ""

    @property
    def name(self) -> str:
        return unquote(self.root.rpartition("/")[2])


@dataclass(frozen=True, slots=True)
class _Kind:
    protocol: str
    module: str
    extra: str


_S3 = _Kind("s3", "s3fs", "s3")
_GS = _Kind("gs", "gcsfs", "gs")
_AZ = _Kind("abfs", "adlfs", "az")
_HTTP = _Kind("http", "aiohttp", "http")

_KINDS = {
    "s3": _S3,
    "gs": _GS,
    "gcs": _GS,
    "az": _AZ,
    "abfs": _AZ,
    "abfss": _AZ,
    "as": _AZ,
    "http": _HTTP,
    "https": _HTTP,
}


def read_address(text: str) -> Path | Address:
    """A plain path and `file://` are a folder; the schemes of `_KINDS` a remote place.

    Raises:
        InvalidRequest: the scheme is unknown, or the URL is incomplete.
    """
    scheme, separator, rest = text.partition("://")
    if not separator:
        return Path(text)
    if scheme == "file":
        return Path(unquote(rest))
    kind = _KINDS.get(scheme)
    if kind is None:
        raise _wrong(text, f"the scheme is none of file, {', '.join(_KINDS)}")
    if "?" in rest or "#" in rest:
        raise _wrong(text, "takes no ? and no #")
    address = _READERS[kind](text, kind, rest.rstrip("/"))
    return replace(address, extra=kind.extra, module=kind.module)


def demand_library(address: Address) -> None:
    """Raises InvalidRequest if the library that reaches the address is not installed; says which extra brings it."""
    missing = [module for module in ("fsspec", address.module) if importlib.util.find_spec(module) is None]
    if missing:
        raise _wrong(address.url, f"needs {missing[0]}: pip install 'forwardpass[{address.extra}]'")


def _wrong(text: str, problem: str) -> InvalidRequest:
    return InvalidRequest(_WHERE, f"{without_secrets(text)}: {problem}")


def _http(text: str, kind: _Kind, _rest: str) -> Address:
    parts = urlsplit(text)
    if not parts.hostname:
        raise _wrong(text, "has no host")
    login = (unquote(parts.username), unquote(parts.password or "")) if parts.username else None
    root = parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl().rstrip("/")
    return Address(root, kind.protocol, root, login=login)


def _bucket(text: str, kind: _Kind, rest: str) -> Address:
    """`scheme://bucket/prefix`."""
    if not rest or rest.startswith("/") or "@" in rest.partition("/")[0]:
        raise _wrong(text, "must be SCHEME://BUCKET/PREFIX; credentials come from the environment")
    return Address(text.rstrip("/"), kind.protocol, rest)


def _s3(text: str, kind: _Kind, rest: str) -> Address:
    """`s3://bucket/prefix`, or with the address of a server that is not Amazon's in front, as Triton spells it.

    Source: Triton's model repository page, "S3": `s3://host:port/bucket/prefix` is by HTTP, `s3://https://host:port/...`
    by HTTPS.
    """
    scheme, separator, behind = rest.partition("://")
    if not separator:
        scheme, behind = "http", rest
    host, _, place = behind.partition("/")
    if not separator and ":" not in host:
        return _bucket(text, kind, rest)
    if scheme not in ("http", "https") or "@" in host:
        raise _wrong(text, "must be s3://HOST:PORT/BUCKET/PREFIX or s3://https://HOST:PORT/BUCKET/PREFIX")
    options = {"endpoint_url": f"{scheme}://{host}", "config_kwargs": {"s3": {"addressing_style": "path"}}}
    return Address(text.rstrip("/"), kind.protocol, _bucket(text, kind, place).root, options)


def _azure(text: str, kind: _Kind, rest: str) -> Address:
    """`az://container/prefix`, `abfss://container@account.dfs.core.windows.net/prefix`, `as://account/container/prefix`.

    The last one is Triton's.
    """
    if text.startswith("as://"):
        account, _, rest = rest.partition("/")
        if not account or not rest:
            raise _wrong(text, "must be as://ACCOUNT/CONTAINER/PREFIX")
        return Address(text.rstrip("/"), kind.protocol, rest, {"account_name": account.partition(".")[0]})
    container, at, rest_of = rest.partition("@")
    if not at or "/" in container:
        return _bucket(text, kind, rest)
    host, slash, prefix = rest_of.partition("/")
    options = {"account_name": host.partition(".")[0]}
    return Address(text.rstrip("/"), kind.protocol, f"{container}{slash}{prefix}", options)


_READERS = {_S3: _s3, _GS: _bucket, _AZ: _azure, _HTTP: _http}
