"""A typed client for `predict` and `infer`, sync and asyncio, over gRPC and REST.

    with Client("grpc://127.0.0.1:8001") as client:
        print(client.predict("digits", Path("three.png")).predictions[0].label)

`inputs` says what an input may be, `calls` what is asked and answered; `rest` and `grpcio` turn the one
into the other and move it. Only the wire that a URL names is imported.
"""

from server.client.calls import IndexEntry, ModelMetadata
from server.client.client import AsyncClient, Client
from server.client.errors import ClientError
from server.client.inputs import Input, inputs_of_bytes, inputs_of_json

__all__ = [
    "AsyncClient",
    "Client",
    "ClientError",
    "IndexEntry",
    "Input",
    "ModelMetadata",
    "inputs_of_bytes",
    "inputs_of_json",
]
