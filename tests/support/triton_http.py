"""Calls of tritonclient.http against a server with the model `add`, in a process of its own.

``python -m tests.support.triton_http PORT binary|json``. This client runs on gevent, whose greenlets upset the
recursion count of the CPython 3.11 process that imports them.
"""

from __future__ import annotations

import sys

import numpy as np
import pytest
import tritonclient.http as triton

from server.errors import UnknownModel


def main(port: str, form: str) -> None:
    client = triton.InferenceServerClient(f"127.0.0.1:{port}")
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready("add")
    assert client.get_server_metadata()["name"] == "forwardpass"
    assert client.get_model_metadata("add")["inputs"][0]["shape"] == [-1, 4]
    assert client.get_model_config("add")["max_batch_size"] == 8
    assert client.get_model_repository_index()[0]["name"] == "add"
    client.load_model("add")
    client.unload_model("add")

    binary = form == "binary"
    values = np.array([[1.5, 2, 3, 4]], np.float32)
    inputs = [triton.InferInput(name, [1, 4], "FP32") for name in ("a", "b")]
    for tensor in inputs:
        tensor.set_data_from_numpy(values, binary_data=binary)
    outputs = [triton.InferRequestedOutput("sum", binary_data=binary)]
    for wanted, compression in ((outputs, None), (None, "gzip"), (outputs, "deflate")):
        result = client.infer("add", inputs, outputs=wanted, request_id="r", request_compression_algorithm=compression)
        assert result.as_numpy("sum").tolist() == (values * 2).tolist()
        assert result.get_response()["id"] == "r"
    with pytest.raises(triton.InferenceServerException) as caught:
        client.infer("x", inputs)
    assert (caught.value.message(), caught.value.status()) == (UnknownModel("x").public_message, "404")
    assert client.get_inference_statistics("add")["model_stats"][0]["name"] == "add"
    client.close()


if __name__ == "__main__":
    main(*sys.argv[1:])
