"""infer over REST, in plain calls: a request costs no task and no future.

What the head says is read once for all requests with the same head; the rest is the codec's.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from server.errors import Cancelled, Draining, ServingError
from server.explain import ANSWER_KEY, REQUEST_KEY, Explanation, asked_by, decoded
from server.observability.whose import of
from server.transport.codec import v2_rest
from server.transport.codec.repeated_infer import InferCodec, Target
from server.transport.compress import PLAIN, Accepted, Compression
from server.transport.exchange import (
    accepted_encoding,
    content_encoding,
    failure_reply,
    tenant,
    timeout_ns,
)
from server.transport.forwarding import forwarded
from server.transport.inflate import ON_LOOP_BYTES, inflate
from server.types import NO_DEADLINE, InferRequest, InferResponse, Outcome

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Mapping, Sequence

    from server.dataplane import DataPlane
    from server.security.gate import Entry
    from server.tensor import Buffer
    from server.transport.http1.head import Head
    from server.transport.http1.protocol import Turn


class InferPlan:
    """What the head of an infer request says. Raises ServingError for what it says wrong, and NotAcceptable."""

    __slots__ = ("accepts", "encoding", "entry", "explains", "metadata", "plain", "target", "timeout_ns")

    def __init__(
        self, head: Head, names: Mapping[str, str], forwards: Sequence[str] = (), entry: Entry | None = None
    ) -> None:
        """`names` are the model and, where the path has one, the version; `forwards` those of headers to hand on;
        `entry` asks who the caller is."""
        length = head.header(b"inference-header-content-length")
        header_length = v2_rest.parse_header_length(length) if length else None
        self.target = Target(names["model"], names.get("version", ""), header_length, tenant(head))
        self.timeout_ns = timeout_ns(head)
        self.encoding = content_encoding(head)
        self.accepts = accepted_encoding(head)
        self.explains = asked_by(head.header(REQUEST_KEY.encode()))
        self.metadata = forwarded(forwards, lambda name: head.header(name.encode()))
        self.entry = entry
        unusual = self.encoding or self.explains or header_length == 0 or self.metadata or entry is not None
        self.plain = not unusual and self.timeout_ns == NO_DEADLINE
        """It says no more than which model, and for whom."""

    def on_thread(self, turn: Turn) -> bool:
        """Whether the body takes so long to inflate that the event loop should not do it."""
        return bool(self.encoding) and len(turn.body) > ON_LOOP_BYTES


class RestInfer:
    """From a turn to a request of the data plane, and from its outcome to the turn's answer."""

    def __init__(self, dataplane: DataPlane, max_body_bytes: int, compression: Compression) -> None:
        self._dataplane = dataplane
        self._compression = compression
        self._max_body_bytes = max_body_bytes
        codec = InferCodec()
        # A method that is looked up once costs nothing where it is called.
        self._decode = codec.decode
        self._encode = codec.encode
        self._on_settle = self._settled

    def request(self, turn: Turn, plan: InferPlan, inflated: bytes | None = None) -> InferRequest | None:
        """The request to submit; None if the turn was answered with what is wrong."""
        try:
            if plan.plain:
                request, turn.formats = self._decode(plan.target, turn.body, self._on_settle, turn.received_ns, turn)
            else:
                request = self._unusual(turn, plan, inflated)
            if request.parameters and request.explanation is None:
                request.explanation = decoded(None, request.parameters, turn.received_ns)
        except Exception as error:  # noqa: BLE001 - the boundary where every error becomes a status
            turn.reply(failure_reply(error))
            return None
        turn.body = b""  # The tensors are views on it, or copies.
        turn.work = request
        return request

    def _unusual(self, turn: Turn, plan: InferPlan, inflated: bytes | None) -> InferRequest:
        """Of a head that says more than which model."""
        received_ns, entry = turn.received_ns, plan.entry
        explanation = Explanation(received_ns) if plan.explains else None
        body = turn.body if inflated is None else inflated
        if plan.encoding and inflated is None:
            body = inflate("body", body, plan.encoding, self._max_body_bytes)
        if explanation is not None:
            explanation.mark("receive")
        deadline_ns = NO_DEADLINE
        if plan.timeout_ns < NO_DEADLINE:
            deadline_ns = min(received_ns + plan.timeout_ns, NO_DEADLINE)
        if plan.target.header_length == 0:
            request = self._raw(turn, plan.target, body, deadline_ns)
        else:
            request, turn.formats = self._decode(plan.target, body, self._on_settle, received_ns, turn, deadline_ns)
        if plan.metadata:
            request.metadata = plan.metadata
        if explanation is not None or entry is not None:
            request.explanation = decoded(explanation, request.parameters, received_ns)
        if entry is not None:
            entry.admit(request)  # Last, for whoever is admitted is counted until it is settled.
        return request

    def _raw(self, turn: Turn, target: Target, body: bytes, deadline_ns: int) -> InferRequest:
        specs = self._dataplane.model_metadata(target.model_name, target.model_version).inputs
        call = v2_rest.Call(
            *target[:2], self._on_settle, turn.received_ns, deadline_ns, tenant=target.tenant, caller=turn
        )
        request, turn.formats = v2_rest.decode_raw_infer(call, body, specs)
        return request

    def _settled(self, request: InferRequest, outcome: Outcome) -> None:
        turn: Turn = request.caller  # type: ignore[assignment]  # set above
        explanation = request.explanation
        if type(outcome) is not InferResponse:
            # Whoever was given up and is still here was so because the listener closes.
            assert isinstance(outcome, BaseException)
            turn.reply(failure_reply(Draining() if isinstance(outcome, Cancelled) else of(outcome, request)))
            return
        if explanation is not None:
            explanation.mark_pass(request.enqueued_ns, outcome.timing)
        try:
            parts = self._encode(outcome, turn.formats)
        except ServingError as error:
            turn.reply(failure_reply(of(error, request)))
            return
        accepts = turn.head.plan.accepts  # type: ignore[union-attr]  # a turn that is taken has a head
        if accepts is not PLAIN and self._compression.wanted(accepts, sum(map(len, parts))):
            self._compress(turn, accepts, parts, explanation)
        else:
            _reply(turn, parts, explanation)

    def _compress(
        self, turn: Turn, accepts: Accepted, parts: Sequence[Buffer], explanation: Explanation | None
    ) -> None:
        def over(done: asyncio.Future[Sequence[Buffer]]) -> None:
            # Cancelled: the listener closes, or nobody is there any more.
            failure = Draining() if done.cancelled() else done.exception()
            if failure is None:
                _reply(turn, done.result(), explanation)
            else:
                turn.reply(failure_reply(failure))

        turn.work = self._compression.parts(accepts, parts)
        turn.work.add_done_callback(over)


def _reply(turn: Turn, parts: Sequence[Buffer], explanation: Explanation | None) -> None:
    if explanation is not None and (timing := explanation.finish()):
        parts = [f"{ANSWER_KEY}: {timing}\r\n".encode(), *parts]
    turn.reply_ok(parts)
