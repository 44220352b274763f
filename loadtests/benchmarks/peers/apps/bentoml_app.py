"""One BentoML service with a method for each model."""

from typing import Annotated

import bentoml
import numpy as np
from bentoml.validators import DType
from numpy.typing import NDArray
from onnx_model import Model, spec
from PIL.Image import Image as PILImage

_SPEC = spec()
_BATCH = {"batchable": True, "max_batch_size": _SPEC["max_batch_size"]}
Rows = Annotated[NDArray[np.float32], DType("float32")]


@bentoml.service(workers=_SPEC["workers"], metrics={"enabled": False}, logging={"access": {"enabled": False}})
class Models:
    def __init__(self):
        self._models = {name: Model(path) for name, path in _SPEC["models"].items()}

    @bentoml.api(**_BATCH)
    def tiny_mlp(self, x: Rows) -> Rows:
        return self._models["tiny_mlp"].rows(x)

    @bentoml.api(**_BATCH)
    def cnn(self, x: Rows) -> Rows:
        return self._models["cnn"].rows(x)

    @bentoml.api(**_BATCH)
    def picture(self, pictures: list[PILImage]) -> list[str]:
        return self._models["picture"].labels_of_images(pictures)
