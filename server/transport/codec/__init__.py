"""Between the wire and `server.types`: v2 over gRPC and REST, predict over both, and the management answers.

Plain functions without I/O. Whatever a client can get wrong on the wire is an `InvalidRequest` that names
the field as the client spells it; what concerns the model's config is the data plane's to check.
"""
