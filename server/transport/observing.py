"""The RPCs and routes of Triton's trace and log settings. Source: its extension_trace.md, extension_logging.md."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from server.errors import InvalidRequest
from server.proto.triton import service_pb2 as pb
from server.transport.codec.v2_rest import load_json
from server.transport.http1.reply import Reply, json_reply

if TYPE_CHECKING:
    from server.dataplane import DataPlane
    from server.transport.exchange import Exchange
    from server.transport.methods import CallInfo


# --- gRPC ---------------------------------------------------------------------------------------------


def trace_setting(dataplane: DataPlane, message: Any, _info: CallInfo) -> Any:
    """A setting without a value is cleared, as by Triton's client that is given None."""
    changes = {name: list(setting.value) or None for name, setting in message.settings.items()}
    told = dataplane.trace_settings(message.model_name, changes)
    value = pb.TraceSettingResponse.SettingValue
    return pb.TraceSettingResponse(settings={name: value(value=values) for name, values in told.items()})


def log_settings(dataplane: DataPlane, message: Any, _info: CallInfo) -> Any:
    changes: dict[str, object] = {}
    for name, setting in message.settings.items():
        choice = setting.WhichOneof("parameter_choice")
        changes[name] = getattr(setting, choice) if choice else None
    dataplane.logs.update(changes)
    response = pb.LogSettingsResponse()
    for name, value in dataplane.logs.values().items():
        kind = "bool" if isinstance(value, bool) else "uint32" if isinstance(value, int) else "string"
        setattr(response.settings[name], f"{kind}_param", value)
    return response


# --- REST ---------------------------------------------------------------------------------------------


async def get_trace_setting(exchange: Exchange) -> Reply:
    return _told(exchange.dataplane.trace_settings(exchange.names.get("model", ""), {}))


async def post_trace_setting(exchange: Exchange) -> Reply:
    changes = {name: _values(name, value) for name, value in (await _object(exchange)).items()}
    return _told(exchange.dataplane.trace_settings(exchange.names.get("model", ""), changes))


async def get_log_settings(exchange: Exchange) -> Reply:
    return json_reply(exchange.dataplane.logs.values())


async def post_log_settings(exchange: Exchange) -> Reply:
    exchange.dataplane.logs.update(await _object(exchange))
    return json_reply(exchange.dataplane.logs.values())


def _told(settings: Mapping[str, list[str]]) -> Reply:
    """The level is a list, as there may be several; all else is text, numbers too."""
    return json_reply({name: values if name == "trace_level" else values[0] for name, values in settings.items()})


def _values(name: str, value: object) -> list[str] | None:
    if value is None or (isinstance(value, list) and all(isinstance(one, str) for one in value)):
        return value
    if isinstance(value, str) and name != "trace_level":
        return [value]
    raise InvalidRequest(
        name[:64], "must be a list of texts or null" if name == "trace_level" else "must be text or null"
    )


async def _object(exchange: Exchange) -> dict[str, Any]:
    document = load_json("body", await exchange.body())
    if not isinstance(document, dict):
        raise InvalidRequest("body", "must be an object")
    return document
