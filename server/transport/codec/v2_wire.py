"""ModelInfer on bytes: what this process has read and written of late is known to all of its transports."""

from __future__ import annotations

from server.transport.codec.wire_request import Forms
from server.transport.codec.wire_response import Templates

_forms = Forms()
_templates = Templates()

decode_infer = _forms.decode
decode_framed_infer = _forms.decode_framed
encode_infer = _templates.encode
encode_infer_parts = _templates.encode_parts
