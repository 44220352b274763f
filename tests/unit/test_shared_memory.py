"""Tensors in shared memory: regions, bounds, files that change under way, and what a request holds."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest

from server.app import allows_shared_memory
from server.errors import (
    Cancelled,
    InvalidRequest,
    RegionExists,
    ServingError,
    SharedMemoryBusy,
    SharedMemoryTooSmall,
    UnknownRegion,
    Unsupported,
)
from server.settings import Settings, SharedMemorySettings
from server.shared_memory.references import Reference, SharedInput, SharedTensors
from server.shared_memory.region import Kind, Region
from server.shared_memory.regions import Regions
from server.shared_memory.requests import SharedMemory
from server.tensor import Tensor
from server.types import InferRequest, InferResponse, Outcome
from tests.support.shared_memory import SHM, SharedFile, shared_file

SIZE = 4096
LARGE = 1024 * 1024


@pytest.fixture
def file() -> Iterator[SharedFile]:
    with shared_file(SIZE) as path:
        yield path


@pytest.fixture
def regions() -> Iterator[Regions]:
    made = Regions(3, 10_000)
    yield made
    made.close()


async def until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(30):
        while not condition():  # noqa: ASYNC110 - what is waited for has no event
            await asyncio.sleep(0)


def open_files() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


# --- regions ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("slashes", ["", "/", "//"])
def test_a_key_is_a_name_in_dev_shm(regions: Regions, file: SharedFile, slashes: str) -> None:
    """With or without a leading slash, as shm_open takes it."""
    file.write(b"0123456789")
    regions.register("r", slashes + file.name, 2, 8)
    found = regions.find(Reference("r", 1, 3))
    assert found.read(Reference("r", 1, 3)) == b"345"
    found.write(5, b"xyz")
    assert file.read() == b"0123456xyz"


@pytest.mark.parametrize(
    "key",
    ["", "/", ".", "..", "../etc/passwd", "/../etc/passwd", "a/b", "a\0b", "x" * 256, "sem.one", "\udc80"],
)
def test_no_key_leaves_dev_shm(regions: Regions, key: str) -> None:
    """Paths, and what is no memory, are the caller's error."""
    before = open_files()
    with pytest.raises(InvalidRequest):
        regions.register("r", key, 0, 1)
    assert (open_files(), regions.of("system")) == (before, [])


def test_no_link_and_no_fifo_is_opened(regions: Regions, file: SharedFile) -> None:
    """A link could lead anywhere, a FIFO would keep the server waiting, a folder is none."""
    link, fifo, folder = (SHM / f"{file.name}_{kind}" for kind in ("link", "fifo", "folder"))
    link.symlink_to("/etc/passwd")
    os.mkfifo(fifo)
    folder.mkdir()
    before = open_files()
    try:
        for path in (link, fifo, folder):
            with pytest.raises(InvalidRequest):
                regions.register("r", path.name, 0, 1)
    finally:
        link.unlink()
        fifo.unlink()
        folder.rmdir()
    assert open_files() == before


@pytest.mark.parametrize(
    ("offset", "byte_size"),
    [(0, SIZE + 1), (1, SIZE), (SIZE, 1), (0, 0), (2**64 - 1, 2), (2, 2**64 - 1), (-1, 1)],
)
def test_a_region_is_within_its_file(regions: Regions, file: SharedFile, offset: int, byte_size: int) -> None:
    """Sizes that only overflow would make fit do not fit; no descriptor stays behind."""
    before = open_files()
    with pytest.raises(InvalidRequest, match="failed to register shared memory region 'r'"):
        regions.register("r", file.name, offset, byte_size)
    assert open_files() == before


@pytest.mark.parametrize(
    ("offset", "byte_size", "words"),
    [
        (100, 1, "Invalid offset for shared memory region"),
        (2**63 - 1, 2**63 - 1, "Invalid offset for shared memory region"),
        (0, 101, "Invalid offset [+] byte size for shared memory region"),
        (99, 2, "Invalid offset [+] byte size for shared memory region"),
        (1, 2**63 - 1, "Invalid offset [+] byte size for shared memory region"),
    ],
)
def test_a_piece_is_within_its_region(
    regions: Regions, file: SharedFile, offset: int, byte_size: int, words: str
) -> None:
    """The file may be larger: the region is what was registered."""
    regions.register("r", file.name, 0, 100)
    with pytest.raises(InvalidRequest, match=words):
        regions.find(Reference("r", offset, byte_size))


def test_names_are_taken_once_and_given_back(regions: Regions, file: SharedFile) -> None:
    """A name is free again behind `unregister`; that of an unknown name does nothing."""
    regions.register("r", file.name, 0, 10)
    with pytest.raises(RegionExists, match="shared memory region 'r' already in manager"):
        regions.register("r", file.name, 0, 10)
    regions.unregister("system", "nobody")
    regions.unregister("cuda", "r")
    regions.unregister("cuda")
    assert regions.get("r") is not None, "it is of another kind"
    regions.unregister("system", "r")
    regions.register("r", file.name, 0, 20)
    assert [(region.name, region.byte_size) for region in regions.of("system")] == [("r", 20)]
    with pytest.raises(UnknownRegion, match="Unable to find shared memory region: 's'"):
        regions.find(Reference("s", 0, 1))


def test_there_are_limits_of_count_and_bytes(regions: Regions, file: SharedFile) -> None:
    """One too many, or bytes too many in all, are refused with the limit's name."""
    regions.register("a", file.name, 0, SIZE)
    regions.register("b", file.name, 0, SIZE)
    with pytest.raises(InvalidRequest, match="max_registered_bytes"):
        regions.register("c", file.name, 0, SIZE)
    regions.register("c", file.name, 0, 10)
    with pytest.raises(InvalidRequest, match="max_regions"):
        regions.register("d", file.name, 0, 10)


def test_a_file_that_was_cut_is_told_of(regions: Regions, file: SharedFile) -> None:
    """Nothing is mapped, so nothing faults: reading and writing say that the bytes are gone."""
    regions.register("r", file.name, 0, SIZE)
    region = regions.find(Reference("r", 0, SIZE))
    file.cut(100)
    for use in (lambda: region.read(Reference("r", 0, SIZE)), lambda: region.write(0, bytes(SIZE))):
        with pytest.raises(InvalidRequest, match="was cut to 100 bytes, 4096 are needed"):
            use()
    assert region.read(Reference("r", 0, 100)) == bytes(100)


def test_a_region_in_use_outlives_its_name(regions: Regions, file: SharedFile) -> None:
    """It is closed behind the last who uses it, and not before."""
    before = open_files()
    regions.register("r", file.name, 0, SIZE)
    region = regions.find(Reference("r", 0, 1))
    region.hold()
    regions.unregister("system")
    assert (regions.of("system"), open_files()) == ([], before + 1)
    assert region.read(Reference("r", 0, 1)) == b"\0"
    region.release()
    assert open_files() == before


# --- requests -----------------------------------------------------------------------------------------


class Model:
    """Gives its input back as y; `held` keeps requests until `answer`."""

    def __init__(self, *, held: bool = False) -> None:
        self.held = held
        self.requests: list[InferRequest] = []
        self.cancelled: list[InferRequest] = []

    def submit(self, requests: Sequence[InferRequest]) -> None:
        for request in requests:
            request.holder = self
            self.requests.append(request)
            if not self.held:
                self.answer(request)

    def answer(self, request: InferRequest) -> None:
        data = request.inputs[0]
        request.settle(InferResponse("m", "1", [Tensor("y", data.datatype, data.shape, memoryview(data.data))]))

    def cancel(self, request: InferRequest) -> None:
        self.cancelled.append(request)
        request.settle(Cancelled())


class Asked:
    """A request of one input x at the start of the region and one output y in its second half."""

    def __init__(self, size: int, *, place: int | None = None, check: object = None) -> None:
        self.outcomes: list[Outcome] = []
        self.over = asyncio.Event()
        self.request = InferRequest("m", [Tensor("x", "UINT8", (size,), b"")], on_settle=self._settle, received_ns=0)
        piece = SharedInput(0, Reference("r", 0, size), check or (lambda _: None))  # type: ignore[arg-type]
        self.shared = SharedTensors((piece,), {"y": Reference("r", size, size if place is None else place)})

    def _settle(self, _request: InferRequest, outcome: Outcome) -> None:
        self.outcomes.append(outcome)
        self.over.set()

    async def outcome(self) -> Outcome:
        async with asyncio.timeout(30):
            await self.over.wait()
        [outcome] = self.outcomes
        return outcome


@pytest.fixture
def memory() -> Iterator[SharedMemory]:
    with closing(SharedMemory(SharedMemorySettings(max_in_flight_bytes=4 * LARGE), enabled=True)) as made:
        yield made


@pytest.fixture(params=[100, LARGE], ids=["on the loop", "on a thread"])
def size(request: pytest.FixtureRequest) -> int:
    return int(request.param)


@pytest.fixture
def pair(memory: SharedMemory, size: int) -> Iterator[SharedFile]:
    """A registered file with room for an input and an output of `size` bytes."""
    with shared_file(2 * size) as path:
        memory.regions().register("r", path.name, 0, 2 * size)
        yield path


async def test_inputs_are_read_and_outputs_written(memory: SharedMemory, pair: SharedFile, size: int) -> None:
    """The model sees a request like any other, the caller an answer whose output is in its memory."""
    data = np.random.default_rng(0).bytes(size)
    pair.write(data + bytes(size))
    asked = Asked(size)
    memory.take(asked.request, asked.shared, Model().submit)
    answer = await asked.outcome()
    assert isinstance(answer, InferResponse)
    assert (answer.outputs[0].data, answer.shared) == (b"", {"y": Reference("r", size, size)})
    assert pair.read() == data + data
    assert memory.in_flight_bytes == 0


async def test_an_output_that_does_not_fit_is_not_written(memory: SharedMemory, pair: SharedFile, size: int) -> None:
    """The error has Triton's words, and not one byte of the place has changed."""
    pair.write(bytes([7]) * 2 * size)
    asked = Asked(size, place=size - 1)
    memory.take(asked.request, asked.shared, Model().submit)
    outcome = await asked.outcome()
    assert isinstance(outcome, SharedMemoryTooSmall)
    assert f"({size - 1} bytes) should be at least {size} bytes" in str(outcome)
    assert pair.read() == bytes([7]) * 2 * size
    assert memory.in_flight_bytes == 0


async def test_what_the_check_finds_wrong_is_the_outcome(memory: SharedMemory, pair: SharedFile, size: int) -> None:
    """The copy is checked, and what is wrong never reaches the model."""

    def check(data: bytes) -> None:
        raise InvalidRequest("inputs[0]", f"{len(data)} bytes of nonsense")

    asked, model = Asked(size, check=check), Model()
    memory.take(asked.request, asked.shared, model.submit)
    assert str(await asked.outcome()) == f"inputs[0]: {size} bytes of nonsense"
    assert (model.requests, memory.in_flight_bytes) == ([], 0)


@pytest.mark.parametrize("left", [0, 50, 150])
async def test_a_file_cut_short_fails_its_own_request_alone(
    memory: SharedMemory, pair: SharedFile, size: int, left: int
) -> None:
    """Before it is read, or before the output is written: the request is refused, and the next one is served."""
    model = Model(held=True)
    asked = Asked(size)
    if left < 100:
        pair.cut(left)
    memory.take(asked.request, asked.shared, model.submit)
    if left >= 100:
        await until(lambda: model.requests)
        pair.cut(size + 50)
        model.answer(asked.request)
    outcome = await asked.outcome()
    assert isinstance(outcome, InvalidRequest)
    assert "was cut to" in str(outcome)
    pair.cut(2 * size)
    again = Asked(size)
    memory.take(again.request, again.shared, Model().submit)
    assert isinstance(await again.outcome(), InferResponse)
    assert memory.in_flight_bytes == 0


async def test_unregistered_under_way(memory: SharedMemory, pair: SharedFile, size: int) -> None:
    """Who uses a region goes on to use it; its file is closed behind them."""
    before = open_files()
    model, asked = Model(held=True), Asked(size)
    memory.take(asked.request, asked.shared, model.submit)
    memory.regions().unregister("system", "r")
    await until(lambda: model.requests)
    assert open_files() >= before
    model.answer(asked.request)
    assert isinstance(await asked.outcome(), InferResponse)
    assert open_files() == before - 1


@pytest.mark.parametrize("when", ["read", "run", "written"])
async def test_a_cancelled_request_lets_go(memory: SharedMemory, when: str) -> None:
    """Wherever it is, its caller is told once and at once, and nothing of it is held when the threads have ended."""
    with shared_file(2 * LARGE) as path:
        memory.regions().register("r", path.name, 0, 2 * LARGE)
        model, asked = Model(held=True), Asked(LARGE)
        memory.take(asked.request, asked.shared, model.submit)
        if when != "read":
            await until(lambda: model.requests)
        if when == "written":
            model.answer(asked.request)
        assert asked.request.holder is not None
        asked.request.holder.cancel(asked.request)
        [outcome] = asked.outcomes
        assert isinstance(outcome, Cancelled)
        await until(lambda: not memory.in_flight_bytes)
    assert (len(asked.outcomes), len(model.cancelled)) == (1, when == "run")


async def test_copies_are_limited(memory: SharedMemory, file: SharedFile) -> None:
    """Small messages can't make the server hold more than its limit; what is done makes room."""
    with shared_file(4 * LARGE) as path:
        memory.regions().register("r", path.name, 0, 4 * LARGE)
        model = Model(held=True)
        asked = [Asked(LARGE) for _ in range(3)]
        for one in asked:
            memory.take(one.request, one.shared, model.submit)
        assert isinstance(await asked[2].outcome(), SharedMemoryBusy)
        await until(lambda: len(model.requests) == 2)
        for request in list(model.requests):
            model.answer(request)
        await asked[0].outcome()
        await asked[1].outcome()
        large = Asked(2 * LARGE, place=2 * LARGE)
        memory.take(large.request, large.shared, Model().submit)
        assert isinstance(await large.outcome(), InferResponse)
        too_large = Asked(2 * LARGE, place=1)
        too_large.shared = too_large.shared._replace(outputs={"y": Reference("r", 0, 4 * LARGE)})
        memory.take(too_large.request, too_large.shared, Model().submit)
        assert "max_in_flight_bytes" in str(await too_large.outcome())


class Opened:
    """What opens regions of a GPU: each when the test says so."""

    def __init__(self) -> None:
        self.may = threading.Event()
        self.regions: list[GpuRegion] = []

    def __call__(self, name: str, _handle: bytes, _device_id: int, byte_size: int) -> Region:
        region = GpuRegion(name, byte_size)
        self.regions.append(region)
        assert self.may.wait(20)
        return region


class GpuRegion(Region):
    """Says whether it was closed."""

    kind: Kind = "cuda"

    def __init__(self, name: str, byte_size: int) -> None:
        super().__init__(name, byte_size)
        self.closed = False

    def read(self, reference: Reference) -> bytes:
        return bytes(reference.byte_size)

    def write(self, offset: int, data: object) -> None:
        """Nobody reads it."""

    def _close(self) -> None:
        self.closed = True


async def test_a_region_of_a_gpu_that_comes_too_late_is_closed(
    memory: SharedMemory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its name is taken meanwhile, or its client has gone."""
    opened = Opened()
    monkeypatch.setattr("server.shared_memory.requests.open_region", opened)
    first, second = (asyncio.create_task(memory.register_cuda("g", b"", 0, 8)) for _ in range(2))
    await until(lambda: len(opened.regions) == 2)
    opened.may.set()
    outcomes = await asyncio.gather(first, second, return_exceptions=True)
    assert sorted(type(outcome).__name__ for outcome in outcomes) == ["NoneType", "RegionExists"]
    assert sorted(region.closed for region in opened.regions) == [False, True]
    opened.may.clear()
    gone = asyncio.create_task(memory.register_cuda("h", b"", 0, 8))
    await until(lambda: len(opened.regions) == 3)
    gone.cancel()
    with pytest.raises(asyncio.CancelledError):
        await gone
    opened.may.set()
    await until(lambda: opened.regions[2].closed)
    assert [region.name for region in memory.regions().of("cuda")] == ["g"]
    memory.regions().unregister("cuda")
    assert all(region.closed for region in opened.regions)


async def test_it_can_be_off() -> None:
    """Every use of it is refused as a feature that the server does not have."""
    memory = SharedMemory(SharedMemorySettings(), enabled=False)
    with pytest.raises(Unsupported, match="allow-client-shm"):
        memory.regions()
    asked = Asked(1)
    memory.take(asked.request, asked.shared, Model().submit)
    assert isinstance(await asked.outcome(), ServingError)


@pytest.mark.parametrize(
    ("host", "allow", "allowed"),
    [
        ("127.0.0.1", "auto", True),
        ("::1", "auto", True),
        ("localhost", "auto", True),
        ("0.0.0.0", "auto", False),  # noqa: S104
        ("::", "auto", False),
        ("example.com", "auto", False),
        ("0.0.0.0", "true", True),  # noqa: S104
        ("127.0.0.1", "false", False),
    ],
)
def test_who_may_use_it(host: str, allow: str, allowed: bool) -> None:
    """Left open, it is for those on this machine alone."""
    settings = Settings(host=host, auth={"insecure": True}, shared_memory={"allow": allow})
    assert allows_shared_memory(settings) is allowed
