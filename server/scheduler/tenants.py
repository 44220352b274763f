"""A line that tenants share: each gets as many rows as any other while it waits, within it as in any line.

Start-time fair queueing by rows: each tenant that waits has a tag, the rows that it has been served in virtual time,
and the next request is one of the tenant with the least tag, whose tag then grows by the request's rows. Who comes
starts at the tag that was served last, so nobody saves up while away, and a newcomer is served next, whatever a
flood of another's may have left in the line. Round robin by deficits gives the same shares; its rounds would have to
begin in the planner, which only looks, and a newcomer would wait for the round to come by.

Names are what clients send. So at most `MOST_TENANTS` wait in lines of their own, those beyond share one; who has
nothing left is forgotten, but for a bounded number of tags that are still ahead of what is served.
"""

from __future__ import annotations

import heapq
from bisect import bisect_left, insort
from collections.abc import Iterable, Iterator, Sequence
from itertools import count

from server.scheduler.queue import Entry, Line, rows_until
from server.types import InferRequest

MOST_TENANTS = 256
"""Tenants of one priority level with lines of their own; as many tags of those who left are kept."""
_MEMORY = 256
"""Rows, served lately, by which a tenant's part of them is judged."""
_OTHERS = None
"""The name of the line that those beyond share. No client can send it."""


class TenantLine(Line):
    """What one tenant has in a `FairLine`."""

    __slots__ = ("name", "served", "since", "tag", "ticket", "whole")

    def __init__(self, whole: FairLine, name: str | None, tag: int, ticket: int) -> None:
        super().__init__()
        self.whole = whole
        self.name = name
        self.tag = tag
        self.ticket = ticket
        """Of equal tags who came first is first."""
        self.served = 0
        """Rows of its own that were served since it waits, lately."""
        self.since = whole.served
        """What `FairLine.served` was then."""

    def remove(self, entry: Entry) -> None:
        super().remove(entry)
        self.whole.removed(self, entry[2])

    def charge(self, rows: int) -> None:
        self.whole.serve(self, rows)
        self.served += rows
        if self.whole.served - self.since > 2 * _MEMORY:
            self.served //= 2
            self.since += (self.whole.served - self.since) // 2

    def others_share(self) -> float:
        """Rows of others that were lately served for each of its own; 0 while too few were to tell."""
        seen = self.whole.served - self.since
        return (seen - self.served) / self.served if self.served and seen >= _MEMORY // 8 else 0.0


class FairLine(Line):
    """Requests by tenant, and each tenant's by signature."""

    __slots__ = ("_left", "_order", "_rows_by_signature", "_tag", "_ticket", "served", "tenants")

    def __init__(self) -> None:
        super().__init__()
        self.tenants: dict[str | None, TenantLine] = {}
        """Those who wait here."""
        self._order: list[tuple[int, int, TenantLine]] = []
        """The same, least tag first."""
        self._rows_by_signature: dict[object, int] = {}
        self.served = 0
        """Rows, of all tenants."""
        self._tag = 0
        """Of the request that was served last."""
        self._left: dict[str | None, int] = {}
        """Tags, ahead of the one served last, of tenants who have nothing here any more."""
        self._ticket = count()

    def __iter__(self) -> Iterator[InferRequest]:
        for tenant in self.tenants.values():
            yield from tenant

    def add(self, entry: Entry) -> Line:
        request = entry[2]
        tenant = self._of(request) or self._enter(request.tenant)
        try:
            tenant.add(entry)
        except Exception:
            if not tenant.size:
                self._leave(tenant)
            raise
        self.rows += request.rows
        self.size += 1
        signature = request.signature
        self._rows_by_signature[signature] = self._rows_by_signature.get(signature, 0) + request.rows
        return tenant

    def removed(self, tenant: TenantLine, request: InferRequest) -> None:
        """A request has left its tenant's line."""
        self.rows -= request.rows
        self.size -= 1
        self._rows_by_signature[request.signature] -= request.rows
        if not self._rows_by_signature[request.signature]:
            del self._rows_by_signature[request.signature]
        if not tenant.size:
            self._leave(tenant)

    def serve(self, tenant: TenantLine, rows: int) -> None:
        """So many rows of a tenant are served now."""
        self.served += rows
        self._tag = max(self._tag, tenant.tag)
        self._drop(tenant)
        tenant.tag += rows
        insort(self._order, (tenant.tag, tenant.ticket, tenant))

    def lane(self, signature: object) -> Iterable[Entry]:
        """The requests of one signature in the order in which they will be served."""
        if len(self._order) == 1:
            return self._order[0][2].lane(signature)
        return self._merged(signature)

    def _merged(self, signature: object) -> Iterator[Entry]:
        # Only tenants who had their turn are in the heap: few, as the planner stops at the end of its batch.
        heap: list[tuple[int, int, int, Sequence[Entry]]] = []
        for tag, ticket, tenant in self._order:
            while heap and heap[0][:2] < (tag, ticket):
                yield _turn(heap)
            lane = tenant.lanes.get(signature)
            if lane:
                heapq.heappush(heap, (tag, ticket, 0, lane))
        while heap:
            yield _turn(heap)

    def signatures(self) -> list[object]:
        """Those that wait here, that of the request that is served next first."""
        if len(self._rows_by_signature) < 2:
            return list(self._rows_by_signature)
        found: dict[object, None] = {}
        for _, _, tenant in self._order:
            found.update(dict.fromkeys(tenant.signatures()))
            if len(found) == len(self._rows_by_signature):
                break
        return list(found)

    def rows_by_signature(self) -> Iterable[tuple[object, int]]:
        """All rows."""
        return self._rows_by_signature.items()

    def held(self, request: InferRequest) -> int:
        """How many requests the tenant of this one has here."""
        tenant = self._of(request)
        return tenant.size if tenant is not None else 0

    def rows_before(self, request: InferRequest) -> Iterator[tuple[object, int]]:
        """Rows, by signature, that go before a request that comes now.

        Those of its tenant, and of each other one as many: or, where that is more, as many as others were lately
        served beside its own, for more will come. An exact answer would take a step for each tenant.
        """
        if not self.size:
            return
        own = self._of(request)
        if own is None:
            lead = self._left.get(request.tenant, 0) - self._tag
            rows = min(self.rows, len(self.tenants) * (max(0, lead) + request.rows))
        else:
            rows = sum([rows_until(own, lane, request.deadline_ns) for lane in own.lanes.values()])
            each = own.tag - self._tag + rows + request.rows
            waiting = min(self.rows - own.rows, (len(self.tenants) - 1) * max(0, each))
            rows += max(waiting, int(rows * own.others_share()))
        for signature, waiting in self._rows_by_signature.items():
            yield signature, -(-rows * waiting // self.rows)

    def _of(self, request: InferRequest) -> TenantLine | None:
        """The line of a request's tenant, if it waits."""
        tenant = self.tenants.get(request.tenant)
        if tenant is None and len(self.tenants) >= MOST_TENANTS:
            return self.tenants.get(_OTHERS)
        return tenant

    def _enter(self, name: str | None) -> TenantLine:
        if len(self.tenants) >= MOST_TENANTS:
            name = _OTHERS
        tag = max(self._tag, self._left.pop(name, 0))
        tenant = self.tenants[name] = TenantLine(self, name, tag, next(self._ticket))
        insort(self._order, (tag, tenant.ticket, tenant))
        return tenant

    def _leave(self, tenant: TenantLine) -> None:
        self._drop(tenant)
        del self.tenants[tenant.name]
        if not self.tenants:
            # All are equal again: whoever comes now has nobody to yield to.
            self._tag = 0
            self._left.clear()
        elif tenant.tag > self._tag:
            self._remember(tenant)

    def _remember(self, tenant: TenantLine) -> None:
        if len(self._left) >= MOST_TENANTS:
            self._left = {name: tag for name, tag in self._left.items() if tag > self._tag}
        if len(self._left) < MOST_TENANTS:
            self._left[tenant.name] = tenant.tag

    def _drop(self, tenant: TenantLine) -> None:
        del self._order[bisect_left(self._order, (tenant.tag, tenant.ticket))]


def _turn(heap: list[tuple[int, int, int, Sequence[Entry]]]) -> Entry:
    """The next request of the tenant whose turn it is; its next turn is as much later as this one has rows."""
    tag, ticket, place, lane = heap[0]
    entry = lane[place]
    if place + 1 < len(lane):
        heapq.heapreplace(heap, (tag + entry[2].rows, ticket, place + 1, lane))
    else:
        heapq.heappop(heap)
    return entry
