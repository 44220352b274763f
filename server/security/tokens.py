"""JSON Web Tokens: whose are believed, and what they grant. Needs the extra `auth`.

Signed with a private key alone (RS, PS, ES, EdDSA): a secret that the server shares could make tokens too, and `none`
is no signature. The public keys are a JWK Set, of a file or a URL; one that is fetched is fetched again now and then,
and when a token names a key that is not in it.

Source: RFC 7519 (JWT), RFC 7517 (JWK), RFC 8725 (best practices).
"""

from __future__ import annotations

import json
import logging
import time
import urllib.request
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from server.errors import PermissionDenied, Unauthenticated
from server.security.addresses import is_loopback
from server.security.caller import Grant
from server.security.roles import Role
from server.security.watched import Watched

if TYPE_CHECKING:
    from server.settings import AuthSettings

log = logging.getLogger(__name__)

ALGORITHMS = ("RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "EdDSA")
_MAX_SET_BYTES = 1024 * 1024
_FETCH_S = 5.0
_LEAST_BETWEEN_S = 30.0
"""Between two fetches, whatever tokens name: strangers must not make the server ask for each of theirs."""
_MAX_TOKEN_BYTES = 16 * 1024


class BadTokens(ValueError):
    """Tokens can't be checked: the keys can't be had, or a package is missing."""


class Tokens:
    """Checks tokens, and says until when (seconds of the wall clock) what they grant holds."""

    def __init__(self, settings: AuthSettings) -> None:
        """Raises BadTokens, OSError."""
        try:
            import jwt
        except ImportError as error:
            raise BadTokens("auth.jwt_*: pip install 'forwardpass[auth]' to check tokens") from error
        self._jwt: Any = jwt
        self._settings = settings
        self._remote = "://" in settings.jwt_jwks
        self._asked_s = time.monotonic()
        self._wanted = False
        if self._remote:
            _check_url(settings.jwt_jwks)
            self._keys = self._fetch()
            self._file: Watched[Mapping[str, Any]] | None = None
        else:
            path = Path(settings.jwt_jwks)
            self._file = Watched(lambda: [path], lambda: self._read(path.read_bytes(), str(path)))
            self._keys = self._file.value

    def grant(self, token: str) -> tuple[Grant, float]:
        """Raises Unauthenticated: it is none, not for us, not of who we believe, or not of now; PermissionDenied: it
        grants nothing."""
        jwt, settings = self._jwt, self._settings
        if len(token) > _MAX_TOKEN_BYTES:
            raise Unauthenticated("the token is too large")
        try:
            claims = jwt.decode(
                token,
                self._key(token),
                algorithms=list(ALGORITHMS),
                issuer=settings.jwt_issuer,
                audience=settings.jwt_audience,
                leeway=settings.jwt_leeway_s,
                options={"require": ["exp", "iss", "aud"], "strict_aud": False},
            )
        except jwt.ExpiredSignatureError:
            raise Unauthenticated("the token has expired") from None
        except (jwt.InvalidIssuerError, jwt.InvalidAudienceError, jwt.ImmatureSignatureError) as error:
            raise Unauthenticated(f"the token is not valid here: {error}") from None
        except (jwt.PyJWTError, ValueError, TypeError):
            raise Unauthenticated("the token is not valid") from None
        return granted(claims, settings), float(claims["exp"]) + settings.jwt_leeway_s

    def refresh(self) -> bool:
        """Look at the keys again, if it is time. Whether they changed. On a thread. Raises BadTokens, OSError."""
        if self._file is not None:
            changed = self._file.refresh()
            self._keys = self._file.value
            return changed
        waited_s = time.monotonic() - self._asked_s
        if waited_s < (_LEAST_BETWEEN_S if self._wanted else self._settings.jwt_refresh_s):
            return False
        self._asked_s, self._wanted = time.monotonic(), False
        keys = self._fetch()
        changed = keys.keys() != self._keys.keys()
        self._keys = keys
        return changed

    def _key(self, token: str) -> Any:
        header = self._jwt.get_unverified_header(token)
        kid = header.get("kid")
        if kid is None and len(self._keys) == 1:
            [key] = self._keys.values()
            return key
        key = self._keys.get(kid)
        if key is None:
            self._wanted = True
            raise Unauthenticated("the token's key (kid) is not known")
        return key

    def _fetch(self) -> Mapping[str, Any]:
        url = self._settings.jwt_jwks
        request = urllib.request.Request(url, headers={"accept": "application/json"})  # noqa: S310 - checked
        opener = urllib.request.build_opener(_NoRedirects)
        try:
            with opener.open(request, timeout=_FETCH_S) as answer:
                data = answer.read(_MAX_SET_BYTES + 1)
        except OSError as error:
            raise BadTokens(f"auth.jwt_jwks: {url}: {getattr(error, 'reason', None) or error}") from error
        return self._read(data, url)

    def _read(self, data: bytes, where: str) -> Mapping[str, Any]:
        """The keys by their ids. Raises BadTokens."""
        if len(data) > _MAX_SET_BYTES:
            raise BadTokens(f"auth.jwt_jwks: {where}: is larger than {_MAX_SET_BYTES} bytes")
        try:
            keys = self._jwt.PyJWKSet.from_dict(json.loads(data)).keys
        except (ValueError, TypeError, AttributeError, self._jwt.PyJWTError) as error:
            raise BadTokens(f"auth.jwt_jwks: {where}: is no JWK Set") from error
        # A symmetric key would let whoever may check tokens make them.
        found = {key.key_id: key for key in keys if key.key_type != "oct" and key.public_key_use in (None, "sig")}
        if not found:
            raise BadTokens(f"auth.jwt_jwks: {where}: has no public key for signatures")
        return found


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    """Who answers for the keys is named in the settings, and nobody else."""

    def redirect_request(self, *_given: Any, **_more: Any) -> None:
        return None


def _check_url(url: str) -> None:
    parts = urlsplit(url)
    if parts.scheme == "https" or (parts.scheme == "http" and is_loopback(parts.hostname or "")):
        return
    raise BadTokens("auth.jwt_jwks: must be a file, or an https:// URL (http:// for a loopback address alone)")


def granted(claims: Mapping[str, Any], settings: AuthSettings) -> Grant:
    """What a token that is believed grants: `roles` (or `scope`), `models`, `tenant`, for its `sub`.

    Raises:
        PermissionDenied: it has no role, or a claim that is not of its type.
    """
    name = claims.get("sub") or claims.get("client_id")
    if not isinstance(name, str):
        raise PermissionDenied("the token has no sub")
    said = [one.removeprefix("forwardpass:") for one in _words(claims, settings.jwt_roles_claim)]
    roles = frozenset(Role(one) for one in said if one in set(Role))
    if not roles:
        raise PermissionDenied(f"the token's claim {settings.jwt_roles_claim} has none of {', '.join(Role)}")
    tenant = claims.get("tenant", "")
    if not isinstance(tenant, str):
        raise PermissionDenied("the token's tenant is no text")
    return Grant(
        f"jwt:{name[:128]}",
        roles,
        tuple(_words(claims, "models")),
        tenant[:128] or name[:128],
        settings.jwt_rate_per_s,
        0.0,
        settings.jwt_max_concurrent,
    )


def _words(claims: Mapping[str, Any], claim: str) -> Sequence[str]:
    """A claim that is a list of texts, or one text of words. Raises PermissionDenied: it is neither."""
    value = claims.get(claim, ())
    words = value.split() if isinstance(value, str) else value
    if not isinstance(words, list | tuple) or not all(isinstance(word, str) for word in words):
        raise PermissionDenied(f"the token's claim {claim} is no list of texts")
    return words
