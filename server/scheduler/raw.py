"""Passes that make their tensors themselves, of requests that came with raw inputs.

Where decoding and the engine share one core, nothing is gained by giving them to two threads: each hand-over sends the
core through the loop's code, whose caches pictures have emptied. So a request may wait for its pass with its raw
inputs, as any other request does with its tensors, and its pass begins with their preprocessing:

    the batcher's queue ──► a pass on the instance's thread: (preprocess a piece, run it) ..., split ──► answers

Such requests have signatures, costs and limits of their own, and share no batch with those that have tensors. Each has
its own outcome: a bad picture spoils no other, and one that expires before its turn in the pass is not decoded.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import NamedTuple, Protocol

from server.errors import DeadlineExceeded, ServingError
from server.scheduler.cost import CostModel
from server.scheduler.costs import Costs, CostsByLength
from server.scheduler.pieces import Pieces
from server.scheduler.plan import Cost, Limits
from server.scheduler.worker import translated
from server.tensor import Array, Tensor
from server.types import ImageInput, InferRequest, RawInput, TextInput

Prepare = Callable[[Sequence[RawInput]], Mapping[str, Array]]

TOGETHER = 4
"""Requests of a pass at most, where preprocessing has one core: other models wait for it."""
LONG_NS = 10_000_000
"""What takes longer than this for a request is not done by passes."""
BRIEF_TIMES = 4
"""So many times as many may go together if that takes no longer than `TOGETHER` of the longest do. A hand-over costs
half a millisecond, whoever it is for: the loop's code has left the caches by then."""


class Fills(Protocol):
    """Preprocessing whose rows all have one shape: they are made where the whole pass has its own, without a copy."""

    def empty(self, rows: int) -> Mapping[str, Array]: ...
    def fill(self, inputs: Sequence[RawInput], rows: Mapping[str, Array]) -> None: ...


class Raw(int):
    """Bytes of an input, in the mean of a request's, rounded up to a power of two; 0: it has none. By that costs are
    learned, and it is the signature of requests whose passes make their tensors."""

    __slots__ = ()


def size_class(raw: Sequence[RawInput]) -> Raw:
    total = sum([_bytes(item) for item in raw])
    return class_of(total // len(raw)) if total else Raw(0)


def class_of(size: int) -> Raw:
    return Raw(1 << size.bit_length())


def _bytes(item: RawInput) -> int:
    if isinstance(item, ImageInput):
        return len(item.data)
    return len(item.text) if isinstance(item, TextInput) else 0


@dataclass(frozen=True)
class FewTogether(Limits):
    """As many as are worth it, `few` at most, and more of what is brief; a request of more rows goes alone."""

    few: int = 1

    def cap(self, cost: Cost | None) -> int:
        most = BRIEF_TIMES * self.few
        most_ns = cost.predict_ns(most) if cost is not None else None
        if most_ns:
            rows = min(most, most * self.few * LONG_NS // most_ns)
            if rows > self.few:
                return min(rows, self.max_batch_size)  # What the loop does for a pass is not in its cost.
        return min(super().cap(cost), self.few)


@dataclass(frozen=True)
class LimitsByKind(Limits):
    """Of a version whose passes may make their tensors: `raw` are the limits of those."""

    raw: Limits = field(default_factory=lambda: FewTogether(0))

    def for_signature(self, signature: object) -> Limits:
        return self.raw if isinstance(signature, Raw) else self


class CostsByKind:
    """The same for costs. All instances are on one device."""

    def __init__(self, tensors: Costs, raw: Costs) -> None:
        self._tensors = tensors
        self._raw = raw

    def on(self, device: str) -> CostsByKind:
        return self

    def speed(self, device: str) -> float:
        return self._tensors.speed(device)

    def for_signature(self, signature: object) -> CostModel:
        return (self._raw if isinstance(signature, Raw) else self._tensors).for_signature(signature)


class Prepared(NamedTuple):
    """What a pass has made of the raw inputs of its requests."""

    spoiled: Mapping[InferRequest, ServingError]
    """Those whose inputs became no tensors, and why."""
    inputs: Mapping[str, Array] | None
    """The rows of all others, in their order; None: each has its own alone."""


class RawPasses:
    """How the passes of one model version make their tensors."""

    def __init__(
        self,
        model_name: str,
        prepare: Prepare,
        fills: Fills | None,
        check: Callable[[InferRequest], None],
        clock: Callable[[], int] = time.monotonic_ns,
    ) -> None:
        """`fills`: does what `prepare` does, if there is one. `check`: of tensors, as of requests that come with them;
        all of the version have one signature."""
        self.costs = CostsByLength({})
        """By `Raw`."""
        self._model_name = model_name
        self._prepare = prepare
        self._fills = fills
        self._check = check
        self._clock = clock
        self._fit = False
        """The tensors of a request were found to be what the model takes."""
        self.engine = Pieces()
        """How the engine gets the rows of passes that are filled."""

    def limits(self, tensors: Limits) -> LimitsByKind:
        """Beside those of requests with tensors."""
        few = FewTogether(tensors.max_batch_size, few=TOGETHER)
        return LimitsByKind(**{field.name: getattr(tensors, field.name) for field in fields(Limits)}, raw=few)

    def pieces(self, requests: Sequence[InferRequest]) -> tuple[int, list[Sequence[InferRequest]]]:
        """The requests of a pass in pieces that are prepared and run by themselves, and the rows of a piece: of more is
        only one of a single request. 0: that is nothing to learn from."""
        if self._fills is None or len(requests) == 1:
            return 0, [requests]
        at_once = self.engine.rows(sum([request.rows for request in requests]))
        pieces: list[Sequence[InferRequest]] = []
        piece: list[InferRequest] = []
        rows = 0
        for request in requests:
            if piece and rows + request.rows > at_once:
                pieces.append(piece)
                piece, rows = [], 0
            piece.append(request)
            rows += request.rows
        return at_once, [*pieces, piece]

    def prepare(self, requests: Sequence[InferRequest]) -> Prepared:
        """Make their tensors. On any thread."""
        if self._fills is None:
            errors = [self._one(request) for request in requests]
            return Prepared({request: error for request, error in zip(requests, errors, strict=True) if error}, None)
        rows = sum([request.rows for request in requests])
        arrays = self._fills.empty(rows)
        spoiled: dict[InferRequest, ServingError] = {}
        start = 0
        for request in requests:
            stop = start + request.rows
            whole = request.rows == rows
            own = arrays if whole else {name: array[start:stop] for name, array in arrays.items()}
            error = self._late(request) or self._filled(self._fills, request, own)
            if error is None:
                start = stop
            else:
                spoiled[request] = error  # Its rows are the next one's.
        return Prepared(spoiled, {name: array[:start] for name, array in arrays.items()} if spoiled else arrays)

    def _filled(self, fills: Fills, request: InferRequest, rows: Mapping[str, Array]) -> ServingError | None:
        assert request.raw is not None
        try:
            fills.fill(request.raw, rows)
        except BaseException as error:  # noqa: BLE001 - whoever awaits the request gets it
            return _told(self._model_name, error)
        if self._fit and not request.parameters and not request.tenant:
            return None  # Rows have one shape, whoever they are of.
        signature = request.signature
        request.inputs = [Tensor.from_numpy(name, array) for name, array in rows.items()]
        refusal = self._refused(request)
        # Nobody looks at them: the pass has its rows, and should it be repeated, they are made anew.
        request.inputs, request.signature = (), signature
        self._fit = self._fit or refusal is None
        return refusal

    def _one(self, request: InferRequest) -> ServingError | None:
        late = self._late(request)
        if late is not None:
            return late
        assert request.raw is not None
        tensors = tensors_of(self._model_name, self._prepare, request.raw)
        if isinstance(tensors, ServingError):
            return tensors
        request.inputs = tensors
        refusal = self._refused(request)
        if refusal is None:
            request.raw = None  # Should it be executed once more, it has what it needs.
        return refusal

    def _late(self, request: InferRequest) -> DeadlineExceeded | None:
        """Of who went, or whose time went, while others of its pass were prepared."""
        now_ns = self._clock()
        if request.settled or request.deadline_ns <= now_ns:
            return DeadlineExceeded(request.model_name, (now_ns - request.enqueued_ns) // 1000)
        return None

    def _refused(self, request: InferRequest) -> ServingError | None:
        try:
            self._check(request)
        except ServingError as error:
            return without_frames(error)
        return None


def tensors_of(model_name: str, prepare: Prepare, raw: Sequence[RawInput]) -> list[Tensor] | ServingError:
    """What the inputs become, or why they become nothing."""
    try:
        return [Tensor.from_numpy(name, array) for name, array in prepare(raw).items()]
    except BaseException as error:  # noqa: BLE001 - whoever awaits the request gets it
        return _told(model_name, error)


def _told(model_name: str, error: BaseException) -> ServingError:
    """What the caller of a request hears of why its inputs became nothing."""
    return without_frames(error) if isinstance(error, ServingError) else translated(model_name, error)


def without_frames(error: ServingError) -> ServingError:
    """Nobody's bug. Frames hold the request, which is to hold the error: a ring for the garbage collector."""
    error.__traceback__ = error.__cause__ = error.__context__ = None
    return error
