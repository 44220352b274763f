"""The page at `/`: its files, and the two things that it asks for and that no v2 route tells.

Its routes are no part of the API: they are in no OpenAPI document and change with the page. All else the page does by
the routes that everybody has.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from functools import cache
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any

from server.errors import ServingError, Unsupported
from server.security import roles
from server.transport.codec import management
from server.transport.http1.reply import Headers, Reply, json_reply, with_headers
from server.transport.routes import Route
from server.types import ImageInput, IndexEntry, RowInput

if TYPE_CHECKING:
    from server.dataplane import DataPlane
    from server.repository.certificate import Manifest
    from server.scheduler.statistics import ModelStatistics
    from server.transport.exchange import Exchange
    from server.transport.routes import Handler

_FOLDER = Path(__file__).parents[1] / "console"
_TYPES = {
    ".html": b"text/html; charset=utf-8",
    ".css": b"text/css; charset=utf-8",
    ".js": b"text/javascript; charset=utf-8",
    ".svg": b"image/svg+xml",
}
FILES = (
    "style.css",
    "app.js",
    "calls.js",
    "charts.js",
    "chat.js",
    "dom.js",
    "model.js",
    "trying.js",
    "ways.js",
    "icon.svg",
)
"""Beside index.html, which is at `/`."""

# blob: is how a picture that was chosen is shown. Nobody may frame a page that can unload models.
_POLICY = (
    b"default-src 'self'; img-src 'self' blob:; object-src 'none'; base-uri 'none'; form-action 'none'; "
    b"frame-ancestors 'none'"
)
_SAFE: Headers = [
    (b"cache-control", b"no-cache"),
    (b"content-security-policy", _POLICY),
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
]
_FRESH = ((b"cache-control", b"no-store"), (b"x-content-type-options", b"nosniff"))


@cache
def _file(name: str) -> Reply:
    body = (_FOLDER / name).read_bytes()
    # Weak: it is the same file whether or not it is compressed on the way.
    tag = f'W/"{sha256(body).hexdigest()[:20]}"'.encode()
    return Reply(200, body, [(b"content-type", _TYPES[Path(name).suffix]), (b"etag", tag), *_SAFE])


def _serving(name: str) -> Handler:
    async def serve(exchange: Exchange) -> Reply:
        reply = await asyncio.to_thread(_file, name)
        tag = dict(reply.headers)[b"etag"].decode()
        known = [each.strip() for each in exchange.header(b"if-none-match").split(",")]
        if tag in known or "*" in known:
            return Reply(304, b"", [field for field in reply.headers if field[0] != b"content-type"])
        return reply

    return serve


async def _models(exchange: Exchange) -> Reply:
    """Every version in the repository; of those that serve, what they take and their certificates."""
    dataplane = exchange.dataplane
    metadata = dataplane.server_metadata()
    told = {
        "version": metadata.version,
        "ready": dataplane.ready(),
        "control_mode": dataplane.control_mode,
        "models": [_version(dataplane, entry) for entry in await dataplane.current_index()],
    }
    return with_headers(json_reply(told), *_FRESH)


def _version(dataplane: DataPlane, entry: IndexEntry) -> dict[str, Any]:
    told: dict[str, Any] = {
        "name": entry.name,
        "version": entry.version,
        "state": entry.state,
        "reason": entry.reason,
        "serves": False,
    }
    if not entry.version:
        return told
    try:
        metadata = dataplane.model_metadata(entry.name, entry.version)
        manifest = dataplane.manifest(entry.name, entry.version)
    except ServingError:
        return told  # Not in service: the state says what it is instead.
    told |= management.to_json(management.encode_model_metadata(metadata))
    del told["versions"]
    return told | {
        "serves": True,
        "predict": metadata.predict,
        "certificate": manifest and _certificate(manifest, entry.version),
    }


def _certificate(manifest: Manifest, version: str) -> dict[str, Any]:
    record = manifest.versions[version]
    return {
        "recipe": manifest.recipe,
        "task": manifest.task,
        "synthetic": manifest.synthetic,
        "created": record.created,
        "precision": record.precision,
        "source": record.data.source,
        "rows": record.data.rows.model_dump(),
        "metrics": record.metrics,
        "baseline": record.baseline,
        "files": len(manifest.files),
    }


async def _example(exchange: Exchange) -> Reply:
    """The example of a model's pipeline: a picture as it is, a row as JSON."""
    name, version = exchange.model
    pipeline = exchange.dataplane.pipeline(name, version)
    if pipeline is None:
        raise Unsupported("example", f"model '{name}' has no processing.yaml")
    example = pipeline.example()
    if isinstance(example, ImageInput):
        return Reply(200, example.data, [(b"content-type", example.content_type.encode()), *_FRESH])
    value = example.values if isinstance(example, RowInput) else example.text
    return with_headers(json_reply({"input": value}), *_FRESH)


async def _counts(exchange: Exchange) -> Reply:
    """What the metrics tell, as it stands now: whoever asks twice has what happened between."""
    models = await exchange.dataplane.total_statistics()
    now_ns = time.monotonic_ns()
    return with_headers(json_reply({"at_ns": now_ns, "models": [_counted(m, now_ns) for m in models]}), *_FRESH)


def _counted(statistics: ModelStatistics, now_ns: int) -> Mapping[str, Any]:
    """Buckets are not cumulative; the last one of each is above all bounds."""
    duration, rows = statistics.request_duration, statistics.batch_rows
    return {
        "name": statistics.name,
        "version": statistics.version,
        "answered": statistics.success.count,
        "failed": statistics.fail.count,
        "refused": sum(statistics.refused.values()),
        "expired": statistics.expired,
        "rows": statistics.inference_count,
        "passes": statistics.execution_count,
        "pending": statistics.pending,
        "saturation": statistics.saturation(now_ns),
        "duration_bounds_ns": duration.bounds,
        "duration": duration.counts,
        "batch_bounds": rows.bounds,
        "batch": rows.counts,
    }


CONSOLE: tuple[Route, ...] = (
    Route("GET", "/", _serving("index.html"), roles.OPEN),
    *(Route("GET", f"/console/{name}", _serving(name), roles.OPEN) for name in FILES),
    Route("GET", "/console/models", _models, roles.READS_REPOSITORY),
    Route("GET", "/console/counts", _counts, roles.READS_STATISTICS),
    Route("GET", "/console/models/{model}/versions/{version}/example", _example, roles.READS),
)
"""Beside `ROUTES`, where the page is served."""
