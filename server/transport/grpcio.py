"""The reference gRPC transport, on grpc.aio."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, cast

import grpc
import grpc.aio
from google.protobuf.message import Message

from server.explain import ANSWER_KEY, REQUEST_KEY, Explanation, asked_by
from server.security.gate import HEADERS
from server.security.watched import Watched
from server.settings import GrpcSettings, TlsSettings
from server.transport.forwarding import forwarded
from server.transport.listen import ListenFailed, format_address, listen, tls_context
from server.transport.methods import METHODS, TENANT_KEY, CallInfo, Method
from server.transport.status import STATUS_DETAILS_KEY, failure_of, status_details

if TYPE_CHECKING:
    from server.dataplane import DataPlane

log = logging.getLogger(__name__)

_MIN_PING_INTERVAL_MS = 10_000
_QUIET_S = 0.1

_ServicerContext = grpc.aio.ServicerContext[Any, Any]


class GrpcioServer:
    """One listener. A started server is stopped once, and not started again."""

    def __init__(
        self, dataplane: DataPlane, host: str, settings: GrpcSettings, tls: TlsSettings, more: Sequence[Method] = ()
    ) -> None:
        """`more`: methods beside those of the table."""
        self._host = host
        self._port = settings.port
        self._tls = tls
        options = [
            ("grpc.so_reuseport", 0),
            ("grpc.max_receive_message_length", settings.max_message_bytes),
            ("grpc.max_send_message_length", settings.max_message_bytes),
            ("grpc.max_concurrent_streams", settings.max_concurrent_streams),
            ("grpc.max_metadata_size", settings.max_header_list_bytes),
            ("grpc.absolute_max_metadata_size", settings.max_header_list_bytes),
            # Clients may ping idle connections to keep them through proxies; grpc's own minimum is 5 minutes.
            ("grpc.keepalive_permit_without_calls", 1),
            ("grpc.http2.min_ping_interval_without_data_ms", _MIN_PING_INTERVAL_MS),
        ]
        if settings.max_connection_age_s:
            options.append(("grpc.max_connection_age_ms", int(settings.max_connection_age_s * 1000)))
            options.append(("grpc.max_connection_age_grace_ms", int(settings.max_connection_age_grace_s * 1000)))
        self._handlers = _Handlers(dataplane, (*METHODS, *more))
        self._server = grpc.aio.server(handlers=[self._handlers], options=options)

    async def start(self) -> int:
        """Listen, and return the port. Raises ListenFailed, also where the certificate can't be used."""
        tls_context(self._tls, "h2")  # grpc would only log what is wrong with it.
        if self._port:
            # grpc says only that it failed; the system's own reason is had by binding first.
            listen(self._host, self._port).close()
        address = format_address(self._host, self._port)
        try:
            port = self._add_port(address)
        except RuntimeError as error:
            raise ListenFailed(address, str(error)) from error
        await self._server.start()
        return port

    def _add_port(self, address: str) -> int:
        tls = self._tls
        if not tls.certificate:
            return self._server.add_insecure_port(address)
        files = Watched(lambda: [Path(file) for file in tls.files if file], lambda: _certificates(tls))

        def changed() -> Any:
            """Asked by grpc for each connection, on a thread of its own; None: as before."""
            try:
                return files.value if files.refresh() else None
            except (OSError, ListenFailed) as error:
                log.error("TLS: what was read before stays: %s", error)
                return None

        demanded = bool(tls.client_ca)
        return self._server.add_secure_port(
            address, grpc.dynamic_ssl_server_credentials(files.value, changed, demanded)
        )

    async def stop(self, grace_s: float) -> None:
        """Refuse new calls, answer those in flight; what is still there after `grace_s` is cancelled.

        grpc cancels calls that its core has received and not yet handed over, so it is stopped in a moment in
        which none arrive; connections that never pause are stopped all the same, after half of the grace.
        """
        until = time.monotonic() + grace_s / 2
        seen = -1
        while seen != self._handlers.begun and time.monotonic() < until:
            seen = self._handlers.begun
            await asyncio.sleep(_QUIET_S)
        await self._server.stop(max(0.0, until + grace_s / 2 - time.monotonic()))


def _certificates(tls: TlsSettings) -> grpc.ServerCertificateConfiguration:
    """Raises ListenFailed."""
    tls_context(tls, "h2")  # grpc would only log what is wrong with it.
    pair = (Path(tls.key).read_bytes(), Path(tls.certificate).read_bytes())
    return grpc.ssl_server_certificate_configuration(
        [pair], root_certificates=Path(tls.client_ca).read_bytes() if tls.client_ca else None
    )


class _Handlers(grpc.GenericRpcHandler):  # type: ignore[type-arg]  # the stub is generic, the class is not
    def __init__(self, dataplane: DataPlane, methods: Sequence[Method]) -> None:
        self.begun = 0
        """Calls that grpc has handed over."""
        self._handlers = {
            method.name: _handler(method, dataplane, asking=dataplane.gate is not None) for method in methods
        }
        self._asking = {method.name: _handler(method, dataplane, asking=True) for method in methods if method.explains}
        self._asks = {REQUEST_KEY, TENANT_KEY, *dataplane.forwards}

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> Any:
        """The handler of a call, or None, which grpc answers with UNIMPLEMENTED."""
        self.begun += 1
        # The metadata is at hand here; to ask the context for it would build it anew for every call.
        method = handler_call_details.method
        if method in self._asking:
            for key, _ in handler_call_details.invocation_metadata:
                if key in self._asks:
                    return self._asking[method]
        return self._handlers.get(method)


def _handler(method: Method, dataplane: DataPlane, *, asking: bool = False) -> Any:
    if method.streams:
        return grpc.stream_stream_rpc_method_handler(_streams_behaviour(method, dataplane))
    return grpc.unary_unary_rpc_method_handler(_behaviour(method, dataplane, asking=asking))


def _behaviour(
    method: Method, dataplane: DataPlane, *, asking: bool = False
) -> Callable[[bytes, _ServicerContext], Awaitable[bytes]]:
    """The coroutine that grpc runs for each call of `method`, or for each whose metadata is `asking` for more.

    It takes and gives bytes: a message that can't be parsed inside of grpc would be answered as UNKNOWN.
    """

    async def behaviour(data: bytes, context: _ServicerContext) -> bytes:
        try:
            info = CallInfo.arriving(context.time_remaining())
            if asking:
                info.tenant = _metadata(context, TENANT_KEY)
                info.metadata = forwarded(dataplane.forwards, partial(_metadata, context))
                if method.explains and asked_by(_metadata(context, REQUEST_KEY)):
                    info.explanation = Explanation(info.received_ns)
            encoded = await method.respond(_plane(dataplane, method, context, info), data, info)
            if info.explanation is not None and (timing := info.explanation.finish()):
                context.set_trailing_metadata(((ANSWER_KEY, timing),))
            return encoded
        except Exception as error:  # noqa: BLE001 - the boundary where every error becomes a status
            return await _refuse(context, error)

    return behaviour


def _streams_behaviour(
    method: Method, dataplane: DataPlane
) -> Callable[[AsyncIterator[bytes], _ServicerContext], AsyncIterator[bytes]]:
    async def parsed(messages: AsyncIterator[bytes]) -> AsyncIterator[Message]:
        async for data in messages:
            yield method.parse(data)

    async def behaviour(messages: AsyncIterator[bytes], context: _ServicerContext) -> AsyncIterator[bytes]:
        try:
            info = CallInfo.arriving(context.time_remaining())
            info.tenant = _metadata(context, TENANT_KEY)
            info.metadata = forwarded(dataplane.forwards, partial(_metadata, context))
            plane = _plane(dataplane, method, context, info)
            async for encoded in method.respond_streams(plane, parsed(messages), info):
                yield encoded
        except Exception as error:  # noqa: BLE001 - the boundary where every error becomes a status
            await _refuse(context, error)

    return behaviour


def _plane(dataplane: DataPlane, method: Method, context: _ServicerContext, info: CallInfo) -> DataPlane:
    """The data plane as the caller may use it. Raises Unauthenticated, PermissionDenied."""
    gate = dataplane.gate
    if gate is None:
        return dataplane
    shown = {name: _metadata(context, name.decode()).encode("latin-1", "replace") for name in HEADERS}
    entry = gate.entry(shown, info.tenant, method.needs)
    return dataplane if entry is None else cast("DataPlane", entry.plane(dataplane, info.received_ns))


def _metadata(context: _ServicerContext, key: str) -> str:
    """The last value of the key, as in our own transport."""
    return str(dict(context.invocation_metadata() or ()).get(key, ""))


async def _refuse(context: _ServicerContext, error: Exception) -> NoReturn:
    failure = failure_of(error)
    details = status_details(failure)
    code = grpc.StatusCode[failure.grpc.name]
    await context.abort(code, failure.message, ((STATUS_DETAILS_KEY, details),) if details else ())
