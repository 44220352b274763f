"""The states of the server's life, in the one order they can come in."""

from __future__ import annotations

from enum import IntEnum


class State(IntEnum):
    STARTING = 0
    READY = 1
    DRAINING = 2
    STOPPED = 3


class Lifecycle:
    """Where the server stands. It only ever moves forward."""

    def __init__(self) -> None:
        self._state = State.STARTING

    @property
    def state(self) -> State:
        return self._state

    def advance(self, state: State) -> None:
        """Move on to a later state; moving back is a bug."""
        assert state > self._state, f"{self._state.name} can't become {state.name}"
        self._state = state
