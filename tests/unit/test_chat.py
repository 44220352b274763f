"""Chat templates: a conversation as one prompt, in a sandbox."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from transformers.utils.chat_template_utils import render_jinja_template

from server.chat import ChatTemplate, read_chat_template
from server.errors import InvalidRequest, ModelLoadFailed, PermissionDenied
from server.security.caller import Caller, Grant
from server.security.limits import Limits
from server.security.plane import GuardedPlane
from server.security.roles import Role

MESSAGES = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Ho"}]


def test_a_template_has_its_messages_and_special_tokens(tmp_path: Path) -> None:
    """From chat_template.jinja, or from tokenizer_config.json: one, or several by name; a token as text or object."""
    source = "{{ bos_token }}{% for m in messages %}[{{ m.role }}: {{ m['content'] }}]{% endfor %}{{ eos_token }}"
    tokens = {"bos_token": "<s>", "eos_token": {"content": "</s>", "special": True}}
    want = "<s>[user: Hi][assistant: Ho]</s>"
    config = tmp_path / "tokenizer_config.json"
    assert read_chat_template("m", tmp_path) is None
    config.write_text(json.dumps(tokens))
    assert read_chat_template("m", tmp_path) is None
    named = [{"name": "tools", "template": "no"}, {"name": "default", "template": source}]
    for said in (source, named):
        config.write_text(json.dumps({**tokens, "chat_template": said}))
        found = read_chat_template("m", tmp_path)
        assert found is not None
        assert found.render(MESSAGES) == want
    (tmp_path / "chat_template.jinja").write_text("{{ messages | length }} {{ messages | tojson }}")
    found = read_chat_template("m", tmp_path)
    assert found is not None
    assert found.render(MESSAGES[:1]) == '1 [{"role": "user", "content": "Hi"}]'


def test_a_template_says_what_transformers_says() -> None:
    """By the tags and filters that only chat templates have."""
    source = (
        "{% for m in messages %}{% if m.role == 'assistant' %}{% generation %}{{ m.content }}{% endgeneration %}"
        "{% else %}{{ m | tojson(sort_keys=true, separators=(',', ':')) }}{{ m | tojson(true, 1) }}{% endif %}"
        "{% if loop.last %}{% break %}{% endif %}{% endfor %}"
        "{% set own = 1 %}{% generation %}{% set own = 2 %}{% endgeneration %}{{ own }}"
    )
    messages = [{"role": "user", "content": "Hé"}, {"role": "assistant", "content": "Ho"}]
    [want], _ = render_jinja_template([messages], chat_template=source, add_generation_prompt=True)
    assert ChatTemplate(source, {}).render(messages) == want
    assert want.endswith("Ho1")


@pytest.mark.parametrize(
    "source",
    [
        "{{ raise_exception('roles must alternate') }}",
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{{ messages.append(1) }}",
        "{{ messages[7].content.x }}",
        "{{ 1 / 0 }}",
        "{% for a in range(10000000) %}{% endfor %}",
        "{% include '/etc/passwd' %}",
        "{{ messages[0].content * 10**15 }}",
        "{{ '\\ud800' }}",
    ],
)
def test_a_template_that_fails_or_reaches_out_is_an_error_of_the_messages(source: str) -> None:
    """Nothing beside its messages is there for it; its own words are told."""
    with pytest.raises(InvalidRequest) as refused:
        ChatTemplate(source, {}).render(MESSAGES)
    assert refused.value.field == "messages"


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("chat_template.jinja", "{% for %}"),
        ("chat_template.jinja", "{% generation %}"),
        ("tokenizer_config.json", "{"),
        ("tokenizer_config.json", "[]"),
        ("tokenizer_config.json", '{"chat_template": [{"name": "default"}]}'),
    ],
)
def test_a_file_that_can_not_be_read_keeps_the_model_out(tmp_path: Path, name: str, content: str) -> None:
    """With its name."""
    (tmp_path / name).write_text(content)
    with pytest.raises(ModelLoadFailed) as refused:
        read_chat_template("m", tmp_path, "1/")
    assert refused.value.where == f"1/{name}"


def test_a_caller_reads_the_templates_of_its_own_models_alone() -> None:
    """As all that names a model."""
    whole = SimpleNamespace(chat_template=lambda name: f"of {name}")
    caller = Caller(Grant("who", frozenset({Role.PREDICT}), models=("mine",)), Limits())
    nobody: Any = None
    plane = GuardedPlane(whole, caller, nobody, nobody)
    assert plane.chat_template("mine") == "of mine"
    with pytest.raises(PermissionDenied):
        plane.chat_template("theirs")
