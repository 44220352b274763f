"""REST: a connection for each request that is under way, kept for the next one. Source: RFC 9112."""

from __future__ import annotations

import select
import socket
from collections import deque
from collections.abc import Mapping, Sequence
from urllib.parse import urlencode

import httptools

from server.client.rest import Reply, Request
from server.load.payloads import Judged, Payload
from server.load.wire import RECEIVE_BYTES, Ended, Outgoing, address, connect

MOST_CONNECTIONS = 512
_PORT = 8000


class _Connection:
    """Its methods ``on_...`` are called by the parser."""

    def __init__(self, to: socket.socket, epoll: select.epoll) -> None:
        self.socket = to
        self.outgoing = Outgoing(to, epoll)
        self.number = -1
        """Of the request under way."""
        self.payload: Payload | None = None
        self.answers = 0
        """That it has brought: a connection which ends before the first one is no kept one."""
        self.heard = False
        """Something of the answer has come."""
        self.judged: Judged | None = None
        self.keeps = False
        self._parser = httptools.HttpResponseParser(self)
        self._headers: dict[str, str] = {}
        self._body: list[bytes] = []

    def begin(self, number: int, payload: Payload, data: bytes) -> None:
        """Raises OSError."""
        self.number, self.payload, self.judged, self.heard = number, payload, None, False
        self.outgoing.send(data)

    def feed(self, data: bytes) -> None:
        """Raises HttpParserError."""
        self.heard = True
        self._parser.feed_data(data)

    def on_message_begin(self) -> None:
        self._headers, self._body = {}, []

    def on_header(self, name: bytes, value: bytes) -> None:
        self._headers[name.decode("latin-1").lower()] = value.decode("latin-1")

    def on_body(self, body: bytes) -> None:
        self._body.append(body)

    def on_message_complete(self) -> None:
        if self.payload is None:
            return
        status, body = self._parser.get_status_code(), b"".join(self._body)
        self.keeps = self._parser.should_keep_alive()
        headers = self._headers
        reply = Reply(status, headers, body)
        self.judged = self.payload.judge(body, lambda: reply) if reply.ok else self.payload.judge_reply(reply)
        self.answers += 1


class Http1Wire:
    """`url`: ``http://HOST:PORT``."""

    def __init__(self, url: str, headers: Mapping[str, str] | None = None) -> None:
        """Raises ClientError for a URL of another form."""
        self._where = address(url, "http", _PORT)
        self._headers = dict(headers or {})
        self._epoll = select.epoll()
        self._connections: dict[int, _Connection] = {}
        self._idle: list[_Connection] = []
        self._waiting: deque[tuple[int, Payload]] = deque()
        self._ended: list[Ended] = []
        self._encoded: dict[int, bytes] = {}

    def fileno(self) -> int:
        return self._epoll.fileno()

    def send(self, number: int, payload: Payload) -> None:
        if self._idle:
            self._begin(self._idle.pop(), number, payload)
        elif len(self._connections) < MOST_CONNECTIONS:
            try:
                made = connect(self._where)
            except OSError as error:
                self._ended.append((number, ("failed", f"can't connect: {error}")))
                return
            connection = _Connection(made, self._epoll)
            self._connections[made.fileno()] = connection
            self._epoll.register(made, select.EPOLLIN)
            self._begin(connection, number, payload)
        else:
            self._waiting.append((number, payload))

    def _begin(self, connection: _Connection, number: int, payload: Payload) -> None:
        data = self._encoded.get(id(payload))
        if data is None:
            data = self._encoded[id(payload)] = self._encode(payload.call.request)
        try:
            connection.begin(number, payload, data)
        except OSError as error:
            self._lost(connection, str(error))

    def _encode(self, request: Request) -> bytes:
        path = f"{request.path}?{urlencode(request.params)}" if request.params else request.path
        host, port = self._where
        lines = {"Host": f"{host}:{port}", **request.headers, **self._headers}
        lines["Content-Length"] = str(len(request.content))
        head = "".join(f"{name}: {value}\r\n" for name, value in lines.items())
        return f"{request.method} {path} HTTP/1.1\r\n{head}\r\n".encode() + request.content

    def ready(self) -> Sequence[Ended]:
        for descriptor, events in self._epoll.poll(0):
            connection = self._connections.get(descriptor)
            if connection is None:
                continue  # Another one of this round has closed it.
            try:
                if events & select.EPOLLOUT:
                    connection.outgoing.flush()
                if events & ~select.EPOLLOUT:
                    self._read(connection)
            except (OSError, httptools.HttpParserError) as error:
                self._lost(connection, str(error))
        ended, self._ended = self._ended, []
        return ended

    def _read(self, connection: _Connection) -> None:
        try:
            data = connection.socket.recv(RECEIVE_BYTES)
        except BlockingIOError:
            return  # What there was to read was of one that had this number before.
        if not data:
            self._lost(connection, "the server closed the connection")
            return
        connection.feed(data)
        if connection.judged is None:
            return
        self._ended.append((connection.number, connection.judged))
        connection.payload = None
        if not connection.keeps:
            self._drop(connection)
        elif self._waiting:
            self._begin(connection, *self._waiting.popleft())
        else:
            self._idle.append(connection)

    def _lost(self, connection: _Connection, why: str) -> None:
        """A kept connection may be closed just when it is used again: the request then goes by another one."""
        number, payload = connection.number, connection.payload
        kept = connection.answers > 0 and not connection.heard
        self._drop(connection)
        if payload is None:
            return
        if kept:
            self.send(number, payload)
        else:
            self._ended.append((number, ("failed", f"connection lost: {why}")))

    def _drop(self, connection: _Connection) -> None:
        del self._connections[connection.socket.fileno()]
        if connection in self._idle:
            self._idle.remove(connection)
        connection.socket.close()
        if self._waiting and not self._idle:
            self.send(*self._waiting.popleft())

    def close(self) -> None:
        for connection in self._connections.values():
            connection.socket.close()
        self._connections.clear()
        self._epoll.close()
