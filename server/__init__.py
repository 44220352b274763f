"""Forwardpass: a low-latency inference server. Start reading at `app.py`; the floors stand in README.md."""

import os

__version__ = "0.1.0"

# ONNX Runtime and its library for texts write what they are used for into the home folder, and send it to their maker,
# unless this is set before they are imported. Source: Privacy.md of onnxruntime 1.32.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

# Pydantic asks every installed package whether it is a plugin of its own, 15 ms of every start; none is wanted here.
os.environ.setdefault("PYDANTIC_DISABLE_PLUGINS", "__all__")
