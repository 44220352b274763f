"""externalscaler.ExternalScaler: KEDA asks the server itself how many replicas there should be.

One metric, in percent of a replica: 143 is what just keeps 1.43 replicas busy. A trigger's metadata may say

    model             this model alone; else the hottest counts
    scales            replicas (the default), or tritons: those behind the replicas
    targetSaturation  that a replica is to have; by default the server's own setting
    activationSaturation
                      up to this there is nothing to do; 0 by default, so that any work at all is something

Source: KEDA, "External scalers".
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncIterator, Mapping
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Any

from server.errors import Draining, InvalidRequest, ReplicasUnreached
from server.proto.keda import externalscaler_pb2 as pb
from server.scaling import OwnMetrics, Replicas
from server.security.roles import OPEN
from server.settings import ScalingSettings
from server.transport.messages import only
from server.transport.methods import CallInfo, Method

if TYPE_CHECKING:
    from server.dataplane import DataPlane

METRIC = "saturation-percent"
_SERVICE = "/externalscaler.ExternalScaler"


def external_scaler(settings: ScalingSettings, own: OwnMetrics) -> tuple[Method, ...]:
    """The rows of its methods, none where it is not wanted. `own`: the metrics of this server."""
    if not settings.external_scaler:
        return ()
    scaler = _Scaler(settings, Replicas(settings, own))
    # KEDA has no key to show; what it is told is how much there is to do.
    row = partial(Method, waits=True, needs=OPEN)
    return (
        row(f"{_SERVICE}/IsActive", pb.ScaledObjectRef, pb.IsActiveResponse, scaler.is_active),
        row(
            f"{_SERVICE}/StreamIsActive", pb.ScaledObjectRef, pb.IsActiveResponse, scaler.stream_is_active, streams=True
        ),
        row(f"{_SERVICE}/GetMetricSpec", pb.ScaledObjectRef, pb.GetMetricSpecResponse, scaler.get_metric_spec),
        row(f"{_SERVICE}/GetMetrics", pb.GetMetricsRequest, pb.GetMetricsResponse, scaler.get_metrics),
        row(
            f"{_SERVICE}/StreamMetricSpec",
            pb.ScaledObjectRef,
            pb.GetMetricSpecResponse,
            scaler.stream_metric_spec,
            streams=True,
        ),
    )


class _Scaler:
    def __init__(self, settings: ScalingSettings, replicas: Replicas) -> None:
        self._settings = settings
        self._replicas = replicas

    async def is_active(self, _dataplane: DataPlane, message: Any, _info: CallInfo) -> Any:
        return pb.IsActiveResponse(result=await self._active(message.scalerMetadata))

    async def stream_is_active(
        self, dataplane: DataPlane, messages: AsyncIterator[Any], _info: CallInfo
    ) -> AsyncIterator[Any]:
        """Raises Draining: the server shuts down; KEDA asks another one."""
        metadata = dict((await only(messages)).scalerMetadata)
        told: bool | None = None
        while not dataplane.draining():
            # Where nobody answers, nothing is known to have changed.
            with suppress(ReplicasUnreached):
                active = await self._active(metadata)
                if active != told:
                    told = active
                    yield pb.IsActiveResponse(result=active)
            await asyncio.sleep(self._settings.poll_s)
        raise Draining

    async def get_metric_spec(self, _dataplane: DataPlane, message: Any, _info: CallInfo) -> Any:
        return self._spec(message.scalerMetadata)

    async def stream_metric_spec(
        self, dataplane: DataPlane, messages: AsyncIterator[Any], _info: CallInfo
    ) -> AsyncIterator[Any]:
        """What a replica is to have changes only with the trigger, for which KEDA opens another stream.

        Raises Draining as `stream_is_active` does.
        """
        yield self._spec((await only(messages)).scalerMetadata)
        while not dataplane.draining():  # noqa: ASYNC110 - a state, not an event
            await asyncio.sleep(self._settings.poll_s)
        raise Draining

    def _spec(self, metadata: Mapping[str, str]) -> Any:
        target = _number(metadata, "targetSaturation", self._settings.target_saturation)
        if not target:
            raise InvalidRequest("scalerMetadata.targetSaturation", "must be above 0")
        _of_tritons(metadata)
        percent = target * 100
        spec = pb.MetricSpec(metricName=METRIC, targetSize=max(1, round(percent)), targetSizeFloat=percent)
        return pb.GetMetricSpecResponse(metricSpecs=[spec])

    async def get_metrics(self, _dataplane: DataPlane, message: Any, _info: CallInfo) -> Any:
        if message.metricName != METRIC:
            raise InvalidRequest("metricName", f"is '{message.metricName}', there is {METRIC} alone")
        percent = await self._saturation(message.scaledObjectRef.scalerMetadata) * 100
        # Rounded up: KEDA takes the whole number where the other is 0.
        value = pb.MetricValue(metricName=METRIC, metricValue=math.ceil(percent), metricValueFloat=percent)
        return pb.GetMetricsResponse(metricValues=[value])

    async def _active(self, metadata: Mapping[str, str]) -> bool:
        return await self._saturation(metadata) > _number(metadata, "activationSaturation", 0.0)

    async def _saturation(self, metadata: Mapping[str, str]) -> float:
        model = metadata.get("model", "")
        of_tritons = _of_tritons(metadata)
        asked = await self._replicas.asked()
        return asked.of_tritons(model) if of_tritons else asked.of_replicas(model)


def _of_tritons(metadata: Mapping[str, str]) -> bool:
    scales = metadata.get("scales", "replicas")
    if scales not in ("replicas", "tritons"):
        raise InvalidRequest("scalerMetadata.scales", f"is '{scales}', it must be replicas or tritons")
    return scales == "tritons"


def _number(metadata: Mapping[str, str], name: str, default: float) -> float:
    try:
        value = float(metadata.get(name, default))
    except ValueError:
        value = -1.0
    if not 0 <= value < math.inf:
        raise InvalidRequest(f"scalerMetadata.{name}", f"is '{metadata[name]}', it must be a number, 0 or above")
    return value
