"""What a request can get wrong about its sequence, checked before it joins one.

Source: Triton, extension_sequence.md. Whether the sequence has begun is for the scheduler to say, who knows them.
"""

from __future__ import annotations

from server.errors import InvalidRequest, SequenceIdMissing, Unsupported
from server.sequences import ControlKind, SequenceBatching, sequence_id
from server.types import InferRequest

_FLAGS = ("sequence_start", "sequence_end")
_ID = "sequence_id"
LONGEST_ID = 128
"""Characters of a text that names a sequence, as in Triton."""
_LEAST, _MOST = -(1 << 63), (1 << 64) - 1


def refuse_sequence(request: InferRequest) -> None:
    """Of a model that keeps no sequences. Triton ignores what a request says of one there: whoever says it believes
    that the model remembers, and would get answers as if it did.

    Raises:
        Unsupported: the request belongs to a sequence.
    """
    for name in (_ID, *_FLAGS):
        if request.parameters.get(name):
            raise Unsupported(f"parameters.{name}", f"model '{request.model_name}' does not batch sequences")


class SequenceCheck:
    """Of one version of a model that batches sequences."""

    def __init__(self, model_name: str, batching: SequenceBatching) -> None:
        self._model_name = model_name
        control = batching.control(ControlKind.CORRID)
        self._told = control.datatype if control is not None else ""

    def __call__(self, request: InferRequest) -> None:
        """Raises:
        InvalidRequest: there is no sequence, its id is none, or not of the type that the model is told it in; a
            flag is no flag; there are several rows.
        """
        parameters = request.parameters
        for name in _FLAGS:
            if not isinstance(parameters.get(name, False), bool):
                raise InvalidRequest(f"parameters.{name}", f"must be true or false, got {parameters[name]!r}")
        self._check_id(parameters.get(_ID, 0))
        if request.rows > 1:
            # Triton's wording behind the colon.
            problem = f"inference request to model '{self._model_name}' must specify batch-size 1 due to requirements "
            raise InvalidRequest("inputs", problem + f"of sequence batcher, got {request.rows}")

    def _check_id(self, id: object) -> None:
        field = f"parameters.{_ID}"
        if isinstance(id, bool) or not isinstance(id, (int, str)):
            raise InvalidRequest(field, f"must be a whole number or a string, got {id!r}")
        if isinstance(id, int) and not _LEAST <= id <= _MOST:
            raise InvalidRequest(field, f"must have 64 bits at most, got {id}")
        if isinstance(id, str):
            _check_text(field, id)
        if not sequence_id(id):
            raise SequenceIdMissing(self._model_name)
        if self._told and isinstance(id, str) != (self._told == "BYTES"):
            wanted = "a string" if self._told == "BYTES" else "a whole number"
            problem = f"must be {wanted}, got {id!r}: model '{self._model_name}' is told it as {self._told}"
            raise InvalidRequest(field, problem)


def _check_text(field: str, id: str) -> None:
    if len(id) > LONGEST_ID:
        raise InvalidRequest(field, f"{len(id)} characters, at most {LONGEST_ID}")
    try:
        id.encode()
    except UnicodeEncodeError as error:  # JSON can say halves of a surrogate pair
        raise InvalidRequest(field, "is not Unicode text") from error
