"""Sequences and the slots that they hold: who is where, who waits for a slot, whose next request may run. No clock.

    start ──► a free slot, else the backlog ──► ready ──► running ──► ready, or idle
                                                  │          │
                                                  └──────────┴──► over: nobody may join; gone when its last request is

A slot is a place in one instance; a sequence keeps its own until it is over. It runs one request at a time, in
the order of their arrival. Who joins a sequence that nobody knows, without a start, is refused; a start where one
runs begins it anew, behind what it already has.

**A request that is lost** (expired, failed, refused, cancelled) leaves a gap, and nobody may be served on a state that
lacks what the caller believes to be in it. So a sequence is over with it, and those behind it are lost too, if it was
cancelled, if it was a start, or if others of the sequence were under way. A caller that waits for each answer may send
it again: the states are what they were.
"""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from enum import StrEnum

from server.sequences import SequenceId, sequence_id
from server.tensor import Tensor
from server.types import NO_DEADLINE, InferRequest

START, END, ID = "sequence_start", "sequence_end", "sequence_id"
"""Parameters of a request. Source: Triton, extension_sequence.md."""
_HEAP_SLACK = 64
"""Entries of the heap of deadlines below which cleaning it is not worth the walk."""


class Ending(StrEnum):
    """Why a sequence is over before its end was answered."""

    CANCELLED = "cancelled"
    LOST = "lost"
    """A request of it was not answered."""
    IDLE = "idle"
    SUPERSEDED = "superseded"
    """It began anew in another version of the model."""


class Chain:
    """One sequence."""

    __slots__ = ("broken", "id", "lane", "over", "row", "running", "states", "waiting")

    def __init__(self, id: SequenceId) -> None:
        self.id = id
        self.lane = -1
        """The number of its instance; -1 in the backlog."""
        self.row = -1
        """Its slot in the instance."""
        self.waiting: deque[InferRequest] = deque()
        self.running: InferRequest | None = None
        """In a pass, or to be run once more."""
        self.states: Sequence[Tensor] | None = None
        """What its last request left; None: as at a start."""
        self.over = False
        """Nobody joins it any more."""
        self.broken = False
        """It is over without its end, or lost something before it."""


class Lane:
    """The slots of one instance."""

    __slots__ = ("alive", "chains", "ready", "size")

    def __init__(self, size: int) -> None:
        self.size = size
        self.chains: dict[int, Chain] = {}
        """By row."""
        self.ready: dict[Chain, None] = {}
        """Whose next request may run, those first that have been ready longest."""
        self.alive = True


class Slots:
    """The sequences of one model version."""

    def __init__(self, lanes: int, size: int, on_ready: Callable[[InferRequest], None] = lambda _: None) -> None:
        """`size`: slots of each of the `lanes` instances. `on_ready`: is told of each request that may run now."""
        self._on_ready = on_ready
        self.lanes = [Lane(size) for _ in range(lanes)]
        self.started = 0
        """Sequences that were given a slot."""
        self.ended = dict.fromkeys(Ending, 0)
        """Sequences that were over too early, by cause."""
        self.backlog: dict[Chain, None] = {}
        """Without a slot, in the order of their starts."""
        self._joinable: dict[SequenceId, Chain] = {}
        self._chains: dict[InferRequest, Chain] = {}
        """Of every request that is held."""
        self._idle: dict[Chain, int] = {}
        """Since when a sequence has had no request, the longest first."""
        self._free = [(row, number) for row in range(size) for number in range(lanes)]
        """A heap. The lowest row first, as in Triton: so instances share the sequences, and batches stay short."""
        self._expiries: list[tuple[int, int, InferRequest]] = []
        self._ticket = 0
        self.waiting = 0
        """Requests that wait for a pass."""

        self.active = 0
        """Sequences that hold a slot."""

    def __len__(self) -> int:
        """Requests held, waiting and running."""
        return len(self._chains)

    def __iter__(self) -> Iterator[InferRequest]:
        return iter(self._chains)

    def __contains__(self, request: InferRequest) -> bool:
        return request in self._chains

    def chain(self, request: InferRequest) -> Chain | None:
        """The sequence that holds the request; None if none does."""
        return self._chains.get(request)

    def empty(self) -> bool:
        """No sequence is left that holds a request or may be joined."""
        return not self._joinable and not self._chains

    def knows(self, id: SequenceId) -> bool:
        """Whether a request without a start may join."""
        return id in self._joinable

    # --- requests come --------------------------------------------------------------------------------

    def join(self, request: InferRequest) -> None:
        """Put a request behind those of its sequence, which is known, or which it starts."""
        parameters = request.parameters
        name = sequence_id(parameters.get(ID))
        chain = self._joinable.get(name)
        if chain is None:
            chain = self._joinable[name] = Chain(name)
        if parameters.get(END):
            chain.over = True
            del self._joinable[name]
        self._chains[request] = chain
        chain.waiting.append(request)
        self.waiting += 1
        self._idle.pop(chain, None)
        if request.deadline_ns < NO_DEADLINE:
            self._watch(request)
        if chain.lane < 0 and chain not in self.backlog:
            self.backlog[chain] = None
            self._fill()
        elif chain.lane >= 0:
            self._look(chain)

    def refuse(self, request: InferRequest) -> None:
        """The request does not join. If others of its sequence are under way, its caller does not wait for answers, and
        what it sends next must not be served as if nothing were missing: nobody joins any more. Nor where it was to
        start anew: what comes next is not meant for the states of before."""
        chain = self._joinable.get(sequence_id(request.parameters.get(ID)))
        if chain is None:
            return
        if request.parameters.get(START) or chain.waiting or chain.running is not None:
            self._finish(chain, Ending.LOST)
            if chain in self._idle:
                self._release(chain)

    def _fill(self) -> None:
        """Give free slots to who waits for one."""
        while self.backlog and self._free:
            row, number = heapq.heappop(self._free)
            if not self.lanes[number].alive:
                continue
            chain = next(iter(self.backlog))
            del self.backlog[chain]
            chain.lane, chain.row = number, row
            self.lanes[number].chains[row] = chain
            self.started += 1
            self.active += 1
            self._look(chain)

    def _look(self, chain: Chain) -> None:
        ready = self.lanes[chain.lane].ready
        if chain.running is None and chain.waiting and chain not in ready:
            ready[chain] = None
            self._on_ready(chain.waiting[0])

    # --- requests run ---------------------------------------------------------------------------------

    def begin(self, chain: Chain) -> InferRequest:
        """Its next request runs from now on."""
        del self.lanes[chain.lane].ready[chain]
        chain.running = chain.waiting.popleft()
        self.waiting -= 1
        return chain.running

    def advance(self, chain: Chain, states: Sequence[Tensor], now_ns: int) -> None:
        """The running request's pass succeeded, and left these states."""
        if chain.running is not None:
            self._chains.pop(chain.running, None)
        chain.running = None
        chain.states = states
        self._settle_down(chain, now_ns)

    def lose(self, request: InferRequest, now_ns: int, *, cancelled: bool = False) -> list[InferRequest]:
        """The request will not be answered: give its place free. Returns those that are lost with it.

        One that runs keeps its sequence's slot until its pass has ended: `leave`.
        """
        chain = self._chains.get(request)
        if chain is None:
            return []
        alone = len(chain.waiting) + (chain.running is not None) == 1
        lost: list[InferRequest] = []
        if request is chain.running:
            behind = list(chain.waiting)
        else:
            queue = list(chain.waiting)
            place = queue.index(request)
            behind = queue[place + 1 :]
            chain.waiting = deque(queue[:place] + behind)
            self._forget((request,))
        if cancelled or not alone or request.parameters.get(START):
            lost = behind
            self._finish(chain, Ending.CANCELLED if cancelled else Ending.LOST)
            for _ in behind:
                chain.waiting.pop()
            self._forget(behind)
        if request is not chain.running:
            self._settle_down(chain, now_ns)
        return lost

    def _forget(self, requests: Iterable[InferRequest]) -> None:
        """They wait no more."""
        for request in requests:
            del self._chains[request]
            self.waiting -= 1

    def leave(self, chain: Chain, now_ns: int) -> None:
        """The running request's pass is over and left nothing: the states are what they were before it."""
        if chain.running is not None:
            self._chains.pop(chain.running, None)
        chain.running = None
        self._settle_down(chain, now_ns)

    def _settle_down(self, chain: Chain, now_ns: int) -> None:
        """It runs nothing, or has lost something: see what it is now."""
        if chain.lane >= 0:
            if chain.waiting:
                self._look(chain)
            else:
                self.lanes[chain.lane].ready.pop(chain, None)
        if chain.waiting or chain.running is not None:
            return
        if chain.over:
            self._release(chain)
        else:
            self._idle[chain] = now_ns

    def _finish(self, chain: Chain, cause: Ending) -> None:
        """Nobody joins it any more."""
        if not chain.broken:
            chain.broken = True
            self.ended[cause] += 1
        if not chain.over:
            chain.over = True
            del self._joinable[chain.id]

    def _release(self, chain: Chain) -> None:
        """It has no request, and nobody joins it: its slot is another's."""
        self._idle.pop(chain, None)
        self.backlog.pop(chain, None)
        if chain.lane >= 0:
            lane = self.lanes[chain.lane]
            lane.ready.pop(chain, None)
            del lane.chains[chain.row]
            self.active -= 1
            if lane.alive:
                heapq.heappush(self._free, (chain.row, chain.lane))
            chain.lane = -1
        self._fill()

    def _watch(self, request: InferRequest) -> None:
        if len(self._expiries) > 2 * len(self) + _HEAP_SLACK:
            self._expiries = [entry for entry in self._expiries if self._waits(entry[2])]
            heapq.heapify(self._expiries)
        self._ticket += 1
        heapq.heappush(self._expiries, (request.deadline_ns, self._ticket, request))

    # --- time passes ----------------------------------------------------------------------------------

    def expired(self, now_ns: int) -> list[InferRequest]:
        """Waiting requests whose deadline is over. They still wait: `lose` them."""
        found = []
        heap = self._expiries
        while heap and (heap[0][0] <= now_ns or not self._waits(heap[0][2])):
            request = heapq.heappop(heap)[2]
            if self._waits(request):
                found.append(request)
        return found

    def _waits(self, request: InferRequest) -> bool:
        chain = self._chains.get(request)
        return chain is not None and chain.running is not request

    def next_expiry_ns(self) -> int:
        """When `expired` next finds somebody, or earlier; NO_DEADLINE for never."""
        return self._expiries[0][0] if self._expiries else NO_DEADLINE

    def end_idle(self, since_ns: int) -> int:
        """End the sequences that have had no request since that time or longer; how many there were."""
        ended = 0
        while self._idle:
            chain, idle_ns = next(iter(self._idle.items()))
            if idle_ns > since_ns:
                break
            ended += 1
            self._finish(chain, Ending.IDLE)
            self._release(chain)
        return ended

    def idle_since_ns(self) -> int:
        """Since when the longest idle sequence has been; NO_DEADLINE if none is."""
        return next(iter(self._idle.values()), NO_DEADLINE)

    def supersede(self, id: SequenceId) -> None:
        """The sequence goes on elsewhere: what it has is still served, nobody joins it."""
        chain = self._joinable.get(id)
        if chain is not None:
            self._finish(chain, Ending.SUPERSEDED)
            if chain in self._idle:
                self._release(chain)

    # --- the end --------------------------------------------------------------------------------------

    def kill(self, number: int) -> list[InferRequest]:
        """An instance has died, and its slots with it. Returns those that waited there; who runs is not among them."""
        lane = self.lanes[number]
        lane.alive = False
        lost: list[InferRequest] = []
        for chain in list(lane.chains.values()):
            lost += self._drop(chain)
        self._free = [place for place in self._free if place[1] != number]
        heapq.heapify(self._free)
        return lost

    def clear(self) -> list[InferRequest]:
        """End every sequence. Returns those that waited; who runs is not among them."""
        lost: list[InferRequest] = []
        for chain in [*self.backlog, *(chain for lane in self.lanes for chain in list(lane.chains.values()))]:
            lost += self._drop(chain)
        self._expiries.clear()
        return lost

    def _drop(self, chain: Chain) -> list[InferRequest]:
        lost = list(chain.waiting)
        chain.waiting.clear()
        self._forget(lost)
        self._finish(chain, Ending.LOST)
        if chain.running is None:
            self._release(chain)
        return lost
