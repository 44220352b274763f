"""The nouns that every floor shares: requests, answers, batches, what a server says of itself.

Times are absolute nanoseconds of ``time.monotonic_ns``.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, cast

from server.answers import Classification as Classification
from server.answers import Custom as Custom
from server.answers import Embedding as Embedding
from server.answers import Entities as Entities
from server.answers import Entity as Entity
from server.answers import Prediction as Prediction
from server.answers import Ranking as Ranking
from server.answers import Regression as Regression
from server.answers import Score as Score
from server.answers import Written as Written
from server.tensor import Array, Tensor, TensorSpec

if TYPE_CHECKING:
    from server.explain import Explanation
    from server.shared_memory.references import Reference, SharedTensors

Parameter = bool | int | float | str
Metadata = Sequence[tuple[str, str]]
"""Names in lower case, with their values."""

_NO_PARAMETERS: Mapping[str, Parameter] = MappingProxyType({})

NO_DEADLINE = sys.maxsize
"""The deadline of a request that has none; compares as later than any time."""

_new = object.__new__


class InferResponse:
    """The answer to one `InferRequest`: its own rows of the batch's outputs, in the order it asked for.

    Where a model gives several responses, the outcome may be one without outputs: there are no more.
    """

    __slots__ = ("id", "model_name", "model_version", "outputs", "parameters", "shared", "timing")

    def __init__(
        self,
        model_name: str,
        model_version: str,
        outputs: Sequence[Tensor],
        id: str = "",
        parameters: Mapping[str, Parameter] | None = None,
        timing: Timing | None = None,
    ) -> None:
        self.model_name = model_name
        self.model_version = model_version
        self.outputs = outputs
        self.id = id
        self.parameters = _NO_PARAMETERS if parameters is None else parameters
        self.timing = timing
        self.shared: Mapping[str, Reference] | None = None
        """The outputs whose data is not here but in shared memory, and where; None: all is here."""

    @staticmethod
    def each(
        model_name: str, model_version: str, outputs: Iterable[Sequence[Tensor]], requests: Sequence[InferRequest]
    ) -> list[InferResponse]:
        """The answers to the requests of one pass, made without a call of the class for each. One of `outputs` each."""
        answers: list[InferResponse] = []
        for request, tensors in zip(requests, outputs, strict=True):
            answer: InferResponse = _new(InferResponse)
            answer.model_name = model_name
            answer.model_version = model_version
            answer.outputs = tensors
            answer.id = request.id
            answer.parameters = _NO_PARAMETERS
            answer.shared = None
            answer.timing = None
            answers.append(answer)
        return answers


class Timing(NamedTuple):
    """Where a request's time went, in nanoseconds; the compute parts are those of its whole batch."""

    queue_ns: int
    compute_input_ns: int
    compute_infer_ns: int
    compute_output_ns: int
    batch_rows: int
    padding: float = 0.0
    """The share of the batch's padded inputs that was padding, 0 to 1."""
    prepare_ns: int = 0
    """Of a pass that made its tensors itself: what that took, between the queue and the rest."""


Outcome = InferResponse | BaseException
"""How a request ends: an answer, or an error (a `ServingError`; anything else is our own fault)."""


class Holder(Protocol):
    """Whoever keeps a request until it is settled: a model's batcher."""

    def cancel(self, request: InferRequest) -> None:
        """Settle the request as Cancelled and free its place. Does nothing if it is settled."""


class Taker(Protocol):
    """The `caller` of a request whose model may give several responses: whoever takes those before the last."""

    def take(self, response: InferResponse, go_on: Callable[[], None]) -> None:
        """Call `go_on` once there is room for another, at once mostly, or the request is settled."""


class Form:
    """What the requests of one shape have in common: everything that they say but data, id and deadline.

    A transport that has seen the same bytes before gives their requests the same form, and whoever checked one
    of them need not check the next: `checked_by` is who did, `rows` and `signature` are what came of it.
    """

    __slots__ = ("checked_by", "rows", "signature")

    def __init__(self) -> None:
        self.checked_by: object = None
        self.rows = 0
        self.signature: object = None


class Special(NamedTuple):
    """What few requests say of their tensors, beyond what they are."""

    shared: SharedTensors | None
    """Those that are in shared memory, if any."""
    classes: Mapping[str, int]
    """The outputs that are wanted as their best classes, and how many of them."""


Said = tuple[str, str, Sequence[str], Mapping[str, Parameter], Form | None, Special | None]
"""What requests may say alike: model, version, names of the outputs, parameters; their form, and what is special."""


class InferRequest:
    """One call of `infer`, from the transport to its settlement.

    The transport fills what the client said; the data plane checks it against the model and sets `rows`
    (1 for a model without a batch dimension) and `signature` (requests of equal signature may share a
    batch); the scheduler sets the rest. `settle` is called exactly once in effect: whoever comes second
    is told so by False and changes nothing.
    """

    __slots__ = (
        "_metadata",
        "_on_settle",
        "caller",
        "deadline_ns",
        "enqueued_ns",
        "explanation",
        "form",
        "holder",
        "id",
        "inputs",
        "model_name",
        "model_version",
        "outputs",
        "parameters",
        "predicted_ns",
        "raw",
        "received_ns",
        "rows",
        "settled",
        "signature",
        "special",
        "tenant",
    )

    def __init__(
        self,
        model_name: str,
        inputs: Sequence[Tensor],
        *,
        on_settle: Callable[[InferRequest, Outcome], None],
        received_ns: int,
        model_version: str = "",
        id: str = "",
        outputs: Sequence[str] = (),
        parameters: Mapping[str, Parameter] | None = None,
        deadline_ns: int = NO_DEADLINE,
        explanation: Explanation | None = None,
        tenant: str = "",
        form: Form | None = None,
        caller: object = None,
    ) -> None:
        self.model_name = model_name
        self.model_version = model_version
        self.id = id
        self.inputs = inputs
        self.outputs = outputs
        """Names of the outputs wanted, in the order wanted; empty for all of them."""
        self.parameters = _NO_PARAMETERS if parameters is None else parameters
        self.received_ns = received_ns
        self.deadline_ns = deadline_ns
        self.rows = 1
        self.signature: object = None
        self.enqueued_ns = 0
        self.predicted_ns = 0
        """When the scheduler expected to answer it, as it was admitted; 0: it did not know."""
        self.explanation = explanation
        """Of a caller that asked where its time goes; else None."""
        self.tenant = tenant
        """On whose behalf it is asked (`X-Tenant`); matters where the model is shared fairly."""
        self.form = form
        """What it has in common with others that the transport has seen; None: it knows of none."""
        self.caller = caller
        """Whatever the transport needs to find the one who waits for the outcome."""
        self.holder: Holder | None = None
        """Who admitted it, and so must hear of a cancellation; set by the data plane."""
        self.raw: Sequence[RawInput] | None = None
        """Inputs of which its pass is to make its tensors: see `server.scheduler.raw`; None: it has tensors."""
        self.special: Special | None = None
        """Set by the transport. What is in shared memory is left out once it is seen to; None: nothing is special."""
        self.settled = False
        self._on_settle = on_settle

    @staticmethod
    def received(
        said: Said,
        id: str,
        inputs: Sequence[Tensor],
        on_settle: Callable[[InferRequest, Outcome], None],
        received_ns: int,
        deadline_ns: int,
        caller: object,
    ) -> InferRequest:
        """The same as a call of the class, which costs as much as all the rest of reading a small request."""
        self: InferRequest = _new(InferRequest)
        self.model_name, self.model_version, self.outputs, self.parameters, self.form, self.special = said
        self.id = id
        self.inputs = inputs
        self.received_ns = received_ns
        self.deadline_ns = deadline_ns
        self.rows = 1
        self.signature = None
        self.enqueued_ns = 0
        self.predicted_ns = 0
        self.explanation = None
        self.tenant = ""
        self.caller = caller
        self.holder = None
        self.raw = None
        self.settled = False
        self._on_settle = on_settle
        return self

    @property
    def metadata(self) -> Metadata:
        """What of its caller's metadata goes along to another server that runs the model: mostly nothing, and then it
        is not even said, for that would cost every request."""
        found: Metadata = getattr(self, "_metadata", ())
        return found

    @metadata.setter
    def metadata(self, metadata: Metadata) -> None:
        self._metadata = metadata

    def divert(self, on_settle: Callable[[InferRequest, Outcome], None]) -> Callable[[InferRequest, Outcome], None]:
        """Let `on_settle` have the outcome instead of whoever was to have it, who is returned."""
        before, self._on_settle = self._on_settle, on_settle
        return before

    def send(self, response: InferResponse, go_on: Callable[[], None]) -> None:
        """Give the caller one response of several, before the outcome that settles the request; on the event loop.

        `go_on` is called when the caller takes another: whoever can wait for it holds no more than its caller reads.
        """
        if self.settled:
            go_on()
        else:
            cast("Taker", self.caller).take(response, go_on)

    def settle(self, outcome: Outcome) -> bool:
        """Give the caller its outcome. Returns False, and does nothing, if it was settled before."""
        if self.settled:
            return False
        self.settled = True
        self._on_settle(self, outcome)
        return True


class Batch(NamedTuple):
    """What an engine sees: whole input arrays of `rows` rows, never a request."""

    model_name: str
    model_version: str
    rows: int
    inputs: Mapping[str, Array]
    deadline_ns: int = NO_DEADLINE


# --- what a server says of itself and its models --------------------------------------------------


@dataclass(frozen=True, slots=True)
class ServerMetadata:
    name: str
    version: str
    extensions: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class ModelMetadata:
    """What a model takes and gives. The shapes have the batch dimension as -1 where the model has one.

    `predict` describes raw inputs and labels; None if the model takes tensors alone, and for a client over gRPC,
    whose message has no place for it. Source: KServe v2 "Model Metadata".
    """

    name: str
    versions: tuple[str, ...]
    platform: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    predict: Mapping[str, Any] | None


@dataclass(frozen=True, slots=True)
class IndexEntry:
    """One version of a model in the repository. `version` is empty where the model has none that is known."""

    name: str
    version: str
    state: str
    """LOADING, READY, UNLOADING or UNAVAILABLE."""
    reason: str
    """Why it is not READY, how far its load has come, or why a newer one failed."""


# --- predict: raw inputs and answers -------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class ImageInput:
    """An encoded picture. `content_type` is what the caller said of it; empty if nothing."""

    data: bytes
    content_type: str = ""


@dataclass(frozen=True, slots=True)
class TextInput:
    text: str


@dataclass(frozen=True, slots=True)
class RowInput:
    """A row of a table: values by column name, or in the order of the spec's columns."""

    values: Mapping[str, Any] | Sequence[Any]


RawInput = ImageInput | TextInput | RowInput


@dataclass(slots=True)
class PredictRequest:
    """One call of `predict`. `top_k` of 0 means as many as the model's processing spec says."""

    model_name: str
    inputs: Sequence[RawInput]
    model_version: str = ""
    id: str = ""
    received_ns: int = field(default_factory=time.monotonic_ns)
    """Set by the transport, which knows better than who makes this."""
    top_k: int = 0
    deadline_ns: int = NO_DEADLINE
    parameters: Mapping[str, Parameter] | None = None
    explanation: Explanation | None = None
    tenant: str = ""
    """As of an `InferRequest`, as `metadata`."""
    metadata: Metadata = ()


@dataclass(slots=True)
class PredictResponse:
    model_name: str
    model_version: str
    predictions: Sequence[Prediction]
    id: str = ""
