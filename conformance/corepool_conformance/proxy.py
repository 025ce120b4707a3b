"""A TCP proxy that can be cut: how the kit breaks connections without touching the backend.

Purpose: sit between a driver and its server, cut every connection at once, refuse new ones, heal.
Invariants: `cut` aborts with a reset (no orderly close, what was buffered is lost); after `cut` returned no byte passes until
`heal`; nothing outlives `aclose`.
Neighbours: started by harnesses inside a test's event loop.
"""

from __future__ import annotations

import asyncio
import contextlib

__all__ = ["TcpProxy"]


class TcpProxy:
    """Use `TcpProxy.start`. ``port`` is the local port to connect to instead of the server's."""

    def __init__(self, host: str, port: int) -> None:
        self._target = (host, port)
        self._server: asyncio.Server | None = None
        self._open: set[asyncio.StreamWriter] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._is_cut = False
        self.port = 0

    @classmethod
    async def start(cls, host: str, port: int) -> TcpProxy:
        """Listen on a free local port."""
        proxy = cls(host, port)
        proxy._server = await asyncio.start_server(proxy._serve, "127.0.0.1", 0)
        proxy.port = int(proxy._server.sockets[0].getsockname()[1])
        return proxy

    async def cut(self) -> None:
        """Reset every connection; new ones are reset at once, as long as the cut lasts."""
        self._is_cut = True
        for writer in list(self._open):
            writer.transport.abort()
        for task in list(self._tasks):
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)

    async def heal(self) -> None:
        """Let connections through again."""
        self._is_cut = False

    async def aclose(self) -> None:
        """Cut, and stop listening."""
        await self.cut()
        if self._server is not None:
            self._server.close()
            await self._server.wait_closed()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        self._open.add(writer)
        upstream: asyncio.StreamWriter | None = None
        try:
            if self._is_cut:
                return
            answers, upstream = await asyncio.open_connection(*self._target)
            self._open.add(upstream)
            if self._is_cut:
                return
            async with asyncio.TaskGroup() as group:
                group.create_task(self._pump(reader, upstream))
                group.create_task(self._pump(answers, writer))
        except (OSError, asyncio.CancelledError):
            # A reset on either side, or `cut`: in both cases the connection is over, which is all a proxy has to know.
            # The cancellation comes from `cut` alone; this task has no other owner and ends here.
            pass
        finally:
            for end in (writer, upstream):
                if end is not None:
                    self._open.discard(end)
                    end.transport.abort()
            self._tasks.discard(task)

    async def _pump(self, source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError):
            while data := await source.read(65536):
                sink.write(data)
                await sink.drain()
        sink.transport.abort()
