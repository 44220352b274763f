"""grpc.health.v1.Health: whether the server is ready, for load balancers and probes that ask in gRPC's own way.

The service "" is the server; the services that it serves are ready when it is. Source: gRPC "GRPC Health Checking
Protocol".
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Any

from grpc_health.v1 import health_pb2 as pb

from server.errors import Draining, UnknownService
from server.transport.messages import only

if TYPE_CHECKING:
    from server.dataplane import DataPlane
    from server.transport.methods import CallInfo

SERVICES = ("", "inference.GRPCInferenceService", "forwardpass.v1.PredictionService")

_LOOK_S = 0.25
"""How often a watched server is looked at."""


def check(dataplane: DataPlane, message: Any, _info: CallInfo) -> Any:
    """Raises UnknownService."""
    if message.service not in SERVICES:
        raise UnknownService(message.service)
    return pb.HealthCheckResponse(status=_status(dataplane, message.service))


async def watch(dataplane: DataPlane, messages: AsyncIterator[Any], _info: CallInfo) -> AsyncIterator[Any]:
    """The status at once, and again whenever it is another.

    Raises:
        Draining: the server shuts down; the last status before that is NOT_SERVING.
    """
    service = str((await only(messages)).service)
    told = None
    while True:
        status = _status(dataplane, service)
        if status != told:
            told = status
            yield pb.HealthCheckResponse(status=status)
        if dataplane.draining():
            raise Draining
        await asyncio.sleep(_LOOK_S)


def _status(dataplane: DataPlane, service: str) -> Any:
    if service not in SERVICES:
        return pb.HealthCheckResponse.SERVICE_UNKNOWN
    return pb.HealthCheckResponse.SERVING if dataplane.ready() else pb.HealthCheckResponse.NOT_SERVING
