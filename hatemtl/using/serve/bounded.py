"""Bounds what a connection may take before a request is there: bytes of its head, and time; uvicorn bounds neither."""

import asyncio
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

CONNECTIONS = 256  # at once; further ones are answered with 503
HEAD = 1 << 20  # bytes of a request's line and headers, and of the read that they end in
SECONDS = 30.0  # until a head is whole


class Bounded(HttpToolsProtocol):
    """Closes connections whose requests have too large a head, or take too long to send it."""

    size = 0  # bytes that came since a head began
    timer: asyncio.TimerHandle | None = None  # while a head is being read

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        self._begin()

    def connection_lost(self, exc: Exception | None) -> None:
        self._end()
        super().connection_lost(exc)

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._begin()

    def on_headers_complete(self) -> None:
        self._end()
        super().on_headers_complete()

    def data_received(self, data: bytes) -> None:
        if self.timer is not None and self.size + len(data) > HEAD:
            self.transport.close()
            return
        self.size += len(data)
        super().data_received(data)

    def _begin(self) -> None:
        self._end()
        self.size = 0
        self.timer = self.loop.call_later(SECONDS, self.transport.close)

    def _end(self) -> None:
        if self.timer is not None:
            self.timer.cancel()
        self.timer = None
