"""Where our answer is meant to be another than Triton's, and why. The table of `server/transport/triton_calls.md`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

Pair = tuple[str, str]
"""Triton's outcome and ours: a status, "answered", or what was answered."""

ANSWERED = "answered"


@dataclass(frozen=True)
class Difference:
    why: str
    grpc: Pair | None = None
    http: Pair | None = None

    def of(self, kind: str) -> Pair | None:
        """Of one of tritonclient's modules; None: it is the same there."""
        return self.grpc if kind.startswith("grpc") else self.http


_ABSENT = {"grpc": ("INVALID_ARGUMENT", "NOT_FOUND"), "http": ("400", "404")}
_FAULT = {"grpc": ("INTERNAL", "INVALID_ARGUMENT"), "http": ("500", "400")}
_TAKEN = {"grpc": (ANSWERED, "INVALID_ARGUMENT"), "http": (ANSWERED, "400")}
_PLACE = "['shared_memory_byte_size', 'shared_memory_offset', 'shared_memory_region']"

DIFFERENCES: dict[str, Difference] = {
    "get_inference_statistics, an unknown model": Difference("what is not there is NOT_FOUND everywhere", **_ABSENT),
    "get_inference_statistics, a version that is not there": Difference("the same", **_ABSENT),
    "get_trace_settings, of an unknown model": Difference("the same", **_ABSENT),
    "infer, a version that is no number": Difference(
        "there is no such version", grpc=("INVALID_ARGUMENT", "NOT_FOUND")
    ),
    "infer, a model that is not loaded": Difference(
        "the repository has it, and it may be loaded: come again", ("NOT_FOUND", "UNAVAILABLE"), ("404", "503")
    ),
    "infer, an output twice": Difference("one of the two is a mistake", **_TAKEN),
    "infer, of a sequence that the model does not have": Difference(
        "who says a sequence believes that the model remembers", (ANSWERED, "UNIMPLEMENTED"), (ANSWERED, "501")
    ),
    "infer, an output that does not fit its place": Difference("the place is the client's", **_FAULT),
    "infer, what is said of an output in shared memory": Difference(
        "the answer says where the output lies, and how many bytes it has", ("[]", _PLACE)
    ),
    "get_model_repository_index, a model that was never loaded": Difference(
        "it can't be asked, and the state says so", ("", "UNAVAILABLE"), ("", "UNAVAILABLE")
    ),
    "load_model, an unknown model": Difference("no fault of the server", ("INTERNAL", "NOT_FOUND"), ("500", "404")),
    "load_model, a config that is no JSON": Difference("the same", **_FAULT),
    "load_model, files without a config": Difference("the same", **_FAULT),
    "unload_model, an unknown model": Difference(
        "a name that was misspelt unloads nothing", (ANSWERED, "NOT_FOUND"), (ANSWERED, "404")
    ),
    "register_system_shared_memory, twice": Difference("409 is told apart from a bad request", http=("400", "409")),
    "register_system_shared_memory, a key that is not there": Difference("the key is the client's", **_FAULT),
    "register_cuda_shared_memory": Difference(
        "no GPU here, which is no fault of the request", ("INVALID_ARGUMENT", "UNIMPLEMENTED"), ("400", "501")
    ),
    "update_trace_settings, an unknown level": Difference("who asks for it believes to have it", **_TAKEN),
    "update_trace_settings, an unknown setting": Difference("the same", **_TAKEN),
    "update_log_settings, an unknown setting": Difference("the same", **_TAKEN),
    "update_log_settings, a format that there is not": Difference("the client's mistake", http=("503", "400")),
}


def short(found: Any) -> str:
    """An outcome as this table says it."""
    if isinstance(found, str):
        return found.removeprefix("error ").removeprefix("StatusCode.")
    return ANSWERED if found is None or isinstance(found, tuple | dict) or _nested(found) else str(found)


def _nested(found: Any) -> bool:
    return isinstance(found, list) and any(isinstance(each, dict | tuple) for each in found)


def markdown() -> str:
    """The table."""
    lines = ["| call | gRPC: Triton, here | HTTP: Triton, here | why |", "|---|---|---|---|"]
    lines += [
        f"| {name} | {_cell(each.grpc)} | {_cell(each.http)} | {each.why} |" for name, each in DIFFERENCES.items()
    ]
    return "\n".join(lines) + "\n"


def _cell(pair: Pair | None) -> str:
    if pair is None:
        return "the same"
    return ", ".join(f"`{said}`" if said.isupper() or said.isdigit() else (said or "nothing") for said in pair)
