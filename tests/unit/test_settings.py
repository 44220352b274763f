"""Settings: where they come from, what is refused, and the generated reference."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from server.environment import known_environment, load_settings
from server.settings import Settings, TritonSettings
from server.settings_doc import Option, options, reference

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def _no_settings_in_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in known_environment():
        monkeypatch.delenv(name, raising=False)


def test_the_defaults_need_nothing() -> None:
    """Without flags and variables the settings are the defaults, and they listen on this machine alone."""
    settings = load_settings()

    assert settings == Settings()
    assert (settings.host, settings.http.port, settings.grpc.port, settings.metrics.port) == (
        "127.0.0.1",
        8000,
        8001,
        8002,
    )


def test_a_flag_beats_the_environment_setting_by_setting(monkeypatch: pytest.MonkeyPatch) -> None:
    """An override replaces its own setting; its neighbours in the section still come from the environment."""
    monkeypatch.setenv("FORWARDPASS_HTTP__PORT", "9000")
    monkeypatch.setenv("FORWARDPASS_HTTP__MAX_BODY_BYTES", "77")
    monkeypatch.setenv("forwardpass_repository__load_models", '["a", "b"]')
    monkeypatch.setenv("FORWARDPASS_REPOSITORY__CONTROL_MODE", "explicit")

    settings = load_settings({"http": {"port": 0}})

    assert (settings.http.port, settings.http.max_body_bytes) == (0, 77)
    assert settings.repository.load_models == ("a", "b")


def test_a_variable_of_a_setting_beats_that_of_its_section(monkeypatch: pytest.MonkeyPatch) -> None:
    """A section may be JSON in one variable; what it does not set comes from the other variables."""
    monkeypatch.setenv("FORWARDPASS_HTTP", '{"port": 1, "keep_alive_s": 2}')
    monkeypatch.setenv("FORWARDPASS_HTTP__PORT", "3")

    assert load_settings().http.model_dump() == {**Settings().http.model_dump(), "port": 3, "keep_alive_s": 2}


@pytest.mark.parametrize("value", ["", "3", "[1]", "null"], ids=["nothing", "a number", "a list", "null"])
def test_a_section_that_is_no_object_is_refused(monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    """JSON of the wrong kind is an error, however much of it another variable might set right."""
    monkeypatch.setenv("FORWARDPASS_HTTP", value)
    monkeypatch.setenv("FORWARDPASS_HTTP__PORT", "1")

    with pytest.raises(ValueError, match=r"must be: FORWARDPASS_HTTP$"):
        load_settings()


@pytest.mark.parametrize("name", ["FORWARDPASS_HTPP__PORT", "FORWARDPASS_HTTP_PORT", "forwardpass_nope"])
def test_an_unknown_variable_of_ours_is_refused(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """A misspelt variable is an error by its name, not passed over."""
    monkeypatch.setenv(name, "1")

    with pytest.raises(ValueError, match=name):
        load_settings()


@pytest.mark.parametrize("name", ["FORWARDPASS_HTTP", "FORWARDPASS_REPOSITORY__LOAD_MODELS"])
def test_a_value_that_must_be_json_is_named(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """Sections and lists are JSON in the environment; the message names the variable that is not."""
    monkeypatch.setenv("FORWARDPASS_GRPC", '{"port": 1}')
    monkeypatch.setenv(name, "{no json")

    with pytest.raises(ValueError, match=rf"not a JSON list or object, as its value must be: {name}$"):
        load_settings()


@pytest.mark.parametrize(
    "overrides",
    [
        {"http": {"port": 65536}},
        {"http": {"port": -1}},
        {"http": {"max_body_bytes": 0}},
        {"repository": {"control_mode": "sometimes"}},
        {"repository": {"poll_s": 0}},
        {"shutdown": {"grace_s": -1}},
        {"log": {"level": "loud"}},
        {"http": {"prot": 1}},
        {"unknown": {}},
    ],
)
def test_a_value_out_of_range_or_place_is_refused(overrides: dict[str, Any]) -> None:
    """Every limit is checked when the settings are read, not when they are used."""
    with pytest.raises(ValidationError):
        load_settings(overrides)


def test_settings_are_frozen() -> None:
    """What was printed at the start is what holds until the end."""
    with pytest.raises(ValidationError):
        Settings().http.port = 1


def test_every_setting_has_a_meaning_and_a_variable_that_is_known() -> None:
    """No setting is undocumented, and the page names no variable that would be refused."""
    known = known_environment()

    for option in options():
        assert option.meaning.endswith("."), option.path
        assert option.variable in known


def test_no_flag_is_spelled_twice() -> None:
    """Two settings never share a flag, and every flag looks like one."""
    flags = [option.flag for option in options() if option.flag]

    assert len(flags) == len(set(flags))
    assert all(re.fullmatch(r"--[a-z][a-z-]*", flag) for flag in flags)


@pytest.mark.parametrize("option", list(options()), ids=lambda option: option.variable)
def test_the_shown_default_is_what_the_variable_takes(option: Option, monkeypatch: pytest.MonkeyPatch) -> None:
    """Setting a variable to the default that the page shows changes nothing."""
    monkeypatch.setenv(option.variable, option.shown_default)

    assert load_settings() == Settings()


def test_the_reference_is_what_the_settings_generate() -> None:
    """Run `forwardpass settings > server/SETTINGS.md` after a change of the settings."""
    assert (ROOT / "server" / "SETTINGS.md").read_text() == reference()


def test_every_row_of_the_reference_has_its_five_cells() -> None:
    """A meaning with a bar in it does not break the table."""
    rows = [line for line in reference().splitlines() if line.startswith("|")]

    assert len(rows) == 2 + len(list(options()))
    assert {len(re.split(r"(?<!\\)\|", row)) for row in rows} == {7}


@pytest.mark.parametrize(
    ("repository", "problem"),
    [
        ({"load_models": ("a",)}, "--model-control-mode explicit"),
        ({"load_models": ("a", "*"), "control_mode": "explicit"}, "stands for all models"),
        ({"path": ()}, "at least 1 item"),
    ],
    ids=["named models in mode none", "all models and one more", "no repository"],
)
def test_repository_settings_that_contradict_each_other_are_refused(
    repository: dict[str, object], problem: str
) -> None:
    """As in Triton: nothing of it is ignored in silence."""
    with pytest.raises(ValueError, match=problem):
        load_settings({"repository": repository})


PAIR = {"certificate": "c.pem", "key": "k.pem"}
SHARED = {"http": {"port": 8000}, "grpc": {"port": 8000}}


@pytest.mark.parametrize("ports", [(0, 0), (8000, 8001)])
def test_two_ports_have_a_certificate_each(ports: tuple[int, int]) -> None:
    """Ports that differ, or that the system chooses, are two listeners, and what is given to one is not the other's."""
    settings = load_settings({"http": {"port": ports[0]}, "grpc": {"port": ports[1]}, "tls": PAIR})

    assert not settings.one_port
    assert (settings.grpc_tls.files, settings.rest_tls.files) == (("c.pem", "k.pem", ""), ("", "", ""))


@pytest.mark.parametrize("given", [{"tls": PAIR}, {"http_tls": PAIR}, {"tls": PAIR, "http_tls": PAIR}])
def test_one_port_has_one_certificate(given: dict[str, Any]) -> None:
    """It may be given as gRPC's, as REST's or as both."""
    settings = load_settings({**SHARED, **given})

    assert settings.one_port
    assert settings.grpc_tls.files == settings.rest_tls.files == ("c.pem", "k.pem", "")


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"grpc": {"port": 8000, "transport": "grpcio"}}, "needs grpc.transport http2"),
        ({"tls": PAIR, "http_tls": {"certificate": "other.pem", "key": "k.pem"}}, "http_tls and tls differ"),
    ],
)
def test_one_port_that_can_not_be_had_is_refused(more: dict[str, Any], said: str) -> None:
    """By the names of the settings that contradict each other."""
    with pytest.raises(ValidationError, match=f"http.port and grpc.port are both 8000, and .*{said}"):
        load_settings({**SHARED, **more})


OVER_TRITON = {"engine": {"kind": "triton"}, "triton": {"url": "grpc://a:1"}}


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"engine": {"kind": "triton"}}, "needs --triton-url"),
        ({"triton": {"url": "grpc://a:1"}}, "need --engine triton"),
        ({**OVER_TRITON, "workers": {"count": 2}}, "needs --workers 1"),
        ({**OVER_TRITON, "engine": {"kind": "triton", "threads": 2}}, "engine.threads needs --engine onnxruntime"),
        ({**OVER_TRITON, "repository": {"warmup_s": 1}}, "repository.warmup_s needs --engine onnxruntime"),
        ({**OVER_TRITON, "repository": {"control_mode": "explicit", "load_models": ["*"]}}, "--load-model \\* needs"),
        (
            {**OVER_TRITON, "triton": {"url": "grpc://a:1", "shared_memory": "off", "shared_memory_gpu": 0}},
            "--triton-shared-memory-gpu needs --triton-shared-memory auto",
        ),
        ({**OVER_TRITON, "cache": {"size_bytes": 1}}, "--cache-size-bytes needs --engine onnxruntime"),
        ({**OVER_TRITON, "repository": {"control_mode": "poll"}}, "poll needs --engine onnxruntime"),
        ({**OVER_TRITON, "triton": {"url": "grpc://a:1", "tls_key": "k"}}, "--triton-tls-key go together"),
        ({**OVER_TRITON, "triton": {"url": "grpc://a:1", "health_interval_s": 31}}, r"at most 3 times .*keepalive_s"),
    ],
    ids=[
        "no address",
        "no engine",
        "workers",
        "threads",
        "a warm-up",
        "all models",
        "a GPU without shared memory",
        "a cache",
        "polling",
        "a key without a certificate",
        "more pings than probes",
    ],
)
def test_what_does_not_go_with_tritons_is_refused(given: dict[str, Any], words: str) -> None:
    """By name, before anything starts."""
    assert Settings.model_validate(OVER_TRITON).triton.url

    with pytest.raises(ValidationError, match=words):
        Settings.model_validate(given)


def test_metadata_to_forward_are_names() -> None:
    """A list with commas; spaces and empty places do not count."""
    assert TritonSettings(forward_metadata=" traceparent, x-a.b_c,,").forwards == ("traceparent", "x-a.b_c")
    assert TritonSettings().forwards == ()


@pytest.mark.parametrize(
    "name", ["X-A", "x a", "x-a-bin", "grpc-timeout", "te", "content-type", ":path", "upgrade", "keep-alive"]
)
def test_metadata_that_are_grpcs_own_or_the_connections_are_not_forwarded(name: str) -> None:
    """They would change what the call is; HTTP/2 has no place for the latter."""
    with pytest.raises(ValidationError, match=f"'{name}' can't be forwarded"):
        TritonSettings(forward_metadata=f"traceparent,{name}")
