"""Connections to one Triton: grpcio's, for streams and with TLS, with its limits and pings; and our own."""

from __future__ import annotations

from pathlib import Path

import grpc

from server.engine.triton.addresses import Endpoint
from server.engine.triton.link import Link
from server.settings import TritonSettings

_FIRST_RECONNECT_MS = 100
_LONGEST_RECONNECT_MS = 1000
"""It is the probes that have the back-off; the channel's own must not outlast it."""


def credentials(settings: TritonSettings) -> grpc.ChannelCredentials:
    """What TLS is spoken with.

    Raises:
        OSError: a file can't be read.
    """
    ca, key, certificate = (
        Path(path).read_bytes() if path else None
        for path in (settings.tls_ca, settings.tls_key, settings.tls_certificate)
    )
    return grpc.ssl_channel_credentials(ca, key, certificate)


class Channels:
    """Opens them, all by the same settings."""

    def __init__(self, settings: TritonSettings, max_message_bytes: int, *, tls: bool) -> None:
        """`tls`: some speak it. Raises OSError as `credentials`."""
        self._settings = settings
        self._max_message_bytes = max_message_bytes
        self._credentials = credentials(settings) if tls else None

    def __call__(self, endpoint: Endpoint) -> grpc.aio.Channel:
        """Not connected yet; the first call does that."""
        options = self._options(endpoint)
        if endpoint.target.tls and self._credentials is not None:
            return grpc.aio.secure_channel(endpoint.uri, self._credentials, options)
        return grpc.aio.insecure_channel(endpoint.uri, options)

    def link(self, endpoint: Endpoint) -> Link | None:
        """A connection of our own, for unary calls; None where TLS is spoken, which is grpcio's."""
        return None if endpoint.target.tls else Link(endpoint, self._settings, self._max_message_bytes)

    def _options(self, endpoint: Endpoint) -> list[tuple[str, str | int]]:
        settings = self._settings
        return [
            # A name's addresses are channels of their own, and certificates are for the name.
            ("grpc.default_authority", settings.tls_server_name or endpoint.authority),
            ("grpc.use_local_subchannel_pool", 1),
            ("grpc.keepalive_time_ms", _ms(settings.keepalive_s)),
            ("grpc.keepalive_timeout_ms", _ms(settings.keepalive_timeout_s)),
            # It is this one, a minute by default, that ends a connection on which answers are awaited.
            ("grpc.http2.ping_timeout_ms", _ms(settings.keepalive_timeout_s)),
            # Where all but streams go by the link, there are no probes that would be data between the pings.
            ("grpc.keepalive_permit_without_calls", int(endpoint.target.tls)),
            # Servers count pings without data as an offence; the probes are the data between them.
            ("grpc.http2.max_pings_without_data", 0),
            ("grpc.min_reconnect_backoff_ms", _ms(settings.connect_timeout_s)),
            ("grpc.initial_reconnect_backoff_ms", _FIRST_RECONNECT_MS),
            ("grpc.max_reconnect_backoff_ms", _LONGEST_RECONNECT_MS),
            ("grpc.max_receive_message_length", self._max_message_bytes),
            ("grpc.max_send_message_length", self._max_message_bytes),
        ]


def _ms(seconds: float) -> int:
    return max(1, int(seconds * 1000))
