"""A model's golden inputs through tritonclient, unmodified.

``python -m tests.support.triton_golden grpc|http URL MODEL``. In a process of its own because of tritonclient.http,
see `tests.support.triton_http`. Exits non-zero where an output is not the certified one within its tolerance.
"""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

import numpy as np

from server.repository.certificate import read_golden, read_manifest
from server.tensor import datatype_of

ROWS = 3


def main(protocol: str, url: str, model: str) -> None:
    folder = Path(__file__).parents[2] / "model_repository" / model
    golden, manifest = read_golden(folder, "1"), read_manifest(folder)
    assert golden
    assert manifest
    tolerances = manifest.versions["1"].tolerances
    triton = importlib.import_module(f"tritonclient.{protocol}")
    with triton.InferenceServerClient(url) as client:
        assert client.is_server_live()
        assert client.is_server_ready()
        assert client.is_model_ready(model)
        inputs = []
        for name, array in golden.inputs.items():
            inputs.append(triton.InferInput(name, [ROWS, *array.shape[1:]], datatype_of(array)))
            inputs[-1].set_data_from_numpy(array[:ROWS])
        result = client.infer(model, inputs)
        for name, array in golden.outputs.items():
            wanted = tolerances[name]
            np.testing.assert_allclose(result.as_numpy(name), array[:ROWS], atol=wanted.atol, rtol=wanted.rtol)


if __name__ == "__main__":
    main(*sys.argv[1:])
