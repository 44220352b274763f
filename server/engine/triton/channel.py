"""Connections to one Triton: grpcio's, for streams and with TLS, with its limits and pings; and our own."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpc

from server.engine.triton.addresses import Endpoint
from server.engine.triton.link import Link
from server.engine.triton.methods import STREAM_INFER, Unary
from server.security.watched import Watched
from server.settings import TritonSettings

_LONGEST_CALL_S = 3600.0
"""How long a stream may go on by a channel that was left."""
_FIRST_RECONNECT_MS = 100
_LONGEST_RECONNECT_MS = 1000
"""It is the probes that have the back-off; the channel's own must not outlast it."""


def credentials(settings: TritonSettings) -> grpc.ChannelCredentials:
    """What TLS is spoken with.

    Raises:
        OSError: a file can't be read, or is not what it should be; says which.
    """
    _check(settings)
    ca, key, certificate = (
        Path(path).read_bytes() if path else None
        for path in (settings.tls_ca, settings.tls_key, settings.tls_certificate)
    )
    return grpc.ssl_channel_credentials(ca, key, certificate)


def _check(settings: TritonSettings) -> None:
    """gRPC itself says nothing of what is wrong before a handshake fails."""
    context, ca, certificate = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT), settings.tls_ca, settings.tls_certificate
    if ca:
        try:
            context.load_verify_locations(ca)
        except ssl.SSLError as error:
            raise OSError(error.errno, f"has no certificates ({error.reason or error})", ca) from error
    if certificate:
        try:
            # A password would be asked for at the terminal.
            context.load_cert_chain(certificate, settings.tls_key or None, password="")
        except ssl.SSLError as error:
            raise OSError(error.errno, f"does not go with its key ({error.reason or error})", certificate) from error


class Channels:
    """Opens them, all by the same settings."""

    def __init__(self, settings: TritonSettings, max_message_bytes: int, *, tls: bool) -> None:
        """`tls`: some speak it. Raises OSError as `credentials`."""
        self._settings = settings
        self._max_message_bytes = max_message_bytes
        self._credentials = Watched(self._files, lambda: credentials(settings)) if tls else None

    def _files(self) -> list[Path]:
        settings = self._settings
        return [Path(path) for path in (settings.tls_ca, settings.tls_key, settings.tls_certificate) if path]

    def refresh(self) -> bool:
        """Whether the files of TLS were changed: what is opened from now on has what is in them now. Blocking. Raises
        OSError as `credentials`, once for each change; what was read before stays then."""
        return self._credentials is not None and self._credentials.refresh()

    def __call__(self, endpoint: Endpoint) -> grpc.aio.Channel:
        """Not connected yet; the first call does that."""
        options = self._options(endpoint)
        if endpoint.target.tls and self._credentials is not None:
            return grpc.aio.secure_channel(endpoint.uri, self._credentials.value, options)
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


class Line:
    """The way to one Triton by grpcio: its channel, which may be left for a new one, and the methods on it."""

    def __init__(self, channels: Channels, endpoint: Endpoint) -> None:
        """Not connected yet."""
        self._channels = channels
        self._endpoint = endpoint
        self._channel = channels(endpoint)
        self._methods: dict[str, Any] = {}
        self._left: dict[asyncio.Task[None], grpc.aio.Channel] = {}
        """Older channels, on which something is still answered."""

    def unary(self, method: Unary) -> Any:
        """That method, as grpcio has it."""
        return self._methods.get(method.name) or self._add(method.name, self._channel.unary_unary, method)

    def stream(self, **how: Any) -> Any:
        """A call of ModelStreamInfer."""
        name = STREAM_INFER.name
        call = self._methods.get(name) or self._add(name, self._channel.stream_stream, STREAM_INFER)
        return call(**how)

    def _add(self, name: str, make: Callable[..., Any], method: Unary) -> Any:
        serializer, deserializer = method.request.SerializeToString, method.response.FromString
        call = make(method.path, request_serializer=serializer, response_deserializer=deserializer)
        self._methods[name] = call
        return call

    def renew(self) -> None:
        """Calls from now on go by a new channel; those under way by the old one are let finish."""
        task = asyncio.get_running_loop().create_task(self._channel.close(_LONGEST_CALL_S))
        self._left[task] = self._channel
        task.add_done_callback(self._left.pop)
        self._channel = self._channels(self._endpoint)
        self._methods.clear()

    async def close(self) -> None:
        """What is under way is lost."""
        for channel in (*self._left.values(), self._channel):
            await channel.close(None)
        if self._left:
            await asyncio.wait(set(self._left))


def _ms(seconds: float) -> int:
    return max(1, int(seconds * 1000))
