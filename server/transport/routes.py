"""The one table of REST routes: method and path -> handler. Source: KServe v2 REST and Triton's extensions."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from functools import cache
from typing import NamedTuple
from urllib.parse import unquote_to_bytes

from server.errors import InvalidRequest, UnknownRoute
from server.explain import decoded
from server.security import roles
from server.security.roles import CONTROLS, PREDICTS, READS, Need
from server.transport import generate, observing, shared_memory
from server.transport.codec import management, predict_rest, statistics
from server.transport.exchange import Exchange, explained
from server.transport.http1.reply import Reply, StreamedReply, json_reply
from server.transport.openai import routes as openai
from server.transport.openapi.document import document

Handler = Callable[[Exchange], Awaitable[Reply | StreamedReply]]

_JSON_TYPE = (b"content-type", b"application/json")


async def _live(exchange: Exchange) -> Reply:
    return _health("live", exchange.dataplane.live())


async def _ready(exchange: Exchange) -> Reply:
    return _health("ready", exchange.dataplane.ready())


async def _model_ready(exchange: Exchange) -> Reply:
    return _health("ready", exchange.dataplane.model_ready(*exchange.model), name=exchange.model[0])


def _health(what: str, good: bool, **more: str) -> Reply:
    """The body is KServe's, whose clients read it; Triton's is empty, and its clients go by the status.

    Triton answers 400 for "not ready"; 503 is what proxies and Kubernetes take for "come back later". Source: KServe
    v2 REST, "Server Live", "Server Ready", "Model Ready".
    """
    return json_reply({**more, what: good}, 200 if good else 503)


async def _server_metadata(exchange: Exchange) -> Reply:
    return json_reply(management.to_json(management.encode_server_metadata(exchange.dataplane.server_metadata())))


async def _model_metadata(exchange: Exchange) -> Reply:
    metadata = exchange.dataplane.model_metadata(*exchange.model)
    document = management.to_json(management.encode_model_metadata(metadata))
    if metadata.predict is not None:
        document["predict"] = metadata.predict
    return json_reply(document)


async def _model_config(exchange: Exchange) -> Reply:
    return json_reply(management.to_json(exchange.dataplane.model_config(*exchange.model)))


async def _statistics(exchange: Exchange) -> Reply:
    return await _statistics_reply(exchange)


async def _model_statistics(exchange: Exchange) -> Reply:
    return await _statistics_reply(exchange, *exchange.model)


async def _statistics_reply(exchange: Exchange, name: str = "", version: str = "") -> Reply:
    message = statistics.encode_statistics(await exchange.dataplane.total_statistics(name, version))
    return json_reply(management.to_json(message))


async def _predict(exchange: Exchange) -> Reply:
    explanation = exchange.explanation()
    body = await exchange.body()
    if explanation is not None:
        explanation.mark("receive")
    request = predict_rest.decode_predict(
        *exchange.model,
        body,
        exchange.header(b"content-type"),
        exchange.query(),
        exchange.deadline_ns(),
        exchange.tenant,
    )
    request.metadata = exchange.metadata
    request.received_ns = exchange.received_ns
    request.explanation = decoded(explanation, request.parameters, exchange.received_ns)
    reply = Reply(200, predict_rest.encode_predict(await exchange.dataplane.predict(request)), [_JSON_TYPE])
    return explained(reply, request.explanation)


async def _index(exchange: Exchange) -> Reply:
    ready = management.control_options(await exchange.body()).get("ready", False)
    if not isinstance(ready, bool):
        raise InvalidRequest("ready", "must be true or false")
    index = management.encode_index(await exchange.dataplane.current_index(ready, exchange.names.get("repository", "")))
    return json_reply(management.to_json(index)["models"])


async def _load(exchange: Exchange) -> Reply:
    # On a thread: files are in it.
    parameters = await asyncio.to_thread(management.control_parameters, await exchange.body())
    await exchange.dataplane.load_model(exchange.names["model"], parameters, exchange.names.get("repository", ""))
    return Reply(200)


async def _unload(exchange: Exchange) -> Reply:
    unload_dependents = management.unload_dependents(management.control_parameters(await exchange.body()))
    await exchange.dataplane.unload_model(
        exchange.names["model"],
        unload_dependents=unload_dependents,
        repository_name=exchange.names.get("repository", ""),
    )
    return Reply(200)


async def _openapi(_exchange: Exchange) -> Reply:
    return _document()


@cache
def _document() -> Reply:
    return json_reply(document([(route.method, route.pattern) for route in ROUTES]))


class Route(NamedTuple):
    method: str
    pattern: str
    handler: Handler | None
    """None for infer, which is answered by plain calls (`rest_infer.py`)."""
    needs: Need | None = None
    """What a caller must have, where callers are asked; None: what is usual, see `asks`."""
    refuses_unread: bool = False
    """A picture for which there is no time is not read: `DataPlane.hopeless`."""

    @property
    def asks(self) -> Need:
        """A GET reads, and what speaks OpenAI's dialect (/v1/) predicts; anything else takes the role control."""
        if self.needs is not None:
            return self.needs
        if self.method == "GET":
            return READS
        return PREDICTS if self.pattern.startswith("/v1/") else CONTROLS


ROUTES: tuple[Route, ...] = (
    Route("POST", "/v2/models/{model}/infer", None, roles.PREDICTS),
    Route("POST", "/v2/models/{model}/versions/{version}/infer", None, roles.PREDICTS),
    Route("POST", "/v2/models/{model}/predict", _predict, roles.PREDICTS, refuses_unread=True),
    Route("POST", "/v2/models/{model}/versions/{version}/predict", _predict, roles.PREDICTS),
    Route("POST", "/v2/models/{model}/generate", generate.generate, roles.PREDICTS),
    Route("POST", "/v2/models/{model}/versions/{version}/generate", generate.generate, roles.PREDICTS),
    Route("POST", "/v2/models/{model}/generate_stream", generate.generate_stream, roles.PREDICTS),
    Route("POST", "/v2/models/{model}/versions/{version}/generate_stream", generate.generate_stream, roles.PREDICTS),
    Route("GET", "/v2", _server_metadata, roles.READS),
    Route("GET", "/v2/health/live", _live, roles.OPEN),
    Route("GET", "/v2/health/ready", _ready, roles.OPEN),
    # Before {model}: as in Triton, a model called "stats" is asked for by its version.
    Route("GET", "/v2/models/stats", _statistics, roles.READS_STATISTICS),
    Route("GET", "/v2/models/{model}", _model_metadata, roles.READS),
    Route("GET", "/v2/models/{model}/versions/{version}", _model_metadata, roles.READS),
    Route("GET", "/v2/models/{model}/ready", _model_ready, roles.READS),
    Route("GET", "/v2/models/{model}/versions/{version}/ready", _model_ready, roles.READS),
    Route("GET", "/v2/models/{model}/config", _model_config, roles.READS),
    Route("GET", "/v2/models/{model}/versions/{version}/config", _model_config, roles.READS),
    Route("GET", "/v2/models/{model}/stats", _model_statistics, roles.READS_STATISTICS),
    Route("GET", "/v2/models/{model}/versions/{version}/stats", _model_statistics, roles.READS_STATISTICS),
    Route("POST", "/v2/repository/index", _index, roles.READS_REPOSITORY),
    Route("POST", "/v2/repository/models/{model}/load", _load, roles.CONTROLS_REPOSITORY),
    Route("POST", "/v2/repository/models/{model}/unload", _unload, roles.CONTROLS_REPOSITORY),
    Route("POST", "/v2/repository/{repository}/index", _index, roles.READS_REPOSITORY),
    Route("POST", "/v2/repository/{repository}/models/{model}/load", _load, roles.CONTROLS_REPOSITORY),
    Route("POST", "/v2/repository/{repository}/models/{model}/unload", _unload, roles.CONTROLS_REPOSITORY),
    Route("GET", "/v2/systemsharedmemory/status", shared_memory.get_system_status, roles.SHARES_MEMORY),
    Route("GET", "/v2/systemsharedmemory/region/{region}/status", shared_memory.get_system_status, roles.SHARES_MEMORY),
    Route(
        "POST",
        "/v2/systemsharedmemory/region/{region}/register",
        shared_memory.post_system_register,
        roles.SHARES_MEMORY,
    ),
    Route("POST", "/v2/systemsharedmemory/unregister", shared_memory.post_system_unregister, roles.SHARES_MEMORY),
    Route(
        "POST",
        "/v2/systemsharedmemory/region/{region}/unregister",
        shared_memory.post_system_unregister,
        roles.SHARES_MEMORY,
    ),
    Route("GET", "/v2/cudasharedmemory/status", shared_memory.get_cuda_status, roles.SHARES_MEMORY),
    Route("GET", "/v2/cudasharedmemory/region/{region}/status", shared_memory.get_cuda_status, roles.SHARES_MEMORY),
    Route(
        "POST", "/v2/cudasharedmemory/region/{region}/register", shared_memory.post_cuda_register, roles.SHARES_MEMORY
    ),
    Route("POST", "/v2/cudasharedmemory/unregister", shared_memory.post_cuda_unregister, roles.SHARES_MEMORY),
    Route(
        "POST",
        "/v2/cudasharedmemory/region/{region}/unregister",
        shared_memory.post_cuda_unregister,
        roles.SHARES_MEMORY,
    ),
    Route("GET", "/v2/trace/setting", observing.get_trace_setting, roles.READS_TRACE),
    Route("POST", "/v2/trace/setting", observing.post_trace_setting, roles.CONTROLS_TRACE),
    Route("GET", "/v2/models/{model}/trace/setting", observing.get_trace_setting, roles.READS_TRACE),
    Route("POST", "/v2/models/{model}/trace/setting", observing.post_trace_setting, roles.CONTROLS_TRACE),
    Route("GET", "/v2/logging", observing.get_log_settings, roles.READS_LOGGING),
    Route("POST", "/v2/logging", observing.post_log_settings, roles.CONTROLS_LOGGING),
    Route("GET", "/v2/docs/openapi.json", _openapi, roles.READS),
    Route("GET", "/v1/models", openai.models, roles.READS),
    Route("GET", "/v1/models/{model}", openai.model, roles.READS),
    Route("POST", "/v1/completions", openai.completions, roles.PREDICTS),
    Route("POST", "/v1/chat/completions", openai.chat_completions, roles.PREDICTS),
)


class MethodNotAllowed(Exception):
    """The path is known, not with this method; `allow` is the value of the Allow header."""

    def __init__(self, allow: str) -> None:
        super().__init__(allow)
        self.allow = allow


class Router:
    """Finds the route of a path. Routes with the same number of segments are tried in the order of the table."""

    def __init__(self, routes: tuple[Route, ...] = ROUTES) -> None:
        self._by_length: dict[int, list[tuple[Route, list[bytes]]]] = {}
        for route in routes:
            segments = route.pattern.encode().split(b"/")
            self._by_length.setdefault(len(segments), []).append((route, segments))

    def find(self, method: str, raw_path: bytes) -> tuple[Route, Mapping[str, str]]:
        """The route, and the placeholders' values. HEAD is answered as GET.

        Raises:
            UnknownRoute: no route has this path.
            MethodNotAllowed: one has, for another method.
            InvalidRequest: a name in the path is empty, or no UTF-8.
        """
        wanted = "GET" if method == "HEAD" else method
        segments = raw_path.split(b"/")
        methods: list[str] = []
        for route, pattern in self._by_length.get(len(segments), ()):
            if _matches(pattern, segments):
                if route.method == wanted:
                    return route, _names(pattern, segments)
                methods.append(route.method)
        if methods:
            allowed = dict.fromkeys(
                m for method in methods for m in ((method, "HEAD") if method == "GET" else (method,))
            )
            raise MethodNotAllowed(", ".join(allowed))
        raise UnknownRoute(raw_path.decode("ascii", "replace"))


def _matches(pattern: list[bytes], segments: list[bytes]) -> bool:
    return all(want == got or want[:1] == b"{" for want, got in zip(pattern, segments, strict=True))


def _names(pattern: list[bytes], segments: list[bytes]) -> dict[str, str]:
    names: dict[str, str] = {}
    for want, got in zip(pattern, segments, strict=True):
        if want[:1] != b"{":
            continue
        name = want[1:-1].decode()
        try:
            names[name] = unquote_to_bytes(got).decode()
        except UnicodeDecodeError as error:
            raise InvalidRequest(f"path: {name}", "is not UTF-8") from error
        if not names[name]:
            raise InvalidRequest(f"path: {name}", "is empty")
    return names
