"""Every setting of the server, in one frozen tree.

A field's string below it is its help: the flags of `serve` are generated from this tree, and so is the
reference page. `server.environment` builds it, from flags and from variables.

Its annotations are no strings (`from __future__ import annotations`): pydantic would compile and evaluate each of the
hundred, at every start.
"""

import re
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, field_serializer, field_validator, model_validator

from server.security.addresses import is_loopback

ModelControlMode = Literal["none", "poll", "explicit"]
GrpcTransport = Literal["http2", "grpcio"]
LogFormat = Literal["text", "json"]
LogLevel = Literal["debug", "info", "warning", "error"]
EngineKind = Literal["onnxruntime", "triton"]
TraceLevel = Literal["OFF", "TIMESTAMPS"]
ApiGroup = Literal["model-repository", "shared-memory", "logging", "trace", "statistics"]
TritonSharedMemory = Literal["auto", "off"]
TritonCancellation = Literal["auto", "always", "never"]
ClientSharedMemory = Literal["auto", "true", "false"]


_METADATA_NAME = re.compile(r"(?!grpc-)[a-z0-9_.-]+")
_MOST_PINGS = 3
"""That a gRPC server takes without an answer of its own between them: the first, and two offences."""
_NOT_FORWARDED = frozenset(("content-type", "content-length", "te", "host", "user-agent"))
_OF_THE_CONNECTION = frozenset(("connection", "proxy-connection", "keep-alive", "transfer-encoding", "upgrade"))
"""What no request of HTTP/2 may have. Source: RFC 9113, section 8.2.2."""


_OF_THIS_PROCESS = (
    ("engine", "threads"),
    ("repository", "load_threads"),
    ("repository", "warmup_s"),
    ("repository", "poll_s"),
    ("repository", "require_signed"),
)
"""Settings that say something only of models that run here."""


def flag(name: str) -> dict[str, Any]:
    """Mark a field with the flag of `serve` that sets it. A field without one is set by environment only."""
    return {"flag": name}


def without_secrets(text: str) -> str:
    """`text` with the user and the password of each URL in it left out."""
    return re.sub(r"://[^/\s]*@", "://***@", text)


class Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class RepositorySettings(Section):
    path: Annotated[tuple[str, ...], Field(min_length=1, json_schema_extra=flag("--model-repository"))] = (
        "model_repository",
    )
    """A folder of models, in Triton's layout, or the URL of one (`s3://`, `gs://`, `az://`, `http://` and their kin);
    may be repeated. A model that two of them have is loaded from neither."""
    control_mode: Annotated[ModelControlMode, Field(json_schema_extra=flag("--model-control-mode"))] = "none"
    """none: load everything at start. poll: also follow changes of the folder. explicit: load what --load-model
    names, then what the control API asks for."""
    load_models: Annotated[tuple[str, ...], Field(json_schema_extra=flag("--load-model"))] = ()
    """A model to load at start in explicit mode; may be repeated, or * alone for all."""
    load_threads: Annotated[int, Field(ge=1, json_schema_extra=flag("--model-load-thread-count"))] = 2
    """Models that requests may have loaded at a time. More would take the cores from those that serve, and falsify what
    the warm-up of each measures."""
    max_override_bytes: Annotated[int, Field(gt=0)] = 64 * 1024 * 1024
    """Bytes of all files that a load request brings; as much as a request may have at all by default."""
    poll_s: Annotated[float, Field(gt=0, json_schema_extra=flag("--repository-poll-secs"))] = 15.0
    """Seconds between two looks at the folder in poll mode."""
    require_signed: Annotated[bool, Field(json_schema_extra=flag("--require-signed"))] = False
    """Load only models whose manifest is signed (`forwardpass sign`) by one of --trusted-keys, with no
    file beside those that it lists, and no config of a load request. Needs the extra auth."""
    trusted_keys: Annotated[str, Field(json_schema_extra=flag("--trusted-keys"))] = ""
    """PEM file of the public key (Ed25519) that models must be signed with, or a folder of them."""
    strict_readiness: Annotated[bool, Field(json_schema_extra=flag("--strict-readiness"))] = False
    """Ready only when every model has loaded. Off: ready when every model that can load has loaded."""
    warmup_s: Annotated[float, Field(gt=0)] = 10.0
    """Seconds that the warm-up of one version may take; the batch sizes left cold are logged."""

    @field_validator("path", mode="before")
    @classmethod
    def _one_or_several(cls, value: object) -> object:
        return (str(value),) if isinstance(value, str | Path) else value

    @field_serializer("path")
    def _told(self, path: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(map(without_secrets, path))

    @model_validator(mode="after")
    def _signatures_can_be_checked(self) -> Self:
        if self.require_signed != bool(self.trusted_keys):
            raise ValueError("--require-signed and --trusted-keys go together")
        return self

    @model_validator(mode="after")
    def _load_models_fit(self) -> Self:
        # Both as in Triton.
        if self.load_models and self.control_mode != "explicit":
            raise ValueError("--load-model requires --model-control-mode explicit as well")
        if "*" in self.load_models and len(self.load_models) > 1:
            raise ValueError("--load-model * stands for all models, and goes with no other --load-model")
        return self


class RemoteSettings(Section):
    cache_folder: Annotated[str, Field(json_schema_extra=flag("--repository-cache-folder"))] = ""
    """Where the files of remote repositories are kept; empty: `forwardpass` in the user's folder for caches. Several
    servers may share it."""
    cache_max_bytes: Annotated[int, Field(gt=0, json_schema_extra=flag("--repository-cache-max-bytes"))] = (
        32 * 1024 * 1024 * 1024
    )
    """Bytes of files that are kept; the longest unused go first. A model with more is not loaded."""
    downloads: Annotated[int, Field(ge=1, le=64)] = 8
    """Files of one model that are downloaded at a time."""
    timeout_s: Annotated[float, Field(gt=0)] = 30.0
    """Seconds without an answer, or without a byte more of a file, after which a try has failed."""
    tries: Annotated[int, Field(ge=1, le=20)] = 4
    """How often a remote repository is asked the same before it counts as out of reach."""
    backoff_s: Annotated[float, Field(ge=0, le=30)] = 0.5
    """Seconds before the second try, doubled for each further one, 30 at most; up to half of it is spared at random."""


class HttpSettings(Section):
    port: Annotated[int, Field(ge=0, le=65535, json_schema_extra=flag("--http-port"))] = 8000
    """REST; 0 picks a free port. It may be gRPC's: then each connection is served as what it speaks, HTTP/1.1 or
    HTTP/2 (by ALPN where there is TLS, else by its first bytes)."""
    console: Annotated[bool, Field(json_schema_extra=flag("--console"))] = True
    """The page at / for people: the models, a way to try each, live charts. It can do what the REST API can."""
    allowed_origins: Annotated[tuple[str, ...], Field(json_schema_extra=flag("--http-allowed-origin"))] = ()
    """An origin (https://console.example.com) whose pages may ask for more than to read; may be repeated. The
    server's own is one where it is an address or localhost: a name may be anybody's."""
    max_body_bytes: Annotated[int, Field(gt=0, json_schema_extra=flag("--http-max-input-size"))] = 64 * 1024 * 1024
    """Bytes of a request's body, after decompression."""
    compress_from_bytes: Annotated[int, Field(ge=0)] = 4096
    """Bytes of an answer's body from which on it is compressed for clients that accept it; below, packets are hardly
    fewer. 0: no answer is compressed but for those who accept nothing else."""
    max_bodies_bytes: Annotated[int, Field(gt=0)] = 1024 * 1024 * 1024
    """Bytes of bodies that are still arriving, over all connections; a body beyond them is answered 503."""
    max_connections: Annotated[int, Field(gt=0)] = 8192
    """Connections open at a time; further ones are answered 503 and closed."""
    max_pipelined_requests: Annotated[int, Field(gt=0)] = 64
    """Requests of one connection under way at a time; it is not read while it has as many."""
    max_head_bytes: Annotated[int, Field(gt=0)] = 32 * 1024
    """Bytes of a request line with its header fields (431), and of trailers; four times what browsers send."""
    max_target_bytes: Annotated[int, Field(gt=0)] = 8 * 1024
    """Bytes of a request's target (414): what RFC 9110 asks for, and no route needs more."""
    max_headers: Annotated[int, Field(gt=0)] = 100
    """Header fields of a request (431)."""
    max_unsent_bytes: Annotated[int, Field(gt=0)] = 128 * 1024
    """Bytes of answers that may wait for their client to take them; while there are more, it is not read from, and no
    further piece of a stream (generate_stream) is made."""
    keep_alive_s: Annotated[int, Field(gt=0)] = 75
    """Seconds that an idle connection is kept; longer than the 60 s of common proxies, so that they close first."""
    head_timeout_s: Annotated[float, Field(gt=0)] = 20.0
    """Seconds from the first byte of a request to the end of its header fields (408)."""
    body_timeout_s: Annotated[float, Field(gt=0)] = 20.0
    """Seconds for a request's body (408), beside those that it earns by `min_bytes_per_s`."""
    write_timeout_s: Annotated[float, Field(gt=0)] = 20.0
    """Seconds for a client to take its answers once they wait, beside those that it earns; then it is cut off."""
    min_bytes_per_s: Annotated[int, Field(gt=0)] = 16 * 1024
    """Bytes, sent or taken, that earn a client one more second; slow mobile networks give more."""
    linger_s: Annotated[float, Field(gt=0)] = 2.0
    """Seconds that a client may go on sending what nobody reads, so that it comes to see its last answer."""


class GrpcSettings(Section):
    port: Annotated[int, Field(ge=0, le=65535, json_schema_extra=flag("--grpc-port"))] = 8001
    """gRPC; 0 picks a free port. It may be REST's."""
    transport: Annotated[GrpcTransport, Field(json_schema_extra=flag("--grpc-transport"))] = "http2"
    """http2: our own, with all the limits below. grpcio: Google's, many times slower, with its own limits: of those
    below it honours max_message_bytes, max_concurrent_streams, max_header_list_bytes and max_connection_age_s."""
    max_message_bytes: Annotated[int, Field(gt=0)] = 64 * 1024 * 1024
    """Bytes of a message, received or sent, after decompression."""
    max_connections: Annotated[int, Field(gt=0)] = 4096
    """Connections at a time; one more is told so and closed."""
    max_concurrent_streams: Annotated[int, Field(gt=0, le=2**31 - 1)] = 1024
    """Calls under way on one connection; one more is refused."""
    max_header_list_bytes: Annotated[int, Field(ge=1024)] = 16 * 1024
    """Bytes of a call's metadata, 32 counted on top for each field."""
    max_continuations: Annotated[int, Field(ge=1)] = 16
    """CONTINUATION frames of one header block; more are a flood."""
    stream_window_bytes: Annotated[int, Field(ge=65_535, le=2**31 - 1)] = 1024 * 1024
    """Bytes that a client may send on one stream before they are taken up."""
    connection_window_bytes: Annotated[int, Field(ge=65_535, le=2**31 - 1)] = 16 * 1024 * 1024
    """Bytes that a client may send on all streams of a connection before it hears of the server."""
    max_received_bytes: Annotated[int, Field(gt=0)] = 256 * 1024 * 1024
    """Bytes of unfinished messages that the calls of one connection may hold; the call that goes over is refused."""
    max_unfinished_bytes: Annotated[int, Field(gt=0)] = 1024 * 1024 * 1024
    """The same of the calls of all connections."""
    send_buffer_bytes: Annotated[int, Field(gt=0)] = 1024 * 1024
    """Bytes that wait for a slow reader's socket before its own requests are no longer read."""
    max_send_bytes: Annotated[int, Field(gt=0)] = 256 * 1024 * 1024
    """Bytes of answers that may wait for one connection; over it the connection is closed."""
    max_resets_per_s: Annotated[int, Field(gt=0)] = 1000
    """Streams that one client may make end by RST_STREAM in a second, its own or ours for its faults, beside as many as
    it lets end otherwise: of the clients behind one proxy some give up."""
    max_pings_per_s: Annotated[int, Field(gt=0)] = 500
    """PING frames of one client in a second."""
    max_settings_per_s: Annotated[int, Field(gt=0)] = 10
    """SETTINGS frames of one client in a second."""
    max_empty_frames_per_s: Annotated[int, Field(gt=0)] = 1000
    """Frames of one client in a second that carry nothing: empty DATA, PRIORITY, unknown types."""
    handshake_timeout_s: Annotated[float, Field(gt=0)] = 10.0
    """Seconds from the accepted connection to the end of the TLS handshake, then to the first SETTINGS and our ACK; on
    REST's port also to the bytes that tell what is spoken."""
    request_timeout_s: Annotated[float, Field(gt=0)] = 60.0
    """Seconds in which a unary call's request must have arrived as a whole."""
    send_timeout_s: Annotated[float, Field(gt=0)] = 60.0
    """Seconds in which a client that has something to read must read some of it."""
    keepalive_s: Annotated[float, Field(gt=0)] = 60.0
    """Seconds without a sign of the client after which it is pinged."""
    keepalive_timeout_s: Annotated[float, Field(gt=0)] = 20.0
    """Seconds that it has to answer; then the connection is closed."""
    idle_timeout_s: Annotated[float, Field(ge=0)] = 0.0
    """Seconds without a call after which a connection is asked to leave; 0: never."""
    max_connection_age_s: Annotated[float, Field(ge=0)] = 0.0
    """Seconds after which a connection is asked to leave, so that load balancers can spread it anew; 0: never."""
    max_connection_age_grace_s: Annotated[float, Field(gt=0)] = 30.0
    """Seconds that a connection which was asked to leave has for its calls; then it is closed."""


class TlsSettings(Section):
    certificate: Annotated[str, Field(json_schema_extra=flag("--grpc-tls-certificate"))] = ""
    """PEM file of the gRPC listener's certificate and its chain. With it the listener speaks TLS, 1.2 or newer, and
    nothing else; empty: no TLS."""
    key: Annotated[str, Field(json_schema_extra=flag("--grpc-tls-key"))] = ""
    """PEM file of the certificate's private key, not encrypted."""
    client_ca: Annotated[str, Field(json_schema_extra=flag("--grpc-tls-client-ca"))] = ""
    """PEM file of the authorities of clients' certificates (mTLS): who shows none of theirs is let in nowhere. Empty:
    clients need none. All three files are read anew when they change; connections stay."""

    @property
    def files(self) -> tuple[str, str, str]:
        return self.certificate, self.key, self.client_ca

    @property
    def given(self) -> bool:
        """Whether any of it is set."""
        return any(self.files)


class HttpTlsSettings(TlsSettings):
    certificate: Annotated[str, Field(json_schema_extra=flag("--http-tls-certificate"))] = ""
    """PEM file of the REST listener's certificate and its chain. With it the listener speaks TLS, 1.2 or newer, and
    nothing else; empty: no TLS. It may be the gRPC listener's."""
    key: Annotated[str, Field(json_schema_extra=flag("--http-tls-key"))] = ""
    """PEM file of the certificate's private key, not encrypted."""
    client_ca: Annotated[str, Field(json_schema_extra=flag("--http-tls-client-ca"))] = ""
    """PEM file of the authorities of clients' certificates (mTLS): who shows none of theirs is let in nowhere. Empty:
    clients need none. All three files are read anew when they change; connections stay."""


class MetricsSettings(Section):
    port: Annotated[int, Field(ge=0, le=65535, json_schema_extra=flag("--metrics-port"))] = 8002
    """Prometheus metrics at /metrics; 0 picks a free port."""
    powercap_folder: str = "/sys/class/powercap"
    """Where Linux tells what the processors use (RAPL), for the metrics of energy; they are left out where it does not,
    or not to this user."""
    host: Annotated[str, Field(json_schema_extra=flag("--metrics-host"))] = "127.0.0.1"
    """The address of the metrics, which name models and say how much they are asked; by default for this machine."""
    token_file: Annotated[str, Field(json_schema_extra=flag("--metrics-token-file"))] = ""
    """File of a token that scrapers must show (`authorization: Bearer`); empty: whoever reaches the port may read."""


class AuthSettings(Section):
    keys: Annotated[str, Field(json_schema_extra=flag("--auth-keys"))] = ""
    """File of API keys (`forwardpass keys create`), or a folder of such files, as a mounted secret. With it or with
    tokens every call but health must show a key or token that is allowed to make it. Changes are followed."""
    jwt_jwks: Annotated[str, Field(json_schema_extra=flag("--jwt-jwks"))] = ""
    """JWK Set of the public keys that tokens (JWT) are signed with: a file, or an https:// URL. Needs the
    extra auth."""
    jwt_issuer: Annotated[str, Field(json_schema_extra=flag("--jwt-issuer"))] = ""
    """Who must have issued a token: its claim iss."""
    jwt_audience: Annotated[str, Field(json_schema_extra=flag("--jwt-audience"))] = ""
    """For whom a token must be: its claim aud."""
    jwt_roles_claim: Annotated[str, Field(min_length=1)] = "roles"
    """The claim that holds a token's roles (predict, read, control), a list or words; scope for OAuth's."""
    jwt_leeway_s: Annotated[float, Field(ge=0, le=300)] = 30.0
    """Seconds that the clock of who issues tokens may be off."""
    jwt_refresh_s: Annotated[float, Field(ge=30)] = 600.0
    """Seconds between two fetches of a JWK Set by URL; also after a token names a key that it lacks, 30 s later."""
    jwt_rate_per_s: Annotated[float, Field(ge=0)] = 0.0
    """Requests a second of one token's subject; 0: no limit."""
    jwt_max_concurrent: Annotated[int, Field(ge=0)] = 0
    """Requests under way of one token's subject; 0: no limit."""
    refresh_s: Annotated[float, Field(gt=0)] = 5.0
    """Seconds between two looks at the files of keys, and at certificates."""
    open_groups: Annotated[tuple[ApiGroup, ...], Field(json_schema_extra=flag("--open-api"))] = ()
    """A group of calls that is open where the server listens on more than the loopback; may be repeated. The others are
    for callers with the role control, and where there are neither keys nor tokens for nobody: model-repository (index,
    load, unload), shared-memory, logging, trace, statistics."""
    insecure: Annotated[bool, Field(json_schema_extra=flag("--insecure"))] = False
    """Let everybody ask who reaches an address beyond the loopback. Without it such an address needs keys, tokens, or
    clients' certificates."""

    @property
    def given(self) -> bool:
        """Callers show who they are."""
        return bool(self.keys or self.jwt_jwks)

    @model_validator(mode="after")
    def _tokens_are_for_us(self) -> Self:
        if bool(self.jwt_jwks) != bool(self.jwt_issuer) or bool(self.jwt_jwks) != bool(self.jwt_audience):
            raise ValueError("--jwt-jwks, --jwt-issuer and --jwt-audience go together")
        return self


class SharedMemorySettings(Section):
    allow: Annotated[ClientSharedMemory, Field(json_schema_extra=flag("--allow-client-shm"))] = "auto"
    """Whether clients may pass tensors in POSIX shared memory. auto: where the server listens on a loopback address,
    for whoever reaches it may then have any file of /dev/shm read and written that the server may."""
    max_regions: Annotated[int, Field(ge=1)] = 256
    """Regions registered at a time; each is an open file."""
    max_registered_bytes: Annotated[int, Field(ge=1)] = 16 * 1024 * 1024 * 1024
    """Bytes of all registered regions."""
    max_in_flight_bytes: Annotated[int, Field(ge=1)] = 1024 * 1024 * 1024
    """Bytes of inputs and outputs in shared memory of all requests under way, of which the server has copies; a request
    beyond them is refused."""


class SchedulerSettings(Section):
    default_max_queue_size: Annotated[int, Field(ge=1)] = 8192
    """Requests that may wait for one version of a model whose config.pbtxt sets no max_queue_size. Triton's
    default is no limit, which turns overload into memory and time-outs."""
    hang_s: Annotated[float, Field(ge=0)] = 60.0
    """Seconds that a pass may take at least, and 20 times what is foreseen of it, before its callers are told that it
    failed and its instance is replaced (10 times as long where nothing is foreseen); 0: any time. Not of models with
    sequences or several responses, nor of passes of microseconds, which run on the event loop."""


class CacheSettings(Section):
    size_bytes: Annotated[int, Field(ge=0, json_schema_extra=flag("--cache-size-bytes"))] = 0
    """Bytes of memory for answers that are kept for equal requests, of models whose config.pbtxt says `response_cache
    { enable: true }`, all of them together; Triton's `--cache-config local,size=BYTES`. 0: no answer is kept."""


class EngineSettings(Section):
    kind: Annotated[EngineKind, Field(json_schema_extra=flag("--engine"))] = "onnxruntime"
    """onnxruntime: the models run in this process. triton: they run on the Triton Inference Servers of --triton-url,
    and this server is the gateway in front of them."""
    threads: Annotated[int, Field(ge=0, json_schema_extra=flag("--engine-threads"))] = 0
    """Threads of one forward pass where config.pbtxt sets no intra_op_thread_count; 0: the cores that this
    process may use (cgroup quota and affinity, not the host's), shared out over the instances."""


class TritonSettings(Section):
    url: Annotated[str, Field(json_schema_extra=flag("--triton-url"))] = ""
    """The Tritons' gRPC addresses, a list with commas: grpc://HOST:PORT, grpcs://HOST:PORT (TLS), dns:///HOST:PORT, or
    unix:///PATH (the socket of a proxy in front of one). A name stands for all its addresses, each a server of its
    own."""
    tls: Annotated[bool, Field(json_schema_extra=flag("--triton-tls"))] = False
    """Speak TLS with all of them; without it with those of grpcs:// alone."""
    tls_ca: Annotated[str, Field(json_schema_extra=flag("--triton-tls-ca"))] = ""
    """PEM file of the authorities that Tritons' certificates must be of; empty: those that gRPC brings."""
    tls_certificate: Annotated[str, Field(json_schema_extra=flag("--triton-tls-certificate"))] = ""
    """PEM file of this server's own certificate and its chain, for Tritons that ask for one (mTLS); empty: none."""
    tls_key: Annotated[str, Field(json_schema_extra=flag("--triton-tls-key"))] = ""
    """PEM file of that certificate's private key, not encrypted."""
    tls_server_name: Annotated[str, Field(json_schema_extra=flag("--triton-tls-server-name"))] = ""
    """The name that the certificates must be for; empty: the host of the address."""
    forward_metadata: Annotated[str, Field(json_schema_extra=flag("--triton-forward-metadata"))] = ""
    """Names of gRPC metadata and REST headers, a list with commas, that go along with a request to its Triton, for
    example traceparent,tracestate; empty: none."""
    health_interval_s: Annotated[float, Field(gt=0, json_schema_extra=flag("--triton-health-interval-secs"))] = 1.0
    """Seconds between two probes of a Triton that is well: whether it is ready, and which models it has."""
    probe_timeout_s: Annotated[float, Field(gt=0)] = 1.0
    """Seconds that it has to answer a probe; after two in a row without an answer it is ejected, and after one that
    fails at once."""
    max_backoff_s: Annotated[float, Field(gt=0)] = 3.0
    """The longest time in seconds between two probes of a Triton that is ejected."""
    poll_s: Annotated[float, Field(gt=0, json_schema_extra=flag("--triton-poll-secs"))] = 5.0
    """Seconds between two looks at the configs of the models, for those that were loaded anew there."""
    resolve_s: Annotated[float, Field(gt=0)] = 5.0
    """Seconds between two look-ups of the names in the addresses."""
    connect_timeout_s: Annotated[float, Field(gt=0)] = 2.0
    """Seconds that a connection may take to be made."""
    keepalive_s: Annotated[float, Field(gt=0)] = 10.0
    """Seconds without a sign of a Triton after which it is pinged; shorter than the idle time of load balancers."""
    keepalive_timeout_s: Annotated[float, Field(gt=0)] = 5.0
    """Seconds that it has to answer; then the connection is lost, and the requests on it."""
    control_timeout_s: Annotated[float, Field(gt=0)] = 300.0
    """Seconds that a Triton may take to load or unload a model."""
    cancellation: Annotated[TritonCancellation, Field(json_schema_extra=flag("--triton-cancellation"))] = "auto"
    """Whether a Triton hears that nobody waits for a call any more. auto: if its version survives that, which those
    from 2.39 to 2.56 do not always; what they answer too late is thrown away."""
    max_in_flight_rows: Annotated[int, Field(ge=1)] = 1024
    """Rows of one model that one Triton may have at a time, however wide the window is that was learned."""

    shared_memory: Annotated[TritonSharedMemory, Field(json_schema_extra=flag("--triton-shared-memory"))] = "auto"
    """auto: a Triton at a loopback address reads large inputs from shared memory (/dev/shm), if it can. off: all inputs
    go by message."""
    shared_memory_least_bytes: Annotated[
        int, Field(ge=1, json_schema_extra=flag("--triton-shared-memory-least-bytes"))
    ] = 128 * 1024
    """Bytes of a request's inputs, without those of text, from which they go by shared memory: what `make
    bench-triton-shm` says."""
    shared_memory_bytes: Annotated[int, Field(ge=64 * 1024)] = 64 * 1024 * 1024
    """Bytes of that memory, for all Tritons together, taken with the first request that needs it, or at the start
    where it is a GPU's. Where it is full, inputs go by message."""
    shared_memory_gpu: Annotated[int, Field(ge=-1, json_schema_extra=flag("--triton-shared-memory-gpu"))] = -1
    """The number of a GPU, by CUDA's count here and at the Tritons: that memory is its own (CUDA shared memory), and
    without it the server does not start. -1: it is the host's."""

    @model_validator(mode="after")
    def _a_gpus_memory_is_shared(self) -> Self:
        if self.shared_memory == "off" and self.shared_memory_gpu >= 0:
            raise ValueError("--triton-shared-memory-gpu needs --triton-shared-memory auto")
        return self

    @model_validator(mode="after")
    def _probes_are_between_the_pings(self) -> Self:
        if self.health_interval_s > _MOST_PINGS * self.keepalive_s:
            problem = f"must be at most {_MOST_PINGS} times triton.keepalive_s ({self.keepalive_s:g})"
            raise ValueError(
                f"--triton-health-interval-secs {problem}: a Triton hangs up on pings with nothing between"
            )
        return self

    @property
    def forwards(self) -> tuple[str, ...]:
        """The names of `forward_metadata`."""
        return tuple(name.strip() for name in self.forward_metadata.split(",") if name.strip())

    @field_validator("forward_metadata")
    @classmethod
    def _can_be_forwarded(cls, value: str) -> str:
        for name in filter(None, map(str.strip, value.split(","))):
            own = name.endswith("-bin") or name in _NOT_FORWARDED or name in _OF_THE_CONNECTION
            if own or not _METADATA_NAME.fullmatch(name):
                raise ValueError(f"'{name}' can't be forwarded: a name is of a-z, 0-9, _ . - and none of gRPC's own")
        return value


class PipelineSettings(Section):
    threads: Annotated[int, Field(ge=0, json_schema_extra=flag("--pipeline-threads"))] = 0
    """Threads that decode pictures and build answers; 0: the cores that this process may use."""
    max_pixels: Annotated[int, Field(gt=0)] = 50_000_000
    """Pixels of a decoded picture, whatever a model's processing.yaml allows."""
    custom_code: Annotated[tuple[str, ...], Field(json_schema_extra=flag("--custom-code"))] = ()
    """Models whose own Python code may run in this process (`task: custom`), by name; any other such is not loaded."""


class WorkersSettings(Section):
    count: Annotated[int, Field(ge=1, le=64, json_schema_extra=flag("--workers"))] = 1
    """Front processes, which speak to clients; with more than 1 the models' passes run in an engine process beside
    them, but for models of microseconds, which run in each front. 1: all in one process. More need the transport
    http2, and clients can't pass tensors in shared memory."""
    max_unsent_bytes: Annotated[int, Field(gt=0)] = 256 * 1024 * 1024
    """Bytes of requests that may wait in one front for the engine process to read them; more are UNAVAILABLE."""
    shared_bytes: Annotated[int, Field(ge=0)] = 64 * 1024 * 1024
    """Bytes of memory that each front shares with the engine process for large inputs; 0: none, all goes by socket."""
    hang_s: Annotated[float, Field(ge=2)] = 15.0
    """Seconds without a sign of one of the processes after which it is killed, and replaced."""
    max_deaths: Annotated[int, Field(ge=1)] = 8
    """Processes that may die unasked within a minute and are replaced; at one more the server ends."""


class ScalingSettings(Section):
    target_saturation: Annotated[float, Field(gt=0, le=1)] = 0.7
    """The saturation that a replica is to have: `forwardpass_desired_replicas` are as many as bring it there."""
    external_scaler: Annotated[bool, Field(json_schema_extra=flag("--external-scaler"))] = False
    """Serve KEDA's externalscaler.ExternalScaler on the gRPC port."""
    peers: str = ""
    """HOST:PORT of the metrics of all replicas, of a headless Service for example: the external scaler tells the work
    of all addresses that the host has. Empty: of this replica alone."""
    poll_s: Annotated[float, Field(gt=0, le=60)] = 2.0
    """Seconds for which the external scaler's answer holds before the replicas are asked again."""

    @field_validator("peers")
    @classmethod
    def _peers_are_an_address(cls, value: str) -> str:
        host, colon, port = value.rpartition(":")
        if value and not (host and colon and port.isdecimal() and 0 < int(port) < 65536):
            raise ValueError("is HOST:PORT")
        return value

    @model_validator(mode="after")
    def _peers_are_for_the_scaler(self) -> Self:
        if self.peers and not self.external_scaler:
            raise ValueError("scaling.peers needs --external-scaler")
        return self


class ShutdownSettings(Section):
    delay_s: Annotated[float, Field(ge=0, json_schema_extra=flag("--drain-delay-secs"))] = 0.25
    """Seconds between turning unready and closing the listeners: for load balancers to notice, and for requests
    that are already on the wire to be read. Behind a load balancer set it to its detection time, 10 s or so."""
    grace_s: Annotated[float, Field(ge=0, json_schema_extra=flag("--exit-timeout-secs"))] = 30.0
    """Seconds in which everything admitted is answered before the rest is settled as UNAVAILABLE."""


class TraceSettings(Section):
    file: Annotated[str, Field(json_schema_extra=flag("--trace-file"))] = ""
    """Where traces are written, with .0, .1 and so on behind it if there is a log frequency; empty: there are none."""
    level: Annotated[TraceLevel, Field(json_schema_extra=flag("--trace-level"))] = "OFF"
    """TIMESTAMPS: when a request came, waited, ran and was answered."""
    rate: Annotated[int, Field(ge=1, le=2**32 - 1, json_schema_extra=flag("--trace-rate"))] = 1000
    """One of so many requests is traced."""
    count: Annotated[int, Field(ge=-1, le=2**31 - 1, json_schema_extra=flag("--trace-count"))] = -1
    """So many requests are traced in all; -1: no limit."""
    log_frequency: Annotated[int, Field(ge=0, le=10_000, json_schema_extra=flag("--trace-log-frequency"))] = 0
    """Traces of one file; 0: all are in one."""


class OtlpSettings(Section):
    endpoint: Annotated[str, Field(json_schema_extra=flag("--otlp-endpoint"))] = ""
    """Where spans of requests are sent, by OTLP over gRPC: HOST:PORT, or that behind http:// or https:// (TLS); empty:
    there are none. Needs forwardpass[tracing]."""
    ratio: Annotated[float, Field(ge=0, le=1, json_schema_extra=flag("--otlp-ratio"))] = 0.01
    """The part of the requests whose spans are sent, of those whose callers do not say (traceparent)."""
    slow_ms: Annotated[float, Field(ge=0, json_schema_extra=flag("--otlp-slow-ms"))] = 1000.0
    """Milliseconds from which a request's spans are sent in any case, as are those of one that fails; 0: none is for
    its time."""
    service_name: Annotated[str, Field(min_length=1, json_schema_extra=flag("--otlp-service-name"))] = "forwardpass"
    """What spans say that they are of."""


class LogSettings(Section):
    level: Annotated[LogLevel, Field(json_schema_extra=flag("--log-level"))] = "info"
    """The least severe level that is written."""
    format: Annotated[LogFormat, Field(json_schema_extra=flag("--log-format"))] = "text"
    """text for people, json for collectors."""
    access: Annotated[float, Field(ge=0, le=1, json_schema_extra=flag("--log-access"))] = 0.0
    """The part of the requests that have a line in the log when they are answered; with any, all that fail have. 0: no
    request has one."""


class Settings(Section):
    """The root. Build it with `server.environment.load_settings`."""

    host: Annotated[str, Field(json_schema_extra=flag("--host"))] = "127.0.0.1"
    """The address of REST and gRPC; `::` is all of this machine's, IPv4 and IPv6. One beyond the loopback needs keys,
    tokens, or --insecure."""
    repository: RepositorySettings = RepositorySettings()
    remote: RemoteSettings = RemoteSettings()
    http: HttpSettings = HttpSettings()
    grpc: GrpcSettings = GrpcSettings()
    tls: TlsSettings = TlsSettings()
    http_tls: HttpTlsSettings = HttpTlsSettings()
    metrics: MetricsSettings = MetricsSettings()
    auth: AuthSettings = AuthSettings()
    shared_memory: SharedMemorySettings = SharedMemorySettings()
    scheduler: SchedulerSettings = SchedulerSettings()
    cache: CacheSettings = CacheSettings()
    engine: EngineSettings = EngineSettings()
    triton: TritonSettings = TritonSettings()
    pipeline: PipelineSettings = PipelineSettings()
    workers: WorkersSettings = WorkersSettings()
    scaling: ScalingSettings = ScalingSettings()
    shutdown: ShutdownSettings = ShutdownSettings()
    trace: TraceSettings = TraceSettings()
    otlp: OtlpSettings = OtlpSettings()
    log: LogSettings = LogSettings()

    @property
    def one_port(self) -> bool:
        """Whether REST and gRPC share a port, and each connection says which of them it is for."""
        return self.http.port == self.grpc.port != 0

    @property
    def rest_tls(self) -> TlsSettings:
        """Of REST: on a shared port gRPC's, where only gRPC's is given."""
        return self.tls if self.one_port and not self.http_tls.given else self.http_tls

    @property
    def grpc_tls(self) -> TlsSettings:
        """Of gRPC: on a shared port REST's, where only REST's is given."""
        return self.http_tls if self.one_port and not self.tls.given else self.tls

    @model_validator(mode="after")
    def _one_port_can_be_had(self) -> Self:
        if not self.one_port:
            return self
        if self.grpc.transport != "http2":
            raise ValueError(
                f"http.port and grpc.port are both {self.http.port}, and one port for both needs grpc.transport http2: "
                "grpcio shares none"
            )
        if self.rest_tls.files != self.grpc_tls.files:
            raise ValueError(
                f"http.port and grpc.port are both {self.http.port}, and http_tls and tls differ: one port has one "
                "certificate. Give it to one of them, or the same to both"
            )
        return self

    @model_validator(mode="after")
    def _replicas_can_ask(self) -> Self:
        if self.metrics.token_file and self.scaling.peers:
            raise ValueError("--metrics-token-file goes without scaling.peers: replicas show each other no token")
        return self

    @model_validator(mode="after")
    def _not_open_by_mistake(self) -> Self:
        mutual = self.rest_tls.client_ca and self.grpc_tls.client_ca
        if is_loopback(self.host) or self.auth.given or self.auth.insecure or mutual:
            return self
        raise ValueError(
            f"--host {self.host} is reached from elsewhere: it needs --auth-keys, --jwt-jwks or both listeners' "
            "tls-client-ca, or --insecure to let everybody ask"
        )

    @model_validator(mode="after")
    def _workers_can_be_had(self) -> Self:
        if self.workers.count > 1 and self.grpc.transport != "http2":
            raise ValueError("workers.count above 1 needs grpc.transport http2: grpcio is handed no connections")
        if self.workers.count > 1 and self.shared_memory.allow == "true":
            raise ValueError("shared_memory.allow needs workers.count 1: regions are known to one process")
        if self.workers.count > 1 and self.trace.level != "OFF":
            raise ValueError("trace.level needs workers.count 1: the file of traces is one process's")
        return self

    @model_validator(mode="after")
    def _engine_fits(self) -> Self:
        if self.engine.kind != "triton":
            if self.triton != TritonSettings():
                raise ValueError("triton.* settings need --engine triton")
            return self
        if not self.triton.url:
            raise ValueError("--engine triton needs --triton-url")
        if self.workers.count > 1:
            raise ValueError("--engine triton needs --workers 1: start several servers instead")
        if self.cache.size_bytes:
            raise ValueError("--cache-size-bytes needs --engine onnxruntime: Tritons keep answers themselves")
        if self.repository.control_mode == "poll":
            raise ValueError("--model-control-mode poll needs --engine onnxruntime: Tritons are followed anyway")
        if bool(self.triton.tls_certificate) != bool(self.triton.tls_key):
            raise ValueError("--triton-tls-certificate and --triton-tls-key go together")
        return self._without_models_here()

    def _without_models_here(self) -> Self:
        if "*" in self.repository.load_models:
            raise ValueError("--load-model * needs --engine onnxruntime: name the models that Tritons are to load")
        for section, name in _OF_THIS_PROCESS:
            if getattr(getattr(self, section), name) != getattr(getattr(Settings(), section), name):
                raise ValueError(f"{section}.{name} needs --engine onnxruntime: no model is loaded here")
        return self
