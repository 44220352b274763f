"""A caller who is known: what it may ask for, and how much.

`admit` is the hot way, once for each request; the other methods are for calls that may be slow.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING

from server.errors import PermissionDenied, RateLimited
from server.security.limits import Limits
from server.security.roles import Need, Role

if TYPE_CHECKING:
    from server.types import InferRequest, Outcome

ANY_TENANT = "*"
"""As a key's tenant: it speaks for many, and says for which by `X-Tenant`."""
KEY_PREFIX = "fp_"
"""Of an API key; what does not begin so is a token."""
_MOST_NAMES = 1024


@dataclass(frozen=True, slots=True)
class Grant:
    """What a key or a token grants its bearer."""

    name: str
    roles: frozenset[Role]
    models: tuple[str, ...] = ()
    """Names, in which * stands for anything; empty: all models."""
    tenant: str = ""
    """On whose behalf its requests are; empty: its name's. `ANY_TENANT`: whom it says."""
    rate_per_s: float = 0.0
    """Requests a second; 0: no limit."""
    burst: float = 0.0
    """Requests that may come at once after a pause; 0: a second's, at least one."""
    max_concurrent: int = 0
    """Requests under way at a time; 0: no limit."""


class Caller:
    """A grant in use. `limits` are those of its name; `share` is this process's part of them."""

    __slots__ = ("_allowed", "_limits", "grant", "limited", "name", "tenant")

    def __init__(self, grant: Grant, limits: Limits, share: float = 1.0) -> None:
        self.grant = grant
        self.name = grant.name
        self.tenant = grant.tenant or grant.name
        self._limits = limits
        burst = max(1.0, (grant.burst or grant.rate_per_s) * share)
        limits.set_rate(grant.rate_per_s * share, burst)
        self.limited = max(1, int(grant.max_concurrent * share)) if grant.max_concurrent else 0
        self._allowed: dict[str, bool] = {}

    @property
    def limits_requests(self) -> bool:
        """There is something to hold each request against."""
        return bool(self.grant.models or self.limited or self._limits.bucket)

    def check(self, need: Need) -> None:
        """Raises PermissionDenied: it does not have the role."""
        if need.role is not None and need.role not in self.grant.roles:
            raise PermissionDenied(f"'{self.name}' does not have the role {need.role}")

    def check_tenant(self, said: str) -> str:
        """The tenant of a call that says `said`. Raises PermissionDenied: it is another's."""
        if self.grant.tenant == ANY_TENANT:
            return said
        if said not in ("", self.tenant):
            raise PermissionDenied(f"x-tenant: '{self.name}' does not speak for another tenant")
        return self.tenant

    def may_use(self, model_name: str) -> bool:
        if not self.grant.models:
            return True
        allowed = self._allowed.get(model_name)
        if allowed is None:
            allowed = any(fnmatchcase(model_name, pattern) for pattern in self.grant.models)
            if len(self._allowed) >= _MOST_NAMES:
                self._allowed.clear()
            self._allowed[model_name] = allowed
        return allowed

    def check_model(self, model_name: str) -> None:
        """Raises PermissionDenied, whether there is such a model or not."""
        if not self.may_use(model_name):
            raise PermissionDenied(f"'{self.name}' may not use the model '{model_name[:64]}'")

    def admit(self, request: InferRequest) -> None:
        """Let a request on, and count it until it is settled.

        Raises:
            PermissionDenied: not this model.
            RateLimited: not now.
        """
        if self.grant.models:
            self.check_model(request.model_name)
        self._take(request.received_ns)
        if self.limited:
            self._count(request)

    def _count(self, request: InferRequest) -> None:
        limits = self._limits

        def over(request: InferRequest, outcome: Outcome) -> None:
            limits.in_flight -= 1
            before(request, outcome)

        limits.in_flight += 1
        before = request.divert(over)

    @contextmanager
    def holding(self, model_name: str, now_ns: int) -> Iterator[None]:
        """The same for a call that is no single request."""
        self.check_model(model_name)
        self._take(now_ns)
        self._limits.in_flight += 1
        try:
            yield
        finally:
            self._limits.in_flight -= 1

    def _take(self, now_ns: int) -> None:
        limits = self._limits
        if self.limited and limits.in_flight >= self.limited:
            raise RateLimited(self.name, f"{self.limited} requests at a time")
        if limits.bucket is not None:
            limits.bucket.take(self.name, now_ns)
