"""Server reflection, by grpc's own client of it, over both gRPC transports."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import grpc
import grpc.aio
import pytest
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.message_factory import GetMessageClass
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase

from server.settings import GrpcSettings, TlsSettings
from server.transport import reflection
from server.transport.grpcio import GrpcioServer
from server.transport.http2.server import Http2Server
from server.transport.methods import METHODS
from tests.support.fake_dataplane import MODEL, FakeDataPlane

V1, ALPHA = (f"/grpc.reflection.{version}.ServerReflection/ServerReflectionInfo" for version in ("v1", "v1alpha"))


@pytest.fixture(params=[Http2Server, GrpcioServer], ids=["http2", "grpcio"])
async def address(request: pytest.FixtureRequest) -> AsyncIterator[str]:
    server = request.param(FakeDataPlane(), "127.0.0.1", GrpcSettings(port=0), TlsSettings())
    yield f"127.0.0.1:{await server.start()}"
    await server.stop(0)


def test_the_services_are_those_of_the_table() -> None:
    """A service that is served and not told of, or the other way round, would be a lie."""
    assert set(reflection.SERVICES) == {method.name.split("/")[1] for method in METHODS}


async def test_a_client_without_any_files_calls_a_method(address: str) -> None:
    """Everything that it needs is asked for: services, their files, and what these import."""

    def call() -> tuple[list[str], bool, Any]:
        with grpc.insecure_channel(address) as channel:
            database = ProtoReflectionDescriptorDatabase(channel)
            services = list(database.get_services())
            pool = DescriptorPool(database)
            ready = pool.FindServiceByName("inference.GRPCInferenceService").FindMethodByName("ModelReady")
            request, response = GetMessageClass(ready.input_type), GetMessageClass(ready.output_type)
            stub = channel.unary_unary(
                f"/{ready.containing_service.full_name}/{ready.name}",
                request_serializer=request.SerializeToString,
                response_deserializer=response.FromString,
            )
            answer = stub(request(name=MODEL), timeout=30).ready
            config = pool.FindMessageTypeByName("inference.ModelConfig")
            return services, answer, config.fields_by_name["max_batch_size"].number

    assert await asyncio.to_thread(call) == (list(reflection.SERVICES), True, 4)


@pytest.mark.parametrize("path", [V1, ALPHA])
async def test_every_method_is_described(address: str, path: str) -> None:
    """Both versions give, for each method that is served, a file that has it."""
    async with grpc.aio.insecure_channel(address) as channel:
        stub = channel.stream_stream(
            path,
            request_serializer=reflection_pb2.ServerReflectionRequest.SerializeToString,
            response_deserializer=reflection_pb2.ServerReflectionResponse.FromString,
        )
        call = stub(timeout=30)
        for method in METHODS:
            symbol = method.name[1:].replace("/", ".")
            await call.write(reflection_pb2.ServerReflectionRequest(host="h", file_containing_symbol=symbol))
            answer = await call.read()
            assert (answer.valid_host, answer.original_request.file_containing_symbol) == ("h", symbol)
            own = answer.file_descriptor_response.file_descriptor_proto[-1]
            assert symbol.rpartition(".")[2].encode() in own
        await call.done_writing()
        assert await call.read() is grpc.aio.EOF


@pytest.mark.parametrize(
    ("request_", "code"),
    [
        ({"file_by_filename": "no.proto"}, grpc.StatusCode.NOT_FOUND),
        ({"file_by_filename": "google/protobuf/descriptor.proto"}, grpc.StatusCode.NOT_FOUND),
        ({"file_containing_symbol": "no.Such"}, grpc.StatusCode.NOT_FOUND),
        ({"file_containing_symbol": ""}, grpc.StatusCode.NOT_FOUND),
        (
            {"file_containing_extension": {"containing_type": "inference.ModelConfig", "extension_number": 1}},
            grpc.StatusCode.NOT_FOUND,
        ),
        ({"all_extension_numbers_of_type": "no.Such"}, grpc.StatusCode.NOT_FOUND),
        ({}, grpc.StatusCode.UNIMPLEMENTED),
    ],
)
async def test_what_is_not_known_is_an_answer(address: str, request_: dict[str, Any], code: grpc.StatusCode) -> None:
    """An error in the answer, and the stream goes on."""
    async with grpc.aio.insecure_channel(address) as channel:
        call = reflection_pb2_grpc.ServerReflectionStub(channel).ServerReflectionInfo(timeout=30)
        await call.write(reflection_pb2.ServerReflectionRequest(**request_))
        assert (await call.read()).error_response.error_code == code.value[0]
        asked = reflection_pb2.ServerReflectionRequest(all_extension_numbers_of_type="inference.ModelConfig")
        await call.write(asked)
        answer = await call.read()
        assert answer.all_extension_numbers_response.base_type_name == "inference.ModelConfig"
        await call.done_writing()
