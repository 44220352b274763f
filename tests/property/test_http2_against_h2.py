"""Our HTTP/2 against the client of the package h2: random calls, windows, settings and resets, cut at any byte."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

import h2.config
import h2.connection
import h2.events
import h2.settings
import numpy as np
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule
from tritonclient.grpc import service_pb2 as pb

from server.settings import GrpcSettings
from server.transport.http2.calls import Calls, Service
from server.transport.http2.connection import Connection
from server.transport.methods import METHODS
from tests.support.fake_dataplane import MODEL, FakeDataPlane
from tests.support.http2_client import INFER, call_fields, message

_METHODS = {method.name.encode(): method for method in METHODS}
_MORE = (b"x-a", b"b" * 40), (b"grpc-timeout", b"30S"), (b"x-b", b"c")


def request(id: str, elements: int) -> bytes:
    asked = pb.ModelInferRequest(model_name=MODEL, id=id)
    for name in ("a", "b"):
        asked.inputs.add(name=name, datatype="FP32", shape=[1, elements])
        asked.raw_input_contents.append(np.full(elements, len(id), "<f4").tobytes())
    return bytes(asked.SerializeToString())


@dataclass
class Call:
    """One call of the client. `unsent` is what its windows have not allowed yet."""

    id: str
    elements: int
    unsent: bytes
    padding: int
    data: bytes = b""
    ended: bool = False
    reset: bool = False
    fields: dict[bytes, bytes] = field(default_factory=dict)


class Conversation(RuleBasedStateMachine):
    """Both directions are bytes in a pipe, which are delivered in pieces of any size."""

    @initialize(window=st.sampled_from([65_535, 100_000, 2**20]), streams=st.integers(3, 20))
    def connect(self, window: int, streams: int) -> None:
        limits = GrpcSettings(
            stream_window_bytes=window,
            connection_window_bytes=max(window, 65_535),
            max_concurrent_streams=streams,
            max_settings_per_s=1000,
            max_resets_per_s=10_000,
            max_empty_frames_per_s=10_000,
        )
        self.dataplane = FakeDataPlane()
        self.connection = Connection(limits, _METHODS, Counter(), 10**9)
        self.handler = Calls(Service(self.dataplane, limits, Counter()), self.connection, lambda: None)
        config = h2.config.H2Configuration(client_side=True, header_encoding=None)
        self.client = h2.connection.H2Connection(config)
        self.client.initiate_connection()
        self.to_server = b""
        self.to_client = b""
        self.arrived = b""
        self.calls: dict[int, Call] = {}
        self.deliver(10**6)

    @rule(size=st.integers(1, 60_000))
    def deliver(self, size: int) -> None:
        """The next bytes of each direction arrive."""
        self.to_server += self.client.data_to_send()
        piece, self.to_server = self.to_server[:size], self.to_server[size:]
        self.handler.handle(self.connection.receive(piece, 10**9))
        assert self.connection.fault is None, self.connection.fault
        self.to_client += b"".join(self.connection.sender.out)
        self.connection.sender.out.clear()
        piece, self.to_client = self.to_client[:size], self.to_client[size:]
        self.arrived += piece
        # Frame by frame: h2 takes up its own SETTINGS between two calls, not amid one.
        while len(self.arrived) >= 9 and len(self.arrived) >= (end := 9 + int.from_bytes(self.arrived[:3])):
            for event in self.client.receive_data(self.arrived[:end]):
                self.hear(event)
            self.arrived = self.arrived[end:]
        self.send_more()

    def hear(self, event: h2.events.Event) -> None:
        call = self.calls.get(getattr(event, "stream_id", 0) or 0)
        if isinstance(event, h2.events.ConnectionTerminated):
            raise AssertionError(event)
        if call is None:
            return
        if isinstance(event, h2.events.DataReceived):
            call.data += event.data
        elif isinstance(event, h2.events.ResponseReceived | h2.events.TrailersReceived):
            call.fields.update(event.headers)
        elif isinstance(event, h2.events.StreamEnded):
            call.ended = True
        elif isinstance(event, h2.events.StreamReset):
            assert call.reset, (call.id, event)

    @rule(
        elements=st.sampled_from([0, 1, 30, 1000, 9000]),
        id_length=st.integers(0, 40),
        padding=st.sampled_from([0, 0, 1, 255]),
        more=st.lists(st.sampled_from(_MORE), max_size=2, unique=True),
    )
    def call(self, elements: int, id_length: int, padding: int, more: list[tuple[bytes, bytes]]) -> None:
        if self.client.open_outbound_streams >= self.client.remote_settings.max_concurrent_streams:
            return
        stream_id = self.client.get_next_available_stream_id()
        self.client.send_headers(stream_id, call_fields(INFER, *more))
        unsent = message(request("x" * id_length, elements))
        self.calls[stream_id] = Call("x" * id_length, elements, unsent, padding)
        self.send_more()

    def send_more(self) -> None:
        for stream_id, call in self.calls.items():
            while call.unsent and not call.reset:
                padding = call.padding + 1 if call.padding else 0
                window = self.client.local_flow_control_window(stream_id)
                room = min(window, self.client.max_outbound_frame_size) - padding
                if room <= 0:
                    break
                piece, call.unsent = call.unsent[:room], call.unsent[room:]
                self.client.send_data(
                    stream_id, piece, end_stream=not call.unsent, pad_length=call.padding if padding else None
                )

    @precondition(lambda self: any(not c.ended and not c.reset for c in self.calls.values()))
    @rule(data=st.data())
    def reset(self, data: st.DataObject) -> None:
        going = [i for i, c in self.calls.items() if not c.ended and not c.reset]
        stream_id = data.draw(st.sampled_from(going))
        self.client.reset_stream(stream_id)
        self.calls[stream_id].reset = True

    @rule(window=st.sampled_from([0, 1, 1000, 65_535, 10**6]), frame=st.sampled_from([16_384, 20_000, 2**24 - 1]))
    def change_settings(self, window: int, frame: int) -> None:
        codes = h2.settings.SettingCodes
        self.client.update_settings({codes.INITIAL_WINDOW_SIZE: window, codes.MAX_FRAME_SIZE: frame})

    @rule(increment=st.integers(1, 50_000))
    def widen(self, increment: int) -> None:
        self.client.increment_flow_control_window(increment)

    @precondition(lambda self: any(not c.ended and not c.reset for c in self.calls.values()))
    @rule(data=st.data(), increment=st.integers(1, 50_000))
    def widen_stream(self, data: st.DataObject, increment: int) -> None:
        going = [i for i, c in self.calls.items() if not c.ended and not c.reset]
        self.client.increment_flow_control_window(increment, data.draw(st.sampled_from(going)))

    @rule(payload=st.binary(min_size=8, max_size=8))
    def ping(self, payload: bytes) -> None:
        self.client.ping(payload)

    def teardown(self) -> None:
        """With wide windows everything that was not reset is answered, and rightly."""
        if not hasattr(self, "client"):
            return
        self.client.update_settings({h2.settings.SettingCodes.INITIAL_WINDOW_SIZE: 2**24})
        self.client.increment_flow_control_window(2**26)
        for _ in range(50):
            self.deliver(10**7)
        for call in self.calls.values():
            if call.reset:
                continue
            assert call.ended, call.id
            assert call.fields[b"grpc-status"] == b"0", call.fields
            assert int.from_bytes(call.data[1:5]) == len(call.data) - 5
            answer = pb.ModelInferResponse.FromString(call.data[5:])
            assert answer.id == call.id
            values = np.frombuffer(answer.raw_output_contents[0], "<f4")
            assert values.tolist() == [2 * len(call.id)] * call.elements
        assert not self.connection.streams
        assert self.connection.sender.pending_bytes == 0
        assert self.handler.held_bytes == 0


Conversation.TestCase.settings = settings(max_examples=100, stateful_step_count=40)
TestConversation = Conversation.TestCase
