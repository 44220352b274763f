"""The messages of v2 and of Triton's config.pbtxt: `service_pb2` and `model_config_pb2`, as tritonclient ships them.

Importing them by name would first run ``tritonclient/grpc/__init__.py``, which brings the whole client with it:
grpcio, ml_dtypes and more, some 70 ms and 10 MB that a server has no use for. So they are imported while an
empty package stands in for ``tritonclient.grpc``. The two modules stay in `sys.modules` under their own names and
the stand-in goes: a later ``import tritonclient.grpc`` runs in full and finds these very modules, and so the same
classes. (Copies of our own would be registered twice in protobuf's pool.)
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
from typing import TYPE_CHECKING

__all__ = ["model_config_pb2", "service_pb2"]

if TYPE_CHECKING:
    from tritonclient.grpc import model_config_pb2, service_pb2
else:
    _PACKAGE = "tritonclient.grpc"
    _stands_in = _PACKAGE not in sys.modules
    if _stands_in:
        _spec = importlib.util.find_spec(_PACKAGE)
        if _spec is None:
            raise ModuleNotFoundError(f"No module named {_PACKAGE!r}", name=_PACKAGE)
        # It has the real package's path, and none of its content.
        sys.modules[_PACKAGE] = importlib.util.module_from_spec(_spec)
    try:
        model_config_pb2 = importlib.import_module(f"{_PACKAGE}.model_config_pb2")
        service_pb2 = importlib.import_module(f"{_PACKAGE}.service_pb2")
    finally:
        if _stands_in:
            del sys.modules[_PACKAGE]
