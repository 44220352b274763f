"""A conversation as one prompt: the chat template of a model's tokenizer, in a sandbox.

Templates are Jinja as Hugging Face's tokenizers have them, with the names that they may use there. The sandbox keeps
them from everything but their messages; what clients send is data to them, never a template.
Source: transformers, utils/chat_template_utils.py.
"""

from __future__ import annotations

import importlib
import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from server.errors import InvalidRequest, ModelLoadFailed

_TEMPLATE = "chat_template.jinja"
_TOKENIZER = "tokenizer_config.json"
CHAT_FILES = (_TEMPLATE, _TOKENIZER)
"""Where a chat template may be."""
_LARGEST = 4_000_000
_SPECIAL = ("bos_token", "eos_token", "pad_token", "unk_token")


class ChatTemplate:
    """Of one model. `render` may be called by any thread."""

    def __init__(self, source: str, special_tokens: Mapping[str, str]) -> None:
        """Raises ImportError (no Jinja), ValueError (no template: what is wrong with it)."""
        self._source = source
        jinja: Any = importlib.import_module("jinja2")
        sandbox: Any = importlib.import_module("jinja2.sandbox")
        self._error: type[Exception] = jinja.TemplateError
        environment = sandbox.ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols", _generation()]
        )
        environment.filters["tojson"] = _to_json
        environment.globals.update(raise_exception=self._raise, strftime_now=lambda form: datetime.now().strftime(form))
        try:
            self._template = environment.from_string(source)
        except jinja.TemplateError as error:
            raise ValueError(f"is no template: {error}") from error
        self._special_tokens = dict(special_tokens)

    def __reduce__(self) -> tuple[type[ChatTemplate], tuple[str, Mapping[str, str]]]:
        """It is pickled as what it is made of."""
        return ChatTemplate, (self._source, self._special_tokens)

    def _raise(self, message: str) -> None:
        raise self._error(message)

    def render(self, messages: Sequence[Mapping[str, object]]) -> str:
        """The prompt behind which the model's own message comes.

        Raises:
            InvalidRequest: the template fails on these messages, or refuses them.
        """
        try:
            prompt: str = self._template.render(
                messages=messages, add_generation_prompt=True, tools=None, documents=None, **self._special_tokens
            )
            prompt.encode()  # half a surrogate pair can be written in a template, and is no text
        except Exception as error:  # a template is a program: it may fail in any way
            problem = str(error) or type(error).__name__
            raise InvalidRequest("messages", f"the model's chat template fails on them: {problem}") from error
        return prompt


def _to_json(
    value: object,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _generation() -> type[Any]:
    """``{% generation %}`` marks what the model itself says, for those who train on it: no part of a prompt."""
    extension: Any = importlib.import_module("jinja2.ext").Extension
    scope: Any = importlib.import_module("jinja2.nodes").Scope

    class Generation(extension):  # type: ignore[misc]
        tags = frozenset({"generation"})

        def parse(self, parser: Any) -> Any:
            line = next(parser.stream).lineno
            return scope(parser.parse_statements(("name:endgeneration",), drop_needle=True), lineno=line)

    return Generation


def read_chat_template(model_name: str, folder: Path, shown: str = "") -> ChatTemplate | None:
    """Of the tokenizer whose files are in `folder`, which errors call `shown`; None where it has none.

    Raises:
        ModelLoadFailed: a file can't be read, or has no template that can be.
    """
    config: Mapping[str, Any] = {}
    where = f"{shown}{_TOKENIZER}"
    try:
        if (folder / _TOKENIZER).is_file():
            config = json.loads(_text(folder / _TOKENIZER))
        where = f"{shown}{_TEMPLATE}" if (folder / _TEMPLATE).is_file() else where
        source = _text(folder / _TEMPLATE) if (folder / _TEMPLATE).is_file() else config.get("chat_template")
        if isinstance(source, list):  # several, by name
            source = next((one["template"] for one in source if one["name"] == "default"), None)
        if source is None:
            return None
        special = {name: token for name in _SPECIAL if (token := _token(config.get(name))) is not None}
        return ChatTemplate(str(source), special)
    except ImportError as error:
        raise ModelLoadFailed(model_name, where, "needs Jinja: install forwardpass[genai]") from error
    except (OSError, UnicodeDecodeError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise ModelLoadFailed(model_name, where, f"has no chat template that can be read: {error}") from error


def _text(path: Path) -> str:
    if path.stat().st_size > _LARGEST:
        raise ValueError(f"more than {_LARGEST} bytes")
    return path.read_text(encoding="utf-8")


def _token(said: Any) -> str | None:
    """A special token as tokenizers' configs have it: its text, or an object with it."""
    return said.get("content") if isinstance(said, dict) else said
