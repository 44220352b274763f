"""Two versions of a model at a time: a part of the requests for a canary, or a shadow that is asked and not heard.

It stands in the place of the newest version where a request names none, and only of a model whose config asks for it:
no other model's requests come by here. Requests that name a version get that version. What the two versions do is
counted, and a candidate that is worse is rolled back by itself: from then on it is asked nothing, until the model
is loaded anew.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from functools import partial

from server.engine.base import Elsewhere
from server.errors import ServingError
from server.repository.rollout import WINDOW, Rollout
from server.rollout_verdict import Cause, Verdict, differ
from server.served import Served
from server.tensor import Tensor
from server.types import NO_DEADLINE, InferRequest, InferResponse, Outcome

log = logging.getLogger(__name__)

Tell = Callable[[InferRequest, Outcome], None]
"""A request's own way to its caller."""

_ON_LOOP_BYTES = 64 * 1024
"""Larger answers are compared on a thread."""
_A_LITTLE = 1e-9
_MOST_COPIES = 64
"""Requests that a shadow may have at a time: further ones are not copied, so that a slow shadow harms nobody."""


class RolloutServed(Served):
    """Both versions of a rollout, as one; `model` is that of the version that serves."""

    __slots__ = (
        "_begun",
        "_copies",
        "_elsewhere",
        "_loop",
        "_number",
        "_under_way",
        "_verdict",
        "cause",
        "counts",
        "rollout",
        "stable",
        "under_trial",
    )

    def __init__(self, stable: Served, candidate: Served, rollout: Rollout) -> None:
        super().__init__(stable.model, stable.batcher, stable.statistics)
        self.check = stable.check
        self.stable, self.under_trial = stable, candidate
        self.rollout = rollout
        self.cause: Cause | None = None
        """Why the candidate was rolled back; None: it is asked."""
        self.counts: Counter[str] = Counter()
        """Of the candidate: requests answered, failed, agreed, differed, skipped."""
        self._verdict = Verdict(rollout)
        self._number = 0
        """Of the requests so far."""
        self._begun = 0
        """Requests of the candidate so far."""
        self._under_way: dict[int, int] = {}
        """When each of those of its latest requests began that still is, by its number; oldest first."""
        self._copies = 0
        self._elsewhere = isinstance(stable.model.engine_model, Elsewhere)
        """A Triton runs the versions, and classifies their outputs itself."""
        self._loop = asyncio.get_running_loop()

    def __enter__(self) -> RolloutServed:
        super().__enter__()
        self.stable.__enter__()
        self.under_trial.__enter__()
        return self

    def __exit__(self, *more: object) -> None:
        self.stable.__exit__(*more)
        self.under_trial.__exit__(*more)
        super().__exit__(*more)

    async def drain(self, until_ns: int) -> None:
        """Of the preprocessing alone: the versions are drained by themselves."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(max(0, until_ns - time.monotonic_ns()) / 1e9):
                await self._idle.wait()
        if self.preparing is not None:
            await self.preparing.close()

    @property
    def passes(self) -> None:
        """Which version it is for, is seen by a request's tensors."""

    def submit(self, requests: Sequence[InferRequest]) -> None:
        """As of `Served`; each that is sound by one of the versions, or by both."""
        if self.cause is not None:
            self.stable.submit(requests)
            return
        now_ns = time.monotonic_ns()
        stable: list[InferRequest] = []
        candidate: list[InferRequest] = []
        copies: list[InferRequest] = []
        for request in requests:
            try:
                self.check(request)
            except ServingError as error:
                request.settle(error)
                continue
            chosen = self._chosen()
            if self.rollout.shadow:
                copy = self._copied(request, now_ns) if chosen else None
                if copy is not None:
                    copies.append(copy)
                    stable.append(request)
                    continue
                chosen = False
            (candidate if chosen else stable).append(request)
            tell = request.divert(_nobody)
            request.divert(partial(self._settled, tell, now_ns, self._begin(now_ns) if chosen else 0))
        for mine, served in ((stable, self.stable), (candidate, self.under_trial), (copies, self.under_trial)):
            if mine:
                for request in mine:
                    request.holder = served.batcher
                served.batcher.submit(mine)
        if candidate or copies:
            self._judge(now_ns)

    def _begin(self, now_ns: int) -> int:
        """The number of a request of the candidate, above 0."""
        self._begun += 1
        self._under_way[self._begun] = now_ns
        self._under_way.pop(self._begun - WINDOW, None)
        return self._begun

    def _chosen(self) -> bool:
        """Evenly spread over the requests, not by chance: a part of 0.1 is every tenth."""
        before, self._number = self._number * self.rollout.part, self._number + 1
        # A part of 0.1 in binary is a little less.
        return int(self._number * self.rollout.part + _A_LITTLE) > int(before + _A_LITTLE)

    def _settled(
        self,
        tell: Tell,
        since_ns: int,
        of_candidate: int,
        request: InferRequest,
        outcome: Outcome,
    ) -> None:
        """`of_candidate`: the number of its request; 0: it is the other version's."""
        tell(request, outcome)
        if of_candidate:
            self._ended(of_candidate, outcome, since_ns)
        else:
            self._verdict.stable.count(outcome, time.monotonic_ns() - since_ns)

    def _ended(self, number: int, outcome: Outcome, since_ns: int) -> None:
        """A request of the candidate."""
        self._under_way.pop(number, None)
        now_ns = time.monotonic_ns()
        self.counts["answered" if isinstance(outcome, InferResponse) else "failed"] += 1
        self._verdict.candidate.count(outcome, now_ns - since_ns)
        self._judge(now_ns)

    # --- a shadow ------------------------------------------------------------------------------------

    def _copied(self, request: InferRequest, now_ns: int) -> InferRequest | None:
        """The same for the shadow, nobody's; None: it has enough. What comes of both is compared.

        Not what a Triton is to classify: of its texts nobody can say how far apart they are."""
        if self._copies >= _MOST_COPIES or (request.special is not None and self._elsewhere):
            self.counts["skipped"] += 1
            return None
        self._copies += 1
        pair = _Pair(self)
        number = self._begin(now_ns)
        copy = InferRequest(
            request.model_name,
            # What the inputs are views of may be written anew once the request is answered.
            [Tensor(t.name, t.datatype, t.shape, bytes(t.data)) for t in request.inputs],
            on_settle=partial(pair.theirs, number, now_ns),
            received_ns=request.received_ns,
            id=request.id,
            model_version=self.under_trial.model.version,
            outputs=request.outputs,
            parameters=request.parameters,
            deadline_ns=NO_DEADLINE if request.deadline_ns >= NO_DEADLINE else request.deadline_ns,
            tenant=request.tenant,
        )
        if request.metadata:
            copy.metadata = request.metadata
        copy.rows, copy.signature = request.rows, request.signature
        tell = request.divert(_nobody)
        request.divert(partial(pair.ours, tell, now_ns))
        return copy

    def count_stable(self, outcome: Outcome, ns: int) -> None:
        self._verdict.stable.count(outcome, ns)

    def count_shadow(self, number: int, outcome: Outcome, since_ns: int) -> None:
        self._copies -= 1
        self._ended(number, outcome, since_ns)

    def compare(self, ours: Outcome, theirs: Outcome) -> None:
        if not isinstance(ours, InferResponse) or not isinstance(theirs, InferResponse):
            return
        call = partial(differ, ours, theirs, self.rollout.compare, self.rollout.tolerance)
        if sum(len(memoryview(tensor.data)) for tensor in ours.outputs) <= _ON_LOOP_BYTES:
            self._was_compared(call())
            return
        comparing = self._loop.run_in_executor(None, call)
        comparing.add_done_callback(self._was_compared_elsewhere)

    def _was_compared_elsewhere(self, done: asyncio.Future[bool]) -> None:
        if not done.cancelled():
            self._was_compared(done.result())

    def _was_compared(self, differs: bool) -> None:
        self.counts["differed" if differs else "agreed"] += 1
        self._verdict.compared(differs)
        self._judge(time.monotonic_ns())

    def _judge(self, now_ns: int) -> None:
        if self.cause is not None:
            return
        cause = self._verdict.judge(self._under_way.values(), now_ns)
        if cause is None:
            return
        self.cause = cause
        kind = "shadow" if self.rollout.shadow else "canary"
        log.warning(
            "model '%s': the %s, version %s, is rolled back for its %s: %s; version %s has all requests",
            *(self.model.name, kind, self.under_trial.model.version, cause, dict(self.counts), self.model.version),
        )

    @property
    def labels(self) -> Mapping[str, str]:
        """Of its metrics."""
        kind = "shadow" if self.rollout.shadow else "canary"
        return {"model": self.model.name, "version": self.under_trial.model.version, "kind": kind}


class _Pair:
    """The outcomes of a request and of its copy, whichever comes first."""

    __slots__ = ("_ours", "_rollout", "_theirs")

    def __init__(self, rollout: RolloutServed) -> None:
        self._rollout = rollout
        self._ours: Outcome | None = None
        self._theirs: Outcome | None = None

    def ours(self, tell: Tell, since_ns: int, request: InferRequest, outcome: Outcome) -> None:
        tell(request, outcome)
        self._rollout.count_stable(outcome, time.monotonic_ns() - since_ns)
        self._ours = outcome
        self._compare()

    def theirs(self, number: int, since_ns: int, _request: InferRequest, outcome: Outcome) -> None:
        self._theirs = outcome
        self._rollout.count_shadow(number, outcome, since_ns)
        self._compare()

    def _compare(self) -> None:
        if self._ours is not None and self._theirs is not None:
            self._rollout.compare(self._ours, self._theirs)


def _nobody(_request: InferRequest, _outcome: Outcome) -> None:
    """Stands in for a moment, between one who was told and the next."""


def rolled_out(versions: dict[str, Served]) -> Served:
    """Who gets the requests that name no version: the newest, or a rollout of the candidate that its config names
    beside the newest of the others."""
    newest = next(reversed(versions.values()))
    rollout = newest.model.config.rollout
    if rollout is None:
        return newest
    others = [served for version, served in versions.items() if version != rollout.version]
    candidate = versions.get(rollout.version)
    if candidate is None or not others:
        log.warning(
            "model '%s': version %s is to be beside another one, and versions %s serve: version %s has all requests",
            *(newest.model.name, rollout.version, ", ".join(versions), newest.model.version),
        )
        return newest
    return RolloutServed(others[-1], candidate, rollout)
