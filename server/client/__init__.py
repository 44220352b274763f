"""A typed client for `predict` and `infer`, sync and asyncio, over gRPC and REST.

    with Client("grpc://127.0.0.1:8001") as client:
        print(client.predict("digits", Path("three.png")).predictions[0].label)

`inputs` says what an input may be, `calls` what is asked and answered; `rest` and `grpcio` turn the one
into the other and move it. Only the wire that a URL names is imported.
"""

from server.client.calls import OnExplained
from server.client.client import AsyncClient, Client
from server.client.errors import ClientError
from server.client.inputs import Input, inputs_of_bytes, inputs_of_json
from server.explain import Explained
from server.types import IndexEntry, ModelMetadata

__all__ = [
    "AsyncClient",
    "Client",
    "ClientError",
    "Explained",
    "IndexEntry",
    "Input",
    "ModelMetadata",
    "OnExplained",
    "inputs_of_bytes",
    "inputs_of_json",
]
