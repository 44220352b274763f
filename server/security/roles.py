"""What a call asks for, and what a caller may have: roles, and the groups of calls that are closed to the network.

Source of the groups' names: Triton's `--http-restricted-api` and `--grpc-restricted-protocol`.
"""

from __future__ import annotations

from enum import StrEnum
from typing import NamedTuple


class Role(StrEnum):
    PREDICT = "predict"
    """infer, predict, generate, and their kin; tensors in the caller's own shared memory."""
    READ = "read"
    """What models there are, what they take, how they do."""
    CONTROL = "control"
    """Load and unload models; change what is logged and traced."""


class Group(StrEnum):
    MODEL_REPOSITORY = "model-repository"
    SHARED_MEMORY = "shared-memory"
    LOGGING = "logging"
    TRACE = "trace"
    STATISTICS = "statistics"


class Need(NamedTuple):
    """What a caller must have for a call. Without a role it is open to everybody."""

    role: Role | None
    group: Group | None = None


OPEN = Need(None)
"""Health, and the console's files, in which there is nothing to be hidden."""
PREDICTS = Need(Role.PREDICT)
READS = Need(Role.READ)
CONTROLS = Need(Role.CONTROL)
"""Also of whatever does not say what it needs: closed is the safe mistake."""
SHARES_MEMORY = Need(Role.PREDICT, Group.SHARED_MEMORY)
READS_REPOSITORY = Need(Role.READ, Group.MODEL_REPOSITORY)
CONTROLS_REPOSITORY = Need(Role.CONTROL, Group.MODEL_REPOSITORY)
READS_STATISTICS = Need(Role.READ, Group.STATISTICS)
READS_LOGGING = Need(Role.READ, Group.LOGGING)
CONTROLS_LOGGING = Need(Role.CONTROL, Group.LOGGING)
READS_TRACE = Need(Role.READ, Group.TRACE)
CONTROLS_TRACE = Need(Role.CONTROL, Group.TRACE)
