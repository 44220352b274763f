"""Who may use the cores next: passes of all models of this process, each model an equal share. No clock, no I/O.

There are as many tokens as cores. A pass on a worker's thread takes one for each thread of its session and gives
them back at its end. Whoever finds none free waits, and is called when some are: first the model that has attained
the least service, of equal ones the one with the most urgent request. This is start-time fair queueing with
several passes at once (SFQ(D)): a model's next pass starts, in virtual time, where its last one finished or at the
start of the one that began last, whichever is later. So a model that was idle has no credit for it.
Source: Goyal, Vin, Cheng, "Start-time Fair Queueing", 1996; Jin, Chase, Kaur, "Interposed Proportional Sharing", 2004.

A pass may begin when

1. no other model runs or waits, or did in the last seconds: a model alone is not held back, however many threads
   it was given;
2. a token is free that nobody waits for who goes before it. One is enough for a pass that takes several: if it
   had to find all of them at once, passes that take one each would keep it out for ever. A token also counts as free,
   though never more of them than there are cores, while the pass that holds it is about to end: the loop takes some
   hundred microseconds to follow one pass with the next, and the core would idle for so long after each;
3. its model has nothing running, and beside the others, on cores that the system then shares out, it would end sooner
   than if it waited: ``pass * excess / tokens < wait``, where the excess is the tokens that would be missing. A pass
   can't be interrupted, and this is what keeps a long one from holding up a short one.

A pass that is overdue is taken to need as long again as it is overdue by: if it never ends, others do not wait for it.
One that has taken far longer than it should is given up, and counts as not running.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import count

from server.types import NO_DEADLINE

_UNKNOWN_NS = 100_000_000
"""What a pass is taken to need, in rule 3, while nothing is known of its cost, and what is added to twice the cost of
one before it is given up."""
_SOON_NS = 500_000
"""A pass whose end is this near is about to end: short passes go two by two, long ones do not."""
_WINDOW_NS = 500_000_000
"""The time after which what a model has used counts for a half of what it uses now."""
_MOMENT_NS = 1_000_000
"""What is used within so short a time counts as used at once: passes on the loop itself take microseconds."""
_NEGLIGIBLE = 0.01
"""Cores. Who used less lately is not there."""
_DECAY = math.log(2)
"""What is used all the time adds up to its own amount."""


class _Account:
    """What one model has attained, all its versions together."""

    __slots__ = ("_used", "_used_at_ns", "finish_ns", "seats")

    def __init__(self) -> None:
        self.finish_ns = 0.0
        """Virtual time, in nanoseconds of one core, at which its last pass finishes."""
        self.seats = 0
        self._used = 0.0
        """Cores that it used of late, in the mean, as of `_used_at_ns`."""
        self._used_at_ns = 0

    def use(self, core_ns: int, now_ns: int) -> None:
        if now_ns - self._used_at_ns > _MOMENT_NS:
            self._used, self._used_at_ns = self.used_lately(now_ns), now_ns
        self._used += core_ns * _DECAY / _WINDOW_NS

    def used_lately(self, now_ns: int) -> float:
        return self._used * math.exp(-_DECAY * (now_ns - self._used_at_ns) / _WINDOW_NS)


class Lease:
    """The tokens of one pass under way."""

    __slots__ = ("begun_ns", "ends_ns", "tokens")

    def __init__(self, tokens: int, begun_ns: int, ends_ns: int) -> None:
        self.tokens = tokens
        self.begun_ns = begun_ns
        self.ends_ns = ends_ns
        """When it is expected to end."""

    def left_ns(self, now_ns: int) -> int:
        return abs(self.ends_ns - now_ns)

    def given_up_ns(self) -> int:
        """From when on nobody believes any more that it will end soon."""
        return 2 * self.ends_ns - self.begun_ns + _UNKNOWN_NS


class Share:
    """The tokens of one process. Call it on the event loop's thread only."""

    def __init__(self, tokens: int) -> None:
        """`tokens`: cores that passes may use; at least 1."""
        if tokens < 1:
            raise ValueError(f"{tokens} tokens, it takes one at least")
        self.tokens = tokens
        self.used = 0
        """Tokens of passes under way. May be over `tokens`: see rules 1 to 3."""
        self._virtual_ns = 0.0
        """Where the pass that began last started."""
        self._accounts: dict[str, _Account] = {}
        self._lately: dict[_Account, None] = {}
        """Those that used the cores of late: few of the models, and only those are looked at."""
        self._leases: dict[Lease, _Account] = {}
        self._waiting: dict[Seat, None] = {}
        self._ticket = count()

    def join(self, model_name: str, demand: int, turn: Callable[[], None]) -> Seat:
        """A seat for one version of a model. `demand`: tokens of all its instances together; `turn` is called when one
        that waits should ask again, and must not ask from within."""
        account = self._accounts.setdefault(model_name, _Account())
        account.seats += 1
        return Seat(self, model_name, account, demand, turn)

    def _use(self, account: _Account, core_ns: int, now_ns: int) -> None:
        account.use(core_ns, now_ns)
        self._lately[account] = None

    def _taken(self, now_ns: int) -> int:
        """Tokens that are not free, nor will be in a moment."""
        if self.used < self.tokens:
            return self.used
        soon = sum([lease.tokens for lease in self._leases if lease.left_ns(now_ns) < _SOON_NS])
        return self.used - min(soon, self.tokens)

    def _call_next(self, now_ns: int) -> None:
        """Tell who goes next, as long as there is a token for it. A call that was not answered stands."""
        if not self._waiting:
            return
        free = self.tokens - self._taken(now_ns)
        for seat in sorted(self._waiting, key=Seat.rank):
            if free < 1:
                return
            free -= seat.tokens
            if not seat.called:
                seat.called = True
                seat.turn()

    def _until_free_ns(self, now_ns: int) -> int:
        """How long until the passes under way leave a token free."""
        excess = self.used - self.tokens + 1
        until_ns = 0
        if excess == 1:
            return min([lease.left_ns(now_ns) for lease in self._leases])
        if excess > 1:
            for left_ns, tokens in sorted([(lease.left_ns(now_ns), lease.tokens) for lease in self._leases]):
                until_ns = left_ns
                excess -= tokens
                if excess <= 0:
                    break
        return until_ns

    def _before(self, seat: Seat) -> int:
        """The tokens that those take who wait and go before `seat`."""
        if not self._waiting:
            return 0
        rank = seat.rank()
        return sum([other.tokens for other in self._waiting if other is not seat and other.rank() < rank])


class Seat:
    """One version's place in the share: whether it waits, and for what kind of pass."""

    __slots__ = (
        "_account",
        "_leases",
        "_model_name",
        "_share",
        "_since_ns",
        "_ticket",
        "again_ns",
        "called",
        "demand",
        "pass_ns",
        "tokens",
        "turn",
        "urgent_ns",
        "waiting",
    )

    def __init__(self, share: Share, model_name: str, account: _Account, demand: int, turn: Callable[[], None]) -> None:
        self._share = share
        self._model_name = model_name
        self._account: _Account | None = account
        self._leases: set[Lease] = set()
        self._ticket = next(share._ticket)
        self._since_ns = 0.0
        """Virtual time at which it began to wait."""
        self.demand = demand
        self.turn = turn
        self.waiting = False
        self.called = False
        """It waits, and its turn has come."""
        self.again_ns = NO_DEADLINE
        """When to ask again at the latest, while it waits."""
        self.pass_ns = 0
        self.tokens = 1
        self.urgent_ns = NO_DEADLINE

    @property
    def cores(self) -> int:
        """Of the share."""
        return self._share.tokens

    def rank(self) -> tuple[float, int, int]:
        """Who has less goes first: service attained, then deadline, then the seat's age."""
        return self._start_ns(), self.urgent_ns, self._ticket

    def _start_ns(self) -> float:
        """Virtual time at which its next pass starts. Who waits keeps the claim that it had as it began to."""
        virtual_ns = self._since_ns if self.waiting else self._share._virtual_ns
        return max(virtual_ns, self._account.finish_ns) if self._account else virtual_ns

    def take(self, tokens: int, pass_ns: int | None, urgent_ns: int, now_ns: int) -> Lease | None:
        """Begin a pass that is expected to take `pass_ns` (None: unknown) and whose earliest deadline is `urgent_ns`.

        None: not now. The seat then waits: it is called in its turn, and is to ask at `again_ns` even if not called.
        """
        share = self._share
        self.tokens = min(max(1, tokens), share.tokens)
        self.pass_ns = _UNKNOWN_NS if pass_ns is None else pass_ns
        self.urgent_ns = urgent_ns
        if not self._may_begin(now_ns):
            if not self.waiting:
                self.waiting, self._since_ns = True, share._virtual_ns
                share._waiting[self] = None
            self.called = False
            share._call_next(now_ns)
            return None
        account = self._account or _Account()
        lease = Lease(self.tokens, now_ns, now_ns + (pass_ns or 0))
        start_ns = self._start_ns()
        share._virtual_ns = max(share._virtual_ns, start_ns)
        account.finish_ns = start_ns + (pass_ns or 0) * self.tokens
        share.used += self.tokens
        share._leases[lease] = account
        self._leases.add(lease)
        self._stop_waiting(now_ns)
        return lease

    def _may_begin(self, now_ns: int) -> bool:
        share, account = self._share, self._account
        self.again_ns = NO_DEADLINE
        if self.is_alone(now_ns):
            return True
        before = share._before(self)
        if share._taken(now_ns) + before < share.tokens:
            return True
        busy_until_ns = max(
            [lease.given_up_ns() for lease, owner in share._leases.items() if owner is account], default=0
        )
        if busy_until_ns > now_ns:
            self.again_ns = busy_until_ns
            return False
        until_ns = share._until_free_ns(now_ns)
        beside_ns = max(0, self.pass_ns * (share.used + before + self.tokens - share.tokens) // share.tokens)
        if beside_ns < until_ns:
            return True
        # From then on the pass that should have ended is overdue by so much that waiting is the worse choice.
        self.again_ns = now_ns + until_ns + beside_ns + 1
        return False

    def is_alone(self, now_ns: int) -> bool:
        """No other model runs or waits, or did lately."""
        share, account = self._share, self._account
        return (
            all(owner is account for owner in share._leases.values())
            and all(seat._account is account for seat in share._waiting)
            and not self._others(now_ns)
        )

    def _others(self, now_ns: int) -> list[float]:
        """The cores that each of the other models has used of late, of those that have."""
        lately = self._share._lately
        if not lately or (len(lately) == 1 and self._account in lately):
            return []
        used = {account: account.used_lately(now_ns) for account in lately if account is not self._account}
        for account, cores in used.items():
            if cores <= _NEGLIGIBLE:
                del lately[account]
        return [cores for cores in used.values() if cores > _NEGLIGIBLE]

    def give(self, lease: Lease, now_ns: int) -> None:
        """The pass is over, or its worker is: its tokens are free. The second time it does nothing."""
        share = self._share
        if lease not in self._leases:
            return
        self._leases.remove(lease)
        account = share._leases.pop(lease)
        share.used -= lease.tokens
        # What was charged at the begin was a prediction.
        account.finish_ns += (now_ns - lease.ends_ns) * lease.tokens
        share._use(account, (now_ns - lease.begun_ns) * lease.tokens, now_ns)
        share._call_next(now_ns)

    def charge(self, ns: int, now_ns: int) -> None:
        """Count a pass that took no token, because it ran on the event loop."""
        if self._account is not None:
            self._account.finish_ns = self._start_ns() + ns
            self._share._use(self._account, ns, now_ns)

    def withdraw(self, now_ns: int) -> None:
        """It waits for nothing any more."""
        if self.waiting:
            self._stop_waiting(now_ns)

    def _stop_waiting(self, now_ns: int) -> None:
        self._share._waiting.pop(self, None)
        self.waiting = self.called = False
        self._share._call_next(now_ns)

    def leave(self, now_ns: int) -> None:
        """Give everything back and never come again."""
        for lease in list(self._leases):
            self.give(lease, now_ns)
        self.withdraw(now_ns)
        account, self._account = self._account, None
        if account is not None:
            account.seats -= 1
            if not account.seats:
                del self._share._accounts[self._model_name]
                self._share._lately.pop(account, None)

    # --- what admission asks -----------------------------------------------------------------------

    def outlook(self, now_ns: int) -> tuple[int, float]:
        """How long a pass that is ready now waits until a token is free (0 where it need not), and how many times as
        long as alone this model's work takes because of the others (1 where they leave enough).

        It gets what the others leave of the cores, by what they used of late, and its equal share of them at least.
        """
        share = self._share
        others = self._others(now_ns)
        wait_ns = 0 if not others and self.is_alone(now_ns) else share._until_free_ns(now_ns)
        if not others:
            return wait_ns, 1.0
        gets = max(share.tokens - sum(others), share.tokens / (1 + len(others)))
        return wait_ns, max(1.0, self.demand / gets)
