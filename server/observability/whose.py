"""Whose request a line of the log is about: its id and its trace's, as the access log has them.

    log.exception("...", extra=about(request))

An error takes its request along, for it is logged where it becomes a status, and often nobody knows the request there.
Nothing is done for requests that go well.
"""

from __future__ import annotations

from typing import TypeVar

from server.observability.trace_context import context_of
from server.types import InferRequest, PredictRequest

Asker = InferRequest | PredictRequest

_LONGEST = 256
"""Characters of an id that a line has: a client chooses it, and may choose a book."""
_MOST = 32
"""Requests of one pass that a line names."""

_Error = TypeVar("_Error", bound=BaseException)


def about(*requests: Asker | None) -> dict[str, dict[str, object]]:
    """What to log with, as `extra`: of one request its `request_id` and `trace_id`, as far as it has them; of several,
    as of a pass, `request_ids` and `trace_ids`, of the first 32."""
    some = [request for request in requests if request is not None][:_MOST]
    ids = [shortened(request.id) for request in some if request.id]
    traces = [trace for request in some if (trace := trace_id(request))]
    if len(some) == 1:
        return {"fields": {**ids_of("".join(ids), "".join(traces))}}
    told = {"request_ids": ids, "trace_ids": list(dict.fromkeys(traces))}
    return {"fields": {name: found for name, found in told.items() if found}}


def ids_of(request_id: str = "", trace_id: str = "") -> dict[str, str]:
    """The two fields, without what is empty."""
    told = {"request_id": shortened(request_id), "trace_id": trace_id}
    return {name: found for name, found in told.items() if found}


def shortened(id: str) -> str:
    return id if len(id) <= _LONGEST else id[: _LONGEST - 1] + "…"


def trace_id(request: Asker) -> str:
    """Empty if it is known to belong to none."""
    context = context_of(request.metadata) if request.metadata else None
    return "" if context is None else f"{context.trace_id:032x}"


def of(error: _Error, request: Asker) -> _Error:
    """The error, which knows from now on whose it is. One that several share is logged once, with one of them."""
    vars(error)["request"] = request
    return error


def asker_of(error: BaseException) -> Asker | None:
    """Whose it is, if that is known; asked once, for request and error would keep each other from being freed."""
    found: Asker | None = vars(error).pop("request", None)
    return found
