"""The OpenAPI document of the REST routes, made of the table of routes, the table of statuses and the schemas.

Source: OpenAPI 3.1.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from http import HTTPStatus
from typing import Any

from server import __version__
from server.errors import Code
from server.transport.openapi.operations import BINARY, JSON, Operation, operation
from server.transport.openapi.schemas import Schema, components, reference
from server.transport.status import STATUS

_ANYWHERE = (400, 401, 403, 408, 413, 414, 417, 431, 500, 501, 503, 505)
"""What any request may be told: for who asks, by HTTP/1.1's limits, for a fault of ours, or while the server ends."""
_PLACEHOLDER = re.compile(r"\{(\w+)\}")
_CALL_HEADERS: dict[str, Schema] = {
    "X-Request-Timeout": {"type": "number", "exclusiveMinimum": 0, "description": "milliseconds"},
    "X-Explain": {"enum": ["0", "1", "true", "false"]},
    "X-Tenant": {"type": "string"},
}
_INFER_HEADER = "Inference-Header-Content-Length"


def document(routes: Iterable[tuple[str, str]]) -> dict[str, Any]:
    """Of these methods and patterns. Raises KeyError for a route that nobody has described."""
    paths: dict[str, dict[str, Any]] = {}
    for method, pattern in routes:
        described = operation(method, pattern)
        path = paths.setdefault(pattern, {"parameters": _placeholders(pattern)} if "{" in pattern else {})
        path[method.lower()] = _operation(method, pattern, described)
        if method == "GET":
            path["head"] = _operation("HEAD", pattern, described)
    return {
        "openapi": "3.1.0",
        "info": {"title": "Forwardpass", "version": __version__, "description": _DESCRIPTION},
        "paths": paths,
        "components": {"schemas": components(), "securitySchemes": _SCHEMES},
        # Either, or nothing where the server asks for nothing.
        "security": [{}, {"bearer": []}, {"key": []}],
    }


_SCHEMES: dict[str, Any] = {
    "bearer": {"type": "http", "scheme": "bearer", "description": "a key or a JWT"},
    "key": {"type": "apiKey", "in": "header", "name": "x-api-key"},
}
_DESCRIPTION = (
    "KServe v2 with Triton's extensions, and predict. A GET is answered as HEAD too; another method of a known path is "
    "405 with Allow, an unknown path 404. Errors are objects with the key `error`. Bodies may come in gzip or deflate "
    "(Content-Encoding), and answers go out so where Accept-Encoding lets them; one that leaves nothing gets 406."
)


def _placeholders(pattern: str) -> list[dict[str, Any]]:
    return [
        {"name": name, "in": "path", "required": True, "schema": {"type": "string", "minLength": 1}}
        for name in _PLACEHOLDER.findall(pattern)
    ]


def _operation(method: str, pattern: str, described: Operation) -> dict[str, Any]:
    head = method == "HEAD"
    made: dict[str, Any] = {
        "operationId": f"{method.lower()}{re.sub(r'[^a-z0-9]+', '_', pattern)}".rstrip("_"),
        "summary": described.summary,
        "responses": _responses(described, head=head),
    }
    parameters = _parameters(described)
    if parameters:
        made["parameters"] = parameters
    if described.body is not None and not head:
        made["requestBody"] = {"required": described.body_required, "content": _content(described.body)}
    return made


def _parameters(described: Operation) -> list[dict[str, Any]]:
    headers = dict(_CALL_HEADERS) if described.calls else {}
    if BINARY in described.answer:
        headers[_INFER_HEADER] = {"type": "integer", "minimum": 0, "description": "bytes of JSON before the tensors"}
    found = [{"name": name, "in": "header", "schema": schema} for name, schema in headers.items()]
    return found + [{"name": name, "in": "query", "schema": schema} for name, schema in (described.query or {}).items()]


def _responses(described: Operation, *, head: bool) -> dict[str, Any]:
    ok: dict[str, Any] = {"description": "OK"}
    if described.answer and not head:
        ok["content"] = _content(described.answer)
    if described.calls:
        ok["headers"] = {"Server-Timing": {"schema": {"type": "string"}, "description": "if it was asked to explain"}}
        if BINARY in described.answer:
            ok["headers"][_INFER_HEADER] = {
                "schema": {"type": "integer"},
                "description": "where the binary tensors begin",
            }
    responses = {"200": ok}
    for status in sorted({*_ANYWHERE, *described.statuses}):
        responses[str(status)] = _error(status, "OpenAiError" if described.openai else "Error", empty=head)
    if described.health:
        responses["503"] = {**ok, "description": HTTPStatus(503).phrase}
    return responses


def _error(status: int, form: str, *, empty: bool) -> dict[str, Any]:
    phrase = "Client Closed Request" if status == STATUS[Code.CANCELLED].http else HTTPStatus(status).phrase
    made: dict[str, Any] = {"description": phrase}
    if not empty:
        made["content"] = {JSON: {"schema": reference(form)}}
    if status == STATUS[Code.EXHAUSTED].http:
        made["headers"] = {"Retry-After": {"schema": {"type": "integer"}, "description": "seconds, if they are known"}}
    return made


def _content(schemas: Mapping[str, Schema]) -> dict[str, Any]:
    return {kind: {"schema": schema} for kind, schema in schemas.items()}
