"""Models of Triton's Python backend, for what no ONNX file does: sequences, several responses, bytes, failures."""

from __future__ import annotations

from pathlib import Path

_HEAD = """import sys

sys.path[:0] = [{packages!r}]

import numpy as np
import triton_python_backend_utils as pb_utils


class TritonPythonModel:
"""

_TENSORS = """
backend: "python" max_batch_size: {rows}
input {{ name: "x" data_type: {kind} dims: 1 }}
output {{ name: "y" data_type: {kind} dims: 1 }}
instance_group {{ kind: KIND_CPU count: 1 }}
"""

_NUMBERS = _TENSORS.format(rows=8, kind="TYPE_FP32")

_MODELS = {
    "double": (
        _NUMBERS + "dynamic_batching {}",
        """
    def execute(self, requests):
        answers = []
        for request in requests:
            x = pb_utils.get_input_tensor_by_name(request, "x").as_numpy()
            answers.append(pb_utils.InferenceResponse([pb_utils.Tensor("y", x * 2)]))
        return answers
""",
    ),
    "parted": (
        _NUMBERS
        + """
version_policy { all {} }
parameters { key: "canary_version" value { string_value: "2" } }
parameters { key: "canary_weight" value { string_value: "0.25" } }
""",
        """
    def initialize(self, args):
        self._version = int(args["model_version"])

    def execute(self, requests):
        answers = []
        for request in requests:
            x = pb_utils.get_input_tensor_by_name(request, "x").as_numpy()
            answers.append(pb_utils.InferenceResponse([pb_utils.Tensor("y", x * self._version)]))
        return answers
""",
    ),
    "counter": (
        _NUMBERS
        + """
sequence_batching {
  oldest { max_candidate_sequences: 64 }
  max_sequence_idle_microseconds: 60000000
  control_input { name: "START" control { kind: CONTROL_SEQUENCE_START int32_false_true: [ 0, 1 ] } }
  control_input { name: "ID" control { kind: CONTROL_SEQUENCE_CORRID data_type: TYPE_UINT64 } }
}
""",
        """
    def initialize(self, args):
        self._sums = {}

    def execute(self, requests):
        answers = []
        for request in requests:
            found = {name: pb_utils.get_input_tensor_by_name(request, name).as_numpy() for name in ("x", "START", "ID")}
            name = int(found["ID"].ravel()[0])
            before = 0.0 if found["START"].ravel()[0] else self._sums[name]
            self._sums[name] = before + float(found["x"].ravel()[0])
            y = np.full((1, 1), self._sums[name], np.float32)
            answers.append(pb_utils.InferenceResponse([pb_utils.Tensor("y", y)]))
        return answers
""",
    ),
    "several": (
        _TENSORS.format(rows=0, kind="TYPE_FP32") + "model_transaction_policy { decoupled: true }",
        """
    def execute(self, requests):
        for request in requests:
            sender = request.get_response_sender()
            for step in range(int(pb_utils.get_input_tensor_by_name(request, "x").as_numpy()[0])):
                sender.send(pb_utils.InferenceResponse([pb_utils.Tensor("y", np.array([step], np.float32))]))
            sender.send(flags=pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL)
""",
    ),
    "bytes": (
        _TENSORS.format(rows=8, kind="TYPE_STRING"),
        """
    def execute(self, requests):
        answers = []
        for request in requests:
            x = pb_utils.get_input_tensor_by_name(request, "x").as_numpy()
            y = np.array([element[::-1] for element in x.ravel()], dtype=object).reshape(x.shape)
            answers.append(pb_utils.InferenceResponse([pb_utils.Tensor("y", y)]))
        return answers
""",
    ),
    "failing": (
        _NUMBERS,
        """
    def execute(self, requests):
        raise RuntimeError("at /secret/path")
""",
    ),
}

_TWO_VERSIONS = ("parted",)

_ENSEMBLE = """
platform: "ensemble" max_batch_size: 8
input { name: "x" data_type: TYPE_FP32 dims: 1 }
output { name: "y" data_type: TYPE_FP32 dims: 1 label_filename: "labels.txt" }
ensemble_scheduling {
  step { model_name: "double" model_version: -1 input_map { key: "x" value: "x" } output_map { key: "y" value: "m" } }
  step { model_name: "double" model_version: -1 input_map { key: "x" value: "m" } output_map { key: "y" value: "y" } }
}
"""


def write_models(repository: Path, packages: Path | None) -> list[str]:
    """Write them all, and an ensemble, `fourfold`; returns their names. `packages`: where numpy is."""
    for name, (config, code) in _MODELS.items():
        for number in "12" if name in _TWO_VERSIONS else "1":
            version = repository / name / number
            version.mkdir(parents=True)
            (version / "model.py").write_text(_HEAD.format(packages=str(packages)) + code)
        (repository / name / "config.pbtxt").write_text(f'name: "{name}"\n{config}')
    (repository / "fourfold" / "1").mkdir(parents=True)
    (repository / "fourfold" / "config.pbtxt").write_text(f'name: "fourfold"\n{_ENSEMBLE}')
    (repository / "fourfold" / "labels.txt").write_text("whole\n")
    return [*_MODELS, "fourfold"]
