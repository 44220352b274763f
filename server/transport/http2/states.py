"""The states of a stream as a server sees them, and what each frame makes of them, as one table.

Two states of the RFC do not come about here: nothing is reserved, for this server never pushes, and nothing is
half-closed (local), for a server that has said all before the client has resets the stream (section 8.1).

Source: RFC 9113 section 5.1.
"""

from __future__ import annotations

from enum import IntEnum, auto

from server.transport.http2.frames import ConnectionFault, ErrorCode, StreamFault


class State(IntEnum):
    IDLE = auto()
    OPEN = auto()
    HALF_CLOSED_REMOTE = auto()
    """The client has said all; the server may still answer."""
    CLOSED = auto()
    """Both have said all, or the client has reset the stream."""
    RESET = auto()
    """Closed by our own RST_STREAM, which the client's frames may still cross on the wire."""


class Step(IntEnum):
    """What happens to a stream: a frame that came, or one that goes. END is the END_STREAM flag of a frame."""

    RECV_HEADERS = auto()
    RECV_DATA = auto()
    RECV_END = auto()
    RECV_RST = auto()
    RECV_WINDOW = auto()
    SEND_END = auto()
    SEND_RST = auto()


class Broken(IntEnum):
    """What is wrong with a step that may not be."""

    CONNECTION_PROTOCOL = auto()
    CONNECTION_CLOSED = auto()
    STREAM_CLOSED = auto()
    IGNORED = auto()
    """Nothing: the frame crossed ours, or is allowed and has no effect."""


_S, _E, _B = State, Step, Broken

TRANSITIONS: dict[tuple[State, Step], State | Broken] = {
    (_S.IDLE, _E.RECV_HEADERS): _S.OPEN,
    (_S.IDLE, _E.RECV_DATA): _B.CONNECTION_PROTOCOL,
    (_S.IDLE, _E.RECV_RST): _B.CONNECTION_PROTOCOL,
    (_S.IDLE, _E.RECV_WINDOW): _B.CONNECTION_PROTOCOL,
    # HEADERS on an open stream are trailers.
    (_S.OPEN, _E.RECV_HEADERS): _S.OPEN,
    (_S.OPEN, _E.RECV_DATA): _S.OPEN,
    (_S.OPEN, _E.RECV_END): _S.HALF_CLOSED_REMOTE,
    (_S.OPEN, _E.RECV_RST): _S.CLOSED,
    (_S.OPEN, _E.RECV_WINDOW): _S.OPEN,
    (_S.OPEN, _E.SEND_END): _S.RESET,
    (_S.OPEN, _E.SEND_RST): _S.RESET,
    (_S.HALF_CLOSED_REMOTE, _E.RECV_HEADERS): _B.STREAM_CLOSED,
    (_S.HALF_CLOSED_REMOTE, _E.RECV_DATA): _B.STREAM_CLOSED,
    (_S.HALF_CLOSED_REMOTE, _E.RECV_RST): _S.CLOSED,
    (_S.HALF_CLOSED_REMOTE, _E.RECV_WINDOW): _S.HALF_CLOSED_REMOTE,
    (_S.HALF_CLOSED_REMOTE, _E.SEND_END): _S.CLOSED,
    (_S.HALF_CLOSED_REMOTE, _E.SEND_RST): _S.RESET,
    # After END_STREAM in both directions a frame is an error of the connection; these two may have crossed our end.
    (_S.CLOSED, _E.RECV_HEADERS): _B.CONNECTION_CLOSED,
    (_S.CLOSED, _E.RECV_DATA): _B.CONNECTION_CLOSED,
    (_S.CLOSED, _E.RECV_RST): _B.IGNORED,
    (_S.CLOSED, _E.RECV_WINDOW): _B.IGNORED,
    (_S.RESET, _E.RECV_HEADERS): _B.IGNORED,
    (_S.RESET, _E.RECV_DATA): _B.IGNORED,
    (_S.RESET, _E.RECV_END): _B.IGNORED,
    (_S.RESET, _E.RECV_RST): _B.IGNORED,
    (_S.RESET, _E.RECV_WINDOW): _B.IGNORED,
}
"""A pair that is not here can't come about: it would be a bug of ours."""


def after(state: State, step: Step) -> State | None:
    """The state after `step`; None if the frame is to be ignored.

    Raises:
        ConnectionFault: the connection can't go on.
        StreamFault: the stream can't.
    """
    found = TRANSITIONS[state, step]
    if isinstance(found, State):
        return found
    if found is Broken.IGNORED:
        return None
    problem = f"{step.name} on a stream that is {state.name}"
    if found is Broken.STREAM_CLOSED:
        raise StreamFault(ErrorCode.STREAM_CLOSED, problem)
    code = ErrorCode.PROTOCOL_ERROR if found is Broken.CONNECTION_PROTOCOL else ErrorCode.STREAM_CLOSED
    raise ConnectionFault(code, problem)
