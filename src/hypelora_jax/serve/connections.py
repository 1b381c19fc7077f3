"""Connections of the server, which do not wait for headers forever."""

import asyncio

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

PATIENCE = 10.0  # seconds for the headers of a request to arrive


class Connection(H11Protocol):
    """A connection of HTTP/1 that waits at most PATIENCE seconds for headers.

    uvicorn closes a connection that is silent between two requests. But it waits
    forever for a first request, and for the rest of headers that come byte by byte, so
    that a few clients could take up every connection.
    """

    _late: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Start to wait for the first request."""
        super().connection_made(transport)
        self._watch()

    def data_received(self, data: bytes) -> None:
        """Read data, and wait for the rest of the headers they may belong to."""
        super().data_received(data)
        self._watch()

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop waiting."""
        self._stop_watch()
        super().connection_lost(exc)

    def _watch(self) -> None:
        if self.conn.their_state is not h11.IDLE:  # the headers are here
            self._stop_watch()
        elif self._late is None:
            self._late = self.loop.call_later(PATIENCE, self.timeout_keep_alive_handler)

    def _stop_watch(self) -> None:
        if self._late is not None:
            self._late.cancel()
        self._late = None
