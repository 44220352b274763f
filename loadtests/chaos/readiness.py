"""What the server says of itself, asked again and again over a new connection each time."""

from __future__ import annotations

import asyncio
import ssl
import time
from bisect import bisect_left, bisect_right
from dataclasses import dataclass, field

_PATIENCE_S = 2.0


@dataclass
class Readiness:
    """When it was ready and when not, as those heard it who asked."""

    at_s: list[float] = field(default_factory=list)
    ready: list[bool] = field(default_factory=list)

    async def watch(self, address: str, every_s: float) -> None:
        """Until it is cancelled. Who gets no answer takes it for no."""
        host, _, port = address.partition(":")
        context = ssl.create_default_context()
        # Whose certificate it is changes meanwhile, and is looked at elsewhere.
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        while True:
            ready = await self._ask(host, int(port), context)
            self.at_s.append(time.monotonic())
            self.ready.append(ready)
            await asyncio.sleep(every_s)

    @staticmethod
    async def _ask(host: str, port: int, context: ssl.SSLContext) -> bool:
        try:
            async with asyncio.timeout(_PATIENCE_S):
                reader, writer = await asyncio.open_connection(host, port, ssl=context)
                writer.write(b"GET /v2/health/ready HTTP/1.1\r\nHost: chaos\r\nConnection: close\r\n\r\n")
                head = await reader.read(64)
                writer.close()
                return b" 200 " in head
        except (OSError, TimeoutError):
            return False

    def always(self, begin_s: float, end_s: float) -> bool:
        """Every answer between two times was yes."""
        return all(self.ready[bisect_left(self.at_s, begin_s) : bisect_right(self.at_s, end_s)])

    def part(self) -> float:
        """Of the answers, how many were yes."""
        return sum(self.ready) / len(self.ready) if self.ready else 0.0
