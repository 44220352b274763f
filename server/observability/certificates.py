"""Until when the certificates of the listeners are valid, read of their files at each scrape if they have changed."""

from __future__ import annotations

import re
import ssl
from collections.abc import Iterator, Mapping
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from prometheus_client.core import Metric
from prometheus_client.registry import Collector

from server.observability.catalog import Family
from server.security.watched import Watched

if TYPE_CHECKING:
    from server.settings import Settings

_PEM = re.compile(r"-----BEGIN CERTIFICATE-----.+?-----END CERTIFICATE-----", re.DOTALL)
_VERSION, _UTC_TIME = 0xA0, 0x17


class Certificates(Collector):
    """No samples where no listener speaks TLS."""

    def __init__(self, files: Mapping[str, str]) -> None:
        """By listener; empty: it has none."""
        self._files = {listener: Path(file) for listener, file in files.items() if file}
        self._read: dict[str, Watched[float]] = {}

    def collect(self) -> Iterator[Metric]:
        family = Family("forwardpass_tls_certificate_not_after_timestamp_seconds")
        for listener, file in self._files.items():
            # The listener's log says what can't be read, and the one before stays in use.
            with suppress(OSError, ValueError, IndexError):
                self._refresh(listener, file)
            if listener in self._read:
                family.add((listener,), self._read[listener].value)
        yield family.metric

    def _refresh(self, listener: str, file: Path) -> None:
        if listener in self._read:
            self._read[listener].refresh()
        else:
            self._read[listener] = Watched(lambda: (file,), lambda: first_to_expire(file.read_text()))


def certificates(settings: Settings) -> Certificates:
    """Of the listeners that the settings have."""
    return Certificates({"grpc": settings.tls.certificate, "http": settings.http_tls.certificate})


def first_to_expire(pem: str) -> float:
    """Of a certificate and its chain: when the first of them is not valid any more, in seconds since 1970.

    Raises:
        ValueError, IndexError: there is no certificate.
    """
    return min(_not_after(ssl.PEM_cert_to_DER_cert(each)) for each in _PEM.findall(pem))


def _not_after(der: bytes) -> float:
    """Source: RFC 5280, 4.1: Certificate, TBSCertificate, Validity."""
    _, to_be_signed, _ = _element(der, 0)
    _, at, _ = _element(der, to_be_signed)
    if der[at] == _VERSION:
        at = _element(der, at)[2]
    for _name in ("serialNumber", "signature", "issuer"):
        at = _element(der, at)[2]
    _, not_before, _ = _element(der, at)
    tag, begin, end = _element(der, _element(der, not_before)[2])
    form = "%y%m%d%H%M%SZ" if tag == _UTC_TIME else "%Y%m%d%H%M%SZ"
    return datetime.strptime(der[begin:end].decode("ascii"), form).replace(tzinfo=UTC).timestamp()


def _element(der: bytes, at: int) -> tuple[int, int, int]:
    """The tag of the element at that place, where what is in it begins, and where it ends."""
    tag, length, begin = der[at], der[at + 1], at + 2
    if length & 0x80:
        begin += length & 0x7F
        length = int.from_bytes(der[at + 2 : begin])
    return tag, begin, begin + length
