"""What is asked: every call of tritonclient's public API, each as a function of one client."""

from __future__ import annotations

import json
import queue
import secrets
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

import numpy as np
import tritonclient.utils.shared_memory as shm
from tritonclient.utils import InferenceServerException

from tests.integration.triton_api.servers import COUNTED, KINDS, Api, X, outcome

Ask = Callable[[Api], Any]
GRPC, HTTP, SYNC = ("grpc", "grpc.aio"), ("http", "http.aio"), ("grpc", "http")


@dataclass(frozen=True)
class Asked:
    ask: Ask
    kinds: tuple[str, ...] = KINDS


# --- what a server and its models are -----------------------------------------------------------------


def _only(found: dict[str, Any], *keys: str) -> dict[str, Any]:
    return {key: found[key] for key in keys if key in found}


def _model_config(api: Api) -> Any:
    found = api.call("get_model_config", "linear")
    config = found.get("config", found)
    return _only(config, "name", "max_batch_size", "input", "output", "version_policy")


def _counts(api: Api) -> Any:
    """What two requests of two rows, and one that fails, add to the counts of a version."""

    def counted() -> list[int]:
        [stats] = api.call("get_inference_statistics", COUNTED, "1")["model_stats"]
        inference = stats.get("inference_stats", {})
        counts = [int(stats.get(key, 0)) for key in ("inference_count", "execution_count")]
        return counts + [int(inference.get(key, {}).get("count", 0)) for key in ("success", "fail", "queue")]

    before = counted()
    api.infer(COUNTED)
    api.infer(COUNTED)
    outcome(lambda api: api.infer(COUNTED, [api.input("x", X.reshape(3, 2))]), api)
    until = time.monotonic() + 30
    while True:
        added = [late - early for early, late in zip(before, counted(), strict=True)]
        # Triton counts behind its answer: the rows, the passes, and the requests by their time in the queue.
        if (added[0] >= 4 and added[1] >= 2 and added[4] >= 2) or time.monotonic() > until:
            return added
        time.sleep(0.02)


def _statistics_shape(api: Api) -> Any:
    stats = api.call("get_inference_statistics", "linear")["model_stats"]
    return [(each["name"], each["version"], sorted(each["inference_stats"])) for each in stats]


SAID: dict[str, Asked] = {
    "is_server_live": Asked(lambda api: api.call("is_server_live")),
    "is_server_ready": Asked(lambda api: api.call("is_server_ready")),
    "is_server_live, with headers": Asked(lambda api: api.call("is_server_live", headers={"x-other": "1"})),
    "is_model_ready": Asked(lambda api: api.call("is_model_ready", "linear")),
    "is_model_ready, a version": Asked(lambda api: api.call("is_model_ready", "linear", "1")),
    "is_model_ready, a version that is not there": Asked(lambda api: api.call("is_model_ready", "linear", "2")),
    "is_model_ready, a model that is not loaded": Asked(lambda api: api.call("is_model_ready", "spare")),
    "is_model_ready, an unknown model": Asked(lambda api: api.call("is_model_ready", "nobody")),
    "get_server_metadata, its keys": Asked(lambda api: sorted(api.call("get_server_metadata"))),
    "get_model_metadata": Asked(
        lambda api: _only(api.call("get_model_metadata", "linear"), "name", "versions", "inputs", "outputs")
    ),
    "get_model_metadata, a version": Asked(
        lambda api: _only(api.call("get_model_metadata", "linear", "1"), "name", "versions", "inputs", "outputs")
    ),
    "get_model_metadata, of texts": Asked(
        lambda api: _only(api.call("get_model_metadata", "texts"), "name", "versions", "inputs", "outputs")
    ),
    "get_model_metadata, a version that is not there": Asked(lambda api: api.call("get_model_metadata", "linear", "2")),
    "get_model_metadata, an unknown model": Asked(lambda api: api.call("get_model_metadata", "nobody")),
    "get_model_config": Asked(_model_config),
    "get_model_config, an unknown model": Asked(lambda api: api.call("get_model_config", "nobody")),
    "get_model_config, a version that is not there": Asked(lambda api: api.call("get_model_config", "linear", "2")),
    "get_inference_statistics, what calls add": Asked(_counts),
    "get_inference_statistics, its shape": Asked(_statistics_shape),
    "get_inference_statistics, of all": Asked(
        lambda api: sorted(
            (each["name"], each["version"]) for each in api.call("get_inference_statistics")["model_stats"]
        )
    ),
    "get_inference_statistics, an unknown model": Asked(lambda api: api.call("get_inference_statistics", "nobody")),
    "get_inference_statistics, a version that is not there": Asked(
        lambda api: api.call("get_inference_statistics", "linear", "2")
    ),
}

# --- inference ----------------------------------------------------------------------------------------


def _texts(values: list[bytes], *, binary: bool = True, out_binary: bool = True) -> Ask:
    """The model `texts`: numbers and texts that come back."""

    def ask(api: Api) -> Any:
        words = np.array([values], dtype=np.object_)
        numbers = np.zeros((1, 1), np.float32)
        inputs = [api.input("x", numbers, binary=binary), api.input("s", words, "BYTES", binary=binary)]
        wanted = None if api.grpc or out_binary else [api.output(name, binary_data=False) for name in ("y", "t")]
        return api.infer("texts", inputs, outputs=wanted)

    return ask


def _mixed(api: Api) -> Any:
    """One input and one output in binary, the others in JSON."""
    words = np.array([[b"a", b"bc"]], dtype=np.object_)
    inputs = [api.input("x", np.ones((1, 2), np.float32), binary=False), api.input("s", words, "BYTES")]
    return api.infer("texts", inputs, outputs=[api.output("y"), api.output("t", binary_data=False)])


def _data(array: Any, datatype: str = "FP32", shape: Any = None, model: str = "linear") -> Ask:
    return lambda api: api.infer(model, [api.input("x", array, datatype, shape)])


def _plain(**more: Any) -> Ask:
    return lambda api: api.infer(**more)


def _wanted(*names: str) -> Ask:
    return lambda api: api.infer(outputs=[api.output(name) for name in names])


def _called_back(model: str = "linear", **more: Any) -> Ask:
    """async_infer, and its answer or error."""

    def ask(api: Api) -> Any:
        inputs = [api.input("x", X)]

        def over_grpc(client: Any) -> Any:
            answers: queue.Queue[Any] = queue.Queue()
            client.async_infer(model, inputs, callback=lambda result, error: answers.put((result, error)), **more)
            result, error = answers.get(timeout=30)
            if error is not None:
                raise error
            return api.told(result)

        return api.using(
            over_grpc
            if api.grpc
            else lambda client: api.told(client.async_infer(model, inputs, **more).get_result(timeout=30))
        )

    return ask


GZIP = ("gzip", "deflate")

INFERRED: dict[str, Asked] = {
    "infer": Asked(_plain()),
    "infer, with an id": Asked(_plain(request_id="seven")),
    "infer, a version": Asked(_plain(model_version="1")),
    "infer, a named output": Asked(_wanted("y")),
    "infer, an output twice": Asked(_wanted("y", "y")),
    "infer, an unknown output": Asked(_wanted("z")),
    # A dict of its own for each call: tritonclient.http adds to it.
    "infer, with headers": Asked(lambda api: api.infer(headers={"x-other": "1", "traceparent": "00-1-2-3"})),
    "infer, with a priority": Asked(_plain(priority=1)),
    "infer, with parameters": Asked(_plain(parameters={"other": 1, "text": "a", "yes": True})),
    "infer, with a reserved parameter": Asked(_plain(parameters={"triton_mine": 1})),
    "infer, time enough": Asked(_plain(timeout=60_000_000)),
    "infer, of a sequence that the model does not have": Asked(_plain(sequence_id=7, sequence_start=True)),
    "infer, client_timeout that is enough": Asked(_plain(client_timeout=60.0), GRPC),
    "infer, an unknown model": Asked(_plain(model="nobody")),
    "infer, a model that is not loaded": Asked(_plain(model="spare")),
    "infer, a version that is not there": Asked(_plain(model_version="2")),
    "infer, a version that is no number": Asked(_plain(model_version="one")),
    "infer, no input": Asked(lambda api: api.infer(inputs=[])),
    "infer, an unknown input": Asked(lambda api: api.infer(inputs=[api.input("z", X)])),
    "infer, an input too many": Asked(lambda api: api.infer(inputs=[api.input("x", X), api.input("z", X)])),
    "infer, an input twice": Asked(lambda api: api.infer(inputs=[api.input("x", X), api.input("x", X)])),
    "infer, no rows": Asked(_data(np.zeros((0, 3), np.float32))),
    "infer, too many rows": Asked(_data(np.zeros((9, 3), np.float32))),
    "infer, a wrong shape": Asked(_data(X.reshape(3, 2))),
    "infer, no batch dimension": Asked(_data(X[0])),
    "infer, another datatype": Asked(_data(X.astype(np.int32), "INT32")),
    "infer, less data than the shape says": Asked(_data(X, shape=[3, 3])),
    "infer, more data than the shape says": Asked(_data(X, shape=[1, 3])),
    "infer, JSON": Asked(lambda api: api.infer(inputs=[api.input("x", X, binary=False)]), HTTP),
    "infer, an output in JSON": Asked(lambda api: api.infer(outputs=[api.output("y", binary_data=False)]), HTTP),
    "infer, an output in binary": Asked(lambda api: api.infer(outputs=[api.output("y", binary_data=True)]), HTTP),
    "infer, some in binary, some in JSON": Asked(_mixed, HTTP),
    "infer, texts": Asked(_texts([b"a", b"", "\u00fc\u2713".encode(), b"long " * 100])),
    "infer, texts in JSON": Asked(_texts([b"a", b"", "\u00fc".encode()], binary=False, out_binary=False), HTTP),
    "infer, one text": Asked(_texts([b"a"])),
    "infer, no texts": Asked(_texts([])),
    "infer, compressed with gzip": Asked(_plain(compression_algorithm="gzip"), GRPC),
    "infer, compressed with deflate": Asked(_plain(compression_algorithm="deflate"), GRPC),
    "infer, a request in gzip": Asked(_plain(request_compression_algorithm="gzip"), HTTP),
    "infer, a request in deflate": Asked(_plain(request_compression_algorithm="deflate"), HTTP),
    "infer, an answer in gzip": Asked(_plain(response_compression_algorithm="gzip"), HTTP),
    "infer, an answer in deflate": Asked(_plain(response_compression_algorithm="deflate"), HTTP),
    "async_infer": Asked(_called_back(request_id="eight"), SYNC),
    "async_infer, an unknown model": Asked(_called_back("nobody"), SYNC),
}

# --- streams ------------------------------------------------------------------------------------------


def _streamed(*requests: dict[str, Any]) -> Ask:
    """The answers, in order: what `told` says, or that there was an error."""

    def of_one(result: Any, error: Any, api: Api) -> Any:
        return "error" if error is not None else api.told(result)

    def ask(api: Api) -> Any:
        asked = [{"model_name": "linear", "inputs": [api.input("x", X)], **more} for more in requests]

        def called(client: Any) -> Any:
            answers: queue.Queue[Any] = queue.Queue()
            client.start_stream(lambda result, error: answers.put((result, error)))
            for one in asked:
                client.async_stream_infer(**one)
            found = [of_one(*answers.get(timeout=30), api) for _ in asked]
            client.stop_stream()
            return found

        async def awaited(client: Any) -> Any:
            async def each() -> AsyncIterator[dict[str, Any]]:
                for one in asked:
                    yield one

            stream = client.stream_infer(each())
            return [of_one(*answer, api) async for answer in stream]

        return api.using(awaited if api.aio else called)

    return ask


def _cancelled_stream(api: Api) -> Any:
    """stop_stream(cancel_requests=True), and the server goes on."""

    def ask(client: Any) -> Any:
        client.start_stream(lambda result, error: None)
        client.async_stream_infer("linear", [api.input("x", X)])
        client.stop_stream(cancel_requests=True)
        return True

    return api.using(ask), api.infer()


STREAMED: dict[str, Asked] = {
    "stream_infer, one": Asked(_streamed({}), GRPC),
    "stream_infer, in order": Asked(_streamed(*({"request_id": str(n)} for n in range(20))), GRPC),
    "stream_infer, an unknown model": Asked(_streamed({"model_name": "nobody", "request_id": "a"}), GRPC),
    "stream_infer, an error between": Asked(
        _streamed({"request_id": "a"}, {"model_version": "2"}, {"request_id": "c"}), GRPC
    ),
    "stream_infer, an empty final response": Asked(
        _streamed({"request_id": "a", "enable_empty_final_response": True}), GRPC
    ),
    "stop_stream, requests cancelled": Asked(_cancelled_stream, ("grpc",)),
}

# --- control of models --------------------------------------------------------------------------------


@contextmanager
def _loaded(api: Api, **more: Any) -> Iterator[None]:
    api.call("load_model", "spare", **more)
    try:
        yield
    finally:
        api.call("unload_model", "spare")
        # Triton unloads behind the answer.
        for _ in range(200):
            if not api.call("is_model_ready", "spare"):
                break


def _index(api: Api) -> Any:
    found = api.call("get_model_repository_index")
    models = found.get("models", []) if api.grpc else found
    return sorted((each["name"], each.get("version", ""), each["state"]) for each in models if each.get("version"))


def _state_of_spare(api: Api) -> Any:
    """Which nobody has loaded yet, if this is asked first."""
    found = api.call("get_model_repository_index")
    [spare] = [each for each in (found.get("models", []) if api.grpc else found) if each["name"] == "spare"]
    return spare.get("state", "")


def _load(api: Api) -> Any:
    """Ready, answering and in the index while it is loaded; then not."""
    with _loaded(api):
        found = api.call("is_model_ready", "spare"), api.infer("spare"), _index(api)
    return *found, api.call("is_model_ready", "spare")


def _load_with_config(api: Api) -> Any:
    """Its own config with room for two rows."""
    with _loaded(api):
        found = api.call("get_model_config", "spare")
    config = {**found.get("config", found), "max_batch_size": 2}
    with _loaded(api, config=json.dumps(config)):
        return api.infer("spare"), outcome(lambda api: api.infer("spare", [api.input("x", np.zeros((3, 3), "f"))]), api)


CONTROLLED: dict[str, Asked] = {
    "get_model_repository_index, a model that was never loaded": Asked(_state_of_spare),
    "get_model_repository_index": Asked(_index),
    "load_model, and unload_model": Asked(_load),
    "load_model, twice": Asked(
        lambda api: [(api.call("load_model", "linear"), api.call("is_model_ready", "linear")) for _ in range(2)]
    ),
    "load_model, an unknown model": Asked(lambda api: api.call("load_model", "nobody")),
    "load_model, with a config": Asked(_load_with_config),
    "load_model, a config that is no JSON": Asked(lambda api: api.call("load_model", "linear", config="{")),
    "load_model, files without a config": Asked(
        lambda api: api.call("load_model", "linear", files={"file:1/model.onnx": b"x"})
    ),
    "unload_model, an unknown model": Asked(lambda api: api.call("unload_model", "nobody")),
    "unload_model, one that is not loaded": Asked(lambda api: api.call("unload_model", "spare")),
    "unload_model, with its dependents": Asked(
        lambda api: (api.call("load_model", "spare"), api.call("unload_model", "spare", unload_dependents=True))
    ),
    "linear answers afterwards": Asked(_plain()),
}

# --- shared memory ------------------------------------------------------------------------------------


@contextmanager
def _region(api: Api, size: int = 64, *, registered: bool = True) -> Iterator[tuple[str, str, Any]]:
    """Name and key of a region that is there for a while."""
    name = f"compared_{secrets.token_hex(4)}"
    key = f"/{name}"
    handle = shm.create_shared_memory_region(name, key, size)
    try:
        if registered:
            api.call("register_system_shared_memory", name, key, size)
        yield name, key, handle
    finally:
        with suppress(InferenceServerException):
            api.call("unregister_system_shared_memory", name)
        shm.destroy_shared_memory_region(handle)


def _shared(size: int = 24, offset: int = 0, out_size: int = 16, out_offset: int = 24, *, said: bool = False) -> Ask:
    """Two rows in at `offset`, two rows out behind them; or what is `said` of these."""

    def ask(api: Api) -> Any:
        with _region(api) as (name, _, handle):
            shm.set_shared_memory_region(handle, [X], offset=0)
            given = api.module.InferInput("x", [2, 3], "FP32")
            given.set_shared_memory(name, size, offset=offset)
            wanted = api.output("y")
            wanted.set_shared_memory(name, out_size, offset=out_offset)
            result = api.call("infer", "linear", [given], outputs=[wanted])
            response = result.get_response(as_json=True) if api.grpc else result.get_response()
            [output] = response["outputs"]
            if said:
                return sorted(output.get("parameters", {}))
            return output["name"], output["datatype"], shm.get_contents_as_numpy(handle, "f4", [2, 2], 24).copy()

    return ask


def _in_no_region(api: Api) -> Any:
    given = api.module.InferInput("x", [2, 3], "FP32")
    given.set_shared_memory("nobody", 24)
    return api.infer(inputs=[given])


def _status(api: Api) -> Any:
    with _region(api) as (name, key, _):
        found = api.call("get_system_shared_memory_status", name)
        text = json.dumps(found).replace(name, "NAME").replace(key, "KEY")
    return json.loads(text)


def _registered(**more: Any) -> Ask:
    """A registration of a region of 64 bytes, changed in this."""

    def ask(api: Api) -> Any:
        with _region(api, registered=False) as (name, key, _):
            return api.call("register_system_shared_memory", **{"name": name, "key": key, "byte_size": 64, **more})

    return ask


def _registered_twice(api: Api) -> Any:
    with _region(api) as (name, key, _):
        return api.call("register_system_shared_memory", name, key, 64)


SHARED: dict[str, Asked] = {
    "register_system_shared_memory, and infer": Asked(_shared()),
    "infer, what is said of an output in shared memory": Asked(_shared(said=True)),
    "get_system_shared_memory_status": Asked(_status),
    "get_system_shared_memory_status, an unknown region": Asked(
        lambda api: api.call("get_system_shared_memory_status", "nobody")
    ),
    "register_system_shared_memory, twice": Asked(_registered_twice),
    "register_system_shared_memory, a key that is not there": Asked(_registered(key="/nobody")),
    "register_system_shared_memory, beyond the end": Asked(_registered(byte_size=2**20)),
    "register_system_shared_memory, no bytes": Asked(_registered(byte_size=0)),
    "unregister_system_shared_memory, an unknown region": Asked(
        lambda api: api.call("unregister_system_shared_memory", "nobody")
    ),
    "unregister_system_shared_memory, all": Asked(lambda api: api.call("unregister_system_shared_memory")),
    "infer, an input of another size in shared memory": Asked(_shared(size=20)),
    "infer, an input beyond its region": Asked(_shared(offset=48)),
    "infer, an output that does not fit its place": Asked(_shared(out_size=8)),
    "infer, an output beyond its region": Asked(_shared(out_offset=60)),
    "infer, a region that is not there": Asked(_in_no_region),
    "get_cuda_shared_memory_status": Asked(lambda api: api.call("get_cuda_shared_memory_status")),
    "register_cuda_shared_memory": Asked(lambda api: api.call("register_cuda_shared_memory", "a", b"AAAA", 0, 64)),
    "unregister_cuda_shared_memory": Asked(lambda api: api.call("unregister_cuda_shared_memory")),
}

# --- traces and logs ----------------------------------------------------------------------------------


def _traced(model: str | None, **settings: Any) -> Ask:
    """A setting that is changed, told, and put back."""

    def ask(api: Api) -> Any:
        told = api.call("update_trace_settings", model, settings)
        back = api.call("update_trace_settings", model, dict.fromkeys(settings))
        return [_settings(each) for each in (told, back)]

    return ask


def _settings(found: dict[str, Any]) -> dict[str, Any]:
    """Names and values, but for the file, which whoever starts the server chooses."""
    return {key: value for key, value in found.get("settings", found).items() if key != "trace_file"}


def _logged(**settings: Any) -> Ask:
    """As `_traced`."""

    def ask(api: Api) -> Any:
        before = api.call("get_log_settings")
        values = {key: _value(value) for key, value in _settings(before).items() if key in settings}
        told = api.call("update_log_settings", settings)
        return [_settings(each) for each in (told, api.call("update_log_settings", values))]

    return ask


def _value(said: Any) -> Any:
    """gRPC says the type as well: {"bool_param": true}."""
    if not isinstance(said, dict):
        return said
    [(kind, value)] = said.items() or [("bool_param", False)]
    return int(value) if kind == "uint32_param" else value


OBSERVED: dict[str, Asked] = {
    "get_trace_settings": Asked(lambda api: _settings(api.call("get_trace_settings"))),
    "get_trace_settings, of a model": Asked(lambda api: _settings(api.call("get_trace_settings", "linear"))),
    "get_trace_settings, of an unknown model": Asked(lambda api: api.call("get_trace_settings", "nobody")),
    "update_trace_settings": Asked(_traced(None, trace_rate="500", trace_count="7", log_frequency="3")),
    "update_trace_settings, of a model": Asked(_traced("linear", trace_rate="500")),
    "update_trace_settings, no number": Asked(_traced(None, trace_rate="often")),
    "update_trace_settings, an unknown level": Asked(_traced(None, trace_level=["ALL"])),
    "update_trace_settings, an unknown setting": Asked(_traced(None, other=["1"])),
    "get_log_settings": Asked(lambda api: _settings(api.call("get_log_settings"))),
    "update_log_settings": Asked(_logged(log_verbose_level=1, log_info=False)),
    "update_log_settings, an unknown setting": Asked(_logged(other=True)),
    "update_log_settings, a format that there is not": Asked(_logged(log_format="prose")),
}

CALLS: dict[str, Asked] = {**SAID, **INFERRED, **STREAMED, **CONTROLLED, **SHARED, **OBSERVED}
