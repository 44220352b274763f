"""The runtimes that MLServer loads: `predict` gets requests that were merged along the first dimension."""

from mlserver import MLModel
from mlserver.codecs import Base64Codec, NumpyCodec, StringCodec
from mlserver.types import InferenceResponse
from onnx_model import Model


class RowModel(MLModel):
    async def load(self):
        self._model = Model(self.settings.parameters.uri)
        return True

    async def predict(self, payload):
        y = self._model.rows(NumpyCodec.decode_input(payload.inputs[0]))
        return InferenceResponse(model_name=self.name, outputs=[NumpyCodec.encode_output("y", y)])


class PictureModel(RowModel):
    async def predict(self, payload):
        labels = self._model.labels(Base64Codec.decode_input(payload.inputs[0]))
        return InferenceResponse(model_name=self.name, outputs=[StringCodec.encode_output("label", labels)])
