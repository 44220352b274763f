"""The REST transport: the table of routes over HTTP/1.1."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping, Sequence
from contextlib import aclosing
from typing import TYPE_CHECKING, NamedTuple

from server.errors import Draining, PermissionDenied
from server.explain import REQUEST_KEY
from server.security.origin import is_foreign
from server.transport.codec.predict_rest import is_picture
from server.transport.codec.recent import Recent
from server.transport.compress import Accepted, Compression, NotAcceptable
from server.transport.console import CONSOLE
from server.transport.exchange import (
    Exchange,
    accepted_encoding,
    content_encoding,
    failure_reply,
    tenant,
    timeout_ns,
)
from server.transport.http1.reply import Reply, StreamedReply, error_reply, with_headers
from server.transport.http1.server import Http1Server
from server.transport.rest_infer import InferPlan, RestInfer
from server.transport.routes import ROUTES, Handler, MethodNotAllowed, Route, Router
from server.transport.varying import VARYING
from server.types import NO_DEADLINE, InferRequest

if TYPE_CHECKING:
    from collections import Counter

    from server.dataplane import DataPlane
    from server.security.gate import Entry
    from server.settings import HttpSettings, TlsSettings
    from server.transport.http1.head import Head
    from server.transport.http1.protocol import Turn


_ROUTES_BYTES = 256 * 1024
"""Of the paths whose route is remembered, twice at most."""
_ROUTE_BYTES = 256
"""What a route weighs beside its path."""


class _Plan(NamedTuple):
    """Of a head whose route is answered by a coroutine."""

    handler: Handler
    names: Mapping[str, str]
    accepts: Accepted
    entry: Entry | None
    patience_ns: int
    """How long its caller waits, where a picture is the body and is not read once there is no time for it; 0: it is."""


class RestApp:
    """Answers every turn itself: no exception reaches the listener. infer is plain calls, all else is a task."""

    def __init__(
        self,
        dataplane: DataPlane,
        *,
        max_body_bytes: int,
        compress_from_bytes: int = 0,
        console: bool = False,
        allowed_origins: Sequence[str] = (),
    ) -> None:
        """`console`: whether the page at `/` is served. `allowed_origins`: whose pages may ask beside it."""
        self._dataplane = dataplane
        self._max_body_bytes = max_body_bytes
        self._origins = frozenset(origin.rstrip("/").lower() for origin in allowed_origins)
        self._router = Router((*ROUTES, *CONSOLE) if console else ROUTES)
        # Heads that differ in other things mostly have a path that was seen before.
        self._routes: Recent[tuple[str, bytes], tuple[Route, Mapping[str, str]]] = Recent(_ROUTES_BYTES)
        self._compression = Compression(compress_from_bytes)
        self._infer = RestInfer(dataplane, max_body_bytes, self._compression)
        self._tasks: set[asyncio.Task[None]] = set()

    def plan(self, head: Head) -> None:
        try:
            if is_foreign(head.method, head.header(b"origin"), head.header(b"host"), self._origins):
                raise PermissionDenied("origin: a page from elsewhere may not ask this; see http.allowed_origins")
            route, names = self._find(head)
            entry = self._entry(head, route, names)
            if head.refusal is not None:
                return
            if route.handler:
                patience_ns = _patience_ns(head) if route.refuses_unread and entry is None else 0
                head.plan = _Plan(route.handler, names, accepted_encoding(head), entry, patience_ns)
            else:
                head.plan = InferPlan(head, names, self._dataplane.forwards, entry)
        except NotAcceptable:
            head.refusal = error_reply(406, "Accept-Encoding: leaves nothing of identity, gzip and deflate")
        except MethodNotAllowed as error:
            reply = error_reply(405, "method: not allowed for this path")
            head.refusal = with_headers(reply, (b"allow", error.allow.encode()))
        except Exception as error:  # noqa: BLE001 - the boundary where every error becomes a status
            head.refusal = failure_reply(error)

    def _entry(self, head: Head, route: Route, names: Mapping[str, str]) -> Entry | None:
        """What the gate keeps of the head; who is not let in is refused, this time."""
        gate = self._dataplane.gate
        entry = gate.entry(head.fields, tenant(head), route.asks) if gate else None
        error = entry.refusal(time.monotonic_ns(), names.get("model")) if entry else None
        if error is not None:
            head.refusal, head.once = failure_reply(error), True
        return entry

    def _find(self, head: Head) -> tuple[Route, Mapping[str, str]]:
        key = (head.method, head.path)
        route = self._routes.get(key)
        if route is None:
            route = self._router.find(*key)
            self._routes.put(key, route, len(head.path) + _ROUTE_BYTES)
        return route

    def take(self, turns: Sequence[Turn]) -> None:
        requests: list[InferRequest] = []
        for turn in turns:
            plan = turn.head.plan  # type: ignore[union-attr]  # a turn that is taken has a head
            if type(plan) is InferPlan and not (plan.encoding and plan.on_thread(turn)):
                request = self._infer.request(turn, plan)
                if request is not None:
                    requests.append(request)
            elif type(plan) is InferPlan or not plan.patience_ns or not self._is_hopeless(turn, plan):
                self._start(turn, plan)
        if requests:
            self._dataplane.submit(requests)

    def _is_hopeless(self, turn: Turn, plan: _Plan) -> bool:
        """There is no time for it, as its size and the last one like it tell: it is answered so."""
        since_ns = turn.received_ns
        refusal = self._dataplane.hopeless(plan.names["model"], len(turn.body), since_ns, since_ns + plan.patience_ns)
        if refusal is None:
            return False
        turn.reply(failure_reply(refusal))
        return True

    def abandon(self, turn: Turn) -> None:
        work = turn.work
        if isinstance(work, InferRequest):
            self._dataplane.cancel(work)
        elif work is not None:
            work.cancel()

    def close(self) -> None:
        """Nobody waits for an answer any more."""
        self._compression.close()

    def _start(self, turn: Turn, plan: _Plan | InferPlan) -> None:
        answering = self._inflate(turn, plan) if isinstance(plan, InferPlan) else self._answer(turn, plan)
        turn.work = task = asyncio.get_running_loop().create_task(answering)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _answer(self, turn: Turn, plan: _Plan) -> None:
        reply: Reply | StreamedReply
        try:
            plane = plan.entry.plane(self._dataplane, turn.received_ns) if plan.entry else self._dataplane
            reply = await plan.handler(Exchange(plane, turn, plan.names, self._max_body_bytes))
            if isinstance(reply, Reply):
                reply = await self._compression.reply(plan.accepts, reply)
        except asyncio.CancelledError:
            # By the listener at the end of its grace; or the client is gone, and then nobody gets this.
            reply = failure_reply(Draining())
        except Exception as error:  # noqa: BLE001 - the boundary where every error becomes a status
            reply = failure_reply(error)
        if isinstance(reply, Reply):
            turn.reply(reply)
        else:
            await self._stream(turn, reply)

    async def _stream(self, turn: Turn, reply: StreamedReply) -> None:
        stream = turn.stream(reply.status, reply.headers)
        last = b""
        try:
            async with aclosing(reply.pieces) as pieces:
                if turn.head is not None and turn.head.method != "HEAD":
                    async for piece in pieces:
                        await stream.send(piece)
        except asyncio.CancelledError:
            last = reply.failed(Draining())  # As above.
        except Exception as error:  # noqa: BLE001 - the boundary where every error becomes a piece
            last = reply.failed(error)
        stream.end(last)

    async def _inflate(self, turn: Turn, plan: InferPlan) -> None:
        """An infer request whose body is inflated on a thread before it goes the way of all others."""
        try:
            body = await Exchange(self._dataplane, turn, {}, self._max_body_bytes).body()
        except asyncio.CancelledError:
            turn.reply(failure_reply(Draining()))
        except Exception as error:  # noqa: BLE001 - the boundary where every error becomes a status
            turn.reply(failure_reply(error))
        else:
            request = self._infer.request(turn, plan, body)
            if request is not None:
                self._dataplane.submit((request,))


def _patience_ns(head: Head) -> int:
    """As of `_Plan`. Raises InvalidRequest as `timeout_ns`."""
    within_ns = timeout_ns(head)
    plain = is_picture(head.header(b"content-type")) and not content_encoding(head)
    return within_ns if plain and within_ns < NO_DEADLINE and not head.header(REQUEST_KEY.encode()) else 0


class RestServer:
    """The REST listener. A started server is stopped once, and not started again."""

    def __init__(self, dataplane: DataPlane, host: str, settings: HttpSettings, tls: TlsSettings | None = None) -> None:
        self._app = RestApp(
            dataplane,
            max_body_bytes=settings.max_body_bytes,
            compress_from_bytes=settings.compress_from_bytes,
            console=settings.console,
            allowed_origins=settings.allowed_origins,
        )
        unread = VARYING - {name.encode() for name in dataplane.forwards}
        self.listener = Http1Server(self._app, host, settings.port, settings, tls, unread)

    async def start(self) -> int:
        """Listen, and return the port. Raises ListenFailed, also where the certificate can't be used."""
        return await self.listener.start()

    async def stop(self, grace_s: float) -> None:
        """Close the listener and idle connections, answer what is in flight; what is left after `grace_s` gets 503."""
        await self.listener.stop(grace_s)
        self._app.close()

    @property
    def closed(self) -> Counter[str]:
        """Connections that were turned away or ended for a fault of their peer, and refused bodies, by cause."""
        return self.listener.connections.closed
