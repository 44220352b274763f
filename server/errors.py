"""One tree of errors for everything that can go wrong with a request or a model.

    ServingError
      InvalidRequest    INVALID_ARG   the request contradicts the protocol or the model's config
        SequenceIdMissing             a model that batches sequences is asked without one
        SequenceUnknown               no start was seen of the sequence, or it is over
      PayloadTooLarge   TOO_LARGE     a body, picture or message is over its limit
      SharedMemoryTooSmall  INVALID_ARG   an output is larger than the place that it was given
      UnknownModel      NOT_FOUND     no such model, or no such version of it
      NotInRepository   NOT_FOUND     no such model to be loaded
      UnknownRepository NOT_FOUND     no such repository
      UnknownRoute      NOT_FOUND     no such path
      UnknownService    NOT_FOUND     no such gRPC service, asked for its health
      UnknownRegion     NOT_FOUND     no such shared memory region
      RegionExists      EXISTS        a shared memory region of that name is registered
      ControlNotAllowed UNAVAILABLE   models are not loaded and unloaded by requests here
      ModelNotReady     UNAVAILABLE   the model exists and can't answer now
      Draining          UNAVAILABLE   the server is shutting down
      SequenceLost      UNAVAILABLE   a request of the same sequence before this one was not answered
      EngineLost        UNAVAILABLE   the process that runs the models ended, or takes no more; it is replaced
      ReplicasUnreached UNAVAILABLE   no replica tells what is asked of it
      TritonUnreached   UNAVAILABLE   no Triton behind this server took the request; it was not executed
        TritonDeclined                one that can be reached did not take it
      TritonLost        UNAVAILABLE   the connection to a Triton broke while it had the request
      QueueFull         EXHAUSTED     more work is waiting than the model's queue takes
      Overloaded        EXHAUSTED     the answer would come after the request's deadline
      SharedMemoryBusy  EXHAUSTED     tensors in shared memory, more bytes under way than may be
      DeadlineExceeded  DEADLINE      the caller's time ran out before a forward pass was started for it
      CallExpired       DEADLINE      the caller's time ran out, wherever its call was
      RequestTooSlow    DEADLINE      the request did not arrive as a whole in time
      Cancelled         CANCELLED     the caller went away
      Unauthenticated   UNAUTHENTICATED  the caller shows nothing by which it is known
      PermissionDenied  PERMISSION    the caller is known, and may not do this
      RateLimited       EXHAUSTED     the caller asks for more than its key grants
      Unsupported       UNSUPPORTED   a feature of the protocol that this server or engine does not have
      ModelLoadFailed   INVALID_ARG   a model's folder can't be served, and why
        ModelUnreachable UNAVAILABLE  a model can't be had from its repository now
      EngineFailure     INTERNAL      a forward pass failed; the text stays in the log
      TritonSaid                      what a Triton behind this server answered, in its words; a class for each code

An error carries its code as a class attribute and its facts as fields. `public_message` is all that a
client ever sees; `transport.status` is the one table from `Code` to HTTP and gRPC.
"""

from __future__ import annotations

from enum import StrEnum
from typing import ClassVar


class Code(StrEnum):
    """Why a request was not answered. The first five are Triton's own (TRITONSERVER_Error_Code)."""

    INVALID_ARG = "INVALID_ARG"
    NOT_FOUND = "NOT_FOUND"
    EXISTS = "EXISTS"
    UNAVAILABLE = "UNAVAILABLE"
    UNSUPPORTED = "UNSUPPORTED"
    INTERNAL = "INTERNAL"
    TOO_LARGE = "TOO_LARGE"
    EXHAUSTED = "EXHAUSTED"
    DEADLINE = "DEADLINE"
    CANCELLED = "CANCELLED"
    UNAUTHENTICATED = "UNAUTHENTICATED"
    PERMISSION = "PERMISSION"


class ServingError(Exception):
    """The root. Never raised itself; `public_message` holds nothing that a client may not see."""

    code: ClassVar[Code] = Code.INTERNAL
    retry_after_ms: int = 0
    """When to come back, where that helps; 0: nobody knows, or it would be the same then."""

    @property
    def public_message(self) -> str:
        """The sentence for the client: names the field and the limit, never a path or a traceback."""
        return "internal error"

    def __str__(self) -> str:
        return self.public_message


class InvalidRequest(ServingError):
    """`field` is spelled as the caller spelled it, for example ``inputs[0].shape``."""

    code = Code.INVALID_ARG

    def __init__(self, field: str, problem: str) -> None:
        super().__init__(field, problem)
        self.field = field
        self.problem = problem

    @property
    def public_message(self) -> str:
        return f"{self.field}: {self.problem}"


class SequenceIdMissing(InvalidRequest):
    def __init__(self, model_name: str) -> None:
        super().__init__("parameters.sequence_id", "")
        self.model_name = model_name

    @property
    def public_message(self) -> str:
        # Triton's wording.
        return f"inference request to model '{self.model_name}' must specify a non-zero or non-empty correlation ID"


class SequenceUnknown(InvalidRequest):
    def __init__(self, model_name: str, sequence_id: int | str) -> None:
        super().__init__("parameters.sequence_start", "")
        self.model_name = model_name
        self.sequence_id = sequence_id

    @property
    def public_message(self) -> str:
        # Triton's wording, on which its clients match.
        return (
            f"inference request for sequence {self.sequence_id} to model '{self.model_name}' must specify the START "
            "flag on the first request of the sequence"
        )


class SequenceLost(ServingError):
    """The request was not executed, for it would have met another state than its caller believes."""

    code = Code.UNAVAILABLE

    def __init__(self, model_name: str, sequence_id: int | str, why: str) -> None:
        super().__init__(model_name, sequence_id, why)
        self.model_name = model_name
        self.sequence_id = sequence_id
        self.why = why

    @property
    def public_message(self) -> str:
        return f"sequence {self.sequence_id} of model '{self.model_name}' is over: {self.why}; start it again"


class PayloadTooLarge(ServingError):
    """`field` is over `limit`, both counted in `unit`."""

    code = Code.TOO_LARGE

    def __init__(self, field: str, limit: int, size: int | None = None, unit: str = "bytes") -> None:
        super().__init__(field, limit, size, unit)
        self.field = field
        self.limit = limit
        self.size = size
        self.unit = unit

    @property
    def public_message(self) -> str:
        size = "" if self.size is None else f"{self.size} {self.unit}, "
        return f"{self.field}: {size}over the limit of {self.limit} {self.unit}"


class UnknownModel(ServingError):
    code = Code.NOT_FOUND

    def __init__(self, model_name: str, model_version: str = "") -> None:
        super().__init__(model_name, model_version)
        self.model_name = model_name
        self.model_version = model_version

    @property
    def public_message(self) -> str:
        # Triton's wording for both cases: its clients match on "unknown model" and "is not found".
        if self.model_version:
            return f"Request for unknown model: '{self.model_name}' version {self.model_version} is not found"
        return f"Request for unknown model: '{self.model_name}' is not found"


class NotInRepository(UnknownModel):
    @property
    def public_message(self) -> str:
        # Triton's wording, which its clients match on.
        return f"failed to load '{self.model_name}', failed to poll from model repository: there is no such model"


class UnknownRepository(ServingError):
    code = Code.NOT_FOUND

    def __init__(self, repository_name: str) -> None:
        super().__init__(repository_name)
        self.repository_name = repository_name

    @property
    def public_message(self) -> str:
        return f"repository_name: there is no repository '{self.repository_name}'"


class UnknownRoute(ServingError):
    code = Code.NOT_FOUND

    def __init__(self, path: str) -> None:
        super().__init__(path)
        self.path = path

    @property
    def public_message(self) -> str:
        return f"path: no such route: {self.path}"


class UnknownService(ServingError):
    code = Code.NOT_FOUND

    def __init__(self, service: str) -> None:
        super().__init__(service)
        self.service = service

    @property
    def public_message(self) -> str:
        return f"service: no such service: {self.service}"


class UnknownRegion(ServingError):
    """`kind` is what was looked for, where one kind alone was: "system " or "cuda ";
    `but` what the region is instead."""

    code = Code.NOT_FOUND

    def __init__(self, name: str, kind: str = "", but: str = "") -> None:
        super().__init__(name, kind, but)
        self.name = name
        self.kind = kind
        self.but = but

    @property
    def public_message(self) -> str:
        return f"Unable to find {self.kind}shared memory region: '{self.name}' {self.but}".rstrip()


class RegionExists(ServingError):
    code = Code.EXISTS

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.name = name

    @property
    def public_message(self) -> str:
        return f"shared memory region '{self.name}' already in manager"


class SharedMemoryTooSmall(ServingError):
    """The place given to `output` has `place_bytes`, the output `output_bytes`."""

    code = Code.INVALID_ARG

    def __init__(self, output: str, place_bytes: int, output_bytes: int) -> None:
        super().__init__(output, place_bytes, output_bytes)
        self.output = output
        self.place_bytes = place_bytes
        self.output_bytes = output_bytes

    @property
    def public_message(self) -> str:
        return (
            f"shared memory size specified with the request for output '{self.output}' ({self.place_bytes} bytes) "
            f"should be at least {self.output_bytes} bytes to hold the results"
        )


class SharedMemoryBusy(ServingError):
    code = Code.EXHAUSTED

    def __init__(self, limit_bytes: int) -> None:
        super().__init__(limit_bytes)
        self.limit_bytes = limit_bytes

    @property
    def public_message(self) -> str:
        return f"shared memory: requests under way use {self.limit_bytes} bytes of it, which is the limit"


class ControlNotAllowed(ServingError):
    """`control_mode` is the server's own."""

    code = Code.UNAVAILABLE

    def __init__(self, control_mode: str) -> None:
        super().__init__(control_mode)
        self.control_mode = control_mode

    @property
    def public_message(self) -> str:
        # Triton's sentence, whatever the mode; its clients match on it.
        mode = f"the mode is {self.control_mode}, it takes --model-control-mode explicit"
        return f"explicit model load / unload is not allowed if polling is enabled: {mode}"


class ModelNotReady(ServingError):
    code = Code.UNAVAILABLE

    def __init__(self, model_name: str, model_version: str = "", reason: str = "") -> None:
        super().__init__(model_name, model_version, reason)
        self.model_name = model_name
        self.model_version = model_version
        self.reason = reason

    @property
    def public_message(self) -> str:
        version = f" version {self.model_version}" if self.model_version else ""
        reason = f": {self.reason}" if self.reason else ""
        return f"model '{self.model_name}'{version} is not ready{reason}"


class Draining(ServingError):
    code = Code.UNAVAILABLE

    @property
    def public_message(self) -> str:
        return "the server is shutting down"


class ReplicasUnreached(ServingError):
    code = Code.UNAVAILABLE

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason

    @property
    def public_message(self) -> str:
        return f"no replica tells what is asked of it: {self.reason}"


class EngineLost(ServingError):
    code = Code.UNAVAILABLE
    retry_after_ms = 1000

    @property
    def public_message(self) -> str:
        return "the process that runs the models was lost and is being replaced"


class TritonUnreached(ServingError):
    """It was not executed, so it may be sent again. `why` is shown to clients and names no address."""

    code = Code.UNAVAILABLE
    retry_after_ms = 1000

    def __init__(self, model_name: str, why: str) -> None:
        super().__init__(model_name, why)
        self.model_name = model_name
        self.why = why

    @property
    def public_message(self) -> str:
        return f"model '{self.model_name}': no Triton took the request, which was not executed: {self.why}"


class TritonDeclined(TritonUnreached):
    """A Triton that can be reached took the request not; as `TritonUnreached` it may be sent again."""


class TritonLost(ServingError):
    """`detail` is for the log alone."""

    code = Code.UNAVAILABLE
    retry_after_ms = 1000

    def __init__(self, model_name: str, detail: str = "") -> None:
        super().__init__(model_name, detail)
        self.model_name = model_name
        self.detail = detail

    @property
    def public_message(self) -> str:
        return f"model '{self.model_name}': the connection to its Triton broke; the request may have been executed"


class TritonSaid(ServingError):
    """What a Triton behind this server said, in its own words. Never raised itself."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.text = text

    @property
    def public_message(self) -> str:
        return self.text


class TritonRefused(TritonSaid):
    code = Code.INVALID_ARG


class TritonHasNo(TritonSaid):
    code = Code.NOT_FOUND


class TritonNotServing(TritonSaid):
    code = Code.UNAVAILABLE


class TritonCannot(TritonSaid):
    code = Code.UNSUPPORTED


class TritonExhausted(TritonSaid):
    code = Code.EXHAUSTED


class QueueFull(ServingError):
    """`retry_after_ms` is when a place is expected to be free, 0 where nobody knows.

    `held`: where tenants share the places, how many of them the request's tenant has; else 0.
    """

    code = Code.EXHAUSTED

    def __init__(self, model_name: str, limit: int, retry_after_ms: int = 0, held: int = 0) -> None:
        super().__init__(model_name, limit, retry_after_ms, held)
        self.model_name = model_name
        self.limit = limit
        self.retry_after_ms = retry_after_ms
        self.held = held

    @property
    def public_message(self) -> str:
        return f"the queue of model '{self.model_name}' is full: max_queue_size is {self.limit} requests{self._share()}"

    def _share(self) -> str:
        return f", shared by tenants, and this one has {self.held}" if self.held else ""


class TritonQueueFull(QueueFull):
    """The queue of a Triton behind this server, which did not execute the request."""

    def __init__(self, model_name: str) -> None:
        super().__init__(model_name, 0)

    @property
    def public_message(self) -> str:
        return f"the queue of model '{self.model_name}' is full at its Triton"


class Overloaded(ServingError):
    """The answer is expected in `predicted_ms`, after the deadline. `retry_after_ms`: what is admitted now is done."""

    code = Code.EXHAUSTED

    def __init__(self, model_name: str, predicted_ms: int, retry_after_ms: int = 0) -> None:
        super().__init__(model_name, predicted_ms, retry_after_ms)
        self.model_name = model_name
        self.predicted_ms = predicted_ms
        self.retry_after_ms = retry_after_ms

    @property
    def public_message(self) -> str:
        return (
            f"model '{self.model_name}' is overloaded: the answer is expected in {self.predicted_ms} ms, "
            "after the request's deadline"
        )


class DeadlineExceeded(ServingError):
    code = Code.DEADLINE

    def __init__(self, model_name: str, waited_us: int, num_tokens: int = 0) -> None:
        """`num_tokens`: of the text that was being written when its time was over."""
        super().__init__(model_name, waited_us, num_tokens)
        self.model_name = model_name
        self.waited_us = waited_us
        self.num_tokens = num_tokens

    @property
    def public_message(self) -> str:
        if self.num_tokens:
            told = f"the text of model '{self.model_name}' had {self.num_tokens} tokens after {self.waited_us} us"
        else:
            told = f"the request to model '{self.model_name}' waited {self.waited_us} us and was not executed"
        return f"deadline exceeded: {told}"


class CallExpired(ServingError):
    code = Code.DEADLINE

    @property
    def public_message(self) -> str:
        return "deadline exceeded"


class RequestTooSlow(ServingError):
    code = Code.DEADLINE

    def __init__(self, limit_s: float) -> None:
        super().__init__(limit_s)
        self.limit_s = limit_s

    @property
    def public_message(self) -> str:
        return f"request: not here as a whole after {self.limit_s:g} s"


class Cancelled(ServingError):
    code = Code.CANCELLED

    @property
    def public_message(self) -> str:
        return "the request was cancelled by its caller"


class Unauthenticated(ServingError):
    """`problem` shows nothing of what the caller showed."""

    code = Code.UNAUTHENTICATED

    def __init__(self, problem: str) -> None:
        super().__init__(problem)
        self.problem = problem

    @property
    def public_message(self) -> str:
        return f"not authenticated: {self.problem}"


class PermissionDenied(ServingError):
    code = Code.PERMISSION

    def __init__(self, problem: str) -> None:
        super().__init__(problem)
        self.problem = problem

    @property
    def public_message(self) -> str:
        return f"not allowed: {self.problem}"


class RateLimited(ServingError):
    """`limit` is what the key of `name` grants. `retry_after_ms`: when it may come again, 0 where nobody knows."""

    code = Code.EXHAUSTED

    def __init__(self, name: str, limit: str, retry_after_ms: int = 0) -> None:
        super().__init__(name, limit, retry_after_ms)
        self.name = name
        self.limit = limit
        self.retry_after_ms = retry_after_ms

    @property
    def public_message(self) -> str:
        return f"'{self.name}' is over its limit: {self.limit}"


class Unsupported(ServingError):
    """`field` names what was asked for, `problem` what is missing or to be used instead."""

    code = Code.UNSUPPORTED

    def __init__(self, field: str, problem: str) -> None:
        super().__init__(field, problem)
        self.field = field
        self.problem = problem

    @property
    def public_message(self) -> str:
        return f"{self.field}: {self.problem}"


class ModelLoadFailed(ServingError):
    """`where` is the file (and the field in it) at fault, relative to the model's folder."""

    code = Code.INVALID_ARG

    def __init__(self, model_name: str, where: str, problem: str) -> None:
        super().__init__(model_name, where, problem)
        self.model_name = model_name
        self.where = where
        self.problem = problem

    @property
    def public_message(self) -> str:
        return f"model '{self.model_name}' can't be loaded: {self.where}: {self.problem}"


class ModelUnreachable(ModelLoadFailed):
    """Nothing is wrong with the model itself as far as is known: it may be had at a later time."""

    code = Code.UNAVAILABLE


class EngineFailure(ServingError):
    """`detail` is for the log alone; the client learns only that the forward pass failed."""

    code = Code.INTERNAL

    def __init__(self, model_name: str, detail: str = "") -> None:
        super().__init__(model_name, detail)
        self.model_name = model_name
        self.detail = detail

    @property
    def public_message(self) -> str:
        return f"model '{self.model_name}' failed to execute the request"


class DeviceLost(EngineFailure):
    """The device of an instance is lost to it: no later pass of it would go well either."""
