"""A model of Triton's Python backend that runs the ONNX file beside it, as Triton's ONNX Runtime backend would.

This file is copied into a model's folder and runs inside of Triton, behind two lines that name the packages' folder.
Requests whose tensors can be stacked are one pass.
"""

import json
from pathlib import Path

import numpy as np
import onnxruntime
import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    """What Triton's Python backend calls."""

    def initialize(self, args):
        """Load the version's ONNX file. `args` is Triton's: the config as JSON, the folder, the version."""
        config = json.loads(args["model_config"])
        folder = Path(args["model_repository"]) / args["model_version"]
        path = folder / config["parameters"]["onnx_filename"]["string_value"]
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        options.inter_op_num_threads = 1
        self._session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        self._inputs = [one.name for one in self._session.get_inputs()]
        self._outputs = [one["name"] for one in config["output"]]
        self._batched = config["max_batch_size"] > 0

    def execute(self, requests):
        """One response for each of `requests`."""
        arrays = [self._arrays(request) for request in requests]
        groups = {}
        for index, inputs in enumerate(arrays):
            groups.setdefault(self._signature(index, inputs), []).append(index)
        responses = [None] * len(requests)
        for members in groups.values():
            for index, response in zip(members, self._answers(requests, arrays, members), strict=True):
                responses[index] = response
        return responses

    def _arrays(self, request):
        found = {}
        for name in self._inputs:
            tensor = pb_utils.get_input_tensor_by_name(request, name)
            if tensor is not None:
                array = tensor.as_numpy()
                found[name] = _texts(array) if array.dtype == object else array
        return found

    def _signature(self, index, inputs):
        if not self._batched:
            return index
        return tuple((name, array.shape[1:]) for name, array in inputs.items())

    def _answers(self, requests, arrays, members):
        inputs = arrays[members[0]]
        if len(members) > 1:
            inputs = {name: np.concatenate([arrays[index][name] for index in members]) for name in inputs}
        try:
            outputs = dict(zip(self._outputs, self._session.run(self._outputs, inputs), strict=True))
        except Exception as error:  # noqa: BLE001 - whatever ONNX Runtime says is the answer
            failure = pb_utils.TritonError(str(error))
            return [pb_utils.InferenceResponse(error=failure) for _ in members]
        answers, at = [], 0
        for index in members:
            rows = len(next(iter(arrays[index].values()))) if self._batched else 0
            wanted = requests[index].requested_output_names()
            answers.append(_response(outputs, wanted, slice(at, at + rows) if self._batched else ...))
            at += rows
        return answers


def _response(outputs, wanted, rows):
    tensors = []
    for name in wanted:
        array = outputs[name][rows]
        if array.dtype == object or array.dtype.kind == "U":
            array = np.array([str(text).encode() for text in array.ravel()], dtype=object).reshape(array.shape)
        tensors.append(pb_utils.Tensor(name, np.ascontiguousarray(array)))
    return pb_utils.InferenceResponse(tensors)


def _texts(array):
    """An ONNX string is text."""
    return np.array([element.decode() for element in array.ravel()], dtype=object).reshape(array.shape)
