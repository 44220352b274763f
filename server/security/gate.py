"""The gate: from what a call shows, a key or a token, to who it is and what it may do.

A transport reads the head of a call once for all calls with the same bytes, and keeps an `Entry` with it. The entry
asks the gate who its caller is; the answer is kept until keys change, until it expires, and for a minute at most.
Where nothing is to be checked there is no entry, and nothing is done.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from server.errors import InvalidRequest, PermissionDenied, ServingError, Unauthenticated, UnknownRegion
from server.security.addresses import is_loopback
from server.security.caller import KEY_PREFIX, Caller, Grant
from server.security.limits import Limits
from server.security.plane import GuardedPlane
from server.security.roles import Group, Need, Role
from server.security.watched import Watched

if TYPE_CHECKING:
    from server.security.keys import Keys
    from server.security.tokens import Tokens
    from server.settings import AuthSettings, Settings
    from server.types import InferRequest

log = logging.getLogger(__name__)

HEADERS = (b"authorization", b"x-api-key")
"""In which a call shows what it has."""
Owners = dict[str, str]
"""Of regions of shared memory, by their names."""

_LONGEST_NS = 60 * 1_000_000_000
"""An answer is kept so long at most: the wall clock, by which keys and tokens expire, may have been set meanwhile."""
_REFUSED_NS = 5 * 1_000_000_000
"""A refusal is kept so long: one who tries again and again costs a look-up, not a signature."""
_KEPT = 4096
_MOST_NAMES = 16384
_SCHEME = b"bearer "


class BadAuth(ValueError):
    """The settings of `auth` can't be used; the text says why."""


class Gate:
    """One for a process. Everything but `refresh` is called on the event loop."""

    def __init__(
        self, keys: Watched[Keys] | None, tokens: Tokens | None, closed: frozenset[Group], share: float = 1.0
    ) -> None:
        """`closed`: groups for those with the role control alone, or, without keys and tokens, for nobody. `share`:
        this process's part of what a caller may ask for."""
        self._keys = keys
        self._tokens = tokens
        self._closed = closed
        self._share = share
        self._limits: dict[str, Limits] = {}
        self._known: dict[bytes, tuple[Caller | ServingError, int]] = {}
        self.owners: Owners = {}
        self.generation = 0
        """Grows when keys change: whoever keeps an answer asks again."""

    @property
    def asks(self) -> bool:
        """Callers have to show something."""
        return self._keys is not None or self._tokens is not None

    def entry(self, fields: Mapping[bytes, bytes], tenant: str, need: Need) -> Entry | None:
        """Of a call with these header fields (`HEADERS` are looked at); None: there is nothing to check."""
        if need.role is None:
            return None
        if not self.asks:
            return Entry(self, b"", tenant, need) if need.group in self._closed else None
        if need.group in self._closed:
            need = Need(Role.CONTROL, need.group)
        try:
            return Entry(self, credential(fields), tenant, need)
        except ServingError as error:
            return Entry(self, b"", tenant, need, error)

    def caller(self, shown: bytes, need: Need, now_ns: int) -> tuple[Caller, int]:
        """Who shows this, and until when that holds. Raises Unauthenticated, PermissionDenied."""
        if not self.asks:
            raise PermissionDenied(f"{need.group}: closed to the network; auth.open_groups opens it")
        known = self._known.get(shown)
        if known is None or known[1] <= now_ns:
            known = self._look(shown, now_ns)
            if len(self._known) >= _KEPT:
                self._known.clear()
            self._known[shown] = known
        found, until_ns = known
        if isinstance(found, ServingError):
            raise found
        found.check(need)
        return found, until_ns

    def _look(self, shown: bytes, now_ns: int) -> tuple[Caller | ServingError, int]:
        try:
            grant, expires_s = self._grant(shown)
        except ServingError as error:
            return error, now_ns + _REFUSED_NS
        until_ns = now_ns + _LONGEST_NS
        if expires_s is not None:
            until_ns = min(until_ns, now_ns + int((expires_s - time.time()) * 1e9))
        if len(self._limits) >= _MOST_NAMES:
            self._limits = {name: limits for name, limits in self._limits.items() if limits.in_flight}
        return Caller(grant, self._limits.setdefault(grant.name, Limits()), self._share), until_ns

    def _grant(self, shown: bytes) -> tuple[Grant, float | None]:
        if not shown:
            raise Unauthenticated("show a key or a token: authorization: Bearer, or x-api-key")
        text = shown.decode("latin-1")
        if text.startswith(KEY_PREFIX) or self._tokens is None:
            if self._keys is None:
                raise Unauthenticated("keys are not taken here, but tokens")
            record = self._keys.value.find(text, datetime.now(UTC))
            return record.grant, record.expires.timestamp() if record.expires else None
        return self._tokens.grant(text)

    # --- changes ------------------------------------------------------------------------------------

    async def watch(self, every_s: float) -> None:
        """Follow what changes on disk, and where tokens' keys come from, for ever."""
        while True:
            await asyncio.sleep(every_s)
            if await asyncio.to_thread(self._refresh):
                self._known.clear()
                self.generation += 1
                log.info("keys: read anew%s", f", there are {len(self._keys.value)}" if self._keys else "")

    def _refresh(self) -> bool:
        changed = False
        sources: tuple[Watched[Keys] | Tokens | None, ...] = (self._keys, self._tokens)
        for source in sources:
            try:
                changed = (source is not None and source.refresh()) or changed
            except (OSError, ValueError) as error:
                log.error("keys: what was known stays: %s", error)
        return changed


class Entry:
    """What a head shows and asks for."""

    __slots__ = ("_caller", "_fault", "_gate", "_generation", "_limited", "_need", "_shown", "_tenant", "_until_ns")

    def __init__(self, gate: Gate, shown: bytes, tenant: str, need: Need, fault: ServingError | None = None) -> None:
        """`fault`: the answer, whoever it is."""
        self._gate = gate
        self._shown = shown
        self._need = need
        self._tenant = tenant
        self._fault = fault
        self._caller: Caller | None = None
        self._until_ns = 0
        self._generation = -1
        self._limited = True
        """There is more to see to than who it is."""

    def caller(self, now_ns: int) -> Caller:
        """Raises Unauthenticated, PermissionDenied, InvalidRequest."""
        caller = self._caller
        if caller is None or now_ns >= self._until_ns or self._generation != self._gate.generation:
            return self._look(now_ns)
        return caller

    def _look(self, now_ns: int) -> Caller:
        if self._fault is not None:
            raise self._fault
        self._until_ns = 0
        caller, until_ns = self._gate.caller(self._shown, self._need, now_ns)
        self._tenant = caller.check_tenant(self._tenant)
        self._until_ns = until_ns
        self._caller, self._generation, self._limited = caller, self._gate.generation, caller.limits_requests
        return caller

    def admit(self, request: InferRequest) -> None:
        """Let a request on, for its caller's tenant. Raises as `caller`, and RateLimited."""
        if request.received_ns >= self._until_ns or self._generation != self._gate.generation:
            self._look(request.received_ns)
        if self._limited or request.special is not None:
            self._admit_slowly(request)
        request.tenant = self._tenant

    def _admit_slowly(self, request: InferRequest) -> None:
        caller, special = self._caller, request.special
        assert caller is not None
        if special is not None and special.shared is not None:
            self._check_regions(special.shared, caller)
        caller.admit(request)

    def refusal(self, now_ns: int, model_name: str | None = None) -> ServingError | None:
        """Why the call is not let in, before its body is read; `model_name`: the model that its head names."""
        try:
            caller = self.caller(now_ns)
            if model_name is not None:
                caller.check_model(model_name)
        except ServingError as error:
            return error
        return None

    def plane(self, plane: Any, now_ns: int) -> Any:
        """The data plane as the caller may use it. Raises as `caller`."""
        return GuardedPlane(plane, self.caller(now_ns), self, self._gate.owners)

    def _check_regions(self, shared: Any, caller: Caller) -> None:
        """Raises UnknownRegion: another caller's, which is the same to this one as none."""
        for reference in (*(given.reference for given in shared.inputs), *shared.outputs.values()):
            if self._gate.owners.get(reference.region) != caller.name:
                raise UnknownRegion(reference.region)


def credential(fields: Mapping[bytes, bytes]) -> bytes:
    """The key or token that header fields show, empty for none.

    Raises:
        InvalidRequest: they show two.
        Unauthenticated: `authorization` is of another scheme.
    """
    authorization, key = (fields.get(name, b"").strip() for name in HEADERS)
    if not authorization:
        return key
    if key:
        raise InvalidRequest("x-api-key", "is there beside authorization: show one of them")
    if authorization[: len(_SCHEME)].lower() != _SCHEME:
        raise Unauthenticated("authorization: must be Bearer and a key or token")
    return authorization[len(_SCHEME) :].strip()


def open_gate(settings: Settings, share: float = 1.0) -> Gate | None:
    """What `settings` ask for; None where everybody may do everything. Raises BadAuth."""
    auth = settings.auth
    exposed = not is_loopback(settings.host)
    closed = frozenset(Group) - frozenset(map(Group, auth.open_groups)) if exposed else frozenset[Group]()
    try:
        keys, tokens = _keys(auth), _tokens(auth)
    except (OSError, ValueError) as error:
        raise BadAuth(str(error)) from error
    if keys is None and tokens is None and not closed:
        return None
    return Gate(keys, tokens, closed, share)


def _keys(auth: AuthSettings) -> Watched[Keys] | None:
    if not auth.keys:
        return None
    # Imported where it is wanted only: most servers have no keys.
    from server.security.keys import Keys, key_files, read_file

    place = Path(auth.keys)

    def read() -> Keys:
        return Keys(record for path in key_files(place) for record in read_file(path).keys)

    return Watched(lambda: key_files(place), read)


def _tokens(auth: AuthSettings) -> Tokens | None:
    if not auth.jwt_jwks:
        return None
    # Imported where it is wanted only: it brings cryptography.
    from server.security.tokens import Tokens

    return Tokens(auth)
