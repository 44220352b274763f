"""HTTP/2 (RFC 9113) for the gRPC transport: from a socket's bytes to calls and back."""
