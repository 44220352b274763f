"""The memory from which Tritons on this host read large inputs: places, what is kept, and what others left."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from server.engine.triton.addresses import Endpoint, Target
from server.engine.triton.calls import message_of
from server.engine.triton.held_file import PREFIX
from server.engine.triton.host_memory import HostMemory
from server.engine.triton.memory import Memory, Placed
from server.tensor import Tensor
from server.types import InferRequest

SIZE = 256 * 1024
LEAST = 1000


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def request(**arrays: Any) -> InferRequest:
    tensors = [Tensor.from_numpy(name, array) for name, array in arrays.items()]
    return InferRequest("m", tensors, on_settle=lambda *_: None, received_ns=0)


def opened(folder: Path, clock: Clock | None = None) -> Memory:
    memory = Memory(HostMemory(SIZE, folder), LEAST, clock or Clock())
    memory.open()
    return memory


def large(value: int = 0) -> InferRequest:
    """Half of the memory."""
    return request(x=np.full(SIZE // 2, value, np.uint8))


def put(memory: Memory, given: InferRequest) -> Placed:
    placed = memory.put(given)
    assert placed is not None
    return placed


def test_tensors_lie_where_it_is_said_and_aligned(tmp_path: Path) -> None:
    """Each at a multiple of 64 bytes, whatever lies before it; text and what is empty go by message."""
    memory = opened(tmp_path)
    put(memory, request(x=np.zeros(LEAST, np.uint8)))
    given = request(
        odd=np.arange(1001, dtype=np.uint8).reshape(7, 143),
        text=np.array([b"a" * 5000], dtype=object),
        none=np.zeros((0, 3), np.float32),
        x=np.arange(300, dtype=np.float32),
    )
    placed = put(memory, given)

    data = (tmp_path / memory.backing.name).read_bytes()
    assert set(placed.pieces) == {"odd", "x"}
    for name, piece in placed.pieces.items():
        (wanted,) = (bytes(tensor.data) for tensor in given.inputs if tensor.name == name)
        assert piece.region == memory.backing.name
        assert piece.offset % 64 == 0
        assert data[piece.offset : piece.offset + piece.byte_size] == wanted
    memory.close()


def test_triton_is_told_where_inputs_are_and_the_others_are_in_the_message(tmp_path: Path) -> None:
    """In the order of the inputs that are not in memory. An offset of 0 is not said."""
    memory = opened(tmp_path)
    given = request(text=np.array([b"abc"], dtype=object), x=np.zeros(500, np.float32), y=np.ones(3, np.float32))
    message = message_of(given, "1", 0, put(memory, given).pieces)

    told = [
        {name: getattr(value, value.WhichOneof("parameter_choice")) for name, value in one.parameters.items()}
        for one in message.inputs
    ]
    assert told == [
        {},
        {"shared_memory_region": memory.backing.name, "shared_memory_byte_size": 2000},
        {"shared_memory_region": memory.backing.name, "shared_memory_byte_size": 12, "shared_memory_offset": 2048},
    ]
    assert list(message.raw_input_contents) == [b"\x03\0\0\0abc"]
    memory.close()


def test_small_requests_and_those_that_never_fit_are_not_wanted(tmp_path: Path) -> None:
    """From the threshold on, up to the whole memory; text does not count."""
    memory = opened(tmp_path)

    def wanted(**arrays: Any) -> bool:
        given = request(**arrays)
        assert memory.wants(given) == (memory.put(given) is not None)
        return memory.wants(given)

    assert not wanted(x=np.zeros(LEAST - 1, np.uint8))
    assert not wanted(x=np.zeros(LEAST - 1, np.uint8), t=np.array([b"a" * LEAST], dtype=object))
    assert not wanted(x=np.zeros(SIZE + 1, np.uint8))
    assert wanted(x=np.zeros(LEAST - 1, np.uint8), y=np.zeros(1, np.uint8))
    memory.close()


def test_a_full_memory_takes_no_more_until_a_place_is_free(tmp_path: Path) -> None:
    """Then it is as before."""
    memory = opened(tmp_path)
    first, _ = put(memory, large()), put(memory, large())
    assert memory.put(large()) is None
    memory.give_back(first, read=True)

    assert put(memory, large()).place == first.place
    memory.close()


def test_the_place_of_a_request_that_was_given_up_is_kept_for_a_while(tmp_path: Path) -> None:
    """Triton may still read there: what another request puts there would be computed in its name."""
    clock = Clock()
    memory = opened(tmp_path, clock)
    first, second = put(memory, large(1)), put(memory, large(2))
    memory.give_back(first, read=False)
    clock.now = 29.0
    memory.give_back(second, read=False)
    assert memory.put(large(3)) is None
    assert (tmp_path / memory.backing.name).read_bytes()[first.place] == 1

    clock.now = 30.5
    assert put(memory, large(3)).place == first.place
    assert memory.put(large(4)) is None
    memory.close()


def test_the_file_is_for_its_user_alone_and_goes_with_the_end(tmp_path: Path) -> None:
    """And nothing hidden is left."""
    memory = opened(tmp_path)
    memory.open()
    (file,) = tmp_path.iterdir()
    assert (file.stat().st_mode & 0o777, file.stat().st_size) == (0o600, SIZE)
    memory.close()
    memory.close()

    assert list(tmp_path.iterdir()) == []
    assert memory.put(large()) is None


def test_a_memory_that_was_closed_while_it_was_made_leaves_nothing(tmp_path: Path) -> None:
    """It is made on another thread, which does not hear of the end."""
    memory = Memory(HostMemory(SIZE, tmp_path), LEAST)
    memory.close()
    memory.open()

    assert list(tmp_path.iterdir()) == []
    assert memory.put(large()) is None


def test_nothing_is_made_before_it_is_needed(tmp_path: Path) -> None:
    """No memory is taken from hosts where all inputs are small."""
    memory = Memory(HostMemory(SIZE, tmp_path), LEAST)
    assert memory.put(large()) is None
    memory.close()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("hidden", ["", "."], ids=["in use", "being made"])
def test_what_a_killed_process_left_is_removed_and_what_a_living_one_has_is_not(tmp_path: Path, hidden: str) -> None:
    """By the lock, which ends with its process; files of others are nobody's business."""
    left, other = tmp_path / f"{hidden}{PREFIX}1-dead", tmp_path / "other"
    left.touch()
    other.touch()
    living = os.open(tmp_path / f"{PREFIX}2-living", os.O_CREAT | os.O_RDWR)
    fcntl.flock(living, fcntl.LOCK_EX)
    memory = opened(tmp_path)

    assert {path.name for path in tmp_path.iterdir()} == {f"{PREFIX}2-living", "other", memory.backing.name}
    memory.close()
    os.close(living)


@pytest.mark.parametrize("call", ["os.posix_fallocate", "mmap.mmap"], ids=["in the folder", "for a mapping"])
def test_where_there_is_no_room_nothing_is_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str) -> None:
    """Writing to a page that does not exist would end the process; so all of it is asked for at once."""

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(call, full)
    with pytest.raises(OSError, match="No space left"):
        opened(tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("address", "here"), [("127.0.0.1", True), ("127.0.0.9", True), ("::1", True), ("10.0.0.1", False), ("::2", False)]
)
def test_a_loopback_address_is_this_host(address: str, here: bool) -> None:
    """No other is known to be."""
    assert Endpoint(Target("a", 1, False), address).on_this_host is here
