"""From the settings to the models in front of Tritons."""

from __future__ import annotations

from pathlib import Path

from server.engine.triton.addresses import parse
from server.engine.triton.channel import Channels
from server.engine.triton.pool import Pool
from server.errors import InvalidRequest, TritonUnreached
from server.over_triton.models import TritonModels
from server.over_triton.pipelines import Pipelines
from server.pipeline.load import load_pipeline
from server.repository.remote.address import read_address
from server.settings import Settings
from server.types import IndexEntry


def open_models(settings: Settings) -> TritonModels:
    """Nobody is asked yet.

    Raises:
        InvalidRequest: a setting that only its use shows to be wrong: an address, or a file that can't be read.
    """
    triton, repository = settings.triton, settings.repository
    try:
        targets = parse(triton.url, tls=triton.tls)
        channels = Channels(triton, settings.grpc.max_message_bytes, tls=any(target.tls for target in targets))
    except ValueError as error:
        raise InvalidRequest("--triton-url", str(error)) from error
    except OSError as error:
        raise InvalidRequest("--triton-tls", f"{error.filename}: {error.strerror}") from error
    pipelines = Pipelines(
        [_folder(path) for path in repository.path],
        lambda folder: load_pipeline(folder, settings.pipeline.max_pixels, settings.pipeline.custom_code),
    )
    return TritonModels(
        Pool(targets, triton, channels),
        pipelines,
        triton,
        default_max_queue_size=settings.scheduler.default_max_queue_size,
        max_override_bytes=repository.max_override_bytes,
    )


def _folder(text: str) -> Path:
    address = read_address(text)
    if not isinstance(address, Path):
        raise InvalidRequest("--model-repository", f"{address.url}: in front of Tritons it must be a folder")
    return address


async def check(settings: Settings) -> list[IndexEntry]:
    """Every version that the Tritons have, with its state here.

    Raises:
        InvalidRequest: as `open_models`.
        TritonUnreached: none of them answers.
    """
    models = open_models(settings)
    try:
        await models.load_all([])
        if not models.pool.up:
            raise TritonUnreached("*", "none of --triton-url is up")
        return models.index()
    finally:
        await models.close()
