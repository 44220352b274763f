"""The calls of one connection: what its events mean in gRPC, from the first header to the status.

Plain ModelInfer calls are the hot way: all that came with one read of the socket go to the data plane together,
and each is answered by the call that settles it; no task and no future is made for them. Any other call is an
object of `unary.py` or `streaming.py`.

Source: gRPC "gRPC over HTTP2".
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Protocol, cast

from server.errors import Draining, Overloaded, PayloadTooLarge, ServingError
from server.explain import ANSWER_KEY, Explanation, asked_by, decoded
from server.observability.whose import of
from server.settings import GrpcSettings
from server.transport.codec.v2_wire import decode_framed_infer, decode_infer, encode_infer
from server.transport.http2 import answers
from server.transport.http2.connection import Connection
from server.transport.http2.messages import IDENTITY, MESSAGE, deflate
from server.transport.http2.prefix import write_prefix
from server.transport.http2.refused import RefusedCall
from server.transport.http2.states import State
from server.transport.http2.streaming import StreamsCall
from server.transport.http2.streams import Event, Kind
from server.transport.http2.unary import UnaryCall
from server.transport.memory import Memory
from server.transport.methods import CallInfo
from server.transport.status import failure_of
from server.types import NO_DEADLINE, InferRequest, InferResponse, Outcome

if TYPE_CHECKING:
    from server.dataplane import DataPlane
    from server.transport.http2.stream import Stream

_OPEN, _HALF_CLOSED_REMOTE = State.OPEN, State.HALF_CLOSED_REMOTE
_CALL = Kind.CALL
_COMPRESSED_FROM_BYTES = 1024
"""A smaller answer does not become smaller by much."""


class Call(Protocol):
    """A call that takes more than one event. Whatever fails in it ends the call, never the connection."""

    def data(self, parts: list[bytes]) -> None: ...
    def ended(self) -> None: ...
    def sent(self) -> None: ...
    def late(self) -> None: ...
    def cancel(self) -> None: ...


class Service:
    """What all connections of a server share."""

    __slots__ = ("dataplane", "memory", "refused", "settings")

    def __init__(self, dataplane: DataPlane, settings: GrpcSettings, refused: Counter[str]) -> None:
        """`refused` counts streams that were not served as they were asked, by cause."""
        self.dataplane = dataplane
        self.settings = settings
        self.refused = refused
        self.memory = Memory(settings.max_unfinished_bytes)
        """Of requests that are not yet complete."""


class Calls:
    """`answered` is called when there is something to send that no read of the socket brought about."""

    def __init__(self, service: Service, connection: Connection, answered: Callable[[], None]) -> None:
        self.service = service
        self.connection = connection
        self.answered = answered
        self.held_bytes = 0
        """Of requests that are not yet complete, or not yet taken up."""
        self.writable = True
        """The socket takes more. Streams wait while it does not."""
        self.refused_ns = 0
        """The time that a request had left which was refused, since this was last put back, for there are too many."""
        self._submit = service.dataplane.submit
        self._requests: list[InferRequest] = []
        self._max_bytes = service.settings.max_message_bytes

    def handle(self, events: Sequence[Event]) -> None:
        """Act on the events of one read."""
        now_ns = self.connection.now_ns
        requests = self._requests = []
        on_settle = self._on_settle
        for kind, stream, data in events:
            if kind is _CALL:
                if stream.state is not _HALF_CLOSED_REMOTE:
                    continue
                timeout_ns = stream.timeout_ns
                deadline_ns = now_ns + timeout_ns if timeout_ns else NO_DEADLINE
                try:
                    request = decode_framed_infer(data, on_settle, now_ns, deadline_ns, stream)
                    if request is None:
                        self._whole(stream, data)
                        continue
                    if request.parameters or stream.head.asks:
                        self._ask_more(stream, request)
                except Exception as error:  # noqa: BLE001 - the boundary where every error becomes a status
                    self.fail(stream, error)
                else:
                    stream.call = request
                    requests.append(request)
            else:
                self._act(kind, stream, data)
        if requests:
            self._requests = []
            self._submit(requests)

    # --- the hot way ------------------------------------------------------------------------------

    def infer(self, stream: Stream, data: bytes) -> None:
        """A plain ModelInfer whose message is here as a whole, though not in one frame."""
        now_ns = self.connection.now_ns
        deadline_ns = now_ns + stream.timeout_ns if stream.timeout_ns else NO_DEADLINE
        request = decode_infer(data, self._on_settle, now_ns, deadline_ns, stream)
        self._ask_more(stream, request)
        stream.call = request
        self._requests.append(request)

    def _ask_more(self, stream: Stream, request: InferRequest) -> None:
        request.tenant = stream.head.tenant
        if stream.head.metadata:
            request.metadata = stream.head.metadata
        if request.parameters and "explain" in request.parameters:
            request.explanation = decoded(None, request.parameters, request.received_ns)
        if stream.head.entry is not None:
            stream.head.entry.admit(request)  # Last, for whoever is admitted is counted until it is settled.

    def _on_settle(self, request: InferRequest, outcome: Outcome) -> None:
        """Never raises: whoever settles has others of the same batch to settle."""
        stream: Stream = request.caller  # type: ignore[assignment]  # set by `decode_infer`
        # They hold each other: left so, each pair would wait for the garbage collector, which stops everybody for ms.
        stream.call = request.caller = None
        try:
            if not isinstance(outcome, InferResponse):
                if isinstance(outcome, Overloaded):
                    self.refused_ns = request.deadline_ns - request.received_ns
                self.fail(stream, of(outcome, request))
            elif request.explanation is not None:
                self._explained(stream, request.explanation, request, outcome)
            else:
                message = encode_infer(outcome)
                if len(message) > self._max_bytes:
                    raise PayloadTooLarge(MESSAGE, self._max_bytes, len(message))
                self.connection.answer(stream, message)
        except Exception as error:  # noqa: BLE001 - the boundary where every error becomes a status
            self.fail(stream, of(error, request))
        self.answered()

    def _explained(
        self, stream: Stream, explanation: Explanation, request: InferRequest, outcome: InferResponse
    ) -> None:
        explanation.mark_pass(request.enqueued_ns, outcome.timing)
        self.answer(stream, encode_infer(outcome), explanation)

    # --- every other way --------------------------------------------------------------------------

    def _act(self, kind: Kind, stream: Stream, data: Any) -> None:
        call = stream.call
        if kind is Kind.RESET:
            self.cancel(stream)
        elif kind is Kind.OPENED:
            self._begin(stream)
        elif stream.state not in (_OPEN, _HALF_CLOSED_REMOTE) or call is None:
            return
        elif kind is Kind.DATA:
            cast("Call", call).data(data)
        elif kind is Kind.ENDED:
            cast("Call", call).ended()
        elif isinstance(call, InferRequest):
            return
        elif kind is Kind.SENT:
            cast("Call", call).sent()
        else:
            cast("Call", call).late()

    def _whole(self, stream: Stream, data: bytes) -> None:
        self._begin(stream)
        call = cast("Call | None", stream.call)
        if call is not None:
            call.data([data])
        if stream.state is _HALF_CLOSED_REMOTE and stream.call is call is not None:
            call.ended()

    def _begin(self, stream: Stream) -> None:
        """A stream was opened, and may be gone again."""
        head = stream.head
        if stream.state not in (_OPEN, _HALF_CLOSED_REMOTE):
            return
        if head.refusal is not None:
            if head.over_limit:
                self.service.refused["header_list_too_large"] += 1
            self._hear_out(stream, head.refusal, head.text)
            return
        error = None if head.entry is None else head.entry.refusal(self.connection.now_ns)
        if error is not None:
            self._hear_out(stream, answers.trailers_only(failure_of(error)))
            return
        assert head.method is not None
        call = StreamsCall(self, stream, head.method) if head.method.streams else UnaryCall(self, stream, head.method)
        stream.call = call

    def give_up(self, stream: Stream, error: ServingError) -> None:
        """There is no time for this call: what is still to come of its body is not kept."""
        self.refused_ns = stream.timeout_ns
        self._hear_out(stream, answers.trailers_only(failure_of(error)), whole=True)

    def _hear_out(self, stream: Stream, block: bytes, text: bytes = b"", *, whole: bool = False) -> None:
        """Turn a call away, once its body was read."""
        if stream.state is _HALF_CLOSED_REMOTE:
            self.turn_away(stream, block, text)
        else:
            stream.call = RefusedCall(self, stream, block, text, whole=whole)

    def plane(self, stream: Stream) -> DataPlane:
        """The data plane as the caller may use it. Raises Unauthenticated, PermissionDenied."""
        plane, entry = self.service.dataplane, stream.head.entry
        return plane if entry is None else cast("DataPlane", entry.plane(plane, self.connection.now_ns))

    def cancel(self, stream: Stream) -> None:
        """The caller is gone: the data plane hears of it at once."""
        call, stream.call = stream.call, None
        if isinstance(call, InferRequest):
            self.service.dataplane.cancel(call)
        elif call is not None:
            cast("Call", call).cancel()

    def close(self) -> None:
        """The connection is gone, and with it all its callers."""
        self.answered = _nobody
        streams = list(self.connection.streams.values())
        for stream in streams:
            stream.state = State.CLOSED
            self.cancel(stream)

    def shut(self) -> None:
        """The grace is over: what is still under way is answered as UNAVAILABLE."""
        for stream in list(self.connection.streams.values()):
            call = stream.call
            self.fail(stream, Draining())
            stream.call = call
            self.cancel(stream)

    def resume(self) -> None:
        """The socket takes more again."""
        for stream in list(self.connection.streams.values()):
            if isinstance(stream.call, StreamsCall):
                stream.call.sent()

    def hold(self, size: int) -> None:
        """`size` more bytes of a request are here. Raises PayloadTooLarge: then they are not counted."""
        limits = self.service.settings
        if self.held_bytes + size > limits.max_received_bytes:
            self.service.refused["too_much_received"] += 1
            raise PayloadTooLarge("connection", limits.max_received_bytes)
        if not self.service.memory.take(size):
            self.service.refused["out_of_memory"] += 1
            raise PayloadTooLarge("all connections", limits.max_unfinished_bytes)
        self.held_bytes += size

    def let_go(self, size: int) -> None:
        """So many of them are taken up, or dropped."""
        self.held_bytes -= size
        self.service.memory.give_back(size)

    def info(self, stream: Stream) -> CallInfo:
        """What the call says beside its messages. Raises InvalidRequest."""
        head, now_ns = stream.head, self.connection.now_ns
        deadline_ns = now_ns + stream.timeout_ns if stream.timeout_ns else NO_DEADLINE
        info = CallInfo(now_ns, deadline_ns, head.tenant, head.metadata)
        if head.explain and head.method is not None and head.method.explains and asked_by(head.explain):
            info.explanation = Explanation(now_ns)
        return info

    # --- answers ----------------------------------------------------------------------------------

    def answer(self, stream: Stream, message: bytes, explanation: Explanation | None = None) -> None:
        """A call that went well and has one message."""
        if stream.state not in (_OPEN, _HALF_CLOSED_REMOTE):
            return
        compresses, timing = self.compresses(stream), explanation.finish() if explanation is not None else ""
        if not timing and not compresses and len(message) <= self._max_bytes:
            stream.call = None
            self.connection.answer(stream, message)
            return
        self.send_message(stream, message, first=True)
        self.finish(stream, timing)

    def send_message(self, stream: Stream, message: bytes, *, first: bool) -> None:
        """One message, behind the headers if it is the `first`. Raises PayloadTooLarge."""
        if len(message) > self._max_bytes:
            raise PayloadTooLarge(MESSAGE, self._max_bytes, len(message))
        flag, compresses = 0, self.compresses(stream)
        if compresses and len(message) >= _COMPRESSED_FROM_BYTES:
            flag, message = 1, deflate(stream.head.encoding, message)
        if first:
            block = answers.compressed_response(stream.head.encoding) if compresses else answers.RESPONSE
            self.connection.send_headers(stream, block)
        self.connection.send_data(stream, write_prefix(flag, len(message)) + message)

    def send_headers(self, stream: Stream) -> None:
        """The headers of a call that has no message to send."""
        self.connection.send_headers(stream, answers.RESPONSE)

    def compresses(self, stream: Stream) -> bool:
        """Answers are compressed as the request says it is, if the client takes that."""
        head = stream.head
        return head.encoding != IDENTITY and head.encoding in head.accepts.replace(b" ", b"").split(b",")

    def finish(self, stream: Stream, timing: str = "") -> None:
        """The status of a call that went well, behind its messages. `timing`: where its time went, if it asked."""
        self.end(stream, _timed(timing) if timing else answers.OK_TRAILERS)

    def turn_away(self, stream: Stream, block: bytes, text: bytes = b"") -> None:
        """The whole answer of a call that is not taken: a header block, and perhaps a text."""
        if text:
            self.connection.send_headers(stream, block)
            self.connection.send_data(stream, text)
            block = b""
        self.end(stream, block)

    def end(self, stream: Stream, block: bytes) -> None:
        """The last of a call. Call and stream know each other: left so, they would wait for the garbage collector."""
        stream.call = None
        self.connection.send_trailers(stream, block)

    def fail(self, stream: Stream, error: BaseException, *, begun: bool = False) -> None:
        """The status of a call that did not; `begun` where its headers are sent already."""
        if stream.state not in (_OPEN, _HALF_CLOSED_REMOTE):
            return
        if isinstance(error, PayloadTooLarge) and error.field == MESSAGE:
            self.service.refused["message_too_large"] += 1
        failure = failure_of(error)
        self.end(stream, answers.failed_trailers(failure) if begun else answers.trailers_only(failure))


def _timed(timing: str) -> bytes:
    return answers.ok_trailers([(ANSWER_KEY.encode(), timing.encode())])


def _nobody() -> None:
    """There is no socket any more."""
