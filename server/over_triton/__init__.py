"""The gateway in front of Tritons: which models they have, in service here, and what this server says of them."""
