"""What the models of Triton's Python backend that take pictures share."""

import base64
import json

import triton_python_backend_utils as pb_utils
from onnx_model import opened


def draft_of(args):
    """Whether a model's config says that a JPEG is reduced while it is decoded, as far as the model's size allows."""
    return "draft" in json.loads(args["model_config"])["parameters"]


def images_of(requests, draft):
    """Pillow's images of all requests, one after the other, and how many each request has."""
    inputs = [pb_utils.get_input_tensor_by_name(request, "picture").as_numpy() for request in requests]
    given = [picture for x in inputs for picture in x.reshape(-1)]
    # JSON has no bytes, so REST clients send base64; a JPEG begins with FF D8.
    pictures = [picture if picture.startswith(b"\xff\xd8") else base64.b64decode(picture) for picture in given]
    return [opened(picture, draft) for picture in pictures], [len(x) for x in inputs]


def parted(name, values, counts):
    """A response for each request, with its own of `values` as the tensor `name`."""
    responses, at = [], 0
    for count in counts:
        responses.append(pb_utils.InferenceResponse([pb_utils.Tensor(name, values[at : at + count])]))
        at += count
    return responses
