"""Who may do what: keys, tokens, roles, limits, and the pages that may ask."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from typer.testing import CliRunner

from server.cli import create_app
from server.errors import InvalidRequest, PermissionDenied, RateLimited, ServingError, Unauthenticated
from server.security.caller import Caller, Grant
from server.security.gate import BadAuth, Gate, credential, open_gate
from server.security.keys import BadKeys, KeyFile, Keys, new_key, read_file, write_file
from server.security.limits import Limits
from server.security.origin import is_foreign
from server.security.plane import GuardedPlane
from server.security.roles import CONTROLS, OPEN, PREDICTS, READS, READS_STATISTICS, Role
from server.settings import Settings
from server.transport.console import CONSOLE
from server.transport.methods import METHODS
from server.transport.routes import ROUTES
from server.types import InferRequest, InferResponse, PredictRequest

S = 10**9
ISSUER, AUDIENCE = "https://login.example.com", "forwardpass"


def a_request(model: str = "fraud", received_ns: int = 0) -> InferRequest:
    return InferRequest(model, [], on_settle=lambda request, outcome: None, received_ns=received_ns)


def a_file(path: Path, **more: Any) -> str:
    """A file with one more key; the key."""
    key, record = new_key(**{"name": "shop", "roles": ("predict",), **more})
    known = read_file(path).keys if path.exists() else ()
    write_file(path, KeyFile(keys=(*known, record)))
    return key


def gate_of(path: Path, **auth: Any) -> Gate:
    gate = open_gate(Settings(auth={"keys": str(path), **auth}))
    assert gate is not None
    return gate


def admit(gate: Gate, key: str, request: InferRequest, tenant: str = "") -> InferRequest:
    entry = gate.entry({b"x-api-key": key.encode()}, tenant, PREDICTS)
    assert entry is not None
    entry.admit(request)
    return request


# --- keys -------------------------------------------------------------------------------------------------


def test_a_key_is_nowhere_kept(tmp_path: Path) -> None:
    """The file has a hash of the secret, and is its owner's alone."""
    key = a_file(tmp_path / "keys.yaml")

    assert key.split("_", 2)[2] not in (tmp_path / "keys.yaml").read_text()
    assert (tmp_path / "keys.yaml").stat().st_mode & 0o077 == 0


@pytest.mark.parametrize("change", [lambda k: k[:-1], lambda k: k + "x", lambda k: k[:-1] + "!", lambda k: k.upper()])
def test_a_key_that_is_nearly_right_is_none(tmp_path: Path, change: Callable[[str], str]) -> None:
    key = a_file(tmp_path / "keys.yaml")
    keys = Keys(read_file(tmp_path / "keys.yaml").keys)

    assert keys.find(key, datetime.now(UTC)).name == "shop"
    with pytest.raises(Unauthenticated, match="not known"):
        keys.find(change(key), datetime.now(UTC))


def test_the_secret_of_another_key_does_not_do(tmp_path: Path) -> None:
    one, other = a_file(tmp_path / "k.yaml"), a_file(tmp_path / "k.yaml", name="bank")
    mixed = "_".join((*one.split("_")[:2], other.split("_", 2)[2]))

    with pytest.raises(Unauthenticated):
        Keys(read_file(tmp_path / "k.yaml").keys).find(mixed, datetime.now(UTC))


class Clock:
    """Of the day, which somebody sets."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.ahead = timedelta()
        clock = self

        class Moved(datetime):
            @classmethod
            def now(cls, tz: Any = None) -> datetime:
                return datetime.now(tz) + clock.ahead

        for where in ("server.security.gate.datetime", "jwt.api_jwt.datetime"):
            monkeypatch.setattr(where, Moved)
        monkeypatch.setattr("server.security.gate.time", Mock(time=lambda: time.time() + clock.ahead.total_seconds()))


def test_an_expired_key_is_refused_also_where_it_was_known(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An answer that is kept, as answers are for a minute, does not outlive the key."""
    clock = Clock(monkeypatch)
    key = a_file(tmp_path / "keys.yaml", expires=datetime.now(UTC) + timedelta(seconds=30))
    gate = gate_of(tmp_path / "keys.yaml")
    entry = gate.entry({b"authorization": b"Bearer " + key.encode()}, "", PREDICTS)
    assert entry is not None
    now_ns = time.monotonic_ns()
    entry.admit(a_request(received_ns=now_ns))

    clock.ahead = timedelta(seconds=31)

    with pytest.raises(Unauthenticated, match="expired"):
        entry.admit(a_request(received_ns=now_ns + 31 * 10**9))


def test_a_clock_that_jumps_is_followed_within_a_minute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An hour ahead a key of half an hour is over, back again it holds: no answer is kept for longer, however far the
    clock of the day has moved."""
    shown = a_file(tmp_path / "keys.yaml", expires=datetime.now(UTC) + timedelta(minutes=30)).encode()
    _follows_the_clock(gate_of(tmp_path / "keys.yaml"), shown, Clock(monkeypatch))


def _follows_the_clock(gate: Gate, shown: bytes, clock: Clock) -> None:
    """What is shown is good for half an hour."""
    now_ns = time.monotonic_ns()
    _, until_ns = gate.caller(shown, PREDICTS, now_ns)
    assert until_ns <= now_ns + 60 * 10**9

    clock.ahead = timedelta(hours=1)
    with pytest.raises(Unauthenticated, match="expired"):
        gate.caller(shown, PREDICTS, until_ns)
    clock.ahead = timedelta(hours=-1)
    _, until_ns = gate.caller(shown, PREDICTS, until_ns + 5 * 10**9)
    assert until_ns <= now_ns + 125 * 10**9


async def test_keys_are_followed_on_disk(tmp_path: Path) -> None:
    """A new key is taken, one that is gone is refused, and a broken file changes nothing."""
    path = tmp_path / "keys.yaml"
    old = a_file(path)
    gate = gate_of(path)
    watching = asyncio.create_task(gate.watch(0.01))
    admit(gate, old, a_request())

    new = a_file(tmp_path / "new.yaml", name="bank")
    (tmp_path / "new.yaml").replace(path)
    await _until(lambda: gate.generation == 1)
    assert admit(gate, new, a_request()).tenant == "bank"
    with pytest.raises(Unauthenticated):
        admit(gate, old, a_request())

    path.write_text("keys: {")
    await asyncio.sleep(0.05)
    admit(gate, new, a_request())
    watching.cancel()


async def _until(done: Callable[[], bool]) -> None:
    async with asyncio.timeout(30):
        while not done():  # noqa: ASYNC110 - of a thread's work
            await asyncio.sleep(0.005)


def test_a_folder_of_files_is_a_mounted_secret(tmp_path: Path) -> None:
    """All files with the suffix count, but for what Kubernetes keeps beside them."""
    one, other = a_file(tmp_path / "a.yaml"), a_file(tmp_path / "b.yml", name="bank")
    (tmp_path / "..data.yaml").write_text("nonsense")
    (tmp_path / "README").write_text("nonsense")
    gate = gate_of(tmp_path)

    assert admit(gate, one, a_request()).tenant == "shop"
    assert admit(gate, other, a_request()).tenant == "bank"


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("keys: [{name: x, secret: fp_hidden}]", "secret"),
        ("keys: {", "is no YAML, line"),
        ("keys: [{name: '', id: '0', sha256: fp_hidden, roles: [root]}]", "roles.0"),
        ("lock: 1", "lock"),
    ],
)
def test_a_bad_file_is_told_without_its_values(tmp_path: Path, text: str, told: str) -> None:
    path = tmp_path / "keys.yaml"
    path.write_text(text)

    with pytest.raises(BadKeys, match=told) as caught:
        read_file(path)
    assert "hidden" not in str(caught.value)
    with pytest.raises(BadAuth):
        gate_of(path)


def test_the_command_line_makes_lists_and_removes_keys(tmp_path: Path) -> None:
    """The key is all that `create` prints, and `list` shows nothing that could be used."""
    run, app, file = CliRunner().invoke, create_app(), ["--file", str(tmp_path / "keys.yaml")]
    made = run(app, ["keys", "create", "--name", "shop", "--model", "fraud*", "--expires-days", "90", *file])
    key = made.stdout.strip()
    key_id = key.split("_")[1]

    listed = run(app, ["keys", "list", *file]).stdout
    assert f"{key_id}  shop  predict,read  fraud*  valid until" in listed
    assert key.split("_", 2)[2] not in listed
    assert Keys(read_file(tmp_path / "keys.yaml").keys).find(key, datetime.now(UTC)).models == ("fraud*",)

    assert run(app, ["keys", "create", "--name", "a b", *file]).exit_code == 2
    assert run(app, ["keys", "remove", key_id, *file]).exit_code == 0
    assert run(app, ["keys", "remove", key_id, *file]).exit_code == 1
    assert run(app, ["keys", "list", *file]).stdout == ""


# --- what a caller may do ---------------------------------------------------------------------------------


def a_caller(**grant: Any) -> Caller:
    return Caller(Grant(**{"name": "shop", "roles": frozenset({Role.PREDICT}), **grant}), Limits())


def test_a_caller_has_its_roles_and_no_other() -> None:
    caller = a_caller()
    caller.check(PREDICTS)
    for need in (READS, CONTROLS):
        with pytest.raises(PermissionDenied, match="role"):
            caller.check(need)


def test_a_model_is_refused_whether_it_exists_or_not() -> None:
    caller = a_caller(models=("fraud", "digits-*"))
    for model in ("fraud", "digits-2"):
        caller.admit(a_request(model))
    for model in ("digits", "fraud2", "../fraud", ""):
        with pytest.raises(PermissionDenied, match="may not use"):
            caller.admit(a_request(model))


def test_a_tenant_is_the_keys_own() -> None:
    """Nobody speaks for another but who was made for that."""
    assert a_caller().check_tenant("") == "shop"
    assert a_caller(tenant="red").check_tenant("red") == "red"
    assert a_caller(tenant="*").check_tenant("blue") == "blue"
    with pytest.raises(PermissionDenied, match="tenant"):
        a_caller(tenant="red").check_tenant("blue")


def test_a_rate_is_a_bucket_that_fills_with_time() -> None:
    """10 a second, 2 at once: the third comes too early, by 100 ms, and is told so."""
    caller = a_caller(rate_per_s=10, burst=2)
    caller.admit(a_request(received_ns=S))
    caller.admit(a_request(received_ns=S))
    with pytest.raises(RateLimited) as caught:
        caller.admit(a_request(received_ns=S))
    assert caught.value.retry_after_ms == 100
    caller.admit(a_request(received_ns=S + S // 10))
    with pytest.raises(RateLimited):
        caller.admit(a_request(received_ns=S))  # The clock of requests may step back, and gives nothing for it.


@pytest.mark.parametrize("outcome", [InferResponse("fraud", "1", []), RuntimeError()])
def test_requests_under_way_are_counted_until_they_are_settled(outcome: Any) -> None:
    caller = a_caller(max_concurrent=1)
    first = a_request()
    caller.admit(first)
    with pytest.raises(RateLimited, match="1 requests at a time"):
        caller.admit(a_request())
    first.settle(outcome)
    caller.admit(a_request())


async def test_limits_outlive_a_change_of_the_file(tmp_path: Path) -> None:
    """Who has used up its rate does not get it back by a rotation."""
    path = tmp_path / "keys.yaml"
    old = a_file(path, rate_per_s=0.001)
    gate = gate_of(path)
    watching = asyncio.create_task(gate.watch(0.01))
    admit(gate, old, a_request(received_ns=S))
    new = a_file(path, rate_per_s=0.001)
    await _until(lambda: gate.generation == 1)

    for key in (old, new):
        with pytest.raises(RateLimited):
            admit(gate, key, a_request(received_ns=S))
    watching.cancel()


def test_predictions_of_callers_that_are_asked_are_all_counted() -> None:
    """None begins by a plain call, which counts nothing."""
    nobody: Any = None
    plane = GuardedPlane(Mock(), Caller(Grant("shop", frozenset({Role.PREDICT})), Limits()), nobody, nobody)
    begun: object = plane.begin(PredictRequest("fraud", []), nobody)
    assert begun is None
    assert not plane._plane.mock_calls


def test_workers_share_a_rate() -> None:
    """Each of four processes grants a quarter."""
    caller = Caller(Grant("shop", frozenset({Role.PREDICT}), rate_per_s=40, max_concurrent=8), Limits(), 1 / 4)
    for _ in range(10):
        caller.holding("fraud", S)
    assert caller.limited == 2
    for _ in range(10):
        with caller.holding("fraud", S):
            pass
    with pytest.raises(RateLimited), caller.holding("fraud", S):
        pass


# --- what is shown ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "shown"),
    [
        ({}, b""),
        ({b"authorization": b"Bearer abc"}, b"abc"),
        ({b"authorization": b"bearer   abc "}, b"abc"),
        ({b"x-api-key": b" abc"}, b"abc"),
    ],
)
def test_a_key_is_found_in_either_field(fields: dict[bytes, bytes], shown: bytes) -> None:
    assert credential(fields) == shown


@pytest.mark.parametrize(
    ("fields", "error"),
    [
        ({b"authorization": b"Basic abc"}, Unauthenticated),
        ({b"authorization": b"Bearer a", b"x-api-key": b"b"}, InvalidRequest),
    ],
)
def test_two_keys_and_other_schemes_are_refused(fields: dict[bytes, bytes], error: type[ServingError]) -> None:
    with pytest.raises(error):
        credential(fields)


def test_on_the_loopback_there_is_no_gate() -> None:
    """Off by default: nothing is looked at."""
    assert open_gate(Settings()) is None


def test_a_group_is_closed_to_the_network() -> None:
    """Where everybody may ask, nobody may for these; where there are keys, those that control."""
    gate = open_gate(Settings(host="::", auth={"insecure": True}))
    assert gate is not None
    assert gate.entry({}, "", PREDICTS) is None
    assert gate.entry({}, "", OPEN) is None
    entry = gate.entry({}, "", READS_STATISTICS)
    assert isinstance(entry and entry.refusal(0), PermissionDenied)

    opened = open_gate(Settings(host="::", auth={"insecure": True, "open_groups": ("statistics",)}))
    assert opened is not None
    assert opened.entry({}, "", READS_STATISTICS) is None


@pytest.mark.parametrize(
    ("roles", "open_groups", "allowed"),
    [(("read",), (), False), (("control",), (), True), (("read",), ("statistics",), True)],
)
def test_a_closed_group_takes_the_role_control(
    tmp_path: Path, roles: tuple[str, ...], open_groups: tuple[str, ...], allowed: bool
) -> None:
    key = a_file(tmp_path / "k.yaml", roles=roles)
    gate = open_gate(Settings(host="::", auth={"keys": str(tmp_path / "k.yaml"), "open_groups": open_groups}))
    assert gate is not None
    entry = gate.entry({b"x-api-key": key.encode()}, "", READS_STATISTICS)
    assert entry is not None
    assert (entry.refusal(0) is None) is allowed


@pytest.mark.parametrize("auth", [{}, {"open_groups": ("trace",)}])
def test_nothing_listens_beyond_the_loopback_by_mistake(auth: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="--insecure"):
        Settings(host="192.0.2.1", auth=auth)


def test_what_every_call_needs() -> None:
    """A call that changes something or shows everybody's work is never open; only health and the page's files are."""
    needs = {method.name.rpartition("/")[2]: method.needs for method in METHODS}
    routes = {f"{route.method} {route.pattern}": route.asks for route in (*ROUTES, *CONSOLE)}

    assert {name for name, need in needs.items() if need == OPEN} == {"ServerLive", "ServerReady", "Check", "Watch"}
    assert all(
        "health" in name or name == "GET /" or "/console/" in name for name, need in routes.items() if need == OPEN
    )
    assert all(need.role is Role.CONTROL for name, need in routes.items() if name.startswith("POST") and "load" in name)
    assert {need.role for name, need in routes.items() if name.endswith(("infer", "predict"))} == {Role.PREDICT}
    assert {need.role for name, need in routes.items() if name.startswith("POST /v1/")} == {Role.PREDICT}
    assert {need.role for name, need in routes.items() if name.startswith("GET /v1/")} == {Role.READ}


# --- tokens -----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def private() -> Any:
    return ec.generate_private_key(ec.SECP256R1())


@pytest.fixture
def tokens(tmp_path: Path, private: Any) -> Gate:
    jwk = json.loads(jwt.algorithms.ECAlgorithm.to_jwk(private.public_key()))
    (tmp_path / "jwks.json").write_text(json.dumps({"keys": [{**jwk, "kid": "one", "use": "sig"}]}))
    auth = {"jwt_jwks": str(tmp_path / "jwks.json"), "jwt_issuer": ISSUER, "jwt_audience": AUDIENCE}
    gate = open_gate(Settings(auth=auth))
    assert gate is not None
    return gate


def a_token(private: Any, kid: str = "one", **claims: Any) -> str:
    now = int(time.time())
    known = {"iss": ISSUER, "aud": AUDIENCE, "sub": "ann", "exp": now + 60, "roles": ["predict"], **claims}
    return jwt.encode(
        {name: value for name, value in known.items() if value is not None}, private, "ES256", headers={"kid": kid}
    )


def test_a_token_says_who_and_what(tokens: Gate, private: Any) -> None:
    request = admit(tokens, a_token(private, tenant="red"), a_request())
    assert request.tenant == "red"
    assert (
        admit(tokens, a_token(private, roles="forwardpass:predict other", models=["fraud"]), a_request()).tenant
        == "ann"
    )


@pytest.mark.parametrize(
    ("claims", "error"),
    [
        ({"exp": 1}, Unauthenticated),
        ({"exp": None}, Unauthenticated),
        ({"iss": "https://evil.example.com"}, Unauthenticated),
        ({"aud": "another"}, Unauthenticated),
        ({"nbf": 1 << 33}, Unauthenticated),
        ({"kid": "two"}, Unauthenticated),
        ({"sub": None}, PermissionDenied),
        ({"roles": ["root"]}, PermissionDenied),
        ({"roles": 1}, PermissionDenied),
        ({"roles": ["read"]}, PermissionDenied),
        ({"models": ["digits"]}, PermissionDenied),
        ({"tenant": 1}, PermissionDenied),
    ],
    ids=str,
)
def test_a_token_that_is_not_for_this_is_refused(
    tokens: Gate, private: Any, claims: dict[str, Any], error: type[ServingError]
) -> None:
    with pytest.raises(error):
        admit(tokens, a_token(private, **claims), a_request())


def test_the_clock_of_who_issues_may_be_off_by_a_little(tokens: Gate, private: Any) -> None:
    admit(tokens, a_token(private, exp=time.time() - 20), a_request())
    with pytest.raises(Unauthenticated, match="expired"):
        admit(tokens, a_token(private, exp=time.time() - 40), a_request())


def test_a_clock_that_jumps_is_followed_for_tokens_too(
    tokens: Gate, private: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where a token says from when on it holds: an hour too early it does not."""
    clock, now = Clock(monkeypatch), time.time()
    _follows_the_clock(tokens, a_token(private, exp=now + 1800).encode(), clock)
    early = a_token(private, nbf=now - 5, exp=now + 1800).encode()
    with pytest.raises(Unauthenticated, match="not yet valid"):
        tokens.caller(early, PREDICTS, time.monotonic_ns())
    clock.ahead = timedelta()
    tokens.caller(early, PREDICTS, time.monotonic_ns() + 5 * 10**9)


def test_a_token_must_be_signed_with_the_private_key(tokens: Gate, private: Any) -> None:
    """Not with another, not with none, and not with the public key as if it were a shared secret."""
    token = a_token(private)
    header, claims, _ = token.split(".")
    unsigned = jwt.encode(jwt.decode(token, options={"verify_signature": False}), None, "none", headers={"kid": "one"})
    shared = jwt.encode({"iss": ISSUER, "aud": AUDIENCE, "sub": "ann", "exp": 2**31}, "x" * 64, headers={"kid": "one"})
    other = a_token(ec.generate_private_key(ec.SECP256R1()))
    for bad in (unsigned, shared, other, f"{header}.{claims}.", "a.b.c", "x" * 20_000, "é"):
        with pytest.raises(Unauthenticated):
            admit(tokens, bad, a_request())


async def test_a_changed_key_set_ends_what_it_vouched_for(tokens: Gate, private: Any, tmp_path: Path) -> None:
    """A token that was believed is replayed after its key was taken out."""
    token = a_token(private)
    admit(tokens, token, a_request())
    watching = asyncio.create_task(tokens.watch(0.01))
    jwk = json.loads(jwt.algorithms.ECAlgorithm.to_jwk(ec.generate_private_key(ec.SECP256R1()).public_key()))
    (tmp_path / "jwks.json").write_text(json.dumps({"keys": [{**jwk, "kid": "two"}]}))
    await _until(lambda: tokens.generation == 1)
    with pytest.raises(Unauthenticated):
        admit(tokens, token, a_request())
    watching.cancel()


@pytest.mark.parametrize(
    "jwks",
    ["http://example.com/jwks.json", "ftp://x/y", '{"keys": []}', "nonsense", '{"keys": [{"kty": "oct", "k": "AA"}]}'],
)
def test_keys_that_can_not_be_believed_stop_the_start(tmp_path: Path, jwks: str) -> None:
    place = jwks
    if "://" not in jwks:
        (tmp_path / "jwks.json").write_text(jwks)
        place = str(tmp_path / "jwks.json")
    with pytest.raises(BadAuth, match="jwt_jwks"):
        open_gate(Settings(auth={"jwt_jwks": place, "jwt_issuer": ISSUER, "jwt_audience": AUDIENCE}))


# --- pages ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "origin", "host", "foreign"),
    [
        ("POST", "", "127.0.0.1:8000", False),
        ("POST", "http://127.0.0.1:8000", "127.0.0.1:8000", False),
        ("POST", "http://localhost:8000", "LOCALHOST:8000", False),
        ("POST", "http://[::1]:8000", "[::1]:8000", False),
        ("POST", "https://console.example.com", "console.example.com", False),
        ("GET", "http://evil.example.com", "127.0.0.1:8000", False),
        ("POST", "http://evil.example.com", "127.0.0.1:8000", True),
        ("POST", "http://127.0.0.1:9000", "127.0.0.1:8000", True),
        ("POST", "null", "127.0.0.1:8000", True),
        ("POST", "http://evil.example.com:8000", "evil.example.com:8000", True),
        ("POST", "file://127.0.0.1:8000", "127.0.0.1:8000", True),
        ("POST", "http://[", "[", True),
        ("DELETE", "http://evil.example.com", "127.0.0.1:8000", True),
    ],
)
def test_whose_pages_may_ask(method: str, origin: str, host: str, foreign: bool) -> None:
    """The console's own, those that are listed, and no page that has let its name point here."""
    assert is_foreign(method, origin, host, {"https://console.example.com"}) is foreign
