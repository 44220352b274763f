"""The REST transport: a bare ASGI app over the table of routes."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from server.errors import Draining
from server.transport.asgi import AsgiServer, Receive, Scope, Send
from server.transport.exchange import Exchange, Headers, Reply, json_reply
from server.transport.routes import MethodNotAllowed, Router
from server.transport.status import failure_of

if TYPE_CHECKING:
    from server.dataplane import DataPlane

_WATCH_AFTER_S = 0.005
"""Seconds after which a call is watched for its client's leaving. Most are answered before: a watch costs a
task, and a cancellation spares nothing by then."""


class RestApp:
    """The ASGI app. It answers every call itself: no exception reaches the listener."""

    def __init__(self, dataplane: DataPlane, *, max_body_bytes: int) -> None:
        self._dataplane = dataplane
        self._max_body_bytes = max_body_bytes
        self._router = Router()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        watch = _DisconnectWatch(receive)
        try:
            reply = await self._reply(scope, receive, watch)
        except asyncio.CancelledError:
            # By the listener at the end of its grace, or by the watch, and then nobody gets this.
            reply = _error_reply(Draining())
        except Exception as error:  # noqa: BLE001 - the boundary where every error becomes a status
            reply = _error_reply(error)
        finally:
            watch.close()
        if not watch.disconnected:
            await _send(_closing(reply, scope), send)

    async def _reply(self, scope: Scope, receive: Receive, watch: _DisconnectWatch) -> Reply:
        raw_path = scope.get("raw_path") or quote(scope["path"]).encode()
        try:
            handler, names = self._router.find(scope["method"], raw_path)
        except MethodNotAllowed as error:
            allow = (b"allow", error.allow.encode())
            return _with_headers(json_reply({"error": "method: not allowed for this path"}, 405), allow)
        exchange = Exchange(self._dataplane, scope, receive, names, self._max_body_bytes, watch.start)
        return await handler(exchange)


class _DisconnectWatch:
    """Cancels the task of a call when its client goes away while it waits for the data plane."""

    __slots__ = ("_call", "_receive", "_timer", "_watcher", "disconnected")

    def __init__(self, receive: Receive) -> None:
        self._receive = receive
        self._call: asyncio.Task[Any] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._watcher: asyncio.Task[None] | None = None
        self.disconnected = False

    def start(self) -> None:
        """To be called once the body is complete: `receive` can only tell of the end from then on."""
        self._call = asyncio.current_task()
        self._timer = asyncio.get_running_loop().call_later(_WATCH_AFTER_S, self._watch)

    def close(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        if self._watcher is not None:
            self._watcher.cancel()

    def _watch(self) -> None:
        self._watcher = asyncio.get_running_loop().create_task(self._until_disconnected())

    async def _until_disconnected(self) -> None:
        while (await self._receive())["type"] != "http.disconnect":
            pass
        self.disconnected = True
        if self._call is not None:
            self._call.cancel()


class RestServer:
    """The REST listener. A started server is stopped once, and not started again."""

    def __init__(self, dataplane: DataPlane, host: str, port: int, *, max_body_bytes: int, keep_alive_s: int) -> None:
        app = RestApp(dataplane, max_body_bytes=max_body_bytes)
        self._listener = AsgiServer(app, host, port, keep_alive_s=keep_alive_s)

    async def start(self) -> int:
        """Listen, and return the port. Raises ListenFailed."""
        return await self._listener.start()

    async def stop(self, grace_s: float) -> None:
        """Close the listener and idle connections, answer what is in flight; what is left after `grace_s` gets 503."""
        await self._listener.stop(grace_s)


def _error_reply(error: BaseException) -> Reply:
    failure = failure_of(error)
    reply = json_reply({"error": failure.message}, failure.http)
    if failure.retry_after_ms > 0:
        return _with_headers(reply, (b"retry-after", str(failure.retry_after_s).encode()))
    return reply


def _closing(reply: Reply, scope: Scope) -> Reply:
    """Close the connection where nobody can tell whether the client, told to wait, will still send the body.

    Otherwise an error that comes before the end of the body leaves the rest to the listener, which drops it:
    a client that is cut off while it sends would see a reset connection and not its answer.
    """
    if reply.status >= 400 and any(name == b"expect" for name, _ in scope["headers"]):
        return _with_headers(reply, (b"connection", b"close"))
    return reply


def _with_headers(reply: Reply, *headers: tuple[bytes, bytes]) -> Reply:
    return reply._replace(headers=[*reply.headers, *headers])


async def _send(reply: Reply, send: Send) -> None:
    headers: Headers = [*reply.headers, (b"content-length", str(len(reply.body)).encode())]
    await send({"type": "http.response.start", "status": reply.status, "headers": headers})
    await send({"type": "http.response.body", "body": reply.body})
