"""The one message of a call that answers with a stream."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

from server.errors import Unsupported


async def only(messages: AsyncIterator[Any]) -> Any:
    """The first; the rest, which no well-formed call has, is not read. Raises Unsupported: there is none."""
    async for message in messages:
        return message
    raise Unsupported("request", "has no message")
